"""Sums: what each collection holds of the log, in one number, that two devices can compare without naming an entry.

The sum is over the live entries as the log says them, tombstones and what only this device claims left out: values of
(key, rank) under a key of the vault's, added modulo 2^256. It is kept by triggers of the writing connection, so that it
is right whatever changes a row's rank: deliveries, confirmed writes, reconciling, repairs. Where no sum is kept yet, it
is made by going over the rows once.
"""

from collections.abc import Callable, Iterable
from typing import Final

from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import Collection
from sealwire_protocol.ids import SUM_BYTES
from sealwire_protocol.segment import TOMBSTONE

MODULUS: Final = 1 << 8 * SUM_BYTES

ValueOf = Callable[[str, bytes], int]
"""The number of an entry that is live: of its key and packed rank, under a key of the vault's; below the modulus."""


class Sums:
    """The sums of a replica's collections. Part of what its database's transactions do, or undo."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._values: dict[int, ValueOf] = {}
        self._sums: dict[int, int] = {}
        self._kept: dict[int, int] = {}
        database.beside.append(self)

    def keep(self, collection: Collection, value_of: ValueOf) -> None:
        """Keep a collection's sum from now on. To be called whenever it is opened, in the transaction that opens it."""
        number, stored = collection.number, collection.table.name
        connection = self._database.connection
        self._values[number] = value_of
        connection.create_function(f"_sum{number}", 3, self._summing(number, value_of))
        live = f"_rank IS NOT NULL AND NOT {{0}}_flags & {TOMBSTONE}"
        old, new = (f"iif({of}{live.format(of)}, {of}_rank, NULL)" for of in ("old.", "new."))
        for event, when, said in (
            ("INSERT", f"new.{live.format('new.')}", "new.key, NULL, new._rank"),
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
            self._sums[number] = self.counted(collection)

    def _summing(self, number: int, value_of: ValueOf) -> Callable[[str, bytes | None, bytes | None], None]:
        def changed(key: str, old: bytes | None, new: bytes | None) -> None:
            change = 0 if new is None else value_of(key, new)
            if old is not None:
                change -= value_of(key, old)
            self._sums[number] = (self._sums[number] + change) % MODULUS

        return changed

    def forget(self, collection: int) -> None:
        """A collection has gone, with its rows. Part of the transaction in which it goes."""
        self._sums.pop(collection, None)
        self._kept.pop(collection, None)
        self._values.pop(collection, None)

    def of(self, collection: int) -> int | None:
        """What a collection holds now, also within a transaction. None: its sum is not kept in this run."""
        return self._sums.get(collection)

    def counted(self, collection: Collection) -> int:
        """The same, from its rows, all of which are read."""
        value_of = self._values[collection.number]
        rows: Iterable[tuple[str, bytes]] = self._database.connection.execute(
            f"SELECT key, _rank FROM {collection.table.name} WHERE _rank IS NOT NULL AND NOT _flags & {TOMBSTONE}"
        )
        return sum(value_of(key, rank) for key, rank in rows) % MODULUS

    def is_right(self, collection: Collection) -> bool:
        """Count again. If what was kept was wrong, which nobody else is to be blamed for, it is put right."""
        counted = self.counted(collection)
        right = self._sums.get(collection.number) == counted
        self._sums[collection.number] = counted
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
