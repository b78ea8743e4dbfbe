"""What the replica must know of an app's values: how their bytes become a row, and how a row becomes bytes again."""

from typing import Protocol

SqlValue = None | int | float | str | bytes
Row = tuple[SqlValue, ...]
"""The value columns of one entry, in the order of the collection's columns."""


class Values(Protocol):
    """The values of one collection. May be used by any thread; raises EncodingError for what does not fit them."""

    def row_from_cbor(self, raw: bytes) -> tuple[Row, bool]:
        """A row from a value's bytes, and whether `cbor_from_row` would give these very bytes again (R17)."""

    def cbor_from_row(self, row: Row) -> bytes:
        """The bytes of the value that a row holds."""

    def carry(self, raw: bytes, before: bytes) -> bytes:
        """A new value's bytes, with what the value before it held that this app does not know."""
