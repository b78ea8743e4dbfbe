"""Disputes: signed statements that cannot both be true of one log, kept with what was held against them.

A dispute stands until somebody who has looked at it dismisses it. It is kept then too, until the same device of the
same stream gives cause for another one.
"""

import time
from typing import NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import Collection
from sealwire_client.replica.positions import Positions
from sealwire_protocol.ids import Author, Position, StreamId, Term


class Dispute(NamedTuple):
    """A device's signed statement (`theirs`), and the one held against it (`held`): this device's own of the same
    position, or, if it goes `back`, its maker's former one. `at`: this device's clock, Unix milliseconds."""

    collection: str
    stream: StreamId
    author: Author
    position: Position
    back: bool
    held: bytes
    theirs: bytes
    at: int


class LastStated(NamedTuple):
    """Where a collection stood when this device last stated, or another one stated for it, what it holds; and when,
    in Unix milliseconds by this device's clock."""

    seq: int
    at: int


class Disputes:
    """The disputes of a replica, and what was last stated of its collections. Each method is one transaction."""

    def __init__(self, database: Database, positions: Positions) -> None:
        self._database, self._positions = database, positions

    def add(
        self,
        collection: Collection,
        lineage: Author,
        author: Author,
        position: Position,
        *,
        back: bool,
        held: bytes,
        theirs: bytes,
    ) -> bool:
        """Keep a dispute. False if one of the same device and stream stands already."""
        with self._database.transaction() as connection:
            of_it = collection.vault, collection.stream, lineage
            connection.execute(
                "DELETE FROM _dispute WHERE vault = ? AND stream = ? AND lineage = ? AND dismissed", of_it
            )
            done = connection.execute(
                "INSERT OR IGNORE INTO _dispute"
                " (vault, stream, lineage, author, term, seq, back, held, theirs, at, dismissed)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (*of_it, author, self._positions.term_id(position.term), position.seq, back, held, theirs, now_ms()),
            )
            return bool(done.rowcount)

    def of_vault(self, vault: int, *, dismissed: bool = False) -> list[Dispute]:
        """The disputes that stand in a vault, or those that were dismissed, the oldest first."""
        found = self._database.connection.execute(
            "SELECT c.name, d.stream, author, t.number, t.name, seq, back, held, theirs, at FROM _dispute AS d"
            " JOIN _term AS t ON t.id = d.term JOIN _collection AS c ON c.vault = d.vault AND c.stream = d.stream"
            " WHERE d.vault = ? AND dismissed = ? ORDER BY d.id",
            (vault, dismissed),
        )
        return [
            Dispute(name, stream, author, Position(Term(number, term), seq), bool(back), *rest)
            for name, stream, author, number, term, seq, back, *rest in found
        ]

    def dismiss(self, vault: int) -> int:
        """No dispute stands in a vault any more. Returns how many did."""
        with self._database.transaction() as connection:
            return connection.execute(
                "UPDATE _dispute SET dismissed = 1 WHERE vault = ? AND NOT dismissed", (vault,)
            ).rowcount

    # --- statements

    def statements(self, collection: Collection) -> list[tuple[str, bytes]]:
        """The entries of a vault's statements: each key, with the signed bytes."""
        return self._database.connection.execute(
            f"SELECT key, signed FROM {collection.table.name} WHERE _live = 1 AND typeof(signed) = 'blob'"
        ).fetchall()

    def last_stated(self, collection: int) -> LastStated:
        """What was last stated of a collection: never, when it was opened first."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE _collection SET stated_at = ? WHERE id = ? AND stated_at = 0", (now_ms(), collection)
            )
            found = connection.execute("SELECT stated_seq, stated_at FROM _collection WHERE id = ?", (collection,))
            return LastStated(*found.fetchone())

    def stated(self, collection: int, seq: int) -> LastStated:
        """It is stated now what a collection holds at a seq."""
        with self._database.transaction() as connection:
            last = LastStated(seq, now_ms())
            connection.execute("UPDATE _collection SET stated_seq = ?, stated_at = ? WHERE id = ?", (*last, collection))
            return last


def now_ms() -> int:
    """This device's clock, in Unix milliseconds."""
    return int(time.time() * 1000)
