"""The cleaner: finds the logs that are worth it, and leaves out of them what greater versions have superseded.

Whoever reads a log meets a consistent one at any time: each swap is a transaction of its own, that replaces exactly
the rows that were read, or nothing. So a cleaner may be cancelled or die anywhere, and two of them cannot harm each
other: the next one begins the step again.
"""

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError
from sealwire_protocol.ids import StreamId, VaultId
from sealwire_relay.compaction import JOINED_BYTES_MAX, Buried, Survivors, swaps
from sealwire_relay.pace import Pace
from sealwire_relay.reclaimer import Reclaimer
from sealwire_relay.store.cleaning import Dirty
from sealwire_relay.store.interface import Store
from sealwire_relay.store.segments import StoredSegment

RECORDS_MAX: Final = 262_144
"""Records in one step, and so versions held in memory: some 80 MB. Each step reads what was cleaned before once."""

PAGE_BYTES: Final = 1_048_576
"""Read at once, and most that one swap replaces: some 30 ms of work, and as long a transaction in a slow database."""

STREAMS_AT_ONCE: Final = 500
"""Dirty streams asked for in one query."""

IDLE_SHARE: Final = 0.01
"""The dirty share from which a silent log is worth reading whole: below it there is next to nothing to gain."""

IDLE_STREAMS_MAX: Final = 100_000
"""Dirty streams whose silence is measured, some 300 bytes each. Others wait until some of these are clean."""

TAIL_BYTES_MIN: Final = 1_048_576
"""A log that is still written to is left alone until this much came after it was last cleaned: many logs of a few
entries each would else be rewritten all day. They wait for silence."""

UNREADABLE_STREAMS_MAX: Final = 10_000
"""Streams that are not tried again by this process, since it cannot read them: 200 bytes of memory each."""

SMALL_BYTES: Final = JOINED_BYTES_MAX // 16
"""The mean size of segments below which a log is slow to read and its rows are mostly overhead."""

SMALL_SEGMENTS_MIN: Final = 1_000
"""So many of them are worth joining while the log is still written to."""

_log = logging.getLogger("sealwire.cleaner")


class Cleaned(NamedTuple):
    """What one step, or all steps of a stream, came to."""

    records: int
    """Left out: a greater version stands elsewhere in the log."""
    bytes: int
    """That the segments are smaller now."""
    segments: int
    """That there are fewer now."""
    complete: bool
    """False: the log changed under a step in a way that only another cleaner or a restore explains, or holds what
    this relay cannot read. What was done so far stands; the rest is for another time."""


class Looked(NamedTuple):
    """What one look came to: all streams with anything that was not cleaned yet, and what was done about it."""

    streams: int
    """Cleaned, to their end at the time of the look."""
    unfinished: int
    """Begun, but not complete."""
    records: int
    """Left out of all of them."""
    bytes: int
    """Of all segments of the streams that were begun, before."""
    bytes_left: int
    segments: int
    segments_left: int
    waiting_streams: int
    """Dirty ones that are not worth it yet, or could not be finished."""
    waiting_bytes: int
    """Of their tails: the upper bound of what could be freed."""


class _Moved(Exception):
    """Not the segments that are expected: somebody else rewrites the log."""


class Worth:
    """Decides which dirty streams to clean: by the share that may be dead, by small segments, or by silence.

    It must be shown all of them at every look, and remembers between two looks how long each has been silent.
    """

    def __init__(self, share: float, idle_seconds: float, clock: Callable[[], float]) -> None:
        self._share, self._idle_seconds, self._clock = share, idle_seconds, clock
        self._before: dict[tuple[VaultId, StreamId], tuple[int, float]] = {}
        self._seen: dict[tuple[VaultId, StreamId], tuple[int, float]] = {}

    def begin(self) -> None:
        """A look begins: what was not seen in the last one is clean, and forgotten."""
        self._before, self._seen = self._seen, {}

    def __call__(self, dirty: Dirty) -> bool:
        """Whether a stream is worth it now."""
        name, now = (dirty.vault, dirty.stream), self._clock()
        head, since = self._before.get(name, (dirty.head, now))
        if head != dirty.head:
            since = now
        if len(self._seen) < IDLE_STREAMS_MAX:
            self._seen[name] = dirty.head, since
        if now - since >= self._idle_seconds and dirty.tail_bytes >= IDLE_SHARE * dirty.bytes:
            return True
        return by_share(dirty, self._share)


def by_share(dirty: Dirty, share: float) -> bool:
    """Whether a stream is worth it even while it is written to."""
    if dirty.segments >= SMALL_SEGMENTS_MIN and dirty.bytes < SMALL_BYTES * dirty.segments:
        return True
    return dirty.tail_bytes >= max(TAIL_BYTES_MIN, share * dirty.bytes)


