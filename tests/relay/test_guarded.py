"""Guarded streams and atomic pushes as devices see them: whoever did not see the last write does not replace it."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from sealwire_protocol.conditions import NOTHING, Condition, Names
from sealwire_protocol.errors import Outcome, Refusal
from sealwire_protocol.ids import Author, VaultId
from sealwire_protocol.messages import ATOMIC, Appended, Group, Push, Pushed, Refused, StreamKind
from sealwire_protocol.segment import TOMBSTONE, Record, encode_record
from sealwire_relay.store.interface import OutcomeUnknownError, StoreDownError
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.view import LIGHT_BYTES_MAX
from sealwire_relay.winners import SEGMENTS_MAX
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, guarded, record, replaces, stream_id
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running, turns_until

ANNA, BERT = Identity(1), Identity(2)
ACCOUNTS, PLANS, NOTES = stream_id(1), stream_id(2), stream_id(3)
"""Two guarded streams and an open one."""


@contextlib.asynccontextmanager
async def shared_vault(relay: Relay) -> AsyncIterator[tuple[Device, Device, VaultId]]:
    """Anna's vault, of which Bert (author 2) is a member; both listen to everything until the end of the block."""
    async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
        vault, log = await anna.create_vault()
        await anna.add(log, BERT)
        for stream in (ACCOUNTS, PLANS):
            await anna.create_stream(vault, stream, StreamKind.GUARDED)
        await anna.create_stream(vault, NOTES)
        for device in (anna, bert):
            await device.subscribe(vault, ACCOUNTS, PLANS, NOTES)
        yield anna, bert, vault


def conflict(place: int, seq: int, winner: Record | None = None, group: int = 0) -> Refused:
    """A refusal, and the record that stands there."""
    return Refused(group, place, Refusal.CONFLICT, seq, b"" if winner is None else encode_record(winner))


def without_winners(pushed: Pushed) -> Pushed:
    """As a verdict is told again."""
    bare = tuple(refused._replace(winner=b"") for refused in pushed.refused)
    return Pushed(pushed.vault, pushed.batch, pushed.outcome, pushed.appended, bare)


@asyncio_test
async def test_of_two_devices_that_race_for_one_key_one_wins_and_the_other_is_shown_the_winner() -> None:
    async with running() as relay, shared_vault(relay) as (anna, bert, vault):
        mine, theirs = record(version=3, author=1), record(version=9, author=2)
        told = await asyncio.gather(
            anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, mine))),
            bert.push(vault, 1, guarded(ACCOUNTS, (NOTHING, theirs))),
        )
        won = 0 if told[0].appended else 1
        assert told[won].appended == (Appended(ACCOUNTS, anna.term(vault), 1, 1),)
        assert told[won].refused == ()
        assert told[1 - won] == Pushed(vault, 1, Outcome.DONE, (), (conflict(0, 1, (mine, theirs)[won]),))
        for device in (anna, bert):
            await device.has(ACCOUNTS, 1)
            assert device.records(ACCOUNTS) == [(mine, theirs)[won]]


@asyncio_test
async def test_a_second_write_sent_before_the_first_was_answered_does_not_replace_somebody_elses_first() -> None:
    async with running() as relay, shared_vault(relay) as (anna, bert, vault):
        base = record(version=1)
        await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, base)))
        winner = record(version=2)
        await anna.push(vault, 2, guarded(ACCOUNTS, (replaces(base), winner)))
        first, second = record(version=2, author=2), record(version=3, author=2)
        writes = [(replaces(base), first), (replaces(first), second)]
        term = bert.term(vault)
        await bert.send(*[Push(vault, term, n, 0, (guarded(ACCOUNTS, w),)) for n, w in enumerate(writes, 1)])
        for batch in (1, 2):
            assert (await bert.verdict(vault, batch)).refused == (conflict(0, 2, winner),)
        third = guarded(ACCOUNTS, (replaces(winner), record(version=3, author=2)))
        assert (await bert.push(vault, 3, third)).appended[0].first == 3
        await anna.has(ACCOUNTS, 3)
        assert [found.version for found in anna.records(ACCOUNTS)] == [1, 2, 3]


