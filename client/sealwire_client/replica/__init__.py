"""The replica: everything a device holds of its vaults, in one SQLite file, and what it has still to send.

runner → Replica → reconciling → outbox → refills, reseals → aside → sent → edits → claims → forgetting → entries,
positions → proofs, sums → database, shaping → declared, tables → touches, schema, errors, values
reconciling → boundaries → sums, positions
reading (→ searching), census, disputes and parting stand beside them; salvage makes a new replica of a damaged one:
→ damaged, waldamage.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from sealwire_client.replica.aside import Discarded, Stuck
from sealwire_client.replica.awaited import AwaitedVaults
from sealwire_client.replica.boundaries import BOUNDARIES_MAX, Boundaries, Boundary
from sealwire_client.replica.census import Census, Counts, Placed
from sealwire_client.replica.claims import Claims, Said, is_same_write
from sealwire_client.replica.database import Database
from sealwire_client.replica.disputes import Dispute, Disputes, LastStated, now_ms
from sealwire_client.replica.edits import ALONE, STRICT, Mark, Taken, TakenEdit, TakenGroup, sealed_bytes
from sealwire_client.replica.entries import (
    CHANGES_NAMED_MAX,
    Change,
    Collection,
    Edit,
    Entries,
    Incoming,
    Kind,
    Sight,
    Unopened,
)
from sealwire_client.replica.errors import (
    ColumnsChangedError,
    GapError,
    NeedsNewerAppError,
    NoSearchError,
    NotAReplicaError,
    QueryError,
    ReplicaClosedError,
    ReplicaCorruptError,
    ReplicaError,
    ReplicaFullError,
    ReplicaInUseError,
    ReplicaMisuse,
    ReplicaTooNewError,
    ReplicaUnreadableError,
    UnsentError,
    VaultGoneError,
)
from sealwire_client.replica.forgetting import Forgetting
from sealwire_client.replica.outbox import CONFLICT, Answered, Outbox, Place, Waiting
from sealwire_client.replica.outbox import Standing as EditStanding
from sealwire_client.replica.parting import Leaving, Parting
from sealwire_client.replica.positions import Delivery, Pinned, Positions, Standing, greatest_version
from sealwire_client.replica.reading import Reader, Rows, Seen
from sealwire_client.replica.reconciling import SET_ASIDE, Differing, Gathered, Lost, Reconciling, Room, Settled
from sealwire_client.replica.refills import GIVEN_BACK_LATE
from sealwire_client.replica.runner import InlineWriter, Runner, Writer
from sealwire_client.replica.salvage import Salvaged, holds_a_replica, repair
from sealwire_client.replica.sent import SealedGroup, StoredBatch
from sealwire_client.replica.sharing import SharedReader
from sealwire_client.replica.sums import SumOf, Sums
from sealwire_client.replica.tables import Column, Table
from sealwire_client.replica.touches import Touches
from sealwire_client.replica.values import Encoder, Kept, Row, SqlValue, Values
from sealwire_client.replica.vaults import HeldVault, Unissued, Vaults


class Applied(NamedTuple):
    """What a delivery did. `moved`: False if it was a repeat. `changes` None: more keys than were to be named.
    `fallen`: how many of its records no honest relay delivers after what it had delivered."""

    moved: bool
    changes: tuple[Change, ...] | None
    fallen: int = 0


Reread = Callable[[int, bytes], tuple[Sequence[Incoming], Sequence[Unopened]]]
"""Opens (seq, record), which was set aside. It is among the first; or among the others, with what keeps it closed."""


class Replica:
    """One device's replica, as the thread that writes it sees it. Each method is one durable transaction."""

    def __init__(self, folder: Path) -> None:
        """Open, or make, the replica of a folder: see Database for the errors."""
        self.database = Database(folder)
        self.vaults = Vaults(self.database)
        self.awaited = AwaitedVaults(self.database)
        self.sums = Sums(self.database)
        self.entries = Entries(self.database, self.sums)
        self.positions = Positions(self.database)
        self.claims = Claims(self.database)
        self.outbox = Outbox(self.database, self.entries, self.positions, self.claims)
        self.forgetting = Forgetting(self.database, self.positions)
        self.boundaries = Boundaries(self.database, self.positions, self.sums)
        self.reconciling = Reconciling(
            self.database, self.entries, self.positions, self.outbox, self.forgetting, self.boundaries
        )
        self.disputes = Disputes(self.database, self.positions)
        self.census = Census(self.database)
        self.parting = Parting(self.database, self.vaults, self.entries, self.outbox, self.sums)

    def transaction(self) -> AbstractContextManager[Any]:
        """Several calls as one: durable together when the outermost one ends, or not at all."""
        return self.database.transaction()

    def in_transaction(self) -> bool:
        """False also after SQLite has given up a transaction by itself."""
        return self.database.in_transaction

    def explained(self, error: BaseException) -> BaseException:
        """What an error that came out of here means, see `Database.explained`."""
        return self.database.explained(error)

    def close(self) -> None:
        """Close the file and let other processes open it."""
        self.database.close()

    def keep_sum(self, collection: Collection, sum_of: SumOf, unread_by_all: Iterable[str]) -> None:
        """Keep a collection's sum, and boundaries, from now on: whenever it is opened, in the transaction that opens
        it. `unread_by_all`: reasons for which no other device can read a record either."""
        with self.database.transaction():
            self.sums.keep(collection.table, sum_of)
            self.boundaries.take_for_unread(unread_by_all)

    def apply(
        self,
        collection: Collection,
        delivery: Delivery,
        records: Sequence[Incoming],
        unopened: Sequence[Unopened] = (),
        changes_max: int = CHANGES_NAMED_MAX,
    ) -> Applied:
        """Apply the records of a DELIVER, or of a part of one, and move the cursor. Within the caller's transaction:
        nothing of it may stay if this raises anything but GapError.

        `records` in the order of their seqs; those at or below the cursor are skipped. A repeat does nothing.
        Tombstones that the relay has purged are dropped before: of their keys, the log that the records were read from
        has only what was written since (R11). `changes_max`: 0 if nobody watches. Raises GapError if the delivery
        begins after the cursor.
        """
        number, table = collection.number, collection.table
        cursor = self.positions.begin(number, delivery)
        if cursor is None:
            return Applied(False, ())
        if not cursor and delivery.floor:
            self.positions.begin_whole(number, delivery.term, delivery.floor)
        if cursor > delivery.prev:
            records = [record for record in records if record.seq > cursor]
            unopened = [record for record in unopened if record.seq > cursor]
        self.forgetting.forget(table, delivery.floor)
        term = self.positions.term_id(delivery.term)
        ranks = [record.rank for record in records] + [record.rank for record in unopened if record.sealed]
        self.vaults.heard(collection.vault, ranks, self._news(table, records))
        records = self.outbox.sent.recognise(collection, term, records)
        named = len(records) <= changes_max
        keys = list(dict.fromkeys(record.key for record in records)) if named else []
        before = self.entries.look(table, keys)
        fallen = 0
        if held := self.entries.enter(table, term, records):
            fallen = self.entries.fallen_back(collection, term, held)
            self.entries.contend(table, term, held, self.outbox.has_claims(number))
        self.entries.prove(collection, records)
        if unopened:
            self.entries.quarantine(collection, term, unopened)
        self.positions.advance(number, delivery, term, greatest_version(ranks))
        changes = before.changes_to(self.entries.look(table, keys))
        delivered = [*ranks, *[record.rank for record in unopened]] if delivery.floor else None
        changes += self.outbox.sent.promote(collection, delivered)
        if not delivery.goes_on:
            self.boundaries.note(number)
        return Applied(True, tuple(changes) if named else None, fallen)

    def _news(self, table: Table, records: Sequence[Incoming]) -> Callable[[bytes], bool]:
        """Tells of a delivered record's rank whether its author made it, or another device sealed it anew."""
        keys: dict[bytes, str] = {}

        def is_news(rank: bytes) -> bool:
            if not keys:
                keys.update((record.rank, record.key) for record in records)
            return rank not in keys or not is_same_write(rank, self.entries.rank_of(table, keys[rank]))

        return is_news

    def reopen(self, collection: Collection, reason: str, read: Reread) -> tuple[Change, ...]:
        """Apply records that were kept because they could not be opened, for this reason, and now can; in one
        transaction. `read` opens (seq, record)."""
        table, changes = collection.table, list[Change]()
        with self.database.transaction():
            for name, term, seq, record in self.entries.unopened(collection, reason):
                records, unopened = read(seq, record)
                if unopened:
                    self.entries.quarantine(collection, term, unopened)
                    continue
                keys = [each.key for each in records]
                before = self.entries.look(table, keys)
                self.entries.absorb(table, term, records, self.outbox.has_claims(collection.number))
                self.entries.prove(collection, records)
                self.positions.raise_version(collection.number, greatest_version([each.rank for each in records]))
                changes += before.changes_to(self.entries.look(table, keys))
                self.entries.release(name)
            if changes:
                self.boundaries.note(collection.number)
        return tuple(changes)

    def forget(self, collection: Collection, floor: int, floor_head: int) -> None:
        """Drop the tombstones that the relay has purged, as it tells when the replica subscribes, in one transaction.

        If the cursor is not yet where the relay did so, they are dropped when it comes there."""
        with self.database.transaction():
            if self.positions.standing(collection.number).cursor.seq >= floor_head:
                self.forgetting.forget(collection.table, floor)

    def edit(self, collection: Collection, edits: Sequence[Edit], tx: int = ALONE) -> None:
        """Show edits and put them into the outbox, in one transaction: durable when it returns (or its group does).

        What a newer app wrote beside what this one knows is carried over. Edits with the same `tx` are pushed together.
        Raises VaultGoneError.
        """
        if self.vaults.has_gone(collection.vault):
            raise VaultGoneError
        with self.database.transaction():
            self.entries.refuse_newer(collection, [edit.key for edit in edits])
            kept = self.claims.kept(collection, [edit.key for edit in edits])
            if kept:
                edits = [_carried(collection, edit, kept.get(edit.key)) for edit in edits]
            self.outbox.edits.add(collection, edits, tx)
            self.entries.show(collection, edits)


