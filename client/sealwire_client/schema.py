"""What every kind of value offers: how it becomes bytes, how it becomes a row, how two of them become one."""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from sealwire_client.forms import covers
from sealwire_client.plain import EncodingError
from sealwire_client.replica.declared import NOTHING_DECLARED, Declared
from sealwire_client.replica.tables import Column
from sealwire_client.replica.values import Encoder, Kept, Row, SqlValue

T = TypeVar("T")


class Schema(Protocol[T]):
    """How values of one type become bytes and rows. Got from `schema_of`; may be used by any thread.

    All methods raise EncodingError for what does not fit the schema, and for bytes nothing else.
    """

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that hold a value, in the order of the fields' numbers."""

    @property
    def declared(self) -> Declared:
        """What its class says of the columns."""

    def encode(self, value: T) -> bytes:
        """The bytes of a value."""

    def decode(self, raw: bytes) -> T:
        """A value from its bytes."""

    def to_row(self, value: T) -> Row:
        """A value as its columns hold it."""

    def from_row(self, row: Row) -> T:
        """A value from its columns."""

    def row_from_cbor(self, raw: bytes) -> tuple[Row | None, int]:
        """A row straight from a value's bytes, and how many of its columns give these very bytes again (R17).

        All of them do for what an app like this one wrote, fewer if it lacked the last ones, 0 if the bytes must be
        kept: a field of a newer app, another encoder. Raises nothing: the row is None if `decode` would raise.
        """

    def usual_rows(self, raws: Sequence[bytes]) -> list[Row] | None:
        """Rows of many values, in a third of the time: what `row_from_cbor` says of them, if each has all of the
        columns and these give its very bytes again. None: not each has, or nobody can tell. Raises nothing."""

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        """The bytes of the value that a row holds, with what was kept beside it."""

    @property
    def fields(self) -> Sequence[str]:
        """The fields of which `stored` can be asked, by their names in SQL; none if none are declared."""

    def stored(self, field: str, value: Any) -> SqlValue:
        """What the column of a field holds of an app's value of it."""

    def defaults(self) -> Row:
        """What the columns hold of a value that was written without them."""

    def fits(self, forms: Sequence[str]) -> bool:
        """True if rows whose first columns were written under these forms read as they are."""

    def encoder(self, forms: Sequence[str]) -> Encoder:
        """What makes the bytes of a value whose columns were written under these forms."""

    def carry(self, raw: bytes, before: bytes) -> bytes:
        """A new value's bytes, with what the value before it held that this app does not know.

        Within it too: in nested dataclasses, under the same key of a dict, and in items of lists of which all that
        this app knows is as it was.
        """

    def merge(self, base: bytes | None, mine: bytes, theirs: bytes, sequences: bool) -> bytes:
        """Two values that came from `base`, if there was one, as one, field by field; unknown ones too.

        Where both changed the same, mine; without a base, who left a field at its default did not change it. Sets,
        nested dataclasses and dicts are merged within, and with `sequences` lists and tuples as if they were sets.
        """


def fits(columns: Sequence[Column], forms: Sequence[str]) -> bool:
    """True if rows whose first columns were written under these forms read as they are under those of `columns`."""
    return len(forms) <= len(columns) and all(
        covers(column.form, form) for column, form in zip(columns, forms, strict=False)
    )


class OneColumn(Generic[T]):
    """What schemas have in common whose values lie in one column as a whole. See `Schema`."""

    columns: tuple[Column, ...]
    declared: Declared = NOTHING_DECLARED

    def row_of(self, raw: bytes) -> tuple[Row, bool]:
        """The row of a value's bytes, and whether it gives them again. Raises EncodingError."""
        raise AssertionError(f"{type(self).__name__} must say how a value becomes a row")

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        """See `Schema.cbor_from_row`."""
        raise AssertionError(f"{type(self).__name__} must say how a row becomes a value")

    def row_from_cbor(self, raw: bytes) -> tuple[Row | None, int]:
        """See `Schema.row_from_cbor`."""
        try:
            row, exact = self.row_of(raw)
        except EncodingError:
            return None, 0
        return row, int(exact)

    def usual_rows(self, raws: Sequence[bytes]) -> list[Row] | None:
        """See `Schema.usual_rows`."""
        return None

    @property
    def fields(self) -> Sequence[str]:
        """See `Schema.fields`: none are declared."""
        return ()

    def stored(self, field: str, value: Any) -> SqlValue:
        """See `Schema.stored`."""
        raise EncodingError(f"{type(self).__name__} has no field {field!r}")

    def defaults(self) -> Row:
        """See `Schema.defaults`."""
        return (None,)

    def fits(self, forms: Sequence[str]) -> bool:
        """See `Schema.fits`."""
        return fits(self.columns, forms)

    def encoder(self, forms: Sequence[str]) -> Encoder:
        """See `Schema.encoder`: such a value is no array of columns."""
        return self.cbor_from_row

    def carry(self, raw: bytes, before: bytes) -> bytes:
        """See `Schema.carry`: nothing in such a value is unknown."""
        return raw
