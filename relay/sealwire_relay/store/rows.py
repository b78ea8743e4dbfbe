"""How the protocol's names lie in columns: ids as integers, uuids and bits, writes as parallel arrays."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

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
    TermStart,
)
from sealwire_protocol.limits import TERMS_TOLD_MAX
from sealwire_protocol.lines import Line, decode_line, encode_line
from sealwire_protocol.links import Role, encode_links
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_protocol.segment import SALT_BYTES
from sealwire_relay.store.interface import OUTCOMES_KEPT, LinkLog, MemberState, NewLink, Page, VaultState, VaultWrite
from sealwire_relay.store.segments import StoredSegment, bytes_of

Row = Mapping[str, Any]
"""What a query returns, by the names of its columns."""

MOVED: Final = 65_536
"""Added to the epoch in the heads of a vault that is at another relay: no append is of such a one, and none of an epoch
of two bytes is so great."""

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


def state_columns(state: VaultState) -> tuple[int, int]:
    """A vault's state as the columns epoch and key_id of all its heads."""
    return state.epoch + MOVED * state.moved, signed(state.key_id)


def state_of(row: Row) -> VaultState:
    """The inverse of `state_columns`."""
    return VaultState(row["epoch"] % MOVED, key_id_of(row["key_id"]), row["epoch"] >= MOVED)


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
        latest: dict[MemberState, int] = {}
        for member, expected_last, outcome in write.batches:
            if member.role is Role.REPLACED:
                raise LocalMisuse("a batch of a member that was replaced is not carried out")
            if expected_last != latest.get(member, expected_last):
                raise LocalMisuse("a batch does not expect the one before it")
            if outcome.batch <= expected_last:
                raise LocalMisuse("a batch is not newer than the one it follows")
            latest[member] = outcome.batch


def check_end(there: LinkLog, after: int, links: Sequence[bytes]) -> None:
    """Raise LocalMisuse unless there is something to be put behind links that stay, of a log that has as many."""
    if not links or not 1 <= after <= len(there.links):
        raise LocalMisuse("no links are put into the place of others, or not behind links that stay")


def link_segments(after: int, links: Sequence[bytes]) -> list[StoredSegment]:
    """Links as segments of stream 0, each of its own."""
    return [StoredSegment(seq - 1, seq, encode_links([raw])) for seq, raw in enumerate(links, after + 1)]


def member_columns(link: NewLink) -> tuple[int | None, bytes | None, int | None]:
    """Author, device and role of the member that a link adds."""
    member = link.member
    return (None, None, None) if member is None else (member.author, member.device, member.role)


class Columns:
    """Rows turned into the arrays that `unnest` takes, one for each column."""

    __slots__ = ("arrays",)

    def __init__(self, width: int) -> None:
        self.arrays: list[list[object]] = [[] for _ in range(width)]

    def add(self, *row: object) -> None:
        """Append one row; its width must be that of the columns."""
        for array, value in zip(self.arrays, row, strict=True):
            array.append(value)


def head_rows(write: VaultWrite) -> list[tuple[int, int | None, int | None, int | None, int | None, int, int]]:
    """(stream, expected head, new head, new top, expected floor, bytes added, id of the term) of the heads to lock;
    without streams stream 0, for the epoch. A head that does not move has no new one."""
    if not write.streams:
        return [(signed(MEMBERSHIP), None, None, None, None, 0, signed(write.term.id))]
    return [
        (
            signed(s.stream),
            s.expected_head,
            *((s.new_head, s.new_top) if s.segments else (None, None)),
            s.floor,
            bytes_of(s.segments),
            signed((s.term or write.term).id),
        )
        for s in write.streams
    ]


def pusher_rows(write: VaultWrite) -> list[tuple[int, int, int, bytes, int]]:
    """(author, expected last batch, new last batch, device, role): one row for each member, however many batches it
    pushed."""
    first: dict[MemberState, int] = {}
    last: dict[MemberState, int] = {}
    for member, expected_last, outcome in write.batches:
        first.setdefault(member, expected_last)
        last[member] = outcome.batch
    return [(member.author, first[member], end, member.device, member.role) for member, end in last.items()]


