"""Values as bytes and as rows: dataclasses ↔ positional CBOR ↔ columns of SQLite.

A value is a CBOR array in which every field stands at its number, for good: `numbered(3)`, or one more than the
field before. Fields may be added and taken away, numbers are never used again. Every field is written, and a
number that belongs to no field as CBOR's `undefined`, so a missing place means that the writer did not know
the field, which then takes its default (or None). What a newer app wrote at numbers unknown here is kept and
written back: an old app never drops what a newer one added. Schema `dict` is one map with text keys.

The same value always gives the same bytes: shortest integers, 64-bit floats, maps ordered by key, no tags, no
indefinite lengths. Dates, times and decimals are ISO and decimal text, enumerations are their values. Nested
dataclasses are arrays like the outer one; in a row they, lists and dicts are JSON text.
"""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field
from functools import cached_property
from math import copysign
from typing import Any, Final, Generic, TypeVar

from sealwire_client.declaring import declared_of
from sealwire_client.documents import DocumentSchema, is_document
from sealwire_client.forms import Form, Nested, described, encoder
from sealwire_client.kinds import kind_of
from sealwire_client.plain import UNDEFINED, EncodingError, dump, load, load_columns
from sealwire_client.replica.declared import Declared
from sealwire_client.replica.tables import Column
from sealwire_client.replica.values import Encoder, Kept, Row, SqlValue
from sealwire_client.scalars import INTEGER_MAX, Kind
from sealwire_client.schema import Schema, fits
from sealwire_client.threeway import chosen, merged_untyped
from sealwire_client.untyped import DictSchema

__all__ = ["EncodingError", "Schema", "numbered", "schema_of"]

T = TypeVar("T")

NUMBER_MAX: Final = 499
"""The greatest number of a field: numbers without a field cost a byte each in every value."""

_METADATA: Final = "sealwire"
_SHAPES_MAX: Final = 256
"""Shapes of values (the types of their fields) that a schema remembers to be right."""


def numbered(number: int, **options: Any) -> Any:
    """A dataclass field that stands at `number` in the encoding, whatever fields come and go around it.

    Numbers begin at 0. `options` are those of `dataclasses.field`.
    """
    metadata = {**options.pop("metadata", {}), _METADATA: number}
    return dataclasses.field(metadata=metadata, **options)


def schema_of(cls: type[T]) -> Schema[T]:
    """The schema of a dataclass, of `dict`, or of `pycrdt.Doc`. Raises EncodingError for what cannot be kept."""
    if cls is dict:
        return typing.cast(Schema[T], DictSchema())
    if is_document(cls):
        return typing.cast(Schema[T], DocumentSchema())
    if not dataclasses.is_dataclass(cls):
        raise EncodingError(f"{cls!r} is no schema: use a dataclass, or dict for values without declared fields")
    return DataclassSchema(cls, {})


class _Place:
    """A field: its number, its name, its kind, and what it is in a value that was written without it."""

    __slots__ = ("_field", "kind", "name", "number", "where")

    def __init__(self, number: int, field: Field[Any], kind: Kind, where: str) -> None:
        self.number, self.name, self.kind, self.where = number, field.name, kind, where
        self._field = field

    @property
    def is_numbered(self) -> bool:
        """True if the class says the number."""
        return _METADATA in self._field.metadata

    def missing(self) -> Any:
        """The plain form of the default, or None."""
        if self._field.default is not MISSING:
            value = self._field.default
        elif self._field.default_factory is not MISSING:
            value = self._field.default_factory()
        else:
            return None
        return None if value is None else self.kind.plain(value, self.where)

    def default(self) -> Any:
        """What the column holds of a value that was written without the field."""
        plain = self.missing()
        return None if plain is None else self.kind.sql(plain)

    def normal(self, plain: Any) -> Any:
        """The normal form of what stood at this place. None is let through: an older app may have allowed it."""
        return None if plain is None else self.kind.normal(plain, self.where)

    def form(self) -> str:
        """What a later app must know to read the column."""
        nested: Nested = {}
        return described(self.number, self.kind.form(nested), nested)

    def full(self, plain: Any) -> Any:
        """The normal form that keeps what a newer app wrote within it; of UNDEFINED the default."""
        if plain is UNDEFINED:
            return self.missing()
        return None if plain is None else self.kind.full(plain, self.where)

    def known(self, full: Any) -> Any:
        """The part of a full form that this app knows."""
        return None if full is None else self.kind.known(full)

    def carried(self, full: Any, before: Any) -> Any:
        """A full form with what stood unknown within the one before."""
        return full if full is None or before is None else self.kind.carried(full, before)

    def value(self, plain: Any) -> Any:
        """The app's value."""
        return None if plain is None else self.kind.value(plain, self.where)

    def takes_as_they_are(self, plains: Sequence[Any]) -> bool:
        """True if plain values that stood at this place in several values are all normal, and so go into the column."""
        types = set(map(type, plains)) - {type(None)}
        if not types <= self.kind.types:
            return False
        if int in types and not all(-INTEGER_MAX - 1 <= one <= INTEGER_MAX for one in plains if one is not None):
            return False
        if float in types and any(
            one != one or (one == 0 and copysign(1, one) < 0) for one in plains if one is not None
        ):
            return False
        try:
            return not self.kind.picky or all(self.normal(one) == one for one in set(plains))
        except EncodingError:
            return False


