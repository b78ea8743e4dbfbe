"""Entries: each collection a table of real columns, and how records and edits change it.

A row shows the newest value that the device knows. `_local = 1`: that is a claim of its own, an edit, a sealed
write or a stuck one; what the log says then lies in the shadow table. `_rank` and the columns after it are always
the log's. `_live`: 0 a tombstone, 1 a value, 2 a value that needs a newer app, of which only the bytes are there.
`_raw`: what is kept beside the row, see `values.Kept`.

Whatever changes what an entry shows is done by `Entries`, which tells the database's `touches` of it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.declared import NOTHING_DECLARED, Declared, Lookups
from sealwire_client.replica.errors import NeedsNewerAppError, ReplicaMisuse
from sealwire_client.replica.proofs import Proofs, Proven
from sealwire_client.replica.reshaping import Reshaping
from sealwire_client.replica.shaping import Arranged, arrange
from sealwire_client.replica.sums import Sums
from sealwire_client.replica.tables import Column, Table, quoted
from sealwire_client.replica.values import Kept, Live, Row, SqlValue, Values, live, read, read_many
from sealwire_protocol.ids import TAG_BYTES, StreamId
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import FLAGS_KNOWN, RANK_BYTES, TOMBSTONE

CHANGES_NAMED_MAX: Final = 1_000
"""Changed keys that one delivery names to watchers. Of more it says only that there were many: naming each costs
a lookup, and whoever watches asks anew anyway."""

COLUMNS_MAX: Final = 500
"""Columns of a collection: a statement binds each twice at most, and older SQLite allow 999 (now 32,766)."""

_KIND: Final = 1
_TAG: Final = slice(2, 2 + TAG_BYTES)
"""Where the bytes of a record that skips nothing hold its kind, which has the flags in it, and its tag."""

_VERSION_BYTES: Final = 8
"""With which a rank begins."""

INTERNAL: Final = "substr(name, 1, 1) = '_'"
"""True of a collection that no app has opened, nor can: it is left out wherever an app's are told or counted."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TYPES: Final = frozenset(("TEXT", "INTEGER", "REAL", "NUMERIC", "BLOB", "BOOLEAN"))


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
    table: Table = field(repr=False, compare=False)
    values: Values = field(repr=False, compare=False)
    """How its values lie in bytes and rows."""
    signed: bool = False
    """Its entries are signed by their authors."""
    declared: Declared = NOTHING_DECLARED
    """What the app's class says of the columns."""

    @property
    def is_internal(self) -> bool:
        """True if no app has opened it: see INTERNAL."""
        return self.name.startswith("_")

    def read(self, value: bytes) -> tuple[Row | None, Kept]:
        """A value's bytes as a row, and what must be kept beside it. The row is None if a newer app is needed."""
        return read(self.values, len(self.columns), value)

    def read_many(self, values: Sequence[bytes]) -> list[tuple[Row | None, Kept]]:
        """As `read`, of many values."""
        return read_many(self.values, len(self.columns), values)


class Incoming(NamedTuple):
    """A record of the log, opened. Both `row` and `kept` None: a tombstone; see `Collection.read`. `proof`: who stands
    for it, in a signed collection."""

    seq: int
    key: str
    rank: bytes
    key_id: bytes
    flags: int
    row: Row | None
    kept: Kept = None
    proof: bytes = b""


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

    `raw`: the row alone would not encode to this value (R17). A value without a row needs a newer app.
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


