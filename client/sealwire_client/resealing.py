"""Sealing old data anew: after the vault's key was changed, what the log has under older keys goes over to the new one.

Slowly, in small batches, when the vault is in step and has nothing else to send; by the device that changed the key,
and by others only if that has not done it after a long time. Nobody writes anything by it: each record keeps version,
author and contents, so that of two devices that seal an entry anew, and of an edit and this, the relay takes whatever
came first, and the other is looked at again. What waits here of an entry, an edit or a verdict, goes first.
"""

import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from sealwire_client import signing
from sealwire_client.keyring import VaultKeys
from sealwire_client.memberlog import MemberLog
from sealwire_client.replica import HeldVault, Replica, Runner, Said, StoredBatch, sealed_bytes
from sealwire_client.sealing import Draft, tag_of
from sealwire_client.stream import StreamSync
from sealwire_protocol.client_session import ClientSession
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import Position, StreamId, Term
from sealwire_protocol.limits import Limits
from sealwire_protocol.links import FIRST_EPOCH, Role
from sealwire_protocol.membership import Membership
from sealwire_protocol.messages import RESEAL, Pushed, StreamKind, push_since
from sealwire_protocol.reseals import encode_applied
from sealwire_protocol.segment import SIGNED, TOMBSTONE


class Pace(NamedTuple):
    """How fast old data is sealed anew: slowly enough that neither an edit nor a battery notices."""

    records_max: int = 100
    """Records in one batch: sealed in a millisecond."""
    bytes_max: int = 65_536
    """Sealed bytes in one batch, unless one record alone has more: half a second of a slow phone's upload."""
    pause_seconds: float = 2.0
    """Before the first batch of an epoch and between two: 10,000 entries take some three minutes."""
    others_seconds: float = 21_600.0
    """How long a device waits that did not change the key, and up to twice as long, so that not all begin at once."""
    passes_seconds_max: float = 3_600.0
    """The longest pause before a collection is looked through again in which something was left under an older key."""


PACE: Final = Pace()

ROWS_AT_ONCE: Final = 4_000
"""Rows that are looked at before an edit has its turn: a few milliseconds."""

GOES_ON: Final = frozenset((Outcome.DONE, Outcome.EPOCH_STALE, Outcome.SEAL_AGAIN))
"""Verdicts after which another batch may be accepted on the same connection."""

_log = logging.getLogger("sealwire.resealing")


@dataclass(slots=True)
class _Pass:
    """One look through a collection, which has got as far as the place `after`. `left`: something was met that may stay
    under its older key for now; `losses`: how often the collection's history had been lost when this began, since older
    records may come back then. The next look begins at `again`; `pause`: how long that was put off."""

    losses: int
    pause: float
    after: int = 0
    left: bool = False
    done: bool = False
    again: float = -math.inf


class _Sealed(NamedTuple):
    """What was sealed of the next rows. `ended`: these were the last."""

    batch: StoredBatch | None
    ended: bool = False


def anew(replica: Replica, stream: StreamSync, key: str, said: Said, epoch: int, members: Membership) -> Draft | None:
    """What the log says of a key, as it is to be sealed anew in this epoch: all that is within the seal, and what may
    not change beside it. In a signed collection its author's signature goes with it, and, if the author was removed,
    that this device vouches for it. None if it cannot; or need not: a deletion has no contents that the old key could
    open, so it is sealed anew only where nobody stands for it any more."""
    assert said.rank is not None
    collection, value = stream.collection, said.value
    proof = replica.entries.proofs.of(collection.number, key, said.rank)
    if not proof:
        return None if collection.signed or value is None else Draft(key, value, said.version, 0, said.author)
    alone = signing.encode_proof(signing.Proof(signing.read_proof(proof).signature))
    author, signer = members.members.get(said.author), stream.signer
    if value is None and signing.stands(proof, said.author, members):
        return None
    if author is None or author.removed:
        if signer is None:
            return None
        tag = tag_of(signer.stream, key)
        subject = signing.Subject(signer.stream.vault, collection.stream, tag, said.version, said.author)
        alone = signing.countersign(signer.by, signer.author, subject, epoch, alone)
    flags = SIGNED if value is not None else SIGNED | TOMBSTONE
    return Draft(key, alone + (value or b""), said.version, flags, said.author)


