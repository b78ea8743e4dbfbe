"""The store on Postgres, through asyncpg. The SQL, and why it is right, is in `sql/`."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import (
    NO_TERM,
    TERM_ID_BYTES,
    Author,
    DeviceKey,
    Position,
    StreamId,
    Term,
    VaultId,
)
from sealwire_protocol.limits import STREAMS_PER_SESSION_MAX
from sealwire_protocol.links import Role, decode_links, encode_links
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.connections import (
    Connection,
    TermRow,
)
from sealwire_relay.store.failures import translated_commit
from sealwire_relay.store.interface import (
    PAGE_SEGMENTS_MAX,
    GuardName,
    KeptOutcome,
    LinkLog,
    MemberState,
    NewLink,
    OutcomeUnknownError,
    Page,
    PusherState,
    SchemaError,
    Store,
    StoreError,
    Subscription,
    TokenSpentError,
    TokenUse,
    Usage,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.postgres_administration import PostgresAdministration
from sealwire_relay.store.postgres_cleaning import PostgresCleaning
from sealwire_relay.store.postgres_mailboxes import PostgresMailboxes
from sealwire_relay.store.queries import QUERIES
from sealwire_relay.store.rows import (
    MOVED,
    Row,
    check_end,
    check_writes,
    line_of,
    link_segments,
    many_arguments,
    member_columns,
    one_arguments,
    page_of,
    salt_of,
    signed,
    state_columns,
    state_of,
    stream_state_of,
    term_of,
)
from sealwire_relay.store.segments import bytes_of

APPEND_CONNECTIONS: Final = 4
"""Connections kept for appends alone, so that readers never make a commit wait. One group commit uses one."""

OTHER_CONNECTIONS: Final = 8
"""Connections for everything else: enough for two cores of Postgres, and cheap for it when idle."""


class PostgresStore(PostgresAdministration, PostgresCleaning, PostgresMailboxes, Store):
    """A store on any Postgres from 15 on. Needs the schema (`migrate`).

    `on_other_server` is called, on the event loop, when a new connection shows another server, start or timeline
    than the one before, or the term's row another history. From then until `open_term` nothing is written under a
    term: writes answer False.

    `one_vault_per_statement`: whether each vault of a commit is written by a statement of its own, as a distributed
    database wants it, or all by one. By default it is so for a vault that is alone, as it costs both sides less.
    """

    def __init__(
        self,
        dsn: str,
        *,
        append_connections: int = APPEND_CONNECTIONS,
        other_connections: int = OTHER_CONNECTIONS,
        one_vault_per_statement: bool | None = None,
        on_other_server: Callable[[], None] | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(dsn, append_connections, other_connections, on_other_server)
        self._one_vault_per_statement = one_vault_per_statement
        self._random_bytes = random_bytes
        self._appending: set[asyncio.Task[list[bool]]] = set()

    async def close(self) -> None:
        """Wait for appends under way, then give up all connections."""
        await asyncio.gather(*self._appending, return_exceptions=True)
        await super().close()

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

    async def create_vault(
        self, vault: VaultId, state: VaultState, link: NewLink, term: Term, use: TokenUse | None = None, quota: int = 0
    ) -> bool:
        """One statement; with a token a transaction of two."""
        arguments = (
            vault,
            link.seq,
            signed(state.key_id),
            state.epoch,
            StreamKind.MEMBERSHIP,
            term.number,
            signed(term.id),
            encode_links([link.raw]),
            *member_columns(link),
            quota,
        )
        if use is None:
            return bool(await self._under_term("create_vault", term, *arguments))

        async def make(connection: Connection) -> bool:
            if self._server.changed:
                return False
            return bool(await connection.fetch(QUERIES["create_vault"], *arguments, self._server.written({term})))

        return await self._counted(make, use)

    async def _counted(self, work: Callable[[Connection], Awaitable[bool]], use: TokenUse) -> bool:
        """Do this in one transaction, and count it for a token if it was done. Raises TokenSpentError."""
        spent = False

        async def work_and_count(connection: Connection) -> bool:
            nonlocal spent
            if not await work(connection):
                return False
            spent = not await connection.fetch(QUERIES["count_vault"], *use)
            return not spent

        done = await self._all_or_nothing(work_and_count)
        if spent:
            raise TokenSpentError
        return done

    async def raise_quota(self, vault: VaultId, quota: int, use: TokenUse) -> bool:
        """A transaction of two statements."""

        async def give(connection: Connection) -> bool:
            return bool(await connection.fetch(QUERIES["raise_quota"], vault, quota))

        return await self._counted(give, use)

    async def usage(self, vault: VaultId) -> Usage | None:
        """One statement, so one snapshot."""
        rows = await self._rows("usage", vault)
        return Usage(rows[0]["bytes"], rows[0]["quota"]) if rows else None

    async def receipt_key(self) -> bytes:
        """One statement."""
        key: bytes = (await self._rows("receipt_key"))[0]["receipt_key"]
        return key

    async def append_link(self, vault: VaultId, link: NewLink, term: Term) -> Term | None:
        """One statement; for a link that does anything to heads or members that are there a transaction of four or
        five."""
        place = vault, link.seq, term.number, signed(term.id)
        there = (None, None) if link.there is None else (link.there.number, signed(link.there.id))
        arguments = *place, encode_links([link.raw]), *member_columns(link), link.replaced, *there
        state, rows = link.state, list[Row]()
        if state is None:
            rows = await self._under_term("append_link", term, *arguments)
            return term_of(term.number, rows[0]["term_id"]) if rows else None

        async def work(connection: Connection) -> bool:
            if self._server.changed or not await self._set_epoch(connection, vault, state, term):
                return False
            rows.extend(await connection.fetch(QUERIES["append_link"], *arguments, self._server.written({term})))
            if state.ended:
                await connection.execute(QUERIES["end_vault"], vault)
            await connection.execute(QUERIES["remove_members"], vault, link.removed)
            if link.arrives:
                await connection.execute(QUERIES["arrived"], vault, link.seq)
            return bool(rows)

        appended = await self._all_or_nothing(work)
        return term_of(term.number, rows[0]["term_id"]) if appended else None

    async def replace_links(
        self,
        vault: VaultId,
        there: LinkLog,
        after: int,
        links: Sequence[bytes],
        members: Sequence[MemberState],
        state: VaultState,
        term: Term,
    ) -> bool:
        """One transaction of six or seven statements."""
        check_end(there, after, links)
        known = len(there.links), there.term.number, signed(there.term.id)
        size = bytes_of(link_segments(0, [*there.links[:after], *links]))
        fresh = signed(self._random_bytes(TERM_ID_BYTES))
        parted = after + len(links), after, fresh, term.number, signed(term.id), size
        stored = [list(column) for column in zip(*link_segments(after, links), strict=True)]
        authors, devices, roles = [list(column) for column in zip(*members, strict=True)]

        async def work(connection: Connection) -> bool:
            if self._server.changed or not await self._set_epoch(connection, vault, state, term):
                return False
            present = *known, *parted, self._server.written({term})
            if not await connection.fetch(QUERIES["part_links"], vault, *present):
                return False
            await connection.execute(QUERIES["drop_links"], vault, after)
            await connection.execute(QUERIES["drop_members"], vault, authors, devices)
            await connection.execute(QUERIES["put_links"], vault, *stored, authors, devices, roles)
            if state.ended:
                await connection.execute(QUERIES["end_vault"], vault)
            return True

        return await self._all_or_nothing(work)

    async def _set_epoch(self, connection: Connection, vault: VaultId, state: VaultState, term: Term) -> bool:
        """Lock all heads of a vault, and write this into them. If it comes back, its streams begin anew. False: one
        came into being meanwhile."""
        held: Row = await connection.fetchrow(QUERIES["hold_heads"], vault, MOVED)
        if not await connection.fetch(QUERIES["set_epoch"], vault, *state_columns(state), held["heads"]):
            return False
        if held["moved"] and not state.moved and not state.ended:
            fresh = signed(self._random_bytes(TERM_ID_BYTES))
            await connection.execute(QUERIES["begin_anew"], vault, term.number, fresh)
        return True

    async def clear(self, rows_max: int) -> bool:
        """One statement."""
        return await self._found("clear", rows_max)

    async def links(self, vault: VaultId, after: int = 0) -> LinkLog:
        """One statement, so one snapshot."""
        rows = await self._rows("links", vault, after)
        term = term_of(rows[0]["term"], rows[0]["term_id"]) if rows else NO_TERM
        return LinkLog(term, tuple(raw for row in rows if row["body"] for raw in decode_links(row["body"])))

    async def members(self, vaults: Sequence[VaultId]) -> dict[VaultId, set[DeviceKey]]:
        """One statement."""
        found: dict[VaultId, set[DeviceKey]] = {vault: set() for vault in vaults}
        for row in await self._rows("members", list(vaults)):
            found[VaultId(row["vault_id"])].add(DeviceKey(row["device"]))
        return found

    async def create_stream(
        self, vault: VaultId, stream: StreamId, kind: StreamKind, streams_max: int = STREAMS_PER_SESSION_MAX
    ) -> StreamKind:
        """Create an empty stream. A stream's kind never changes, so the one found first is the answer."""
        rows = await self._rows("stream_kind", vault, signed(stream))
        if not rows:
            await self._rows("create_stream", vault, signed(stream), kind, streams_max)
            rows = await self._rows("stream_kind", vault, signed(stream))
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
            state_of(first),
            MemberState(Author(first["author"]), device, Role(first["role"])),
            first["last_batch"],
            tuple(stream_state_of(stream, row) for stream, row in zip(streams, rows, strict=False)),
            first["receipt_key"],
        )

    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """One statement, so one snapshot."""
        rows = await self._rows("read", vault, signed(stream), after, bytes_max, PAGE_SEGMENTS_MAX)
        return page_of(rows) if rows else None

    async def heads(self, names: Sequence[tuple[VaultId, StreamId]]) -> dict[tuple[VaultId, StreamId], Position]:
        """One statement."""
        vaults, streams = [vault for vault, _ in names], [signed(stream) for _, stream in names]
        rows = await self._rows("heads", vaults, streams)
        return {names[r["place"] - 1]: Position(term_of(r["term"], r["term_id"]), r["head"]) for r in rows}

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
                row["version"],
                salt_of(row["salt"]),
                row["tombstone"],
                row["seq"],
                line_of(row["line"]),
                row["epoch"],
            )
            for row in rows
        }

    # --- appending

    async def append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        """Commit in one statement, or in one for each vault; a cancelled caller leaves it going on."""
        check_writes(writes)
        if not writes:
            return []
        each = len(writes) == 1 if self._one_vault_per_statement is None else self._one_vault_per_statement
        task = asyncio.create_task(self._append_each(writes) if each else self._append(writes))
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
        if len(writes) == 1:
            return [await self._append_one(writes[0])]
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


def _term_row(rows: Sequence[Row]) -> TermRow:
    if len(rows) != 1:
        raise SchemaError(
            f"The database has {len(rows)} current terms in place of one: it is being restored just now, or was not "
            "restored whole; restore it again if this lasts."
        )
    [row] = rows
    return TermRow(term_of(row["term"], row["term_id"]), row["written"])
