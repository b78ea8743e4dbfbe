"""What only Postgres can show: rows that change while their lock is awaited, lost servers, cancelled callers."""

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import pairwise

import pytest

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import StreamId, Tag, Term, TermStart
from sealwire_protocol.limits import TERMS_TOLD_MAX
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.interface import DiskFullError, OutcomeUnknownError, StoreDownError, StoreError, StreamWrite
from sealwire_relay.store.migrate import Phase, migrate
from sealwire_relay.store.postgres import PostgresStore
from tests.relay.store.places import (
    ADMIN,
    EPOCH,
    WAITING,
    PostgresPlace,
    Vault,
    batch_write,
    make_vault,
    name,
    segments,
    stream_write,
    whole,
    write,
)
from tests.support.aio import asyncio_test
from tests.support.postgres import Server, binaries_of, server


def _where(vault: Vault, table: str) -> str:
    key = f"author = {ADMIN}" if table == "member" else "stream <> 0"
    return f"WHERE vault_id = '{vault.id.hex()}' AND {key}"


async def _append_while(place: PostgresPlace, table: str, change: str) -> tuple[list[bool], PostgresStore, Vault, Term]:
    """Start an append to two streams, let another transaction change the rows that it waits for, and see."""
    store = place.store()
    await store.open()
    term = await store.open_term()
    vault = await make_vault(store, term)
    second = StreamId(name(8))
    await store.create_stream(vault.id, second, StreamKind.OPEN)
    both = [stream_write(stream, 0, b"ab") for stream in (vault.stream, second)]
    assert await store.append([write(vault, term, both, [batch_write(1)])]) == [True]
    async with place.direct() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(f"UPDATE sealwire.{table} SET {change} {_where(vault, table)}")
        late = [stream_write(stream, 2, b"c") for stream in (vault.stream, second)]
        append = asyncio.create_task(store.append([write(vault, term, late, [batch_write(2)])]))
        await place.somebody_waits()
        await transaction.commit()
    return await append, store, vault, term


@asyncio_test
@pytest.mark.parametrize(("table", "change"), [("stream", "cleaned_to = 1"), ("member", "role = 3")])
async def test_a_row_that_changed_elsewhere_while_its_lock_was_awaited_is_written_all_the_same(
    postgres: PostgresPlace, table: str, change: str
) -> None:
    """The statement's snapshot shows the row as it was; a head that did not follow its segment would be a loss."""
    done, store, vault, _ = await _append_while(postgres, table, change)
    assert done == [True]
    page = await store.read(vault.id, vault.stream, 0, 100)
    state = await store.pusher(vault.id, vault.admin)
    assert page is not None
    assert state is not None
    assert (page.head, page.segments) == (3, (*segments(0, b"ab"), *segments(2, b"c")))
    assert page.cleaned_to == (1 if table == "stream" else 0)
    assert state.last_batch == 2
    await store.close()


@asyncio_test
@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("stream", "head = 3"),
        ("stream", f"epoch = {EPOCH + 1}"),
        ("stream", "term = term + 1"),
        ("stream", "term_id = term_id + 1"),
        ("member", "last_batch = 2"),
        ("member", "author = 99"),
    ],
)
async def test_a_condition_that_ceased_to_hold_while_a_lock_was_awaited_is_seen(
    postgres: PostgresPlace, table: str, change: str
) -> None:
    done, store, vault, _ = await _append_while(postgres, table, change)
    assert done == [False]
    assert await whole(store, vault, vault.stream) == list(segments(0, b"ab"))
    await store.close()


@asyncio_test
@pytest.mark.parametrize(("change", "holds"), [("head = 3", False), ("cleaned_to = 1", True)])
async def test_a_refusal_waits_for_a_head_that_is_about_to_move(
    postgres: PostgresPlace, change: str, holds: bool
) -> None:
    """A stream that was only looked at is locked like the others, and compared once its lock was got."""
    async with postgres.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"ab")])]) == [True]
        async with postgres.direct() as other:
            transaction = other.transaction()
            await transaction.start()
            await other.execute(f"UPDATE sealwire.stream SET {change} {_where(vault, 'stream')}")
            looked_at = StreamWrite(vault.stream, 2, 2, 0, ())
            append = asyncio.create_task(store.append([write(vault, term, [looked_at], [batch_write(1)])]))
            await postgres.somebody_waits()
            await transaction.commit()
        assert await append == [holds]
        state = await store.pusher(vault.id, vault.admin)
        assert state is not None
        assert state.last_batch == int(holds)


