"""One collection on its way between replica and relay: what the relay told of its stream, and how it is opened.

`apply` runs in the writer's thread. A delivery is opened, decoded and stored in parts that stay within a core's cache,
all in the caller's transaction: either the whole delivery becomes durable, or nothing of it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from sealwire_client import sealing, signing
from sealwire_client.merging import Resolve
from sealwire_client.replica import (
    CHANGES_NAMED_MAX,
    Change,
    Collection,
    Delivery,
    Incoming,
    Replica,
    Unopened,
)
from sealwire_protocol.errors import DecodeError
from sealwire_protocol.ids import TermStart
from sealwire_protocol.messages import Deliver, Fetched, StreamKind
from sealwire_protocol.segment import SIGNED, TOMBSTONE

MADE_IN_IGNORANCE: Final = (
    "it was made before this device knew that another one had made the collection with another policy; look at what is"
    " there now, then retry or discard it"
)

TOLD_BY_LINKS: Final = (sealing.Reason.NO_KEY, sealing.Reason.UNKNOWN_AUTHOR)
"""Why a record may have been set aside that opens once more of the membership log is here."""

_log = logging.getLogger("sealwire.sync")


class Part(NamedTuple):
    """Some consecutive records of a delivery, up to `last`, opened and decoded; and those that could not be."""

    last: int
    records: list[Incoming]
    unopened: list[Unopened]


class Garbled(NamedTuple):
    """A delivery that is no records: the relay's copy is damaged, or was on its way. All up to `cursor` was applied."""

    cursor: int
    reason: str

    @classmethod
    def after(cls, cursor: int, error: DecodeError) -> Self:
        """Of what comes after this seq."""
        return cls(cursor, f"what the relay sent of it after {cursor:,} cannot be read ({error})")


