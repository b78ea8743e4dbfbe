"""How the protocol's names lie in columns: ids as integers, uuids and bits, writes as parallel arrays."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from sealwire_protocol.conditions import Current
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import (
    DEVICE_KEY_BYTES,
    KEY_ID_BYTES,
    MEMBERSHIP,
    STREAM_ID_BYTES,
    TERM_ID_BYTES,
    KeyId,
    StreamId,
    Term,
)
from sealwire_protocol.lines import Line, decode_line, encode_line
from sealwire_protocol.segment import SALT_BYTES
from sealwire_relay.store.interface import OUTCOMES_KEPT, AckedPosition, Purge, StoredSegment, VaultWrite

DEVICE_BITS: Final = 8 * DEVICE_KEY_BYTES
_BITS: Final = DEVICE_BITS.to_bytes(4, "big")


def signed(data: bytes) -> int:
    """Bytes as the integer that a bigint or integer column holds."""
    return int.from_bytes(data, "big", signed=True)


def stream_of(column: int) -> StreamId:
    """A stream's id from its column."""
    return StreamId(column.to_bytes(STREAM_ID_BYTES, "big", signed=True))


def term_of(number: int, column: int) -> Term:
    """A term from its two columns."""
    return Term(number, column.to_bytes(TERM_ID_BYTES, "big", signed=True))


def key_id_of(column: int) -> KeyId:
    """A key id from its column."""
    return KeyId(column.to_bytes(KEY_ID_BYTES, "big", signed=True))


def salt_of(column: int) -> bytes:
    """A record's salt from its column."""
    return column.to_bytes(SALT_BYTES, "big", signed=True)


def to_bits(data: bytes) -> bytes:
    """bit(256) on the wire: its length in bits, then the bytes."""
    return _BITS + data


def from_bits(data: bytes) -> bytes:
    """The inverse of `to_bits`."""
    return data[4:]


def check_writes(writes: Sequence[VaultWrite]) -> None:
    """Raise LocalMisuse unless segments tile, batches ascend, and no vault or stream comes twice.

    A gap between segments would be delivered as if it were no gap, so it is worth the look.
    """
    if len({write.vault for write in writes}) < len(writes):
        raise LocalMisuse("one append writes to a vault twice")
    for write in writes:
        if len({stream.stream for stream in write.streams}) < len(write.streams):
            raise LocalMisuse("one append writes to a stream twice")
        for stream in write.streams:
            places = [stream.expected_head, *[segment.last for segment in stream.segments]]
            if [segment.prev for segment in stream.segments] != places[:-1] or places[-1] != stream.new_head:
                raise LocalMisuse("the segments of an append do not tile from the old head to the new one")
            if any(first >= second for first, second in pairwise(places)):
                raise LocalMisuse("a segment of an append is empty")
            if stream.guards and not stream.segments:
                raise LocalMisuse("an append changes what a guarded stream holds, but adds nothing to the stream")
            if len({tag for tag, _ in stream.guards}) < len(stream.guards):
                raise LocalMisuse("one append says twice what a guarded stream holds of a tag")
        latest: dict[int, int] = {}
        for batch in write.batches:
            if batch.expected_last != latest.get(batch.author, batch.expected_last):
                raise LocalMisuse("a batch does not expect the one before it")
            if batch.outcome.batch <= batch.expected_last:
                raise LocalMisuse("a batch is not newer than the one it follows")
            latest[batch.author] = batch.outcome.batch


def check_swap(
    stream: StreamId, old: Sequence[StoredSegment], new: StoredSegment, cleaned_to: int, purge: Purge | None
) -> None:
    """Raise LocalMisuse unless `old` tiles the part of a log of records that `new` spans, `cleaned_to` reaches its end,
    and what is purged lies in it."""
    if stream == MEMBERSHIP:
        raise LocalMisuse("the links of a membership log are not to be left out")
    if not old or (old[0].prev, old[-1].last) != (new.prev, new.last):
        raise LocalMisuse("the new segment of a swap does not begin and end where the old ones do")
    if any(first.last != second.prev for first, second in pairwise(old)):
        raise LocalMisuse("the segments of a swap do not tile")
    if any(segment.prev >= segment.last for segment in (*old, new)):
        raise LocalMisuse("a segment of a swap is empty")
    if cleaned_to < new.last or (purge is not None and cleaned_to > purge.head):
        raise LocalMisuse("a swap replaces records beyond what it says was cleaned")
    if purge is not None:
        seqs = [seq for _, seq in purge.dropped]
        if not seqs or min(seqs) <= new.prev or max(seqs) != purge.floor or purge.floor > new.last:
            raise LocalMisuse("a swap purges what does not lie in it, or tells another floor than the last of that")