@asyncio_test
async def test_a_device_that_pipelines_does_not_conflict_with_itself() -> None:
    async with running() as relay, shared_vault(relay) as (anna, _bert, vault):
        versions = [record(version=n) for n in range(1, 9)]
        conditions = [NOTHING, *map(replaces, versions)]
        pushes = [
            Push(vault, anna.term(vault), n, 0, (guarded(ACCOUNTS, write),))
            for n, write in enumerate(zip(conditions, versions, strict=False), 1)
        ]
        await anna.send(*pushes)
        for n in range(1, 9):
            told = await anna.verdict(vault, n)
            assert (told.refused, told.appended[0].first) == ((), n)


@asyncio_test
async def test_refused_records_do_not_hold_up_the_others_of_a_push() -> None:
    async with running() as relay, shared_vault(relay) as (anna, bert, vault):
        held = record(tag=2, version=5)
        await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, held)))
        new = [record(tag=n, author=2, version=6) for n in range(1, 5)]
        gone = Condition(Names.ENTRY, 1, bytes(8))
        note = record(author=2)
        told = await bert.push(
            vault,
            1,
            group(NOTES, note),
            guarded(ACCOUNTS, (NOTHING, new[0]), (NOTHING, new[1]), (gone, new[2]), (NOTHING, new[3])),
        )
        term = bert.term(vault)
        assert told.appended == (Appended(NOTES, term, 1, 1), Appended(ACCOUNTS, term, 2, 2))
        assert told.refused == (conflict(1, 1, held, group=1), conflict(2, 0, group=1))
        for device in (anna, bert):
            await device.has(ACCOUNTS, 3)
            await device.has(NOTES, 1)
            assert device.records(ACCOUNTS) == [held, new[0], new[3]]


@asyncio_test
async def test_tombstones_and_what_may_have_been_purged() -> None:
    async with running() as relay, shared_vault(relay) as (anna, _bert, vault):
        batch = 0

        async def write(condition: Condition, new: Record) -> tuple[Refused, ...]:
            nonlocal batch
            batch += 1
            return (await anna.push(vault, batch, guarded(ACCOUNTS, (condition, new)))).refused

        purged = record(version=4, flags=TOMBSTONE)
        entry = record(version=5)
        assert await write(replaces(purged), entry) == (), "the relay cannot know what it has purged"
        assert await write(NOTHING, record(version=6)) == (conflict(0, 1, entry),)
        deleted = record(version=6, flags=TOMBSTONE)
        assert await write(replaces(entry), deleted) == ()
        assert await write(replaces(entry), record(version=7)) == (conflict(0, 2, deleted),)
        again = record(version=7)
        assert await write(NOTHING, again) == (), "a deleted entry is none"
        gone = record(version=8, flags=TOMBSTONE)
        assert await write(replaces(again), gone) == ()
        assert await write(replaces(gone), record(version=9)) == ()


@asyncio_test
async def test_a_write_equal_to_what_is_held_succeeds_and_an_older_one_never() -> None:
    async with running() as relay, shared_vault(relay) as (anna, _bert, vault):
        held = record(version=5)
        await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, held)))
        equal = await anna.push(vault, 2, guarded(ACCOUNTS, (NOTHING, held)))
        assert equal.appended == (Appended(ACCOUNTS, anna.term(vault), 2, 1),)
        for batch, version in ((3, 5), (4, 4)):
            told = await anna.push(vault, batch, guarded(ACCOUNTS, (replaces(held), record(version=version))))
            assert told.refused == (conflict(0, 2, held),)


# --- atomic pushes


@asyncio_test
async def test_an_atomic_push_to_two_streams_is_taken_whole_or_not_at_all() -> None:
    async with running() as relay, shared_vault(relay) as (anna, bert, vault):
        debit, credit = record(tag=1), record(tag=2)
        both = guarded(ACCOUNTS, (NOTHING, debit)), guarded(PLANS, (NOTHING, credit))
        told = await anna.push(vault, 1, *both, flags=ATOMIC)
        assert [(row.stream, row.first, row.records) for row in told.appended] == [(ACCOUNTS, 1, 1), (PLANS, 1, 1)]
        late = (
            group(NOTES, record(author=2), record(author=2)),
            guarded(ACCOUNTS, (replaces(debit), record(tag=1, version=2, author=2))),
            guarded(PLANS, (NOTHING, record(tag=3, author=2)), (NOTHING, record(tag=2, version=2, author=2))),
        )
        told = await bert.push(vault, 1, *late, flags=ATOMIC)
        others = [Refused(at, place, Refusal.ATOMIC, 0, b"") for at, place in ((0, 0), (0, 1), (1, 0), (2, 0))]
        assert told == Pushed(vault, 1, Outcome.DONE, (), (*others, conflict(1, 1, credit, group=2)))
        assert await bert.push(vault, 1, *late, flags=ATOMIC) == without_winners(told)
        fine = guarded(PLANS, (replaces(credit), record(tag=2, version=2, author=2)))
        told = await bert.push(vault, 2, *late[:2], fine, flags=ATOMIC)
        assert [(row.stream, row.first, row.records) for row in told.appended] == [
            (NOTES, 1, 2),
            (ACCOUNTS, 2, 1),
            (PLANS, 2, 1),
        ]


