"""The purge: leaves out of logs the tombstones that may go, and raises floors so that devices do the same (R11).

A tombstone goes only when nothing of its tag is left anywhere in the log: below it since it is compacted, above it
since the log is read to its head, which the swap then finds where it was. A record of its tag that loses against it, in
the part that is not compacted, therefore keeps it in its place, and the floor below it: until that log is cleaned.
"""

import logging
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError
from sealwire_protocol.ids import StreamId, Tag, VaultId
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import Placed
from sealwire_relay.compaction import Buried, Swap, found, swaps
from sealwire_relay.pace import Pace
from sealwire_relay.retention import Retention, marked, may_go
from sealwire_relay.store.cleaning import Dirty, Purge, Tombstones
from sealwire_relay.store.interface import Page, Store

TOMBSTONES_MAX: Final = 262_144
"""Tombstones that one step takes on, some 300 bytes of memory each."""

PAGE_BYTES: Final = 1_048_576
"""Read at once."""

STREAMS_AT_ONCE: Final = 500
"""Streams with tombstones asked for in one query."""

ATTEMPTS_MAX: Final = 10
"""Times that one swap is tried while devices push to the stream: a try takes some 5 ms. The next look tries again."""

BLOCKED_MAX: Final = 10_000
"""Streams of which it is remembered that they must be cleaned first: 200 bytes each. Others are found again."""

_log = logging.getLogger("sealwire.purging")


class Forgotten(NamedTuple):
    """What one look of the purge came to."""

    purged_tombstones: int
    purged_streams: int
    """In which there were any of these."""
    kept_tombstones: int
    """That are left, of those that are compacted."""
    kept_streams: int
    """In which there are any of these."""


class _Stopped(Exception):
    """This stream's purge is for another time; what was done so far stands."""


class Purger:
    """Purges the streams of one store, one at a time, in steps of at most `tombstones_max`.

    It works the given part of the time (1: always), as a cleaner does. To be used by one task at a time.
    """

    def __init__(
        self, store: Store, retention: Retention, tombstones_max: int = TOMBSTONES_MAX, *, busy: float = 1.0
    ) -> None:
        self._store, self._retention, self._tombstones_max = store, retention, tombstones_max
        self._pace = Pace(busy)
        self._blocked: set[tuple[VaultId, StreamId]] = set()

    def waits_for(self, dirty: Dirty) -> bool:
        """Whether a stream must be cleaned before it can be purged further: however little there is to clean."""
        return (dirty.vault, dirty.stream) in self._blocked

    async def look(self) -> Forgotten:
        """Look at every stream with tombstones, and purge those that may go. Raises StoreError."""
        tombstones = streams = kept = kept_streams = 0
        self._blocked.clear()
        after: tuple[VaultId, StreamId] | None = None
        while page := await self._store.tombstones(after, STREAMS_AT_ONCE):
            for stream in page:
                gone = await self._purge(stream)
                tombstones, streams = tombstones + gone, streams + bool(gone)
                kept, kept_streams = kept + max(stream.number - gone, 0), kept_streams + (gone < stream.number)
            after = page[-1].vault, page[-1].stream
        return Forgotten(tombstones, streams, kept, kept_streams)

    async def _purge(self, stream: Tombstones) -> int:
        """Purge one stream, and note how old its records are. Returns how many tombstones went."""
        marks = marked(stream, self._retention)
        upto, oldest, gone = may_go(stream._replace(marks=marks), self._retention), stream.oldest, 0
        try:
            while oldest <= upto:
                step = _Step(self._store, stream, self._pace)
                try:
                    oldest = await step.run(oldest, upto, self._tombstones_max)
                finally:
                    gone += step.gone
                if step.blocked and len(self._blocked) < BLOCKED_MAX:
                    self._blocked.add((stream.vault, stream.stream))
                if step.blocked:
                    break
        except (_Stopped, DecodeError) as error:
            _log.info("purging stream %s of vault %s stopped: %s", stream.stream.hex(), stream.vault.hex(), error)
        if marks != stream.marks or oldest > stream.oldest:
            await self._store.aged(stream.vault, stream.stream, marks, oldest, stream.term)
        return gone


class _Grave(NamedTuple):
    """Where a tombstone lies, and its packed rank."""

    seq: int
    rank: bytes


