"""What the replica must know of an app's values: how their bytes become a row, and how a row becomes bytes again."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

SqlValue = None | int | float | str | bytes
Row = tuple[SqlValue, ...]
"""The value columns of one entry, in the order of the collection's columns."""

Kept = bytes | int | None
"""What is kept beside a row so that it gives its value's bytes again (R17). None: nothing. A number: only the first
so many columns were written, by an older app. Bytes: the value itself."""


Encoder = Callable[[Row], bytes]
"""Makes a value's bytes from a row. Raises EncodingError."""


class Live(IntEnum):
    """What a row is: `_live`."""

    TOMBSTONE = 0
    VALUE = 1
    NEWER = 2
    """A value that needs a newer app: the row has its bytes alone."""


_TOMBSTONE, _VALUE, _NEWER = (int(one) for one in Live)


class Values(Protocol):
    """The values of one collection. May be used by any thread."""

    def row_from_cbor(self, raw: bytes) -> tuple[Row | None, int]:
        """A row from a value's bytes, and how many of its first columns give these very bytes again; 0: none do, so
        the bytes must be kept (R17). The row is None if the value needs a newer app, whatever is wrong with it."""

    def usual_rows(self, raws: Sequence[bytes]) -> list[Row] | None:
        """Rows of many values, in a third of the time: what `row_from_cbor` says of them, if each has all of the
        columns and these give its very bytes again. None: not each has, or nobody can tell. Raises nothing."""

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        """The bytes of the value that a row holds, with what was kept beside it. Raises EncodingError."""

    def carry(self, raw: bytes, before: bytes) -> bytes:
        """A new value's bytes, with what the value before it held that this app does not know. Raises EncodingError."""

    def defaults(self) -> Row:
        """What the columns hold of a value that was written without them."""

    def fits(self, forms: Sequence[str]) -> bool:
        """True if rows whose first columns were written under these forms read as they are."""

    def encoder(self, forms: Sequence[str]) -> Encoder:
        """What makes the bytes of a value whose columns were written under these forms."""


def read(values: Values, columns: int, value: bytes) -> tuple[Row | None, Kept]:
    """A value's bytes as a row of so many columns, and what must be kept beside it. None: it needs a newer app."""
    row, count = values.row_from_cbor(value)
    return row, None if count == columns else count or value


def read_many(values: Values, columns: int, raws: Sequence[bytes]) -> list[tuple[Row | None, Kept]]:
    """As `read`, of many values."""
    rows = values.usual_rows(raws) if len(raws) > 1 else None
    return [read(values, columns, raw) for raw in raws] if rows is None else [(row, None) for row in rows]


def live(row: Row | None, kept: Kept) -> int:
    """What a row is that holds this, as SQLite binds it fastest: see Live."""
    return _VALUE if row is not None else _TOMBSTONE if kept is None else _NEWER
