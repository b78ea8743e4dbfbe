"""The pools of connections that the store on Postgres runs its queries on."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg  # type: ignore[import-untyped]

from sealwire_protocol.ids import Term
from sealwire_relay.store.connections import ACQUIRE_SECONDS_MAX, Connection, Pool, Server, ServerIdentity, connect_pool
from sealwire_relay.store.failures import translated, translated_commit
from sealwire_relay.store.interface import StoreDownError
from sealwire_relay.store.migrate import check_schema
from sealwire_relay.store.queries import QUERIES
from sealwire_relay.store.rows import Row


class Pools:
    """A store's access to its database, on which its parts stand. See PostgresStore for `on_other_server`."""

    def __init__(
        self, dsn: str, append_connections: int, other_connections: int, on_other_server: Callable[[], None] | None
    ) -> None:
        self._dsn = dsn
        self._sizes = append_connections, other_connections
        self._server = Server(on_other_server)
        self._appenders: Pool | None = None
        self._others: Pool | None = None

    @property
    def server_changed(self) -> bool:
        """Another server was found, and no term was opened since."""
        return self._server.changed

    @property
    def server_identity(self) -> ServerIdentity | None:
        """The server that the latest connection found."""
        return self._server.identity

    async def open(self) -> None:
        """Connect and check the schema. Leaves no connection behind if that fails."""
        appenders, others = self._sizes
        try:
            with translated():
                self._others = await connect_pool(self._dsn, self._server, others)
                self._appenders = await connect_pool(self._dsn, self._server, appenders)
                check_schema(await self._others.fetchrow(QUERIES["schema_state"]))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Give up all connections."""
        pools = [pool for pool in (self._appenders, self._others) if pool is not None]
        self._appenders = self._others = None
        for pool in pools:
            pool.terminate()

    @asynccontextmanager
    async def _connection(self, pool: Pool | None) -> AsyncIterator[Connection]:
        if pool is None:
            raise StoreDownError("The store is closed; nothing was done: open it first.")
        with translated():
            async with pool.acquire(timeout=ACQUIRE_SECONDS_MAX) as connection:
                yield connection

    async def _rows(self, query: str, *arguments: object) -> list[Row]:
        async with self._connection(self._others) as connection:
            rows: list[Row] = await connection.fetch(QUERIES[query], *arguments)
            return rows

    async def _found(self, query: str, *arguments: object) -> bool:
        return bool(await self._rows(query, *arguments))

    async def _under_term(self, query: str, term: Term, *arguments: object) -> list[Row]:
        """Run a write that names its term, on a connection that was made to the server the term was opened on."""
        async with self._connection(self._others) as connection:
            if self._server.changed:
                return []
            rows: list[Row] = await connection.fetch(QUERIES[query], *arguments, self._server.written({term}))
            return rows

    async def _all_or_nothing(self, work: Callable[[Connection], Awaitable[bool]]) -> bool:
        """Do this in one transaction, which is undone if it returns False. A connection that was interrupted is given
        up with what it did."""
        async with self._connection(self._others) as connection:
            transaction = connection.transaction()
            try:
                await transaction.start()
                if not await work(connection):
                    await transaction.rollback()
                    return False
                with translated_commit():
                    await transaction.commit()
            except BaseException:
                with suppress(asyncpg.InterfaceError):  # a connection that was lost cannot be given up again
                    connection.terminate()
                raise
        return True