@dataclass(slots=True)
class StreamSync:
    """A collection on its way: the part that the writer's thread uses, and what the relay told of its stream."""

    collection: Collection
    opener: sealing.Opener
    sealer: sealing.Sealer
    signer: signing.Signer | None = None
    """Signs the device's edits, if the collection is a signed one."""
    resolve: Resolve | None = None
    told: bool = False
    told_epoch: int = 0
    """The vault's epoch when the relay last told how far the stream goes: all of older ones is up to there."""
    exists: bool = False
    top: int = 0
    head: int = 0
    won: int = 0
    """The greatest seq of a record that came before a write of this device's, as told under the present term."""
    cursor: int = 0
    told_terms: tuple[TermStart, ...] = ()
    told_head: int = 0
    """The stream's terms as they were told last on this connection, and how far it is known to reach under them."""
    lost: str | None = None
    """Why the history that the replica has followed is not the relay's: it has to be reconciled."""
    losses: int = 0
    """How often that has been so."""
    refused: bool = False
    reads_only: bool = False
    """True if this device may not make the stream: whether the relay has it is found out by comparing."""
    misfit: str = ""
    waits_for_links: bool = False
    """True if records were set aside that the membership log may yet open."""
    fell_back: str = ""
    """How the relay has contradicted what it had delivered; empty: it has not."""

    @property
    def is_lost(self) -> bool:
        """True if it is to be reconciled, and can be."""
        return self.lost is not None and self.told and (self.exists or self.reads_only) and not self.misfit

    @property
    def caught_up(self) -> bool:
        """True if all that the relay was known to have has been applied."""
        return self.told and self.lost is None and self.cursor >= self.head

    @property
    def writable(self) -> bool:
        """True if edits may be sealed: the stream is there, and all of it was applied (R2)."""
        return self.exists and self.caught_up and not self.refused

    def void(self) -> None:
        """What the relay has told of how the stream stands does not count any more: it may have lost it since. Of one
        that is to be reconciled it does not tell again; that one is created, in case it is gone. What was refused for
        the relay's sake is tried again."""
        self.refused = bool(self.misfit)
        if self.lost is None:
            self.told = False
        else:
            self.exists = False

    def refuse_kind(self, kind: StreamKind) -> str:
        """The relay has this collection as another kind of stream. Returns why nothing is sent of it."""
        name, here = self.collection.name, self.collection.kind.name.lower()
        self.misfit = (
            f"{name} is {kind.name.lower()} at the relay and {here} here: open it with the policy that its maker chose"
        )
        self.refused = True
        _log.error("%s", self.misfit)
        return self.misfit

    def apply(self, replica: Replica, deliver: Deliver, watched: bool) -> Sequence[Change] | None:
        """Apply a delivery within the caller's transaction. Returns what changed; None: more than is named, or
        nobody watched when it began (who has begun to since must look afresh). Raises GapError; DecodeError, with the
        parts of it applied that could be read, which stand if the caller's transaction does."""
        changes: list[Change] = []
        many = not watched
        prev = deliver.prev
        for last, records, unopened in self._parts(replica, deliver):
            many = many or len(changes) + len(records) > CHANGES_NAMED_MAX
            delivery = Delivery(deliver.term, prev, last, deliver.cleaned_to, deliver.floor, last < deliver.last)
            applied = replica.apply(self.collection, delivery, records, unopened, 0 if many else CHANGES_NAMED_MAX)
            changes.extend(applied.changes or ())
            prev = last
            if applied.fallen:
                self._report(applied.fallen, last)
        return None if many else changes

    def _report(self, fallen: int, last: int) -> None:
        self.fell_back = (
            f"{self.collection.name}: up to {last:,} the relay delivered {fallen:,} older versions after newer ones,"
            " which no honest relay does; they count for nothing here, but ask who runs it"
        )
        _log.error("%s", self.fell_back)

    def _parts(self, replica: Replica, deliver: Deliver) -> Iterator[Part]:
        """A delivery's records in parts, of which the last reaches the delivery's end."""
        part = Part(deliver.last, [], [])
        for opened, unopened in self.opener.open_parts(deliver.segment, deliver.prev, deliver.last):
            if part.records or part.unopened:
                yield part
            records, aside = self._decoded(replica, opened, unopened)
            reached = max(found[-1].seq for found in (opened, unopened) if found)
            part = Part(reached, records, aside)
        yield part._replace(last=deliver.last)

    def opened(self, replica: Replica, records: Sequence[Fetched]) -> tuple[list[Incoming], list[Unopened]]:
        """Single records, opened and decoded; and those that could not be. Within the caller's transaction, in which
        they are taken in. Raises DecodeError."""
        found = [self.opener.open_record(record, 0, seq - 1)[0] for seq, record in records]
        return self._decoded(
            replica,
            [one for one in found if isinstance(one, sealing.Opened)],
            [one for one in found if isinstance(one, sealing.Unopened)],
        )

    def rekey(self, newer: "StreamSync") -> None:
        """Seal under the present epoch's key. In the writer's thread."""
        self.opener, self.sealer = newer.opener, newer.sealer

    def look_again(self, replica: Replica) -> Sequence[Change]:
        """Open what was set aside because this device did not have its key, or did not know its author: it may have
        come before the link that tells. In the writer's thread. Returns what that changed."""

        def read(seq: int, record: bytes) -> tuple[list[Incoming], list[Unopened]]:
            return self.opened(replica, [Fetched(seq, record)])

        self.waits_for_links = False
        return [change for why in TOLD_BY_LINKS for change in replica.reopen(self.collection, why.value, read)]

    def _decoded(
        self, replica: Replica, opened: Sequence[sealing.Opened], sealed: Sequence[sealing.Unopened]
    ) -> tuple[list[Incoming], list[Unopened]]:
        """Opened records as rows. What cannot be opened is set aside with its reason."""
        if self.collection.signed:
            opened, sealed = self._with_held(replica, opened, sealed)
            taken = [(one.tag, one.rank) for one in opened]
            replica.entries.proofs.supersede(self.collection.number, sealing.Reason.AUTHOR_REMOVED.value, taken)
        unopened = [
            Unopened(x.seq, x.rank, x.encoded, x.reason.value, x.reason in sealing.MADE_BY_MEMBERS) for x in sealed
        ]
        self.waits_for_links |= any(one.reason in TOLD_BY_LINKS for one in sealed)
        plain = iter(self.collection.read_many([one.value for one in opened if not one.flags]))
        records, new = list[Incoming](), tuple.__new__
        for seq, _, rank, flags, key, value, key_id in opened:
            proof = b""
            if not flags:
                row, kept = next(plain)
            else:
                proof, value = signing.parted(value) if flags & SIGNED else (b"", value)
                row, kept = (None, None) if flags & TOMBSTONE else self.collection.read(value)
            records.append(new(Incoming, (seq, key, rank, key_id, flags, row, kept, proof)))
        return records, unopened

    def _with_held(
        self, replica: Replica, opened: Sequence[sealing.Opened], sealed: Sequence[sealing.Unopened]
    ) -> tuple[Sequence[sealing.Opened], Sequence[sealing.Unopened]]:
        """Take a record of an author who was removed for good, if this device has held it before, in whatever epoch:
        it was judged then."""
        held: dict[int, sealing.Opened] = {}
        for one in sealed:
            again = self.opener.open_set_aside(one) if one.reason is sealing.Reason.AUTHOR_REMOVED else one
            if isinstance(again, sealing.Opened):
                signature = signing.read_proof(signing.parted(again.value)[0]).signature
                if replica.entries.proofs.holds(self.collection.number, again.key, signature):
                    held[one.seq] = again
        if not held:
            return opened, sealed
        both = sorted([*opened, *held.values()], key=lambda one: one.seq)
        return both, [one for one in sealed if one.seq not in held]


def waits_for_links(replica: Replica, collection: Collection) -> bool:
    """True if records of a collection were set aside that the membership log may yet open, also in an earlier run."""
    return any(replica.entries.unopened(collection, reason.value) for reason in TOLD_BY_LINKS)


def settle_kind(replica: Replica, collection: Collection, kind: StreamKind) -> None:
    """Take a collection for the kind of stream that it is, unless the relay has told otherwise before. Edits that were
    made in ignorance of what is there are not forced on it: their user decides."""
    with replica.transaction():
        if replica.vaults.settle_kind(collection.number, kind):
            replica.outbox.aside.put_all(collection.number, MADE_IN_IGNORANCE)
