"""Room in files: used again and given back while devices push, and no cleaner that stops holds a log up for ever."""

import asyncio
import logging
import os

import asyncpg  # type: ignore[import-untyped]
import pytest

from sealwire_relay import reclaimer
from sealwire_relay.cleaner import Cleaner
from sealwire_relay.store import connections
from sealwire_relay.store.interface import OutcomeUnknownError, Store, StoreError
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.room import vacuum
from sealwire_relay.store.segments import StoredSegment
from tests.relay.logs import Log, make_log, record
from tests.relay.store.places import Place, PostgresPlace, make_vault, segments, stream_write, write
from tests.support.aio import asyncio_test

LARGE = 100_000
"""Bytes of a body: some fifty pieces in the table of large ones."""

COUNT = 40

MIB = 1 << 20


@asyncio_test
async def test_room_is_reclaimed_beside_appends(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        await store.reclaim()
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"a")])]) == [True]


async def large_log(store: Store, count: int = COUNT) -> tuple[Log, list[StoredSegment]]:
    """A log of so many large bodies that are no records, and its segments."""
    log = await make_log(store)
    term, made = await store.current_term(), []
    for at in range(count):
        [segment] = segments(at, b"x")
        made.append(segment._replace(body=os.urandom(LARGE)))
        new = stream_write(log.vault.stream, at, b"x")._replace(segments=(made[-1],))
        assert await store.append([write(log.vault, term, [new])]) == [True]
    return log, made


async def replace(store: Store, log: Log, old: list[StoredSegment], size: int) -> list[StoredSegment]:
    """Write each of a log's segments anew, with bodies of another size."""
    term, made = await store.current_term(), []
    for segment in old:
        new = segment._replace(body=os.urandom(size))
        assert await store.swap(log.vault.id, log.vault.stream, (segment,), new, COUNT, term)
        made.append(new)
    return made


@asyncio_test
async def test_what_was_replaced_is_written_over_and_the_end_of_a_file_given_back(postgres: PostgresPlace) -> None:
    database = await postgres.server.database("migrated")
    async with PostgresPlace(postgres.server, database, False).opened() as store:
        log, made = await large_log(store)
        fresh = await store.reclaim()
        assert fresh.used > COUNT * LARGE and abs(fresh.size - fresh.used) < fresh.size / 50
        sizes = []
        for _ in range(6):
            made = await replace(store, log, made, LARGE)
            sizes.append((await store.reclaim()).size)
        assert max(sizes) < 2.1 * fresh.size, "as much again, once"
        await replace(store, log, made, 10)
        emptied = await store.reclaim()
        assert emptied.size < fresh.size / 2 and emptied.used == 0


@asyncio_test
async def test_a_file_shrinks_to_what_a_cleaned_log_takes(
    postgres: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a burst: every entry overwritten three times before the cleaner comes."""
    monkeypatch.setattr(reclaimer, "RECLAIM_BYTES_MIN", MIB // 2)
    database = await postgres.server.database("migrated")
    async with PostgresPlace(postgres.server, database, False).opened() as store:
        log = await make_log(store)
        for version in range(1, 5):
            for first in range(0, 20_000, 1_000):
                await log.append([record(entry, version) for entry in range(first, first + 1_000)])
            if version == 1:
                fresh = await store.reclaim()
        looked = await Cleaner(store).look(lambda dirty: True)
        left = await store.reclaim()
        assert looked.records == 3 * 20_000
        assert left.size < 1.5 * fresh.size
        assert await log.left() == log.winners()


@asyncio_test
async def test_what_keeps_it_from_reclaiming_is_said_and_not_waited_for(
    postgres: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    async with postgres.opened() as store, postgres.direct() as other:
        with caplog.at_level(logging.INFO, "sealwire.store"):
            async with other.transaction():
                # As another VACUUM of it does.
                await other.execute("LOCK TABLE sealwire.segment IN SHARE UPDATE EXCLUSIVE MODE")
                await store.reclaim()
            assert "lock not available" in caplog.text
            await other.execute("CREATE ROLE guest LOGIN")
            try:
                await other.execute(
                    "GRANT USAGE ON SCHEMA sealwire TO guest; GRANT SELECT ON sealwire.segment TO guest"
                )
                await vacuum(postgres.server.dsn(postgres.database).replace("//postgres@", "//guest@"))
            finally:
                await other.execute("DROP OWNED BY guest; DROP ROLE guest")
            assert "vacuum it" in caplog.text or "permission denied to vacuum" in caplog.text


@asyncio_test
async def test_a_cancelled_vacuum_leaves_no_connection_behind(postgres: PostgresPlace) -> None:
    async with postgres.direct() as other:
        async with other.transaction():
            await other.execute("LOCK TABLE sealwire.segment IN ACCESS EXCLUSIVE MODE")
            # It waits for the lock as it counts what is in use.
            task = asyncio.create_task(vacuum(postgres.server.dsn(postgres.database)))
            await postgres.somebody_waits()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(100):
            while await other.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'sealwire-relay vacuum'"
            ):
                pass


@asyncio_test
async def test_a_cleaner_that_is_stopped_in_a_swap_holds_nobody_up_for_ever(
    postgres: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last statement is made, and holds the head's lock; its commit does not come."""
    monkeypatch.setitem(connections.SESSION, "idle_in_transaction_session_timeout", "300ms")
    reached, go_on = asyncio.Event(), asyncio.Event()
    commit = asyncpg.transaction.Transaction.commit

    async def late(transaction: object) -> None:
        reached.set()
        await go_on.wait()
        await commit(transaction)

    async with postgres.opened() as store, postgres.opened() as relay:
        assert isinstance(store, PostgresStore)
        log, made = await large_log(store, 2)
        term = await store.current_term()
        monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", late)
        swap = asyncio.create_task(store.swap(log.vault.id, log.vault.stream, made[:1], made[0], 2, term))
        await reached.wait()
        new = stream_write(log.vault.stream, 2, b"z")
        assert await relay.append([write(log.vault, term, [new])]) == [True]
        go_on.set()
        with pytest.raises(OutcomeUnknownError):
            await swap
        monkeypatch.undo()
        page = await store.read(log.vault.id, log.vault.stream, 0, MIB)
        assert page is not None and (page.cleaned_to, page.head) == (0, 3)
        assert await store.swap(log.vault.id, log.vault.stream, made[:1], made[0], 2, term)


@asyncio_test
async def test_a_database_that_is_not_there_is_told() -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        await vacuum("postgresql://nobody@/nothing?host=/nonexistent")
