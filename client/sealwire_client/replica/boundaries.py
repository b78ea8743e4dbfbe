"""Boundaries: what a collection held where its deliveries ended, by its sum. There two devices can be compared.

A boundary is noted only where the replica holds exactly what the log says up to there. It does not while a record is
set aside that another device might have read, while a confirmed write of its own is not an entry yet, while entries
stand beyond the cursor, and within the part of the log that was served without what was superseded later in it.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.positions import Positions
from sealwire_client.replica.sums import Sums
from sealwire_protocol.ids import SUM_BYTES, Position

BOUNDARIES_MAX: Final = 1_000
"""Boundaries that are kept of a collection: 80 kB. Who was away for longer than so many deliveries compares the next
statement."""


class Boundary(NamedTuple):
    """What a collection held at a position."""

    at: Position
    sum: bytes


class Boundaries:
    """The boundaries of a replica's collections. Every method is part of the caller's transaction."""

    def __init__(self, database: Database, positions: Positions, sums: Sums) -> None:
        self._database, self._positions, self._sums = database, positions, sums
        self._unread_by_all: frozenset[str] = frozenset()

    def take_for_unread(self, reasons: Iterable[str]) -> None:
        """Records that are set aside for these reasons are read by no other device either."""
        self._unread_by_all = frozenset(reasons)

    def note(self, collection: int) -> None:
        """Note what the collection holds where its cursor stands, if that is all of the log up to there."""
        total = self._sums.of(collection)
        if total is None or not self._is_exact(collection):
            return
        execute = self._database.connection.execute
        (place,) = execute(
            "INSERT INTO _boundary (collection, place, term, seq, sum)"
            " SELECT id, (SELECT coalesce(max(place), 0) + 1 FROM _boundary WHERE collection = ?1),"
            " cursor_term, cursor_seq, ?2 FROM _collection WHERE id = ?1 RETURNING place",
            (collection, total.to_bytes(SUM_BYTES, "big")),
        ).fetchone()
        execute("DELETE FROM _boundary WHERE collection = ? AND place <= ?", (collection, place - BOUNDARIES_MAX))

    def _is_exact(self, collection: int) -> bool:
        standing = self._positions.standing(collection)
        if not standing.cursor.seq or standing.cursor.seq < standing.served.seq:
            return False
        execute, read_by_none = self._database.connection.execute, self._unread_by_all
        (inexact,) = execute(
            "SELECT EXISTS (SELECT 1 FROM _collection WHERE id = ?1 AND exact_from > ?2) OR EXISTS"
            " (SELECT 1 FROM _sent WHERE collection = ?1 AND seq <= ?2) OR EXISTS"
            " (SELECT 1 FROM _quarantine WHERE collection = ?1 AND term > 0"
            f" AND reason NOT IN ({', '.join('?' * len(read_by_none))}))",
            (collection, standing.cursor.seq, *read_by_none),
        ).fetchone()
        return not inexact

    def begin_anew(self, collection: int, exact_from: int) -> None:
        """The collection was made one with another history: what it held before is not to be compared. `exact_from`: up
        to there entries may stand beyond the cursor."""
        execute = self._database.connection.execute
        execute("DELETE FROM _boundary WHERE collection = ?", (collection,))
        execute("UPDATE _collection SET exact_from = ? WHERE id = ?", (exact_from, collection))
        self.note(collection)

    def at(self, collection: int, position: Position) -> Boundary | None:
        """What it held at a position, if it has stood exactly there, and not too long ago."""
        found = self._database.connection.execute(
            "SELECT sum FROM _boundary JOIN _term AS t ON t.id = term"
            " WHERE collection = ? AND t.number = ? AND t.name = ? AND seq = ? ORDER BY place DESC LIMIT 1",
            (collection, *position.term, position.seq),
        ).fetchone()
        return None if found is None else Boundary(position, found[0])

    def present(self, collection: int) -> Boundary | None:
        """What it holds where it stands now; None where that is no boundary."""
        return self.at(collection, self._positions.standing(collection).cursor)
