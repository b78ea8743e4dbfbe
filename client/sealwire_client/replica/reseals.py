"""Entries that the log has under the key of an older epoch, and what of them was sealed anew and has no verdict yet.

Nothing is decided by sealing a value again, so these batches have no place among the writes: nobody claims or waits for
anything by them. What is accepted comes back as a delivery like any other, what is refused is looked at again. Only
their bytes are kept until there is a verdict (R16), and their keys, of which nothing else is sent meanwhile (R4).
"""

from collections.abc import Sequence
from typing import NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import Collection
from sealwire_client.replica.sent import StoredBatch, misfit
from sealwire_protocol.messages import RESEAL, Appended, Group


class OldEntries(NamedTuple):
    """Keys of entries under an older key, each with its place, and the place to go on after; None: there is nothing
    more."""

    keys: list[tuple[int, str]]
    last: int | None


class Reseals:
    """The reseals of a replica. Every method is part of the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def old(self, collection: Collection, epoch: int, after: int, count: int, rows_max: int) -> OldEntries:
        """Up to `count` keys, from the place `after` on (0 at first), of which the log has what was sealed in an epoch
        before this one. Looks at no more than so many rows. Deletions are among them in signed collections, and
        beneath what this device claims of a key."""
        execute, table = self._database.connection.execute, collection.table.name
        which = "TRUE" if collection.signed else "(_live OR _local)"
        (end,) = execute(
            f"SELECT max(rowid) FROM (SELECT rowid FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?)",
            (after, rows_max),
        ).fetchone()
        if end is None:
            return OldEntries([], None)
        rows = execute(
            f"SELECT rowid, key FROM {table} WHERE rowid > ? AND rowid <= ? AND {which}"
            " AND _rank IS NOT NULL AND substr(_rank, 9, 2) < ? ORDER BY rowid LIMIT ?",
            (after, end, epoch.to_bytes(2, "big"), count),
        ).fetchall()
        return OldEntries(rows, rows[-1][0] if len(rows) == count else end)

    def store(self, collection: Collection, keys: Sequence[str], stated: bytes, records: bytes) -> StoredBatch:
        """Make a batch of these keys' records, and of what it states of them, durable before its first byte is sent."""
        connection, vault = self._database.connection, collection.vault
        (number,) = connection.execute(
            "UPDATE _vault SET next_batch = next_batch + 1 WHERE id = ? RETURNING next_batch - 1", (vault,)
        ).fetchone()
        group = Group(collection.stream, stated, records)
        connection.execute("INSERT INTO _batch VALUES (?, ?, ?)", (vault, number, RESEAL))
        connection.execute(
            "INSERT INTO _group (vault, batch, place, stream, conditions, count, records) VALUES (?, ?, 0, ?, ?, ?, ?)",
            (vault, number, group.stream, group.conditions, len(keys), group.records),
        )
        connection.executemany(
            "INSERT INTO _resealed (collection, key, vault, batch) VALUES (?, ?, ?, ?)",
            [(collection.number, key, vault, number) for key in keys],
        )
        return StoredBatch(number, RESEAL, (group,))

    def holds(self, vault: int, number: int) -> bool:
        """True if a batch without a verdict is a reseal."""
        found = self._database.connection.execute(
            "SELECT flags FROM _batch WHERE vault = ? AND number = ?", (vault, number)
        ).fetchone()
        return bool(found[0] & RESEAL)

    def accept(self, vault: int, number: int, appended: Sequence[Appended], refused: int) -> None:
        """Check that a verdict, by which so many records are refused, is one on this batch. Raises RemoteFault."""
        stream, count = self._database.connection.execute(
            "SELECT stream, count FROM _group WHERE vault = ? AND batch = ?", (vault, number)
        ).fetchone()
        told = {group.stream: group.records for group in appended}
        if len(appended) > 1 or told != ({stream: count - refused} if count > refused else {}):
            raise misfit(number)

    def finish(self, vault: int, number: int) -> None:
        """A batch has its verdict: its keys are free."""
        self._database.connection.execute("DELETE FROM _resealed WHERE vault = ? AND batch = ?", (vault, number))