class Resealing:
    """One vault's reseals. `listen` asks the relay how a stream stands. Used by the vault's task alone."""

    def __init__(
        self,
        held: HeldVault,
        streams: Mapping[StreamId, StreamSync],
        members: MemberLog,
        keys: VaultKeys,
        writer: Runner[Replica],
        listen: Callable[[Iterable[StreamId]], None],
        pace: Pace | None = None,
    ) -> None:
        self._held, self._streams, self._members, self._keys = held, streams, members, keys
        self._writer, self._listen, self._pace = writer, listen, pace or PACE
        self._epoch = FIRST_EPOCH
        self._begins = self._gate = self._wakes = math.inf
        self._passes: dict[StreamId, _Pass] = {}

    def become(self, held: HeldVault) -> None:
        """Be another member from now on."""
        self._held = held

    def online(self) -> None:
        """A new connection: what was refused may be accepted now."""
        self._gate = max(self._begins, trio.current_time() + self._pace.pause_seconds)

    @property
    def wakes_at(self) -> float:
        """When `next` may have something that it did not have when it was asked last. All else that it waits for wakes
        the vault's task by itself."""
        now = trio.current_time()
        return self._gate if self._gate > now else self._wakes if self._wakes > now else math.inf

    def answered(self, message: Pushed) -> None:
        """A reseal has its verdict: what it did is delivered, or looked at again."""
        self._gate = trio.current_time() + self._pace.pause_seconds
        if message.outcome not in GOES_ON:
            _log.warning("records that were sealed anew are not taken: %s", message.outcome.name.lower())
            self._gate = math.inf
        for group in message.appended:
            stream = self._streams.get(group.stream)
            if stream is not None and stream.collection.kind is StreamKind.GUARDED:
                # A write names what it replaces: it waits until that is here.
                stream.head = max(stream.head, group.first + group.records - 1)

    async def next(self, session: ClientSession) -> StoredBatch | None:
        """Seal and store the next batch, if it is time for one and nothing that was sent waits for its verdict."""
        self._notice_epoch()
        vault, now = self._held.id, trio.current_time()
        term = session.term_of(vault)
        if now < self._gate or session.outstanding(vault) or term is None or not self._may(session):
            return None
        for stream in list(self._streams.values()):
            found = self._pass_of(stream)
            if found.done or now < found.again or not self._is_ready(stream):
                continue
            while True:
                sealed = await self._writer.run(self._seal, stream, found, term, session.limits)
                if sealed.batch is not None:
                    self._gate = math.inf  # until its verdict
                    return sealed.batch
                if sealed.ended:
                    found.again, found.pause = now + found.pause, min(2 * found.pause, self._pace.passes_seconds_max)
                    break
        later = [each.again for each in self._passes.values() if not each.done and each.again > now]
        self._wakes = min(later, default=math.inf)  # of the others something else tells
        return None

    def _notice_epoch(self) -> None:
        if self._epoch == self._keys.current.number:
            return
        self._epoch = self._keys.current.number
        self._passes.clear()
        wait = self._pace.pause_seconds
        if not self._has_begun_epoch():
            wait = self._pace.others_seconds * (1 + random.random())
        self._begins = self._gate = trio.current_time() + wait

    def _pass_of(self, stream: StreamSync) -> _Pass:
        name = stream.collection.stream
        found = self._passes.get(name)
        if found is None or found.losses != stream.losses:
            found = self._passes[name] = _Pass(stream.losses, self._pace.pause_seconds)
        return found

    def _has_begun_epoch(self) -> bool:
        """True if this device, under whichever of its keys, has signed the link by which the epoch began."""
        members, start = self._members.membership.members, self._members.membership.epochs.get(self._epoch)
        own = members.get(self._held.author)
        return start is not None and own is not None and members[start.signer].lineage == own.lineage

    def _may(self, session: ClientSession) -> bool:
        own = self._members.membership.members.get(self._held.author)
        may_write = own is not None and own.is_present and own.role >= Role.WRITER
        return may_write and session.version >= push_since(RESEAL)

    def _is_ready(self, stream: StreamSync) -> bool:
        """True if all of a collection is here. Of an open one it must be known that nothing is on its way that was
        sealed under an older key: it could be of the same version, and would lose against what is sealed anew."""
        if not stream.writable:
            return False
        if stream.collection.kind is StreamKind.OPEN and stream.told_epoch < self._epoch:
            self._listen([stream.collection.stream])
            return False
        return True

    def _seal(self, replica: Replica, stream: StreamSync, found: _Pass, term: Term, limits: Limits) -> _Sealed:
        """In the writer's thread."""
        if self._keys.current.number != self._epoch:
            return _Sealed(None, ended=True)
        with replica.transaction():
            chosen = self._chosen(replica, stream, found, limits)
            if chosen is None:
                return _Sealed(None, ended=True)
            if not chosen:
                return _Sealed(None)
            sealed = stream.sealer.seal_many([draft for draft, _ in chosen])
            stated = b"".join([said.salt for _, said in chosen])
            if stream.collection.kind is StreamKind.OPEN:
                cursor = replica.positions.standing(stream.collection.number).cursor
                stated = encode_applied(Position(term, cursor.seq))
            keys, records = [draft.key for draft, _ in chosen], b"".join([record.encoded for record in sealed])
            return _Sealed(replica.outbox.reseals.store(stream.collection, keys, stated, records))

    def _chosen(
        self, replica: Replica, stream: StreamSync, found: _Pass, limits: Limits
    ) -> list[tuple[Draft, Said]] | None:
        """What is to be sealed anew of the next rows; None: there are none left."""
        collection, members = stream.collection, self._members.membership
        records_max, bytes_max = min(self._pace.records_max, limits.push_records), self._pace.bytes_max
        old = replica.outbox.reseals.old(collection, self._epoch, found.after, records_max, ROWS_AT_ONCE)
        if old.last is None:
            # Once more later, unless nothing old was left.
            found.done, found.left, found.after = not found.left, False, 0
            return None
        chosen: list[tuple[Draft, Said]] = []
        size = 0
        for place, key in old.keys:
            said = replica.claims.said(collection, key)
            draft = anew(replica, stream, key, said, self._epoch, members)
            found.left |= said.value is not None or draft is not None
            if draft is None or replica.outbox.edits.is_claimed(collection.number, key):
                continue
            size += sealed_bytes(key, draft.value)
            if chosen and size > min(bytes_max, limits.segment_bytes):
                return chosen
            chosen.append((draft, said))
            found.after = place
        found.after = old.last
        return chosen
