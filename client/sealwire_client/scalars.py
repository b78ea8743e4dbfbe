"""What a kind of field is, and the kinds that hold one thing: text, numbers, dates, enumerations."""

import base64
import binascii
import json
import math
import typing
from collections.abc import Callable
from decimal import InvalidOperation
from enum import Enum
from typing import Any, Final

from sealwire_client.forms import Form, Nested
from sealwire_client.plain import EncodingError
from sealwire_client.replica.values import SqlValue
from sealwire_client.threeway import chosen

INTEGER_MAX: Final = 2**63 - 1


class Kind:
    """One kind of field. Plain forms are normal: whatever two equal values were made of, theirs are equal."""

    column: str = "TEXT"
    stored_plain: bool = True
    """The column holds the plain form itself."""
    types: frozenset[type] = frozenset()
    """What the plain form may be, if it is a scalar."""
    picky: bool = False
    """Not every plain value of these types is one of this kind."""

    def form(self, nested: Nested) -> Form:
        """What a later app must know to read a column of this kind. Dataclasses are described in `nested`, once."""
        raise AssertionError(f"{type(self).__name__} has no form")

    def plain(self, value: Any, where: str) -> Any:
        """The plain form of an app's value. Raises EncodingError."""
        return self.normal(value, where)

    def normal(self, plain: Any, where: str) -> Any:
        """The normal form of a plain value that came over the wire. Raises EncodingError."""
        if type(plain) not in self.types:
            raise EncodingError(f"{where} cannot be of type {type(plain).__name__}")
        return plain

    def value(self, plain: Any, where: str) -> Any:
        """The app's value of a normal plain form. Raises EncodingError."""
        return plain

    def full(self, plain: Any, where: str) -> Any:
        """The normal form that keeps what a newer app wrote within it. Raises EncodingError."""
        return self.normal(plain, where)

    def known(self, full: Any) -> Any:
        """The part of a full form that this app knows."""
        return full

    def carried(self, full: Any, before: Any) -> Any:
        """A full form with what stood unknown to this app in the one before it, wherever that is still to be found."""
        return full

    def merged(self, base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
        """Two full forms that came from one, as one; UNDEFINED: there was none. Where both changed the same, mine."""
        return chosen(base, mine, theirs)

    def json(self, plain: Any) -> Any:
        """The form that stands in JSON text."""
        return plain

    def unjson(self, found: Any, where: str) -> Any:
        """The plain form of what `json` gave."""
        return found

    def sql(self, plain: Any) -> SqlValue:
        """What the column holds."""
        if plain is None or self.stored_plain:
            return typing.cast(SqlValue, plain)
        return json.dumps(self.json(plain), ensure_ascii=False, separators=(",", ":"))

    def unsql(self, found: SqlValue, where: str) -> Any:
        """The plain form of what the column holds."""
        if found is None or self.stored_plain:
            return found
        try:
            return self.unjson(json.loads(typing.cast(str, found)), where)
        except (ValueError, TypeError, LookupError, AttributeError):
            raise EncodingError(f"{where} does not hold the JSON that belongs there") from None


class Text(Kind):
    """Text."""

    types = frozenset((str,))

    def form(self, nested: Nested) -> Form:
        return ["text"]

    def plain(self, value: Any, where: str) -> Any:
        return str.__str__(value) if isinstance(value, str) else self.normal(value, where)


class Integer(Kind):
    """An integer that SQLite can hold."""

    column = "INTEGER"
    types = frozenset((int,))

    def form(self, nested: Nested) -> Form:
        return ["integer"]

    def normal(self, plain: Any, where: str) -> Any:
        if type(plain) is not int:
            return super().normal(plain, where)
        if not -INTEGER_MAX - 1 <= plain <= INTEGER_MAX:
            raise EncodingError(f"{where} is an integer of more than 64 bits; keep it as text")
        return plain


class Float(Kind):
    """A number. Not-a-number is refused (SQLite would make it NULL); minus zero is zero."""

    column = "REAL"
    types = frozenset((float,))

    def form(self, nested: Nested) -> Form:
        return ["float"]

    def normal(self, plain: Any, where: str) -> Any:
        if type(plain) is int and abs(plain) <= INTEGER_MAX:
            plain = float(plain)
        if type(plain) is not float:
            return super().normal(plain, where)
        if math.isnan(plain):
            raise EncodingError(f"{where} is not a number (NaN), which cannot be kept; use None")
        return plain + 0.0

    def json(self, plain: Any) -> Any:
        return plain if math.isfinite(plain) else str(plain)

    def unjson(self, found: Any, where: str) -> Any:
        return float(found)


class Boolean(Kind):
    """True or false."""

    column = "BOOLEAN"
    types = frozenset((bool,))

    def form(self, nested: Nested) -> Form:
        return ["boolean"]

    def unsql(self, found: SqlValue, where: str) -> Any:
        return None if found is None else bool(found)


class Bytes(Kind):
    """Bytes."""

    column = "BLOB"
    types = frozenset((bytes,))

    def form(self, nested: Nested) -> Form:
        return ["bytes"]

    def json(self, plain: Any) -> Any:
        return base64.b64encode(plain).decode()

    def unjson(self, found: Any, where: str) -> Any:
        try:
            return base64.b64decode(found, validate=True)
        except binascii.Error:
            raise EncodingError(f"{where} does not hold the base64 that belongs there") from None


class Spelled(Kind):
    """Something with one spelling as text: a date, a time, a decimal number."""

    types = frozenset((str,))
    picky = True

    def __init__(self, cls: type, spell: Callable[[Any], str], read: Callable[[str], Any]) -> None:
        self._cls, self._spell, self._read = cls, spell, read

    def form(self, nested: Nested) -> Form:
        return [self._cls.__name__]

    def plain(self, value: Any, where: str) -> Any:
        if type(value) is not self._cls:
            raise EncodingError(f"{where} cannot be of type {type(value).__name__}; it takes a {self._cls.__name__}")
        return self._spell(value)

    def normal(self, plain: Any, where: str) -> Any:
        plain = super().normal(plain, where)
        self.value(plain, where)
        return plain

    def value(self, plain: Any, where: str) -> Any:
        try:
            return self._read(plain)
        except (ValueError, InvalidOperation):
            raise EncodingError(f"{where} holds {plain!r}, which is no {self._cls.__name__}") from None


class Enumerated(Kind):
    """A member of an enumeration, kept by its value."""

    picky = True

    def __init__(self, cls: type[Enum], where: str) -> None:
        self._cls = cls
        kinds = {type(member.value) for member in cls}
        if kinds not in ({str}, {int}):
            raise EncodingError(f"{where} is an enumeration whose values are neither all text nor all integers")
        self.types = frozenset(kinds)
        self.column = "TEXT" if kinds == {str} else "INTEGER"
        self._known = frozenset(member.value for member in cls)

    def form(self, nested: Nested) -> Form:
        return ["enumeration", *sorted(self._known)]

    def plain(self, value: Any, where: str) -> Any:
        if not isinstance(value, self._cls):
            raise EncodingError(f"{where} cannot be of type {type(value).__name__}; it takes a {self._cls.__name__}")
        return value.value

    def normal(self, plain: Any, where: str) -> Any:
        plain = super().normal(plain, where)
        if plain not in self._known:
            raise EncodingError(f"{where} holds {plain!r}, which is no {self._cls.__name__} known here")
        return INTEGER.normal(plain, where) if type(plain) is int else plain

    def value(self, plain: Any, where: str) -> Any:
        return self._cls(self.normal(plain, where))


INTEGER: Final = Integer()
