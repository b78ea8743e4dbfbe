"""What every store promises a cleaner: swaps of exactly what was read, and the two numbers of how far it has come."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import MEMBERSHIP, NO_TERM, StreamId, Term, VaultId
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.cleaning import Dirty
from sealwire_relay.store.interface import OutcomeUnknownError, Page, Store, StoreDownError
from sealwire_relay.store.segments import StoredSegment
from tests.relay.store.places import (
    WAITING,
    Place,
    PostgresPlace,
    Vault,
    make_vault,
    name,
    segments,
    stream_write,
    whole,
    write,
)
from tests.support.aio import asyncio_test

BODIES = b"ab", b"c", b"def"
"""Six records in three segments."""

MORE_THAN_CONNECTIONS = 20
"""Swaps in a row that would each hold on to a connection of a store that does not take them back."""


class Log(NamedTuple):
    """A vault's stream with the records of BODIES in it."""

    vault: Vault
    term: Term
    read: tuple[StoredSegment, ...]

    async def swap(self, store: Store, old: Sequence[StoredSegment], new: StoredSegment, cleaned_to: int = 6) -> bool:
        return await store.swap(self.vault.id, self.vault.stream, old, new, cleaned_to, self.term)

    async def append(self, store: Store, head: int, body: bytes, term: Term | None = None) -> bool:
        [done] = await store.append(
            [write(self.vault, term or self.term, [stream_write(self.vault.stream, head, body)])]
        )
        return done

    async def page(self, store: Store, after: int = 0) -> Page:
        page = await store.read(self.vault.id, self.vault.stream, after, 1_000)
        assert page is not None
        return page

    async def dirty(self, store: Store) -> Dirty:
        """What is told of this stream alone: it is the first one after the vault's membership log."""
        [found] = [d for d in await store.dirty((self.vault.id, MEMBERSHIP), 0, 10) if d.vault == self.vault.id]
        return found


async def make_log(store: Store) -> Log:
    """A vault with a log, under a term of its own."""
    term = await store.open_term()
    vault = await make_vault(store, term)
    # The key of a stream with the high bit set comes before the membership log's; here it shall come after.
    vault = vault._replace(stream=StreamId(b"\x01" + name(8)[1:]))
    assert await store.create_stream(vault.id, vault.stream, StreamKind.OPEN) is StreamKind.OPEN
    made = Log(vault, term, segments(0, *BODIES))
    assert await store.append([write(vault, term, [stream_write(vault.stream, 0, *BODIES)])]) == [True]
    return made


JOINED = StoredSegment(0, 3, b"b")
"""What stands in the place of the first two segments when one record is left of them."""


# --- swaps


