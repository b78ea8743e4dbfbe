"""All that the database ever held: the history that stands, what was forgotten of it, and what restores have ended."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final, NamedTuple

import trio

from sealwire_protocol.ids import MEMBERSHIP, START, Author, StreamId, Tag, Term, VaultId
from sealwire_protocol.segment import read_segment
from sealwire_relay.store.cleaning import AckedPosition, Purge, Tombstones
from sealwire_relay.store.interface import VaultWrite
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.segments import StoredSegment
from tests.simulation.members import Members

Name = tuple[VaultId, StreamId]

Whole = defaultdict[Name, list[StoredSegment]]
"""The segments of the history that stands, by stream: each log as it would be if nobody cleaned it."""


class Grave(NamedTuple):
    """Where a tombstone stood that was purged, and the head then: no record of its tag stands up to there."""

    seq: int
    head: int


Forgotten = defaultdict[Name, dict[Tag, Grave]]
"""Tombstones that were purged, by stream and tag."""


RETENTION_SECONDS: Final = 30.0
"""How long a tombstone stays at least, in virtual time: a run lasts some minutes."""

CUTOFF_SECONDS: Final = 90.0
"""How long a device may be silent until nobody waits for it any more."""

WHOLE_SECOND: Final = 1.0
"""Ages are kept in whole seconds."""


@dataclass(frozen=True)
class Snapshot:
    """The database at one moment, and what is known of how it came to be."""

    taken_at: float
    database: MemoryDatabase
    whole: dict[Name, tuple[StoredSegment, ...]]
    forgotten: dict[Name, dict[Tag, Grave]]
    lasts: dict[Name, tuple[tuple[int, float], ...]]


class Ended(NamedTuple):
    """Segments of a stream that a restore has taken away."""

    stream: StreamId
    segments: tuple[StoredSegment, ...]


class Past:
    """What every process shares: the database, and what was ever committed to it. `era` counts its restores."""

    def __init__(self, clock: Callable[[], float], failed: Callable[[str], None], members: Members) -> None:
        self.database: Final = MemoryDatabase()
        self.members: Final = members
        self.whole: Whole = defaultdict(list)
        self.forgotten: Forgotten = defaultdict(dict)
        self.ended: list[Ended] = []
        self.late: set[tuple[Name, Tag]] = set()
        """Deleted entries that may be brought back by who came too late to learn that they were."""
        self.era = 0
        self.commit, self.purge = trio.Event(), trio.Event()
        """The next commit, and the next swap that is to purge something: set when it begins, and made anew."""
        self._clock, self._failed = clock, failed
        self._awake_since: dict[tuple[Name, Author], float] = {}
        self._written_in: dict[tuple[Name, Term], int] = {}
        self._lasts: dict[Name, list[tuple[int, float]]] = defaultdict(list)

    def committed(self, write: VaultWrite) -> None:
        """A write was carried out."""
        for stream in write.streams:
            if stream.segments:
                name = write.vault, stream.stream
                self.whole[name] += stream.segments
                self._lasts[name].append((stream.new_head, self._clock()))
                if self._written_in.setdefault((name, write.term), self.era) != self.era:
                    self._failed(f"a position names one record for ever: {write.term} goes on after a restore")

    def links_changed(self) -> None:
        """The membership log is not what it was."""
        again = self.members.again
        for kept in self.database.vaults.values():
            self.members.follow(kept.streams[MEMBERSHIP].segments, restored=bool(self.era))
        if self.members.again > again and self.era:
            # Who was no member when something was purged may hold what a restore took, like one who was silent (R13).
            self.late |= {(name, tag) for name, tags in self.forgotten.items() for tag in tags}

    def heard(self, ack: AckedPosition) -> None:
        """A device is about to be noted as there. Keeps when it was there again after a silence beyond the cutoff."""
        kept = self.database.vaults.get(ack.vault)
        member, log = (kept.by_device(ack.device), kept.streams.get(ack.stream)) if kept else (None, None)
        if member is not None and log is not None:
            author = member.state.author
            _, seen = log.acks.get(author, (START, -math.inf))
            if self._clock() - seen >= CUTOFF_SECONDS:
                self._awake_since[(ack.vault, ack.stream), author] = self._clock()

    def begins_to_commit(self) -> None:
        """A relay is about to write something."""
        self.commit.set()
        self.commit = trio.Event()

    def begins_to_purge(self) -> None:
        """Tombstones have been looked for up to the head, and are to go now."""
        self.purge.set()
        self.purge = trio.Event()

    def purged(self, name: Name, purge: Purge, told: Tombstones) -> None:
        """Tombstones were purged, as was decided upon what was `told` of the stream. Looks whether they might be (R11).

        Of a device that was silent when that was told, and was heard of since, nobody knew.
        """
        kept, log = self.database.vaults[name[0]], self.database.vaults[name[0]].streams[name[1]]
        dropped = dict(purge.dropped)
        for segment in log.segments:
            for placed in read_segment(segment.body, segment.prev, segment.last):
                if placed.record.tag in dropped:
                    self._failed(f"no loser outlives its tombstone: one at {placed.seq} does")
        ends = dict(
            zip([term for term, _ in log.terms], [start for _, start in log.terms[1:]] + [log.head], strict=True)
        )
        awake = {reader.author for reader in told.readers if told.now - reader.seen < CUTOFF_SECONDS}
        for author in kept.members:
            position, seen = log.acks.get(author, (START, -math.inf))
            if author in awake and self._clock() - seen < CUTOFF_SECONDS:
                known = position.seq if position.seq <= ends.get(position.term, -1) else 0
                for seq in dropped.values():
                    if seq > known and self._age(name, seq) < CUTOFF_SECONDS - WHOLE_SECOND:
                        self._failed(f"a tombstone waits for who is there: {seq} was not acknowledged by all")
                slept_until = self._awake_since.get((name, author), -math.inf)
                unknown = {
                    tag for tag, seq in dropped.items() if seq > known and self._written_at(name, seq) < slept_until
                }
            else:
                unknown = set(dropped)
            if self.era:
                # Whoever is silent now, or was until just now, may hold what a restore took, and what this would have
                # deleted (R13).
                self.late |= {(name, tag) for tag in unknown}
        if any(self._age(name, seq) < RETENTION_SECONDS - WHOLE_SECOND for seq in dropped.values()):
            self._failed("a tombstone stays as long as backups are kept: a younger one was purged")
        self.forgotten[name].update({tag: Grave(seq, purge.head) for tag, seq in dropped.items()})

    def _age(self, name: Name, seq: int) -> float:
        return self._clock() - self._written_at(name, seq)

    def _written_at(self, name: Name, seq: int) -> float:
        """When a record was committed, in the history that stands."""
        lasts = self._lasts[name]
        return lasts[bisect_left(lasts, (seq, 0.0))][1]

    def snapshot(self) -> Snapshot:
        """The database as it is now."""
        whole = {name: tuple(segments) for name, segments in self.whole.items()}
        forgotten = {name: dict(tags) for name, tags in self.forgotten.items()}
        lasts = {name: tuple(each) for name, each in self._lasts.items()}
        return Snapshot(self._clock(), self.database.copy(), whole, forgotten, lasts)

    def restore(self, snapshot: Snapshot) -> None:
        """The database is again what it was then."""
        self.era += 1
        shared: dict[Name, int] = {}
        for name, segments in self.whole.items():
            shared[name] = _shared(snapshot.whole.get(name, ()), segments)
            if lost := tuple(segments[shared[name] :]):
                self.ended.append(Ended(name[1], lost))
        self.whole.clear()
        self.whole.update({name: list(segments) for name, segments in snapshot.whole.items()})
        for name, tags in self.forgotten.items():
            # A backup from before a deletion that was purged since is older than backups are to be.
            kept = snapshot.whole.get(name, ())[: shared.get(name, 0)]
            head = kept[-1].last if kept else 0
            self.late |= {(name, tag) for tag, grave in tags.items() if grave.seq > head}
        self.forgotten.clear()
        self.forgotten.update({name: dict(tags) for name, tags in snapshot.forgotten.items()})
        self._lasts.clear()
        self._lasts.update({name: list(each) for name, each in snapshot.lasts.items()})
        then = snapshot.database.copy()
        for each in fields(then):
            setattr(self.database, each.name, getattr(then, each.name))
        self.links_changed()


def _shared(kept: Sequence[StoredSegment], segments: Sequence[StoredSegment]) -> int:
    """How many segments two histories have in common: a snapshot may be of one that another restore has ended."""
    pairs = zip(kept, segments, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(kept), len(segments)))
