"""Entries: each collection a table of real columns, and how records and edits change it.

A row shows the newest value that the device knows. `_local = 1`: that is a claim of its own, an edit, a sealed
write or a stuck one; what the log says then lies in the shadow table. `_rank` and the columns after it are always
the log's.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.errors import ColumnsChangedError, ReplicaMisuse
from sealwire_client.replica.values import Row, Values
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import StreamKind

CHANGES_NAMED_MAX: Final = 1_000
"""Changed keys that one delivery names to watchers. Of more it says only that there were many: naming each costs
a lookup, and whoever watches asks anew anyway."""

COLUMNS_MAX: Final = 500
"""Columns of a collection: a statement binds each twice at most, and older SQLite allow 999 (now 32,766)."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TYPES: Final = frozenset(("TEXT", "INTEGER", "REAL", "NUMERIC", "BLOB", "BOOLEAN"))


class Column(NamedTuple):
    """A value column: its name in an app's SQL, and its SQLite type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as it was opened. Immutable; may be handed to any thread."""

    number: int
    vault: int
    name: str
    stream: StreamId
    kind: StreamKind
    policy: str
    columns: tuple[Column, ...]
    """The columns that the app knows: the first of the table's."""
    table: "Table" = field(repr=False, compare=False)
    values: Values = field(repr=False, compare=False)
    """How its values lie in bytes and rows."""


class Incoming(NamedTuple):
    """A record of the log, opened. `row` None: a tombstone. `raw`: the value, if the row encodes otherwise (R17)."""

    seq: int
    key: str
    rank: bytes
    key_id: bytes
    flags: int
    row: Row | None
    raw: bytes | None = None


class Unopened(NamedTuple):
    """A record that could not be opened, kept as it came. `sealed`: its seal holds, so that its rank is a member's
    word; else anyone may have written it there, and it steers nothing."""

    seq: int
    rank: bytes
    record: bytes
    reason: str
    sealed: bool = False


class Edit(NamedTuple):
    """An app's edit: the row as shown and the value bytes as sealed, both None for a delete.

    `raw`: the row alone would not encode to this value (R17).
    """

    key: str
    row: Row | None
    value: bytes | None
    raw: bool = False


class Kind(Enum):
    """What a watcher sees happen to a key."""

    INSERTED = "inserted"
    UPDATED = "updated"
    DELETED = "deleted"


