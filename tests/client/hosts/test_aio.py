"""What is particular to asyncio: cancellation, and failures of the device that interrupt a task."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sealwire_client import ReplicaClosedError, latest
from sealwire_client.aio import Collection, Device
from sealwire_client.invites import InviteError
from sealwire_client.replica import Replica, Runner
from sealwire_client.transport import Transport
from sealwire_protocol.errors import LocalMisuse
from tests.client.hosts.test_everywhere import NOWHERE, Todo
from tests.client.realrelay import RealRelay
from tests.support.aio import asyncio_test


@asynccontextmanager
async def todos(folder: Path) -> AsyncIterator[Collection[Todo]]:
    """A collection of a device whose relay is not there."""
    async with Device.open(folder, relay=NOWHERE) as device:
        home = await device.create_vault("home")
        yield await home.collection("todos", Todo, policy=latest())


def threads() -> set[str]:
    """Those of devices that are running."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("sealwire")}


@asyncio_test
async def test_a_wait_that_is_cancelled_ends_and_the_device_goes_on(tmp_path: Path) -> None:
    async with Device.open(tmp_path, relay=NOWHERE) as device:
        home = await device.create_vault("home")
        waiting = asyncio.create_task(home.synced())
        await home.status()  # began after it
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await home.status()).pending == 0
    assert threads() == set()


@asyncio_test
async def test_an_edit_that_is_cancelled_is_made_or_not_before_that_is_told(tmp_path: Path) -> None:
    async with todos(tmp_path) as notes:
        for number in range(50):
            task = asyncio.create_task(notes.put(str(number), Todo("made or not")))
            if number % 2:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            found = notes.get(str(number))
            await notes.put("last", Todo("made"))
            assert notes.get(str(number)) == found
            assert found is None or number % 2, "cancelled before it began, it is not made"


@asyncio_test
async def test_edits_of_many_tasks_are_all_made(tmp_path: Path) -> None:
    async with todos(tmp_path) as notes:
        await asyncio.gather(*[notes.put(str(number), Todo("made", number)) for number in range(300)])
        assert len(notes) == 300


@asyncio_test
async def test_tasks_are_in_the_transaction_in_which_they_were_started_and_no_others(tmp_path: Path) -> None:
    async with Device.open(tmp_path, relay=NOWHERE) as device:
        home = await device.create_vault("home")
        notes = await home.collection("todos", Todo, policy=latest())
        begun, looked = asyncio.Event(), asyncio.Event()

        async def outside() -> None:
            await begun.wait()
            assert notes.get("x") is None
            await notes.put("z", Todo("outside"))
            assert "z" in notes
            looked.set()

        other = asyncio.create_task(outside())
        async with home.transaction():
            await asyncio.create_task(notes.put("x", Todo("inside")))
            begun.set()
            await looked.wait()
            assert (notes.get("x"), len(notes)) == (Todo("inside"), 1)
        await other
        assert len(notes) == 2


@asyncio_test
async def test_changes_that_come_while_a_wait_is_cancelled_are_not_lost(tmp_path: Path) -> None:
    async with todos(tmp_path) as notes:
        heard: list[str] = []
        with notes.changes() as changes:
            for number in range(50):
                step = asyncio.ensure_future(anext(changes))
                await asyncio.sleep(0)
                await notes.put(str(number), Todo("told"))
                step.cancel()
                try:
                    heard += [change.key for change in await step or ()]
                except asyncio.CancelledError:
                    pass
            while len(heard) < 50:
                heard += [change.key for change in await anext(changes) or ()]
        assert heard == [str(number) for number in range(50)]


class BugError(Exception):
    """What a device can fail with."""


@asynccontextmanager
async def failing(origin: str) -> AsyncIterator[Transport]:
    """A dialler that is broken."""
    raise BugError(origin)
    yield  # type: ignore[unreachable]


@asyncio_test
async def test_a_device_that_fails_interrupts_its_block(tmp_path: Path) -> None:
    async def app() -> None:
        async with Device.open(tmp_path, relay=NOWHERE, dialler=failing) as device:
            await device.create_vault("home")  # from now on there is somebody to dial
            await asyncio.Event().wait()

    with pytest.raises(BugError):
        await app()
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)
    assert threads() == set()


@asyncio_test
async def test_a_device_that_fails_ends_what_waits_for_it(tmp_path: Path) -> None:
    gate = threading.Event()
    waiting: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def fails_later(origin: str) -> AsyncIterator[Transport]:
        await trio.to_thread.run_sync(gate.wait)
        async with failing(origin) as transport:
            yield transport

    async def app() -> None:
        async with Device.open(tmp_path, relay=NOWHERE, dialler=fails_later) as device:
            home = await device.create_vault("home")
            waiting.append(asyncio.create_task(home.synced()))
            await home.status()  # began after it
            gate.set()
            await asyncio.Event().wait()

    with pytest.raises(BugError):
        await app()
    with pytest.raises(BugError):
        await waiting[0]


@asyncio_test
async def test_a_block_that_is_cancelled_closes_its_device(tmp_path: Path) -> None:
    inside = asyncio.Event()

    async def app() -> None:
        async with todos(tmp_path):
            inside.set()
            await asyncio.Event().wait()

    for _ in range(2):
        inside.clear()
        task = asyncio.create_task(app())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads() == set()


@pytest.mark.parametrize("steps", range(4))
def test_an_opening_that_is_cancelled_leaves_nothing_open(tmp_path: Path, steps: int) -> None:
    async def never(opens: Callable[[], Replica]) -> Runner[Replica]:
        await trio.sleep_forever()

    @asyncio_test
    async def test() -> None:
        opening = asyncio.create_task(Device.open(tmp_path, relay=NOWHERE, writer=never).__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert threads() == set()
        async with todos(tmp_path):
            pass

    test()


@asyncio_test
async def test_what_waits_when_the_device_is_closed_is_told(tmp_path: Path) -> None:
    async with Device.open(tmp_path, relay=NOWHERE) as device:
        home = await device.create_vault("home")
        waiting = asyncio.create_task(home.synced())
        await home.status()
    with pytest.raises(ReplicaClosedError):
        await waiting


@asyncio_test
async def test_what_an_apps_own_callbacks_raise_comes_out(tmp_path: Path, relay: RealRelay) -> None:
    class OwnError(Exception):
        pass

    async def agree(code: str, name: str) -> bool:
        raise OwnError

    async def undecided(code: str, name: str) -> bool:
        return await asyncio.Event().wait()

    def show(code: str) -> None:
        raise OwnError

    async with Device.open(tmp_path / "a", relay=relay.origin) as device, Device.open(tmp_path / "b") as other:
        home = await device.create_vault("home")
        invite = await home.invite(confirm=True)
        joining = asyncio.create_task(other.join(invite.link, show_code=lambda _: None))
        with pytest.raises(OwnError):
            await invite.joined(agree)
        joining.cancel()
        with pytest.raises((asyncio.CancelledError, InviteError)):
            await joining
        invite = await home.invite(confirm=True)
        approving = asyncio.create_task(invite.joined(undecided))
        with pytest.raises(OwnError):
            await other.join(invite.link, show_code=show)
        approving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await approving
        with pytest.raises(LocalMisuse):
            await invite.joined()
