"""Room in the database's files: VACUUM, which lets what was deleted be written over."""

import logging
from typing import Final

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.store.connections import CONNECT_SECONDS_MAX, Connection
from sealwire_relay.store.failures import translated
from sealwire_relay.store.interface import Room
from sealwire_relay.store.queries import QUERIES

VACUUM_SECONDS_MAX: Final = 3_600.0
"""For one VACUUM: it reads whole indexes of what may be a large table, and must end some day."""

PACE_MS: Final = 2
"""It rests so long for every ten pages that it writes, some 40 MB/s, as Postgres' own vacuuming does."""

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
        connection.add_log_listener(_say)
        try:
            await connection.execute(QUERIES["vacuum"])
            row = await connection.fetchrow(QUERIES["room"])
        except BaseException:
            connection.terminate()
            raise
        await connection.close()
        return Room(0, 0) if row is None else Room(row["size"], row["used"])


def _say(_: Connection, message: asyncpg.PostgresLogMessage) -> None:
    """What kept it from doing its work: another one that is at it, or a right that the user does not have."""
    _log.info("vacuuming: %s", message.message)
