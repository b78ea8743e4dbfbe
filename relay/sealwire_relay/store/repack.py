"""Tables written anew without the room that is free in them, while nobody uses them: VACUUM FULL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.store.backup import LOCK_SECONDS_MAX, InUseError, connected, refuse_relays
from sealwire_relay.store.connections import Connection
from sealwire_relay.store.queries import QUERIES
from sealwire_relay.store.room import say


class Repacked(NamedTuple):
    """A table that was written anew, and its bytes with indexes and large values before and now."""

    name: str
    bytes: int
    bytes_left: int


@asynccontextmanager
async def repacking(dsn: str) -> AsyncIterator["Repacking"]:
    """A connection for it. Raises StoreError, also for what fails within."""
    async with connected(dsn, "sealwire-relay compact") as connection:
        connection.add_log_listener(say)
        yield Repacking(connection)


class Repacking:
    """Writes tables anew, one at a time. What is cancelled or fails leaves the table at hand as it was."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def refuse_relays(self) -> None:
        """Raise InUseError while a relay or a cleaner is connected to the database."""
        await refuse_relays(self._connection)

    async def size(self) -> int:
        """Of all tables."""
        return sum((await self._sizes()).values())

    async def need(self) -> int:
        """Most bytes that are needed on the disk meanwhile: one copy at a time, and what Postgres keeps of its log.

        The log holds the copy once more, until Postgres has done with it: at some multiple of max_wal_size.
        """
        largest = max((await self._sizes()).values(), default=0)
        kept: int = await self._connection.fetchval(QUERIES["log_size"])
        return largest + min(largest, 2 * kept)

    async def each(self) -> AsyncIterator[Repacked]:
        """Write one table after the other anew, the smallest first, for each gives room to the next."""
        sizes = await self._sizes()
        for name in sorted(sizes, key=lambda name: sizes[name]):
            await self._repack(name)
            yield Repacked(name, sizes[name], (await self._sizes())[name])

    async def _repack(self, name: str) -> None:
        quoted = name.replace('"', '""')
        try:
            await self._connection.execute(f'VACUUM (FULL) sealwire."{quoted}"')
        except asyncpg.LockNotAvailableError as error:
            raise InUseError(
                f"Somebody else has used the table {name} for {LOCK_SECONDS_MAX} s; it is as it was: end what uses it, "
                "such as a psql with an open transaction, and run this again."
            ) from error

    async def _sizes(self) -> dict[str, int]:
        rows = await self._connection.fetch(QUERIES["sizes"])
        return {row["name"]: row["size"] for row in rows}
