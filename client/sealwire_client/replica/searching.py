"""Searching: what a user types, as FTS5 is asked for it, and the view by which an app's SQL asks."""

from typing import Final

from sealwire_client.replica.declared import SEARCH, words_of
from sealwire_client.replica.tables import Table

WORDS_MAX: Final = 32
"""Words of a text that are searched, its first ones: SQLite takes some hundreds, and nobody types more."""


def expression(text: str) -> str:
    """What FTS5 is to find: entries with all words of a text, in any order and any of the fields; the last may be the
    beginning of a word only. Whatever the text, it is no syntax. One without a word finds nothing."""
    # SQLite would end at a NUL, and half of a surrogate pair cannot be said to it.
    plain = text.replace("\0", " ").encode(errors="replace").decode()
    words = ['"' + word.replace('"', '""') + '"' for word in plain.split()[:WORDS_MAX]]
    return " ".join(words) + "*" if words else '""'


def view(name: str, table: Table) -> str:
    """The SQL that makes a collection's search known beside it, within a connection that reads. The column of its own
    name is what FTS5's functions take. Its rows depend on those of the collection's table, which it reads as well."""
    words = words_of(table.number)
    return (
        f'DROP VIEW IF EXISTS temp."{name}{SEARCH}";'
        f'CREATE TEMP VIEW "{name}{SEARCH}" AS SELECT e.key AS key, w.{words} AS "{name}{SEARCH}", w.rank AS rank'
        f" FROM main.{words} AS w JOIN main.{table.name} AS e ON e.rowid = w.rowid;"
    )
