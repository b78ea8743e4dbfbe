"""What becomes of a collection's entries, as typed values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sealwire_client.differences import Difference
from sealwire_client.replica import Row
from sealwire_client.schema import Schema

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watched(Generic[T]):
    """What became of the watched entries since their reader was told the last time; the first time, all are inserted.

    `values` has all that are there now, in the order of their keys. Values that did not change are the same objects
    each time: they are for reading.
    """

    values: Mapping[str, T]
    inserted: Mapping[str, T] = field(default_factory=dict)
    updated: Mapping[str, T] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()


class Values(Generic[T]):
    """Makes typed differences of those of a query for `key` and a schema's columns. Keeps the present values."""

    def __init__(self, schema: Schema[T]) -> None:
        self._schema = schema
        self._values: dict[str, T] = {}

    def __call__(self, difference: Difference) -> Watched[T]:
        """The same difference, of typed values. Raises EncodingError, and keeps what it had."""
        inserted = dict(self._read(each.row) for each in difference.inserted)
        updated = dict(self._read(each.row) for each in difference.updated)
        known = self._values | inserted | updated
        keys = [str(row[0]) for row in difference.rows]
        self._values = dict(zip(keys, map(known.__getitem__, keys), strict=True))
        deleted = tuple(str(each.key) for each in difference.deleted)
        return Watched(self._values, inserted, updated, deleted)

    def _read(self, row: Row) -> tuple[str, T]:
        return str(row[0]), self._schema.from_row(row[1:])