@asyncio_test
async def test_a_transfer_by_two_devices_at_once_keeps_the_sum() -> None:
    """Versions stand for amounts: each atomic push moves both accounts on together, whoever wins."""
    async with running() as relay, shared_vault(relay) as (anna, bert, vault):
        accounts = [record(tag=1), record(tag=2)]
        await anna.push(vault, 1, guarded(ACCOUNTS, *[(NOTHING, held) for held in accounts]))
        await asyncio.gather(transfer(anna, vault, 1, 2), transfer(bert, vault, 2, 1))
        await anna.has(ACCOUNTS, 2 + 2 * 20)
        found = anna.records(ACCOUNTS)
        assert [(r.tag[-1], r.version) for r in found] == [(n, v) for v in range(1, 22) for n in (1, 2)]


async def transfer(device: Device, vault: VaultId, author: int, batch: int) -> None:
    """Replace both accounts, from what was delivered last, until it was done ten times."""
    done = 0
    while done < 10:
        held = {found.tag: found for found in device.records(ACCOUNTS)}
        if len(held) < 2 or len({found.version for found in held.values()}) > 1:
            await device.has(ACCOUNTS, len(device.seqs(ACCOUNTS)) + 1)
            continue
        new = [
            found._replace(version=found.version + 1, author=Author(author), salt=record().salt)
            for found in held.values()
        ]
        writes = [(replaces(old), mine) for old, mine in zip(held.values(), new, strict=True)]
        told = await device.push(vault, batch, guarded(ACCOUNTS, *writes), flags=ATOMIC)
        assert bool(told.appended) is not bool(told.refused)
        done, batch = done + bool(told.appended), batch + 1
        at = told.appended[0].first + 1 if told.appended else max(refused.seq for refused in told.refused)
        await device.has(ACCOUNTS, at)


# --- exactly once


@asyncio_test
async def test_a_repeat_gets_the_same_refusals_elsewhere_and_after_a_restart() -> None:
    database = MemoryDatabase()
    async with (
        running(await memory_store(database)) as one,
        running(await memory_store(database)) as two,
        shared_vault(one) as (anna, bert, vault),
        await Device.open(two.port, BERT) as elsewhere,
    ):
        held = record(tag=1, version=5)
        await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, held)))
        new = [record(tag=n, version=6, author=2) for n in (1, 2)]
        batch = guarded(ACCOUNTS, *[(NOTHING, write) for write in new])
        first = await bert.push(vault, 1, batch)
        assert first.refused == (conflict(0, 1, held),)
        assert first.appended == (Appended(ACCOUNTS, bert.term(vault), 2, 1),)
        # What was true when it was judged is told again, though by now it could all be accepted.
        gone = record(tag=1, version=7, flags=TOMBSTONE)
        await anna.push(vault, 2, guarded(ACCOUNTS, (replaces(held), gone)))
        await elsewhere.subscribe(vault, ACCOUNTS)
        for device in (bert, elsewhere):
            assert await device.push(vault, 1, batch) == without_winners(first)
    async with running(await memory_store(database)) as relay, await Device.open(relay.port, BERT) as bert:
        await bert.subscribe(vault, ACCOUNTS)
        assert await bert.push(vault, 1, batch) == without_winners(first)
        await bert.has(ACCOUNTS, 3)
        assert [found.tag[-1] for found in bert.records(ACCOUNTS)] == [1, 2, 1]
        told = await bert.push(vault, 2, guarded(ACCOUNTS, (NOTHING, record(tag=1, version=8, author=2))))
        assert told.refused == ()


