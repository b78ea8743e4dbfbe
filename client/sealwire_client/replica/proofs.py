"""Proofs: who stands for each entry of a signed collection, kept so that its record can be made again (R17).

A proof is kept under its entry's key and its record's rank, as long as the log says that record here, or a sealed write
that is it waits. It is what a refill, or a reseal, of the record carries.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_protocol.ids import SIGNATURE_BYTES, Tag

_SIGNATURE: Final = f"substr(proof, 2, {SIGNATURE_BYTES})"
"""The author's signature in a proof."""

_NOT_SENT: Final = (
    "NOT EXISTS (SELECT 1 FROM _sent AS s WHERE s.collection = p.collection AND s.key = p.key AND s.rank = p.rank)"
)


class Proven(NamedTuple):
    """A record's proof, under what it is kept."""

    key: str
    rank: bytes
    proof: bytes


class Proofs:
    """The proofs of a replica. Every method is part of the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, collection: int, proven: Iterable[Proven]) -> None:
        """Keep the proofs of records that this device has sealed, or that stand for their keys now."""
        self._database.connection.executemany(
            "INSERT OR REPLACE INTO _proof (collection, key, rank, proof) VALUES (?, ?, ?, ?)",
            [(collection, *each) for each in proven],
        )

    def take(self, collection: int, table: str, proven: Sequence[Proven]) -> None:
        """Keep the proofs of records that were taken in, and let those go whose records stand no more. `table`: that of
        the collection's entries."""
        self.add(collection, proven)
        self._database.connection.executemany(
            f"DELETE FROM _proof AS p WHERE collection = ?1 AND key = ?2 AND {_NOT_SENT}"
            f" AND rank IS NOT (SELECT _rank FROM {table} WHERE key = ?2)",
            [(collection, each.key) for each in proven],
        )

    def of(self, collection: int, key: str, rank: bytes) -> bytes:
        """The proof of a record; empty if there is none: its collection is not signed."""
        found = self._database.connection.execute(
            "SELECT proof FROM _proof WHERE collection = ? AND key = ? AND rank = ?", (collection, key, rank)
        ).fetchone()
        return found[0] if found else b""

    def holds(self, collection: int, key: str, signature: bytes) -> bool:
        """True if this device has a record of the key that its author has signed with this very signature."""
        found = self._database.connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM _proof WHERE collection = ? AND key = ? AND {_SIGNATURE} = ?)",
            (collection, key, signature),
        )
        return bool(found.fetchone()[0])

    def sweep(self, collection: int, table: str) -> None:
        """Let all proofs of a collection go whose records stand no more: what was dropped leaves them behind."""
        self._database.connection.execute(
            f"DELETE FROM _proof AS p WHERE collection = ? AND {_NOT_SENT}"
            f" AND NOT EXISTS (SELECT 1 FROM {table} AS c WHERE c.key = p.key AND c._rank = p.rank)",
            (collection,),
        )

    def supersede(self, collection: int, reason: str, taken: Iterable[tuple[Tag, bytes]]) -> None:
        """Records were taken in, each of this tag and rank: forget those below them that were set aside for this
        reason. Nobody needs them any more."""
        self._database.connection.executemany(
            "DELETE FROM _quarantine WHERE collection = ? AND tag = ? AND rank <= ? AND reason = ?",
            [(collection, tag, rank, reason) for tag, rank in taken],
        )