def segment_rows(write: VaultWrite) -> list[tuple[int, int, int, bytes]]:
    """(stream, last, prev, body)."""
    return [(signed(s.stream), g.last, g.prev, g.body) for s in write.streams for g in s.segments]


def guard_rows(write: VaultWrite) -> list[tuple[int, bytes, int, int, int, bool, bytes | None, int]]:
    """(stream, tag, version, salt, seq, tombstone, line, epoch)."""
    return [
        (signed(s.stream), tag, held.version, signed(held.salt), held.seq, held.tombstone, _line(held), held.epoch)
        for s in write.streams
        for tag, held in s.guards
    ]


def _line(held: Current) -> bytes | None:
    return encode_line(held.line) if held.line else None


def line_of(line: bytes | None) -> Line:
    """A guard's line back."""
    return () if line is None else decode_line(line)


def outcome_columns(write: VaultWrite) -> list[list[object]]:
    """Authors, slots, batches, digests, answers; where several fall into one slot, the latest. There is a row for each
    push, so they are not made row by row."""
    slots: dict[tuple[int, int], tuple[int, bytes, bytes]] = {}
    for (author, _, _), _, outcome in write.batches:
        slots[author, outcome.batch % OUTCOMES_KEPT] = outcome
    if not slots:
        return [[], [], [], [], []]
    return [list(column) for rows in (slots, slots.values()) for column in zip(*rows, strict=True)]


def many_arguments(writes: Sequence[VaultWrite]) -> list[list[object]]:
    """The arguments of append_many."""
    wanted, heads, pushers, segments, guards = written = [Columns(width) for width in (4, 11, 7, 5, 9)]
    outcomes: list[list[object]] = [[] for _ in range(6)]
    for write in writes:
        vault, term, term_id = write.vault, write.term.number, signed(write.term.id)
        epoch, key_id = write.key[0], signed(write.key[1])
        locked, authors = head_rows(write), pusher_rows(write)
        wanted.add(vault, term, term_id, len(locked) + len(authors))
        for *head, own_id in locked:
            heads.add(vault, *head, epoch, key_id, term, own_id)
        for author in authors:
            pushers.add(vault, *author, term)
        for segment in segment_rows(write):
            segments.add(vault, *segment)
        for guard in guard_rows(write):
            guards.add(vault, *guard)
        of_pushes = outcome_columns(write)
        outcomes[0].extend([vault] * len(of_pushes[0]))
        for array, column in zip(outcomes[1:], of_pushes, strict=True):
            array.extend(column)
    return [array for columns in written for array in columns.arrays] + outcomes


def one_arguments(write: VaultWrite) -> list[object]:
    """The arguments of append_one."""
    locked, authors = head_rows(write), pusher_rows(write)
    arguments: list[object] = [write.vault, write.term.number, signed(write.term.id)]
    arguments += [write.key[0], signed(write.key[1]), len(locked) + len(authors)]
    for width, rows in ((7, locked), (5, authors), (4, segment_rows(write)), (8, guard_rows(write))):
        columns = Columns(width)
        for row in rows:
            columns.add(*row)
        arguments += columns.arrays
    return arguments + outcome_columns(write)


def stream_state_of(stream: StreamId, row: Row) -> StreamState:
    """A stream's state from its columns, or that it is absent."""
    if row["kind"] is None:
        return StreamState(stream, StreamKind.ABSENT, 0, 0, 0, 0, 0, 0, ())
    return StreamState(
        stream,
        StreamKind(row["kind"]),
        row["head"],
        row["top"],
        row["floor"],
        row["floor_head"],
        row["purged"],
        row["cleaned_to"],
        terms_of(row["terms"][-3 * TERMS_TOLD_MAX :]),
    )


def terms_of(flat: Sequence[int]) -> tuple[TermStart, ...]:
    """Terms from their column."""
    starts = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return tuple(TermStart(term_of(number, id_), start) for number, id_, start in starts)


def page_of(rows: Sequence[Row]) -> Page:
    """A page from its rows, of which there is at least one."""
    first = rows[0]
    return Page(
        term_of(first["term"], first["term_id"]),
        first["head"],
        first["floor"],
        first["floor_head"],
        first["purged"],
        first["cleaned_to"],
        tuple(StoredSegment(row["prev"], row["last"], row["body"]) for row in rows if row["last"] is not None),
    )
