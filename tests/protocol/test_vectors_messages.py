"""The golden vectors of messages: made again byte for byte, and true in both directions."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sealwire_protocol.codec import decode, encode, layout_of
from sealwire_protocol.errors import DecodeError
from sealwire_protocol.fields import Enumerated, Field, Fixed, Later, ListOf, Row, Sized, TermField
from sealwire_protocol.ids import Term
from sealwire_protocol.messages import BY_TYPE
from tests.protocol.vectors import VECTORS, generate, plain

FILE = json.loads(VECTORS.read_text(encoding="utf-8"))
LIST: list[dict[str, Any]] = FILE["vectors"]


def from_json(field: Field, value: Any) -> Any:
    """A field's value from JSON, by its layout alone: what another language's test would do."""
    match field:
        case Fixed() | Sized():
            return bytes.fromhex(value)
        case Later():
            return from_json(field.field, value)
        case TermField():
            return Term(value[0], bytes.fromhex(value[1]))
        case Enumerated():
            return field.kind(value)
        case Row():
            return field.kind(*(from_json(part, item) for part, item in zip(field.fields, value, strict=True)))
        case ListOf():
            return tuple(from_json(field.item, item) for item in value)
    return value


def name(vector: dict[str, Any]) -> str:
    return f"{vector['message']}-{vector['case']}"


@pytest.mark.parametrize("vector", LIST, ids=name)
def test_fields_become_the_bytes_and_the_bytes_the_fields(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    kind = BY_TYPE[int(vector["type"], 16)]
    values = {name: from_json(field, vector["fields"][name]) for name, field in layout_of(kind)}
    message = kind(**values)
    assert kind.__name__ == vector["message"] and list(values) == list(vector["fields"])
    assert encode(message) == data and decode(data) == message
    assert plain(message) == vector["fields"]


@pytest.mark.parametrize("vector", LIST, ids=name)
def test_every_part_of_a_message_is_refused(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    whole = ends_of_older_versions(data)
    for end in set(range(len(data))) - whole:
        with pytest.raises(DecodeError):
            decode(data[:end])
    for end in whole:
        message = decode(data[:end])
        assert message is not None
        told = plain(message)
        assert all(not told[name] or told[name] == value for name, value in vector["fields"].items())


def ends_of_older_versions(data: bytes) -> set[int]:
    """Where a message ends whose writer did not know the fields that were appended since, or some of them."""
    ends, at = set(), 1
    for _, field in layout_of(BY_TYPE[data[0]]):
        if isinstance(field, Later):
            ends.add(at)
        _, at = field.read(data, at)
    return ends


@pytest.mark.parametrize("vector", LIST, ids=name)
def test_fields_appended_by_a_newer_version_are_skipped(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    for more in (b"\0", b"\xff" * 40):
        assert decode(data + more) == decode(data)


def full() -> Iterator[dict[str, Any]]:
    return (vector for vector in LIST if vector["case"] == "full")


def test_every_message_has_a_minimal_and_a_full_vector() -> None:
    assert sorted(map(name, LIST)) == sorted(f"{k.__name__}-{c}" for k in BY_TYPE.values() for c in ("minimal", "full"))


def test_no_field_of_a_full_vector_says_nothing() -> None:
    empty = [(v["message"], name) for v in full() for name, value in v["fields"].items() if not value]
    assert empty == [("Pushed", "outcome")]  # DONE is 0


def test_the_file_is_made_again_byte_for_byte() -> None:
    assert VECTORS.read_text(encoding="utf-8") == generate()
