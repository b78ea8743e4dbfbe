"""Documents: `pycrdt.Doc` as values, for text and trees that several people edit at once. The extra `documents`.

A value is the document's whole state as one update of the Yjs format; two values are merged by applying both.
"""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sealwire_client.forms import described
from sealwire_client.plain import EncodingError
from sealwire_client.replica.tables import Column
from sealwire_client.replica.values import Kept, Row
from sealwire_client.schema import OneColumn

if TYPE_CHECKING:
    from pycrdt import Doc


def need_documents() -> None:
    """Raises ImportError, which says what to install, unless documents can be used."""
    if find_spec("pycrdt") is None:
        raise ImportError(
            "Documents need pycrdt, which is not installed: install the extra, `sealwire-client[documents]`."
        )


def is_document(cls: type) -> bool:
    """True for `pycrdt.Doc`; imports nothing, for whoever has the class has imported it."""
    module = sys.modules.get("pycrdt")
    return module is not None and cls is module.Doc


class DocumentSchema(OneColumn["Doc[Any]"]):
    """Documents as values; the column `value` holds the state. `get` makes a new Doc each time: `put` it to keep it."""

    columns = (Column("value", "BLOB", described(0, ["document"], {})),)

    def encode(self, value: "Doc[Any]") -> bytes:
        """See `Schema.encode`."""
        if not is_document(type(value)):
            raise EncodingError(f"a {type(value).__name__} was given where a pycrdt.Doc belongs")
        return value.get_update()

    def decode(self, raw: bytes) -> "Doc[Any]":
        """See `Schema.decode`."""
        return _document(raw)

    def to_row(self, value: "Doc[Any]") -> Row:
        """See `Schema.to_row`."""
        return (self.encode(value),)

    def from_row(self, row: Row) -> "Doc[Any]":
        """See `Schema.from_row`."""
        return _document(self.cbor_from_row(row))

    def row_of(self, raw: bytes) -> tuple[Row, bool]:
        """See `OneColumn.row_of`."""
        _document(raw)
        return (raw,), True

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        """See `Schema.cbor_from_row`."""
        (value,) = row
        assert isinstance(value, bytes)
        return value

    def merge(self, base: bytes | None, mine: bytes, theirs: bytes, sequences: bool) -> bytes:
        """See `Schema.merge`: a document needs no base."""
        return _document(theirs, mine).get_update()


def _document(*updates: bytes) -> "Doc[Any]":
    from pycrdt import Doc

    document: Doc[Any] = Doc()
    try:
        for update in updates:
            document.apply_update(update)
    except ValueError as error:
        raise EncodingError(f"the bytes at hand are no document ({error})") from None
    return document
