"""What a log takes up in a Postgres of a proof's own, and which figures were promised."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.embedded import EmbeddedPostgres
from sealwire_relay.store.migrate import Phase, migrate
from sealwire_relay.store.postgres import PostgresStore
from tests.acceptance.filling import Log

STATEMENT_S_MAX: Final = 120.0


class Bound(NamedTuple):
    """A figure that was promised. One that is not sharp fails nothing: it depends on the machine, or on Postgres."""

    name: str
    value: float
    most: float
    sharp: bool = True


@dataclass(frozen=True)
class Sizes:
    """What a log takes, in bytes: its bodies, the table with all that belongs to it, all tables of the schema."""

    live: int
    table: int
    schema: int


class Place:
    """A database with an open store, and what it says of its sizes."""

    def __init__(self, address: str, store: PostgresStore, connection: Any) -> None:
        self.address, self.store, self._connection = address, store, connection

    async def tidy(self, how: str) -> None:
        """VACUUM or CHECKPOINT."""
        await self._connection.execute(how, timeout=STATEMENT_S_MAX)

    async def sizes(self, log: Log) -> Sizes:
        """Now."""
        return Sizes(
            *await self._connection.fetchrow(
                "SELECT (SELECT sum(octet_length(body))::bigint FROM sealwire.segment"
                "        WHERE vault_id = $1 AND stream <> 0),"
                " pg_total_relation_size('sealwire.segment'),"
                " (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
                "  WHERE relkind = 'r' AND relnamespace = 'sealwire'::regnamespace)",
                UUID(bytes=log.vault),
                timeout=STATEMENT_S_MAX,
            )
        )


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[Place]:
    """A database with the relay's schema."""
    await migrate(address, lambda line: None, Phase.PRE)
    connection = await asyncpg.connect(address)
    store = PostgresStore(address)
    try:
        await store.open()
        await store.open_term()
        yield Place(address, store, connection)
    finally:
        await store.close()
        await connection.close()


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[str]:
    """The address of a Postgres of our own."""
    postgres = EmbeddedPostgres(folder)
    try:
        yield await postgres.start()
    finally:
        await postgres.stop()


def told(right: bool, bounds: list[Bound], figures: dict[str, object]) -> dict[str, object]:
    """What a proof tells: whether all is as it must be, what was promised and missed, and the figures."""
    missed = [bound for bound in bounds if bound.value > bound.most]
    return {
        "ok": right and not any(bound.sharp for bound in missed),
        "missed": [f"{bound.name}: {bound.value:,.2f}, {bound.most:,} at most" for bound in missed],
        "ratios": {bound.name: round(bound.value, 3) for bound in bounds},
        **figures,
    }
