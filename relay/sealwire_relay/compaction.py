"""Compaction without I/O: which records of a log survive, and what its segments are without the others.

A log is cleaned in steps. Up to some seq nothing is left to be found: of each tag one record stands there. A step takes
some more of the log, its tail. `Survivors` learns the tail, then says of every record, first of the older ones and then
of the tail's, whether it stays. Of one tag the record of the greatest rank stays, of equal ranks the later (R1, R11).
Seqs never change.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from sealwire_protocol.ids import Tag
from sealwire_protocol.segment import Placed, encode_varint, read_record, read_segment
from sealwire_relay.store.interface import StoredSegment

JOINED_BYTES_MAX: Final = 131_072
"""Bytes up to which segments are joined: one read and one frame then carry a thousand small entries, and a device's
credit still pays for several."""

JOINED_MIN: Final = 4
"""Segments that must become one before they are written anew although no record of them goes."""


class Survivors:
    """The records that win, of the tags that occur in a tail. Some 300 bytes of memory for each of these tags."""

    def __init__(self) -> None:
        self._best: dict[Tag, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._best)

    def learn(self, segment: StoredSegment) -> None:
        """Take in the tail, segment by segment, in order. Raises DecodeError."""
        for seq, record in read_segment(segment.body, segment.prev, segment.last):
            best, rank = self._best.get(record.tag), record.rank.pack()
            if best is None or rank >= best[0]:
                self._best[record.tag] = rank, seq

    def stays(self, placed: Placed) -> bool:
        """True if a record survives. To be asked of all older records before any of the tail's."""
        best = self._best.get(placed.record.tag)
        if best is None or best[1] == placed.seq:
            return True
        rank = placed.record.rank.pack()
        if rank > best[0]:
            self._best[placed.record.tag] = rank, placed.seq
            return True
        return False


class Swap(NamedTuple):
    """Consecutive segments, and the one that is to stand in their place."""

    old: tuple[StoredSegment, ...]
    new: StoredSegment
    left_out: int
    """Records that are gone from it."""


class _Kept(NamedTuple):
    """A segment with those of its records that stay, each with its seq, without its skip count."""

    segment: StoredSegment
    records: list[tuple[int, bytes]]
    left_out: int
    size: int


def swaps(segments: Iterable[StoredSegment], stays: Callable[[Placed], bool]) -> Iterator[Swap]:
    """What must be written anew so that only the records that stay are left, and small segments are joined.

    `segments` are consecutive. No segment is divided, so that what was pushed together stays together (R16). Holds
    some JOINED_BYTES_MAX of them at a time. Raises DecodeError.
    """
    group: list[_Kept] = []
    size = 0
    for segment in segments:
        kept = _kept(segment, stays)
        if group and size + kept.size > JOINED_BYTES_MAX:
            yield from _swap(group)
            group, size = [], 0
        group.append(kept)
        size += kept.size
    yield from _swap(group)


def _kept(segment: StoredSegment, stays: Callable[[Placed], bool]) -> _Kept:
    data, at, seq = segment.body, 0, segment.prev
    records: list[tuple[int, bytes]] = []
    left_out = size = 0
    while at < len(data):
        skip, record, end = read_record(data, at)
        seq += skip + 1
        if stays(Placed(seq, record)):
            records.append((seq, data[at + len(encode_varint(skip)) : end]))
            size += end - at
        else:
            left_out += 1
        at = end
    return _Kept(segment, records, left_out, size)


def _swap(group: Sequence[_Kept]) -> Iterator[Swap]:
    """A group as one segment, if that is worth it. What stays as it is at either end is left alone."""
    if len(group) < JOINED_MIN:
        while group and not group[0].left_out:
            group = group[1:]
        while group and not group[-1].left_out:
            group = group[:-1]
    left_out = sum(kept.left_out for kept in group)
    if not left_out and len(group) < JOINED_MIN:
        return
    at = group[0].segment.prev
    parts: list[bytes] = []
    for kept in group:
        for seq, raw in kept.records:
            parts += encode_varint(seq - at - 1), raw
            at = seq
    old = tuple(kept.segment for kept in group)
    yield Swap(old, StoredSegment(old[0].prev, old[-1].last, b"".join(parts)), left_out)
