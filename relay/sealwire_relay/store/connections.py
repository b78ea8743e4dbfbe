"""Connections to Postgres: what each must be before the store uses it, and how it is told that the server changed."""

import logging
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sealwire_protocol.ids import Term
from sealwire_relay.store.interface import StoreError
from sealwire_relay.store.queries import QUERIES
from sealwire_relay.store.rows import from_bits, to_bits

CONNECT_SECONDS_MAX: Final = 10.0
"""To connect and log in: a server that takes longer is overloaded or out of reach, and waiting would pile up work."""

COMMAND_SECONDS_MAX: Final = 30.0
"""For one statement: far above any lock wait or disk stall that heals itself, far below a person's patience."""

ACQUIRE_SECONDS_MAX: Final = 10.0
"""To wait for a free connection of a pool: beyond it callers are better told that the database is too busy."""

STATEMENTS_CACHED: Final = 64
"""Prepared statements kept by a connection: more than there are queries, so each is prepared once."""

SESSION: Final = {
    "application_name": "sealwire-relay",
    "synchronous_commit": "on",  # an ack means durable
    "plan_cache_mode": "force_generic_plan",  # plan each statement once, not at every call
    "enable_seqscan": "off",  # plans made while a table is small must go by key too, for they are kept
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",  # every statement is short; compiling it would take longer than running it
    "idle_in_transaction_session_timeout": "5s",  # a cleaner that is stopped in a swap does not hold a head for ever
    "work_mem": "32MB",  # the bodies of one group commit pass through a function scan; keep them off the disk
}
"""Session settings of every connection."""

_log = logging.getLogger("sealwire.store")

Connection = Any
"""An asyncpg connection; the library comes without types."""

Pool = Any
"""An asyncpg pool."""


class ServerIdentity(NamedTuple):
    """Another one means that history may have changed (R7): restarted, restored or failed over."""

    system_identifier: int
    started: datetime
    timeline: int


class TermRow(NamedTuple):
    """The row of the current term as it was read, and the transaction that wrote it."""

    term: Term
    written: int


class Server:
    """The server as connections have found it. `changed` stays True until `settle`, called when a term was opened."""

    __slots__ = ("_on_change", "changed", "identity", "row")

    def __init__(self, on_change: Callable[[], None] | None) -> None:
        self.identity: ServerIdentity | None = None
        self.row: TermRow | None = None
        self.changed = False
        self._on_change = on_change

    async def greet(self, connection: Connection) -> None:
        """Set a new connection up, and compare its server with the one known. Nothing uses it before that."""
        for name in ("uuid", "bit"):
            encoder, decoder = (_same, _same) if name == "uuid" else (to_bits, from_bits)
            await connection.set_type_codec(
                name, schema="pg_catalog", format="binary", encoder=encoder, decoder=decoder
            )
        row = await connection.fetchrow(QUERIES["server_identity"])
        if row["synchronous_commit"] != "on":
            raise StoreError(
                f"The database runs this relay with synchronous_commit = {row['synchronous_commit']}, so that a commit "
                "could be lost: remove what sets it for the relay's user or database."
            )
        self._compare(ServerIdentity(row["system_identifier"], row["started"], row["timeline"]))

    def _compare(self, found: ServerIdentity) -> None:
        known, self.identity = self.identity, found
        if known is not None and known != found:
            self._change()

    def compare_row(self, known: TermRow | None, found: TermRow) -> None:
        """Take in the term's row as it was found by a query that began when `known` was what was known of it.

        A dump restored in place leaves the server what it is, and may bring back the very term. But it writes the row
        anew, and so does nobody else without opening a higher term (or migrating, where another term does no harm).
        """
        if self.row is not known:
            return  # it was read or written again meanwhile, by somebody who knows better
        self.row = found
        if known is not None and known.written != found.written and found.term.number <= known.term.number:
            _log.warning(
                "the database was restored in place: term %d is there, and %d was; the next one begins",
                found.term.number,
                known.term.number,
            )
            self._change()

    def written(self, terms: Collection[Term]) -> int | None:
        """The transaction that the term's row must come from for a write under `terms`; None if it is not known."""
        return self.row.written if self.row is not None and set(terms) == {self.row.term} else None

    def settle(self, row: TermRow) -> None:
        """A term was opened on the server as it is now."""
        self.row = row
        self.changed = False

    def _change(self) -> None:
        self.changed = True
        if self._on_change is not None:
            self._on_change()


def _same(data: bytes) -> bytes:
    return data


async def _leave(_: Connection) -> None:
    """Nothing to reset between two uses: who begins a transaction ends it, or the connection. Saves a round trip."""


async def connect_pool(dsn: str, server: Server, size: int) -> Pool:
    """A pool of at most `size` connections, the first of which is made now. Raises what asyncpg raises.

    Connections stay until they break, and are made again when wanted, not in the background: the store's callers
    decide when to try a database again that is down, and say so.
    """
    pool = await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        max_inactive_connection_lifetime=0,
        init=server.greet,
        reset=_leave,
        timeout=CONNECT_SECONDS_MAX,
        command_timeout=COMMAND_SECONDS_MAX,
        statement_cache_size=STATEMENTS_CACHED,
        max_cached_statement_lifetime=0,
        max_cacheable_statement_size=0,
        server_settings=SESSION,
    )
    async with pool.acquire(timeout=CONNECT_SECONDS_MAX):
        return pool