def _places(cls: type, known: "dict[type, DataclassSchema[Any]]") -> list[_Place]:
    try:
        declared = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise EncodingError(f"the types of {cls.__name__}'s fields cannot be found ({error})") from None

    def nested(inner: type) -> Kind:
        schema = known.get(inner)
        return _Nested(DataclassSchema(inner, known) if schema is None else schema)

    places: dict[int, _Place] = {}
    number = -1
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        number = field.metadata.get(_METADATA, number + 1)
        where = f"field {field.name!r} of {cls.__name__}"
        if type(number) is not int or not 0 <= number <= NUMBER_MAX:
            raise EncodingError(f"{where} has the number {number!r}; numbers go from 0 to {NUMBER_MAX}")
        if number in places:
            raise EncodingError(f"{where} has the number {number} of field {places[number].name!r}; give it another")
        places[number] = _Place(number, field, kind_of(declared[field.name], where, nested), where)
    if not places:
        raise EncodingError(f"{cls.__name__} has no fields, so there is nothing to keep")
    return [places[number] for number in sorted(places)]


class DataclassSchema(Generic[T]):
    """The schema of a dataclass; see `Schema` for its promises."""

    def __init__(self, cls: type[T], known: "dict[type, DataclassSchema[Any]]") -> None:
        known[cls] = self
        self._cls = cls
        self._places = _places(cls, known)
        self._width = self._places[-1].number + 1
        self._direct = len(self._places) == self._width and all(place.kind.stored_plain for place in self._places)
        self._shapes: dict[tuple[type, ...], _Checks] = {}

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """See `Schema.columns`."""
        return tuple(Column(place.name, place.kind.column, place.form()) for place in self._places)

    @cached_property
    def declared(self) -> Declared:
        """See `Schema.declared`."""
        numbered = frozenset(place.name for place in self._places if place.is_numbered)
        return declared_of(self._cls, {place.name: place.kind.form({}) for place in self._places}, numbered)

    def encode(self, value: T) -> bytes:
        """See `Schema.encode`."""
        raw = dump(self.array(self.plains(value)))
        if not self._direct:
            load(raw)  # what is nested too deep to be read again must not be written
        return raw

    def decode(self, raw: bytes) -> T:
        """See `Schema.decode`."""
        return self.value(self.normal(self._load(raw)))

    def to_row(self, value: T) -> Row:
        """See `Schema.to_row`."""
        return self._row(self.plains(value))

    def from_row(self, row: Row) -> T:
        """See `Schema.from_row`."""
        return self.value(self._unrow(row))

    def row_from_cbor(self, raw: bytes) -> tuple[Row | None, int]:
        """See `Schema.row_from_cbor`."""
        try:
            values = self._load(raw)
            row = self._direct_row(values) if self._direct else None
            if row is not None:
                return row, len(values) if dump(values) == raw else 0
            plains = self.normal(values)
            return self._row(plains), self._columns_of(plains, len(values), raw)
        except EncodingError:
            return None, 0

    def usual_rows(self, raws: Sequence[bytes]) -> list[Row] | None:
        """See `Schema.usual_rows`."""
        columns = load_columns(raws, self._width) if self._direct else None
        if columns is None or not all(map(_Place.takes_as_they_are, self._places, columns)):
            return None
        return list(zip(*columns, strict=True))

    def _direct_row(self, values: list[Any]) -> Row | None:
        """A row of values that are all of the usual types, which are made normal; None if they are not."""
        shape = tuple(map(type, values))
        checks = self._shapes.get(shape) or self._learn(shape)
        if checks is None:
            return None
        integers, floats, picky = checks
        for n in integers:
            if not -INTEGER_MAX - 1 <= values[n] <= INTEGER_MAX:
                return None
        for n in floats:
            if values[n] != values[n]:
                return None
            values[n] += 0.0
        for n in picky:
            self._places[n].normal(values[n])
        if len(values) == self._width:
            return tuple(values)
        return (*values, *[place.default() for place in self._places[len(values) :]])

    def _columns_of(self, plains: Sequence[Any], written: int, raw: bytes) -> int:
        """How many columns give these bytes again, which hold an array of `written` places; 0: none do."""
        count = len(self._places)
        while count and self._places[count - 1].number >= written:
            count -= 1
        return count if count and dump(self.array(plains)[: self._places[count - 1].number + 1]) == raw else 0

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        """See `Schema.cbor_from_row`."""
        if isinstance(kept, bytes):
            return kept
        values = self.array(self._unrow(row))
        return dump(values if kept is None else values[: self._places[kept - 1].number + 1])

    @cached_property
    def fields(self) -> Sequence[str]:
        """See `Schema.fields`."""
        return tuple(place.name for place in self._places)

    def stored(self, field: str, value: Any) -> SqlValue:
        """See `Schema.stored`."""
        place = self._places[self.fields.index(field)]
        return place.kind.sql(place.kind.plain(value, place.where))

    def defaults(self) -> Row:
        """See `Schema.defaults`."""
        return tuple(place.default() for place in self._places)

    def fits(self, forms: Sequence[str]) -> bool:
        """See `Schema.fits`."""
        return fits(self.columns, forms)

    def encoder(self, forms: Sequence[str]) -> Encoder:
        """See `Schema.encoder`."""
        return encoder(forms)

    def carry(self, raw: bytes, before: bytes) -> bytes:
        """See `Schema.carry`."""
        return dump(self.carried(self.full(self._load(raw)), self.full(self._load(before))))

    def merge(self, base: bytes | None, mine: bytes, theirs: bytes, sequences: bool) -> bytes:
        """See `Schema.merge`."""
        given = UNDEFINED if base is None else self.full(self._load(base))
        return dump(self.merged(given, self.full(self._load(mine)), self.full(self._load(theirs)), sequences))

    def plains(self, value: T) -> list[Any]:
        """The plain forms of a value's fields. Raises EncodingError."""
        if not isinstance(value, self._cls):
            raise EncodingError(f"a {type(value).__name__} was given where a {self._cls.__name__} belongs")
        try:
            return [place.kind.plain(getattr(value, place.name), place.where) for place in self._places]
        except RecursionError:
            raise EncodingError(f"a {self._cls.__name__} holds values too deep within each other") from None

    def normal(self, values: Sequence[Any]) -> list[Any]:
        """The normal plain forms of the fields in an array that came over the wire."""
        plains, size = [], len(values)
        for place in self._places:
            plain = values[place.number] if place.number < size else UNDEFINED
            plains.append(place.missing() if plain is UNDEFINED else place.normal(plain))
        return plains

    def full(self, values: Sequence[Any]) -> list[Any]:
        """The normal array of a value, with whatever a newer app wrote in it and in what is nested in it."""
        full: list[Any] = [UNDEFINED] * self._width + list(values[self._width :])
        full[: len(values)] = values
        for place in self._places:
            full[place.number] = place.full(full[place.number])
        while len(full) > self._width and full[-1] is UNDEFINED:
            full.pop()
        return full

    def known(self, full: Sequence[Any]) -> list[Any]:
        """The part of a full form that this app knows."""
        return self.array([place.known(full[place.number]) for place in self._places])

    def carried(self, full: Sequence[Any], before: Sequence[Any]) -> list[Any]:
        """A full form with what stood unknown in the one before, instead of what stands so in itself."""
        carried = list(before)
        for place in self._places:
            carried[place.number] = place.carried(full[place.number], before[place.number])
        return carried

    def merged(self, base: Any, mine: list[Any], theirs: list[Any], sequences: bool) -> list[Any]:
        """Two full forms that came from one, or from nothing (UNDEFINED), as one: whoever made the entry has not
        changed what is at its default."""
        given = (base if type(base) is list else self.full([]), mine, theirs)
        width = max(map(len, given))
        before, here, there = ([*one, *[UNDEFINED] * (width - len(one))] for one in given)
        found = [merged_untyped(*three, sequences=False) for three in zip(before, here, there, strict=True)]
        for place in self._places:
            n = place.number
            found[n] = place.kind.merged(before[n], here[n], there[n], sequences)
        return self.full(found)

    def trimmed(self, values: Sequence[Any]) -> list[Any]:
        """The normal array of a nested value without what this app does not know: as long as it was written."""
        found: list[Any] = [UNDEFINED] * min(self._width, len(values))
        for place in self._places:
            if place.number < len(values) and values[place.number] is not UNDEFINED:
                found[place.number] = place.normal(values[place.number])
        while found and found[-1] is UNDEFINED:
            found.pop()
        return found

    def form(self, nested: Nested) -> str:
        """The name in `nested` under which the fields are described."""
        name = f"{self._cls.__module__}.{self._cls.__qualname__}"
        if name not in nested:
            nested[name] = []
            nested[name] += [[place.number, place.name, place.kind.form(nested)] for place in self._places]
        return name

    def value(self, plains: Sequence[Any]) -> T:
        """The app's value."""
        return self._cls(**{place.name: place.value(plain) for place, plain in zip(self._places, plains, strict=True)})

    def json(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields that were written by their names, as SQL's JSON functions see a nested value."""
        places = [place for place in self._places if place.number < len(values)]
        found = [(place, values[place.number]) for place in places if values[place.number] is not UNDEFINED]
        return {place.name: None if plain is None else place.kind.json(plain) for place, plain in found}

    def unjson(self, found: dict[str, Any]) -> list[Any]:
        """The inverse of `json`."""
        if type(found) is not dict:
            raise TypeError("no JSON object")
        places = [place for place in self._places if place.name in found]
        values: list[Any] = [UNDEFINED] * (places[-1].number + 1 if places else 0)
        for place in places:
            one = found[place.name]
            values[place.number] = None if one is None else place.kind.unjson(one, place.where)
        return values

    def array(self, plains: Sequence[Any]) -> list[Any]:
        """The array that stands for a value."""
        if len(plains) == self._width:
            return list(plains)
        values: list[Any] = [UNDEFINED] * self._width
        for place, plain in zip(self._places, plains, strict=True):
            values[place.number] = plain
        return values

    def _load(self, raw: bytes) -> list[Any]:
        values = load(raw)
        if type(values) is not list:
            raise EncodingError(f"the bytes at hand are no {self._cls.__name__}: they hold no array")
        return values

    def _row(self, plains: Sequence[Any]) -> Row:
        if self._direct:
            return tuple(plains)
        pairs = zip(self._places, plains, strict=True)
        return tuple([None if plain is None else place.kind.sql(plain) for place, plain in pairs])

    def _unrow(self, row: Row) -> list[Any]:
        if len(row) != len(self._places):
            raise EncodingError(f"a row of {len(row)} columns is no {self._cls.__name__}")
        pairs = zip(self._places, row, strict=True)
        return [None if found is None else place.kind.unsql(found, place.where) for place, found in pairs]

    def _learn(self, shape: tuple[type, ...]) -> "_Checks":
        """Which values of this shape must be checked; None: it is not of the usual shape."""
        if not 0 < len(shape) <= self._width or not all(
            one is type(None) or one in place.kind.types for one, place in zip(shape, self._places, strict=False)
        ):
            return None
        picky = [n for n, one in enumerate(shape) if one is not type(None) and self._places[n].kind.picky]
        integers, floats = ([n for n, one in enumerate(shape) if one is number] for number in (int, float))
        if len(self._shapes) < _SHAPES_MAX:
            self._shapes[shape] = integers, floats, picky
        return integers, floats, picky


_Checks = tuple[list[int], list[int], list[int]] | None
"""The places of integers, floats and picky values of one shape."""


class _Nested(Kind):
    """A dataclass within another: an array in the encoding, a JSON object in its column."""

    stored_plain = False

    def __init__(self, schema: DataclassSchema[Any]) -> None:
        self._schema = schema

    def plain(self, value: Any, where: str) -> Any:
        return self._schema.array(self._schema.plains(value))

    def normal(self, plain: Any, where: str) -> Any:
        if type(plain) is not list:
            raise EncodingError(f"{where} cannot be of type {type(plain).__name__}")
        return self._schema.trimmed(plain)

    def value(self, plain: Any, where: str) -> Any:
        return self._schema.value(self._schema.normal(plain))

    def form(self, nested: Nested) -> Form:
        return ["nested", self._schema.form(nested)]

    def full(self, plain: Any, where: str) -> Any:
        return self._schema.full(plain) if type(plain) is list else self.normal(plain, where)

    def known(self, full: Any) -> Any:
        return self._schema.known(full)

    def carried(self, full: Any, before: Any) -> Any:
        return self._schema.carried(full, before) if type(before) is list else full

    def merged(self, base: Any, mine: Any, theirs: Any, sequences: bool) -> Any:
        if type(mine) is not list or type(theirs) is not list:
            return chosen(base, mine, theirs)
        return self._schema.merged(base, mine, theirs, sequences)

    def json(self, plain: Any) -> Any:
        return self._schema.json(plain)

    def unjson(self, found: Any, where: str) -> Any:
        return self._schema.unjson(found)