@asyncio_test
async def test_what_is_written_again_and_again_stays_within_its_page(postgres: PostgresPlace) -> None:
    """Updates of what a stream holds leave the index alone, and so cost no more after the thousandth."""
    place = PostgresPlace(postgres.server, await postgres.server.database(), False)
    await migrate(place.server.dsn(place.database), lambda line: None, Phase.PRE)
    async with place.opened() as store, place.direct() as direct:
        term = await store.open_term()
        vault = await make_vault(store, term)
        tags = [Tag(bytes([n]) * 16) for n in range(4)]
        for head in range(60):
            guards = tuple((tag, Current(head + 1, b"salt....", False, head + 1)) for tag in tags)
            new = stream_write(vault.stream, head, b"x")._replace(guards=guards)
            assert await store.append([write(vault, term, [new])]) == [True]
        assert await direct.fetchval("SELECT pg_relation_size('sealwire.guard')") == 8_192


@asyncio_test
async def test_a_cancelled_caller_leaves_its_append_going_on(postgres: PostgresPlace) -> None:
    store = postgres.store()
    await store.open()
    term = await store.open_term()
    vault = await make_vault(store, term)
    async with postgres.direct() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(f"UPDATE sealwire.stream SET cleaned_to = 0 {_where(vault, 'stream')}")
        append = asyncio.create_task(store.append([write(vault, term, [stream_write(vault.stream, 0, b"a")])]))
        await postgres.somebody_waits()
        append.cancel()
        with pytest.raises(asyncio.CancelledError):
            await append
        await transaction.commit()
    await store.close()
    async with postgres.opened() as again:
        assert await whole(again, vault, vault.stream) == list(segments(0, b"a"))


@asyncio_test
async def test_a_connection_lost_during_a_commit_leaves_the_outcome_unknown(postgres: PostgresPlace) -> None:
    async with postgres.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        async with postgres.direct() as other:
            transaction = other.transaction()
            await transaction.start()
            await other.execute(f"UPDATE sealwire.stream SET cleaned_to = 0 {_where(vault, 'stream')}")
            append = asyncio.create_task(store.append([write(vault, term, [stream_write(vault.stream, 0, b"a")])]))
            await postgres.somebody_waits()
            await other.execute(f"SELECT pg_terminate_backend(pid) {WAITING}")
            with pytest.raises(OutcomeUnknownError, match="look before writing again"):
                await append
            await transaction.rollback()
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"b")])]) == [True]


@asyncio_test
async def test_a_full_disk_is_told_and_nothing_is_written(postgres: PostgresPlace) -> None:
    """The database is made to say what it says when its disk is full."""
    async with postgres.opened() as store, postgres.direct() as direct:
        term = await store.open_term()
        vault = await make_vault(store, term)
        await direct.execute(
            f"""
            CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE EXCEPTION 'could not extend file "x": No space left on device' USING ERRCODE = '53100'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON sealwire.segment FOR EACH ROW
                WHEN (NEW.vault_id = '{vault.id.hex()}') EXECUTE FUNCTION public.full_disk();
            """
        )
        try:
            with pytest.raises(DiskFullError, match="give its disk more room"):
                await store.append([write(vault, term, [stream_write(vault.stream, 0, b"a")])])
        finally:
            await direct.execute("DROP TRIGGER full_disk ON sealwire.segment; DROP FUNCTION public.full_disk")
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"b")])]) == [True]


