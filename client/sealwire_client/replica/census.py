"""What is in a replica's collections, counted and looked up by whoever examines it, without knowing their values.

Collections that no app has opened in this run can be looked at, too: their keys and ranks lie in the open.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import INTERNAL, Collection
from sealwire_client.replica.tables import Column, Table
from sealwire_client.replica.values import Encoder, Kept, Live, Row
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import StreamKind

PLACES_AT_ONCE: Final = 500
"""Rows that one statement looks up: older SQLite bind 999 values at most."""

TagOf = Callable[[str], bytes]


class Counts(NamedTuple):
    """How much of a collection is on a device: entries as it shows them, deletions that it remembers, writes to be
    sent or confirmed, confirmed writes that have not been delivered, writes refused for good, records not opened."""

    entries: int
    deletions: int
    unsent: int
    answered: int
    stuck: int
    unreadable: int


class Placed(NamedTuple):
    """An entry's row: its place, its key, and the seq at which the log has it."""

    place: int
    key: str
    seq: int


class Census:
    """Counts and looks up, in the writer's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def check_file(self) -> None:
        """Read the whole file and compare what must agree; seconds for each GB, in which nothing else is done.

        Raises ReplicaCorruptError. Nothing more is written then."""
        self._database.check("integrity_check(1)")

    def collections(self, vault: int) -> list[Collection]:
        """A vault's collections by name, also those that nobody has opened. Their values cannot be read."""
        found = self._database.connection.execute(
            "SELECT id, vault, name, stream, kind, policy, columns, opened, signed FROM _collection WHERE vault = ?"
            f" AND NOT {INTERNAL} ORDER BY name",
            (vault,),
        )
        return [undecoded(*row) for row in found]

    def counts(self, collection: Collection) -> Counts:
        """Count a collection. Reads all of its rows."""
        counted = self._database.connection.execute(
            f"SELECT (SELECT count(*) FROM {collection.table.name} WHERE _live != {Live.TOMBSTONE:d}),"
            f" (SELECT count(*) FROM {collection.table.name} WHERE _live = {Live.TOMBSTONE:d}),"
            " (SELECT count(*) FROM _edit WHERE collection = ?1)"
            " + (SELECT count(*) FROM _sent WHERE collection = ?1 AND seq IS NULL),"
            " (SELECT count(*) FROM _sent WHERE collection = ?1 AND seq IS NOT NULL),"
            " (SELECT count(*) FROM _stuck WHERE collection = ?1),"
            " (SELECT count(*) FROM _quarantine WHERE collection = ?1)",
            (collection.number,),
        )
        return Counts(*counted.fetchone())

    def rows(self, collection: Collection, places: Iterable[int]) -> dict[int, Placed]:
        """Rows by their places, as far as they are still there."""
        found, rest = dict[int, Placed](), iter(places)
        while part := list(islice(rest, PLACES_AT_ONCE)):
            marks = ", ".join("?" * len(part))
            for row in self._database.connection.execute(
                f"SELECT rowid, key, coalesce(_seq, 0) FROM {collection.table.name} WHERE rowid IN ({marks})", part
            ):
                found[row[0]] = Placed(*row)
        return found

    def beyond(self, collection: Collection, seq: int, tag_of: TagOf) -> set[bytes]:
        """The tags of which the log has something after a seq."""
        execute = self._database.connection.execute
        rows = execute(f"SELECT key FROM {collection.table.name} WHERE _seq > ?", (seq,))
        aside = execute("SELECT tag FROM _quarantine WHERE collection = ? AND seq > ?", (collection.number, seq))
        return {tag_of(key) for (key,) in rows} | {tag for (tag,) in aside}


def undecoded(
    number: int, vault: int, name: str, stream: bytes, kind: int, policy: str, columns: str, opened: int, signed: int
) -> Collection:
    """A collection by its row of `_collection`, whose values cannot be read; with the columns of the app that was here
    last."""
    kept = tuple(Column(*column) for column in json.loads(columns))
    table, values = Table(number, kept), _NoValues()
    return Collection(
        number, vault, name, StreamId(stream), StreamKind(kind), policy, kept[:opened], table, values, bool(signed)
    )


class _NoValues:
    """Nobody has said how these values are to be read."""

    def row_from_cbor(self, raw: bytes) -> tuple[Row | None, int]:
        raise AssertionError("who looks from outside never decodes")

    def usual_rows(self, raws: Sequence[bytes]) -> list[Row] | None:
        raise AssertionError("who looks from outside never decodes")

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        raise AssertionError("who looks from outside never encodes")

    def carry(self, raw: bytes, before: bytes) -> bytes:
        raise AssertionError("who looks from outside never edits")

    def defaults(self) -> Row:
        raise AssertionError("who looks from outside never widens")

    def fits(self, forms: Sequence[str]) -> bool:
        raise AssertionError("who looks from outside never rewrites")

    def encoder(self, forms: Sequence[str]) -> Encoder:
        raise AssertionError("who looks from outside never rewrites")
