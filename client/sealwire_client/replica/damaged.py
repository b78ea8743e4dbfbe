"""A damaged replica, read as far as SQLite reads it: table by table, row by row, around the holes.

The file is opened read-only and never changed. A row that comes out is one that SQLite found where its tree says it
is; whether a table came out whole is judged by SQLite's own check of it.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

PROBES_MAX: Final = 4_096
"""Ranges of a table that are tried behind its holes: some tenths of a second, and every row around a few dozen of
damaged pages."""

ROWS_PER_BYTES: Final = 4
"""A row takes at least so many bytes of the file; a tree that yields more is a circle."""

FIRST_STEP: Final = 1_024
"""Behind a hole whose other end is not known, numbers are tried at this distance, and at ever doubled ones."""

_NUMBER_MAX: Final = 2**62
_CHARACTERS: Final = 0x110000
_SURROGATES: Final = range(0xD800, 0xE000)

Value = int | str
Row = dict[str, Any]


class Way(NamedTuple):
    """How a table's rows lie: ordered by `moving` among those of which the columns `fixed` are the same."""

    moving: str
    fixed: tuple[str, ...] = ()


class DamagedFile:
    """A read-only look at a damaged file, for the length of a `with` block."""

    def __init__(self, path: Path) -> None:
        """Never raises because of damage: what cannot be read is empty."""
        self.broken: set[str] = set()
        """Tables that did not come out whole."""
        self._rows_max = path.stat().st_size // ROWS_PER_BYTES + 1
        self._connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
        # A file shorter than its header says is read as far as it goes.
        for pragma in ("writable_schema = ON", "mmap_size = 0", "trusted_schema = OFF", "cell_size_check = ON"):
            self._all(f"PRAGMA {pragma}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def _all(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError, OverflowError):
            return []

    @property
    def version(self) -> int:
        """The schema version that the file tells; 0 if it cannot be read."""
        found = self._all("PRAGMA user_version")
        return int(found[0][0]) if found else 0

    def columns(self, table: str) -> list[str]:
        """A table's columns; none if its definition cannot be read."""
        return [row[1] for row in self._all(f'PRAGMA table_info("{table}")')]

    def number_of_edits(self) -> int:
        """The greatest number ever given to an edit, as far as it can be read."""
        found = self._all("SELECT max(seq) FROM sqlite_sequence WHERE name = '_edit'")
        return int(found[0][0] or 0) if found and isinstance(found[0][0], int | None) else 0

    def read(self, table: str, way: Way, fixed: Iterable[tuple[Value, ...]], take: Callable[[Row], None]) -> None:
        """Give every row that can be read to `take`; some twice. `fixed`: values that the fixed columns may have.

        Afterwards the table is among `broken` if rows of it may be missing.
        """
        if not self.columns(table):
            self.broken.add(table)
            return
        if self._all(f'PRAGMA quick_check("{table}")') != [("ok",)]:
            self.broken.add(table)
        if self._run(table, way, "", (), take)[1] or self._run(table, way, _order(way, " DESC"), (), take)[1]:
            return
        self.broken.add(table)
        for values in fixed if way.fixed else [()]:
            self._around(table, way, dict(zip(way.fixed, values, strict=True)), take)

    def _around(self, table: str, way: Way, fixed: Mapping[str, Value], take: Callable[[Row], None]) -> None:
        """Read from both ends of every hole, then look for what lies within it."""
        same = "".join(f"{name} = ? AND " for name in fixed)
        text = self._is_text(table, way.moving)
        holes: deque[tuple[Value, Value]] = deque([("", chr(_CHARACTERS - 1))] if text else [(-1, _NUMBER_MAX)])
        for _ in range(PROBES_MAX):
            if not holes:
                return
            low, high = holes.popleft()
            where = f" WHERE {same}{way.moving} > ? AND {way.moving} <= ? ORDER BY {way.moving}"
            ends: list[Value] = []
            for order, above in (("", True), (" DESC", False)):
                end, whole = self._run(table, way, where + order, (*fixed.values(), low, high), take)
                if whole:
                    break
                # What is given out before an error stops short of the last good row.
                end = end if end is not None else low if above else high
                span = (end, high) if above else (low, end)
                last, _ = self._run(table, way, f"{where}{order} LIMIT 1", (*fixed.values(), *span), take)
                ends.append(end if last is None else last)
            else:
                middle = _between(*ends)
                if middle is not None:
                    holes += [(ends[0], middle), (middle, ends[1])]

    def _is_text(self, table: str, column: str) -> bool:
        return any(row[1] == column and row[2] == "TEXT" for row in self._all(f'PRAGMA table_info("{table}")'))

    def _run(
        self, table: str, way: Way, rest: str, values: Sequence[Value], take: Callable[[Row], None]
    ) -> tuple[Value | None, bool]:
        """Take rows until the end, or a hole. Returns where the last one lies, and whether the end was reached."""
        last: Value | None = None
        try:
            cursor = self._connection.execute(f"SELECT {way.moving}, * FROM {table} NOT INDEXED{rest}", values)
            names = [column[0] for column in cursor.description[1:]]
            for count, (at, *row) in enumerate(cursor):
                if count > self._rows_max:
                    return last, False
                last = at
                take(dict(zip(names, row, strict=True)))
        except (sqlite3.Error, UnicodeDecodeError, OverflowError):
            return last, False
        return last, True


def _order(way: Way, direction: str) -> str:
    return " ORDER BY " + ", ".join(f"{name}{direction}" for name in (*way.fixed, way.moving))


def _between(low: Value, high: Value) -> Value | None:
    """Something greater than `low` and less than `high`, near their middle; None if there is nothing."""
    if isinstance(low, str) and isinstance(high, str):
        return _between_texts(low, high)
    assert isinstance(low, int) and isinstance(high, int)
    if high == _NUMBER_MAX:
        return low + max(FIRST_STEP, low) if low < _NUMBER_MAX // 4 else None
    middle = (low + high) // 2
    return middle if low < middle < high else None


def _between_texts(low: str, high: str) -> str | None:
    """As fractions of characters: their sum, halved."""
    width = max(len(low), len(high)) + 1
    whole = 0
    for text in (low, high):
        number = 0
        for place in range(width):
            number = number * _CHARACTERS + (ord(text[place]) if place < len(text) else 0)
        whole += number
    whole //= 2
    characters: list[str] = []
    for _ in range(width):
        whole, point = divmod(whole, _CHARACTERS)
        characters.append(chr(_SURROGATES.start - 1 if point in _SURROGATES else point))
    middle = "".join(reversed(characters)).rstrip("\0")
    return middle if low < middle < high else None