@pytest.mark.parametrize("made", [False, True], ids=["not-committed", "committed"])
def test_refusals_alone_are_recorded_once(made: bool) -> None:
    @asyncio_test
    async def run() -> None:
        store = TroubledStore(await memory_store())
        async with running(store.store) as relay, shared_vault(relay) as (anna, bert, vault):
            held = record(version=5)
            await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, held)))
            store.expect("append", Mishap(OutcomeUnknownError("The connection was lost."), made=made))
            batch = guarded(ACCOUNTS, (NOTHING, record(version=6, author=2)))
            told = await bert.push(vault, 1, batch)
            assert without_winners(told) == Pushed(vault, 1, Outcome.DONE, (), (conflict(0, 1),))
            state = await store.store.pusher(vault, BERT.key)
            assert state is not None
            assert [outcome.batch for outcome in state.outcomes] == [state.last_batch] == [1]
            appends = store.calls.count("append")
            assert await bert.push(vault, 1, batch) == without_winners(told)
            assert store.calls.count("append") == appends
            page = await store.store.read(vault, ACCOUNTS, 0, 1_000)
            assert page is not None
            assert page.head == 1

    run()


@asyncio_test
async def test_a_relay_whose_view_is_old_neither_refuses_nor_accepts_by_it() -> None:
    database = MemoryDatabase()
    async with (
        running(await memory_store(database)) as one,
        running(await memory_store(database)) as two,
        shared_vault(one) as (anna, _bert, vault),
        await Device.open(two.port, BERT) as other,
    ):
        await other.subscribe(vault, ACCOUNTS)
        versions = [record(version=1, author=2)]
        await other.push(vault, 1, guarded(ACCOUNTS, (NOTHING, versions[0])))
        for n in range(2, 8):
            versions.append(record(version=n))
            told = await anna.push(vault, n - 1, guarded(ACCOUNTS, (replaces(versions[-2]), versions[-1])))
            assert told.refused == ()
        stale = guarded(ACCOUNTS, (replaces(versions[0]), record(version=9, author=2)))
        assert (await other.push(vault, 2, stale)).refused == (conflict(0, 7, versions[-1]),)
        fresh = guarded(ACCOUNTS, (replaces(versions[-1]), record(version=8, author=2)))
        assert (await other.push(vault, 3, fresh)).appended[0].first == 8


@asyncio_test
async def test_a_refusal_is_not_told_when_the_winner_was_replaced_while_it_was_decided() -> None:
    """The refusal is written on condition of the head on which it was decided, as an acceptance is."""
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    async with (
        running(store.store) as one,
        running(await memory_store(database)) as two,
        shared_vault(one) as (anna, bert, vault),
        await Device.open(two.port, ANNA) as elsewhere,
    ):
        await elsewhere.subscribe(vault, ACCOUNTS)
        held, deleted = record(version=5), record(version=6, flags=TOMBSTONE)
        await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, held)))

        async def delete_elsewhere() -> None:
            await elsewhere.push(vault, 2, guarded(ACCOUNTS, (replaces(held), deleted)))

        store.expect("guards", Mishap(made=True, after=delete_elsewhere))
        told = await bert.push(vault, 1, guarded(ACCOUNTS, (NOTHING, record(version=7, author=2))))
        assert told.refused == ()
        assert told.appended[0].first == 3


@asyncio_test
async def test_of_many_who_replace_what_they_saw_through_two_relays_no_update_is_lost() -> None:
    database = MemoryDatabase()
    chance = random.Random(5)
    stores = [TroubledStore(await memory_store(database), lambda: chance.randrange(3)) for _ in range(2)]
    async with (
        running(stores[0].store) as one,
        running(stores[1].store) as two,
        shared_vault(one) as (anna, _bert, vault),
        await Device.open(two.port, BERT) as other,
    ):
        await other.subscribe(vault, ACCOUNTS)
        reader = stores[0].store

        async def count_up(device: Device, author: int) -> None:
            done, batch = 0, 1
            while done < 15:
                name = (vault, ACCOUNTS, record().tag)
                seen = (await reader.guards([name])).get(name)
                condition = NOTHING if seen is None else Condition(Names.ENTRY, seen.version, seen.salt)
                new = record(version=1 + (seen.version if seen else 0), author=author)
                told = await device.push(vault, batch, guarded(ACCOUNTS, (condition, new)))
                done, batch = done + len(told.appended), batch + 1

        await asyncio.gather(count_up(anna, 1), count_up(other, 2))
        await anna.has(ACCOUNTS, 1)
        await one.plane._sweep.look()
        await anna.has(ACCOUNTS, 30)
        assert [found.version for found in anna.records(ACCOUNTS)] == list(range(1, 31))


