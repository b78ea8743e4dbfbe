"""One collection on its way between replica and relay: what the relay told of its stream, and how it is opened.

`apply` runs in the writer's thread. A delivery is opened, decoded and stored in parts that stay within a core's cache,
all in the caller's transaction: either the whole delivery becomes durable, or nothing of it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from sealwire_client import sealing
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
from sealwire_protocol.ids import KeyId, TermStart
from sealwire_protocol.messages import Deliver, Fetched, StreamKind
from sealwire_protocol.segment import TOMBSTONE

MADE_IN_IGNORANCE: Final = (
    "it was made before this device knew that another one had made the collection with another policy; look at what is"
    " there now, then retry or discard it"
)

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
    key_ids: dict[int, KeyId]
    resolve: Resolve | None = None
    told: bool = False
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
    misfit: str = ""

    @property
    def is_lost(self) -> bool:
        """True if it is to be reconciled, and can be."""
        return self.lost is not None and self.told and self.exists and not self.misfit

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
        for last, records, unopened in self._parts(deliver):
            many = many or len(changes) + len(records) > CHANGES_NAMED_MAX
            delivery = Delivery(deliver.term, prev, last, deliver.cleaned_to, deliver.floor, deliver.floor_head)
            applied = replica.apply(self.collection, delivery, records, unopened, 0 if many else CHANGES_NAMED_MAX)
            changes.extend(applied.changes or ())
            prev = last
        return None if many else changes

    def _parts(self, deliver: Deliver) -> Iterator[Part]:
        """A delivery's records in parts, of which the last reaches the delivery's end."""
        part = Part(deliver.last, [], [])
        for opened, unopened in self.opener.open_parts(deliver.segment, deliver.prev, deliver.last):
            if part.records or part.unopened:
                yield part
            records, aside = self._decoded(opened, unopened)
            reached = max(found[-1].seq for found in (opened, unopened) if found)
            part = Part(reached, records, aside)
        yield part._replace(last=deliver.last)

    def opened(self, records: Sequence[Fetched]) -> tuple[list[Incoming], list[Unopened]]:
        """Single records, opened and decoded; and those that could not be. Raises DecodeError."""
        found = [self.opener.open_record(record, 0, seq - 1)[0] for seq, record in records]
        return self._decoded(
            [one for one in found if isinstance(one, sealing.Opened)],
            [one for one in found if isinstance(one, sealing.Unopened)],
        )

    def _decoded(
        self, opened: Sequence[sealing.Opened], sealed: Sequence[sealing.Unopened]
    ) -> tuple[list[Incoming], list[Unopened]]:
        """Opened records as rows. What cannot be opened is set aside with its reason."""
        unopened = [
            Unopened(x.seq, x.rank, x.encoded, x.reason.value, x.reason in sealing.MADE_BY_MEMBERS) for x in sealed
        ]
        read, key_ids = self.collection.read, self.key_ids
        records = []
        for seq, _, rank, flags, key, value, _ in opened:
            key_id = key_ids[int.from_bytes(rank[8:10], "big")]
            if flags & TOMBSTONE:
                records.append(Incoming(seq, key, rank, key_id, flags, None))
                continue
            records.append(Incoming(seq, key, rank, key_id, flags, *read(value)))
        return records, unopened


def settle_kind(replica: Replica, collection: Collection, kind: StreamKind) -> None:
    """Take a collection for the kind of stream that it is, unless the relay has told otherwise before. Edits that were
    made in ignorance of what is there are not forced on it: their user decides."""
    with replica.transaction():
        if replica.vaults.settle_kind(collection.number, kind):
            replica.outbox.aside.put_all(collection.number, MADE_IN_IGNORANCE)
