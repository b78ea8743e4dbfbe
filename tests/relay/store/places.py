"""Where a store keeps its data in a test: memory or one of the Postgres servers. And what tests write there."""

import asyncio
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sealwire_protocol.ids import Author, DeviceKey, KeyId, StreamId, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.interface import (
    BatchWrite,
    KeptOutcome,
    MemberState,
    NewLink,
    Store,
    StreamWrite,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.memory import MemoryStore
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.segments import StoredSegment
from tests.support.postgres import Server

_numbers = itertools.count(1)

WAITING = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
"""The connections to a database that wait for a lock."""


def name(size: int) -> bytes:
    """Another name at every call; the high bit is set, where a signed column would go wrong."""
    return b"\xf0" + next(_numbers).to_bytes(size - 1, "big")


class Place(ABC):
    """One database on which stores can be opened."""

    @abstractmethod
    def store(self) -> Store:
        """A store on it, not open yet."""

    @abstractmethod
    async def back_up(self) -> None:
        """Keep what is there now. No store may be open."""

    @abstractmethod
    async def restore(self) -> None:
        """Go back to what was kept. No store may be open."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """An open store on it."""
        store = self.store()
        await store.open()
        try:
            yield store
        finally:
            await store.close()


class MemoryPlace(Place):
    def __init__(self) -> None:
        self._database = self._backup = MemoryDatabase()
        self._bytes = _counted()

    def store(self) -> Store:
        return MemoryStore(random_bytes=self._bytes, clock=lambda: 1_000.0, database=self._database)

    async def back_up(self) -> None:
        self._backup = self._database.copy()

    async def restore(self) -> None:
        self._database = self._backup.copy()


class PostgresPlace(Place):
    def __init__(self, server: Server, database: str, one_vault_per_statement: bool) -> None:
        self.server, self.database = server, database
        self.one_vault_per_statement = one_vault_per_statement
        self._backup = database

    def store(self) -> PostgresStore:
        return PostgresStore(self.server.dsn(self.database), one_vault_per_statement=self.one_vault_per_statement)

    async def back_up(self) -> None:
        self._backup = await self.server.database(self.database)

    async def restore(self) -> None:
        self.database = await self.server.database(self._backup)

    @contextlib.asynccontextmanager
    async def direct(self) -> AsyncIterator[Any]:
        """A connection past the store."""
        connection = await asyncpg.connect(self.server.dsn(self.database))
        try:
            yield connection
        finally:
            await connection.close()

    async def somebody_waits(self, number: int = 1) -> None:
        """Return once so many statements wait for locks."""
        async with self.direct() as connection, asyncio.timeout(100):
            while await connection.fetchval(f"SELECT count(*) {WAITING}") < number:
                pass


def _counted() -> Callable[[int], bytes]:
    numbers: Iterator[int] = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


class Vault(NamedTuple):
    """A vault made for a test: an admin and a writer, and one open stream."""

    id: VaultId
    admin: DeviceKey
    writer: DeviceKey
    stream: StreamId


EPOCH = 7
STATE = VaultState(EPOCH, KeyId(b"\xff\x01\x02\x03"))
ADMIN, WRITER = Author(1), Author(2)
MEMBERS = {
    ADMIN: MemberState(ADMIN, DeviceKey(name(32)), Role.ADMIN),
    WRITER: MemberState(WRITER, DeviceKey(name(32)), Role.WRITER),
}
"""The members of every vault that is made: a device may be in many."""


async def make_vault(store: Store, term: Term) -> Vault:
    """Genesis, a second member and a stream."""
    made = Vault(VaultId(name(16)), MEMBERS[ADMIN].device, MEMBERS[WRITER].device, StreamId(name(8)))
    first = NewLink(1, b"genesis", MEMBERS[ADMIN])
    assert await store.create_vault(made.id, STATE, first, term)
    second = NewLink(2, b"second", MEMBERS[WRITER])
    assert await store.append_link(made.id, second, term)
    assert await store.create_stream(made.id, made.stream, StreamKind.OPEN) is StreamKind.OPEN
    return made


def segments(head: int, *bodies: bytes) -> tuple[StoredSegment, ...]:
    """Segments that tile from `head` on; each body has as many records as it has bytes."""
    made = []
    for body in bodies:
        made.append(StoredSegment(head, head + len(body), body))
        head += len(body)
    return tuple(made)


def stream_write(stream: StreamId, head: int, *bodies: bytes, top: int = 0) -> StreamWrite:
    """Bodies appended to a stream at a head."""
    new = segments(head, *bodies)
    return StreamWrite(stream, head, new[-1].last, top, new)


def batch_write(number: int, after: int | None = None, member: MemberState = MEMBERS[ADMIN]) -> BatchWrite:
    """A verdict on a batch that follows another."""
    outcome = KeptOutcome(number, b"digest of %d" % number, b"answer to %d" % number)
    return BatchWrite(member, number - 1 if after is None else after, outcome)


def write(
    vault: Vault,
    term: Term,
    streams: Sequence[StreamWrite],
    batches: Sequence[BatchWrite] = (),
    state: VaultState = STATE,
) -> VaultWrite:
    """What a group commit writes to one vault, as decided on this state of it."""
    return VaultWrite(vault.id, term, state.key, tuple(streams), tuple(batches))


async def whole(store: Store, vault: Vault, stream: StreamId) -> list[StoredSegment]:
    """All segments of a stream, page by page."""
    found: list[StoredSegment] = []
    while True:
        page = await store.read(vault.id, stream, found[-1].last if found else 0, 64)
        assert page is not None
        if not page.segments:
            return found
        found.extend(page.segments)
