"""What a store in memory keeps: a database, and in it vaults and their streams."""

import math
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import (
    NO_TERM,
    Author,
    DeviceKey,
    MailboxId,
    Position,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import TERMS_TOLD_MAX
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_relay.store.administration import AdminToken, Audited
from sealwire_relay.store.cleaning import Dirty, Mark, Purge
from sealwire_relay.store.interface import KeptOutcome, MemberState, StoreDownError, VaultState
from sealwire_relay.store.mailboxes import Mailbox
from sealwire_relay.store.segments import StoredSegment, bytes_of


@dataclass(slots=True)
class KeptStream:
    """A stream's head row and all that goes with it."""

    kind: StreamKind
    head: int = 0
    top: int = 0
    floor: int = 0
    floor_head: int = 0
    purged: int = 0
    cleaned_to: int = 0
    compacted: int = 0
    tombstones: int = 0
    oldest_tombstone: int = 0
    marks: tuple[Mark, ...] = ()
    terms: list[TermStart] = field(default_factory=list)
    segments: list[StoredSegment] = field(default_factory=list)
    lasts: list[int] = field(default_factory=list)
    guards: dict[Tag, Current] = field(default_factory=dict)
    acks: dict[Author, tuple[Position, float]] = field(default_factory=dict)
    written: float | None = None

    @property
    def bytes(self) -> int:
        """What its segments amount to."""
        return bytes_of(self.segments)

    @property
    def term(self) -> Term:
        """The newest one written in it."""
        return self.terms[-1].term if self.terms else NO_TERM

    def state(self, stream: StreamId) -> StreamState:
        """What SUBSCRIBED tells of it."""
        told = tuple(self.terms[-TERMS_TOLD_MAX:])
        floors = self.floor, self.floor_head, self.purged, self.cleaned_to
        return StreamState(stream, self.kind, self.head, self.top, *floors, told)

    def takes(self, term: Term) -> bool:
        """A stream's terms ascend. Stream 0 may have another id of the present number."""
        parted = self.kind is StreamKind.MEMBERSHIP and self.term.number == term.number
        return parted or self.term == term or self.term.number < term.number

    def part(self, term: Term, after: int) -> None:
        """Drop what lies behind `after`, where another term begins."""
        kept = bisect_right(self.lasts, after)
        del self.segments[kept:], self.lasts[kept:]
        self.terms = [TermStart(known, min(start, after)) for known, start in self.terms]
        self.terms.append(TermStart(term, after))
        self.head = after

    def append(self, term: Term, segments: Sequence[StoredSegment], now: float) -> None:
        """Add segments to the end."""
        if self.term != term:
            self.terms.append(TermStart(term, self.head))
        self.segments.extend(segments)
        self.lasts.extend(segment.last for segment in segments)
        self.head, self.written = self.lasts[-1], now

    def swap(self, old: Sequence[StoredSegment], new: StoredSegment) -> bool:
        """Replace segments that are as they were read, judged as a database does."""
        first = bisect_right(self.lasts, old[0].prev)
        there = slice(first, first + len(old))
        if [_measured(segment) for segment in self.segments[there]] != [_measured(segment) for segment in old]:
            return False
        self.segments[there] = [new]
        self.lasts[there] = [new.last]
        return True

    def purge(self, purge: Purge) -> None:
        """Tombstones have gone."""
        self.floor, self.floor_head = max(self.floor, purge.floor), purge.head
        self.purged = max(self.purged, purge.purged)
        self.tombstones = max(self.tombstones - len(purge.dropped), 0)
        self.oldest_tombstone = max(self.oldest_tombstone, purge.floor + 1)
        for tag, seq in purge.dropped if purge.guarded else ():
            held = self.guards.get(tag)
            if held is not None and held.seq == seq and held.tombstone:
                del self.guards[tag]

    def dirty(self, vault: VaultId, stream: StreamId) -> Dirty:
        """What a cleaner is told of it."""
        sizes = [len(segment.body) for segment in self.segments]
        tail = sum(sizes[bisect_right(self.lasts, self.compacted) :])
        return Dirty(vault, stream, self.head, self.compacted, sum(sizes), tail, len(sizes), self.term)


def _measured(segment: StoredSegment) -> tuple[int, int, int]:
    return segment.prev, segment.last, len(segment.body)


@dataclass(slots=True)
class KeptMember:
    """A member, and where it stands with its batches."""

    state: MemberState
    last_batch: int = 0
    last_term: int = 0
    outcomes: dict[int, KeptOutcome] = field(default_factory=dict)


@dataclass(slots=True)
class KeptVault:
    """A vault with its streams and members."""

    state: VaultState
    streams: dict[StreamId, KeptStream]
    members: dict[Author, KeptMember]
    quota: int = 0
    arrived: float = -math.inf
    """When it was moved to this relay."""

    @property
    def bytes(self) -> int:
        """What all its segments amount to."""
        return sum(log.bytes for log in self.streams.values())

    @property
    def written(self) -> float | None:
        """When something was stored in it last."""
        return max((log.written for log in self.streams.values() if log.written is not None), default=None)

    def by_device(self, device: DeviceKey) -> KeptMember | None:
        """The member that a device is."""
        return next((m for m in self.members.values() if m.state.device == device), None)


@dataclass(slots=True)
class KeptBox:
    """A mailbox, and when it expires."""

    expires: float
    content: Mailbox


@dataclass(slots=True)
class MemoryDatabase:
    """What a MemoryStore keeps. Several stores may share one, as relay processes share a database."""

    term: Term = NO_TERM
    vaults: dict[VaultId, KeptVault] = field(default_factory=dict)
    mailboxes: dict[MailboxId, KeptBox] = field(default_factory=dict)
    ended: set[VaultId] = field(default_factory=set)
    """Vaults that were deleted, of which something may be left."""
    tokens: dict[bytes, int] = field(default_factory=dict)
    """Vaults made with each registration token, by its serial."""
    admin_tokens: dict[str, AdminToken] = field(default_factory=dict)
    audit: list[Audited] = field(default_factory=list)
    receipt_key: bytes = bytes(16)
    """No secret: a run is determined by its seed."""

    def copy(self) -> "MemoryDatabase":
        """A backup, as it were: nothing that happens to the one shows in the other."""
        return deepcopy(self)


class Memory:
    """A store's access to what is kept in memory, on which its parts stand."""

    def __init__(
        self,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.time,
        database: MemoryDatabase | None = None,
    ) -> None:
        self.database = MemoryDatabase() if database is None else database
        self._random_bytes, self._clock = random_bytes, clock
        self._open = False

    async def open(self) -> None:
        """Nothing can fail here."""
        self._open = True

    async def close(self) -> None:
        """What was stored stays in `database`."""
        self._open = False

    async def ping(self) -> None:
        """Raises StoreDownError when closed."""
        self._data()

    def _data(self) -> MemoryDatabase:
        if not self._open:
            raise StoreDownError("The store is closed; nothing was done: open it first.")
        return self.database

    def _log(self, vault: VaultId, stream: StreamId) -> KeptStream | None:
        kept = self._data().vaults.get(vault)
        return kept.streams.get(stream) if kept else None
