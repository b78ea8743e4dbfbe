"""What a write to a guarded stream replaces (R5): its condition, whether that holds, and what becomes of a push.

A group of a PUSH to a guarded stream has one condition for each record, in the order of the records:

    names u8, then, unless it names nothing: version varint, salt 8

Version alone would not do: a second write, sent before the first was answered, would replace somebody else's first.

A group of a refill says where each record was held instead, see `lines`; one of a reseal what `reseals` says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError, Refusal
from sealwire_protocol.ids import Tag
from sealwire_protocol.limits import WINNERS_BYTES_MAX
from sealwire_protocol.lines import Line
from sealwire_protocol.messages import Pushed, Refused
from sealwire_protocol.segment import (
    SALT_BYTES,
    TOMBSTONE,
    Record,
    decode_varint,
    encode_record,
    encode_varint,
    read_record,
)


class Names(IntEnum):
    """What a condition names. A tombstone is told apart because the relay may have purged it since."""

    NOTHING = 0
    ENTRY = 1
    TOMBSTONE = 2


class Condition(NamedTuple):
    """The one record that a write replaces, by its version and salt."""

    names: Names
    version: int = 0
    salt: bytes = b""


NOTHING: Final = Condition(Names.NOTHING)
"""The condition of a write to a tag that has no entry: nothing stands there, or a tombstone."""


class Current(NamedTuple):
    """What a guarded stream holds of a tag now: the record that won, and its seq.

    `line`: of a record that was given back after a loss (R14), in which history it stood, and of one that was sealed
    anew, where the one before it stood. Empty: it was pushed. `epoch` 0: it is not known, as of what an older relay
    took in.
    """

    version: int
    salt: bytes
    tombstone: bool
    seq: int
    line: Line = ()
    epoch: int = 0


def encode_condition(condition: Condition) -> bytes:
    """The bytes of one condition."""
    if condition.names is Names.NOTHING:
        return bytes((Names.NOTHING,))
    return bytes((condition.names,)) + encode_varint(condition.version) + condition.salt


def decode_conditions(data: bytes, count: int) -> list[Condition]:
    """Exactly `count` conditions. Raises DecodeError."""
    conditions: list[Condition] = []
    at = 0
    while at < len(data) and len(conditions) < count:
        names = data[at]
        at += 1
        if names == Names.NOTHING:
            conditions.append(NOTHING)
            continue
        if names not in (Names.ENTRY, Names.TOMBSTONE):
            raise DecodeError(f"a condition that names {names} is not known; it may need a newer version")
        version, at = decode_varint(data, at)
        salt = data[at : at + SALT_BYTES]
        at += SALT_BYTES
        if len(salt) < SALT_BYTES:
            raise DecodeError("a condition is cut off")
        conditions.append(Condition(Names(names), version, salt))
    if at != len(data) or len(conditions) != count:
        raise DecodeError("a group of a guarded stream does not have one condition for each record")
    return conditions


def holds(condition: Condition, current: Current | None, version: int, salt: bytes) -> bool:
    """Whether a record of this version and salt may replace what stands there.

    A record equal to the one held may always come again. Whatever is replaced has a smaller version. A tombstone and
    nothing at all both satisfy a condition that names nothing; nothing at all satisfies one that names a tombstone,
    because after a purge the relay cannot know.
    """
    if current is None:
        return condition.names is not Names.ENTRY
    if (version, salt) == (current.version, current.salt):
        return True
    if version <= current.version:
        return False
    if condition.names is Names.NOTHING:
        return current.tombstone
    return (condition.version, condition.salt) == (current.version, current.salt)


# --- what becomes of a push


class Write(NamedTuple):
    """One record of a guarded group: all that its judgement needs, and its bytes, `[begin, end)` of the group's."""

    tag: Tag
    version: int
    epoch: int
    salt: bytes
    tombstone: bool
    condition: Condition
    begin: int
    end: int


def read_writes(conditions: bytes, records: bytes, count: int) -> list[Write]:
    """The writes of a guarded group that has so many records, each of another tag (R4). Raises DecodeError."""
    writes, at = [], 0
    for condition in decode_conditions(conditions, count):
        _, record, end = read_record(records, at)
        tombstone = bool(record.flags & TOMBSTONE)
        writes.append(Write(record.tag, record.version, record.epoch, record.salt, tombstone, condition, at, end))
        at = end
    if len({write.tag for write in writes}) < count:
        raise DecodeError("a group of a guarded stream has two records of one tag")
    return writes


class Judged(NamedTuple):
    """What becomes of a guarded group if it is appended at a head: its accepted records follow each other there.

    `body` is their bytes, `top` the greatest version among them, `holds` what the stream holds of their tags then;
    `refused` are the others' places in the group, each with the seq of what stands there (0: nothing), and so are
    `superseded` those of a refill that are not needed.
    """

    records: int
    top: int
    body: bytes
    holds: dict[Tag, Current]
    refused: dict[int, int]
    superseded: Mapping[int, int] = MappingProxyType({})


def judge(writes: Sequence[Write], body: bytes, head: int, held: Callable[[Tag], Current | None]) -> Judged:
    """Judge a group's writes. `held`: what the stream holds before them."""
    holding: dict[Tag, Current] = {}
    refused: dict[int, int] = {}
    top, seq = 0, head
    for place, write in enumerate(writes):
        current = held(write.tag)
        if not holds(write.condition, current, write.version, write.salt):
            refused[place] = 0 if current is None else current.seq
            continue
        seq += 1
        top = max(top, write.version)
        holding[write.tag] = Current(write.version, write.salt, write.tombstone, seq, epoch=write.epoch)
    if refused:
        body = b"".join([body[write.begin : write.end] for at, write in enumerate(writes) if at not in refused])
    return Judged(seq - head, top, body, holding, refused)


def refusals(counts: Sequence[int], judged: Mapping[int, Judged], atomic: bool) -> tuple[Refused, ...]:
    """What PUSHED says of refused records. `counts`: records of each group; `judged`: those judged one by one.

    In an atomic push one conflict refuses all of it. What is merely superseded never does.
    """
    conflicts = {(group, place): seq for group, found in judged.items() for place, seq in found.refused.items()}
    if not (atomic and conflicts):
        told = [Refused(group, place, Refusal.CONFLICT, seq, b"") for (group, place), seq in conflicts.items()]
        for group, found in judged.items():
            told += [Refused(group, place, Refusal.SUPERSEDED, seq, b"") for place, seq in found.superseded.items()]
        return tuple(sorted(told))
    return tuple(
        Refused(group, place, Refusal.CONFLICT, conflicts[group, place], b"")
        if (group, place) in conflicts
        else Refused(group, place, Refusal.ATOMIC, 0, b"")
        for group, count in enumerate(counts)
        for place in range(count)
    )


def with_winners(pushed: Pushed, winners: Mapping[tuple[int, int], Record]) -> Pushed:
    """The verdict with the winning records, by (group, seq), that were found, as far as they fit into a PUSHED."""
    room, told = WINNERS_BYTES_MAX, []
    for refused in pushed.refused:
        record = winners.get((refused.group, refused.seq))
        encoded = encode_record(record) if record is not None else b""
        if len(encoded) > room:
            encoded = b""
        room -= len(encoded)
        told.append(refused._replace(winner=encoded))
    return replace(pushed, refused=tuple(told))
