"""What a class declares beside its columns: which of them have numbers of their own, are indexed or searched.

An index is named by the numbers of its fields, `_c<collection>_by_<number>_<number>`: SQLite follows a column that gets
another name, so nothing is built anew for that. It covers what is shown alone, as the view of a collection does. The
words of a collection lie in `_f<collection>`, an FTS5 table without texts of its own, which triggers keep in step with
the rows: no way of writing knows of it.
"""

import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from sealwire_client.replica.errors import NoSearchError, ReplicaMisuse
from sealwire_client.replica.tables import Column, Table, quoted
from sealwire_client.replica.values import Live

_log = logging.getLogger("sealwire.replica")

SEARCH: Final = "_search"
"""What follows a collection's name in SQL where it is searched."""

MODULE: Final = "fts5"

_OPTIONS: Final = "content_rowid='rowid', tokenize='unicode61 remove_diacritics 2'"

_TOLD_MS: Final = 100
"""Work on a collection that takes longer is told in the log."""


class Declared(NamedTuple):
    """What an app's class says of its fields, by their names."""

    numbered: frozenset[str] = frozenset()
    """Fields that say their numbers, so that another name for a number is meant."""
    indexed: tuple[tuple[str, ...], ...] = ()
    searched: tuple[str, ...] = ()


NOTHING_DECLARED: Final = Declared()


def words_of(number: int) -> str:
    """The table of a collection's words."""
    return f"_f{number}"


def drop_words(connection: sqlite3.Connection, number: int) -> None:
    """Drop the words of a collection, if it has any. Within the caller's transaction."""
    for event in ("insert", "delete", "update"):
        connection.execute(f"DROP TRIGGER IF EXISTS {words_of(number)}_{event}")
    connection.execute(f"DROP TABLE IF EXISTS {words_of(number)}")


class Lookups:
    """The indexes and words of one collection. Within the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, number: int, declared: Declared) -> None:
        self._connection, self._number, self._declared = connection, number, declared
        self._words = words_of(number)

    def check(self, vault: int, name: str) -> None:
        """Raises NoSearchError if this SQLite cannot do what is declared, or was; and ReplicaMisuse for a collection
        whose name in SQL another one's search has, or the reverse."""
        if (self._declared.searched or self._is_there(self._words)) and not _has_fts5(self._connection):
            raise NoSearchError(name)
        stem = name[: -len(SEARCH)] if name.lower().endswith(SEARCH) else ""
        execute = self._connection.execute
        numbers = execute("SELECT id FROM _collection WHERE vault = ? AND lower(name) = lower(?)", (vault, stem))
        if any(self._is_there(words_of(number)) for (number,) in numbers.fetchall()):
            raise ReplicaMisuse(f"{name} is what SQL calls the search of collection {stem}: use another name")
        wanted = name + SEARCH if self._declared.searched else ""
        if execute("SELECT 1 FROM _collection WHERE vault = ? AND lower(name) = lower(?)", (vault, wanted)).fetchone():
            raise ReplicaMisuse(
                f"collection {name} cannot be searched while there is a collection {name}{SEARCH}, which is what SQL"
                " would call its search: use another name for one of them"
            )

    def drop(self, held: Sequence[Column], columns: Sequence[Column]) -> None:
        """Drop what is not declared, before columns get other names. `held`: the table's; `columns`: as they are to
        be."""
        wanted = set(self._indexes(columns))
        for name in self._made() - wanted:
            self._connection.execute(f"DROP INDEX {name}")
        if self._is_there(self._words) and self._searched(held) != self._wanted(columns):
            drop_words(self._connection, self._number)

    def make(self, name: str, table: Table) -> None:
        """Make what is declared and not there, of the rows that there are."""
        made, began = self._made(), time.monotonic()
        for index, on in self._indexes(table.columns).items():
            if index not in made:
                self._connection.execute(f"CREATE INDEX {index} ON {table.name} ({on}) WHERE _live = {Live.VALUE:d}")
        if self._declared.searched and not self._is_there(self._words):
            self._search(table)
        took_ms = round((time.monotonic() - began) * 1000)
        if took_ms > _TOLD_MS:
            _log.info("what %s declares to be indexed or searched was made in %d ms", name, took_ms)

    def _indexes(self, columns: Sequence[Column]) -> dict[str, str]:
        """The declared indexes by their names, each with the columns that it is on."""
        numbers = {column.name: column.number for column in columns}
        return {
            f"_c{self._number}_by_{'_'.join(str(numbers[name]) for name in names)}": ", ".join(map(quoted, names))
            for names in self._declared.indexed
        }

    def _made(self) -> set[str]:
        found = self._connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND name GLOB ?",
            (f"_c{self._number}", f"_c{self._number}_by_*"),
        )
        return {name for (name,) in found}

    def _is_there(self, table: str) -> bool:
        return self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone() is not None

    def _wanted(self, columns: Sequence[Column]) -> list[tuple[int | None, str]]:
        numbers = {column.name: column.number for column in columns}
        return [(numbers[name], name) for name in self._declared.searched]

    def _searched(self, held: Sequence[Column]) -> list[tuple[int | None, str]]:
        numbers = {column.name: column.number for column in held}
        found = self._connection.execute(f"PRAGMA table_info({self._words})")
        return [(numbers.get(row[1]), row[1]) for row in found]

    def _search(self, table: Table) -> None:
        words, execute = self._words, self._connection.execute
        names = [quoted(field) for field in self._declared.searched]
        listed, new, old = (", ".join(f"{of}{field}" for field in names) for of in ("", "new.", "old."))
        options = f"content='{table.name}', {_OPTIONS}"
        execute(f"CREATE VIRTUAL TABLE {words} USING {MODULE} ({listed}, {options})")
        execute(
            f"INSERT INTO {words} (rowid, {listed}) SELECT rowid, {listed} FROM {table.name}"
            f" WHERE _live = {Live.VALUE:d}"
        )
        is_shown, was_shown = f"new._live = {Live.VALUE:d}", f"old._live = {Live.VALUE:d}"
        other = " OR ".join(f"old.{field} IS NOT new.{field}" for field in ("_live", *names))
        enter = f"INSERT INTO {words} (rowid, {listed}) SELECT new.rowid, {new} WHERE {is_shown};"
        leave = f"INSERT INTO {words} ({words}, rowid, {listed}) SELECT 'delete', old.rowid, {old} WHERE {was_shown};"
        for event, when, then in (
            ("INSERT", is_shown, enter),
            ("DELETE", was_shown, leave),
            (f"UPDATE OF _live, {listed}", f"({is_shown} OR {was_shown}) AND ({other})", leave + enter),
        ):
            execute(
                f"CREATE TRIGGER {words}_{event[:6].lower()} AFTER {event} ON {table.name} WHEN {when} BEGIN {then} END"
            )


def _has_fts5(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM pragma_module_list WHERE name = ?", (MODULE,)).fetchone() is not None
