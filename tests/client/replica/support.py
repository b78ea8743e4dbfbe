"""A replica with one vault and one collection, and short ways to say what happens to it."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sealwire_client.replica import (
    CHANGES_NAMED_MAX,
    Applied,
    Collection,
    Column,
    Delivery,
    Edit,
    Encoder,
    Incoming,
    Kept,
    Mark,
    Place,
    Reader,
    Replica,
    Row,
    SealedGroup,
    Taken,
    Unopened,
)
from sealwire_client.replica.outbox import Answered
from sealwire_protocol.conditions import encode_condition
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import Author, StreamId, Term, VaultId
from sealwire_protocol.messages import Appended, Refused, StreamKind
from sealwire_protocol.segment import Rank

COLUMNS: Final = (Column("title", "TEXT"), Column("done", "INTEGER"))
STREAM: Final = StreamId(b"todos...")
T1: Final = Term(1, b"term-one")
T2: Final = Term(2, b"term-two")
READ_BY_NONE: Final = "garbled"
"""Why no device can read a record."""

ME: Final = Author(7)
OTHER: Final = Author(9)


def encode(row: Row) -> bytes:
    return json.dumps(row).encode()


def decode(value: bytes) -> Row:
    return tuple(json.loads(value))


def apply(
    replica: Replica,
    collection: Collection,
    delivery: Delivery,
    records: Sequence[Incoming],
    unopened: Sequence[Unopened] = (),
    changes_max: int = CHANGES_NAMED_MAX,
) -> Applied:
    """A delivery in a transaction of its own."""
    with replica.transaction():
        return replica.apply(collection, delivery, records, unopened, changes_max)


class JsonValues:
    """Values as JSON lists, of which an app knows the first `width` places, and not what "newer" means in them."""

    def __init__(self, width: int = len(COLUMNS)) -> None:
        self._width = width

    def row_from_cbor(self, raw: bytes) -> tuple[Row | None, int]:
        row = decode(raw)
        if "newer" in row[: self._width]:
            return None, 0
        padded = row + (None,) * (self._width - len(row))
        return padded[: self._width], len(row) if len(row) <= self._width else 0

    def usual_rows(self, raws: Sequence[bytes]) -> list[Row] | None:
        return None

    def cbor_from_row(self, row: Row, kept: Kept = None) -> bytes:
        return kept if isinstance(kept, bytes) else encode(row[:kept])

    def carry(self, raw: bytes, before: bytes) -> bytes:
        return encode(decode(raw) + decode(before)[self._width :])

    def defaults(self) -> Row:
        return ("untitled", 0, "no note")[: self._width]

    def fits(self, forms: Sequence[str]) -> bool:
        return len(forms) <= self._width

    def encoder(self, forms: Sequence[str]) -> Encoder:
        return encode


def title(value: bytes | None) -> str | None:
    """The title in a value's bytes."""
    return None if value is None else str(decode(value)[0])


def edit(key: str, title: str | None) -> Edit:
    """An edit that sets a title, or deletes."""
    row = None if title is None else (title, 0)
    return Edit(key, row, None if row is None else encode(row))


def record(
    seq: int, key: str, title: str | None, version: int, author: int = OTHER, salt: bytes = b"saltsalt"
) -> Incoming:
    """A delivered record. `title` None: a tombstone."""
    row = None if title is None else (title, 0)
    return Incoming(seq, key, Rank(version, 0, author, salt).pack(), b"key1", 0, row)


def open_todos(
    replica: Replica, columns: Sequence[Column] = COLUMNS, vault: int = 1, kind: StreamKind = StreamKind.OPEN
) -> Collection:
    held = replica.vaults.add(VaultId(bytes([vault]) * 16), f"vault {vault}", "wss://relay.example.org", ME)
    policy = "latest" if kind is StreamKind.OPEN else "merge"
    with replica.transaction():
        todos = replica.entries.open(held.number, "todos", STREAM, kind, policy, columns, JsonValues(len(columns)))
        replica.keep_sum(todos, added, [READ_BY_NONE])
    return todos


def value_of(key: str, rank: bytes) -> int:
    """What an entry adds to the sum."""
    return int.from_bytes(hashlib.blake2b(rank + key.encode(), digest_size=32).digest(), "big")


def added(entries: Iterable[tuple[str, bytes]]) -> int:
    """What entries add to a sum."""
    return sum(value_of(key, rank) for key, rank in entries)


