"""What the log says of a key, and what the app is shown of it: the two sides of a three-way merge."""

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import Collection
from sealwire_client.replica.reading import Seen
from sealwire_client.replica.values import Live
from sealwire_protocol.conditions import NOTHING, Condition, Names, encode_condition
from sealwire_protocol.ids import Author

KEYS_AT_ONCE: Final = 500
"""Keys named in one statement."""

_PLACE: Final = Struct(">QQ")
_VERSION: Final = slice(0, 8)
_AUTHOR: Final = slice(10, 14)
_SALT: Final = slice(14, 22)
"""Where a packed rank holds its version, its author and its salt."""


class Shown(NamedTuple):
    """A value as one side has it. `value` None: there is no entry. `newer`: it needs a newer app to be read."""

    value: bytes | None
    newer: bool = False


NOT_THERE: Final = Shown(None)


class Said(NamedTuple):
    """What the log says of a key, as far as it was applied here: the rank that won (None: nothing yet), its value, and
    where it stands: the term's number in this replica, and the seq."""

    rank: bytes | None
    value: bytes | None
    newer: bool
    place: tuple[int, int] | None = None

    @property
    def condition(self) -> Condition:
        """What a write must name that replaces this (R5)."""
        if self.rank is None:
            return NOTHING
        names = Names.TOMBSTONE if self.value is None else Names.ENTRY
        return Condition(names, self.version, self.salt)

    @property
    def version(self) -> int:
        """The version of the record that won; 0: nothing was said."""
        return int.from_bytes((self.rank or b"")[_VERSION], "big")

    @property
    def author(self) -> Author:
        """Who wrote it."""
        return Author(int.from_bytes((self.rank or b"")[_AUTHOR], "big"))

    @property
    def salt(self) -> bytes:
        """Its salt."""
        return (self.rank or b"")[_SALT]

    @property
    def replaced(self) -> bytes:
        """Names what a write would replace, together with where it stands."""
        return replaced(encode_condition(self.condition), self.place)


def replaced(condition: bytes, place: tuple[int, int] | None) -> bytes:
    """What a sealed write replaces, to be remembered should it be refused. The very record that is lost and given back
    stands elsewhere then: what was refused while it was gone may be tried again."""
    return condition if place is None else condition + _PLACE.pack(*place)


def is_same_write(one: bytes | None, other: bytes | None) -> bool:
    """True if two packed ranks, or both times none, are of one write: it may have been sealed anew in between."""
    if one is None or other is None:
        return one is other
    return (one[_VERSION], one[_AUTHOR]) == (other[_VERSION], other[_AUTHOR])


class Claims:
    """Looks at single keys of collections, in the writer's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def shown(self, collection: Collection, key: str) -> Shown:
        """What the app is shown of a key now."""
        return self._value(collection, collection.table.name, key)

    def seen(self, collection: Collection, seen: Seen) -> bytes | None:
        """The bytes of a value that an app was shown."""
        return None if seen.row is None else collection.values.cbor_from_row(seen.row, seen.kept)

    def said(self, collection: Collection, key: str) -> Said:
        """What the log says of a key, whatever claims this device has."""
        table = collection.table
        found = self._database.connection.execute(
            f"SELECT _local, _rank, _term, _seq FROM {table.name} WHERE key = ?", (key,)
        ).fetchone()
        if found is None or found[1] is None:
            return Said(None, None, False)
        value, newer = self._value(collection, table.shadow if found[0] else table.name, key)
        return Said(found[1], value, newer, (found[2], found[3]))

    def has_newer(self, collection: Collection) -> bool:
        """True if a value of the collection needs a newer app to be read."""
        table = collection.table
        found = self._database.connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM {table.name} WHERE _live = {Live.NEWER:d})"
            f" OR EXISTS (SELECT 1 FROM {table.shadow} WHERE _live = {Live.NEWER:d})"
        )
        return bool(found.fetchone()[0])

    def kept(self, collection: Collection, keys: Sequence[str]) -> dict[str, bytes]:
        """The bytes of those values of these keys that were kept, because their rows alone would not give them."""
        kept: dict[str, bytes] = {}
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[start : start + KEYS_AT_ONCE]
            marks = ", ".join("?" * len(part))
            kept.update(
                self._database.connection.execute(
                    f"SELECT key, _raw FROM {collection.table.name} WHERE typeof(_raw) = 'blob' AND key IN ({marks})",
                    part,
                )
            )
        return kept

    def _value(self, collection: Collection, stored: str, key: str) -> Shown:
        columns = "".join(f', "{column.name}"' for column in collection.columns)
        found = self._database.connection.execute(
            f"SELECT _live, _raw{columns} FROM {stored} WHERE key = ?", (key,)
        ).fetchone()
        if found is None or not found[0]:
            return NOT_THERE
        live, kept, *row = found
        return Shown(collection.values.cbor_from_row(tuple(row), kept), live == Live.NEWER)
