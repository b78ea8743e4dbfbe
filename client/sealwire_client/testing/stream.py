"""One stream of the relay in memory: its log, and what a guarded one holds."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import NO_TERM, StreamId, Tag, Term, TermStart
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_protocol.segment import TOMBSTONE, Placed, encode_record, read_segment


@dataclass(slots=True)
class Stream:
    """One stream's log: segments as (prev, last, bytes); `guards`: what a guarded one holds of each tag.

    Deletions up to `floor` were left out when `floor_head` was the head; `purged` is their greatest version."""

    kind: StreamKind
    head: int = 0
    top: int = 0
    terms: list[TermStart] = field(default_factory=list)
    segments: list[tuple[int, int, bytes]] = field(default_factory=list)
    guards: dict[Tag, Current] = field(default_factory=dict)
    floor: int = 0
    floor_head: int = 0
    purged: int = 0

    @property
    def term(self) -> Term:
        """The newest term written in it."""
        return self.terms[-1].term if self.terms else NO_TERM

    def state(self, stream: StreamId) -> StreamState:
        """As SUBSCRIBED tells it."""
        floors = self.floor, self.floor_head, self.purged, self.floor_head
        return StreamState(stream, self.kind, self.head, self.top, *floors, tuple(self.terms))

    def append(self, term: Term, records: int, top: int, body: bytes) -> int:
        """Add a segment at the end. Returns the head before it."""
        prev = self.head
        if self.term.number != term.number:  # stream 0 may have another id of the present number
            self.terms.append(TermStart(term, prev))
        self.head, self.top = prev + records, max(self.top, top)
        self.segments.append((prev, self.head, body))
        return prev

    def part(self, term: Term, after: int) -> None:
        """Drop what is behind `after`; what comes is of this term."""
        self.terms = [TermStart(known, min(start, after)) for known, start in self.terms]
        self.terms.append(TermStart(term, after))
        self.segments = [segment for segment in self.segments if segment[1] <= after]
        self.head = after

    def after(self, cursor: int) -> list[tuple[int, int, bytes]]:
        """The segments that hold something after a seq."""
        return self.segments[bisect_right(self.segments, cursor, key=lambda segment: segment[1]) :]

    def purge(self) -> None:
        """Leave out all that was superseded, and all deletions, as a cleaner does when they are old (R11)."""
        best: dict[Tag, Placed] = {}
        for placed in self.records():
            held = best.get(placed.record.tag)
            if held is None or placed.record.rank >= held.record.rank:
                best[placed.record.tag] = placed
        dropped = [placed for placed in best.values() if placed.record.flags & TOMBSTONE]
        if not dropped:
            return
        stays = {placed.seq for placed in best.values()} - {placed.seq for placed in dropped}
        segments = []
        for prev, last, body in self.segments:
            seq, kept = prev, []
            for placed in read_segment(body, prev):
                if placed.seq in stays:
                    kept.append(encode_record(placed.record, placed.seq - seq - 1))
                    seq = placed.seq
            segments.append((prev, last, b"".join(kept)))
        self.segments = segments
        self.guards = {tag: held for tag, held in self.guards.items() if not held.tombstone}
        self.floor, self.floor_head = max(placed.seq for placed in dropped), self.head
        self.purged = max(self.purged, *(placed.record.version for placed in dropped))

    def records(self) -> Iterator[Placed]:
        """Every record, in order."""
        for prev, _, body in self.segments:
            yield from read_segment(body, prev)
