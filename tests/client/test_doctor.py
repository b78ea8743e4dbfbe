"""Am I in sync? What a doctor finds, what it does not cry wolf about, and what it mends."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sealwire_client.device import Device
from sealwire_client.doctor import COMPARE_SECONDS_MAX, KEYS_NAMED_MAX
from sealwire_client.findings import CollectionFindings, Verdict, Where
from sealwire_client.replica import ReplicaCorruptError
from sealwire_client.replica.database import FILE_NAME
from sealwire_client.status import State
from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.ids import MEMBERSHIP, START, Position
from sealwire_protocol.messages import Deliver, Fault, Message, Ranges, Reconcile, Records
from sealwire_protocol.segment import encode_record, read_segment
from tests.client.guarded import Account, Card, agree, table
from tests.client.party import (
    NAME,
    Guest,
    Note,
    all_synced,
    comes,
    cut_off,
    in_step,
    notes_of,
    party,
    returned,
    stream_of,
)
from tests.client.replica.noise import overwrite, pages_of
from tests.support.virtual import virtual


def sql(device: Device, statement: str, *values: object) -> None:
    """Change a replica by hand, which is told as any change is."""
    replica = device._writer._store  # type: ignore[attr-defined]
    assert replica.database.connection.execute(statement, values).rowcount > 0
    for number in replica.entries.opened:
        replica.database.touches.touch(number)


async def looked(guest: Guest, *, repair: bool = False, seconds: float = 5.0) -> CollectionFindings:
    """What is found of the notes, the only collection."""
    findings = await guest.device.examine(repair=repair, patience_seconds=seconds)
    ((found,),) = [vault.collections for vault in findings.vaults]
    assert findings.verdict is found.verdict or (found.verdict, findings.verdict) == ("in_sync", "waiting")
    return found


async def noted(guests: Sequence[Guest], count: int = 200) -> None:
    await guests[0].notes.put_many({f"key {number:03}": Note("text", number) for number in range(count)})
    await in_step(guests)


def without(relay: MemoryRelay, guest: Guest, seq: int) -> None:
    """Take a record out of the relay's log, as damage there would."""
    log = relay.log.vaults[guest.vault.id].streams[stream_of(relay, guest.vault)]
    for place, (prev, last, body) in enumerate(log.segments):
        if prev < seq <= last:
            kept, at = b"", prev
            for placed in read_segment(body, prev):
                if placed.seq != seq:
                    kept += encode_record(placed.record, placed.seq - at - 1)
                    at = placed.seq
            log.segments[place] = prev, last, kept


# --- nothing is wrong