@asyncio_test
async def test_a_swap_replaces_what_was_read_and_tells_how_far_records_may_be_missing(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert (await log.page(store)).cleaned_to == 0
        assert await log.swap(store, log.read[:2], JOINED, cleaned_to=5)
        page = await log.page(store)
        assert (page.head, page.cleaned_to, page.segments) == (6, 5, (JOINED, log.read[2]))
        told = await store.subscription(log.vault.id, log.vault.admin, [log.vault.stream])
        assert told is not None
        assert (told.streams[0].head, told.streams[0].cleaned_to) == (6, 5)
        assert (page.floor, page.floor_head, page.purged) == (0, 0, 0)


@asyncio_test
async def test_cleaned_to_never_goes_back(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert await log.swap(store, log.read[2:], StoredSegment(3, 6, b"f"), cleaned_to=6)
        assert await log.swap(store, log.read[:2], JOINED, cleaned_to=3)
        assert (await log.page(store)).cleaned_to == 6


@asyncio_test
async def test_a_segment_may_have_no_record_left(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        new = StoredSegment(0, 6, b"")
        assert await log.swap(store, log.read, new)
        assert await whole(store, log.vault, log.vault.stream) == [new]


@asyncio_test
async def test_a_page_begins_before_its_cursor_where_a_joined_segment_does(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert await log.swap(store, log.read[:2], JOINED)
        both, rest = (JOINED, log.read[2]), (log.read[2],)
        for after, expected in ((0, both), (1, both), (2, both), (3, rest), (5, rest), (6, ())):
            assert (await log.page(store, after)).segments == expected, after
        assert await log.append(store, 6, b"g")
        joined = StoredSegment(0, 7, b"bfg")
        assert await log.swap(store, (*both, *segments(6, b"g")), joined, cleaned_to=7)
        for after in range(7):
            assert (await log.page(store, after)).segments == (joined,), after
        assert (await log.page(store, 7)).segments == ()


@asyncio_test
@pytest.mark.parametrize(
    "read",
    [
        pytest.param([StoredSegment(0, 2, b"a"), StoredSegment(2, 3, b"c")], id="a body of another size"),
        pytest.param([StoredSegment(0, 1, b"a"), StoredSegment(1, 3, b"c")], id="a segment that ends elsewhere"),
        pytest.param([StoredSegment(0, 3, b"ab")], id="one instead of two"),
        pytest.param([StoredSegment(2, 3, b"c"), StoredSegment(3, 5, b"def")], id="one that is there, one that is not"),
        pytest.param([StoredSegment(1, 2, b"ab"), StoredSegment(2, 3, b"c")], id="a segment that begins elsewhere"),
    ],
)
async def test_a_swap_of_anything_else_than_what_is_there_does_nothing(place: Place, read: list[StoredSegment]) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        for _ in range(MORE_THAN_CONNECTIONS):
            assert not await log.swap(store, read, StoredSegment(read[0].prev, read[-1].last, b""))
        page = await log.page(store)
        assert (page.head, page.cleaned_to, page.segments) == (6, 0, log.read)
        assert await log.swap(store, log.read[:2], JOINED)


@asyncio_test
async def test_what_was_swapped_already_is_not_swapped_again(place: Place) -> None:
    """Neither by one that read the rows before, nor by one that knows of the place but not of the new body."""
    async with place.opened() as store:
        log = await make_log(store)
        fewer = StoredSegment(0, 2, b"b")
        assert await log.swap(store, log.read[:1], fewer, cleaned_to=3)
        assert not await log.swap(store, log.read[:1], StoredSegment(0, 2, b"a"))
        assert not await log.swap(store, log.read[:2], JOINED)
        page = await log.page(store)
        assert (page.cleaned_to, page.segments) == (3, (fewer, *log.read[1:]))
        assert await log.swap(store, [fewer, log.read[1]], JOINED)


@asyncio_test
async def test_of_many_cleaners_of_the_same_segments_one_has_its_way(place: Place) -> None:
    """Two stores, and swaps that overlap in all ways: what is found afterwards is of swaps that said so."""
    async with place.opened() as one, place.opened() as two:
        log = await make_log(one)
        spans = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] * 2

        async def clean(number: int, span: tuple[int, int]) -> StoredSegment | None:
            old = log.read[slice(*span)]
            new = StoredSegment(old[0].prev, old[-1].last, b"")
            return new if await log.swap(two if number % 2 else one, old, new) else None

        done = await asyncio.gather(*[clean(number, span) for number, span in enumerate(spans)])
        new = [segment for segment in done if segment is not None]
        found = await whole(one, log.vault, log.vault.stream)
        assert [s.prev for s in found] == [0, *[s.last for s in found[:-1]]]
        assert found[-1].last == 6
        assert set(found) - set(log.read) == set(new)
        assert len(new) == len(set(new)) >= 1


@asyncio_test
async def test_appends_go_on_beside_swaps(place: Place) -> None:
    """A device that pushes and a cleaner that joins whatever there is, on two stores; neither hinders the other."""
    async with place.opened() as one, place.opened() as two:
        log = await make_log(one)

        async def push() -> None:
            for head in range(6, 46):
                assert await log.append(one, head, b"x")

        async def clean() -> None:
            cleaned = 0
            while cleaned < 46:
                page = await log.page(two)
                joined = StoredSegment(0, page.segments[-1].last, b"".join(s.body for s in page.segments))
                assert await log.swap(two, page.segments, joined, cleaned_to=joined.last)
                cleaned = joined.last
                await asyncio.sleep(0)

        async with asyncio.timeout(200):
            await asyncio.gather(push(), clean())
        page = await log.page(one)
        assert page.segments == (StoredSegment(0, 46, b"".join(BODIES) + 40 * b"x"),)
        assert (page.head, page.cleaned_to) == (46, 46)
        assert await log.append(two, 46, b"y")


# --- histories


@asyncio_test
async def test_a_swap_that_looked_beyond_the_head_does_nothing(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        assert not await log.swap(store, log.read[:2], JOINED, cleaned_to=7)
        page = await log.page(store)
        assert (page.cleaned_to, page.segments) == (0, log.read)
        assert not await store.swap(VaultId(name(16)), log.vault.stream, log.read[:2], JOINED, 6, log.term)
        assert not await store.swap(log.vault.id, StreamId(name(8)), log.read[:2], JOINED, 6, log.term)


@asyncio_test
async def test_what_was_read_before_a_restore_is_not_swapped_after_it(fresh: Place) -> None:
    """Other records lie in the place of the lost ones, and happen to have their size. They must not go."""
    async with fresh.opened() as store:
        log = await make_log(store)
    await fresh.back_up()
    async with fresh.opened() as store:
        assert await log.append(store, 6, b"lost")
        found = await log.dirty(store)
        lost = segments(6, b"lost")
        assert (found.term, (await log.page(store, 6)).segments) == (log.term, lost)
    await fresh.restore()
    async with fresh.opened() as store:
        assert not await log.swap(store, log.read[:2], JOINED, cleaned_to=10)
        term = await store.open_term()
        assert await log.append(store, 6, b"kept", term)
        assert not await log.swap(store, lost, StoredSegment(6, 10, b"l"), cleaned_to=10)
        assert not await log.swap(store, log.read[:2], JOINED, cleaned_to=10)
        assert not await store.compacted(log.vault.id, log.vault.stream, 10, log.term, 0, 0)
        page = await log.page(store)
        assert (page.cleaned_to, page.segments) == (0, (*log.read, *segments(6, b"kept")))
        found = await log.dirty(store)
        assert (found.term, found.compacted) == (term, 0)
        assert await log._replace(term=term).swap(store, log.read[:2], JOINED, cleaned_to=10)


@asyncio_test
async def test_a_restore_takes_back_what_was_cleaned_with_how_far_it_was(fresh: Place) -> None:
    async with fresh.opened() as store:
        log = await make_log(store)
    await fresh.back_up()
    async with fresh.opened() as store:
        assert await log.swap(store, log.read[:2], JOINED)
        assert await store.compacted(log.vault.id, log.vault.stream, 6, log.term, 0, 0)
    await fresh.restore()
    async with fresh.opened() as store:
        page = await log.page(store)
        assert (page.cleaned_to, page.segments) == (0, log.read)
        assert (await log.dirty(store)).compacted == 0


# --- misuse


@asyncio_test
@pytest.mark.parametrize(
    ("new", "cleaned_to"),
    [
        pytest.param(StoredSegment(0, 2, b"b"), 6, id="too short"),
        pytest.param(StoredSegment(1, 3, b"b"), 6, id="too late"),
        pytest.param(StoredSegment(0, 4, b"b"), 6, id="too long"),
        pytest.param(JOINED, 2, id="cleaned beyond what is told"),
    ],
)
async def test_a_swap_that_would_leave_no_log_is_misuse(place: Place, new: StoredSegment, cleaned_to: int) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        with pytest.raises(LocalMisuse):
            await log.swap(store, log.read[:2], new, cleaned_to)
        with pytest.raises(LocalMisuse):
            await log.swap(store, [], new, cleaned_to)
        with pytest.raises(LocalMisuse):
            await log.swap(store, [log.read[0], log.read[2]], StoredSegment(0, 6, b"b"))
        page = await log.page(store)
        assert (page.cleaned_to, page.segments) == (0, log.read)


@asyncio_test
async def test_the_membership_log_is_never_swapped(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        page = await store.read(log.vault.id, MEMBERSHIP, 0, 1_000)
        assert page is not None
        with pytest.raises(LocalMisuse):
            await store.swap(log.vault.id, MEMBERSHIP, page.segments, StoredSegment(0, 2, b""), 2, log.term)
        assert (await store.links(log.vault.id)).links == (b"genesis", b"second")


# --- what is dirty


@asyncio_test
async def test_a_dirty_stream_is_told_with_what_it_amounts_to(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        key = log.vault.id, log.vault.stream
        assert await log.dirty(store) == Dirty(*key, 6, 0, 6, 6, 3, log.term)
        assert await store.compacted(*key, 3, log.term, 0, 0)
        assert await log.dirty(store) == Dirty(*key, 6, 3, 6, 3, 3, log.term)
        assert await log.swap(store, log.read[:2], JOINED)
        assert await log.dirty(store) == Dirty(*key, 6, 3, 4, 3, 2, log.term)
        assert await store.compacted(*key, 6, log.term, 0, 0)
        assert await log.dirty(store) == Dirty(*key, 6, 6, 4, 0, 2, log.term)
        assert await log.append(store, 6, b"gh")
        assert await log.dirty(store) == Dirty(*key, 8, 6, 6, 2, 3, log.term)
        before = log.vault.id, MEMBERSHIP
        assert [d[:2] for d in await store.dirty(before, 2, 1)] == [key]
        assert key not in [d[:2] for d in await store.dirty(before, 3, 1)]


@asyncio_test
async def test_how_far_a_stream_is_compacted_never_goes_back_nor_beyond_its_head(place: Place) -> None:
    async with place.opened() as store:
        log = await make_log(store)
        key = log.vault.id, log.vault.stream
        for upto, done, expected in ((3, True, 3), (2, True, 3), (7, False, 3), (6, True, 6), (0, True, 6)):
            assert await store.compacted(*key, upto, log.term, 0, 0) is done
            assert (await log.dirty(store)).compacted == expected
        assert (await log.page(store)).cleaned_to == 0
        for absent in ((VaultId(name(16)), log.vault.stream), (log.vault.id, StreamId(name(8)))):
            assert not await store.compacted(*absent, 0, log.term, 0, 0)


@asyncio_test
async def test_dirty_streams_are_found_page_by_page_and_membership_logs_never(fresh: Place) -> None:
    async with fresh.opened() as store:
        assert await store.dirty(None, 0, 10) == []
        term = await store.open_term()
        expected = {}
        ids = [StreamId(first + name(8)[1:]) for first in (b"\x00", b"\x7f", b"\x80", b"\xff")]
        for size in (3, 1, 2):
            vault = await make_vault(store, term)
            expected[vault.id, vault.stream] = 0
            for stream in ids:
                await store.create_stream(vault.id, stream, StreamKind.OPEN)
                [done] = await store.append([write(vault, term, [stream_write(stream, 0, b"x" * size)])])
                assert done
                expected[vault.id, stream] = size
        found = await store.dirty(None, 0, 100)
        assert {(d.vault, d.stream): d.head for d in found} == expected
        assert len(found) == len(expected)
        assert [d.vault for d in found] == sorted(d.vault for d in found)
        assert {d.term for d in found if d.head == 0} == {NO_TERM}
        for tail_min in range(4):
            enough = [d for d in found if d.head >= tail_min]
            for streams_max in (1, 2, 5, 100):
                paged: list[Dirty] = []
                while page := await store.dirty(
                    (paged[-1].vault, paged[-1].stream) if paged else None, tail_min, streams_max
                ):
                    assert len(page) <= streams_max
                    paged += page
                assert paged == enough
        assert await store.dirty(None, 4, 100) == []


# --- what only Postgres can show


def _head(log: Log) -> str:
    return f"UPDATE sealwire.stream SET top = top WHERE vault_id = '{log.vault.id.hex()}'"


def _rows(log: Log) -> str:
    return f"SELECT FROM sealwire.segment WHERE vault_id = '{log.vault.id.hex()}' FOR UPDATE"


@asyncio_test
async def test_an_append_does_not_wait_for_a_swap_that_waits(postgres: PostgresPlace) -> None:
    async with postgres.opened() as store, postgres.direct() as other:
        log = await make_log(store)
        async with other.transaction():
            await other.execute(_rows(log))
            swap = asyncio.create_task(log.swap(store, log.read[:2], JOINED))
            await postgres.somebody_waits()
            assert await log.append(store, 6, b"g")
        assert await swap
        page = await log.page(store)
        assert (page.head, page.cleaned_to) == (7, 6)
        assert page.segments == (JOINED, log.read[2], *segments(6, b"g"))


@asyncio_test
@pytest.mark.parametrize("hindered", [_head, _rows])
async def test_a_swap_that_was_interrupted_has_done_nothing(
    postgres: PostgresPlace, hindered: Callable[[Log], str]
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    async with postgres.opened() as store, postgres.direct() as other:
        log = await make_log(store)
        for cancelled in (True, False) * 6:
            transaction = other.transaction()
            await transaction.start()
            await other.execute(hindered(log))
            swap = asyncio.create_task(log.swap(store, log.read[:2], JOINED))
            await postgres.somebody_waits()
            if cancelled:
                swap.cancel()
            else:
                await other.execute(f"SELECT pg_terminate_backend(pid) {WAITING}")
            with pytest.raises(asyncio.CancelledError if cancelled else StoreDownError):
                await swap
            await transaction.rollback()
            page = await log.page(store)
            assert (page.cleaned_to, page.segments) == (0, log.read)
        assert await log.swap(store, log.read[:2], JOINED)
    assert complaints == [], "no connection came back in the midst of a transaction"


@asyncio_test
async def test_a_swap_whose_connection_is_lost_in_its_commit_leaves_the_outcome_unknown(
    postgres: PostgresPlace,
) -> None:
    """A trigger that waits when the transaction commits holds it there."""
    async with postgres.opened() as store, postgres.direct() as other:
        log = await make_log(store)
        await other.execute(
            f"""
            CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON sealwire.segment DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW WHEN (NEW.vault_id = '{log.vault.id.hex()}') EXECUTE FUNCTION public.hold();
            SELECT pg_advisory_lock(1);
            """
        )
        swap = asyncio.create_task(log.swap(store, log.read[:2], JOINED))
        await postgres.somebody_waits()
        await other.execute(f"SELECT pg_terminate_backend(pid) {WAITING}")
        with pytest.raises(OutcomeUnknownError, match="look before writing again"):
            await swap
        await other.execute(
            """
            SELECT pg_advisory_unlock(1);
            DROP TRIGGER hold ON sealwire.segment;
            DROP FUNCTION public.hold;
            """
        )
        page = await log.page(store)
        assert (page.cleaned_to, page.segments) == (0, log.read)
        assert await log.swap(store, log.read[:2], JOINED)
