"""Values without declared fields: dicts of what JSON can say."""

import typing
from typing import Any

from sealwire_client.forms import described
from sealwire_client.kinds import Untyped
from sealwire_client.plain import UNDEFINED, dump, load
from sealwire_client.replica.tables import Column
from sealwire_client.replica.values import Kept, Row
from sealwire_client.schema import OneColumn


class DictSchema(OneColumn[dict[str, Any]]):
    """Values without declared fields: dicts of what JSON can say, in one column. See `Schema`."""

    _kind = Untyped((dict,))
    _where = "a value"
    columns = (Column("value", "TEXT", described(0, _kind.form({}), {})),)

    def encode(self, value: dict[str, Any]) -> bytes:
        """See `Schema.encode`."""
        return dump(self._kind.plain(value, self._where))

    def decode(self, raw: bytes) -> dict[str, Any]:
        """See `Schema.decode`."""
        return self._load(raw)

    def to_row(self, value: dict[str, Any]) -> Row:
        """See `Schema.to_row`."""
        return (self._kind.sql(self._kind.plain(value, self._where)),)

    def from_row(self, row: Row) -> dict[str, Any]:
        """See `Schema.from_row`."""
        return typing.cast(dict[str, Any], self._kind.unsql(row[0], self._where))

    def row_of(self, raw: bytes) -> tuple[Row, bool]:
        """See `OneColumn.row_of`."""
        plain = self._load(raw)
        return (self._kind.sql(plain),), dump(plain) == raw

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        """See `Schema.cbor_from_row`."""
        return kept if isinstance(kept, bytes) else dump(self.from_row(row))

    def merge(self, base: bytes | None, mine: bytes, theirs: bytes, sequences: bool) -> bytes:
        """See `Schema.merge`."""
        before = UNDEFINED if base is None else self._load(base)
        return dump(self._kind.merged(before, self._load(mine), self._load(theirs), sequences))

    def _load(self, raw: bytes) -> dict[str, Any]:
        return typing.cast(dict[str, Any], self._kind.normal(load(raw), self._where))