@virtual
async def test_both_sides_hold_the_same(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await noted(guests)
        await b.notes.delete("key 003")
        await in_step(guests)
        found = [await looked(guest) for guest in guests]
        for each in found:
            assert (each.verdict, each.difference, each.behind, each.opened) == (Verdict.IN_SYNC, None, 0, True)
            assert (each.counts.entries, each.counts.deletions, each.counts.unsent) == (199, 1, 0)
            assert each.relay is not None and each.here == replace(each.relay, floor=0)
            assert (each.here.records, each.here.at) == (200, 201) and len(each.here.fingerprint) == 32
            assert str(each) == "in sync: this device and the relay hold the same"
        assert found[0].here == found[1].here
        findings = await a.device.examine(a.vault)
        assert (findings.verdict, findings.vaults[0].state) == (Verdict.IN_SYNC, State.SYNCED)


@virtual
async def test_who_is_behind_is_waited_for_and_differs_in_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await noted(guests, 20)
        memory_relay.alter = lambda message: (
            [] if isinstance(message, Deliver) and message.stream != MEMBERSHIP else [message]
        )
        await b.notes.put_many({f"key {number:03}": Note("new", number) for number in range(10, 30)})
        await b.notes.delete("key 003")
        await comes(lambda: memory_relay.log.vaults[a.vault.id].streams[stream_of(memory_relay, a.vault)].head == 41)
        found = await looked(a)
        assert (found.verdict, found.behind, found.difference) == (Verdict.WAITING, 21, None)
        assert "still to come from the relay: 21" in str(found)
        found = await looked(b)
        assert (found.verdict, found.counts.answered, found.difference) == (Verdict.WAITING, 21, None)
        memory_relay.alter = None
        memory_relay.cut()
        assert (await looked(a)).verdict is Verdict.IN_SYNC


@virtual
async def test_writes_on_the_way_are_no_difference(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await noted(guests)
        memory_relay.delay = 0.05

        async def write(guest: Guest) -> None:
            chance = random.Random(guest.device.key)
            while True:
                key = f"key {chance.randrange(300):03}"
                if chance.random() < 0.3 and key in guest.notes:
                    await guest.notes.delete(key)
                else:
                    await guest.notes.put(key, Note("busy", chance.randrange(100)))
                await trio.sleep(chance.random() / 20)

        async with trio.open_nursery() as nursery:
            for guest in guests:
                nursery.start_soon(write, guest)
            for _ in range(10):
                assert (await looked(a, seconds=0.5)).difference is None
            nursery.cancel_scope.cancel()
        memory_relay.delay = 0
        assert (await looked(b)).verdict is Verdict.IN_SYNC


@virtual
async def test_a_relay_may_compare_an_earlier_moment_than_the_device_has_seen(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await noted(guests)
        log = memory_relay.log.vaults[a.vault.id].streams[stream_of(memory_relay, a.vault)]
        early = Position(log.term, log.head)
        await b.notes.put_many({f"key {number:03}": Note("new") for number in range(190, 210)})
        await b.notes.delete("key 003")
        await in_step(guests)

        def at_an_earlier_moment(message: Message) -> Sequence[Message]:
            if isinstance(message, Reconcile) and message.pin == START:
                return [replace(message, pin=early)]
            return [message]

        memory_relay.mishear = at_an_earlier_moment
        found = await looked(a)
        assert found.relay is not None and (found.relay.at, found.here.at) == (200, 221)
        assert (found.verdict, found.difference) == (Verdict.IN_SYNC, None)


@virtual
async def test_deletions_that_one_side_has_forgotten_are_no_difference(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        await noted(guests, 30)
        await a.notes.delete("key 003")
        await a.notes.delete("key 004")
        await in_step(guests)

        def alter(message: Message) -> Sequence[Message]:
            return [replace(message, floor=32) if isinstance(message, Ranges) else message]

        for superseded_and_forgotten in (4, 5, 31):
            without(memory_relay, a, superseded_and_forgotten)
        memory_relay.alter = alter
        found = await looked(a)
        assert found.relay is not None and found.relay.records == found.here.records - 1
        assert (found.verdict, found.difference) == (Verdict.IN_SYNC, None)
        sql(a.device, "DELETE FROM _c1 WHERE key = 'key 004'")
        assert (await looked(a)).verdict is Verdict.IN_SYNC
        memory_relay.alter = None
        assert (await looked(a)).verdict is Verdict.DIFFERS


@virtual
async def test_history_that_the_relay_has_lost_comes_back_first(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        await noted(guests, 10)
        backup = memory_relay.backup()
        await guests[0].notes.put_many({f"lost {number}": Note("x") for number in range(20)})
        await in_step(guests)
        memory_relay.restore(backup)
        found = await looked(guests[1])
        assert (found.verdict, found.counts.entries, found.repaired) == (Verdict.IN_SYNC, 30, None)


# --- something is wrong


@virtual
async def test_a_row_that_the_replica_has_lost_is_named_and_fetched(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await noted(guests)
        sql(a.device, "DELETE FROM _c1 WHERE key IN ('key 007', 'key 123')")
        found = await looked(a)
        assert found.verdict is Verdict.DIFFERS and found.difference is not None
        differs = found.difference
        assert (differs.relay, differs.here, differs.both, differs.count) == (2, 0, 0, 2)
        assert sorted(differs.keys) == [("key 007", Where.RELAY), ("key 123", Where.RELAY)]
        assert differs.prefix and 0 <= differs.prefix_here < differs.prefix_relay <= 8
        assert "2 entries at the relay and not here" in str(found) and "dropped" not in str(found)
        assert (await looked(b)).verdict is Verdict.IN_SYNC
        assert a.notes.get("key 007") is None
        mended = await looked(a, repair=True)
        assert (mended.verdict, mended.difference, mended.repaired) == (Verdict.IN_SYNC, None, differs)
        assert mended.here.fingerprint == (await looked(b)).here.fingerprint
        assert a.notes.get("key 007") == Note("text", 7)
        await a.notes.put("later", Note("goes on"))
        await in_step(guests)


@virtual
async def test_what_only_this_device_has_is_named_and_dropped_and_what_was_not_sent_is_kept(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as (a,):
        await noted([a], 20)
        without(memory_relay, a, 5)
        without(memory_relay, a, 6)
        found = await looked(a)
        assert found.difference is not None and found.difference.keys[0].where is Where.HERE
        assert {key for key, _ in found.difference.keys} == {"key 004", "key 005"}
        assert (found.difference.here, found.difference.count) == (2, 2)
        assert "2 entries here and not at the relay" in str(found) and "dropped" in str(found)
        await a.notes.put("key 004", Note("put once more"))
        found = await looked(a)
        assert found.difference is not None and [key for key, _ in found.difference.keys] == ["key 005"]
        mended = await looked(a, repair=True)
        assert mended.verdict is Verdict.IN_SYNC and "it had differed (1 entry here" in str(mended)
        assert a.notes.get("key 005") is None
        assert a.notes.get("key 004") == Note("put once more")


@virtual
async def test_another_version_and_many_differences(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await noted(guests)
        sql(a.device, "UPDATE _c1 SET _rank = CAST(zeroblob(8) || substr(_rank, 9) AS BLOB) WHERE key LIKE 'key 01%'")
        sql(
            a.device,
            "UPDATE _c1 SET _rank = CAST(x'00000000000000ff' || substr(_rank, 9) AS BLOB) WHERE key = 'key 020'",
        )
        found = await looked(a)
        assert found.difference is not None and found.difference.both == found.difference.count == 11
        assert len(found.difference.keys) == KEYS_NAMED_MAX
        assert "11 entries another version here than at the relay" in str(found)
        mended = await looked(a, repair=True)
        assert mended.verdict is Verdict.IN_SYNC
        assert a.dump() == b.dump()


@virtual
async def test_guarded_collections_are_mended_and_go_on(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put_many({f"card {number}": Card("title") for number in range(20)})
        await a.accounts.put("purse", Account(5))
        await agree(seats)
        cards, accounts = (f"_c{each.held.number}" for each in (a.cards, a.accounts))
        sql(a.guest.device, f"DELETE FROM {cards} WHERE key IN ('card 3', 'card 4')")
        sql(a.guest.device, f"DELETE FROM {accounts}")
        async with cut_off(memory_relay):
            await a.cards.put("card 3", Card("edited", owner="a"))
        findings = await a.guest.device.examine()
        assert [found.difference.count for found in findings.vaults[0].collections if found.difference] == [1, 2]
        assert findings.verdict is Verdict.DIFFERS
        findings = await a.guest.device.examine(repair=True)
        assert findings.verdict is Verdict.IN_SYNC
        assert [found.name for found in findings.vaults[0].collections if found.repaired] == ["accounts", "cards"]
        # The edit of what was not here could not be merged with what the relay has, and was set aside.
        found = findings.vaults[0].collections[1]
        assert (found.name, found.counts.stuck) == ("cards", 1) and "refused for good" in str(found)
        assert await a.vault.retry("cards", "card 3")
        await agree(seats)
        assert b.cards.get("card 3") == Card("edited", owner="a")
        await a.accounts.put("purse", Account(6))
        await agree(seats)
        assert b.accounts.get("purse") == Account(6)


@virtual
async def test_a_busy_collection_is_mended_too(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await noted(guests)
        memory_relay.delay = 0.02
        sql(a.device, "DELETE FROM _c1 WHERE key = 'key 007'")

        async def write() -> None:
            for number in range(100):
                await b.notes.put(f"key {number % 5:03}", Note("busy", number))
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            mended = await looked(a, repair=True, seconds=0.5)
            assert mended.repaired is not None and mended.difference is None
        await in_step(guests)
        assert a.notes.get("key 007") is not None


@virtual
async def test_an_entry_that_cannot_be_fetched_is_counted_and_goes_unnamed(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        await noted(guests, 3)
        sql(a.device, "DELETE FROM _c1 WHERE key = 'key 001'")

        def alter(message: Message) -> Sequence[Message]:
            if isinstance(message, Records):
                why = "there are none to be had"
                return [Fault(message.request, message.vault, FaultCode.UNSUPPORTED, Action.STOP, 0, why)]
            return [message]

        memory_relay.alter = alter
        found = await looked(a)
        assert found.difference is not None and found.difference.keys == ((None, Where.RELAY),)
        assert (found.difference.prefix, found.difference.prefix_here, found.difference.prefix_relay) == ("", 2, 3)
        failed = await looked(a, repair=True)
        assert (failed.verdict, failed.difference, failed.repaired) == (Verdict.DIFFERS, None, None)
        assert "none to be had" in str(failed)
        memory_relay.alter = None
        await trio.sleep(120)
        assert (await looked(a)).verdict is Verdict.IN_SYNC, "what was begun goes on by itself"


@virtual
async def test_a_damaged_file_is_found(open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path) -> None:
    async with party(open_device) as guests:
        await noted(guests, 2_000)
    file = tmp_path / "device 0" / FILE_NAME
    leaves = [page for page, (kind, _) in pages_of(file.parent, "_c1").items() if kind == "leaf"]
    overwrite(file, leaves[3:5], random.Random(3))
    with pytest.raises(ReplicaCorruptError, match="open the device again"):
        async with open_device("device 0") as device:
            await device.examine()
    async with open_device("device 0") as device, open_device("device 1"):
        assert device.repaired is not None
        a = Guest(device, device.vaults[0], await notes_of(device.vaults[0]))
        found = await looked(a)
        assert (found.verdict, found.counts.entries) == (Verdict.IN_SYNC, 2_000)


# --- it cannot be told


@virtual
async def test_without_the_relay_it_says_what_is_here(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        await noted(guests, 20)
        online = await looked(a)
        async with cut_off(memory_relay):
            await a.notes.put("later", Note("waits"))
            (vault,) = (await a.device.examine(patience_seconds=1)).vaults
            assert (vault.verdict, vault.state) == (Verdict.UNKNOWN, State.OFFLINE)
            assert "no relay answers at" in (vault.why or "")
            found = await looked(a, repair=True)
            assert (found.verdict, found.relay, found.difference) == (Verdict.UNKNOWN, None, None)
            assert (found.here, found.counts.entries, found.counts.unsent) == (online.here, 21, 1)
            assert "no connection to the relay" in str(found)
            assert "wait to be sent, confirmed or delivered: 1" in str(found)


@virtual
async def test_a_relay_that_is_too_old_cannot_be_compared(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealwire_protocol.limits.VERSION_MAX", 1)
    async with party(open_device) as guests:
        await noted(guests, 20)
        found = await looked(guests[0], repair=True)
        assert (found.verdict, found.relay, found.here.records) == (Verdict.UNKNOWN, None, 20)
        assert "too old to tell what it has: cannot compare" in str(found)


@pytest.mark.parametrize("how", ["refuses", "is silent", "goes away"])
@virtual
async def test_a_relay_that_does_not_compare(open_device: OpenDevice, memory_relay: MemoryRelay, how: str) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        await noted(guests, 20)

        def alter(message: Message) -> Sequence[Message]:
            if not isinstance(message, Ranges):
                return [message]
            if how == "goes away":
                memory_relay.stop()
            if how == "refuses":
                why = "it is forbidden here"
                return [Fault(message.request, message.vault, FaultCode.UNSUPPORTED, Action.STOP, 0, why)]
            return []

        memory_relay.alter = alter
        with trio.fail_after(2 * COMPARE_SECONDS_MAX):
            found = await looked(a)
        assert found.verdict is Verdict.UNKNOWN
        told = {"refuses": "forbidden here", "is silent": "did not answer", "goes away": "connection to the relay was"}
        assert told[how] in str(found)


# --- collections that nobody has opened


@virtual
async def test_what_nobody_has_opened_is_compared_and_left_alone(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        await noted(guests, 20)
    async with open_device("device 0") as first, open_device("device 1") as second:
        b = Guest(second, second.vaults[0], await notes_of(second.vaults[0]))
        a = Guest(first, first.vaults[0], b.notes)
        found = await looked(a)
        assert (found.name, found.verdict, found.opened) == (NAME, Verdict.IN_SYNC, False)
        await b.notes.put("later", Note("x"))
        await b.notes.put("key 001", Note("x"))
        await b.vault.synced()
        found = await looked(a)
        assert (found.verdict, found.behind) == (Verdict.WAITING, 2)
        assert "when its app opens it" in str(found)
        sql(first, "DELETE FROM _c1 WHERE key = 'key 007'")
        found = await looked(a, repair=True)
        assert found.difference is not None and [key for key, _ in found.difference.keys] == ["key 007"]
        assert found.repaired is None and "open it with its app" in str(found)
        backup = memory_relay.backup()
        memory_relay.restore(backup)
        await b.notes.put("another term", Note("x"))
        await b.vault.synced()
        assert (await looked(a)).behind == 3, "nothing was lost"
        empty = MemoryLog()
        empty.open_term()
        memory_relay.restore(empty)
        await b.vault.synced()
        found = await looked(a)
        assert found.verdict is Verdict.DIFFERS and "another one now" in str(found)
        a = a._replace(notes=await notes_of(a.vault))
        await all_synced([a.vault, b.vault])
        found = await looked(a)
        assert (found.verdict, found.opened, found.counts.entries) == (Verdict.IN_SYNC, True, 22)


@virtual
async def test_of_what_nobody_has_opened_it_is_told_that_the_relay_knows_forgotten_deletions_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        await noted(guests, 20)
        await guests[0].notes.delete("key 007")
        await all_synced([guest.vault for guest in guests])
        backup = memory_relay.backup()
        memory_relay.purge()
    async with open_device("device 0") as first:
        await in_step([await returned(first)])
    async with open_device("device 0") as first:
        a = Guest(first, first.vaults[0], guests[0].notes)
        assert (await looked(a)).verdict is Verdict.IN_SYNC
        memory_relay.restore(backup)
        found = await looked(a)
        assert found.verdict is Verdict.DIFFERS and "another one now" in str(found)
