"""A device whose replica is damaged goes on: what it had not sent arrives, once, and it ends equal to the others."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from sealwire_client.device import KEYSTORE_NAME, Device
from sealwire_client.replica import ReplicaCorruptError
from sealwire_client.replica.database import FILE_NAME
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.links import Role
from sealwire_protocol.messages import Pushed
from tests.client.party import (
    Guest,
    Note,
    all_synced,
    appended_twice,
    comes,
    cut_off,
    in_step,
    notes_of,
    party,
    returned,
)
from tests.client.replica.noise import overwrite, pages_of
from tests.client.test_enrolment import roles
from tests.support.virtual import pass_time, virtual

DAMAGED = "device 0"
EDITS = 300


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The replica that is to be damaged."""
    return tmp_path / DAMAGED / FILE_NAME


def many(name: str, count: int = EDITS) -> dict[str, Note]:
    return {f"{name} {number:04}": Note(f"{name} text {number} " * 3, number) for number in range(count)}


async def with_unsent(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    """Two devices; the first one ends with a batch that it knows no verdict of, and with edits not sent."""
    async with party(open_device) as guests:
        a, b = guests
        hits = [await guest.vault.counters("hits") for guest in guests]
        await a.notes.put_many(many("old"))
        await b.notes.put_many(many("b"))
        await hits[0].add("page", 5)
        await hits[1].add("page", 7)
        await in_step(guests)
        memory_relay.alter = lambda message: [] if isinstance(message, Pushed) else [message]
        await a.notes.put_many(many("sent", 20))
        await trio.testing.wait_all_tasks_blocked()
        async with cut_off(memory_relay):
            memory_relay.alter = None
            await a.notes.put_many(many("new"))
            await a.notes.delete("old 0003")
            await hits[0].add("page", 100)
            await trio.testing.wait_all_tasks_blocked()
            a.device._nursery.cancel_scope.cancel()


async def gathered(open_device: OpenDevice, told: Callable[[Device], None]) -> tuple[list[Guest], dict[str, str], int]:
    """Both devices open again, in step; what both show then."""
    async with open_device(DAMAGED) as first, open_device("device 1") as second:
        told(first)
        await comes(lambda: bool(first.vaults))
        guests = [await returned(first), await returned(second)]
        hits = [await guest.vault.counters("hits") for guest in guests]
        await in_step(guests)
        counts = {counter.get("page") for counter in hits}
        assert len(counts) == 1
        await guests[0].notes.put("after", Note("the repair"))
        await guests[1].notes.put("after b", Note("the repair"))
        await hits[0].add("page", 1000)
        await all_synced([guest.vault for guest in guests])
        # What was added and not sent comes with what is added next, if it could not be read by itself.
        before, (after,) = counts.pop(), {counter.get("page") for counter in hits}
        assert after - before in (1000, 1000 + (0 if before > 100 else 100))
        shown = guests[0].dump()
        assert shown == guests[1].dump() and {"after", "after b"} < set(shown)
        return guests, shown, hits[0].get("page")


def repaired(device: Device) -> None:
    assert device.repaired is not None


@pytest.mark.parametrize("seed", range(10))
@virtual
async def test_damaged_anywhere_a_device_comes_to_what_the_others_have(
    open_device: OpenDevice, memory_relay: MemoryRelay, file: Path, seed: int
) -> None:
    await with_unsent(open_device, memory_relay)
    chance, tables = random.Random(seed), ("_c1", "_edit", "_sent", "_group", "_counted", "_collection", "_stuck")
    pages = [*pages_of(file.parent, *tables, "sqlite_autoindex__c1_1", "_edit_order")]
    overwrite(file, chance.sample(pages, chance.choice([1, 2, 5, len(pages) // 2])), chance)
    file.with_name("replica.damaged").touch()  # so that all of it is looked at
    unread: set[str] = set()

    def told(device: Device) -> None:
        assert device.repaired is not None
        unread.update(device.repaired.unread)

    guests, shown, hits = await gathered(open_device, told)
    assert set(many("old")) - {"old 0003"} | set(many("b")) <= set(shown)
    if not unread & {"_edit", "_collection"}:
        assert set(many("new")) <= set(shown) and "old 0003" not in shown
        assert hits == 5 + 7 + 100 + 1000
    if not unread & {"_sent", "_group", "_collection"}:
        assert set(many("sent", 20)) <= set(shown)
    assert appended_twice(memory_relay) == []
    doubted = bool(unread & {"_sent", "_group", "_counted", "_collection"})
    assert (Role.REPLACED in roles(memory_relay, guests[1])) == doubted


def do_damage(file: Path, damage: str) -> None:
    """Damage a file as a whole."""
    size = file.stat().st_size
    with file.open("r+b") as raw:
        if damage == "header":
            raw.write(b"\xa5" * 100)
        elif damage == "cut":
            raw.truncate(size * 3 // 4)
        else:
            raw.seek(100)
            raw.write(b"\xa5" * (size - 100))


@pytest.mark.parametrize("damage", ["header", "cut"])
@virtual
async def test_a_damaged_header_and_a_file_cut_short(
    open_device: OpenDevice, memory_relay: MemoryRelay, file: Path, damage: str
) -> None:
    await with_unsent(open_device, memory_relay)
    do_damage(file, damage)
    _, shown, _ = await gathered(open_device, repaired)
    assert set(many("b")) | set(many("old")) - {"old 0003"} <= set(shown)
    assert appended_twice(memory_relay) == []


@virtual
async def test_of_whom_nothing_can_be_read_is_invited_again(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    await with_unsent(open_device, memory_relay)
    do_damage(tmp_path / "device 1" / FILE_NAME, "all but the header")
    async with open_device(DAMAGED) as first, open_device("device 1") as second:
        assert "ask another device" in str(second.repaired) and not second.vaults
        host = await returned(first)
        invite = await host.vault.invite()
        vault = await second.join(invite.link)  # it is a member still, by its keys
        guest = Guest(second, vault, await notes_of(vault))
        await host.vault.counters("hits")
        await guest.notes.put("x", Note("again"))
        await in_step([host, guest])
        assert set(many("b")) < set(guest.dump())
        assert appended_twice(memory_relay) == []


@virtual
async def test_links_that_cannot_be_read_are_fetched(
    open_device: OpenDevice, memory_relay: MemoryRelay, file: Path
) -> None:
    await with_unsent(open_device, memory_relay)
    overwrite(file, [*pages_of(file.parent, "_link")], random.Random(1))

    def told(device: Device) -> None:
        assert device.repaired is not None and device.repaired.unread == ("_link",)
        assert device.vaults == [] and "home" in str(device.incomplete)
        with pytest.raises(LookupError, match="fetched from the relay"):
            device.vault("home")

    guests, shown, hits = await gathered(open_device, told)
    assert guests[0].device.incomplete is None
    assert set(many("new")) | set(many("sent", 20)) <= set(shown) and hits == 5 + 7 + 100 + 1000
    assert Role.REPLACED not in roles(memory_relay, guests[1])


async def until_it_ends(open_device: OpenDevice) -> None:
    async with open_device(DAMAGED) as device:
        assert device.repaired is None
        await returned(device)
        await pass_time(3600)


@virtual
async def test_damage_that_is_met_ends_the_device_and_the_next_one_repairs(
    open_device: OpenDevice, memory_relay: MemoryRelay, file: Path
) -> None:
    await with_unsent(open_device, memory_relay)
    overwrite(
        file, [page for page, (kind, _) in pages_of(file.parent, "_c1").items() if kind == "leaf"], random.Random(3)
    )
    async with open_device("device 1") as second:
        b = await returned(second)
        await b.notes.put_many(many("old"))
        await b.vault.synced()
        with pytest.raises(ReplicaCorruptError, match="open the device again"):
            await until_it_ends(open_device)
    _, shown, _ = await gathered(open_device, repaired)
    assert set(many("new")) <= set(shown)


def test_who_only_wants_to_look_gets_the_error(open_device: OpenDevice, memory_relay: MemoryRelay, file: Path) -> None:
    virtual(with_unsent)(open_device, memory_relay)
    overwrite(file, [*pages_of(file.parent, "_edit")], random.Random(4))
    content = file.read_bytes()

    @virtual
    async def look() -> None:
        async with Device.open(file.parent, dialler=memory_relay.dial, repairs=False):
            pass

    with pytest.raises(ReplicaCorruptError):
        look()
    assert file.read_bytes() == content and (file.parent / KEYSTORE_NAME).exists()
