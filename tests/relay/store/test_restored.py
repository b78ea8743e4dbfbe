"""R7 where a dump is restored in place: same server, same start, same table names, and perhaps the very same term."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sealwire_protocol.ids import TermStart, VaultId
from sealwire_relay import serve
from sealwire_relay.database import GivenDatabase
from sealwire_relay.settings import Secret, Settings
from sealwire_relay.store.interface import NewLink, SchemaError
from sealwire_relay.store.migrate import MIGRATIONS
from sealwire_relay.store.postgres import PostgresStore
from tests.relay.store.conftest import MIGRATED
from tests.relay.store.places import STATE, PostgresPlace, make_vault, name, stream_write, whole, write
from tests.support.aio import asyncio_test

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'sealwire'"


async def keep(connection: Any) -> None:
    """Keep all tables as they are, as pg_dump does."""
    await connection.execute("CREATE SCHEMA kept")
    for row in await connection.fetch(TABLES):
        await connection.execute(f"CREATE TABLE kept.{row[0]} AS TABLE sealwire.{row[0]}")


async def put_back_dropping(connection: Any) -> None:
    """Drop all that is there and make it anew from what was kept, as `pg_restore --clean --single-transaction`."""
    async with connection.transaction():
        await connection.execute("DROP SCHEMA sealwire CASCADE")
        for migration in MIGRATIONS:
            await connection.execute(migration.sql)
        await _fill(connection)


async def put_back_truncating(connection: Any) -> None:
    """The tables stay, and are filled anew, as by `pg_restore --data-only` after somebody has emptied them."""
    async with connection.transaction():
        for row in await connection.fetch(TABLES):
            await connection.execute(f"TRUNCATE sealwire.{row[0]}")
        await _fill(connection)


async def _fill(connection: Any) -> None:
    await connection.execute("DELETE FROM sealwire.relay")
    for row in await connection.fetch(TABLES):
        await connection.execute(f"INSERT INTO sealwire.{row[0]} SELECT * FROM kept.{row[0]}")


RESTORES = pytest.mark.parametrize("put_back", [put_back_dropping, put_back_truncating])


@contextlib.asynccontextmanager
async def opened(place: PostgresPlace, changes: list[str] | None = None) -> AsyncIterator[PostgresStore]:
    """An open store, which notes when it finds another history."""
    store = PostgresStore(
        place.server.dsn(place.database),
        one_vault_per_statement=place.one_vault_per_statement,
        on_other_server=lambda: (changes if changes is not None else []).append("changed"),
    )
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def _fresh(postgres: PostgresPlace) -> PostgresPlace:
    return PostgresPlace(postgres.server, await postgres.server.database(MIGRATED), postgres.one_vault_per_statement)


@RESTORES
@asyncio_test
async def test_nothing_is_written_under_a_term_that_a_restore_in_place_has_brought_back(
    postgres: PostgresPlace, put_back: Any
) -> None:
    """Else seqs 91 to 100 would stand for two things under one term, and devices could not tell."""
    place = await _fresh(postgres)
    async with opened(place) as store, place.direct() as direct:
        term = await store.open_term()
        vault = await make_vault(store, term)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"a" * 90)])]) == [True]
        await keep(direct)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 90, b"b" * 10)])]) == [True]
        await put_back(direct)
        new = [stream_write(vault.stream, 90, b"c" * 10)]
        assert await store.append([write(vault, term, new)]) == [False]
        assert not await store.create_vault(VaultId(name(16)), STATE, NewLink(1, b"genesis", None), term)
        assert not await store.append_link(vault.id, NewLink(3, b"third", None), term)
        assert await store.current_term() == term
        assert store.server_changed
        later = await store.open_term()
        assert (later.number, store.server_changed) == (term.number + 1, False)
        assert await store.append([write(vault, later, new)]) == [True]
        told = await store.subscription(vault.id, vault.admin, [vault.stream])
        assert told is not None
        assert told.streams[0].terms == (TermStart(term, 0), TermStart(later, 90))
        assert [segment.last for segment in await whole(store, vault, vault.stream)] == [90, 100]


@RESTORES
@asyncio_test
async def test_a_ping_finds_a_restore_in_place_once(postgres: PostgresPlace, put_back: Any) -> None:
    place = await _fresh(postgres)
    changes: list[str] = []
    async with opened(place, changes) as store, place.direct() as direct:
        await store.open_term()
        await keep(direct)
        await store.ping()
        assert changes == []
        await put_back(direct)
        await asyncio.gather(*[store.ping() for _ in range(3)])
        assert changes == ["changed"]
        await store.ping()
        await store.open_term()
        await store.ping()
        assert (changes, store.server_changed) == (["changed"], False)


async def put_back_bit_by_bit(connection: Any) -> None:
    """Not in one transaction, as `pg_restore --clean` does without being told to: all see what is there so far."""
    await connection.execute("DROP SCHEMA sealwire CASCADE")
    for migration in MIGRATIONS:
        await connection.execute(migration.sql)
    await _fill(connection)


@pytest.mark.parametrize("put_back", [put_back_dropping, put_back_truncating, put_back_bit_by_bit])
@asyncio_test
async def test_a_relay_that_runs_on_begins_the_next_term(
    postgres: PostgresPlace, put_back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "CHECK_SECONDS", 0.01)
    place = await _fresh(postgres)
    settings = Settings(
        port=0, control_port=0, clean_seconds=0, database_url=Secret(place.server.dsn(place.database)), pool_size=8
    )
    relay = serve.Relay(settings, GivenDatabase(settings))
    async with place.direct() as direct:
        try:
            await relay.start()
            tending = asyncio.create_task(relay.tend())
            await keep(direct)
            await put_back(direct)
            async with asyncio.timeout(100):
                while await direct.fetchval("SELECT term FROM sealwire.relay") != 2 or relay.reasons():
                    pass
            tending.cancel()
            await asyncio.wait({tending})
        finally:
            await relay.stop()


@asyncio_test
async def test_a_restore_that_has_not_brought_the_term_yet_is_told(postgres: PostgresPlace) -> None:
    place = await _fresh(postgres)
    async with opened(place) as store, place.direct() as direct:
        await store.open_term()
        await keep(direct)
        await direct.execute("DELETE FROM sealwire.relay")
        for ask in (store.ping, store.open_term):
            with pytest.raises(SchemaError, match="0 current terms in place of one: it is being restored"):
                await ask()
        await direct.execute("INSERT INTO sealwire.relay SELECT * FROM kept.relay")
        await store.ping()
        assert store.server_changed


@asyncio_test
async def test_a_term_that_another_relay_opens_is_no_other_history(postgres: PostgresPlace) -> None:
    place = await _fresh(postgres)
    changes: list[str] = []
    async with opened(place, changes) as one, opened(place) as two, place.direct() as direct:
        first = await one.open_term()
        vault = await make_vault(one, first)
        second = await two.open_term()
        await asyncio.gather(one.ping(), one.open_term(), one.ping(), two.open_term(), one.ping())
        await direct.execute("VACUUM (FULL, FREEZE) sealwire.relay")
        await one.ping()
        assert changes == []
        adopted = await one.current_term()
        assert adopted.number == second.number + 2
        assert await one.append([write(vault, adopted, [stream_write(vault.stream, 0, b"a")])]) == [True]
