"""Reading: what an app sees of one vault, by connections that can neither write nor checkpoint.

A reader names each collection of its vault by its plain name, a temporary view of `key` and the value columns of
live entries, so that two vaults with a `todos` each do not meet. It sees every transaction that was durable when
the call began, and keeps none open between calls, however long an iteration takes.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sealwire_client.forks import Birthplace, ForkedError
from sealwire_client.replica.database import FILE_NAME, connect_reader
from sealwire_client.replica.declared import words_of
from sealwire_client.replica.entries import Collection
from sealwire_client.replica.errors import (
    READ_ONLY,
    READING,
    NeedsNewerAppError,
    QueryError,
    ReplicaClosedError,
    ReplicaMisuse,
    VaultGoneError,
    code_of,
    explained,
)
from sealwire_client.replica.searching import expression, view
from sealwire_client.replica.values import Kept, Live, Row, SqlValue

PAGE_ENTRIES: Final = 1_000
"""Entries read at once by `items`: a page is one consistent read of about a millisecond."""

STEPS_UNASKED: Final = 50_000
"""Steps of SQLite's machine, some milliseconds of work, after which it asks whether it is to stop."""

_LAST_CHARACTER: Final = "\U0010ffff"


class Rows(NamedTuple):
    """The answer to a SELECT: names of the columns, and the rows."""

    columns: tuple[str, ...]
    rows: list[Row]


class Seen(NamedTuple):
    """An entry as an app was shown it (`row` None: there was none), with the rank of what the log said of it then.

    `local`: what was shown was this device's own, not yet in the log. `kept`: see `values.Kept`.
    """

    row: Row | None
    rank: bytes | None
    local: bool
    kept: Kept = None


