"""Room in the database's files: VACUUM, which lets what was deleted be written over."""

import logging
from typing import Final

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.store.cleaning import Room
from sealwire_relay.store.connections import CONNECT_SECONDS_MAX, Connection
from sealwire_relay.store.failures import translated
from sealwire_relay.store.queries import QUERIES

VACUUM_SECONDS_MAX: Final = 3_600.0
"""For one VACUUM: it reads whole indexes of what may be a large table, and must end some day."""

PACE_MS: Final = 2
"""It rests so long for every ten pages that it writes, some 40 MB/s, as Postgres' own vacuuming does."""

SAMPLE_PAGES: Final = 2_048
"""Pages of rows that are looked at to tell how much room is in use: 16 MB, some 140,000 rows of large segments."""

SESSION: Final = {
    "application_name": "sealwire-relay vacuum",
    "statement_timeout": "0",  # the server's owner may have set one for short statements
    "vacuum_cost_delay": str(PACE_MS),
}

_log = logging.getLogger("sealwire.store")


async def vacuum(dsn: str) -> Room:
    """See Store.reclaim. Raises StoreError."""
    with translated():
        connection = await asyncpg.connect(
            dsn, timeout=CONNECT_SECONDS_MAX, command_timeout=VACUUM_SECONDS_MAX, server_settings=SESSION
        )
        connection.add_log_listener(say)
        try:
            await connection.execute(QUERIES["vacuum"])
            room = await _room(connection)
        except BaseException:
            connection.terminate()
            raise
        await connection.close()
        return room


async def _room(connection: Connection) -> Room:
    row = await connection.fetchrow(QUERIES["room"])
    if row is None or not row["size"]:
        return Room(0, 0)
    percent = 100.0 * min(1.0, SAMPLE_PAGES / max(1, row["pages"]))
    return Room(row["size"], await connection.fetchval(QUERIES["used_room"], percent))


def say(_: Connection, message: asyncpg.PostgresLogMessage) -> None:
    """Log what kept a VACUUM from its work: another one that is at it, or a right that the user does not have."""
    _log.info("vacuuming: %s", message.message)
