"""Entries as rows of CSV (RFC 4180): the key, then the fields of the values by their names, of which none is lost.

A cell holds text as it is, and everything else as JSON: `42`, `true`, `null`, `["a"]`. An empty cell is a field that
the entry does not have. Text that would be taken for something else, or for nothing, is JSON text, in quotes.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, Final

from sealwire_client.cli.failures import Failure
from sealwire_client.cli.lines import LINE_BYTES_MAX
from sealwire_client.cli.output import compact
from sealwire_client.cli.values import Line, Value, wrong_line

KEY: Final = "key"
"""The name of the column that holds the keys, which is the first one of this name."""

COLUMNS_MAX: Final = 1_000
"""Fields of a collection that a table of it can have, and more than anybody looks at."""

_MARK: Final = "\ufeff"
"""Some spreadsheets begin a file with it."""

_INTEGER_MAX: Final = 2**63


def cell(value: Any) -> str:
    """What a field's value is in a table."""
    return value if type(value) is str and value and _parsed(value) == value else compact(value)


def _parsed(text: str) -> Any:
    """The value of a cell that is not empty. Numbers that could not be kept stay text."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    if type(found) is int and not -_INTEGER_MAX <= found < _INTEGER_MAX:
        return text
    if type(found) is float and not math.isfinite(found):
        return text
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def written(cells: Sequence[str]) -> bytes:
    """A row, with its end."""
    out = io.StringIO(newline="")
    csv.writer(out).writerow(cells)
    return out.getvalue().encode()


class Table:
    """A table to write, of all fields that a collection has."""

    def __init__(self) -> None:
        self._fields: dict[str, None] = {}

    def extend(self, value: Value) -> None:
        """Have columns for the fields of a value. To be called for every value, before `head`. Raises Failure."""
        for name in value:
            self._fields[name] = None
        if len(self._fields) > COLUMNS_MAX:
            raise Failure(
                f"The collection has more than {COLUMNS_MAX:,} fields, too many for a table: nothing was exported; use"
                " JSON lines",
                "too_large",
            )

    def head(self) -> bytes:
        """The first row: the names of the columns."""
        self._fields = dict.fromkeys(sorted(self._fields))
        return written([KEY, *self._fields])

    def row(self, key: str, value: Value) -> bytes:
        """The row of an entry. Raises Failure if its value has a field that it had not before."""
        if not value.keys() <= self._fields.keys():
            raise Failure(
                "The collection got another field while it was exported: nothing was written; run the same again",
                "conflict",
            )
        return written([key, *(cell(value[name]) if name in value else "" for name in self._fields)])


class Rows:
    """A table that is read, line by line."""

    def __init__(self) -> None:
        csv.field_size_limit(LINE_BYTES_MAX)
        self._names: list[str] | None = None
        self._key = 0
        self._begun = 0
        self._raw: list[bytes] = []
        self._bytes = 0
        self._quotes = 0

    def parsed(self, number: int, raw: bytes) -> Line | None:
        """The entry that ends with a line, or None if none does. Raises Failure."""
        if not self._raw:
            self._begun = number
        self._raw.append(raw)
        self._bytes += len(raw)
        self._quotes += raw.count(b'"')
        if self._quotes % 2 == 0:  # no quoted text goes on
            return self._row()
        if self._bytes > LINE_BYTES_MAX:
            raise self._wrong("its quotes do not end")
        return None

    def end(self) -> None:
        """There is no further line. Raises Failure if there should be."""
        if self._raw:
            raise self._wrong("its quotes do not end")

    def _row(self) -> Line | None:
        raw, self._raw, self._bytes, self._quotes = b"\n".join(self._raw), [], 0, 0
        if not raw.strip(b"\r\n"):
            return None
        try:
            cells = next(csv.reader([raw.decode().removeprefix(_MARK if self._names is None else "")], strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise self._wrong(f"it is no row of CSV: {error}") from None
        if self._names is None:
            self._begin(cells)
            return None
        if len(cells) > len(self._names):
            raise self._wrong(f"it has {len(cells):,} cells, and there are names for {len(self._names):,}")
        if len(cells) <= self._key:
            raise self._wrong("it has no key")
        key = cells.pop(self._key)
        names = (name for at, name in enumerate(self._names) if at != self._key)
        return Line(self._begun, key, {name: _parsed(text) for name, text in zip(names, cells, strict=False) if text})

    def _begin(self, names: list[str]) -> None:
        if KEY not in names:
            raise self._wrong(f"it must name the columns, and one of them {KEY}")
        self._key = names.index(KEY)
        others = names[: self._key] + names[self._key + 1 :]
        if len(set(others)) < len(others):
            raise self._wrong("two columns have one name")
        self._names = names

    def _wrong(self, why: str) -> Failure:
        return wrong_line(self._begun, why)