class Cleaner:
    """Cleans the streams of one store, one at a time, in steps of at most `records_max` seqs.

    It works the given part of the time (1: always) and rests in between, for the sake of those who push meanwhile.
    `stepped` is told what each step came to. To be used by one task at a time.
    """

    def __init__(
        self,
        store: Store,
        records_max: int = RECORDS_MAX,
        *,
        busy: float = 1.0,
        stepped: Callable[[Cleaned], None] = lambda cleaned: None,
    ) -> None:
        self._store, self._records_max, self._stepped = store, records_max, stepped
        self._pace = Pace(busy)
        self._reclaimer = Reclaimer(store, self._pace)
        self._unreadable: set[tuple[VaultId, StreamId]] = set()

    async def look(self, worth: Callable[[Dirty], bool]) -> Looked:
        """Find every dirty stream once, and clean those that are worth it. Raises StoreError."""
        streams = unfinished = records = waiting_streams = waiting_bytes = 0
        size = size_left = segments = segments_left = 0
        after: tuple[VaultId, StreamId] | None = None
        while found := await self._store.dirty(after, 1, STREAMS_AT_ONCE):
            for dirty in found:
                wanted = worth(dirty) and (dirty.vault, dirty.stream) not in self._unreadable
                cleaned = await self.clean(dirty) if wanted else None
                if cleaned is None or not cleaned.complete:
                    waiting_streams += 1
                    waiting_bytes += dirty.tail_bytes
                if cleaned is None:
                    continue
                streams += cleaned.complete
                unfinished += not cleaned.complete
                records += cleaned.records
                size += dirty.bytes
                size_left += dirty.bytes - cleaned.bytes
                segments += dirty.segments
                segments_left += dirty.segments - cleaned.segments
            after = found[-1].vault, found[-1].stream
        await self._reclaimer.finish()
        return Looked(
            streams, unfinished, records, size, size_left, segments, segments_left, waiting_streams, waiting_bytes
        )

    async def clean(self, dirty: Dirty) -> Cleaned:
        """Clean a stream up to the head that it had. Raises StoreError; what was swapped until then stands."""
        records = size = segments = 0
        upto, complete = dirty.compacted, True
        while upto < dirty.head and complete:
            step = _Step(
                self._store, dirty, upto, min(dirty.head, upto + self._records_max), self._pace, self._reclaimer
            )
            try:
                upto = await step.run()
            except (_Moved, DecodeError) as error:
                complete = False
                self._stopped(dirty, upto, error)
            self._stepped(Cleaned(step.records, step.bytes, step.segments, complete))
            records, size, segments = records + step.records, size + step.bytes, segments + step.segments
            if complete and upto < dirty.head:
                _log.info("cleaning %s: %d of %d done, %d records left out", _name(dirty), upto, dirty.head, records)
        if complete:
            self._reclaimer.cleaned(dirty, upto, dirty.bytes - size)
        return Cleaned(records, size, segments, complete)

    def _stopped(self, dirty: Dirty, upto: int, error: Exception) -> None:
        if isinstance(error, _Moved):
            _log.info("cleaning %s stopped at %d of %d: %s", _name(dirty), upto, dirty.head, error)
            return
        _log.error("%s cannot be cleaned: %s", _name(dirty), error)
        if len(self._unreadable) < UNREADABLE_STREAMS_MAX:
            self._unreadable.add((dirty.vault, dirty.stream))


class _Step:
    """One step: of each tag that occurs in `(after, bound]` one record is left in `(0, bound]`.

    The bound is moved down to the end of a segment. What a step came to is in its attributes, however it ended.
    """

    def __init__(self, store: Store, dirty: Dirty, after: int, bound: int, pace: Pace, reclaimer: Reclaimer) -> None:
        self.records = self.bytes = self.segments = 0
        self._store, self._dirty, self._pace, self._reclaimer = store, dirty, pace, reclaimer
        self._after, self._bound = after, bound
        self._survivors, self._buried = Survivors(), Buried()

    async def run(self) -> int:
        """Returns where the next step begins. Raises _Moved, DecodeError or StoreError."""
        start, end = await self._learn()
        # The older records first: one of them may win over the tail's.
        await self._rewrite(0, start, end)
        await self._rewrite(start, end, end)
        vault, stream, term = self._dirty.vault, self._dirty.stream, self._dirty.term
        if not await self._store.compacted(vault, stream, end, term, self._buried.number, self._buried.first):
            raise _Moved("its history is another one now")
        return end

    async def _learn(self) -> tuple[int, int]:
        """Where the tail that was learnt begins and ends. It begins earlier if another cleaner has joined segments."""
        start = end = self._after
        while end < self._bound:
            began = self._pace.time()
            for segment in await self._read(end):
                # The first one is taken however long it is, so that a step gets on.
                if segment.last > self._bound and end > self._after:
                    return start, end
                self._survivors.learn(segment)
                start, end = min(start, segment.prev), segment.last
            await self._pace.rest(began)
        return start, end

    async def _rewrite(self, at: int, last: int, cleaned_to: int) -> None:
        """Leave the losers out of `(at, last]`, a page at a time."""
        vault, stream, term = self._dirty.vault, self._dirty.stream, self._dirty.term
        while at < last:
            began = self._pace.time()
            # Another cleaner may have joined segments meanwhile: all is well unless that was across `last`.
            segments = [segment for segment in await self._read(at) if segment.last <= last]
            if not segments:
                raise _Moved("another cleaner is at work on it")
            for swap in swaps(segments, self._survivors.tags, self._survivors.stays, self._buried):
                if not await self._store.swap(vault, stream, swap.old, swap.new, cleaned_to, term):
                    raise _Moved("another cleaner is at work on it, or its history is another one now")
                self.records += swap.left_out
                replaced = sum(len(old.body) for old in swap.old)
                self.bytes += replaced - len(swap.new.body)
                self.segments += len(swap.old) - 1
                await self._pace.rest(began)
                await self._reclaimer.replaced(replaced)
                began = self._pace.time()
            at = segments[-1].last
            await self._pace.rest(began)

    async def _read(self, after: int) -> tuple[StoredSegment, ...]:
        page = await self._store.read(self._dirty.vault, self._dirty.stream, after, PAGE_BYTES)
        if page is None or not page.segments:
            raise _Moved("its history is another one now")
        return page.segments


def _name(dirty: Dirty) -> str:
    return f"stream {dirty.stream.hex()} of vault {dirty.vault.hex()}"
