"""What becomes of a collection's rows when the app that opens it is another than the one that wrote them.

A newer app has more columns after the old ones: rows get their defaults, and a note of how many columns they were
written with. An older app, or one that has lost something within or between them, cannot write such rows as they were
written: their bytes are made once more by the old forms, kept, and read as if they came from another device. What
needed a newer app is read again.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from sealwire_client.replica.tables import quoted
from sealwire_client.replica.values import Live, Row, SqlValue, Values, live, read

PAGE_ROWS: Final = 1_000
"""Rows that are read and rewritten at once: bounds the memory."""

_WRITTEN: Final = f"_live = {Live.VALUE:d} AND typeof(_raw) <> 'blob'"
_KEPT: Final = f"_live = {Live.VALUE:d} AND typeof(_raw) = 'blob'"
_NEWER: Final = f"_live = {Live.NEWER:d}"


class Reshaping:
    """Brings one stored table to the columns and forms that `values` read. Within the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, stored: str, names: Sequence[str], values: Values) -> None:
        """`names`: of all columns of the table, those that `values` read first."""
        self._connection, self._stored, self._values = connection, stored, values
        self._names = [quoted(name) for name in names]

    def bring(self, forms: Sequence[str], names: Sequence[str], known: int) -> None:
        """Rewrite what was written under `forms`, in the columns of these names, for values of `known` columns.

        A form that is empty is not known: such rows are taken to be as they are read.
        """
        if all(forms) and not self._values.fits(forms):
            self._write_again(forms, [quoted(name) for name in names], known)
        elif known > len(forms):
            self._grow(len(forms), known)
        self._read_again(_KEPT, known)

    def look_again(self, known: int) -> None:
        """Read what needed a newer app; costs next to nothing if nothing did."""
        found = self._connection.execute(f"SELECT EXISTS (SELECT 1 FROM {self._stored} WHERE {_NEWER})")
        if found.fetchone()[0]:
            self._read_again(_NEWER, known)

    def _write_again(self, forms: Sequence[str], names: Sequence[str], known: int) -> None:
        encoders = [self._values.encoder(forms[:width]) for width in range(len(forms) + 1)]
        for page in self._pages(_WRITTEN, names):
            found = []
            for rowid, count, *row in page:
                width = count if isinstance(count, int) else len(forms)
                found.append((rowid, encoders[width](tuple(row[:width]))))
            self._put(found, known)

    def _grow(self, before: int, known: int) -> None:
        assigned = ", ".join(f"{name} = ?" for name in self._names[before:known])
        self._connection.execute(
            f"UPDATE {self._stored} SET _raw = coalesce(_raw, {before}), {assigned} WHERE {_WRITTEN}",
            self._values.defaults()[before:],
        )

    def _read_again(self, which: str, known: int) -> None:
        for page in self._pages(which, ()):
            self._put([(rowid, raw) for rowid, raw, *_ in page], known)

    def _put(self, found: Iterable[tuple[SqlValue, SqlValue]], known: int) -> None:
        """Make rows of these values, each with its rowid."""
        rows = []
        for rowid, value in found:
            assert isinstance(value, bytes)
            row, kept = read(self._values, known, value)
            padding = (None,) * (len(self._names) - (0 if row is None else known))
            rows.append((live(row, kept), kept, *(row or ()), *padding, rowid))
        assigned = ", ".join(f"{name} = ?" for name in self._names)
        self._connection.executemany(f"UPDATE {self._stored} SET _live = ?, _raw = ?, {assigned} WHERE rowid = ?", rows)

    def _pages(self, which: str, names: Sequence[str]) -> Iterator[list[Row]]:
        """The rows that are so, each with its rowid, what is kept beside it, and the columns of these names."""
        statement = (
            f"SELECT {', '.join(['rowid', '_raw', *names])} FROM {self._stored} WHERE rowid > ? AND {which}"
            f" ORDER BY rowid LIMIT {PAGE_ROWS}"
        )
        last: SqlValue = -(2**63)
        while page := self._connection.execute(statement, (last,)).fetchall():
            yield page
            last = page[-1][0]
