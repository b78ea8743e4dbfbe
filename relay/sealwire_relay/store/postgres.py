"""The store on Postgres, through asyncpg. The SQL, and why it is right, is in `sql/`."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import (
    TERM_ID_BYTES,
    Author,
    DeviceKey,
    MailboxId,
    Position,
    StreamId,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import TERMS_TOLD_MAX
from sealwire_protocol.membership import Role, decode_links, encode_links
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_relay.store.connections import (
    ACQUIRE_SECONDS_MAX,
    Connection,
    Pool,
    Server,
    ServerIdentity,
    TermRow,
    connect_pool,
)
from sealwire_relay.store.failures import translated, translated_commit
from sealwire_relay.store.interface import (
    PAGE_SEGMENTS_MAX,
    AckedPosition,
    Dirty,
    GuardName,
    KeptOutcome,
    Mailbox,
    MailboxVerdict,
    Mark,
    MemberState,
    NewLink,
    OutcomeUnknownError,
    Page,
    Purge,
    PusherState,
    Reader,
    Room,
    SchemaError,
    Store,
    StoreDownError,
    StoredSegment,
    StoreError,
    Subscription,
    Tombstones,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.migrate import check_schema
from sealwire_relay.store.queries import QUERIES
from sealwire_relay.store.room import vacuum
from sealwire_relay.store.rows import (
    ack_arguments,
    check_acks,
    check_swap,
    check_writes,
    key_id_of,
    line_of,
    many_arguments,
    one_arguments,
    purge_arguments,
    salt_of,
    signed,
    stream_of,
    term_of,
)

Row = Mapping[str, Any]

APPEND_CONNECTIONS: Final = 4
"""Connections kept for appends alone, so that readers never make a commit wait. One group commit uses one."""

OTHER_CONNECTIONS: Final = 8
"""Connections for everything else: enough for two cores of Postgres, and cheap for it when idle."""


class PostgresStore(Store):
    """A store on any Postgres from 15 on. Needs the schema (`migrate`).

    `on_other_server` is called, on the event loop, when a new connection shows another server, start or timeline
    than the one before, or the term's row another history. From then until `open_term` nothing is written under a
    term: writes answer False.
    """

    def __init__(
        self,
        dsn: str,
        *,
        append_connections: int = APPEND_CONNECTIONS,
        other_connections: int = OTHER_CONNECTIONS,
        one_vault_per_statement: bool = False,
        on_other_server: Callable[[], None] | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._dsn = dsn
        self._sizes = append_connections, other_connections
        self._one_vault_per_statement = one_vault_per_statement
        self._random_bytes = random_bytes
        self._server = Server(on_other_server)
        self._appenders: Pool | None = None
        self._others: Pool | None = None
        self._appending: set[asyncio.Task[list[bool]]] = set()

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
        """Wait for appends under way, then give up all connections."""
        await asyncio.gather(*self._appending, return_exceptions=True)
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

    async def _under_term(self, query: str, term: Term, *arguments: object) -> bool:
        """Run a write that names its term, on a connection that was made to the server the term was opened on."""
        async with self._connection(self._others) as connection:
            if self._server.changed:
                return False
            return bool(await connection.fetch(QUERIES[query], *arguments, self._server.written({term})))

    async def ping(self) -> None:
        """One cheap round trip, which also shows whether the database was restored in place."""
        await self.current_term()

    # --- terms

    async def open_term(self) -> Term:
        """Begin the next term; what was written under an older one stays as it is."""
        async with self._connection(self._others) as connection:
            opened = _term_row(await connection.fetch(QUERIES["open_term"], signed(self._random_bytes(TERM_ID_BYTES))))
            self._server.settle(opened)
        return opened.term

    async def current_term(self) -> Term:
        """The present term, as the database has it."""
        known = self._server.row
        found = _term_row(await self._rows("current_term"))
        self._server.compare_row(known, found)
        return found.term

    # --- vaults and streams

    async def create_vault(self, vault: VaultId, state: VaultState, link: NewLink, term: Term) -> bool:
        """Register a vault with its genesis link."""
        return await self._under_term(
            "create_vault",
            term,
            vault,
            link.seq,
            signed(state.key_id),
            state.epoch,
            StreamKind.MEMBERSHIP,
            term.number,
            signed(term.id),
            encode_links([link.raw]),
            *_member_columns(link),
        )

    async def append_link(self, vault: VaultId, link: NewLink, term: Term) -> bool:
        """Append to stream 0."""
        place = vault, link.seq, term.number, signed(term.id)
        members = *_member_columns(link), link.replaced
        return await self._under_term("append_link", term, *place, encode_links([link.raw]), *members)

    async def links(self, vault: VaultId) -> tuple[bytes, ...]:
        """The whole membership log."""
        return tuple(raw for row in await self._rows("links", vault) for raw in decode_links(row["body"]))

    async def create_stream(self, vault: VaultId, stream: StreamId, kind: StreamKind) -> StreamKind:
        """Create an empty stream. A stream's kind never changes, so the one found first is the answer."""
        rows = await self._rows("stream_kind", vault, signed(stream))
        if not rows:
            rows = await self._rows("create_stream", vault, signed(stream), kind)
        return StreamKind(rows[0]["kind"]) if rows else StreamKind.ABSENT

    # --- reading

    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """One statement, so one snapshot."""
        wanted = [signed(stream) for stream in streams]
        rows = await self._rows("subscription", vault, device, wanted)
        if not rows:
            return None
        first = rows[0]
        return Subscription(
            term_of(first["term"], first["term_id"]),
            VaultState(first["epoch"], key_id_of(first["key_id"])),
            MemberState(Author(first["author"]), device, Role(first["role"])),
            first["last_batch"],
            tuple(_stream_state(stream, row) for stream, row in zip(streams, rows, strict=False)),
        )

    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """One statement, so one snapshot."""
        rows = await self._rows("read", vault, signed(stream), after, bytes_max, PAGE_SEGMENTS_MAX)
        if not rows:
            return None
        first = rows[0]
        segments = [StoredSegment(row["prev"], row["last"], row["body"]) for row in rows if row["last"] is not None]
        return Page(
            term_of(first["term"], first["term_id"]),
            first["head"],
            first["floor"],
            first["floor_head"],
            first["purged"],
            first["cleaned_to"],
            tuple(segments),
        )

    async def heads(self, names: Sequence[tuple[VaultId, StreamId]]) -> dict[tuple[VaultId, StreamId], int]:
        """One statement."""
        vaults, streams = [vault for vault, _ in names], [signed(stream) for _, stream in names]
        rows = await self._rows("heads", vaults, streams)
        return {names[row["place"] - 1]: row["head"] for row in rows}

    async def pusher(self, vault: VaultId, device: DeviceKey) -> PusherState | None:
        """One statement, so one snapshot."""
        rows = await self._rows("pusher", vault, device)
        if not rows:
            return None
        first = rows[0]
        return PusherState(
            MemberState(Author(first["author"]), device, Role(first["role"])),
            first["last_batch"],
            first["last_term"],
            tuple(KeptOutcome(r["batch"], r["digest"], r["answer"]) for r in rows if r["batch"] is not None),
        )

    async def guards(self, wanted: Sequence[GuardName]) -> dict[GuardName, Current]:
        """One statement."""
        vaults, tags = [vault for vault, _, _ in wanted], [tag for _, _, tag in wanted]
        rows = await self._rows("guards", vaults, [signed(stream) for _, stream, _ in wanted], tags)
        return {
            wanted[row["place"] - 1]: Current(
                row["version"], salt_of(row["salt"]), row["tombstone"], row["seq"], line_of(row["line"])
            )
            for row in rows
        }

    # --- appending

    async def append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        """Commit in one statement, or in one for each vault; a cancelled caller leaves it going on."""
        check_writes(writes)
        if not writes:
            return []
        task = asyncio.create_task(self._append_each(writes) if self._one_vault_per_statement else self._append(writes))
        self._appending.add(task)
        task.add_done_callback(self._appended)
        return await asyncio.shield(task)

    def _appended(self, task: asyncio.Task[list[bool]]) -> None:
        self._appending.discard(task)
        if not task.cancelled():
            task.exception()  # looked at here, in case that the caller was cancelled and nobody else will

    async def _append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        async with self._connection(self._appenders) as connection:
            if self._server.changed:
                return [False] * len(writes)
            with translated_commit():
                written = self._server.written({write.term for write in writes})
                refused = set(await connection.fetchval(QUERIES["append_many"], *many_arguments(writes), written))
        return [write.vault not in refused for write in writes]

    async def _append_each(self, writes: Sequence[VaultWrite]) -> list[bool]:
        results = await asyncio.gather(*[self._append_one(write) for write in writes], return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors and (not isinstance(errors[0], StoreError) or len(errors) == len(writes)):
            raise errors[0]
        if errors:
            raise OutcomeUnknownError(
                f"Only {len(writes) - len(errors)} of {len(writes)} vaults could be written ({errors[0]}); "
                "look before writing again."
            ) from errors[0]
        return [result is True for result in results]

    async def _append_one(self, write: VaultWrite) -> bool:
        async with self._connection(self._appenders) as connection:
            if self._server.changed:
                return False
            with translated_commit():
                written = self._server.written({write.term})
                return bool(await connection.fetchval(QUERIES["append_one"], *one_arguments(write), written))

    # --- cleaning

    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """One statement, so one snapshot. Looks at the head of every stream until enough are found."""
        place = (None, None) if after is None else (after[0], signed(after[1]))
        rows = await self._rows("dirty", *place, tail_min, streams_max)
        return [
            Dirty(
                VaultId(row["vault_id"]),
                stream_of(row["stream"]),
                row["head"],
                row["compacted"],
                row["size"],
                row["tail_size"],
                row["segments"],
                term_of(row["term"], row["term_id"]),
            )
            for row in rows
        ]

    async def swap(
        self,
        vault: VaultId,
        stream: StreamId,
        old: Sequence[StoredSegment],
        new: StoredSegment,
        cleaned_to: int,
        term: Term,
        purge: Purge | None = None,
    ) -> bool:
        """One transaction of three statements. A connection that was interrupted is given up with what it did."""
        check_swap(stream, old, new, cleaned_to, purge)
        name = vault, signed(stream)
        async with self._connection(self._others) as connection:
            transaction = connection.transaction()
            try:
                await transaction.start()
                there = await connection.fetch(QUERIES["swap_out"], *name, old[0].prev, old[-1].last)
                swapped = sorted(map(tuple, there)) == [(s.prev, s.last, len(s.body)) for s in old]
                if swapped:
                    await connection.execute(QUERIES["swap_in"], *name, new.last, new.prev, new.body)
                    state = *name, cleaned_to, term.number, signed(term.id)
                    if purge is None:
                        found = await connection.fetch(QUERIES["raise_cleaned_to"], *state)
                    else:
                        found = await connection.fetch(QUERIES["purge"], *state, *purge_arguments(purge))
                        if found and purge.guarded:
                            await connection.executemany(QUERIES["forget"], [(*name, *held) for held in purge.dropped])
                    swapped = bool(found)
                if not swapped:
                    await transaction.rollback()
                    return False
                with translated_commit():
                    await transaction.commit()
            except BaseException:
                with suppress(asyncpg.InterfaceError):  # a connection that was lost cannot be given up again
                    connection.terminate()
                raise
        return True

    async def compacted(
        self, vault: VaultId, stream: StreamId, upto: int, term: Term, tombstones: int, oldest: int
    ) -> bool:
        """One statement."""
        state = upto, term.number, signed(term.id), tombstones, oldest
        return await self._found("compacted", vault, signed(stream), *state)

    async def tombstones(self, after: tuple[VaultId, StreamId] | None, streams_max: int) -> list[Tombstones]:
        """One statement, so one snapshot. Looks at the head of every stream until enough are found."""
        place = (None, None) if after is None else (after[0], signed(after[1]))
        return [_tombstones(row) for row in await self._rows("tombstones", *place, streams_max)]

    async def aged(self, vault: VaultId, stream: StreamId, marks: Sequence[Mark], oldest: int, term: Term) -> bool:
        """One statement."""
        flat = [number for mark in marks for number in mark]
        return await self._found("aged", vault, signed(stream), flat, oldest, term.number, signed(term.id))

    async def acked(self, acks: Sequence[AckedPosition]) -> None:
        """One statement."""
        check_acks(acks)
        await self._rows("acked", *ack_arguments(acks))

    async def reclaim(self) -> Room:
        """A plain VACUUM, on a connection of its own: none of the others may take so long.

        Those are made anew afterwards: a session goes on writing near where it wrote last, and a new one begins at the
        first room that is free, which is what lets a file end earlier some day.
        """
        room = await vacuum(self._dsn)
        if self._others is not None:
            await self._others.expire_connections()
        return room

    # --- mailboxes

    async def open_mailbox(
        self, mailbox: MailboxId, vault: VaultId, inviter: DeviceKey, seconds: int
    ) -> MailboxVerdict:
        """Expired ones are swept first, so their ids are free again."""
        await self._rows("sweep_mailboxes")
        may = await self._found("open_mailbox", mailbox, vault, inviter, seconds, Role.ADMIN)
        return MailboxVerdict.DONE if may else MailboxVerdict.ABSENT

    async def deposit(self, mailbox: MailboxId, joiner: DeviceKey, request: bytes) -> MailboxVerdict:
        """Leave a request."""
        if await self._found("deposit", mailbox, joiner, request):
            return MailboxVerdict.DONE
        return MailboxVerdict.USED if await self._found("mailbox", mailbox) else MailboxVerdict.ABSENT

    async def answer(self, mailbox: MailboxId, inviter: DeviceKey, answer: bytes) -> MailboxVerdict:
        """Leave the answer."""
        done = await self._found("answer", mailbox, inviter, answer)
        return MailboxVerdict.DONE if done else MailboxVerdict.ABSENT

    async def mailbox(self, mailbox: MailboxId) -> Mailbox | None:
        """What lies in it."""
        rows = await self._rows("mailbox", mailbox)
        return Mailbox(*rows[0].values()) if rows else None


def _term_row(rows: Sequence[Row]) -> TermRow:
    if len(rows) != 1:
        raise SchemaError(
            f"The database has {len(rows)} current terms in place of one: it is being restored just now, or was not "
            "restored whole; restore it again if this lasts."
        )
    [row] = rows
    return TermRow(term_of(row["term"], row["term_id"]), row["written"])


def _member_columns(link: NewLink) -> tuple[int | None, bytes | None, int | None]:
    member = link.member
    return (None, None, None) if member is None else (member.author, member.device, member.role)


def _stream_state(stream: StreamId, row: Row) -> StreamState:
    if row["kind"] is None:
        return StreamState(stream, StreamKind.ABSENT, 0, 0, 0, 0, 0, 0, ())
    return StreamState(
        stream,
        StreamKind(row["kind"]),
        row["head"],
        row["top"],
        row["floor"],
        row["floor_head"],
        row["purged"],
        row["cleaned_to"],
        _terms(row["terms"][-3 * TERMS_TOLD_MAX :]),
    )


def _terms(flat: Sequence[int]) -> tuple[TermStart, ...]:
    starts = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return tuple(TermStart(term_of(number, id_), start) for number, id_, start in starts)


def _tombstones(row: Row) -> Tombstones:
    columns = ("authors", "devices", "roles", "numbers", "ids", "seqs", "seen")
    readers = zip(*[row[column] for column in columns], strict=True)
    return Tombstones(
        VaultId(row["vault_id"]),
        stream_of(row["stream"]),
        StreamKind(row["kind"]),
        row["head"],
        row["compacted"],
        row["floor"],
        row["tombstones"],
        row["oldest_tombstone"],
        tuple(Mark(*pair) for pair in zip(row["marks"][::2], row["marks"][1::2], strict=True)),
        _terms(row["terms"]),
        tuple(
            Reader(Author(author), device, Role(role), Position(term_of(number, id_), seq), seen)
            for author, device, role, number, id_, seq, seen in readers
        ),
        row["now"],
    )
