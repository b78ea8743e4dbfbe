"""Devices and relays of this version and of the one before, in every mixture: real processes, real sockets, Postgres.

Whatever is old runs as a process of the released sources; what is new is a process too, or the library itself.
"""

import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import trio

from demo.relay import PORTS
from sealwire_client import ConflictError, Device, StrictError, Vault
from sealwire_client.collection import Collection
from sealwire_client.policies import latest, merge, strict
from sealwire_client.replica import Place
from sealwire_client.transport import Transport, dial
from sealwire_protocol.fields import Later
from sealwire_protocol.messages import BY_TYPE, Message
from tests.compatibility.versions import STEP_S_MAX, Version
from tests.faults.devices import join

Dict = dict[str, Any]

NEEDS_NEWER = "this relay keeps open streams only; a newer one is needed for guarded streams"


@pytest.fixture
def port() -> int:
    """A free port that nobody else is lent."""
    for found in random.sample(PORTS, 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", found)):
                return found
    raise AssertionError("no port is free")


@pytest.fixture
def origin(port: int) -> str:
    """What devices call the relay."""
    return f"ws://127.0.0.1:{port}"


async def notes_of(vault: Vault) -> Collection[Dict]:
    return await vault.collection("notes", dict, policy=latest())


async def cards_of(vault: Vault) -> Collection[Dict]:
    return await vault.collection("cards", dict, policy=merge())


async def holds(collection: Collection[Dict], key: str, value: Dict | None) -> None:
    """Wait until a value is there."""
    with trio.fail_after(STEP_S_MAX), collection.changes() as changes:
        if collection.get(key) != value:
            async for _ in changes:
                if collection.get(key) == value:
                    return


async def in_step(vault: Vault) -> None:
    with trio.fail_after(STEP_S_MAX):
        await vault.synced()


async def said(vault: Vault, sentence: str) -> None:
    """Wait until the status of a vault says so."""
    with trio.fail_after(STEP_S_MAX):
        while True:
            moved = vault._sync.moved  # before the look: what happens during it must not be missed
            if sentence in ((await vault.status()).last_error or ""):
                return
            await moved.wait()


@pytest.mark.embedded
@pytest.mark.trio
async def test_an_old_device_works_with_this_relay_and_with_new_devices(
    old: Version, new: Version, dsn: str, tmp_path: Path, origin: str, port: int
) -> None:
    async with new.relay(dsn, origin, port):
        first = tmp_path / "first"
        assert (await old.sealwire(first, "init", "--relay", origin)).told["relay_reached"]
        assert (await old.sealwire(first, "put", "notes", "milk", "two litres")).told["sent"]
        async with Device.open(tmp_path / "second") as device:
            async with old.inviting(first) as link:
                with trio.fail_after(STEP_S_MAX):
                    vault = await device.join(link)
            notes, cards = await notes_of(vault), await cards_of(vault)
            await holds(notes, "milk", {"value": "two litres"})
            await notes.put("bread", {"value": "one"})
            await cards.put("x", {"front": "a"})
            await in_step(vault)
            assert (await old.sealwire(first, "get", "notes", "bread", "--fresh")).told["value"] == {"value": "one"}
            # Of guarded collections it knows nothing: it may read, and what it writes is kept on it, and not taken.
            assert (await old.sealwire(first, "get", "cards", "x", "--fresh")).told["value"] == {"front": "a"}
            kept = await old.sealwire(first, "put", "cards", "x", '{"front": "b"}')
            assert kept.code != 0 and "stay on this device" in kept.err and "is this program up to date?" in kept.err
            assert (await old.sealwire(first, "get", "cards", "x")).told["value"] == {"front": "b"}
            assert (await old.sealwire(first, "put", "notes", "milk", "three")).code == 0
            await sends_all(old, first)
            await holds(notes, "milk", {"value": "three"})
            assert cards.get("x") == {"front": "a"}
        await its_replica_is_taken_over(first, notes={"milk": "three", "bread": "one"})
        assert "newer" in (await old.sealwire(first, "get", "notes", "milk")).err


async def sends_all(version: Version, folder: Path) -> None:
    """Wait until nothing waits to be sent: a command that was refused something may leave that to the next."""
    with trio.fail_after(STEP_S_MAX):
        while (await version.sealwire(folder, "status")).told["pending"]:
            pass


async def its_replica_is_taken_over(folder: Path, notes: dict[str, str]) -> None:
    """A device whose program was replaced goes on with all that it had."""
    async with Device.open(folder) as device:
        collection = await notes_of(device.vaults[0])
        assert {key: value["value"] for key, value in collection.items()} == notes
        await collection.put("after", {"value": "the update"})
        await in_step(device.vaults[0])


@pytest.mark.embedded
@pytest.mark.trio
async def test_a_new_device_works_with_an_old_relay_and_keeps_what_that_cannot_take(
    old: Version, new: Version, dsn: str, tmp_path: Path, origin: str, port: int
) -> None:
    async with Device.open(tmp_path / "first", relay=origin) as device:
        async with old.relay(dsn, origin, port):
            vault = await device.create_vault("home")
            notes, cards = await notes_of(vault), await cards_of(vault)
            safe: Collection[Dict] = await vault.collection("safe", dict, policy=strict())
            await cards.put("x", {"front": "a"})
            await said(vault, NEEDS_NEWER)
            with pytest.raises(StrictError, match=NEEDS_NEWER) as refused:
                await safe.put("gold", {"ounces": 1})
            assert not isinstance(refused.value, ConflictError)
            written = await notes.put("milk", {"value": "two litres"})
            with trio.fail_after(STEP_S_MAX):
                assert (await written.durable()).place is Place.RELAY
            second = tmp_path / "second"
            async with trio.open_nursery() as nursery:
                invite = await vault.invite()
                nursery.start_soon(invite.joined)
                assert (await old.sealwire(second, "join", invite.link)).told["vault"] == "home"
            assert (await old.sealwire(second, "get", "notes", "milk", "--fresh")).told["value"] == {
                "value": "two litres"
            }
            assert (await old.sealwire(second, "put", "notes", "bread", "one")).told["sent"]
            await holds(notes, "bread", {"value": "one"})
            assert cards.get("x") == {"front": "a"}
            assert (await vault.status()).pending == 1
        async with new.relay(dsn, origin, port):
            device.wake()
            await in_step(vault)
            await safe.put("gold", {"ounces": 1})
            assert (await vault.stuck(), (await vault.status()).pending) == ([], 0)


@asynccontextmanager
async def led(folder: Path, ways: dict[str, str]) -> AsyncIterator[Device]:
    """A device that finds its relay where `ways` says at the time."""

    def dial_there(origin: str) -> AbstractAsyncContextManager[Transport]:
        return dial(ways[origin])

    async with Device.open(folder, relay=next(iter(ways)), dialler=dial_there) as device:
        yield device


@pytest.mark.embedded
@pytest.mark.trio
async def test_an_old_relay_goes_on_beside_a_new_one_on_the_new_schema(
    old: Version, new: Version, dsn: str, tmp_path: Path, origin: str, port: int
) -> None:
    async with old.relay(dsn, origin, port) as before:
        ways = {origin: before}
        async with led(tmp_path / "first", ways) as first, led(tmp_path / "second", ways) as second:
            vault = await first.create_vault("home")
            notes = await notes_of(vault)
            await in_step(vault)
            theirs = await notes_of(await join(vault, second))
            await notes.put("milk", {"n": 1})
            await holds(theirs, "milk", {"n": 1})
            async with new.relay(dsn, origin, 0) as present:
                # The second one goes over to the new relay, which has migrated the database beneath the old one.
                await go_over(second, ways, present)
                await theirs.put("milk", {"n": 2})
                await holds(notes, "milk", {"n": 2})
                await notes.put("bread", {"n": 1})
                await holds(theirs, "bread", {"n": 1})
                cards, same = await cards_of(second.vaults[0]), await cards_of(vault)
                await cards.put("x", {"front": "a"})
                await holds(same, "x", {"front": "a"})
                # Through the old relay nothing can be written there. It is kept, and can be sent later.
                await same.put("x", {"front": "a", "back": "b"})
                await said(vault, "malformed")
                assert [write.key for write in await vault.stuck()] == ["x"]
                await go_over(first, ways, present)
                assert await vault.retry("cards", "x")
                await holds(cards, "x", {"front": "a", "back": "b"})
                await in_step(vault)


async def go_over(device: Device, ways: dict[str, str], there: str) -> None:
    """Lead one device to another relay."""
    [origin] = ways
    link, before = device.link(origin), ways[origin]
    ways[origin] = there
    session = link.session
    link.dial_anew("it is led to another relay")
    with trio.fail_after(STEP_S_MAX):
        await link.until(lambda link: link.session not in (None, session))
    ways[origin] = before


@pytest.mark.embedded
@pytest.mark.trio
async def test_an_old_relay_that_is_started_on_the_new_schema_says_what_to_do(
    old: Version, dsn: str, migrated: Callable[[str], None]
) -> None:
    await trio.to_thread.run_sync(migrated, dsn)
    refused = await old.refused_relay(dsn)
    assert refused.code == 4
    assert "was made by a newer relay than the one that migrates here: install that version" in refused.err


@pytest.mark.trio
async def test_messages_mean_the_same_to_both_versions(old: Version, new: Version) -> None:
    file = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "messages.json").read_text())
    vectors = [vector for vector in file["vectors"] if BY_TYPE[int(vector["type"], 16)].SINCE == 1]
    # What may follow a message, except where fields were appended to it since: the newer version reads those there.
    lines = [
        vector["hex"] + more
        for vector in vectors
        for more in (("",) if _has_grown(BY_TYPE[int(vector["type"], 16)]) else ("", "00", "ff00ff"))
    ]
    program = (
        "import sys, dataclasses\n"
        "from sealwire_protocol import codec\n"
        "for line in sys.stdin:\n"
        "    message = codec.decode(bytes.fromhex(line))\n"
        "    print(type(message).__name__, {f.name: getattr(message, f.name) for f in dataclasses.fields(message)})"
    )
    given = "\n".join(lines).encode()
    before, now = [(await version.python("-c", program, given=given)) for version in (old, new)]
    assert (before.code, now.code) == (0, 0), (before.err, now.err)
    told = list(zip(before.out.splitlines(), now.out.splitlines(), strict=True))
    assert len(told) == len(lines)
    assert all(theirs == ours or ours.startswith(theirs[:-1] + ", ") for theirs, ours in told)


def _has_grown(kind: type[Message]) -> bool:
    """True if fields were appended to a message within its version."""
    hints = get_type_hints(kind, include_extras=True).values()
    return any(isinstance(one, Later) for hint in hints for one in _marks(hint))


def _marks(hint: object) -> tuple[object, ...]:
    return getattr(hint, "__metadata__", ())
