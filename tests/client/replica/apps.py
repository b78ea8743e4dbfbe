"""A replica whose one collection is opened by apps of several ages, one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealwire_client.encoding import schema_of
from sealwire_client.replica import Collection, Delivery, Edit, Incoming, Reader, Replica
from sealwire_protocol.ids import VaultId
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import Rank
from tests.client.replica.support import ME, OTHER, STREAM, T1, added, apply


class Opened:
    """A replica whose one collection is opened by an app that knows one of the versions."""

    def __init__(self, folder: Path) -> None:
        self.replica, self.reader = Replica(folder), Reader(folder)
        self.replica.vaults.add(VaultId(bytes(16)), "home", "wss://relay.example.org", ME)
        self.cursor = 0
        self.cards: Collection

    def open(self, cls: type) -> None:
        self.schema: Any = schema_of(cls)
        of = 1, "cards", STREAM, StreamKind.GUARDED, "merge", self.schema.columns, self.schema
        with self.replica.transaction():
            self.cards = self.replica.entries.open(*of, declared=self.schema.declared)
            self.replica.keep_sum(self.cards, added, [])
        self.reader.show(self.cards)

    def deliver(self, key: str, value: bytes | None, version: int = 0) -> None:
        """Apply another device's record of a key."""
        row = (None, None) if value is None else self.cards.read(value)
        self.cursor += 1
        rank = Rank(version or self.cursor, 0, OTHER, b"saltsalt").pack()
        record = Incoming(self.cursor, key, rank, b"key1", 0, *row)
        applied = apply(self.replica, self.cards, Delivery(T1, self.cursor - 1, self.cursor), [record])
        self.changes = [change.kind for change in applied.changes or ()]

    def deliver_many(self, values: dict[str, bytes]) -> None:
        """Apply another device's first records of these keys, together."""
        before, records = self.cursor, list[Incoming]()
        for key, value in values.items():
            self.cursor += 1
            rank = Rank(self.cursor, 0, OTHER, b"saltsalt").pack()
            records.append(Incoming(self.cursor, key, rank, b"key1", 0, *self.cards.read(value)))
        apply(self.replica, self.cards, Delivery(T1, before, self.cursor), records)

    def put(self, key: str, value: Any) -> None:
        """Edit a key here."""
        self.replica.edit(self.cards, [Edit(key, self.schema.to_row(value), self.schema.encode(value))])

    def get(self, key: str) -> Any:
        row = self.reader.get(self.cards, key)
        return None if row is None else self.schema.from_row(row)

    def value(self, key: str) -> bytes | None:
        """The bytes of what is shown of a key."""
        return self.replica.claims.shown(self.cards, key).value

    def said(self, key: str) -> bytes | None:
        """The bytes of what the log says of a key."""
        return self.replica.claims.said(self.cards, key).value

    def kept(self) -> list[Any]:
        rows = self.replica.database.connection.execute(f"SELECT _raw FROM {self.cards.table.name} ORDER BY key")
        return [row[0] for row in rows]


@contextmanager
def opened(folder: Path, cls: type) -> Iterator[Opened]:
    replica = Opened(folder)
    try:
        replica.open(cls)
        yield replica
    finally:
        replica.reader.close()
        replica.replica.close()
