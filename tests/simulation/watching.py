"""What replicas do, entered into the history, and looked at while the run goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from sealwire_client import disputing, resealing
from sealwire_client.disputing import Disputing
from sealwire_client.replica import (
    ALONE,
    Boundary,
    Delivery,
    GapError,
    Incoming,
    LastStated,
    Replica,
    SealedGroup,
    Taken,
    TakenEdit,
    disputes,
)
from sealwire_client.replica import Collection as Held
from sealwire_client.replica import Edit as HeldEdit
from sealwire_client.replica.disputes import Disputes
from sealwire_client.replica.edits import REFILLED
from sealwire_client.replica.outbox import Outbox
from sealwire_client.replica.positions import Positions
from sealwire_client.replica.refills import Refills
from sealwire_client.replica.sent import Refusing, Sent
from sealwire_client.stream import StreamSync
from sealwire_client.sync import VaultSync
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import ATOMIC, StreamKind
from sealwire_protocol.segment import Rank
from tests.simulation.history import Edit, Seal
from tests.simulation.world import World

PACE: Final = resealing.Pace(records_max=5, pause_seconds=0.1, others_seconds=3.0, passes_seconds_max=10.0)
"""Old data is sealed anew within a run."""


@contextmanager
def watched(world: World) -> Iterator[None]:
    """While the block lasts, edits, seals, verdicts, gaps, losses and what comes of them are entered."""
    with (
        _writing_watched(world),
        _log_watched(world),
        _statements_watched(world),
        mock.patch.object(resealing, "PACE", PACE),
    ):
        yield


STATED_RECORDS: Final = 5
STATED_SECONDS: Final = 30.0
"""Devices state what they hold far more often than they do among people."""


@contextmanager
def _statements_watched(world: World) -> Iterator[None]:
    """No honest run ever has a dispute, how often devices may say what they hold."""

    def watch_dispute(self: Disputes, collection: Held, *args: Any, back: bool, **named: Any) -> bool:
        assert world.current is not None
        how = "it goes back" if back else "it differs"
        world.operations["dispute"] += 1
        world.history.fail(
            f"honest devices hold the same: of a statement of {collection.name} {world.current.name} says that {how}"
        )
        return False

    def watch_fallen(self: StreamSync, fallen: int, last: int) -> None:
        assert world.current is not None
        told = f"of {self.collection.name} {world.current.name} says that it is given older versions, up to {last}"
        world.history.fail(f"an honest relay delivers nothing older after what is newer: {told}")

    def watch_stated(self: Disputes, collection: int, seq: int) -> LastStated:
        world.operations["statement"] += 1
        return stated(self, collection, seq)

    def watch_agreed(self: Disputing, stream: StreamSync, boundary: Boundary) -> Any:
        world.operations["statements that agree"] += 1
        return agree(self, stream, boundary)

    def now_ms() -> int:
        return int(world.agenda.current_time() * 1_000) + 1

    stated, agree = Disputes.stated, Disputing._agree
    with (
        mock.patch.object(Disputes, "add", watch_dispute),
        mock.patch.object(Disputes, "stated", watch_stated),
        mock.patch.object(Disputing, "_agree", watch_agreed),
        mock.patch.object(StreamSync, "_report", watch_fallen),
        mock.patch.multiple(disputing, STATED_RECORDS=STATED_RECORDS, STATED_SECONDS=STATED_SECONDS, now_ms=now_ms),
        mock.patch.object(disputes, "now_ms", now_ms),
    ):
        yield


@contextmanager
def _writing_watched(world: World) -> Iterator[None]:
    """What is edited, sealed and answered."""
    edit, store, answer, history = Replica.edit, Outbox.store, Outbox.answer, world.history

    def watch_edit(self: Replica, collection: Held, edits: Sequence[HeldEdit], tx: int = ALONE) -> None:
        if collection.is_internal:
            edit(self, collection, edits, tx)
            return
        device = world.current
        assert device is not None
        seen = [self.entries.rank_of(collection.table, edit.key) or b"" for edit in edits]
        before: list[bytes | None] = [None] * len(edits)
        if collection.kind is StreamKind.GUARDED:
            before = [self.claims.shown(collection, edit.key).value for edit in edits]
        edit(self, collection, edits, tx)
        marks = self.outbox.edits.marks(collection.number, [one.key for one in edits])
        for one, rank, shown, mark in zip(edits, seen, before, marks, strict=True):
            place = (collection.stream, one.key)
            history.edited(Edit(device.name, place, one.value, history.step, rank, device.certain, shown, tx, mark.n))
        history.add("edited", device.name)

    def watch_store(self: Outbox, taken: Taken, sealed: Sequence[SealedGroup]) -> bool:
        device = world.current
        assert device is not None
        stored = store(self, taken, sealed)
        if stored:
            assert device.vault is not None
            world.members.seals(device.name, device.vault._sync.keys.current)
            pairs = [
                (_seal(device.name, group.stream, one, seal[0], history.step), one.tx)
                for group, seals in zip(taken.groups, sealed, strict=True)
                for one, seal in zip(group.edits, seals.seals, strict=True)
            ]
            for seal, _ in pairs:
                if Rank.unpack(seal.rank).version <= device.tops.get(seal.place[0], 0):
                    history.fail(f"versions rise above all that is known: {device.name}'s of {seal.place[1]} does not")
            history.sealed([seal for seal, _ in pairs], [max(tx, ALONE) for _, tx in pairs], bool(taken.flags & ATOMIC))
            history.add("sealed", device.name)
        twice = self._database.connection.execute(
            "SELECT key FROM (SELECT collection, key FROM _sent WHERE seq IS NULL AND n <> ?"
            " UNION ALL SELECT collection, key FROM _resealed) GROUP BY collection, key HAVING count(*) > 1",
            (REFILLED,),
        ).fetchone()
        if twice:
            history.fail(f"one write of a key is in flight: {device.name} has two of {twice[0]}")
        return stored

    def watch_answer(self: Outbox, *args: Any) -> Any:
        answered = answer(self, *args)
        for held in self._entries.opened.values():
            cursor, found = self._database.connection.execute(
                f"SELECT cursor_seq, (SELECT max(_seq) FROM {held.table.name}) FROM _collection WHERE id = ?",
                (held.number,),
            ).fetchone()
            if (found or 0) > cursor:
                history.fail(f"entries stand within the cursor: one at {found}, and the cursor at {cursor}")
        return answered

    with (
        mock.patch.object(Replica, "edit", watch_edit),
        mock.patch.object(Outbox, "store", watch_store),
        mock.patch.object(Outbox, "answer", watch_answer),
    ):
        yield


@contextmanager
def _log_watched(world: World) -> Iterator[None]:
    """What is delivered, what is lost, and what refills are merged into."""
    begin, lose, merge, history = Positions.begin, VaultSync.history_lost, Refills._edit, world.history
    recognise = Sent.recognise

    def watch_begin(self: Positions, collection: int, delivery: Delivery) -> int | None:
        try:
            return begin(self, collection, delivery)
        except GapError as error:
            assert world.current is not None
            history.fail(f"a relay leaves no gaps: {world.current.name}: {error}")
            raise

    def watch_records(self: Sent, collection: Held, term: int, records: Sequence[Incoming]) -> Sequence[Incoming]:
        history.received |= {(collection.stream, record.rank) for record in records}
        return recognise(self, collection, term, records)

    def watch_merge(self: Refills, write: Refusing) -> bool:
        device, key = world.current, write.edit.key
        assert device is not None
        new = merge(self, write)
        (first,) = self._database.connection.execute(
            "SELECT min(n) FROM _edit WHERE collection = ? AND key = ?", (write.collection, key)
        ).fetchone()
        (stream,) = self._database.connection.execute(
            "SELECT stream FROM _collection WHERE id = ?", (write.collection,)
        ).fetchone()
        edit = write.edit
        place = StreamId(stream), key
        history.merged.append(Edit(device.name, place, edit.value, history.step, b"", False, edit.base, n=first))
        return new

    def watch_loss(self: VaultSync, stream: StreamId, reason: str) -> None:
        cut = history.restores or world.members.log.ended
        if not cut and "forgotten deletions" not in reason:
            history.fail(f"a history that no restore has cut is not lost: {reason}")
        lose(self, stream, reason)

    with (
        mock.patch.object(VaultSync, "history_lost", watch_loss),
        mock.patch.object(Refills, "_edit", watch_merge),
        mock.patch.object(Positions, "begin", watch_begin),
        mock.patch.object(Sent, "recognise", watch_records),
    ):
        yield


def _seal(device: str, stream: StreamId, edit: TakenEdit, rank: bytes, step: int) -> Seal:
    first = edit.n if edit.since is None else edit.since
    return Seal(device, (stream, edit.key), edit.value, rank, step, first, edit.n)
