"""What becomes of a collection's rows when the app that opens it is another than the one that wrote them.

A newer app has more columns: old rows get the defaults, and a note of how many columns they were written with. An
older app, or one whose nested types have lost something, cannot write such rows as they were written: their bytes
are made once more by the old forms, kept, and read as if they came from another device. What needed a newer app
is read again.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

from sealwire_client.replica.values import Live, Row, Values, live, read

PAGE_ROWS: Final = 1_000
"""Rows that are read and rewritten at once: bounds the memory."""

_WRITTEN: Final = f"_live = {Live.VALUE:d} AND typeof(_raw) <> 'blob'"
_KEPT: Final = f"_live = {Live.VALUE:d} AND typeof(_raw) = 'blob'"
_NEWER: Final = f"_live = {Live.NEWER:d}"


class Reshaping:
    """Brings one stored table to the columns and forms that `values` read. Within the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, stored: str, names: Sequence[str], values: Values) -> None:
        """`names`: of all columns of the table, quoted."""
        self._connection, self._stored, self._names, self._values = connection, stored, names, values

    def bring(self, forms: Sequence[str], known: int) -> None:
        """Rewrite what was written under `forms`, one a column, for values of `known` columns.

        A form that is empty is not known: such rows are taken to be as they are read.
        """
        if all(forms) and not self._values.fits(forms):
            for rowid, count, *row in self._pages("rowid, _raw", _WRITTEN):
                assert isinstance(rowid, int)
                width = count if isinstance(count, int) else len(forms)
                self._put(rowid, self._values.cbor_from_forms(forms[:width], tuple(row[:width])), known)
        elif known > len(forms):
            self._grow(len(forms), known)
        self._read_again(_KEPT, known)

    def look_again(self, known: int) -> None:
        """Read what needed a newer app; costs next to nothing if nothing did."""
        found = self._connection.execute(f"SELECT EXISTS (SELECT 1 FROM {self._stored} WHERE {_NEWER})")
        if found.fetchone()[0]:
            self._read_again(_NEWER, known)

    def _grow(self, before: int, known: int) -> None:
        assigned = ", ".join(f"{name} = ?" for name in self._names[before:known])
        self._connection.execute(
            f"UPDATE {self._stored} SET _raw = coalesce(_raw, {before}), {assigned} WHERE {_WRITTEN}",
            self._values.defaults()[before:],
        )

    def _read_again(self, which: str, known: int) -> None:
        for rowid, raw, *_ in self._pages("rowid, _raw", which):
            assert isinstance(rowid, int) and isinstance(raw, bytes)
            self._put(rowid, raw, known)

    def _put(self, rowid: int, value: bytes, known: int) -> None:
        row, kept = read(self._values, known, value)
        padding = (None,) * (len(self._names) - (0 if row is None else known))
        assigned = ", ".join(f"{name} = ?" for name in self._names)
        self._connection.execute(
            f"UPDATE {self._stored} SET _live = ?, _raw = ?, {assigned} WHERE rowid = ?",
            (live(row, kept), kept, *(row or ()), *padding, rowid),
        )

    def _pages(self, chosen: str, which: str) -> Iterator[Row]:
        statement = (
            f"SELECT {', '.join([chosen, *self._names])} FROM {self._stored} WHERE rowid > ? AND {which}"
            f" ORDER BY rowid LIMIT {PAGE_ROWS}"
        )
        last = -(2**63)
        while page := self._connection.execute(statement, (last,)).fetchall():
            yield from page
            last = page[-1][0]