class Change(NamedTuple):
    """A key whose visible value changed."""

    key: str
    kind: Kind


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Table:
    """The statements of one collection's tables: `_c<number>`, and `_s<number>` for what the log says of local rows."""

    def __init__(self, number: int, columns: Sequence[Column]) -> None:
        self.name, self.shadow, self.width = f"_c{number}", f"_s{number}", len(columns)
        self.columns = tuple(columns)
        names = [_quoted(column.name) for column in columns]
        listed = "".join(f", {name}" for name in names)
        marks = ", ?" * len(names)
        taken = "".join(f", {name} = excluded.{name}" for name in names)
        unless_local = "".join(f", {name} = iif(_local, {name}, excluded.{name})" for name in names)
        restored = "".join(f", {name} = s.{name}" for name in names)
        self.selected = "key" + listed
        self.absorb = (
            f"INSERT INTO {self.name} (key, _rank, _key_id, _flags, _term, _seq, _local, _live, _raw{listed})"
            f" VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?{marks})"
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

    def create(self) -> str:
        """The SQL that makes both tables. Rows by rowid: keys that arrive in random order load twice as fast."""
        typed = "".join(f", {_quoted(column.name)} {column.type}" for column in self.columns)
        return (
            f"CREATE TABLE {self.name} (key TEXT NOT NULL PRIMARY KEY, _live INTEGER NOT NULL{typed},"
            " _local INTEGER NOT NULL,"
            " _rank BLOB, _key_id BLOB, _flags INTEGER, _term INTEGER, _seq INTEGER, _raw BLOB);"
            f"CREATE TABLE {self.shadow} (key TEXT NOT NULL PRIMARY KEY, _live INTEGER NOT NULL{typed}, _raw BLOB)"
        )

    def padded(self, row: Row | None) -> Row:
        """A row as wide as the table: a tombstone has no values, and an older app knows fewer columns."""
        given = row or ()
        if len(given) > self.width:
            raise ReplicaMisuse(f"a row of {len(given)} values does not fit a collection of {self.width} columns")
        return given + (None,) * (self.width - len(given))


def check_names(name: str, columns: Sequence[Column]) -> None:
    """Refuse names that an app's SQL could not say, or that would hide the replica's own. Raises ReplicaMisuse."""
    if not _NAME.fullmatch(name) or name.lower().startswith("sqlite_"):
        raise ReplicaMisuse(
            f"{name!r} cannot name a collection: use a letter, then up to 63 letters, digits or underscores."
        )
    seen = {"key", "rowid", "oid"}
    if len(columns) > COLUMNS_MAX:
        raise ReplicaMisuse(f"a collection has at most {COLUMNS_MAX} columns, not {len(columns)}")
    for column in columns:
        if not _NAME.fullmatch(column.name) or column.name.lower() in seen:
            raise ReplicaMisuse(
                f"{column.name!r} cannot name a column of {name}: use a letter, then letters, digits or underscores, "
                "each name once, and neither `key` nor `rowid`."
            )
        if column.type not in _TYPES:
            raise ReplicaMisuse(
                f"column {column.name} of {name} has the type {column.type!r}, which is none of SQLite's"
            )
        seen.add(column.name.lower())


class Entries:
    """The collections of a replica and what is in them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.opened: dict[int, Collection] = {}
        """Collections opened in this run, by number."""

    def open(
        self,
        vault: int,
        name: str,
        stream: StreamId,
        kind: StreamKind,
        policy: str,
        columns: Sequence[Column],
        values: Values,
    ) -> Collection:
        """Open a collection, or make it. Columns may have been appended since; then rows are decoded again.

        Raises ColumnsChangedError if they are neither the first of the known columns nor continue them, and
        ReplicaMisuse for names that cannot be used. An app older than the table sees the columns that it knows.
        """
        check_names(name, columns)
        with self._database.transaction() as connection:
            found = connection.execute(
                "SELECT id, columns, opened, kind, stream, policy FROM _collection WHERE vault = ? AND name = ?",
                (vault, name),
            ).fetchone()
            if found is None:
                table = self._create(vault, name, stream, kind, policy, columns)
                number = int(table.name[2:])
            else:
                number, kept, opened, known_kind, known_stream, known_policy = found
                if (known_kind, known_stream) != (kind, stream):
                    raise ReplicaMisuse(f"collection {name} was made as another kind of stream; it cannot be changed")
                if known_policy != policy:
                    connection.execute("UPDATE _collection SET policy = ? WHERE id = ?", (policy, number))
                table = self._widen(number, name, [Column(*column) for column in json.loads(kept)], columns)
                if len(columns) != opened:
                    connection.execute("UPDATE _collection SET opened = ? WHERE id = ?", (len(columns), number))
                if len(columns) > opened:
                    self._decode_again(table, values)
        collection = Collection(number, vault, name, stream, kind, policy, tuple(columns), table, values)
        self.opened[number] = collection
        return collection

    def _create(
        self, vault: int, name: str, stream: StreamId, kind: StreamKind, policy: str, columns: Sequence[Column]
    ) -> Table:
        execute = self._database.connection.execute
        number = execute(
            "INSERT INTO _collection (vault, name, stream, kind, policy, columns, opened) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (vault, name, stream, int(kind), policy, json.dumps(columns), len(columns)),
        ).lastrowid
        assert number is not None
        table = Table(number, columns)
        for statement in table.create().split(";"):
            execute(statement)
        return table

    def _widen(self, number: int, name: str, known: list[Column], given: Sequence[Column]) -> Table:
        """The table, with columns appended that it does not have yet."""
        common = min(len(known), len(given))
        if list(given[:common]) != known[:common]:
            raise ColumnsChangedError(
                f"Collection {name} has the columns {_told(known)} and was opened with {_told(given)}: columns can "
                "only be appended; give the old ones their old names, types and order."
            )
        if len(given) == common:
            return Table(number, known)
        execute = self._database.connection.execute
        table = Table(number, given)
        for column in given[common:]:
            for stored in (table.name, table.shadow):
                execute(f"ALTER TABLE {stored} ADD COLUMN {_quoted(column.name)} {column.type}")
        execute("UPDATE _collection SET columns = ? WHERE id = ?", (json.dumps(given), number))
        return table

    def _decode_again(self, table: Table, values: Values) -> None:
        """Fill appended columns of the rows that came from newer apps, whose bytes were kept."""
        execute = self._database.connection.execute
        assigned = ", ".join(f"{_quoted(column.name)} = ?" for column in table.columns)
        for stored in (table.name, table.shadow):
            kept = execute(f"SELECT key, _raw FROM {stored} WHERE _raw IS NOT NULL AND _live").fetchall()
            for key, raw in kept:
                execute(
                    f"UPDATE {stored} SET {assigned} WHERE key = ?", (*table.padded(values.row_from_cbor(raw)[0]), key)
                )

    def stored_table(self, number: int) -> Table:
        """The table of any collection of the replica, opened in this run or not."""
        if number in self.opened:
            return self.opened[number].table
        found = self._database.connection.execute("SELECT columns FROM _collection WHERE id = ?", (number,)).fetchone()
        return Table(number, [Column(*column) for column in json.loads(found[0])])

    def absorb(self, table: Table, term: int, records: Iterable[Incoming], claims: bool) -> None:
        """Let each record win or lose by its rank (R1). Rows with a claim keep showing it, unless `claims` is False
        because there is none in the collection. Within the caller's transaction."""
        connection = self._database.connection
        if claims:
            # One record a key, its greatest: the shadow is chosen by the rank as it was before.
            best: dict[str, Incoming] = {}
            for record in records:
                held = best.get(record.key)
                if held is None or record.rank >= held.rank:
                    best[record.key] = record
            records = best.values()
            connection.executemany(
                table.absorb_shadow,
                [(r.key, r.row is not None, r.raw, *table.padded(r.row), r.key, r.rank) for r in records],
            )
        padded = table.padded
        connection.executemany(
            table.absorb,
            [
                (key, rank, key_id, flags, term, seq, row is not None, raw, *padded(row))
                for seq, key, rank, key_id, flags, row, raw in records
            ],
        )

    def quarantine(self, collection: Collection, term: int, records: Iterable[Unopened]) -> None:
        """Keep records that could not be opened. Within the caller's transaction."""
        self._database.connection.executemany(
            "INSERT OR REPLACE INTO _quarantine (collection, term, seq, rank, record, reason)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [(collection.number, term, seq, rank, record, reason) for seq, rank, record, reason, _ in records],
        )

    def show(self, collection: Collection, edits: Iterable[Edit]) -> None:
        """Show edits in place of what the log says, which goes to the shadow. Within the caller's transaction."""
        table, connection = collection.table, self._database.connection
        edits = list(edits)
        connection.executemany(table.save_shadow, [(edit.key,) for edit in edits])
        connection.executemany(
            table.show,
            [(key, row is not None, value if raw else None, *table.padded(row)) for key, row, value, raw in edits],
        )

    def settle(self, table: Table, key: str) -> None:
        """Show what the log says again, now that no claim of the device is left. Within the caller's transaction."""
        execute = self._database.connection.execute
        if execute(table.restore, (key,)).rowcount:
            execute(f"DELETE FROM {table.shadow} WHERE key = ?", (key,))
        else:
            execute(f"DELETE FROM {table.name} WHERE key = ? AND _rank IS NULL", (key,))

    def rank_of(self, table: Table, key: str) -> bytes | None:
        """The rank of what the log says of a key; None if it says nothing."""
        found = self._database.connection.execute(f"SELECT _rank FROM {table.name} WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def look(self, table: Table, keys: Sequence[str]) -> "Sight":
        """What the keys show now, to be compared with later."""
        found: dict[str, Row] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ", ".join("?" * len(part))
            statement = f"SELECT {table.selected}, _raw FROM {table.name} WHERE _live AND key IN ({marks})"
            found.update((row[0], row) for row in self._database.connection.execute(statement, part))
        return Sight(tuple(keys), found)


class Sight(NamedTuple):
    """What some keys showed at one moment."""

    keys: tuple[str, ...]
    rows: dict[str, Row]

    def changes_to(self, later: "Sight") -> list[Change]:
        """What happened to these keys until `later`."""
        changes = []
        for key in self.keys:
            old, new = self.rows.get(key), later.rows.get(key)
            if old != new:
                kind = Kind.INSERTED if old is None else Kind.DELETED if new is None else Kind.UPDATED
                changes.append(Change(key, kind))
        return changes


def _told(columns: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in columns) or "(none)"
