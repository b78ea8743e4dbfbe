"""Tombstones that the relay has purged: a replica drops them too, at the point of the log where it is told to (R11).

When the relay purged them, nothing of their keys was left in its log. So whatever it delivers with the word of that
need not win over them. What is told at SUBSCRIBED counts once the cursor is where the head was then: until then
something may come that was read before.
"""

from typing import Final

from sealwire_client.replica.database import Database
from sealwire_client.replica.positions import Positions
from sealwire_client.replica.tables import Table
from sealwire_protocol.segment import TOMBSTONE

NOTHING_SAID: Final = "_rank = NULL, _key_id = NULL, _flags = NULL, _term = NULL, _seq = NULL"
"""What the log's columns of a row hold if the log says nothing of its key."""

_PURGED: Final = f"_flags & {TOMBSTONE} AND _term = ? AND _seq <= ?"


class Forgetting:
    """Drops tombstones of a replica. Every method is part of the caller's transaction."""

    def __init__(self, database: Database, positions: Positions) -> None:
        self._database, self._positions = database, positions

    def forget(self, table: Table, floor: int) -> None:
        """Drop the tombstones up to the floor, of histories that the relay knows. Rows that claim something else stay,
        and claim it against nothing."""
        if not self._positions.forgets(table.number, floor):
            return
        execute = self._database.connection.execute
        for term, passed in self._positions.passed(table.number):
            which = term, min(passed, floor)
            hidden = f"SELECT key FROM {table.name} WHERE _local = 1 AND {_PURGED}"
            execute(f"DELETE FROM {table.shadow} WHERE key IN ({hidden})", which)
            proven = f"SELECT key, _rank FROM {table.name} WHERE {_PURGED}"
            execute(f"DELETE FROM _proof WHERE collection = ? AND (key, rank) IN ({proven})", (table.number, *which))
            execute(f"UPDATE {table.name} SET {NOTHING_SAID} WHERE _local = 1 AND {_PURGED}", which)
            execute(f"DELETE FROM {table.name} WHERE _local = 0 AND {_PURGED}", which)
            execute(
                f"DELETE FROM _quarantine WHERE collection = ? AND flags & {TOMBSTONE} AND term = ? AND seq <= ?",
                (table.number, *which),
            )
        self._positions.forgot(table.number, floor)
