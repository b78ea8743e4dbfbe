"""A cleaner's side of the store on Postgres. The SQL is in `sql/queries/cleaning.sql` and `forgetting.sql`."""

import math
from collections.abc import Sequence

from sealwire_protocol.ids import Author, Position, StreamId, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.cleaning import (
    AckedPosition,
    Cleaning,
    Dirty,
    Mark,
    Purge,
    Reader,
    Room,
    Tombstones,
    check_acks,
    check_swap,
)
from sealwire_relay.store.connections import Connection
from sealwire_relay.store.pools import Pools
from sealwire_relay.store.queries import QUERIES
from sealwire_relay.store.room import vacuum
from sealwire_relay.store.rows import Columns, Row, signed, stream_of, term_of, terms_of
from sealwire_relay.store.segments import StoredSegment, bytes_of


class PostgresCleaning(Pools, Cleaning):
    """The part of a PostgresStore that is about logs that stay small."""

    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """One statement, so one snapshot. Looks at the head of every stream until enough are found."""
        place = (None, None) if after is None else (after[0], signed(after[1]))
        rows = await self._rows("dirty", *place, tail_min, streams_max)
        return [_dirty_of(row) for row in rows]

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

        async def work(connection: Connection) -> bool:
            there = await connection.fetch(QUERIES["swap_out"], *name, old[0].prev, old[-1].last)
            if sorted(map(tuple, there)) != [(s.prev, s.last, len(s.body)) for s in old]:
                return False
            await connection.execute(QUERIES["swap_in"], *name, new.last, new.prev, new.body)
            state = *name, cleaned_to, term.number, signed(term.id), bytes_of(old) - len(new.body)
            if purge is None:
                return bool(await connection.fetch(QUERIES["raise_cleaned_to"], *state))
            found = await connection.fetch(QUERIES["purge"], *state, *_purge_arguments(purge))
            if found and purge.guarded:
                await connection.executemany(QUERIES["forget"], [(*name, *held) for held in purge.dropped])
            return bool(found)

        return await self._all_or_nothing(work)

    async def compacted(
        self, vault: VaultId, stream: StreamId, upto: int, term: Term, tombstones: int, oldest: int
    ) -> bool:
        """One statement."""
        state = upto, term.number, signed(term.id), tombstones, oldest
        return await self._found("compacted", vault, signed(stream), *state)

    async def tombstones(self, after: tuple[VaultId, StreamId] | None, streams_max: int) -> list[Tombstones]:
        """One statement, so one snapshot. Looks at the head of every stream until enough are found."""
        place = (None, None) if after is None else (after[0], signed(after[1]))
        return [_tombstones_of(row) for row in await self._rows("tombstones", *place, streams_max)]

    async def aged(self, vault: VaultId, stream: StreamId, marks: Sequence[Mark], oldest: int, term: Term) -> bool:
        """One statement."""
        flat = [number for mark in marks for number in mark]
        return await self._found("aged", vault, signed(stream), flat, oldest, term.number, signed(term.id))

    async def acked(self, acks: Sequence[AckedPosition]) -> None:
        """One statement."""
        check_acks(acks)
        await self._rows("acked", *_ack_arguments(acks))

    async def reclaim(self) -> Room:
        """A plain VACUUM, on a connection of its own: none of the others may take so long.

        Those are made anew afterwards: a session goes on writing near where it wrote last, and a new one begins at the
        first room that is free, which is what lets a file end earlier some day.
        """
        room = await vacuum(self._dsn)
        if self._others is not None:
            await self._others.expire_connections()
        return room


def _ack_arguments(acks: Sequence[AckedPosition]) -> list[list[object]]:
    """The arguments of acked."""
    columns = Columns(6)
    for vault, stream, device, (term, seq) in acks:
        columns.add(vault, signed(stream), device, term.number, signed(term.id), seq)
    return columns.arrays


def _purge_arguments(purge: Purge) -> list[object]:
    """What purge takes beside the arguments of raise_cleaned_to."""
    return [purge.head, purge.floor, purge.purged, len(purge.dropped)]


def _dirty_of(row: Row) -> Dirty:
    """A stream that is not compacted to its end, from its columns."""
    return Dirty(
        VaultId(row["vault_id"]),
        stream_of(row["stream"]),
        row["head"],
        row["compacted"],
        row["size"],
        row["tail_size"],
        row["segments"],
        term_of(row["term"], row["term_id"]),
    )


def _tombstones_of(row: Row) -> Tombstones:
    """A stream that has tombstones, from its columns."""
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
        terms_of(row["terms"]),
        tuple(
            Reader(Author(author), device, Role(role), Position(term_of(number, id_), seq), seen)
            for author, device, role, number, id_, seq, seen in readers
        ),
        row["now"],
        row["arrived"][-1] if row["arrived"] else -math.inf,
    )
