"""All that the database ever held: the history that stands, what was forgotten of it, and what restores have ended."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sealwire_protocol.ids import StreamId, Tag, Term, VaultId
from sealwire_relay.store.interface import StoredSegment, VaultWrite
from sealwire_relay.store.memory import MemoryDatabase

Name = tuple[VaultId, StreamId]

Whole = defaultdict[Name, list[StoredSegment]]
"""The segments of the history that stands, by stream: each log as it would be if nobody cleaned it."""

Forgotten = defaultdict[Name, dict[Tag, int]]
"""Tombstones that were purged, by stream and tag: the head at which it was done. Nothing of the tag stands below."""


@dataclass(frozen=True)
class Snapshot:
    """The database at one moment, and what is known of how it came to be."""

    taken_at: float
    database: MemoryDatabase
    whole: dict[Name, tuple[StoredSegment, ...]]
    forgotten: dict[Name, dict[Tag, int]]


class Ended(NamedTuple):
    """Segments of a stream that a restore has taken away."""

    stream: StreamId
    segments: tuple[StoredSegment, ...]


class Past:
    """What every process shares: the database, and what was ever committed to it. `era` counts its restores."""

    def __init__(self, clock: Callable[[], float], failed: Callable[[str], None]) -> None:
        self.database: Final = MemoryDatabase()
        self.whole: Whole = defaultdict(list)
        self.forgotten: Forgotten = defaultdict(dict)
        self.ended: list[Ended] = []
        self.late: set[tuple[Name, Tag]] = set()
        """Deleted entries that may be brought back by who came too late to learn that they were."""
        self.era = 0
        self._clock, self._failed = clock, failed
        self._written_in: dict[tuple[Name, Term], int] = {}

    def committed(self, write: VaultWrite) -> None:
        """A write was carried out."""
        for stream in write.streams:
            if stream.segments:
                name = write.vault, stream.stream
                self.whole[name] += stream.segments
                if self._written_in.setdefault((name, write.term), self.era) != self.era:
                    self._failed(f"a position names one record for ever: {write.term} goes on after a restore")

    def purged(self, name: Name, tags: Sequence[Tag], head: int) -> None:
        """Tombstones were purged."""
        self.forgotten[name].update(dict.fromkeys(tags, head))

    def snapshot(self) -> Snapshot:
        """The database as it is now."""
        whole = {name: tuple(segments) for name, segments in self.whole.items()}
        forgotten = {name: dict(tags) for name, tags in self.forgotten.items()}
        return Snapshot(self._clock(), self.database.copy(), whole, forgotten)

    def restore(self, snapshot: Snapshot) -> None:
        """The database is again what it was then."""
        self.era += 1
        for name, segments in self.whole.items():
            kept = snapshot.whole.get(name, ())
            if lost := tuple(segments[len(kept) :]):
                self.ended.append(Ended(name[1], lost))
        self.whole.clear()
        self.whole.update({name: list(segments) for name, segments in snapshot.whole.items()})
        for name, tags in self.forgotten.items():
            # Whoever knew of these deletions has dropped them; backups are not to be kept for so long.
            self.late |= {(name, tag) for tag in tags.keys() - snapshot.forgotten.get(name, {}).keys()}
        self.forgotten.clear()
        self.forgotten.update({name: dict(tags) for name, tags in snapshot.forgotten.items()})
        then = snapshot.database.copy()
        self.database.term, self.database.vaults = then.term, then.vaults
        self.database.mailboxes = then.mailboxes
