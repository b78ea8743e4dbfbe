"""A cleaner's side of the store in memory."""

from collections.abc import Iterator, Sequence
from itertools import islice

from sealwire_protocol.ids import MEMBERSHIP, StreamId, Term, VaultId
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
from sealwire_relay.store.kept import KeptStream, Memory
from sealwire_relay.store.rows import signed, stream_of
from sealwire_relay.store.segments import StoredSegment


class MemoryCleaning(Memory, Cleaning):
    """The part of a MemoryStore that is about logs that stay small."""

    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """The next streams to be compacted."""
        logs = ((name, log) for name, log in self._logs_after(after) if log.head - log.compacted >= tail_min)
        return [log.dirty(*name) for name, log in islice(logs, streams_max)]

    def _logs_after(
        self, after: tuple[VaultId, StreamId] | None
    ) -> Iterator[tuple[tuple[VaultId, StreamId], KeptStream]]:
        """Streams of records, in the order of the columns that streams are found by."""
        names = ((vault, signed(stream)) for vault, kept in self._data().vaults.items() for stream in kept.streams)
        place = None if after is None else (after[0], signed(after[1]))
        for vault, column in sorted(name for name in names if place is None or name > place):
            stream = stream_of(column)
            log = self._log(vault, stream)
            if stream != MEMBERSHIP and log is not None:
                yield (vault, stream), log

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
        """Replace segments."""
        check_swap(stream, old, new, cleaned_to, purge)
        log = self._log(vault, stream)
        if log is None or log.term != term or not (cleaned_to <= log.head == (purge.head if purge else log.head)):
            return False
        if not log.swap(old, new):
            return False
        log.cleaned_to = max(log.cleaned_to, cleaned_to)
        if purge is not None:
            log.purge(purge)
        return True

    async def compacted(
        self, vault: VaultId, stream: StreamId, upto: int, term: Term, tombstones: int, oldest: int
    ) -> bool:
        """Note how far no loser is left."""
        log = self._log(vault, stream)
        if log is None or log.head < upto or log.term != term:
            return False
        if upto >= log.compacted:
            log.compacted, log.tombstones, log.oldest_tombstone = upto, tombstones, oldest
        return True

    async def tombstones(self, after: tuple[VaultId, StreamId] | None, streams_max: int) -> list[Tombstones]:
        """The next streams with tombstones."""
        logs = ((name, log) for name, log in self._logs_after(after) if log.tombstones)
        return [self._tombstones(*name, log) for name, log in islice(logs, streams_max)]

    def _tombstones(self, vault: VaultId, stream: StreamId, log: KeptStream) -> Tombstones:
        kept = self._data().vaults[vault]
        members = kept.members
        readers = [
            Reader(author, members[author].state.device, members[author].state.role, position, seen)
            for author, (position, seen) in sorted(log.acks.items())
        ]
        numbers = log.head, log.compacted, log.floor, log.tombstones, log.oldest_tombstone
        known = log.marks, tuple(log.terms), tuple(readers), self._clock(), kept.arrived
        return Tombstones(vault, stream, log.kind, *numbers, *known)

    async def aged(self, vault: VaultId, stream: StreamId, marks: Sequence[Mark], oldest: int, term: Term) -> bool:
        """Note ages."""
        log = self._log(vault, stream)
        if log is None or log.term != term:
            return False
        log.marks, log.oldest_tombstone = tuple(marks), max(log.oldest_tombstone, oldest)
        if log.oldest_tombstone > log.compacted:
            log.tombstones = 0
        return True

    async def acked(self, acks: Sequence[AckedPosition]) -> None:
        """Note positions."""
        check_acks(acks)
        for vault, stream, device, position in acks:
            log, kept = self._log(vault, stream), self._data().vaults.get(vault)
            member = kept.by_device(device) if kept else None
            if log is not None and member is not None:
                log.acks[member.state.author] = position, self._clock()

    async def reclaim(self) -> Room:
        """There is nothing to be done: memory is given back when its last user has let go of it."""
        return Room(0, 0)
