"""PROTOCOL.md and the code say the same: names, layouts, numbers, states. So the page cannot drift."""

import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from sealwire_protocol import errors, fields, limits, messages
from sealwire_protocol.client_session import CLIENT_MESSAGES, ClientState
from sealwire_protocol.codec import layout_of
from sealwire_protocol.conditions import Names
from sealwire_protocol.fields import Field, ListOf, Row, TermField
from sealwire_protocol.ids import Term
from sealwire_protocol.links import LinkType, Role
from sealwire_protocol.messages import BY_TYPE, Message
from sealwire_protocol.relay_session import RELAY_MESSAGES, RelayState
from sealwire_protocol.segment import FORMAT, RANK_BYTES, SIGNED, TOMBSTONE

PAGE = (Path(__file__).resolve().parents[2] / "protocol" / "PROTOCOL.md").read_text(encoding="utf-8")
WORD = re.compile(r"^[A-Za-z_ ]+$")


def tables(text: str) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Every table: its header and its rows, without backticks."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")) for line in block.splitlines()]
        found.append((rows[0], rows[2:]))
    return found


def table(*head: str) -> list[tuple[str, ...]]:
    """The rows of the only table with this header."""
    [rows] = [rows for header, rows in tables(PAGE) if header[: len(head)] == head]
    return rows


def wire_name(kind: type[Message]) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).upper()


def sections() -> dict[str, tuple[int, str]]:
    """Type byte and text of each message's section."""
    parts = re.split(r"^### (\w+) 0x([0-9A-F]{2})$", PAGE.split("\n## 10.")[0], flags=re.MULTILINE)
    return {parts[at]: (int(parts[at + 1], 16), parts[at + 2]) for at in range(1, len(parts), 3)}


def rows_of(field: Field) -> list[Row]:
    """All rows that a field is made of."""
    if isinstance(field, ListOf):
        return rows_of(field.item)
    if isinstance(field, Row):
        return [field, *(row for part in field.fields for row in rows_of(part))]
    return []


ROWS = {row.name: row for kind in BY_TYPE.values() for _, field in layout_of(kind) for row in rows_of(field)}


def test_every_message_has_one_section_with_its_type() -> None:
    assert {name: byte for name, (byte, _) in sections().items()} == {
        wire_name(kind): byte for byte, kind in BY_TYPE.items()
    }
    assert len(re.findall(r"^### ", PAGE, re.MULTILINE)) == len(BY_TYPE)


@pytest.mark.parametrize("kind", BY_TYPE.values(), ids=wire_name)
def test_the_fields_of_every_message_are_those_of_the_code(kind: type[Message]) -> None:
    [(header, rows)] = tables(sections()[wire_name(kind)][1])
    assert header == ("field", "layout", "meaning")
    assert [row[:2] for row in rows] == [(name, field.name) for name, field in layout_of(kind)]
    assert all(meaning for _, _, meaning in rows)


def test_the_fields_of_every_row_are_those_of_the_code() -> None:
    told: dict[str, list[tuple[str, ...]]] = {}
    for name, *rest in table("row", "field", "layout"):
        told.setdefault(name, []).append(tuple(rest[:2]))
    assert told.pop("term") == [("number", "varint"), ("id", "bytes[8]")]
    assert told == {
        name: [(field, part.name) for field, part in zip(row.kind._fields, row.fields, strict=True)]
        for name, row in ROWS.items()
    }
    assert Term._fields == ("number", "id")


def test_every_layout_is_explained() -> None:
    explained = " ".join(row[0] for row in table("layout", "bytes"))
    for shape in ("u8", "u16", "u32", "varint", "bytes[n]", "bytes(u16", "bytes(u32", "text(u16", "list(u16"):
        assert shape in explained
    assert TermField.name == fields.TERM.name == "term"


def test_every_limit_is_told_with_its_value() -> None:
    told = {name: int(value) for name, value, unit, why in table("limit", "value", "unit", "why") if unit and why}
    assert told == {name: value for name, value in vars(limits).items() if name.isupper()}


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("close code", errors.CloseCode),
        ("fault code", errors.FaultCode),
        ("action", errors.Action),
        ("outcome", errors.Outcome),
        ("refusal", errors.Refusal),
        ("names", Names),
    ],
)
def test_every_code_is_told_with_its_number(head: str, kind: type[IntEnum]) -> None:
    assert {row[0]: int(row[1]) for row in table(head, "number")} == {code.name: int(code) for code in kind}


def test_every_stream_kind_role_and_link_type_is_told_with_its_number() -> None:
    [kinds] = [row[3] for row in table("row", "field", "layout") if row[:2] == ("stream state", "kind")]
    assert kinds == ", ".join(f"{kind.name} {int(kind)}" for kind in messages.StreamKind)
    assert {row[1]: int(row[0]) for row in table("type", "name", "body")} == {k.name: int(k) for k in LinkType}
    roles = ", ".join(f"{role.name} {int(role)}" for role in Role)
    assert roles in PAGE.replace("\n", " ")
    assert f"format {FORMAT}; flags: {TOMBSTONE} tombstone, {SIGNED} signed" in PAGE
    assert f"it is {RANK_BYTES} bytes" in PAGE


@pytest.mark.parametrize(
    ("head", "states", "allowed"),
    [("device's state", ClientState, CLIENT_MESSAGES), ("relay's state", RelayState, RELAY_MESSAGES)],
)
def test_every_state_is_told_with_the_messages_that_it_admits(head: str, states: Any, allowed: Any) -> None:
    told = {row[0]: set(filter(None, row[1].split(", "))) for row in table(head, "may receive")}
    assert told == {state.name: {wire_name(kind) for at, kind in allowed if at is state} for state in states}


def test_close_codes_keep_to_their_ranges() -> None:
    for code in errors.CloseCode:
        assert code < 4000 or 4000 <= code < 4200
        assert errors.may_come_back(code) == (not 4100 <= code < 4200)
    assert "4000–4099: come back" in PAGE and "4100–4199: do not come back" in PAGE


def test_every_rule_of_history_is_there_and_says_whether_it_is_carried_out() -> None:
    rules = {row[0].split()[0]: row[2] for row in table("rule", "what it says")}
    assert list(rules) == [f"R{number}" for number in range(1, 20)]
    here = {rule for rule, when in rules.items() if "here" in when}
    assert here == {f"R{number}" for number in range(1, 19)}


def test_every_section_of_the_contents_is_there() -> None:
    told = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE)
    there = re.findall(r"^## \d+\. (.+)$", PAGE, re.MULTILINE)
    assert [name for name, _ in told] == there
    for place, (name, anchor) in enumerate(told, 1):
        slug = re.sub(r"[^\w\- ]", "", f"{place} {name}".lower()).replace(" ", "-")
        assert anchor == slug


def test_a_change_of_the_code_would_be_found() -> None:
    """The tables are read, not merely searched for words."""
    assert len(tables(PAGE)) > 30 and len(table("limit", "value")) > 20
    assert all(WORD.match(name) for name in ROWS)
