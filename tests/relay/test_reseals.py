"""Reseals at the relay: what stands under an older key goes over to the new one, and changes nothing (R5, R6)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from sealwire_protocol.conditions import NOTHING
from sealwire_protocol.errors import CloseCode, Outcome, Refusal
from sealwire_protocol.ids import MEMBERSHIP, KeyId, Position, StreamId, Term, VaultId
from sealwire_protocol.lines import LostTerm, encode_held
from sealwire_protocol.links import Role
from sealwire_protocol.messages import ATOMIC, REFILL, RESEAL, AppendLink, Group, Push, Pushed, StreamKind
from sealwire_protocol.reseals import encode_applied
from sealwire_protocol.segment import TOMBSTONE, Record, encode_segment
from sealwire_relay.store.cleaning import Purge
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.segments import StoredSegment
from tests.relay.asking import ANNA, BERT, CARL, done
from tests.support.aio import asyncio_test
from tests.support.device import Device, epoch_link, group, guarded, key_id_of, record, replaces, stream_id
from tests.support.relay import Relay, memory_store, running

NOTES, ACCOUNTS = stream_id(1), stream_id(2)
"""An open stream and a guarded one."""


class Vault(NamedTuple):
    """A vault of Anna, Bert (author 2) and Carl, a reader, whose key is to be changed."""

    id: VaultId
    log: list[bytes]
    anna: Device
    bert: Device
    carl: Device

    async def rotate(self, epoch: int = 2) -> None:
        """Begin an epoch."""
        self.log.append(epoch_link(ANNA, self.log, epoch, 3))
        await done(self.anna, AppendLink, self.id, self.log[-1])

    def of_notes(self, seq: int, *records: Record) -> Group:
        """A reseal's part for the open stream, by a device that had applied so much of it."""
        return Group(NOTES, encode_applied(Position(self.anna.term(self.id), seq)), encode_segment(records))


def of_accounts(*resealed: tuple[Record, Record]) -> Group:
    """A reseal's part for the guarded stream: what is replaced, and by what."""
    return Group(ACCOUNTS, b"".join([old.salt for old, _ in resealed]), encode_segment([new for _, new in resealed]))


def anew(old: Record, epoch: int = 2, **changes: object) -> Record:
    """A record sealed anew."""
    salt = record().salt
    return old._replace(epoch=epoch, key_id=key_id_of(epoch), salt=salt)._replace(**changes)  # type: ignore[arg-type]


def conflict(place: int, seq: int) -> tuple[int, int, Refusal, int]:
    return 0, place, Refusal.CONFLICT, seq


def refusals(told: Pushed) -> list[tuple[int, int, Refusal, int]]:
    return [refused[:4] for refused in told.refused]


@asynccontextmanager
async def shared(relay: Relay) -> AsyncIterator[Vault]:
    """The vault, to whose streams all listen."""
    async with (
        await Device.open(relay.port, ANNA) as anna,
        await Device.open(relay.port, BERT) as bert,
        await Device.open(relay.port, CARL) as carl,
    ):
        vault, log = await anna.create_vault()
        await anna.add(log, BERT)
        await anna.add(log, CARL, Role.READER)
        await anna.create_stream(vault, NOTES)
        await anna.create_stream(vault, ACCOUNTS, StreamKind.GUARDED)
        for device in (anna, bert, carl):
            await device.subscribe(vault, NOTES, ACCOUNTS)
        yield Vault(vault, log, anna, bert, carl)


@asyncio_test
async def test_records_of_any_author_go_over_to_the_new_key_and_a_repeat_gets_the_same_verdict() -> None:
    async with running() as relay, shared(relay) as vault:
        anna, bert = vault.anna, vault.bert
        notes = [record(version=n, author=2, tag=n) for n in range(1, 4)]
        accounts = [record(version=n, author=2, tag=n) for n in range(1, 3)]
        await bert.push(vault.id, 1, group(NOTES, *notes), guarded(ACCOUNTS, *[(NOTHING, one) for one in accounts]))
        own = record(version=9, tag=9)
        await anna.push(vault.id, 1, group(NOTES, own))
        await vault.rotate()
        new = [anew(one) for one in (*notes, own)], [anew(one) for one in accounts]
        groups = vault.of_notes(4, *new[0]), of_accounts(*zip(accounts, new[1], strict=True))
        told = await anna.push(vault.id, 2, *groups, flags=RESEAL)
        assert [(row.stream, row.first, row.records) for row in told.appended] == [(NOTES, 5, 4), (ACCOUNTS, 3, 2)]
        assert (told.outcome, told.refused) == (Outcome.DONE, ())
        assert await anna.push(vault.id, 2, *groups, flags=RESEAL) == told
        assert (await anna.push(vault.id, 2, groups[0], flags=RESEAL)).outcome is Outcome.CLONED
        await bert.has(NOTES, 8)
        await bert.has(ACCOUNTS, 4)
        assert bert.records(NOTES)[4:] == new[0] and bert.records(ACCOUNTS)[2:] == new[1]
        edit = anew(accounts[0], version=3, author=2)
        told = await bert.push(vault.id, 2, guarded(ACCOUNTS, (replaces(accounts[0]), edit)))
        assert refusals(told) == [conflict(0, 3)], "it names what is not there any more"
        assert not (await bert.push(vault.id, 3, guarded(ACCOUNTS, (replaces(new[1][0]), edit)))).refused


