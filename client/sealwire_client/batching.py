"""Sealing the next batch of a vault: what goes into it, on what conditions, and what merging makes of it.

Runs in the writer's thread. A collection has caught up when its edits are sealed, so what the log says of a key is
what the write will replace: if that is not what the edit was based on, the two are merged here, by a device that can
read them; the relay only compares (R5).
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sealwire_client import sealing, signing
from sealwire_client.keyring import VaultKeys
from sealwire_client.merging import MergeError, Resolve
from sealwire_client.replica import (
    STRICT,
    Change,
    Collection,
    NeedsNewerAppError,
    Replica,
    Said,
    SealedGroup,
    Seen,
    StoredBatch,
    Taken,
    TakenEdit,
    TakenGroup,
    is_same_write,
    sealed_bytes,
)
from sealwire_client.stream import StreamSync
from sealwire_protocol.conditions import encode_condition
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import ATOMIC, StreamKind
from sealwire_protocol.segment import TOMBSTONE

NEEDS_NEWER_APP: Final = "the entry holds a value that needs a newer app; update this one, then retry"
CANNOT_READ_WINNER: Final = (
    "the relay says that another write came first, and has none that this device can read: the relay is at fault, or a"
    " member has sent what cannot be opened"
)
NOT_MERGED_ANY_MORE: Final = (
    "it was made while the collection merged edits, another device's came first, and the collection is strict now"
)
TOO_LARGE_FOR_RELAY: Final = "the transaction is larger than this relay takes at once"


class StrictWrite(NamedTuple):
    """A write that waits for its verdict. `seen`: what its app was shown before, on condition of which it is made."""

    collection: Collection
    key: str
    value: bytes | None
    raw: bool
    seen: Seen


class Sealed(NamedTuple):
    """The batch that was stored (None: there is nothing to send), and what merging changed for watchers. `none_wait`:
    the vault has no edits left, not even such as must wait for something."""

    batch: StoredBatch | None
    changes: Sequence[tuple[Collection, Sequence[Change]]]
    none_wait: bool = False


class OvertakenError(Exception):
    """Strict writes were not sent, because what their app was shown is not what the log says any more."""


class StuckError(Exception):
    """Strict writes were not sent, because what their app was shown is a stuck write, which the log does not say."""


class DisputedError(Exception):
    """Strict writes were not sent, because devices hold different histories of the vault."""


class Batcher:
    """Seals the batches of one vault."""

    def __init__(self, vault: int, streams: Mapping[StreamId, StreamSync], keys: VaultKeys) -> None:
        self._vault, self._streams, self._keys = vault, streams, keys

    def next(self, replica: Replica, tops: dict[int, int], records_max: int, bytes_max: int) -> Sealed:
        """Merge, seal and store the edits that are next. `tops`: collections that have caught up, see `Edits.take`."""
        changes: list[tuple[Collection, Sequence[Change]]] = []
        while True:
            with replica.transaction():
                taken = replica.outbox.edits.take(self._vault, tops, records_max, bytes_max)
                if taken is None:
                    return Sealed(None, changes, not replica.outbox.edits.any_wait(self._vault))
                groups = [self._prepared(replica, group, changes) for group in taken.groups]
                ready = [group for group in groups if group is not None]
                if len(ready) < len(groups):
                    continue  # what is left of them
                sizes = [
                    sealed_bytes(edit.key, edit.value, self._streams[group.stream].collection.signed)
                    for group, _ in ready
                    for edit in group.edits
                ]
                if exceeds(sizes, records_max, bytes_max):
                    if taken.flags & ATOMIC:
                        replica.outbox.aside.put_edit(taken.groups[0].edits[0].n, TOO_LARGE_FOR_RELAY)
                    continue  # the values have grown: fewer fit
                if self._store(replica, taken, ready):
                    batch = replica.outbox.sent.unanswered(self._vault, taken.number - 1, 1)[0]
                    return Sealed(batch, changes, not replica.outbox.edits.any_wait(self._vault))

    def _store(self, replica: Replica, taken: Taken, ready: Sequence[tuple[TakenGroup, Sequence[bytes]]]) -> bool:
        sealed = [self._sealed(group, conditions) for group, conditions in ready]
        return replica.outbox.store(taken._replace(groups=tuple(group for group, _ in ready)), sealed)

    def _sealed(self, group: TakenGroup, conditions: Sequence[bytes]) -> SealedGroup:
        drafts = [
            sealing.Draft(
                edit.key, edit.value or b"", group.first_version + place, 0 if edit.value is not None else TOMBSTONE
            )
            for place, edit in enumerate(group.edits)
        ]
        stream, key_id = self._streams[group.stream], self._keys.current.key_id
        signed = None if stream.signer is None else stream.signer.signed(drafts)
        sealed = stream.sealer.seal_many(signed or drafts)
        seals = [(record.rank, key_id, draft.flags) for record, draft in zip(sealed, signed or drafts, strict=True)]
        proofs = [signing.parted(draft.value)[0] for draft in signed or ()]
        return SealedGroup(conditions, b"".join([record.encoded for record in sealed]), seals, proofs)

    # --- merging

    def _prepared(
        self, replica: Replica, group: TakenGroup, changes: list[tuple[Collection, Sequence[Change]]]
    ) -> tuple[TakenGroup, Sequence[bytes]] | None:
        """A group as it is to be sealed, with a condition for each edit (none in open streams). None if edits were set
        aside or had nothing to say any more: take again."""
        stream = self._streams[group.stream]
        collection = stream.collection
        guarded = collection.kind is StreamKind.GUARDED
        if not guarded and not replica.claims.has_newer(collection):
            return group, ()
        edits: list[TakenEdit] = []
        conditions: list[bytes] = []
        whole = True
        for edit in group.edits:
            said = replica.claims.said(collection, edit.key)
            merged, why = self._merged(stream, edit, said) if guarded else (edit, NEEDS_NEWER_APP * said.newer)
            if why:
                replica.outbox.aside.put_edit(edit.n, why)
                whole = False
            elif guarded and merged.value == said.value:
                changes.append((collection, replica.outbox.edits.drop(collection, edit)))
                whole = False
            else:
                if merged is not edit:
                    changes.append((collection, replica.outbox.edits.rebase(collection, merged)))
                    self._follow(replica, stream, edit, merged, changes)
                edits.append(merged)
                conditions.append(encode_condition(said.condition))
        return (group._replace(edits=tuple(edits)), conditions if guarded else ()) if whole else None

    @staticmethod
    def _merged(stream: StreamSync, edit: TakenEdit, said: Said) -> tuple[TakenEdit, str]:
        """An edit brought together with what the log says, or why that cannot be."""
        if said.newer:
            return edit, NEEDS_NEWER_APP
        if edit.refused is not None and said.replaced == edit.refused:
            return edit, CANNOT_READ_WINNER
        if said.value == edit.base:
            return edit, ""
        if stream.resolve is None:
            return edit, NOT_MERGED_ANY_MORE
        return _resolved(stream, stream.resolve, edit, said.value)

    @staticmethod
    def _follow(
        replica: Replica,
        stream: StreamSync,
        before: TakenEdit,
        merged: TakenEdit,
        changes: list[tuple[Collection, Sequence[Change]]],
    ) -> None:
        """Bring later edits of the key, which were made on what was merged now, onto what came of it: so each is based
        on the value of the one before, for which it may have to stand."""
        edits, collection = replica.outbox.edits, stream.collection
        while (later := edits.following(collection, before)) is not None and stream.resolve is not None:
            if later.base != before.value:
                return
            onto, why = _resolved(stream, stream.resolve, later, merged.value)
            if why:
                replica.outbox.aside.put_edit(later.n, why)
                continue
            changes.append((collection, edits.rebase(collection, onto)))
            before, merged = later, onto

    # --- strict writes

    def strict(self, replica: Replica, writes: Sequence[StrictWrite], tops: dict[int, int]) -> StoredBatch | None:
        """Seal and store strict writes as one atomic batch. None if edits of their keys must be sent before.

        Raises DisputedError, OvertakenError, StuckError, NeedsNewerAppError, ValueTooLargeError; nothing was stored
        then.
        """
        if replica.disputes.of_vault(self._vault):
            raise DisputedError
        edits = replica.outbox.edits
        if any(edits.is_claimed(write.collection.number, write.key) for write in writes):
            return None
        groups: dict[StreamId, tuple[list[TakenEdit], list[bytes]]] = {}
        for write in writes:
            said = replica.claims.said(write.collection, write.key)
            taken, conditions = groups.setdefault(write.collection.stream, ([], []))
            taken.append(self._decided(replica, write, said))
            if write.collection.kind is StreamKind.GUARDED:
                conditions.append(encode_condition(said.condition))
        with replica.transaction():
            ready = []
            for stream, (taken, conditions) in groups.items():
                number = self._streams[stream].collection.number
                ready.append((edits.group(number, taken, tops[number]), conditions))
            batch = Taken(self._vault, edits.next_batch(self._vault), tuple(group for group, _ in ready), ATOMIC)
            if not self._store(replica, batch, ready):
                raise OvertakenError
        return replica.outbox.sent.unanswered(self._vault, batch.number - 1, 1)[0]

    @staticmethod
    def _decided(replica: Replica, write: StrictWrite, said: Said) -> TakenEdit:
        """A strict write as it is to be sealed, with what its value holds there that this app does not know."""
        collection, seen, value, raw = write.collection, write.seen, write.value, write.raw
        if replica.outbox.aside.shows(collection, write.key):
            raise StuckError(f"{write.key!a} in {collection.name} is stuck: retry or discard that write first")
        if said.newer:
            raise NeedsNewerAppError(write.key, collection.name)
        # What was shown and was not in the log yet is there now, under a rank that nobody could know. Of what was there
        # the rank has changed, if it was sealed anew; the value has not.
        same_write = seen.local or is_same_write(said.rank, seen.rank)
        if not same_write or said.value != replica.claims.seen(collection, seen):
            raise OvertakenError
        if value is not None and said.value is not None:
            carried = collection.values.carry(value, said.value)
            sealing.check_fits(write.key, carried, collection.signed)
            value, raw = carried, raw or carried != value
        return TakenEdit(STRICT, write.key, value, raw)


def _resolved(stream: StreamSync, resolve: Resolve, edit: TakenEdit, theirs: bytes | None) -> tuple[TakenEdit, str]:
    """An edit brought together with another value, which it is based on then; or why that cannot be."""
    try:
        value = resolve(edit.base, edit.value, theirs)
        raw = value is not None and stream.collection.read(value)[1] is not None
        if value is not None:
            sealing.check_fits(edit.key, value, stream.collection.signed)
    except (MergeError, sealing.ValueTooLargeError) as error:
        return edit, str(error)
    return edit._replace(value=value, raw=raw, base=theirs), ""


def exceeds(sizes: Sequence[int], records_max: int, bytes_max: int) -> bool:
    """True if records of these sizes are more than one push may hold. A single one always may."""
    return len(sizes) > 1 and (len(sizes) > records_max or sum(sizes) > bytes_max)
