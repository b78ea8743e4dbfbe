"""What every store promises whoever purges tombstones: floors, ages, and what devices have acknowledged (R11)."""

import asyncio
from collections.abc import Sequence

import pytest

from sealwire_protocol.conditions import Current
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import (
    MEMBERSHIP,
    START,
    Author,
    DeviceKey,
    Position,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.cleaning import AckedPosition, Mark, Purge, Tombstones
from sealwire_relay.store.interface import MemberState, NewLink, Store, StreamWrite
from sealwire_relay.store.segments import StoredSegment
from tests.relay.store.places import (
    ADMIN,
    WRITER,
    Place,
    PostgresPlace,
    Vault,
    batch_write,
    make_vault,
    name,
    stream_write,
    write,
)
from tests.support.aio import asyncio_test

TAGS = [Tag(bytes([n]) * 16) for n in range(5)]

LEFT = StoredSegment(0, 4, b"ab")
"""What stands in the place of the first four records when the third and the fourth, tombstones, are gone."""

PURGE = Purge(4, 6, 9, ((TAGS[3], 3), (TAGS[4], 4)), True)
"""They had the versions 9 and less, and the log was read up to 6."""


class Log:
    """A vault's guarded stream of six records in two segments."""

    def __init__(self, store: Store, vault: Vault, term: Term) -> None:
        self.store, self.vault, self.term = store, vault, term
        self.key = vault.id, vault.stream
        self.read = [StoredSegment(0, 4, b"abcd"), StoredSegment(4, 6, b"ef")]

    async def append(
        self,
        head: int,
        body: bytes,
        term: Term | None = None,
        guards: Sequence[tuple[Tag, Current]] = (),
        floor: int = 0,
    ) -> bool:
        new = stream_write(self.vault.stream, head, body)._replace(guards=tuple(guards), floor=floor)
        [done] = await self.store.append([write(self.vault, term or self.term, [new])])
        return done

    async def swap(self, purge: Purge | None = PURGE, cleaned_to: int = 6, term: Term | None = None) -> bool:
        return await self.store.swap(*self.key, self.read[:1], LEFT, cleaned_to, term or self.term, purge)

    async def floors(self) -> tuple[int, int, int]:
        page = await self.store.read(*self.key, 0, 1_000)
        told = await self.store.subscription(self.vault.id, self.vault.admin, [self.vault.stream])
        assert page is not None and told is not None
        state = told.streams[0]
        assert (page.floor, page.floor_head, page.purged) == (state.floor, state.floor_head, state.purged)
        return page.floor, page.floor_head, page.purged

    async def held(self) -> set[int]:
        """The seqs that guards name."""
        return {held.seq for held in (await self.store.guards([(*self.key, tag) for tag in TAGS])).values()}

    async def found(self) -> Tombstones:
        """What is told of this stream alone: it is the first one after the vault's membership log."""
        [found] = await self.store.tombstones((self.vault.id, MEMBERSHIP), 1)
        assert (found.vault, found.stream) == self.key
        return found

    async def acked(self, device: DeviceKey, position: Position) -> None:
        await self.store.acked([AckedPosition(*self.key, device, position)])


async def make_log(store: Store) -> Log:
    """Guards say that the third and the fourth record are tombstones; the fifth is no tombstone, and has the tag of one
    that was there before."""
    term = await store.open_term()
    vault = await make_vault(store, term)
    vault = vault._replace(stream=StreamId(b"\x01" + name(8)[1:]))
    assert await store.create_stream(vault.id, vault.stream, StreamKind.GUARDED) is StreamKind.GUARDED
    log = Log(store, vault, term)
    assert await log.append(0, b"abcd", guards=[(TAGS[3], _current(3)), (TAGS[4], _current(4))])
    assert await log.append(4, b"ef", guards=[(TAGS[0], Current(7, bytes(8), False, 5))])
    return log


def _current(seq: int) -> Current:
    return Current(9, bytes(8), True, seq)


# --- purges


@asyncio_test
async def test_a_purge_raises_the_floor_with_the_rows_that_it_replaces(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert await log.floors() == (0, 0, 0)
        assert await log.swap()
        assert await log.floors() == (4, 6, 9)
        page = await store.read(*log.key, 0, 1_000)
        assert page is not None
        assert (page.head, page.cleaned_to, page.segments) == (6, 6, (LEFT, log.read[1]))


@asyncio_test
async def test_guards_of_what_was_purged_are_forgotten_and_no_others(place: Place) -> None:
    async with place.opened() as store:
        other = await make_log(store)
        log = await make_log(store)
        assert await log.append(6, b"gh", guards=[(TAGS[3], Current(10, bytes(8), False, 7)), (TAGS[1], _current(8))])
        assert await log.held() == {4, 5, 7, 8}
        # The first names a seq that the guard has left behind, the second one that is no tombstone.
        dropped = ((TAGS[3], 3), (TAGS[0], 5), (TAGS[4], 4))
        new = StoredSegment(0, 6, b"abf")
        assert await store.swap(*log.key, log.read, new, 8, log.term, Purge(5, 8, 9, dropped, True))
        assert await log.held() == {5, 7, 8}
        assert await other.held() == {3, 4, 5}


@asyncio_test
async def test_a_purge_whose_head_has_moved_does_nothing(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert await log.append(6, b"g")
        assert not await log.swap()
        assert await log.floors() == (0, 0, 0)
        assert await log.held() == {3, 4, 5}
        assert not await log.swap(PURGE._replace(head=8), cleaned_to=8)
        assert await log.swap(PURGE._replace(head=7))
        assert await log.floors() == (4, 7, 9)


@asyncio_test
async def test_a_purge_under_another_term_does_nothing(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert not await log.swap(term=Term(log.term.number, bytes(8)))
        assert await log.floors() == (0, 0, 0)


@asyncio_test
async def test_floors_and_what_was_purged_never_go_back_and_the_head_is_the_last_ones(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        new = StoredSegment(4, 6, b"f")
        assert await store.swap(*log.key, log.read[1:], new, 6, log.term, Purge(5, 6, 20, ((TAGS[0], 5),), True))
        assert await log.append(6, b"g", floor=5)
        assert await log.swap(PURGE._replace(head=7))
        assert await log.floors() == (5, 7, 20)


@asyncio_test
@pytest.mark.parametrize(
    "purge",
    [
        pytest.param(PURGE._replace(dropped=()), id="of nothing"),
        pytest.param(PURGE._replace(floor=5, dropped=((TAGS[3], 5),)), id="of what is not replaced"),
        pytest.param(PURGE._replace(floor=3), id="of more than the floor says"),
        pytest.param(PURGE._replace(floor=5), id="of less than the floor says"),
        pytest.param(PURGE._replace(head=5), id="with a head below what was cleaned"),
    ],
)
async def test_a_purge_of_anything_else_than_what_it_says_is_misuse(place: Place, purge: Purge) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        with pytest.raises(LocalMisuse):
            await log.swap(purge)
        assert await log.floors() == (0, 0, 0)


@asyncio_test
async def test_what_was_decided_on_another_floor_is_not_written(place: Place) -> None:
    """Its head is where it was, but it may have a version that comes back from the dead."""
    async with place.opened() as store:
        log = await make_log(store)
        other = log.vault._replace(stream=StreamId(name(8)))
        assert await store.create_stream(other.id, other.stream, StreamKind.OPEN) is StreamKind.OPEN
        assert await log.swap()
        looked_at = StreamWrite(log.vault.stream, 6, 6, 0, ())
        beside = stream_write(other.stream, 0, b"x")
        assert not await log.append(6, b"g")
        for floor in (0, 3, 5):
            stale = write(log.vault, log.term, [looked_at._replace(floor=floor), beside], [batch_write(1)])
            assert await store.append([stale]) == [False]
        fresh = write(log.vault, log.term, [looked_at._replace(floor=4), beside], [batch_write(1)])
        again = stream_write(log.vault.stream, 6, b"g")._replace(floor=4)
        assert await store.append([fresh]) == [True]
        assert await store.append([write(log.vault, log.term, [again], [batch_write(2)])]) == [True]
        assert await log.floors() == (4, 6, 9)


# --- how many tombstones there are, and how old


@asyncio_test
async def test_streams_with_tombstones_are_told_with_all_that_holds_them(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert (log.vault.id, log.vault.stream) not in [
            (f.vault, f.stream) for f in await store.tombstones(None, 10_000)
        ]
        assert await store.compacted(*log.key, 4, log.term, 2, 3)
        found = await log.found()
        terms = (TermStart(log.term, 0),)
        expected = Tombstones(*log.key, StreamKind.GUARDED, 6, 4, 0, 2, 3, (), terms, (), found.now)
        assert found == expected
        assert found.term == log.term
        assert await log.swap()
        assert log.key not in [(f.vault, f.stream) for f in await store.tombstones((log.vault.id, MEMBERSHIP), 1)]


@asyncio_test
async def test_a_purge_leaves_as_many_fewer_and_none_up_to_the_floor(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert await store.compacted(*log.key, 6, log.term, 3, 3)
        assert await log.swap()
        found = await log.found()
        assert (found.number, found.oldest, found.floor) == (1, 5, 4)


@asyncio_test
async def test_of_a_part_that_is_known_to_be_longer_nothing_is_noted(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        for upto, told, expected in ((4, (2, 3), (4, 2, 3)), (3, (1, 1), (4, 2, 3)), (4, (1, 4), (4, 1, 4))):
            assert await store.compacted(*log.key, upto, log.term, *told)
            found = await log.found()
            assert (found.compacted, found.number, found.oldest) == expected


@asyncio_test
async def test_ages_are_noted_in_the_place_of_those_before(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert await store.compacted(*log.key, 6, log.term, 3, 3)
        for marks, oldest, expected in (([Mark(4, 100), Mark(6, 2**33)], 4, 4), ([Mark(6, 200)], 2, 4), ([], 5, 5)):
            assert await store.aged(*log.key, marks, oldest, log.term)
            found = await log.found()
            assert (found.marks, found.oldest) == (tuple(marks), expected)
        assert not await store.aged(*log.key, [Mark(1, 1)], 6, Term(log.term.number, bytes(8)))
        assert not await store.aged(VaultId(name(16)), log.vault.stream, [], 0, log.term)
        assert (await log.found()).marks == ()


@asyncio_test
async def test_no_tombstone_is_left_where_none_lies_in_the_compacted_part(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        # Counted by one cleaner while another one took them out.
        assert await store.compacted(*log.key, 5, log.term, 3, 3)
        assert await store.aged(*log.key, [], 5, log.term)
        assert (await log.found()).number == 3
        assert await store.aged(*log.key, [], 6, log.term)
        assert log.key not in [(f.vault, f.stream) for f in await store.tombstones((log.vault.id, MEMBERSHIP), 1)]
        assert await store.compacted(*log.key, 6, log.term, 1, 6)
        found = await log.found()
        assert (found.number, found.oldest) == (1, 6)


@asyncio_test
async def test_streams_with_tombstones_are_found_page_by_page(fresh: Place) -> None:
    async with fresh.opened() as store:
        assert await store.tombstones(None, 10) == []
        logs = [await make_log(store) for _ in range(5)]
        for log in logs[:4]:
            assert await store.compacted(*log.key, 6, log.term, 1, 3)
        whole = await store.tombstones(None, 100)
        assert sorted((f.vault, f.stream) for f in whole) == sorted(log.key for log in logs[:4])
        for streams_max in (1, 2, 3):
            paged: list[Tombstones] = []
            while page := await store.tombstones((paged[-1].vault, paged[-1].stream) if paged else None, streams_max):
                assert len(page) <= streams_max
                paged += page
            assert [f._replace(now=0) for f in paged] == [f._replace(now=0) for f in whole]


# --- acknowledgements


@asyncio_test
async def test_the_last_word_of_each_device_counts(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert await store.compacted(*log.key, 6, log.term, 2, 3)
        assert (await log.found()).readers == ()
        admin, writer = log.vault.admin, log.vault.writer
        strange = Term(7, b"\xff" * 8)
        await log.acked(admin, START)
        await store.acked(
            [
                AckedPosition(*log.key, writer, Position(log.term, 6)),
                AckedPosition(*log.key, admin, Position(strange, 5)),
            ]
        )
        first, second = (await log.found()).readers
        assert first[:4] == (ADMIN, admin, Role.ADMIN, Position(strange, 5))
        assert second[:4] == (WRITER, writer, Role.WRITER, Position(log.term, 6))
        await log.acked(writer, Position(log.term, 4))
        found = await log.found()
        assert found.readers[1].position == Position(log.term, 4)
        assert all(0 <= found.now - reader.seen < 60 for reader in found.readers)


@asyncio_test
async def test_of_strangers_and_of_streams_that_are_not_there_nothing_is_noted(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        other = await make_log(store)
        guest = MemberState(Author(3), DeviceKey(name(32)), Role.READER)
        assert await store.append_link(other.vault.id, NewLink(3, b"third", guest), other.term)
        assert await store.compacted(*log.key, 6, log.term, 2, 3)
        position = Position(log.term, 1)
        await store.acked([])
        await store.acked(
            [
                AckedPosition(*log.key, DeviceKey(name(32)), position),
                AckedPosition(*log.key, guest.device, position),
                AckedPosition(log.vault.id, StreamId(name(8)), log.vault.admin, position),
                AckedPosition(VaultId(name(16)), log.vault.stream, log.vault.admin, position),
            ]
        )
        assert (await log.found()).readers == ()
        twice = [AckedPosition(*log.key, log.vault.admin, START), AckedPosition(*log.key, log.vault.admin, position)]
        with pytest.raises(LocalMisuse, match="two positions"):
            await store.acked(twice)


@asyncio_test
async def test_two_relays_that_note_the_same_devices_at_once_do_not_hinder_each_other(place: Place) -> None:
    async with place.opened() as one, place.opened() as two:
        log = await make_log(one)
        other = await make_log(one)
        acks = [
            AckedPosition(*each.key, device, Position(each.term, 1))
            for each in (log, other)
            for device in (each.vault.admin, each.vault.writer)
        ]
        for _ in range(10):
            await asyncio.gather(one.acked(acks), two.acked(acks[::-1]))
        assert await one.compacted(*log.key, 6, log.term, 2, 3)
        assert len((await log.found()).readers) == 2


# --- what only Postgres can show


@asyncio_test
async def test_a_push_that_waits_behind_a_purge_is_made_after_it_or_not_at_all(postgres: PostgresPlace) -> None:
    """And a purge that waits behind a push does nothing: a loser of what it drops may have come with that."""
    async with postgres.opened() as store, postgres.direct() as other:
        log = await make_log(store)
        lock = f"SELECT FROM sealwire.stream WHERE vault_id = '{log.vault.id.hex()}' FOR UPDATE"
        async with other.transaction():
            await other.execute(lock)
            push = asyncio.create_task(log.append(6, b"g"))
            await postgres.somebody_waits()
            purge = asyncio.create_task(log.swap())
            async with asyncio.timeout(100):
                while await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:
                    pass
        assert await push
        assert not await purge
        assert await log.floors() == (0, 0, 0)
        assert await log.held() == {3, 4, 5}