@asyncio_test
async def test_in_a_guarded_stream_only_the_very_record_that_is_named_is_replaced() -> None:
    async with running() as relay, shared(relay) as vault:
        bert = vault.bert
        one, two, gone = record(version=5, author=2, tag=1), record(version=6, author=2, tag=2), record(tag=3, author=2)
        tombstone = record(version=7, author=2, tag=3, flags=TOMBSTONE)
        await bert.push(vault.id, 1, guarded(ACCOUNTS, (NOTHING, one), (NOTHING, two), (NOTHING, gone)))
        await bert.push(vault.id, 2, guarded(ACCOUNTS, (replaces(gone), tombstone)))
        await vault.rotate()
        wrong = [
            (two, anew(one)),  # another salt
            (two, anew(two, version=5)),
            (two, anew(two, version=4)),
            (record(version=4, tag=4), anew(record(version=4, tag=4))),  # nothing is there
            (gone, anew(gone)),  # it was deleted
            (tombstone, anew(tombstone, flags=0)),  # and stays so
            (one, anew(one, flags=TOMBSTONE)),
        ]
        for batch, pair in enumerate(wrong, 3):
            told = await bert.push(vault.id, batch, of_accounts(pair), flags=RESEAL)
            assert [refused.reason for refused in told.refused] == [Refusal.CONFLICT], batch
            assert told.outcome is Outcome.DONE and not told.appended
        both = (gone, anew(gone)), (one, anew(one))
        told = await bert.push(vault.id, 10, of_accounts(*both), flags=RESEAL)
        assert (refusals(told), told.appended[0].records) == ([conflict(0, 4)], 1), "the others of a push are taken"
        again = anew(both[1][1], epoch=2)
        told = await bert.push(vault.id, 11, of_accounts((both[1][1], again)), flags=RESEAL)
        assert refusals(told) == [conflict(0, 5)], "what is under the present key already stays"
        await vault.rotate(3)
        told = await bert.push(vault.id, 12, of_accounts((both[1][1], anew(again, epoch=3))), flags=RESEAL)
        assert told.appended[0].records == 1


@asyncio_test
async def test_a_deletion_that_was_forgotten_since_is_not_brought_back() -> None:
    store = await memory_store()
    async with running(store) as relay, shared(relay) as vault:
        anna = vault.anna
        note, account = record(version=5, tag=1), record(version=5, tag=1)
        await anna.push(vault.id, 1, group(NOTES, note), guarded(ACCOUNTS, (NOTHING, account)))
        await vault.rotate()
        late = vault.of_notes(1, anew(note)), of_accounts((account, anew(account)))
        deleted = [anew(one, version=9, flags=TOMBSTONE) for one in (note, account)]
        await anna.push(vault.id, 2, group(NOTES, deleted[0]), guarded(ACCOUNTS, (replaces(account), deleted[1])))
        page = await store.read(vault.id, NOTES, 0, 1 << 20)
        assert page is not None
        for stream, gone in ((NOTES, deleted[0]), (ACCOUNTS, deleted[1])):
            page = await store.read(vault.id, stream, 0, 1 << 20)
            assert page is not None and [segment.last for segment in page.segments] == [1, 2]
            purge = Purge(2, 2, 9, ((gone.tag, 2),), stream == ACCOUNTS)
            assert await store.swap(vault.id, stream, page.segments, StoredSegment(0, 2, b""), 2, page.term, purge)
        assert (await anna.push(vault.id, 3, late[0], flags=RESEAL)).outcome is Outcome.SEAL_AGAIN
        assert (await anna.push(vault.id, 3, late[0], flags=RESEAL)).outcome is Outcome.SEAL_AGAIN
        assert refusals(await anna.push(vault.id, 4, late[1], flags=RESEAL)) == [conflict(0, 0)]
        other = anew(record(version=2, tag=2))
        assert (await anna.push(vault.id, 5, vault.of_notes(2, other), flags=RESEAL)).outcome is Outcome.DONE, (
            "it had applied the deletion, and versions below that are not too old"
        )


@asyncio_test
async def test_what_was_applied_under_another_term_says_nothing() -> None:
    database = MemoryDatabase()
    async with running(await memory_store(database)) as relay, shared(relay) as vault:
        anna, note = vault.anna, record(version=5)
        await anna.push(vault.id, 1, group(NOTES, note))
        await vault.rotate()
        term = anna.term(vault.id)
        for batch, other in ((2, term._replace(number=term.number - 1)), (3, term._replace(id=b"another."))):
            before = Group(NOTES, encode_applied(Position(other, 99)), encode_segment([anew(note)]))
            assert (await anna.push(vault.id, batch, before, flags=RESEAL)).outcome is Outcome.SEAL_AGAIN


