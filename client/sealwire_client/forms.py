"""What a column looked like to the app that wrote it, as text beside the table.

An app changes: a field is added within a nested dataclass, a member to an enumeration, a user goes back to an older
app. By the form under which a row was written its bytes can be made again (R17), and then read as today's app
reads a value that comes from another device.
"""

import base64
import json
import typing
from collections.abc import Sequence
from typing import Any, Final

from sealwire_client.plain import UNDEFINED, EncodingError, dump
from sealwire_client.replica.values import Encoder, Row, SqlValue

Form = list[Any]
"""The name of a kind, then the forms or names that it is made of."""

Nested = dict[str, Any]
"""Nested dataclasses by their place in it: lists of (number, name, form)."""

_IN_JSON: Final = frozenset(("list", "set", "map", "nested", "untyped"))


def described(number: int, form: Form, nested: Nested) -> str:
    """A column's form as text."""
    return json.dumps([number, form, nested], separators=(",", ":"))


def covers(later: str, earlier: str) -> bool:
    """True if rows written under the earlier form read as they are under the later one, and give their bytes again."""
    (number, form, nested), (old_number, old_form, old_nested) = json.loads(later), json.loads(earlier)
    return number == old_number and _covers(form, nested, old_form, old_nested, set())


def _covers(form: Form, nested: Nested, old: Form, old_nested: Nested, seen: set[tuple[str, str]]) -> bool:
    if form[0] == "optional":
        return _covers(form[1], nested, old[1] if old[0] == "optional" else old, old_nested, seen)
    if form[0] != old[0]:
        return False
    if form[0] == "enumeration":
        return set(old[1:]) <= set(form[1:])
    if form[0] in ("list", "set", "map"):
        return _covers(form[1], nested, old[1], old_nested, seen)
    if form[0] != "nested":
        return form == old
    pair = form[1], old[1]
    if pair in seen:
        return True
    seen.add(pair)
    fields = {(number, name): one for number, name, one in nested[form[1]]}
    return all(
        (number, name) in fields and _covers(fields[number, name], nested, one, old_nested, seen)
        for number, name, one in old_nested[old[1]]
    )


def encoder(forms: Sequence[str]) -> Encoder:
    """What makes the bytes of a value whose columns were written under these forms, from its row.

    It raises EncodingError if the row is not so.
    """
    read = [json.loads(form) for form in forms]
    width = 1 + max((number for number, _, _ in read), default=-1)

    def encode(row: Row) -> bytes:
        values: list[Any] = [UNDEFINED] * width
        try:
            for (number, form, nested), held in zip(read, row, strict=True):
                values[number] = _column(form, nested, held)
        except (ValueError, TypeError, LookupError, AttributeError):
            raise EncodingError("a row does not hold what its columns' forms say") from None
        return dump(values)

    return encode


def _column(form: Form, nested: Nested, held: SqlValue) -> Any:
    if held is None:
        return None
    while form[0] == "optional":
        form = form[1]
    if form[0] in _IN_JSON:
        return _plain(form, nested, json.loads(typing.cast(str, held)))
    return bool(held) if form[0] == "boolean" else held


def _plain(form: Form, nested: Nested, found: Any) -> Any:
    """The plain form of what stands in JSON."""
    if found is None:
        return None
    match form[0]:
        case "optional":
            return _plain(form[1], nested, found)
        case "float":
            return float(found)
        case "bytes":
            return base64.b64decode(found, validate=True)
        case "list" | "set":
            return [_plain(form[1], nested, one) for one in found]
        case "map":
            return {key: _plain(form[1], nested, one) for key, one in found.items()}
        case "nested":
            fields = [(number, name, one) for number, name, one in nested[form[1]] if name in found]
            values: list[Any] = [UNDEFINED] * (1 + max((number for number, _, _ in fields), default=-1))
            for number, name, one in fields:
                values[number] = _plain(one, nested, found[name])
            return values
    return found
