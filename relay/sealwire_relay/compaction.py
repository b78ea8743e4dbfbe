"""Compaction without I/O: which records of a log survive, and what its segments are without the others.

A log is cleaned in steps. Up to some seq nothing is left to be found: of each tag one record stands there. A step takes
some more of the log, its tail. `Survivors` learns the tail, then says of every record, first of the older ones and then
of the tail's, whether it stays. Of one tag the record of the greatest rank stays, of equal ranks the later (R1, R11).
Seqs never change.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError
from sealwire_protocol.ids import KEY_ID_BYTES, TAG_BYTES, Tag
from sealwire_protocol.segment import (
    FLAGS_KNOWN,
    FORMAT,
    MAC_BYTES,
    SALT_BYTES,
    TOMBSTONE,
    Placed,
    Rank,
    Record,
    beyond,
    encode_varint,
    read_record,
)
from sealwire_relay.store.segments import StoredSegment

JOINED_BYTES_MAX: Final = 131_072
"""Bytes up to which segments are joined: one read and one frame then carry a thousand small entries, and a device's
credit still pays for several."""

JOINED_MIN: Final = 4
"""Segments that must become one before they are written anew although no record of them goes."""

_COMPACT: Final = frozenset(range(FORMAT << 4, (FORMAT << 4 | FLAGS_KNOWN) + 1))
"""The kinds of records that come in the narrow width, nearly all of them."""

_NUMBERS: Final = Struct(f">IBB{KEY_ID_BYTES}x{SALT_BYTES}s")
"""The numbers in a narrow record that make its rank: version, author, epoch, salt. They follow its kind and tag."""

_HEADER: Final = Struct(f">BB{TAG_BYTES}s{_NUMBERS.size}xB")
"""Skip count, kind, tag and units of a narrow record that skips less than 128 places."""


class Survivors:
    """The records that win, of the tags that occur in a tail. Some 300 bytes of memory for each of these tags."""

    def __init__(self) -> None:
        self._best: dict[Tag, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._best)

    def learn(self, segment: StoredSegment) -> None:
        """Take in the tail, segment by segment, in order. Raises DecodeError."""
        best, seq = self._best, segment.prev
        for seq, tag, at, _ in _walk(segment):
            held, rank = best.get(tag), _rank(segment.body, at)
            if held is None or rank >= held[0]:
                best[tag] = rank, seq
        if seq > segment.last:
            raise segment.damaged(beyond(seq, segment.last))

    @property
    def tags(self) -> Container[Tag]:
        """The tags of the tail: what has another one stays, unasked."""
        return self._best.keys()

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


class Buried:
    """Counts the tombstones that are met, and keeps the seq of the first."""

    __slots__ = ("first", "number")

    def __init__(self) -> None:
        self.number = self.first = 0

    def note(self, seq: int) -> None:
        """One is met. To be told of all in order."""
        self.number += 1
        self.first = self.first or seq


class Swap(NamedTuple):
    """Consecutive segments, and the one that is to stand in their place."""

    old: tuple[StoredSegment, ...]
    new: StoredSegment
    left_out: int
    """Records that are gone from it."""


class _Run(NamedTuple):
    """Records of a segment that stay with none between them that goes: the first's skip count is left away."""

    first: int
    last: int
    raw: bytes


class _Kept(NamedTuple):
    """A segment, and what stays of it."""

    segment: StoredSegment
    runs: list[_Run]
    left_out: int
    size: int


def swaps(
    segments: Iterable[StoredSegment], tags: Container[Tag], stays: Callable[[Placed], bool], buried: Buried
) -> Iterator[Swap]:
    """What must be written anew so that only the records that stay are left, and small segments are joined.

    `segments` are consecutive. Records with one of the `tags` are asked for, in their order; all others stay. No
    segment is divided, so that what was pushed together stays together (R16). Tombstones that stay are told to
    `buried`. Holds some JOINED_BYTES_MAX of segments at a time. Raises DecodeError.
    """
    group: list[_Kept] = []
    size = 0
    for segment in segments:
        kept = _kept(segment, tags, stays, buried)
        if group and size + kept.size > JOINED_BYTES_MAX:
            yield from _swap(group)
            group, size = [], 0
        group.append(kept)
        size += kept.size
    yield from _swap(group)


def _walk(segment: StoredSegment) -> Iterator[tuple[int, Tag, int, int]]:
    """Of each record its seq, its tag, where it begins behind its skip count, and where it ends. Raises DecodeError.

    Narrow ones, which are nearly all, are told by their header alone; whatever is anything else is read whole.
    """
    data, seq, unpack, header, compact = segment.body, segment.prev, _HEADER.unpack_from, _HEADER.size, _COMPACT
    at, size = 0, len(data)
    while at < size:
        try:
            skip, kind, tag, units = unpack(data, at)
        except StructError:
            kind = 0
        if kind in compact and skip < 0x80 and units and (end := at + header + (units << 4) + MAC_BYTES) <= size:
            begin = at + 1
        else:
            try:
                skip, record, end = read_record(data, at)
            except DecodeError as error:
                raise segment.damaged(error) from error
            tag, begin = record.tag, at + len(encode_varint(skip))
        seq += skip + 1
        yield seq, tag, begin, end
        at = end


def found(segment: StoredSegment, wanted: Callable[[Tag, bool], bool]) -> Iterator[tuple[int, Tag, bytes]]:
    """Seq, tag and packed rank of the records that are `wanted` by their tag and by whether they are tombstones.

    Raises DecodeError.
    """
    for seq, tag, at, _ in _walk(segment):
        if wanted(tag, bool(segment.body[at] & TOMBSTONE)):
            yield seq, tag, _rank(segment.body, at)


def _record(data: bytes, at: int) -> Record:
    """The record that begins there. The byte before it is the last of its skip count, and so one by itself."""
    return read_record(data, at - 1)[1]


def _rank(data: bytes, at: int) -> bytes:
    """The rank of the record that begins there, as `Rank.pack` has it."""
    if data[at] not in _COMPACT:
        return _record(data, at).rank.pack()
    version, author, epoch, salt = _NUMBERS.unpack_from(data, at + 1 + TAG_BYTES)
    return Rank(version, epoch, author, salt).pack()


def _kept(segment: StoredSegment, tags: Container[Tag], stays: Callable[[Placed], bool], buried: Buried) -> _Kept:
    data, runs = segment.body, list[_Run]()
    left_out = first = last = begin = until = 0
    for seq, tag, at, end in _walk(segment):
        if tag in tags and not stays(Placed(seq, _record(data, at))):
            left_out += 1
            if begin < until:
                runs.append(_Run(first, last, data[begin:until]))
            begin = until = 0
            continue
        if data[at] & TOMBSTONE:
            buried.note(seq)
        if begin == until:
            first, begin = seq, at
        last, until = seq, end
    if begin < until:
        runs.append(_Run(first, last, data[begin:until]))
    return _Kept(segment, runs, left_out, sum(len(run.raw) + 1 for run in runs))


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
        for first, last, raw in kept.runs:
            parts += encode_varint(first - at - 1), raw
            at = last
    old = tuple(kept.segment for kept in group)
    yield Swap(old, StoredSegment(old[0].prev, old[-1].last, b"".join(parts)), left_out)