class Todos:
    """A replica and its collection, seen through a reader of its own."""

    def __init__(self, folder: Path, kind: StreamKind = StreamKind.OPEN) -> None:
        self.folder = folder
        self.replica = Replica(folder)
        self.todos = open_todos(self.replica, kind=kind)
        self.reader = Reader(folder)
        self.reader.show(self.todos)

    def close(self) -> None:
        """Whatever a test has done, the sum is that of the rows."""
        self.reader.close()
        same = self.replica.in_transaction() or self._sum_is_right()
        self.replica.close()
        assert same, "the sum is not that of the rows"

    def _sum_is_right(self) -> bool:
        try:
            return self.replica.sums.is_right(self.todos.table)
        except sqlite3.DatabaseError:
            return True  # the test has damaged the file

    def edit(self, key: str, title: str | None) -> Mark:
        self.replica.edit(self.todos, [edit(key, title)])
        return self.replica.outbox.edits.marks(self.todos.number, [key])[0]

    def edit_together(self, **titles: str | None) -> int:
        """Edits of one transaction. Returns its number."""
        with self.replica.transaction():
            tx = self.replica.outbox.edits.new_transaction()
            self.replica.edit(self.todos, [edit(key, title) for key, title in titles.items()], tx)
        return tx

    def deliver(self, prev: int, *records: Incoming, last: int | None = None, term: Term = T1) -> Applied:
        """Apply records that end a delivery, the last one's seq being its last."""
        end = last if last is not None else records[-1].seq
        return apply(self.replica, self.todos, Delivery(term, prev, end), records)

    def take(self, top: int = 0, **limits: int) -> Taken | None:
        return self.replica.outbox.edits.take(self.todos.vault, {self.todos.number: top}, **limits)

    def store(self, taken: Taken) -> bool:
        group = taken.groups[0]
        guarded = self.todos.kind is StreamKind.GUARDED
        said = [self.replica.claims.said(self.todos, edit.key) for edit in group.edits]
        conditions = [encode_condition(each.condition) for each in said] if guarded else ()
        seals = [
            (Rank(group.first_version + at, 0, ME, b"saltsalt").pack(), b"key1", 0) for at in range(len(group.edits))
        ]
        return self.replica.outbox.store(taken, [SealedGroup(conditions, b"sealed by %d" % taken.number, seals)])

    def put_aside(self, key: str, reason: str) -> bool:
        """Set the waiting edit of a key aside. False if there is none."""
        taken = self.take()
        edits = [edit for group in taken.groups for edit in group.edits if edit.key == key] if taken else []
        with self.replica.transaction():
            for edit in edits:
                self.replica.outbox.aside.put_edit(edit.n, reason)
        return bool(edits)

    def send(self) -> int:
        """Take and store a batch. Returns its number."""
        taken = self.take()
        assert taken is not None
        assert self.store(taken)
        return taken.number

    def answer(
        self,
        number: int,
        first: int = 0,
        count: int = 0,
        outcome: Outcome = Outcome.DONE,
        term: Term = T1,
        refused: Sequence[Refused] = (),
    ) -> Answered | None:
        appended = [Appended(STREAM, term, first, count)] if count else []
        return self.replica.outbox.answer(self.todos.vault, number, outcome, appended, refused)

    def own(self, seq: int, key: str, title: str | None, version: int) -> Incoming:
        """A record of this device itself, as the relay delivers it."""
        return record(seq, key, title, version, author=ME)

    def waiting(self) -> list[tuple[str, str | None, str | None]]:
        """The waiting edits in their order: key, title, and the title that it is based on."""
        rows = self.replica.database.connection.execute("SELECT key, value, base FROM _edit ORDER BY n").fetchall()
        return [(key, title(value), title(base)) for key, value, base in rows]

    def stuck(self) -> list[tuple[str, str | None]]:
        """The stuck writes by their keys: key and title."""
        return [(stuck.key, title(stuck.value)) for stuck in self.replica.outbox.aside.all(self.todos)]

    def standing(self, mark: Mark) -> Place:
        """Where an edit stands."""
        return self.replica.outbox.standing(mark).place

    def shown(self) -> Mapping[str, str]:
        """Titles by key, as the app sees them."""
        return {key: str(row[0]) for key, row in self.reader.items(self.todos)}

    def confirmed(self, key: str) -> int | None:
        """The version of what the log says of a key."""
        rank = self.replica.entries.rank_of(self.todos.table, key)
        return None if rank is None else Rank.unpack(rank).version

    def places(self) -> tuple[int, int, int, int]:
        """How many writes wait, are unanswered, are answered, are stuck."""
        return self.replica.outbox.waiting(self.todos.vault)[:4]

    def cursor(self) -> int:
        return self.replica.positions.standing(self.todos.number).cursor.seq


@contextmanager
def opened(folder: Path, kind: StreamKind = StreamKind.OPEN) -> Iterator[Todos]:
    todos = Todos(folder, kind)
    try:
        yield todos
    finally:
        todos.close()