def check_acks(acks: Sequence[AckedPosition]) -> None:
    """Raise LocalMisuse if one device says two things of a stream."""
    if len({(ack.vault, ack.stream, ack.device) for ack in acks}) < len(acks):
        raise LocalMisuse("a device is said to stand at two positions of a stream")


class Columns:
    """Rows turned into the arrays that `unnest` takes, one for each column."""

    __slots__ = ("arrays",)

    def __init__(self, width: int) -> None:
        self.arrays: list[list[object]] = [[] for _ in range(width)]

    def add(self, *row: object) -> None:
        """Append one row; its width must be that of the columns."""
        for array, value in zip(self.arrays, row, strict=True):
            array.append(value)


def head_rows(write: VaultWrite) -> list[tuple[int, int | None, int | None, int | None, int | None]]:
    """(stream, expected head, new head, new top, expected floor) of the heads to lock; without streams stream 0, for
    the epoch. A head that does not move has no new one."""
    if not write.streams:
        return [(signed(MEMBERSHIP), None, None, None, None)]
    return [
        (signed(s.stream), s.expected_head, *((s.new_head, s.new_top) if s.segments else (None, None)), s.floor)
        for s in write.streams
    ]


def pusher_rows(write: VaultWrite) -> list[tuple[int, int, int]]:
    """(author, expected last batch, new last batch): one row for each author, however many batches it pushed."""
    ends: dict[int, tuple[int, int]] = {}
    for batch in write.batches:
        first, _ = ends.get(batch.author, (batch.expected_last, 0))
        ends[batch.author] = first, batch.outcome.batch
    return [(author, first, last) for author, (first, last) in ends.items()]


def segment_rows(write: VaultWrite) -> list[tuple[int, int, int, bytes]]:
    """(stream, last, prev, body)."""
    return [(signed(s.stream), g.last, g.prev, g.body) for s in write.streams for g in s.segments]


def guard_rows(write: VaultWrite) -> list[tuple[int, bytes, int, int, int, bool, bytes | None]]:
    """(stream, tag, version, salt, seq, tombstone, line)."""
    return [
        (signed(s.stream), tag, held.version, signed(held.salt), held.seq, held.tombstone, _line(held))
        for s in write.streams
        for tag, held in s.guards
    ]


def _line(held: Current) -> bytes | None:
    return encode_line(held.line) if held.line else None


def line_of(line: bytes | None) -> Line:
    """A guard's line back."""
    return () if line is None else decode_line(line)


def outcome_rows(write: VaultWrite) -> list[tuple[int, int, int, bytes, bytes]]:
    """(author, slot, batch, digest, answer); where several fall into one slot, the latest."""
    slots: dict[tuple[int, int], tuple[int, bytes, bytes]] = {}
    for batch in write.batches:
        slots[batch.author, batch.outcome.batch % OUTCOMES_KEPT] = batch.outcome
    return [(author, slot, *outcome) for (author, slot), outcome in slots.items()]


def ack_arguments(acks: Sequence[AckedPosition]) -> list[list[object]]:
    """The arguments of acked."""
    columns = Columns(6)
    for vault, stream, device, (term, seq) in acks:
        columns.add(vault, signed(stream), device, term.number, signed(term.id), seq)
    return columns.arrays


def purge_arguments(purge: Purge) -> list[object]:
    """What purge takes beside the arguments of raise_cleaned_to."""
    return [purge.head, purge.floor, purge.purged, len(purge.dropped)]


def many_arguments(writes: Sequence[VaultWrite]) -> list[list[object]]:
    """The arguments of append_many."""
    wanted, heads, pushers, segments, guards, outcomes = (Columns(width) for width in (4, 9, 5, 5, 8, 6))
    for write in writes:
        vault, term, term_id = write.vault, write.term.number, signed(write.term.id)
        locked, authors = head_rows(write), pusher_rows(write)
        wanted.add(vault, term, term_id, len(locked) + len(authors))
        for head in locked:
            heads.add(vault, *head, write.epoch, term, term_id)
        for author in authors:
            pushers.add(vault, *author, term)
        for segment in segment_rows(write):
            segments.add(vault, *segment)
        for guard in guard_rows(write):
            guards.add(vault, *guard)
        for outcome in outcome_rows(write):
            outcomes.add(vault, *outcome)
    return [array for columns in (wanted, heads, pushers, segments, guards, outcomes) for array in columns.arrays]


def one_arguments(write: VaultWrite) -> list[object]:
    """The arguments of append_one."""
    locked, authors = head_rows(write), pusher_rows(write)
    arguments: list[object] = [write.vault, write.term.number, signed(write.term.id), write.epoch]
    arguments.append(len(locked) + len(authors))
    written = ((4, segment_rows(write)), (7, guard_rows(write)), (5, outcome_rows(write)))
    for width, rows in ((5, locked), (3, authors), *written):
        columns = Columns(width)
        for row in rows:
            columns.add(*row)
        arguments.extend(columns.arrays)
    return arguments