class Reader:
    """A read-only view of one vault. Belongs to the thread that made it; close it before the writer."""

    def __init__(self, folder: Path, *, wanders: bool = False) -> None:
        """Open while a Database has the folder open. `wanders`: it goes from thread to thread, used by one at a time.

        Raises ReplicaUnreadableError or ReplicaCorruptError."""
        self._birthplace = Birthplace()
        self.path = folder / FILE_NAME
        self.connection = connect_reader(self.path, wanders=wanders)
        self.connection.execute("PRAGMA query_only = ON")
        self.shown: set[str] = set()
        self.is_interrupted = False
        if wanders:  # SQLite's own interruption is lost where the query has not begun
            self.connection.set_progress_handler(lambda: self.is_interrupted, STEPS_UNASKED)
        self._is_closed = self._is_gone = False

    def show(self, collection: Collection) -> None:
        """Make a collection known under its plain name. Again, if columns were appended since."""
        columns = "".join(f', "{column.name}"' for column in collection.columns)
        name, table = collection.name, collection.table
        self.connection.executescript(
            "PRAGMA query_only = OFF;"
            f'DROP VIEW IF EXISTS temp."{name}";'
            f'CREATE TEMP VIEW "{name}" AS SELECT key{columns} FROM main.{table.name} WHERE _live = {Live.VALUE:d};'
            f"{view(name, table) if collection.declared.searched else ''}"
            "PRAGMA query_only = ON"
        )
        self.shown.add(name)

    def _run(self, statement: str, values: Sequence[SqlValue] = ()) -> list[Row]:
        if not self._birthplace.is_here:
            raise ForkedError
        try:
            return self.connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._closed() or explained(error, self.path, READING) or error from error

    def _closed(self) -> ReplicaClosedError | VaultGoneError | None:
        if not self._is_closed:
            return None
        if self._is_gone:
            return VaultGoneError()
        return ReplicaClosedError("The device was closed, and its replica with it: nothing was read; open it again.")

    def _chosen(self, collection: Collection, first: str = "key") -> str:
        names = [f'"{column.name}"' for column in collection.columns]
        return f"SELECT {', '.join([first, *names])} FROM main.{collection.table.name}"

    def get(self, collection: Collection, key: str) -> Row | None:
        """The value columns of an entry, or None if there is none. Raises NeedsNewerAppError."""
        found = self._run(f"{self._chosen(collection, '_live')} WHERE key = ? AND _live", (key,))
        if found and found[0][0] == Live.NEWER:
            raise NeedsNewerAppError(key, collection.name)
        return found[0][1:] if found else None

    def seen(self, collection: Collection, key: str) -> Seen:
        """An entry as `get` gives it, with all that an edit based on it must know. Raises NeedsNewerAppError."""
        found = self._run(f"{self._chosen(collection, '_live, _rank, _local, _raw')} WHERE key = ?", (key,))
        if not found:
            return Seen(None, None, False)
        live, rank, local, kept, *row = found[0]
        if live == Live.NEWER:
            raise NeedsNewerAppError(key, collection.name)
        assert rank is None or isinstance(rank, bytes)
        assert kept is None or isinstance(kept, int | bytes)
        return Seen(tuple(row) if live else None, rank, bool(local), kept)

    def tallied(self, collection: Collection, key: str) -> int:
        """What this device itself has added to a counter, under all names that it has had."""
        tally = "SELECT coalesce(sum(subtotal), 0) FROM main._counted WHERE collection = ? AND key = ?"
        found = self._run(tally, (collection.number, key))[0][0]
        assert isinstance(found, int)
        return found

    def newer(self, collection: Collection) -> list[str]:
        """The keys of all entries whose value needs a newer app, in order. They are nowhere else to be seen."""
        found = self._run(f"SELECT key FROM main.{collection.table.name} WHERE _live = {Live.NEWER:d} ORDER BY key")
        return [str(row[0]) for row in found]

    def items(self, collection: Collection, prefix: str = "") -> Iterator[tuple[str, Row]]:
        """Keys and value columns in the order of the keys, of all entries or those whose key begins with `prefix`.
        Left out are those whose value needs a newer app.

        Read page by page: each page is consistent, and entries changed in between show as they are then.
        """
        chosen = self._chosen(collection)
        upper, values = _below(prefix)
        lower, after = ">=", prefix
        while True:
            page = self._run(
                f"{chosen} WHERE key {lower} ?{upper} AND _live = {Live.VALUE:d} ORDER BY key LIMIT {PAGE_ENTRIES}",
                [after, *values],
            )
            for row in page:
                key = row[0]
                assert isinstance(key, str)
                yield key, row[1:]
            if len(page) < PAGE_ENTRIES:
                return
            lower, after = ">", str(page[-1][0])

    def watching(self, collection: Collection, key: str | None, prefix: str) -> tuple[str, list[SqlValue]]:
        """A query, and what it binds, for one entry, or for those whose keys begin with `prefix`, as in `items`."""
        chosen = f"{self._chosen(collection)} WHERE _live = {Live.VALUE:d} AND key"
        if key is not None:
            return f"{chosen} = ?", [key]
        upper, values = _below(prefix)
        return f"{chosen} >= ?{upper} ORDER BY key", [prefix, *values]

    def search(self, collection: Collection, text: str, limit: int) -> list[tuple[str, Row]]:
        """Keys and value columns of the entries in which all words of a text are found (see `expression`), the best
        first, at most `limit`. Raises ReplicaMisuse for a collection that is not searched."""
        if not collection.declared.searched:
            raise ReplicaMisuse(
                f"{collection.name} is not searched: put @searchable and the names of its text fields above its class"
            )
        words, table = words_of(collection.number), collection.table.name
        columns = "".join(f', e."{column.name}"' for column in collection.columns)
        found = self._run(
            f"SELECT e.key{columns} FROM main.{words} AS w JOIN main.{table} AS e ON e.rowid = w.rowid"
            f" WHERE w.{words} MATCH ? ORDER BY w.rank, e.key LIMIT ?",
            (expression(text), limit),
        )
        return [(str(row[0]), row[1:]) for row in found]

    def count(self, collection: Collection) -> int:
        """How many entries a collection has, without those whose value needs a newer app."""
        found = self._run(f"SELECT count(*) FROM main.{collection.table.name} WHERE _live = {Live.VALUE:d}")[0][0]
        assert isinstance(found, int)
        return found

    def select(self, sql: str, values: Sequence[SqlValue] = ()) -> Rows:
        """Run an app's own SQL over the collections shown. Raises QueryError if it is wrong, or does more than read."""
        self.check_open()
        try:
            cursor = self.connection.execute(sql, values)
            rows = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            meant = explained(error, self.path, READING) if isinstance(error, sqlite3.Error) else None
            if meant is not None and code_of(error) != READ_ONLY:
                raise meant from error
            raise QueryError(
                f"The query could not be run ({error}): it may only read, and name collections and columns."
            ) from error
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        return Rows(tuple(column[0] for column in cursor.description or ()), rows)

    def tables_of(self, sql: str, values: Sequence[SqlValue] = ()) -> frozenset[str]:
        """The tables of the replica that a query reads, through views too, and whichever way it is carried out.
        Raises QueryError as `select` does, without having read a row, and for whatever is no SELECT."""
        found, actions = set[str](), list[int]()

        def note(action: int, table: str | None, column: str | None, database: str | None, within: str | None) -> int:
            actions.append(action)
            if action == sqlite3.SQLITE_READ and database == "main" and table:
                found.add(table)
            return sqlite3.SQLITE_OK

        self.connection.set_authorizer(note)
        try:
            self.select(f"EXPLAIN {sql}", values)
        finally:
            self.connection.set_authorizer(None)
        if actions[:1] != [sqlite3.SQLITE_SELECT]:
            raise QueryError("The query could not be run: it is no SELECT.")
        return frozenset(found)

    def matching(self, collection: Collection, condition: str, values: Sequence[SqlValue]) -> list[Row]:
        """Keys and value columns of the entries that SQL after WHERE chooses, orders and limits, in one read. Left out
        are those whose value needs a newer app."""
        chosen = self._chosen(collection)
        return self._run(f"{chosen} WHERE _live = {Live.VALUE:d} AND {condition}", values)

    def check_open(self) -> None:
        """Raises ReplicaClosedError or VaultGoneError after `close`, ForkedError in a process that was forked since."""
        self._birthplace.check()
        if closed := self._closed():
            raise closed

    @property
    def is_closed(self) -> bool:
        """True after `close`."""
        return self._is_closed

    def interrupt(self) -> None:
        """Make a query that runs in another thread, or is about to, fail soon; use the reader no more, but for `close`.
        Only for one that wanders."""
        self.is_interrupted = True

    def close(self, *, gone: bool = False) -> None:
        """Let go of the file. `gone`: because the vault is not on this device any more."""
        self._is_closed, self._is_gone = True, gone
        if self._birthplace.is_here:
            self.connection.close()


def _below(prefix: str) -> tuple[str, list[SqlValue]]:
    """What else is true of keys that begin with `prefix`, beside being no less than it; and what that binds."""
    beyond = _beyond(prefix)
    return (" AND key < ?", [beyond]) if beyond else ("", [])


def _beyond(prefix: str) -> str:
    """The least string above all that begin with `prefix`; empty if there is none."""
    stem = prefix.rstrip(_LAST_CHARACTER)
    if not stem:
        return ""
    after = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if 0xD800 <= after < 0xE000 else after)