class _Step:
    """One step: some of a stream's tombstones are found, looked for in the tail, and left out."""

    def __init__(self, store: Store, stream: Tombstones, pace: Pace) -> None:
        self._store, self._stream, self._pace = store, stream, pace
        self._graves: dict[Tag, _Grave] = {}
        self._head = stream.compacted
        self.gone = 0
        self.blocked = False

    async def run(self, oldest: int, upto: int, tombstones_max: int) -> int:
        """Leave out tombstones from `oldest` to `upto`, as many as are taken on.

        Returns before which seq there are none any more. Raises _Stopped, DecodeError or StoreError."""
        after = await self._find(oldest, upto, tombstones_max)
        first_that_stays = await self._follow()
        if first_that_stays:
            self.blocked, after = True, first_that_stays
            self._graves = {tag: grave for tag, grave in self._graves.items() if grave.seq < first_that_stays}
        if self._graves:
            await self._leave_out()
        return after

    async def _find(self, oldest: int, upto: int, tombstones_max: int) -> int:
        """Take on tombstones. Returns the seq that the next step begins with."""
        at = max(oldest - 1, 0)
        while at < upto:
            began = self._pace.time()
            page = await self._read(at)
            if not page.segments:
                raise _Stopped("its log is shorter than it was")
            for segment in page.segments:
                for seq, tag, rank in found(segment, lambda tag, tombstone: tombstone):
                    if oldest <= seq <= upto:
                        self._graves[tag] = _Grave(seq, rank)
                        if len(self._graves) == tombstones_max:
                            return seq + 1
            at = page.segments[-1].last
            await self._pace.rest(began)
        return upto + 1

    async def _follow(self) -> int:
        """Read on to the present head. Of tombstones that something greater follows nothing is to be done: the next
        cleaning leaves them out. Returns the seq of the first that something lesser follows; 0 if there is none."""
        first = 0
        while True:
            began = self._pace.time()
            page = await self._read(self._head)
            for segment in page.segments:
                for seq, tag, rank in found(segment, lambda tag, tombstone: tag in self._graves):
                    if seq <= self._head or tag not in self._graves:
                        continue
                    if rank >= self._graves[tag].rank:
                        del self._graves[tag]
                    else:
                        first = min(first or self._graves[tag].seq, self._graves[tag].seq)
                self._head = max(self._head, segment.last)
            if self._head >= page.head:
                return first
            await self._pace.rest(began)

    async def _leave_out(self) -> None:
        """Swap what holds the tombstones, from the first to the last."""
        seqs = [grave.seq for grave in self._graves.values()]
        at, last = min(seqs) - 1, max(seqs)
        while at < last:
            page = await self._read(at)
            if not page.segments:
                raise _Stopped("its log is shorter than it was")
            going: list[Placed] = []

            def stays(placed: Placed, going: list[Placed] = going) -> bool:
                if self._graves[placed.record.tag].seq != placed.seq:
                    return True
                going.append(placed)
                return False

            segments = [segment for segment in page.segments if segment.prev < last]
            for swap in swaps(segments, self._graves.keys(), stays, Buried()):
                began = self._pace.time()
                dropped = [placed for placed in going if swap.new.prev < placed.seq <= swap.new.last]
                if dropped:
                    await self._swap(swap, dropped)
                await self._pace.rest(began)
            at = segments[-1].last

    async def _swap(self, swap: Swap, dropped: list[Placed]) -> None:
        vault, stream, term = self._stream.vault, self._stream.stream, self._stream.term
        names = tuple((placed.record.tag, placed.seq) for placed in dropped)
        guarded = self._stream.kind is StreamKind.GUARDED
        greatest = max(placed.record.version for placed in dropped)
        for _ in range(ATTEMPTS_MAX):
            purge = Purge(dropped[-1].seq, self._head, greatest, names, guarded)
            # Another cleaner may have joined a segment with what came after the head that is known here.
            if swap.new.last <= self._head and await self._store.swap(
                vault, stream, swap.old, swap.new, swap.new.last, term, purge
            ):
                self.gone += len(dropped)
                return
            head = self._head
            if await self._follow() or any(tag not in self._graves for tag, _ in names):
                raise _Stopped("entries of the deletions were written meanwhile")
            if self._head == head:
                raise _Stopped("another cleaner is at work on it")
        raise _Stopped("too much is being written to it")

    async def _read(self, after: int) -> Page:
        stream = self._stream
        page = await self._store.read(stream.vault, stream.stream, after, PAGE_BYTES)
        if page is None or page.term != stream.term:
            raise _Stopped("its history is another one now")
        return page