@asyncio_test
async def test_a_reader_an_old_key_and_a_version_that_never_was_are_refused() -> None:
    async with running() as relay, shared(relay) as vault:
        anna, note = vault.anna, record(version=5)
        await anna.push(vault.id, 1, group(NOTES, note))
        await vault.rotate()
        fine = vault.of_notes(1, anew(note))
        assert (await vault.carl.push(vault.id, 1, fine, flags=RESEAL)).outcome is Outcome.NOT_A_WRITER
        for batch, (one, outcome) in enumerate(
            [
                (note, Outcome.EPOCH_STALE),
                (anew(note, key_id=KeyId(b"none")), Outcome.EPOCH_STALE),
                (anew(note, epoch=3), Outcome.EPOCH_STALE),
                (anew(note, version=6), Outcome.SEAL_AGAIN),
                (anew(note), Outcome.DONE),
            ],
            2,
        ):
            assert (await anna.push(vault.id, batch, vault.of_notes(1, one), flags=RESEAL)).outcome is outcome


@asyncio_test
async def test_a_group_that_states_something_else_is_malformed() -> None:
    async with running() as relay, shared(relay) as vault:
        anna = vault.anna
        note, account = record(version=5), record(version=5)
        await anna.push(vault.id, 1, group(NOTES, note), guarded(ACCOUNTS, (NOTHING, account)))
        await vault.rotate()
        notes, accounts = vault.of_notes(1, anew(note)), of_accounts((account, anew(account)))
        spoilt = [
            notes._replace(conditions=b""),
            notes._replace(conditions=notes.conditions + b"\0"),
            notes._replace(conditions=accounts.conditions),
            accounts._replace(conditions=b""),
            accounts._replace(conditions=accounts.conditions[:-1]),
            accounts._replace(conditions=notes.conditions),
            of_accounts((account, anew(account)), (account, anew(account))),
            accounts._replace(stream=MEMBERSHIP),
        ]
        for batch, one in enumerate(spoilt, 2):
            told = await anna.push(vault.id, batch, one, flags=RESEAL)
            assert told == Pushed(vault.id, batch, Outcome.MALFORMED, (), ())
        absent = accounts._replace(stream=StreamId(b"absent.."))
        told = await anna.push(vault.id, len(spoilt) + 2, absent, flags=RESEAL)
        assert told.outcome is Outcome.SEAL_AGAIN, "the relay has lost it"
        told = await anna.push(vault.id, len(spoilt) + 3, notes, accounts, flags=RESEAL)
        assert told.outcome is Outcome.DONE and len(told.appended) == 2


@pytest.mark.parametrize("flags", [RESEAL | ATOMIC, RESEAL | REFILL])
def test_flags_that_mean_nothing_together_end_the_connection(flags: int) -> None:
    @asyncio_test
    async def run() -> None:
        async with running() as relay, shared(relay) as vault:
            note = vault.of_notes(1, anew(record()))
            await vault.anna.send(Push(vault.id, vault.anna.term(vault.id), 1, flags, (note,)))
            assert await vault.anna.closed() == CloseCode.PROTOCOL_ERROR

    run()


@asyncio_test
async def test_a_relay_whose_view_is_old_does_not_judge_by_it() -> None:
    """What another relay has taken in meanwhile is in the place of what is named."""
    database = MemoryDatabase()
    async with running(await memory_store(database)) as here, running(await memory_store(database)) as there:
        async with shared(here) as vault, await Device.open(there.port, BERT) as elsewhere:
            await here.plane._sweep.look()
            await vault.anna.subscribe(vault.id, NOTES, ACCOUNTS)
            account = record(version=5)
            await vault.anna.push(vault.id, 1, guarded(ACCOUNTS, (NOTHING, account)))
            await vault.rotate()
            await there.plane._sweep.look()
            await elsewhere.subscribe(vault.id, ACCOUNTS)
            assert (await elsewhere.push(vault.id, 1, of_accounts((account, anew(account))), flags=RESEAL)).appended
            told = await vault.anna.push(vault.id, 2, of_accounts((account, anew(account))), flags=RESEAL)
            assert refusals(told) == [conflict(0, 2)]


@asyncio_test
async def test_r14_what_was_sealed_anew_stands_where_it_stood_when_refills_are_judged() -> None:
    """A record that came after it and was lost is no conflict with it, whenever it comes back."""
    async with running() as relay, shared(relay) as vault:
        anna, account = vault.anna, record(version=5)
        await anna.push(vault.id, 1, guarded(ACCOUNTS, (NOTHING, account)))
        await vault.rotate()
        term = anna.term(vault.id)
        new = anew(account)
        assert (await anna.push(vault.id, 2, of_accounts((account, new)), flags=RESEAL)).appended
        lost = Position(Term(term.number + 1, b"lost...."), 2)
        before = {lost.term: LostTerm(term, 1)}
        later = anew(account, version=6)
        refill = Group(ACCOUNTS, encode_held([lost], before), encode_segment([later]))
        told = await vault.bert.push(vault.id, 1, refill, flags=REFILL)
        assert (told.refused, [row.records for row in told.appended]) == ((), [1])
