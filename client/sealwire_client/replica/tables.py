"""The tables of collections: their columns, and the statements by which entries come into them and change."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Final, NamedTuple

from sealwire_client.replica.errors import ReplicaMisuse
from sealwire_client.replica.values import Live, Row
from sealwire_protocol.segment import TOMBSTONE

ROWS_TOGETHER_MAX: Final = 64
"""Rows that one statement inserts: the cost of a statement is then spread so thin that more gain nothing."""

VARIABLES_MAX: Final = 999
"""What a statement may bind in older SQLite."""

_UNLESS_THERE: Final = " ON CONFLICT (key) DO NOTHING"

_SHARED: Final = 2
_OWN: Final = 3
"""What `Table.enter_together` binds once, and of each row beside its columns."""

_SHAPES: Final = {"list": "list", "set": "list", "map": "map", "nested": "nested", "untyped": "untyped"}


class Column(NamedTuple):
    """A value column: its name in an app's SQL, its SQLite type, and its form: JSON, of which the first is the field's
    number and the second its kind; the rest only the app's values read. Empty: of old, or of values without fields."""

    name: str
    type: str
    form: str = ""
    former: Sequence[str] = ()
    """Other names that the field has had on this device."""

    @property
    def number(self) -> int | None:
        """The number of its field; None if its form is empty."""
        return int(json.loads(self.form)[0]) if self.form else None

    @property
    def shape(self) -> str:
        """What its values are made of: "list", "map", "nested", "untyped", "" for a single value or one not known."""
        if not self.form:
            return ""
        kind = json.loads(self.form)[1]
        while kind[0] == "optional":
            kind = kind[1]
        return _SHAPES.get(kind[0], "")


def quoted(name: str) -> str:
    """A name as SQL says it."""
    return '"' + name.replace('"', '""') + '"'


class Table:
    """The statements of one collection's tables: `_c<number>`, and `_s<number>` for what the log says of local rows."""

    def __init__(self, number: int, columns: Sequence[Column]) -> None:
        self.number, self.width = number, len(columns)
        self.name, self.shadow = f"_c{number}", f"_s{number}"
        self.columns = tuple(columns)
        names = [quoted(column.name) for column in columns]
        listed = "".join(f", {name}" for name in names)
        marks = ", ?" * len(names)
        taken = "".join(f", {name} = excluded.{name}" for name in names)
        unless_local = "".join(f", {name} = iif(_local, {name}, excluded.{name})" for name in names)
        restored = "".join(f", {name} = s.{name}" for name in names)
        self.selected = "key" + listed
        self._into = (
            f"INSERT INTO {self.name} (key, _rank, _key_id, _flags, _term, _seq, _local, _live, _raw{listed}) VALUES "
        )
        entry = f"(?, ?, ?, ?, ?, ?, 0, ?, ?{marks})"
        self.enter = self._into + entry + _UNLESS_THERE
        self.together = min(ROWS_TOGETHER_MAX, (VARIABLES_MAX - _SHARED) // (_OWN + self.width))
        latest = f"SELECT key, _rank, _flags FROM {self.name} ORDER BY rowid DESC LIMIT ?"
        self.entered = f"SELECT key, _rank FROM ({latest}) WHERE NOT _flags & {TOMBSTONE}"
        self.contend = (
            f"{self._into}{entry}"
            " ON CONFLICT (key) DO UPDATE SET _rank = excluded._rank, _key_id = excluded._key_id,"
            " _flags = excluded._flags, _term = excluded._term, _seq = excluded._seq,"
            f" _live = iif(_local, _live, excluded._live), _raw = iif(_local, _raw, excluded._raw){unless_local}"
            " WHERE _rank IS NULL OR excluded._rank >= _rank"
        )
        self.absorb_shadow = (
            f"INSERT INTO {self.shadow} (key, _live, _raw{listed}) SELECT ?, ?, ?{marks}"
            f" FROM {self.name} WHERE key = ? AND _local = 1 AND (_rank IS NULL OR _rank <= ?)"
            f" ON CONFLICT (key) DO UPDATE SET _live = excluded._live, _raw = excluded._raw{taken}"
        )
        self.save_shadow = (
            f"INSERT OR IGNORE INTO {self.shadow} (key, _live, _raw{listed})"
            f" SELECT key, _live, _raw{listed} FROM {self.name} WHERE key = ? AND _local = 0"
        )
        self.show = (
            f"INSERT INTO {self.name} (key, _local, _live, _raw{listed}) VALUES (?, 1, ?, ?{marks})"
            f" ON CONFLICT (key) DO UPDATE SET _local = 1, _live = excluded._live, _raw = excluded._raw{taken}"
        )
        self.restore = (
            f"UPDATE {self.name} SET _local = 0, _live = s._live, _raw = s._raw{restored}"
            f" FROM {self.shadow} AS s WHERE s.key = {self.name}.key AND {self.name}.key = ?"
        )

    @cached_property
    def enter_together(self) -> str:
        """As `enter`, of `together` live values without anything kept beside them. Binds key id and term, then of each
        its key, rank, seq and columns: half of what SQLite does for such a row is to bind it."""
        step, rows = _OWN + self.width, []
        for first in range(_SHARED + 1, _SHARED + 1 + self.together * step, step):
            columns = "".join(f", ?{first + _OWN + place}" for place in range(self.width))
            rows.append(f"(?{first}, ?{first + 1}, ?1, 0, ?2, ?{first + 2}, 0, {Live.VALUE:d}, NULL{columns})")
        return self._into + ", ".join(rows) + _UNLESS_THERE

    @property
    def stored(self) -> tuple[str, str]:
        """The names of both tables."""
        return self.name, self.shadow

    def create(self) -> str:
        """The SQL that makes both tables. Rows by rowid: keys that arrive in random order load twice as fast."""
        typed = "".join(f", {quoted(column.name)} {column.type}" for column in self.columns)
        return (
            f"CREATE TABLE {self.name} (key TEXT NOT NULL PRIMARY KEY, _live INTEGER NOT NULL{typed},"
            " _local INTEGER NOT NULL,"
            " _rank BLOB, _key_id BLOB, _flags INTEGER, _term INTEGER, _seq INTEGER, _raw BLOB);"
            f"CREATE TABLE {self.shadow} (key TEXT NOT NULL PRIMARY KEY, _live INTEGER NOT NULL{typed}, _raw BLOB)"
        )

    def index(self) -> list[str]:
        """The SQL that makes it cheap to find values that need a newer app, unless it is done already."""
        which = f"ON {{}} (key) WHERE _live = {Live.NEWER:d}"
        return [f"CREATE INDEX IF NOT EXISTS {stored}_newer {which.format(stored)}" for stored in self.stored]

    def padded(self, row: Row | None) -> Row:
        """A row as wide as the table: a tombstone has no values, and an older app knows fewer columns."""
        given = row or ()
        if len(given) > self.width:
            raise ReplicaMisuse(f"a row of {len(given)} values does not fit a collection of {self.width} columns")
        return given + (None,) * (self.width - len(given))