def check_names(name: str, columns: Sequence[Column]) -> None:
    """Refuse names that an app's SQL could not say, or that would hide the replica's own. Raises ReplicaMisuse."""
    if not _NAME.fullmatch(name.removeprefix("_")) or name.lower().startswith("sqlite_"):
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

    def __init__(self, database: Database, sums: Sums) -> None:
        self._database, self._sums = database, sums
        self.proofs = Proofs(database)
        self.opened: dict[int, Collection] = {}
        """Collections opened in this run, by number."""
        self._gone = 0

    def open(
        self,
        vault: int,
        name: str,
        stream: StreamId,
        kind: StreamKind,
        policy: str,
        columns: Sequence[Column],
        values: Values,
        signed: bool = False,
        declared: Declared = NOTHING_DECLARED,
    ) -> Collection:
        """Open a collection, or make it. Fields may have come, gone or got other names since, or their forms have
        changed: then rows are brought into the form that `values` read, and what needed a newer app is looked at
        again. A field's other name, or one that comes last, costs no reading of rows.

        Raises ColumnsChangedError for a field that its number does not stand for, ReplicaMisuse for names that cannot
        be used, and NoSearchError. An app older than the table sees the columns that it knows.
        """
        check_names(name, columns)
        with self._database.transaction() as connection:
            found = connection.execute(
                "SELECT id, columns, opened, kind, stream, policy, signed FROM _collection"
                " WHERE vault = ? AND name = ?",
                (vault, name),
            ).fetchone()
            if found is None:
                table = self._create(vault, name, stream, kind, policy, columns, signed)
                number = table.number
                lookups = Lookups(connection, number, declared)
                lookups.check(vault, name)
            else:
                number, kept, opened, known_kind, known_stream, known_policy, known_signed = found
                if known_signed != signed:
                    raise ReplicaMisuse(
                        f"collection {name} is {'' if known_signed else 'not '}signed on this device, which cannot be"
                        f" changed; open it with signed={bool(known_signed)}, or use another name"
                    )
                if known_stream != stream:
                    raise ReplicaMisuse(
                        f"collection {name} is another stream here than its keys say; it was not opened"
                    )
                if known_kind != kind:
                    raise ReplicaMisuse(
                        f"collection {name} is {StreamKind(known_kind).name.lower()}, and policy {policy} is for"
                        " another kind, which cannot be changed; open it with the policy that its maker chose"
                    )
                if known_policy != policy:
                    connection.execute("UPDATE _collection SET policy = ? WHERE id = ?", (policy, number))
                held = [Column(*column) for column in json.loads(kept)]
                lookups = Lookups(connection, number, declared)
                lookups.check(vault, name)
                arranged = arrange(name, held, columns, declared)
                lookups.drop(held, columns)
                table = self._arrange(number, arranged)
                self._reshape(table, held[:opened], arranged.held[:opened], columns, values)
            lookups.make(name, table)
        collection = Collection(
            number, vault, name, stream, kind, policy, tuple(columns), table, values, signed, declared
        )
        self.opened[number] = collection
        return collection

    def forget(self, numbers: Iterable[int]) -> None:
        """These collections have gone: their numbers stand for no others in this run."""
        for number in numbers:
            self.opened.pop(number, None)
            self._gone = max(self._gone, number)

    def _create(
        self,
        vault: int,
        name: str,
        stream: StreamId,
        kind: StreamKind,
        policy: str,
        columns: Sequence[Column],
        signed: bool,
    ) -> Table:
        execute = self._database.connection.execute
        number = execute(
            "INSERT INTO _collection (id, vault, name, stream, kind, policy, columns, opened, signed)"
            " VALUES ((SELECT max(coalesce(max(id), 0), ?) + 1 FROM _collection), ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._gone, vault, name, stream, int(kind), policy, json.dumps(columns), len(columns), signed),
        ).lastrowid
        assert number is not None
        table = Table(number, columns)
        for statement in (*table.create().split(";"), *table.index()):
            execute(statement)
        return table

    def _arrange(self, number: int, arranged: Arranged) -> Table:
        """The table, with its columns as they are to be."""
        table, execute = Table(number, arranged.columns), self._database.connection.execute
        for stored in table.stored:
            for name, after in arranged.renamed:
                execute(f"ALTER TABLE {stored} RENAME COLUMN {quoted(name)} TO {quoted(after)}")
            for column in arranged.added:
                execute(f"ALTER TABLE {stored} ADD COLUMN {quoted(column.name)} {column.type}")
        return table

    def _reshape(
        self, table: Table, before: Sequence[Column], names: Sequence[str], columns: Sequence[Column], values: Values
    ) -> None:
        """Bring the rows from the columns of the app that was here last, by their present names, to those of this
        one."""
        execute = self._database.connection.execute
        forms = [column.form for column in before]
        changed = forms != [column.form for column in columns]
        self._database.touches.touch(table.number)
        for statement in table.index():
            execute(statement)
        for stored in table.stored:
            reshaping = Reshaping(self._database.connection, stored, [column.name for column in table.columns], values)
            if changed:
                reshaping.bring(forms, names, len(columns))
            reshaping.look_again(len(columns))
        if changed or [column.name for column in before] != [column.name for column in columns]:
            execute(
                "UPDATE _collection SET columns = ?, opened = ? WHERE id = ?",
                (json.dumps(table.columns), len(columns), table.number),
            )

    def stored_table(self, number: int) -> Table:
        """The table of any collection of the replica, opened in this run or not."""
        if number in self.opened:
            return self.opened[number].table
        found = self._database.connection.execute("SELECT columns FROM _collection WHERE id = ?", (number,)).fetchone()
        return Table(number, [Column(*column) for column in json.loads(found[0])])

    def absorb(self, table: Table, term: int, records: Sequence[Incoming], claims: bool) -> None:
        """Let each record win or lose by its rank (R1). Within the caller's transaction. `claims`: see `contend`."""
        self.contend(table, term, self.enter(table, term, records), claims)

    def enter(self, table: Table, term: int, records: Sequence[Incoming]) -> Sequence[Incoming]:
        """Make entries of records of which the table has nothing: of nearly all, while it is filled for the first time.

        Returns those that are left to `contend`, in their order, and some beside them that would change nothing. No
        other way puts a rank into a table in which the key has no row. Within the caller's transaction."""
        connection, together, held = self._database.connection, table.together, list[Incoming]()
        if records:
            self._database.touches.touch(table.number)
        for at in range(0, len(records), together):
            some = records[at : at + together]
            alike = _alike(table, term, some) if len(some) == together else None
            if alike is not None:
                count = connection.execute(table.enter_together, alike).rowcount
            else:
                count = connection.executemany(table.enter, _rows(table, term, some)).rowcount
            if count == len(some):
                entered = [(key, rank) for _, key, rank, _, flags, _, _, _ in some if not flags & TOMBSTONE]
            else:
                held += some
                # SQLite gives a new row the rowid after the greatest, so the latest rows are those of this statement.
                entered = connection.execute(table.entered, (count,)).fetchall() if count else []
            self._sums.enter(table, entered)
        return held

    def contend(self, table: Table, term: int, records: Iterable[Incoming], claims: bool) -> None:
        """Let each record win or lose by its rank against the row that its key has. Rows with a claim keep showing it,
        unless `claims` is False because there is none in the collection. Within the caller's transaction."""
        connection = self._database.connection
        self._database.touches.touch(table.number)
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
                [(r.key, live(r.row, r.kept), r.kept, *table.padded(r.row), r.key, r.rank) for r in records],
            )
        connection.executemany(table.contend, _rows(table, term, records))

    def fallen_back(self, collection: Collection, term: int, records: Iterable[Incoming]) -> int:
        """How many records came after one of the same key with a greater version, in one term: to a guarded stream no
        honest relay appends such a one (R5). To be asked before they are absorbed, in the order of their seqs."""
        if collection.kind is not StreamKind.GUARDED:
            return 0
        name = collection.table.name
        stands = f"SELECT EXISTS (SELECT 1 FROM {name} WHERE key = ? AND _term = ? AND _seq < ? AND _rank > ?)"
        execute, greatest, fallen = self._database.connection.execute, dict[str, bytes](), 0
        for record in records:
            version, before = record.rank[:_VERSION_BYTES], greatest.get(record.key, b"")
            above = version.ljust(RANK_BYTES, b"\xff")
            fallen += before > version or execute(stands, (record.key, term, record.seq, above)).fetchone()[0]
            greatest[record.key] = max(version, before)
        return fallen

    def prove(self, collection: Collection, records: Iterable[Incoming]) -> None:
        """Keep who stands for records of a signed collection that were absorbed. Within the caller's transaction."""
        if collection.signed:
            proven = [Proven(record.key, record.rank, record.proof) for record in records]
            self.proofs.take(collection.number, collection.table.name, proven)

    def quarantine(self, collection: Collection, term: int, records: Iterable[Unopened]) -> None:
        """Keep records that could not be opened. Within the caller's transaction."""
        self._database.connection.executemany(
            "INSERT OR REPLACE INTO _quarantine (collection, term, seq, tag, rank, flags, record, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (collection.number, term, seq, record[_TAG], rank, record[_KIND] & FLAGS_KNOWN, record, reason)
                for seq, rank, record, reason, _ in records
            ],
        )

    def unopened(self, collection: Collection, reason: str) -> list[tuple[int, int, int, bytes]]:
        """The records that could not be opened for this reason, in order: a name, the term's number, seq and bytes."""
        found = self._database.connection.execute(
            "SELECT id, term, seq, record FROM _quarantine WHERE collection = ? AND reason = ? AND term > 0"
            " ORDER BY term, seq",
            (collection.number, reason),
        )
        return found.fetchall()

    def release(self, name: int) -> None:
        """A record that could not be opened could be."""
        self._database.connection.execute("DELETE FROM _quarantine WHERE id = ?", (name,))

    def show(self, collection: Collection, edits: Iterable[Edit]) -> None:
        """Show edits in place of what the log says, which goes to the shadow. Within the caller's transaction."""
        table, connection = collection.table, self._database.connection
        self._database.touches.touch(table.number)
        edits = list(edits)
        connection.executemany(table.save_shadow, [(edit.key,) for edit in edits])
        connection.executemany(
            table.show,
            [
                (key, live(row, value), value if raw or row is None else None, *table.padded(row))
                for key, row, value, raw in edits
            ],
        )

    def settle(self, table: Table, key: str) -> None:
        """Show what the log says again, now that no claim of the device is left. Within the caller's transaction."""
        execute = self._database.connection.execute
        self._database.touches.touch(table.number)
        if execute(table.restore, (key,)).rowcount:
            execute(f"DELETE FROM {table.shadow} WHERE key = ?", (key,))
        else:
            execute(f"DELETE FROM {table.name} WHERE key = ? AND _rank IS NULL", (key,))

    def drop(self, table: Table, rows: str) -> int:
        """Drop entries of which neither the log nor this device says anything, among those whose rowids a SELECT gives.
        Returns how many. Within the caller's transaction."""
        self._database.touches.touch(table.number)
        nothing = "_local = 0 AND _rank IS NULL"
        found = self._database.connection.execute(f"DELETE FROM {table.name} WHERE {nothing} AND rowid IN ({rows})")
        return found.rowcount

    def rank_of(self, table: Table, key: str) -> bytes | None:
        """The rank of what the log says of a key; None if it says nothing."""
        found = self._database.connection.execute(f"SELECT _rank FROM {table.name} WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def place_of(self, table: Table, key: str) -> tuple[int, int] | None:
        """Where the log says it: the term's number in this replica, and the seq; None if it says nothing."""
        found = self._database.connection.execute(
            f"SELECT _term, _seq FROM {table.name} WHERE key = ? AND _rank IS NOT NULL", (key,)
        ).fetchone()
        return (found[0], found[1]) if found else None

    def newer(self, table: Table, keys: Iterable[str]) -> list[str]:
        """Those of these keys whose value needs a newer app. Costs next to nothing while no value of the table does."""
        execute = self._database.connection.execute
        if not execute(f"SELECT EXISTS (SELECT 1 FROM {table.name} WHERE _live = {Live.NEWER:d})").fetchone()[0]:
            return []
        one = f"SELECT EXISTS (SELECT 1 FROM {table.name} WHERE _live = {Live.NEWER:d} AND key = ?)"
        return [key for key in keys if execute(one, (key,)).fetchone()[0]]

    def refuse_newer(self, collection: Collection, keys: Iterable[str]) -> None:
        """To be asked before an edit, within its transaction. Raises NeedsNewerAppError for a key whose value does."""
        for key in self.newer(collection.table, keys):
            raise NeedsNewerAppError(key, collection.name)

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


def _rows(table: Table, term: int, records: Iterable[Incoming]) -> Iterator[tuple[SqlValue, ...]]:
    """What `Table.enter` and `Table.contend` bind for each record."""
    for seq, key, rank, key_id, flags, row, kept, _ in records:
        yield key, rank, key_id, flags, term, seq, live(row, kept), kept, *table.padded(row)


def _alike(table: Table, term: int, records: Sequence[Incoming]) -> list[SqlValue] | None:
    """What `Table.enter_together` binds for these records; None: they are not all what it is for."""
    shared, width = records[0].key_id, table.width
    bound: list[SqlValue] = [shared, term]
    for seq, key, rank, key_id, flags, row, kept, _ in records:
        if flags or kept is not None or key_id != shared or row is None or len(row) != width:
            return None
        bound += (key, rank, seq, *row)
    return bound