@asyncio_test
async def test_the_newest_terms_are_told_when_there_are_too_many(postgres: PostgresPlace) -> None:
    async with postgres.opened() as store, postgres.direct() as direct:
        term = await store.open_term()
        vault = await make_vault(store, term)
        count = TERMS_TOLD_MAX + 10
        await direct.execute(
            f"""
            UPDATE sealwire.stream SET term = 0, head = {count}, terms = ARRAY(
                SELECT unnest(ARRAY[n - {count}, -n, n]) FROM generate_series(1, {count}) n)
            {_where(vault, "stream")}
            """
        )
        assert await store.append([write(vault, term, [stream_write(vault.stream, count, b"a")])]) == [True]
        told = await store.subscription(vault.id, vault.admin, [vault.stream])
        assert told is not None
        terms = told.streams[0].terms
        assert len(terms) == TERMS_TOLD_MAX
        assert terms[-1] == TermStart(term, count)
        assert [t.start for t in terms] == [*range(count - TERMS_TOLD_MAX + 2, count + 1), count]


NOWHERE = ("postgresql://postgres@/nowhere?host=/nonexistent", "postgresql://postgres@127.0.0.1:1/nowhere")


@asyncio_test
@pytest.mark.parametrize("dsn", NOWHERE)
async def test_a_database_that_is_not_there_is_told_in_one_sentence(dsn: str) -> None:
    store = PostgresStore(dsn)
    with pytest.raises(StoreDownError) as told:
        await store.open()
    assert "\n" not in str(told.value)
    assert "nothing was written" in str(told.value)


@asyncio_test
async def test_a_database_of_another_name_is_told(postgres: PostgresPlace) -> None:
    with pytest.raises(StoreError, match="check the name and password"):
        await PostgresStore(postgres.server.dsn("no_such_database")).open()


@asyncio_test
@pytest.mark.parametrize("one_vault_per_statement", [False, True])
@pytest.mark.embedded
async def test_kill_9_during_appends_loses_nothing_that_was_acked(one_vault_per_statement: bool) -> None:
    """The same store lives through three crashes: it refuses to write on until a new term is open (R7)."""
    changes: list[str] = []
    with _own_server() as own:
        await own.start()
        await migrate(own.dsn(), lambda line: None, Phase.PRE)
        store = PostgresStore(
            own.dsn(),
            one_vault_per_statement=one_vault_per_statement,
            on_other_server=lambda: changes.append("changed"),
        )
        await store.open()
        vault = await make_vault(store, await store.open_term())
        streams = [StreamId(name(8)) for _ in range(6)]
        for stream in streams:
            await store.create_stream(vault.id, stream, StreamKind.OPEN)
        acked = dict.fromkeys(streams, 0)
        for crash in range(3):
            enough = asyncio.Event()
            work = [asyncio.create_task(_until_lost(store, vault, s, acked, enough)) for s in streams]
            await enough.wait()
            own.kill()
            await asyncio.gather(*work)
            with pytest.raises(StoreDownError):
                await store.ping()
            await own.start()
            term = await store.current_term()
            assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"x")])]) == [False]
            assert (store.server_changed, len(changes)) == (True, crash + 1)
            await store.open_term()
            assert (store.server_changed, len(changes)) == (False, crash + 1)
            for stream in streams:
                found = await whole(store, vault, stream)
                assert all(first.last == second.prev for first, second in pairwise(found))
                assert found[-1].last >= acked[stream]
                acked[stream] = found[-1].last
        assert min(acked.values()) > 3
        await store.close()


@contextlib.contextmanager
def _own_server() -> Iterator[Server]:
    with server(binaries_of("embedded"), settings=("fsync=on",), run=False) as own:
        yield own


async def _until_lost(
    store: PostgresStore, vault: Vault, stream: StreamId, acked: dict[StreamId, int], enough: asyncio.Event
) -> None:
    """Append one record after the other until the database is gone; notes each as acked."""
    term = await store.current_term()
    goal = min(acked.values()) + 20
    while True:
        head = acked[stream]
        try:
            [done] = await store.append([write(vault, term, [stream_write(stream, head, b"r")])])
        except (OutcomeUnknownError, StoreDownError):
            return
        assert done
        acked[stream] = head + 1
        if acked[stream] >= goal:
            enough.set()
