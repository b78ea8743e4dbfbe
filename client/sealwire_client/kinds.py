"""The kinds of fields that hold others: lists, sets, dicts; and which kind a declared type is."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from sealwire_client.forms import Form, Nested
from sealwire_client.plain import UNDEFINED, EncodingError, dump, map_order
from sealwire_client.replica.values import SqlValue
from sealwire_client.scalars import INTEGER, Boolean, Bytes, Enumerated, Float, Kind, Spelled, Text
from sealwire_client.threeway import chosen, merged_maps, merged_untyped, ordered, united

DEPTH_MAX: Final = 32
"""Lists and maps within each other in a field without a declared type."""


class Sequence(Kind):
    """A list, or a tuple of any length, of one kind. JSON in its column. A change of any item changes it whole."""

    stored_plain = False

    def __init__(self, item: Kind, make: type[list[Any] | tuple[Any, ...] | frozenset[Any]]) -> None:
        self._item, self._make = item, make

    def form(self, nested: Nested) -> Form:
        return ["list", self._item.form(nested)]

    def plain(self, value: Any, where: str) -> Any:
        if not isinstance(value, self._make):
            raise EncodingError(f"{where} cannot be of type {type(value).__name__}; it takes a {self._make.__name__}")
        return [self._item.plain(one, where) for one in value]

    def normal(self, plain: Any, where: str) -> Any:
        if type(plain) is not list:
            raise EncodingError(f"{where} cannot be of type {type(plain).__name__}")
        return [self._item.normal(one, where) for one in plain]

    def value(self, plain: Any, where: str) -> Any:
        return self._make(self._item.value(one, where) for one in plain)

    def full(self, plain: Any, where: str) -> Any:
        if type(plain) is not list:
            return self.normal(plain, where)
        return [self._item.full(one, where) for one in plain]

    def known(self, full: Any) -> Any:
        return [self._item.known(one) for one in full]

    def carried(self, full: Any, before: Any) -> Any:
        """Items are the same as before where all that this app knows of them is."""
        if type(before) is not list:
            return full
        unused: dict[bytes, list[Any]] = {}
        for one in reversed(before):
            unused.setdefault(dump(self._item.known(one)), []).append(one)
        found = [(one, unused.get(dump(self._item.known(one)))) for one in full]
        return [self._item.carried(one, held.pop()) if held else one for one, held in found]

    def merged(self, base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
        return united(base, mine, theirs) if sequences else chosen(base, mine, theirs)

    def json(self, plain: Any) -> Any:
        return [self._item.json(one) for one in plain]

    def unjson(self, found: Any, where: str) -> Any:
        return [self._item.unjson(one, where) for one in found]


class Set(Sequence):
    """A frozenset of one kind: a list in one order. Members put in and taken out by two sides are so in both."""

    def __init__(self, item: Kind) -> None:
        super().__init__(item, frozenset)

    def form(self, nested: Nested) -> Form:
        return ["set", self._item.form(nested)]

    def plain(self, value: Any, where: str) -> Any:
        return ordered(super().plain(value, where))

    def normal(self, plain: Any, where: str) -> Any:
        return ordered(super().normal(plain, where))

    def full(self, plain: Any, where: str) -> Any:
        return ordered(super().full(plain, where))

    def carried(self, full: Any, before: Any) -> Any:
        return ordered(super().carried(full, before))

    def merged(self, base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
        return ordered(super().merged(base, mine, theirs, sequences=True))


class Map(Kind):
    """A dict with text keys and values of one kind. JSON in its column."""

    stored_plain = False

    def __init__(self, item: Kind) -> None:
        self._item = item

    def form(self, nested: Nested) -> Form:
        return ["map", self._item.form(nested)]

    def plain(self, value: Any, where: str) -> Any:
        return self._mapped(value, where, self._item.plain)

    def normal(self, plain: Any, where: str) -> Any:
        return self._mapped(plain, where, self._item.normal)

    def value(self, plain: Any, where: str) -> Any:
        return {key: self._item.value(one, where) for key, one in plain.items()}

    def full(self, plain: Any, where: str) -> Any:
        return self._mapped(plain, where, self._item.full)

    def known(self, full: Any) -> Any:
        return {key: self._item.known(one) for key, one in full.items()}

    def carried(self, full: Any, before: Any) -> Any:
        if type(before) is not dict:
            return full
        return {key: self._item.carried(one, before[key]) if key in before else one for key, one in full.items()}

    def merged(self, base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
        return merged_maps(base, mine, theirs, lambda b, m, t: self._item.merged(b, m, t, sequences))

    def json(self, plain: Any) -> Any:
        return {key: self._item.json(one) for key, one in plain.items()}

    def unjson(self, found: Any, where: str) -> Any:
        return {key: self._item.unjson(one, where) for key, one in found.items()}

    @staticmethod
    def _mapped(given: Any, where: str, change: Callable[[Any, str], Any]) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise EncodingError(f"{where} cannot be of type {type(given).__name__}; it takes a dict")
        if not all(type(key) is str for key in given):
            raise EncodingError(f"{where} has a key that is not text; use text keys")
        return {key: change(one, where) for key, one in sorted(given.items(), key=map_order)}


class Untyped(Kind):
    """Whatever JSON can say: a field declared as `Any`, `list` or `dict`, or a whole value without a schema."""

    stored_plain = False

    def __init__(self, accepted: tuple[type, ...] = (object,)) -> None:
        self._accepted = accepted

    def form(self, nested: Nested) -> Form:
        return ["untyped", *sorted(one.__name__ for one in self._accepted)]

    def normal(self, plain: Any, where: str) -> Any:
        if not isinstance(plain, self._accepted):
            raise EncodingError(f"{where} cannot be of type {type(plain).__name__}")
        return self._normal(plain, where, DEPTH_MAX)

    def merged(self, base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
        """Dicts by their keys, whatever is in them; `sequences`: lists as sets."""
        return merged_untyped(base, mine, theirs, sequences)

    def _normal(self, plain: Any, where: str, depth: int) -> Any:
        if plain is None or type(plain) in (str, bool):
            return plain
        if type(plain) is int:
            return INTEGER.normal(plain, where)
        if type(plain) is float:
            if not math.isfinite(plain):
                raise EncodingError(f"{where} holds a number that is not finite, which JSON does not know")
            return plain + 0.0
        if type(plain) is list and depth:
            return [self._normal(one, where, depth - 1) for one in plain]
        if type(plain) is dict and depth and all(type(key) is str for key in plain):
            ordered = sorted(plain.items(), key=map_order)
            return {key: self._normal(one, where, depth - 1) for key, one in ordered}
        if not depth:
            raise EncodingError(f"{where} holds more than {DEPTH_MAX} lists or dicts within each other")
        raise EncodingError(
            f"{where} holds a {type(plain).__name__}; without a declared type only what JSON can say is kept: text,"
            " numbers, booleans, None, lists, and dicts with text keys"
        )


class Optional(Kind):
    """A value of another kind, or None."""

    def __init__(self, inner: Kind) -> None:
        self._inner = inner
        self.column, self.stored_plain, self.types = inner.column, inner.stored_plain, inner.types | {type(None)}
        self.picky = inner.picky

    def form(self, nested: Nested) -> Form:
        return ["optional", self._inner.form(nested)]

    def plain(self, value: Any, where: str) -> Any:
        return None if value is None else self._inner.plain(value, where)

    def normal(self, plain: Any, where: str) -> Any:
        return None if plain is None else self._inner.normal(plain, where)

    def value(self, plain: Any, where: str) -> Any:
        return None if plain is None else self._inner.value(plain, where)

    def full(self, plain: Any, where: str) -> Any:
        return None if plain is None else self._inner.full(plain, where)

    def known(self, full: Any) -> Any:
        return None if full is None else self._inner.known(full)

    def carried(self, full: Any, before: Any) -> Any:
        return full if full is None or before is None else self._inner.carried(full, before)

    def merged(self, base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
        if mine is None or theirs is None:
            return chosen(base, mine, theirs)
        return self._inner.merged(UNDEFINED if base is None else base, mine, theirs, sequences)

    def json(self, plain: Any) -> Any:
        return None if plain is None else self._inner.json(plain)

    def unjson(self, found: Any, where: str) -> Any:
        return None if found is None else self._inner.unjson(found, where)

    def unsql(self, found: SqlValue, where: str) -> Any:
        return None if found is None else self._inner.unsql(found, where)


_SIMPLE: Final[dict[Any, Kind]] = {
    str: Text(),
    int: INTEGER,
    float: Float(),
    bool: Boolean(),
    bytes: Bytes(),
    datetime: Spelled(datetime, datetime.isoformat, datetime.fromisoformat),
    date: Spelled(date, date.isoformat, date.fromisoformat),
    Decimal: Spelled(Decimal, str, Decimal),
    Any: Untyped(),
    list: Untyped((list,)),
    dict: Untyped((dict,)),
}


def kind_of(declared: Any, where: str, nested: Callable[[type], Kind]) -> Kind:
    """The kind of a declared type; `nested` makes that of a dataclass. Raises EncodingError if there is none."""
    if isinstance(declared, typing.NewType):
        return kind_of(declared.__supertype__, where, nested)
    simple = _SIMPLE.get(declared)
    if simple is not None:
        return simple
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if origin is typing.Annotated:
        return kind_of(inner[0], where, nested)
    if origin in (typing.Union, types.UnionType):
        rest = [one for one in inner if one is not type(None)]
        if len(rest) == 1 and len(rest) < len(inner):
            return Optional(kind_of(rest[0], where, nested))
    elif origin is list:
        return Sequence(kind_of(inner[0], where, nested), list)
    elif origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return Sequence(kind_of(inner[0], where, nested), tuple)
    elif origin is frozenset:
        return Set(kind_of(inner[0], where, nested))
    elif origin is dict and inner[0] is str:
        return Map(kind_of(inner[1], where, nested))
    elif isinstance(declared, type) and issubclass(declared, Enum):
        return Enumerated(declared, where)
    elif isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return nested(declared)
    raise EncodingError(
        f"{where} has the type {declared}, which cannot be kept: use str, int, float, bool, bytes, Decimal, date,"
        " datetime, an Enum, a dataclass, X | None, or list[X], tuple[X, ...], frozenset[X]"
        " and dict[str, X] of these"
    )
