"""What replicas do, entered into the history, and looked at while the run goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from sealwire_client.replica import ALONE, Delivery, GapError, Incoming, Replica, SealedGroup, Taken, TakenEdit
from sealwire_client.replica import Collection as Held
from sealwire_client.replica import Edit as HeldEdit
from sealwire_client.replica.edits import REFILLED
from sealwire_client.replica.outbox import Outbox
from sealwire_client.replica.positions import Positions
from sealwire_client.replica.refills import Refills
from sealwire_client.replica.sent import Refusing, Sent
from sealwire_client.sync import VaultSync
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import ATOMIC, StreamKind
from sealwire_protocol.segment import Rank
from tests.simulation.history import Edit, Seal
from tests.simulation.world import World


@contextmanager
def watched(world: World) -> Iterator[None]:
    """While the block lasts, edits, seals, verdicts, gaps, losses and what comes of them are entered."""
    with _writing_watched(world), _log_watched(world):
        yield


@contextmanager
def _writing_watched(world: World) -> Iterator[None]:
    """What is edited, sealed and answered."""
    edit, store, answer, history = Replica.edit, Outbox.store, Outbox.answer, world.history

    def watch_edit(self: Replica, collection: Held, edits: Sequence[HeldEdit], tx: int = ALONE) -> None:
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
            "SELECT key FROM _sent WHERE seq IS NULL AND n <> ? GROUP BY collection, key HAVING count(*) > 1",
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
        if not history.restores and "forgotten deletions" not in reason:
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
