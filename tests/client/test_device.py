"""A device from opening to closing: one process at a time, nothing lost, nothing left behind."""

import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client.device import Device, NoRelayError
from sealwire_client.keystore import KeystoreError
from sealwire_client.link import LinkState
from sealwire_client.replica import NotAReplicaError, Replica, ReplicaFullError, ReplicaInUseError
from sealwire_client.replica.database import FILE_NAME
from sealwire_client.testing import MemoryRelay, fitting_writer
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.transport import InsecureOriginError
from sealwire_protocol.errors import LocalMisuse
from tests.client.party import Note, appended_twice, comes, founded, in_step, notes_of, party, records, returned, told
from tests.support.virtual import pass_time, virtual


class Own(Exception):
    """An app's own."""


@virtual
async def test_a_device_is_the_same_one_tomorrow(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        key = device.key
        await founded(device)
    async with open_device("a") as device:
        assert device.key == key
        assert [vault.name for vault in device.vaults] == ["home"]
    async with open_device("b") as other:
        assert other.key != key


@virtual
async def test_a_folder_is_open_once_at_a_time(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        await founded(device)
        with pytest.raises(ReplicaInUseError, match="in use"):
            async with open_device("a"):
                pass
        notes = await notes_of(device.vaults[0])
        await notes.put("x", Note("still works"))
    async with open_device("a") as device:
        assert len(device.vaults) == 1


@virtual
async def test_what_is_no_replica_is_refused_and_left_alone(open_device: OpenDevice, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    file = tmp_path / "a" / FILE_NAME
    file.write_bytes(b"something else" * 100)
    with pytest.raises(NotAReplicaError):
        async with open_device("a"):
            pass
    assert file.read_bytes() == b"something else" * 100


@virtual
async def test_a_folder_that_others_can_read_holds_no_keys(open_device: OpenDevice, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    (tmp_path / "a").chmod(0o755)
    with pytest.raises(KeystoreError, match="open to other users"):
        async with open_device("a"):
            pass
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize(
    ("relay", "error"), [("ws://relay.example.org", InsecureOriginError), ("relay.example.org", LocalMisuse)]
)
def test_a_relays_address_is_checked_before_anything_is_made(
    tmp_path: Path, relay: str, error: type[Exception]
) -> None:
    @virtual
    async def test() -> None:
        with pytest.raises(error):
            async with Device.open(tmp_path / "a", relay=relay, writer=fitting_writer):
                pass
        assert not (tmp_path / "a").exists()

    test()


@virtual
async def test_a_vault_needs_to_know_its_relay(tmp_path: Path) -> None:
    async with Device.open(tmp_path / "a", writer=fitting_writer) as device:
        with pytest.raises(NoRelayError, match="needs a relay"):
            await device.create_vault("home")


@virtual
async def test_vaults_are_found_by_name_or_id(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        home, work = [(await founded(device, name)).vault for name in ("home", "work")]
        assert device.vault("home") is home
        assert device.vault(work.id.hex()) is work
        assert device.vault(work.id.hex()[:8].upper()) is work
        with pytest.raises(LookupError, match=r"home.*work"):
            device.vault("garden")
        with pytest.raises(LookupError, match="more than one"):
            device.vault("")


# --- what an app does wrong, or is told to stop


@pytest.mark.parametrize(
    "error", [Own("mine"), KeyboardInterrupt(), SystemExit(3), ExceptionGroup("mine", [Own("one"), Own("two")])]
)
def test_an_apps_own_exception_comes_out_as_it_is(
    open_device: OpenDevice, memory_relay: MemoryRelay, error: BaseException
) -> None:
    @virtual
    async def test() -> None:
        caught: BaseException | None = None
        try:
            async with party(open_device) as guests:
                await guests[0].notes.put("x", Note("kept"))
                raise error
        except BaseException as found:
            caught = found
        assert caught is error
        assert memory_relay.connections == 0
        async with open_device("device 0") as device:
            assert (await returned(device)).dump() == {"x": "kept"}

    test()


def test_an_interrupt_ends_everything_and_keeps_what_was_put(open_device: OpenDevice) -> None:
    """Ctrl-C, while the main task waits and others work."""

    async def app() -> None:
        async with party(open_device) as guests:
            await guests[0].notes.put("x", Note("kept"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(interrupt)
                await trio.sleep_forever()

    async def interrupt() -> None:
        raise KeyboardInterrupt

    async def after() -> None:
        async with open_device("device 0") as device:
            assert (await returned(device)).dump() == {"x": "kept"}

    with pytest.raises(BaseExceptionGroup) as caught:
        virtual(app)()
    assert caught.group_contains(KeyboardInterrupt)
    virtual(after)()


@virtual
async def test_cancelling_is_cancelling(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    with trio.move_on_after(60) as scope:
        async with party(open_device):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert memory_relay.connections == 0


async def _use(open_device: OpenDevice) -> None:
    """Something of everything, over and over. Cancelled at some point."""
    async with party(open_device) as guests:
        a, b = guests
        for number in range(1_000):
            await a.notes.put(f"key {number}", Note("a's", number))
            await b.notes.put(f"key {number}", Note("b's", number))
            if number % 10 == 9:
                await in_step(guests)
            await pass_time(0.01)


@pytest.mark.parametrize("seed", range(5))
def test_cancelling_anywhere_leaves_nothing_half_done(
    open_device: OpenDevice, memory_relay: MemoryRelay, seed: int
) -> None:
    chance = random.Random(seed)

    @virtual
    async def test() -> None:
        memory_relay.delay = 0.003
        async with party(open_device):
            pass
        for _ in range(3):
            with trio.move_on_after(chance.uniform(0.0, 0.4)):
                await _use(open_device)
            assert memory_relay.connections == 0
        async with party(open_device) as guests:
            await in_step(guests)
            assert appended_twice(memory_relay) == []
            assert not [guest for guest in guests if (await guest.vault.status()).pending]

    test()


async def _checkpoints(make: Callable[[], Awaitable[object]], most: int) -> bool:
    """Run something, and cancel it at its checkpoint number `most`. True if it was cancelled."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def count() -> None:
                for _ in range(most):
                    await trio.lowlevel.cancel_shielded_checkpoint()
                scope.cancel()

            nursery.start_soon(count)
            await make()
            nursery.cancel_scope.cancel()
    return scope.cancelled_caught


@virtual
async def test_a_vault_whose_making_was_cancelled_is_there_or_is_not(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        for most in range(6):
            before = len(device.vaults)
            cancelled = await _checkpoints(lambda: device.create_vault("home"), most)
            assert len(device.vaults) - before in ((0, 1) if cancelled else (1,))
        held = len(device.vaults)
    async with open_device("a") as device:
        assert len(device.vaults) == held


# --- when the disk is full


async def _room(device: Device, pages: int) -> None:
    """Leave so many pages beyond those that are used; a disk that is full refuses alike."""

    def limit(replica: Replica) -> None:
        connection = replica.database.connection
        used = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {used + pages}")

    await device._writer.run(limit)


@virtual
async def test_a_full_disk_is_told_and_what_arrives_then_is_taken_in_later(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await _room(b.device, 0)
        await a.notes.put_many((f"key {n}", Note("x" * 4_000)) for n in range(200))
        await a.vault.synced()
        await told(b, "is full")
        with pytest.raises(ReplicaFullError, match="make room"):
            await b.notes.put_many((f"mine {n}", Note("x" * 4_000)) for n in range(200))
        await trio.sleep(300)
        await _room(b.device, 1_000_000)
        await in_step(guests)
        assert len(b.notes) == 200
        assert (await b.vault.status()).last_error is None


@virtual
async def test_a_disk_that_fills_while_verdicts_and_members_come_is_told(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        memory_relay.delay = 1
        for number in range(50):
            await a.notes.put(f"key {number}", Note("x" * 3_000))
        await _room(a.device, 0)
        await _room(b.device, 0)
        await trio.sleep(300)
        for guest in guests:
            await _room(guest.device, 1_000_000)
        await in_step(guests)
        assert records(memory_relay, a.vault) == 50
        assert appended_twice(memory_relay) == []


# --- the link


@virtual
async def test_a_device_that_is_woken_connects_at_once(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    memory_relay.stop()
    async with open_device("a") as device:
        a = await founded(device)
        await trio.sleep(1000)
        memory_relay.start()
        now = trio.current_time()
        device.wake()
        await a.vault.synced()
        assert trio.current_time() == now


@virtual
async def test_a_device_without_vaults_dials_nobody(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a"):
        await trio.sleep(100)
    assert memory_relay.dialled == 0


@virtual
async def test_what_the_link_does_can_be_watched(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as device:
        link = device.link(memory_relay.origin)
        await link.until(lambda link: link.state is LinkState.ONLINE)
        assert device.link(memory_relay.origin) is link
        memory_relay.stop()
        await comes(lambda: "no relay answers" in (link.last_error or ""))


def test_threads_and_files_are_given_back(tmp_path: Path) -> None:
    """By the real clock and with the writer's thread: what a test under a virtual clock does not have."""
    relay = MemoryRelay()

    async def app() -> None:
        async with Device.open(tmp_path / "a", relay=relay.origin, dialler=relay.dial) as device:
            a = await founded(device)
            await a.notes.put("x", Note("kept"))
            await a.vault.synced()
            raise Own

    for _ in range(3):
        with suppress(Own):
            trio.run(app)
    assert [thread.name for thread in threading.enumerate() if "sealwire" in thread.name] == []
