"""Room in files while logs are cleaned: used again before more is taken, and given back where there is too much of it.

What a swap replaces stays in its file until the database has vacuumed it. So that is done while a large log is still
being cleaned. A file ends at its last row in use, though: when much of it is free, and what was cleaned may be what
stands behind that, it is written once more into the room that is free below.
"""

import logging
from typing import Final

from sealwire_relay.pace import Pace
from sealwire_relay.store.cleaning import Dirty, Room
from sealwire_relay.store.interface import Store, StoreError
from sealwire_relay.store.segments import StoredSegment

RECLAIM_BYTES_MIN: Final = 16_777_216
"""Replaced before they are reclaimed: what a cleaning adds to a file beside what is in use. Each time costs a read of
the bodies' index, of a hundredth of their size."""

RECLAIM_SHARE: Final = 1 / 16
"""The same as a share of a large file, so that its index is not read more than so many times for all of it."""

SPARE_SHARE_MAX: Final = 1 / 3
"""Free room in the file of bodies from which it is worth moving what stands behind it. What the next writes need, and
a cleaner at the default settings leaves, is less."""

SPARE_SHARE_LEFT: Final = 1 / 32
"""Free room at which moving ends."""

MOVED_SHARE_MIN: Final = 1 / 2
"""What was cleaned is moved if it is at least this share of all that is in use: what stands at the end of a file is
then likely to be a part of it."""

STREAMS_MAX: Final = 10_000
"""Cleaned streams that are remembered until all is done, some 500 bytes each."""

LARGE_BYTES: Final = 2_048
"""Bodies from this size on lie in a file of their own; smaller ones stand in their rows, which are not moved."""

PAGE_BYTES: Final = 1_048_576
"""Read at once when a log is moved."""

_log = logging.getLogger("sealwire.cleaner")


class Reclaimer:
    """Counts what one store's cleaner replaces. No failure of it stops a cleaning. To be used by one task at a time."""

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store, self._pace = store, pace
        self._replaced = 0
        self._room = Room(0, 0)
        self._cleaned: list[tuple[int, Dirty, int]] = []

    async def replaced(self, size: int) -> None:
        """So many bytes of segments were replaced: reclaim their room, if it is enough."""
        self._replaced += size
        if self._replaced >= max(RECLAIM_BYTES_MIN, RECLAIM_SHARE * self._room.size):
            await self.reclaim()

    async def reclaim(self) -> None:
        """Reclaim all room since the last time, if any was left."""
        if not self._replaced:
            return
        self._replaced = 0
        try:
            self._room = await self._store.reclaim()
        except StoreError as error:
            _log.warning("the room of what was cleaned is left for later: %s", error)

    def cleaned(self, dirty: Dirty, upto: int, size: int) -> None:
        """A stream is compacted up to there, in `size` bytes."""
        if len(self._cleaned) < STREAMS_MAX:
            self._cleaned.append((size, dirty, upto))

    async def finish(self) -> None:
        """All that was to be cleaned now is: reclaim what is left, and move it if that may shrink the file.

        Moving ends when little is free, or when the file only grows by it: a transaction that began before, such as a
        dump, keeps all that is replaced. Raises StoreError.
        """
        cleaned, self._cleaned = self._cleaned, []
        await self.reclaim()
        size, before = sum(size for size, _, _ in cleaned), self._room
        if self._excess(SPARE_SHARE_MAX) < RECLAIM_BYTES_MIN or size < MOVED_SHARE_MIN * before.used:
            return
        # The small ones first: they cost little, and one of them may be what stands at the end.
        for _, dirty, upto in sorted(cleaned, key=lambda each: each[0]):
            await self._move(dirty, upto, before)
        await self.reclaim()
        _log.info("the file of bodies took %d bytes and takes %d now", before.size, self._room.size)

    async def _move(self, dirty: Dirty, upto: int, before: Room) -> None:
        """Write a stream's segments up to `upto` once more, while that goes on and nobody else is at work on it."""
        at = 0
        while at < upto and self._goes_on(before):
            page = await self._store.read(dirty.vault, dirty.stream, at, PAGE_BYTES)
            segments = [segment for segment in page.segments if segment.last <= upto] if page else []
            if not segments or not await self._moved(dirty, upto, segments, before):
                return
            at = segments[-1].last

    async def _moved(self, dirty: Dirty, upto: int, segments: list[StoredSegment], before: Room) -> bool:
        """False: somebody else is at work on it."""
        for segment in segments:
            if len(segment.body) < LARGE_BYTES:
                continue
            if not self._goes_on(before):
                break
            began = self._pace.time()
            if not await self._store.swap(dirty.vault, dirty.stream, (segment,), segment, upto, dirty.term):
                return False
            await self._pace.rest(began)
            await self.replaced(len(segment.body))
        return True

    def _goes_on(self, before: Room) -> bool:
        return self._excess(SPARE_SHARE_LEFT) > 0 and self._room.size <= before.size

    def _excess(self, share: float) -> float:
        """Free bytes beyond this share of the file."""
        return self._room.size * (1 - share) - self._room.used
