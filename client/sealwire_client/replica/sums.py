"""Sums: what each collection holds of the log, in one number, that two devices can compare without naming an entry.

The sum is over the live entries as the log says them, tombstones and what only this device claims left out: values of
(key, rank) under a key of the vault's, added modulo 2^256. Triggers of the writing connection keep it, so that it is
right whatever changes a row's rank or takes a row away: deliveries, confirmed writes, reconciling, repairs. Rows that
come with a rank do so by `Entries` alone, many at a time, and are told to `enter`: a trigger for each would take as
long as half of SQLite's own work. Where no sum is kept yet, it is made by going over the rows once.
"""

from collections.abc import Callable, Iterable
from typing import Final

from sealwire_client.replica.database import Database
from sealwire_client.replica.tables import Table
from sealwire_protocol.ids import SUM_BYTES
from sealwire_protocol.segment import TOMBSTONE

MODULUS: Final = 1 << 8 * SUM_BYTES

SumOf = Callable[[Iterable[tuple[str, bytes]]], int]
"""The sum of live entries, each by its key and packed rank, under a key of the vault's. Not reduced by the modulus."""


class Sums:
    """The sums of a replica's collections. Part of what its database's transactions do, or undo."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sum_of: dict[int, SumOf] = {}
        self._sums: dict[int, int] = {}
        self._kept: dict[int, int] = {}
        database.beside.append(self)

    def keep(self, table: Table, sum_of: SumOf) -> None:
        """Keep a collection's sum from now on. To be called whenever it is opened, in the transaction that opens it."""
        number, stored = table.number, table.name
        connection = self._database.connection
        self._sum_of[number] = sum_of
        connection.create_function(f"_sum{number}", 3, self._summing(number, sum_of))
        live = f"_rank IS NOT NULL AND NOT {{0}}_flags & {TOMBSTONE}"
        old, new = (f"iif({of}{live.format(of)}, {of}_rank, NULL)" for of in ("old.", "new."))
        for event, when, said in (
            ("UPDATE OF _rank", "old._rank IS NOT new._rank", f"new.key, {old}, {new}"),
            ("DELETE", f"old.{live.format('old.')}", "old.key, old._rank, NULL"),
        ):
            connection.execute(
                f"CREATE TEMP TRIGGER IF NOT EXISTS {stored}_{event.split()[0].lower()} AFTER {event} ON main.{stored}"
                f" WHEN {when} BEGIN SELECT _sum{number}({said}); END"
            )
        if number in self._sums:
            return
        found = connection.execute("SELECT sum FROM _sum WHERE collection = ?", (number,)).fetchone()
        if found is not None:
            self._kept[number] = self._sums[number] = int.from_bytes(found[0], "big")
        else:
            self._sums[number] = self.counted(table)

    def _summing(self, number: int, sum_of: SumOf) -> Callable[[str, bytes | None, bytes | None], None]:
        def changed(key: str, old: bytes | None, new: bytes | None) -> None:
            change = 0 if new is None else sum_of(((key, new),))
            if old is not None:
                change -= sum_of(((key, old),))
            self._sums[number] = (self._sums[number] + change) % MODULUS

        return changed

    def enter(self, table: Table, entries: Iterable[tuple[str, bytes]]) -> None:
        """Rows of these live entries were inserted, each with its rank. Nothing if the sum is not kept in this run."""
        if table.number in self._sums:
            added = self._sum_of[table.number](entries)
            self._sums[table.number] = (self._sums[table.number] + added) % MODULUS

    def forget(self, collection: int) -> None:
        """A collection has gone, with its rows. Part of the transaction in which it goes."""
        self._sums.pop(collection, None)
        self._kept.pop(collection, None)
        self._sum_of.pop(collection, None)

    def of(self, collection: int) -> int | None:
        """What a collection holds now, also within a transaction. None: its sum is not kept in this run."""
        return self._sums.get(collection)

    def counted(self, table: Table) -> int:
        """The same, from its rows, all of which are read."""
        rows: Iterable[tuple[str, bytes]] = self._database.connection.execute(
            f"SELECT key, _rank FROM {table.name} WHERE _rank IS NOT NULL AND NOT _flags & {TOMBSTONE}"
        )
        return self._sum_of[table.number](rows) % MODULUS

    def is_right(self, table: Table) -> bool:
        """Count again. If what was kept was wrong, which nobody else is to be blamed for, it is put right."""
        counted = self.counted(table)
        right = self._sums.get(table.number) == counted
        self._sums[table.number] = counted
        return right

    # --- beside a transaction

    def mark(self) -> object:
        """What `go_back` needs."""
        return dict(self._sums), dict(self._kept)

    def go_back(self, mark: object) -> None:
        """The transaction, or its part, that began at this mark has not happened."""
        assert isinstance(mark, tuple)
        self._sums, self._kept = mark

    def write(self) -> None:
        """Make it durable with the transaction that ends now."""
        for number, total in self._sums.items():
            if self._kept.get(number) != total:
                self._database.connection.execute(
                    "INSERT OR REPLACE INTO _sum (collection, sum) VALUES (?, ?)",
                    (number, total.to_bytes(SUM_BYTES, "big")),
                )
                self._kept[number] = total
