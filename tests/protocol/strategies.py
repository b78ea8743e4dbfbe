"""Hypothesis strategies made from the layouts themselves, so that a new message is tested without being named."""

from typing import Any

from hypothesis import strategies as st

from sealwire_protocol.codec import layout_of
from sealwire_protocol.fields import (
    Enumerated,
    Field,
    Fixed,
    Later,
    ListOf,
    Row,
    Sized,
    TermField,
    Text,
    Unsigned,
    Varint,
)
from sealwire_protocol.ids import Author, KeyId, Tag, Term
from sealwire_protocol.messages import BY_TYPE, Message
from sealwire_protocol.segment import FLAGS_KNOWN, Record

BYTES_MAX = 200
"""Long enough to cross a length's first byte only where a field is a list; tests of limits are their own."""


def value_of(field: Field) -> st.SearchStrategy[Any]:
    """Any value that a field can hold, small ones more often."""
    match field:
        case Unsigned():
            return st.integers(0, 256**field.size - 1)
        case Varint():
            return st.integers(0, 300) | st.integers(0, (1 << 63) - 1)
        case Fixed():
            return st.binary(min_size=field.size, max_size=field.size)
        case Sized():
            return st.binary(max_size=min(field.most, BYTES_MAX))
        case Later():
            return value_of(field.field)
        case Text():
            return st.text(st.characters(codec="utf-8"), max_size=32)
        case Enumerated():
            return st.sampled_from(list(field.kind))
        case TermField():
            return st.builds(Term, st.integers(0, (1 << 63) - 1), st.binary(min_size=8, max_size=8))
        case Row():
            return st.builds(field.kind, *map(value_of, field.fields))
        case ListOf():
            return st.lists(value_of(field.item), max_size=4).map(tuple)
    raise AssertionError(f"no strategy for {field.name}")


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Any message of a kind."""
    return st.builds(kind, **{name: value_of(field) for name, field in layout_of(kind)})


any_message: st.SearchStrategy[Message] = st.sampled_from(list(BY_TYPE.values())).flatmap(messages_of)


def sized(bits: int) -> st.SearchStrategy[int]:
    """Numbers up to so many bits, of which many lie near the width of a compact record."""
    near = [n for n in (0, 1, 255, 256, (1 << 32) - 1, 1 << 32, (1 << bits) - 1) if n < 1 << bits]
    return st.sampled_from(near) | st.integers(0, (1 << bits) - 1)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


any_record: st.SearchStrategy[Record] = st.builds(
    Record,
    exactly(16).map(Tag),
    sized(63),
    sized(32).map(Author),
    sized(16),
    exactly(4).map(KeyId),
    st.integers(0, FLAGS_KNOWN),
    exactly(8),
    (st.integers(1, 5) | st.sampled_from([255, 256, 4_096])).map(lambda units: bytes(units * 16 + 16)),
)