def _carried(collection: Collection, edit: Edit, kept: bytes | None) -> Edit:
    if kept is None or edit.value is None:
        return edit
    value = collection.values.carry(edit.value, kept)
    return edit if value == edit.value else edit._replace(value=value, raw=True)


__all__ = [
    "ALONE",
    "BOUNDARIES_MAX",
    "CHANGES_NAMED_MAX",
    "CONFLICT",
    "GIVEN_BACK_LATE",
    "SET_ASIDE",
    "STRICT",
    "Answered",
    "Applied",
    "Boundaries",
    "Boundary",
    "Change",
    "Census",
    "Claims",
    "Collection",
    "Column",
    "ColumnsChangedError",
    "Counts",
    "Delivery",
    "Differing",
    "Discarded",
    "Dispute",
    "Disputes",
    "Edit",
    "EditStanding",
    "Encoder",
    "GapError",
    "Gathered",
    "HeldVault",
    "Incoming",
    "InlineWriter",
    "Kept",
    "Kind",
    "LastStated",
    "Leaving",
    "Lost",
    "Mark",
    "NeedsNewerAppError",
    "NoSearchError",
    "NotAReplicaError",
    "Pinned",
    "Place",
    "Placed",
    "QueryError",
    "Reader",
    "Replica",
    "ReplicaClosedError",
    "ReplicaCorruptError",
    "ReplicaError",
    "ReplicaFullError",
    "ReplicaInUseError",
    "ReplicaMisuse",
    "ReplicaTooNewError",
    "ReplicaUnreadableError",
    "Room",
    "Row",
    "Rows",
    "Runner",
    "Said",
    "Salvaged",
    "SealedGroup",
    "Seen",
    "Settled",
    "SharedReader",
    "Sight",
    "SqlValue",
    "Standing",
    "StoredBatch",
    "Stuck",
    "SumOf",
    "Sums",
    "Taken",
    "TakenEdit",
    "TakenGroup",
    "Touches",
    "Unissued",
    "UnsentError",
    "VaultGoneError",
    "Unopened",
    "Values",
    "Waiting",
    "Writer",
    "holds_a_replica",
    "is_same_write",
    "now_ms",
    "repair",
    "sealed_bytes",
]