# --- what is told of winners


@asyncio_test
async def test_winners_that_cannot_be_read_are_left_out() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, shared_vault(relay) as (anna, bert, vault):
        await anna.push(vault, 1, guarded(ACCOUNTS, (NOTHING, record(version=5))))
        await turns_until(lambda: not relay.plane._ingest.unanswered)
        store.expect("read", Mishap(StoreDownError("The database cannot be reached now.")))
        told = await bert.push(vault, 1, guarded(ACCOUNTS, (NOTHING, record(version=6, author=2))))
        assert told.refused == (conflict(0, 1),)


@asyncio_test
async def test_winners_of_many_segments_are_read_as_far_as_it_is_cheap() -> None:
    async with running() as relay, shared_vault(relay) as (anna, bert, vault):
        held = [record(tag=n, version=5) for n in range(SEGMENTS_MAX + 3)]
        for batch, one in enumerate(held, 1):
            await anna.push(vault, batch, guarded(ACCOUNTS, (NOTHING, one)))
        writes = [(NOTHING, record(tag=n, version=6, author=2)) for n in range(len(held))]
        told = await bert.push(vault, 1, guarded(ACCOUNTS, *writes))
        expected = [*held[:SEGMENTS_MAX], None, None, None]
        assert told.refused == tuple(conflict(n, n + 1, winner) for n, winner in enumerate(expected))


@asyncio_test
async def test_long_verdicts_are_told_again_though_they_are_not_kept_in_memory() -> None:
    async with running() as relay, shared_vault(relay) as (anna, bert, vault):
        held = [record(tag=n, version=5) for n in range(LIGHT_BYTES_MAX // 8)]
        await anna.push(vault, 1, guarded(ACCOUNTS, *[(NOTHING, one) for one in held]))
        assert vault in relay.plane._ingest._views
        batch = guarded(ACCOUNTS, *[(NOTHING, one._replace(version=6, author=Author(2))) for one in held])
        told = await bert.push(vault, 1, batch)
        assert told.refused == tuple(conflict(n, n + 1, one) for n, one in enumerate(held))
        for _ in range(2):
            assert await bert.push(vault, 1, batch) == without_winners(told)
            assert vault not in relay.plane._ingest._views
        assert (await bert.push(vault, 2, group(NOTES, record(author=2)))).outcome is Outcome.DONE


# --- what no honest device sends

ENTRY = bytes((Names.ENTRY, 1)) + bytes(8)
ONE = guarded(ACCOUNTS, (NOTHING, record(author=2)))
MALFORMED = {
    "no conditions": ONE._replace(conditions=b""),
    "too many": ONE._replace(conditions=b"\0\0"),
    "too few": guarded(ACCOUNTS, (NOTHING, record(author=2)), (NOTHING, record(author=2)))._replace(conditions=b"\0"),
    "cut off": ONE._replace(conditions=ENTRY[:-1]),
    "more than a condition": ONE._replace(conditions=ENTRY + b"\0"),
    "an endless version": ONE._replace(conditions=b"\1" + b"\xff" * 200),
    "a version that is not short": ONE._replace(conditions=b"\1\x80\0" + bytes(8)),
    "unknown": ONE._replace(conditions=b"\7"),
    "as many bytes as fit": ONE._replace(conditions=bytes(262_144)),
    "on an open stream": ONE._replace(stream=NOTES),
    "a tag twice": guarded(ACCOUNTS, (NOTHING, record(author=2)), (NOTHING, record(author=2))),
    "version step": guarded(ACCOUNTS, (NOTHING, record(author=2, version=2**32 + 1))),
}


@pytest.mark.parametrize("flags", [0, ATOMIC], ids=["one by one", "atomic"])
@pytest.mark.parametrize("spoilt", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_push_uses_up_its_number_and_stores_nothing(spoilt: Group, flags: int) -> None:
    @asyncio_test
    async def run() -> None:
        async with running() as relay, shared_vault(relay) as (_anna, bert, vault):
            fine = guarded(PLANS, (NOTHING, record(author=2)))
            told = await bert.push(vault, 1, fine, spoilt, flags=flags)
            assert told == Pushed(vault, 1, Outcome.MALFORMED, (), ())
            assert await bert.push(vault, 1, fine, spoilt, flags=flags) == told
            told = await bert.push(vault, 2, fine, flags=flags)
            assert (told.appended[0].first, told.refused) == (1, ())

    run()
