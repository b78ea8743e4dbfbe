"""Migrations on a real Postgres: twice, at once, too old, too new."""

import asyncio

import asyncpg  # type: ignore[import-untyped]
import pytest

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import KeyId, StreamId, Tag, VaultId
from sealwire_relay.store import migrate as module
from sealwire_relay.store.cleaning import Dirty
from sealwire_relay.store.interface import SchemaError, StoreError, VaultState
from sealwire_relay.store.migrate import MIGRATIONS, Migration, Phase, latest, migrate
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.rows import signed
from tests.relay.store.places import (
    ADMIN,
    MEMBERS,
    WRITER,
    PostgresPlace,
    Vault,
    batch_write,
    name,
    segments,
    stream_write,
    whole,
    write,
)
from tests.support.aio import asyncio_test


async def _empty(place: PostgresPlace) -> str:
    return place.server.dsn(await place.server.database())


async def _run(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(sql)
    await connection.close()


@asyncio_test
async def test_migrating_twice_changes_nothing_the_second_time(postgres: PostgresPlace) -> None:
    dsn, lines = await _empty(postgres), list[str]()
    await migrate(dsn, lines.append, Phase.PRE)
    assert len(lines) == sum(m.phase is Phase.PRE for m in MIGRATIONS)
    await migrate(dsn, lines.append, Phase.PRE)
    await migrate(dsn, lines.append, Phase.POST)
    await migrate(dsn, lines.append, Phase.POST)
    assert len(lines) == len(MIGRATIONS)
    store = PostgresStore(dsn)
    await store.open()
    await store.close()


@asyncio_test
async def test_many_may_migrate_at_once(postgres: PostgresPlace) -> None:
    dsn, lines = await _empty(postgres), list[str]()
    await asyncio.gather(*[migrate(dsn, lines.append, Phase.PRE) for _ in range(6)])
    assert len(lines) == sum(m.phase is Phase.PRE for m in MIGRATIONS)


@asyncio_test
async def test_a_database_without_the_schema_is_refused(postgres: PostgresPlace) -> None:
    dsn = await _empty(postgres)
    with pytest.raises(SchemaError, match="run `sealwire-relay migrate`"):
        await PostgresStore(dsn).open()
    with pytest.raises(SchemaError, match="before the new relay runs"):
        await migrate(dsn, print, Phase.POST)


@asyncio_test
async def test_an_older_relay_works_on_what_only_adds_and_on_nothing_else(postgres: PostgresPlace) -> None:
    dsn, lines = await _empty(postgres), list[str]()
    await migrate(dsn, lambda line: None, Phase.PRE)
    await _run(dsn, "UPDATE sealwire.relay SET migrated_pre = migrated_pre + 1")
    store = PostgresStore(dsn)
    await store.open()
    await store.close()
    for phase in Phase:  # as it does when it is started again
        await migrate(dsn, lines.append, phase)
    assert lines == []
    await _run(dsn, f"UPDATE sealwire.relay SET migrated_post = {latest(Phase.POST) + 1}")
    with pytest.raises(SchemaError, match="newer relay"):
        await PostgresStore(dsn).open()
    for phase in Phase:
        with pytest.raises(SchemaError, match="newer relay"):
            await migrate(dsn, print, phase)


def test_migrations_are_numbered_one_after_the_other() -> None:
    """Of two with one number, made side by side, a database would carry out one."""
    assert [migration.number for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


@asyncio_test
async def test_a_database_of_the_first_schema_is_migrated_with_what_is_in_it(postgres: PostgresPlace) -> None:
    dsn, lines = await _empty(postgres), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", MIGRATIONS[:1])
        await migrate(dsn, lambda line: None, Phase.PRE)
    with pytest.raises(SchemaError, match="run `sealwire-relay migrate`"):
        await PostgresStore(dsn).open()
    vault = Vault(VaultId(name(16)), MEMBERS[ADMIN].device, MEMBERS[WRITER].device, StreamId(name(8)))
    await _fill_first_schema(dsn, vault)
    await migrate(dsn, lines.append, Phase.PRE)
    assert lines[0] == "database migrated: 0002 guard (pre)"
    store = PostgresStore(dsn)
    await store.open()
    term = await store.current_term()
    assert await whole(store, vault, vault.stream) == list(segments(0, b"ab"))
    wanted = (vault.id, vault.stream, Tag(name(16)))
    assert await store.guards([wanted]) == {}
    held = Current(3, b"\xf0" * 8, False, 3)
    new = stream_write(vault.stream, 2, b"c")._replace(guards=((wanted[2], held),))
    as_filled = VaultState(1, KeyId(b"\0\0\0\x05"))
    assert await store.append([write(vault, term, [new], [batch_write(2)], state=as_filled)]) == [True]
    assert await store.guards([wanted]) == {wanted: held}
    [tail] = await store.dirty(None, 0, 10)
    assert tail == Dirty(vault.id, vault.stream, 3, 0, 3, 3, 2, term)
    await store.close()


async def _fill_first_schema(dsn: str, vault: Vault) -> None:
    """One vault with one stream, two records and a verdict, as the first relay stored them."""
    await _run(
        dsn,
        f"""
        UPDATE sealwire.relay SET term = 1, term_id = 11;
        INSERT INTO sealwire.stream VALUES
            ('{vault.id.hex()}', 0, 1, 0, 0, 0, 0, 0, 1, 11, 5, 1, 3, '{{1, 11, 0}}'),
            ('{vault.id.hex()}', {signed(vault.stream)}, 2, 4, 0, 0, 0, 0, 1, 11, 5, 1, 2, '{{1, 11, 0}}');
        INSERT INTO sealwire.segment VALUES ('{vault.id.hex()}', {signed(vault.stream)}, 2, 0, 'ab');
        INSERT INTO sealwire.member VALUES ('{vault.id.hex()}', 1, 1, 1, x'{vault.admin.hex()}', 3);
        INSERT INTO sealwire.outcome VALUES ('{vault.id.hex()}', 1, 1, 1, 'digest', 'answer');
        """,
    )


@asyncio_test
async def test_a_migration_that_fails_leaves_nothing_behind(postgres: PostgresPlace) -> None:
    dsn = await _empty(postgres)
    await migrate(dsn, lambda line: None, Phase.PRE)
    number = latest(Phase.PRE) + 1
    steps = (
        Migration(number, "fine", Phase.PRE, "CREATE TABLE sealwire.fine (vault_id uuid PRIMARY KEY)"),
        Migration(number + 1, "bad", Phase.PRE, "CREATE TABLE sealwire.half (vault_id uuid); SELECT 1 / 0"),
    )
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", (*MIGRATIONS, *steps))
        with pytest.raises(StoreError, match="division by zero"):
            await migrate(dsn, lines.append, Phase.PRE)
        assert lines == [f"database migrated: {number:04} fine (pre)"]
        patch.setattr(module, "MIGRATIONS", (*MIGRATIONS, steps[0], steps[1]._replace(sql="SELECT 1")))
        await migrate(dsn, lines.append, Phase.PRE)
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT to_regclass('sealwire.half')") is None
    assert await connection.fetchval("SELECT to_regclass('sealwire.fine')") is not None
    await connection.close()
