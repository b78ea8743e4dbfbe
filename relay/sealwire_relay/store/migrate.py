"""The schema's migrations: `NNNN_name.pre.sql` before a new relay runs, `NNNN_name.post.sql` after all old ones left.

A pre migration only adds, so relays of the version before go on working on its result, and may be started again. A
post migration takes away what only they needed.
"""

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.store.connections import CONNECT_SECONDS_MAX, Connection
from sealwire_relay.store.failures import translated
from sealwire_relay.store.interface import SchemaError
from sealwire_relay.store.queries import SQL

MIGRATION_SECONDS_MAX: Final = 3_600.0
"""For one migration: it may have to rewrite a large table, and must end some day if it hangs on a forgotten lock."""

FIRST_ATTEMPTS_MAX: Final = 5
"""Attempts at the very first migration: who finds that another process is making the schema waits for it anew."""

_FILE: Final = re.compile(r"(\d{4})_(\w+)\.(pre|post)\.sql")


class Phase(Enum):
    """When a migration runs: before the new relay, or after the last old one."""

    PRE = "pre"
    POST = "post"


class Migration(NamedTuple):
    """One file."""

    number: int
    name: str
    phase: Phase
    sql: str


def _read_migrations() -> tuple[Migration, ...]:
    found = []
    for path in (SQL / "migrations").iterdir():
        if match := _FILE.fullmatch(path.name):
            number, name, phase = match.groups()
            found.append(Migration(int(number), name, Phase(phase), path.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.number))


MIGRATIONS: Final = _read_migrations()


def latest(phase: Phase) -> int:
    """The number of the last migration of a phase that this relay knows; 0 if there is none."""
    return max((m.number for m in MIGRATIONS if m.phase is phase), default=0)


def check_schema(row: Mapping[str, int] | None) -> None:
    """Raise SchemaError unless a relay of this version can work with a database migrated so far."""
    if row is None or row["migrated_pre"] < latest(Phase.PRE):
        raise SchemaError("The database's schema is older than this relay needs: run `sealwire-relay migrate` first.")
    if row["migrated_post"] > latest(Phase.POST):
        raise _newer("runs")


def _newer(what: str) -> SchemaError:
    return SchemaError(
        f"The database's schema was made by a newer relay than the one that {what} here: install that version or a "
        "later one."
    )


async def migrate(dsn: str, report: Callable[[str], None], phase: Phase) -> None:
    """Apply what is missing of a phase, in order, each in a transaction. Does nothing when nothing is missing.

    Safe when several processes do it at once. `report` gets one line for each migration applied. What a newer relay
    has added is no hindrance, so that this one may be started again beside it. Raises SchemaError if a newer one has
    taken away what this one needs, or if POST comes before PRE is done; StoreDownError and its kin if the database
    fails. Cancelled, it leaves whole migrations behind.
    """
    with translated():
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_SECONDS_MAX,
            command_timeout=MIGRATION_SECONDS_MAX,
            server_settings={"application_name": "sealwire-relay migrate"},
        )
        try:
            attempts = 0
            while True:
                try:
                    done = await _next(connection, phase)
                except (asyncpg.UniqueViolationError, asyncpg.DuplicateSchemaError, asyncpg.DuplicateTableError):
                    # Two first migrations at once: the other one is done now, so there is a row to lock.
                    attempts += 1
                    if attempts == FIRST_ATTEMPTS_MAX:
                        raise
                    continue
                if done is None:
                    return
                report(f"database migrated: {done.number:04} {done.name} ({done.phase.value})")
        finally:
            await connection.close()


async def _next(connection: Connection, phase: Phase) -> Migration | None:
    """Apply the next migration of a phase, if there is one."""
    async with connection.transaction():
        state = await _lock(connection)
        if state[Phase.POST] > latest(Phase.POST):
            raise _newer("migrates")
        if phase is Phase.POST and state[Phase.PRE] < latest(Phase.PRE):
            raise SchemaError(
                "The database lacks migrations that come before the new relay runs: run `sealwire-relay migrate` first."
            )
        missing = [m for m in MIGRATIONS if m.phase is phase and m.number > state[phase]]
        if not missing:
            return None
        migration = missing[0]
        await _apply(connection, migration)
        return migration


async def apply_between(connection: Connection, phase: Phase, after: int, upto: int) -> None:
    """Apply the migrations of a phase that come after one and not after another, in the caller's transaction."""
    for migration in MIGRATIONS:
        if migration.phase is phase and after < migration.number <= upto:
            await _apply(connection, migration)


async def _apply(connection: Connection, migration: Migration) -> None:
    await connection.execute(migration.sql)
    await connection.execute(f"UPDATE sealwire.relay SET migrated_{migration.phase.value} = $1", migration.number)


async def _lock(connection: Connection) -> dict[Phase, int]:
    """How far each phase is. Until the transaction ends nobody else migrates, nor opens a term."""
    if await connection.fetchval("SELECT to_regclass('sealwire.relay')") is None:
        return dict.fromkeys(Phase, 0)
    await connection.execute("LOCK TABLE sealwire.relay IN EXCLUSIVE MODE")
    row = await connection.fetchrow("SELECT migrated_pre, migrated_post FROM sealwire.relay")
    return {Phase.PRE: row["migrated_pre"], Phase.POST: row["migrated_post"]}
