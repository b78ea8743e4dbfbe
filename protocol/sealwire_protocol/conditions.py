"""What a write to a guarded stream replaces (R5): its condition, the condition's bytes, and whether it holds.

A group of a PUSH to a guarded stream has one condition for each record, in the order of the records:

    names u8, then, unless it names nothing: version varint, salt 8

Version alone would not do: a second write, sent before the first was answered, would replace somebody else's first.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError
from sealwire_protocol.segment import SALT_BYTES, decode_varint, encode_varint


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
    """What a guarded stream holds of a tag now: the record that won, and its seq."""

    version: int
    salt: bytes
    tombstone: bool
    seq: int


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
