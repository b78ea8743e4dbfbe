"""What the relay asks of its storage. One interface, two implementations, one conformance suite for both.

A store keeps the compacted logs of DESIGN's words: vaults, streams, segments, terms, the outcomes of pushes and
the mailboxes of invites. It decides nothing: ingest decides, the store writes on condition.

Every method is a whole transaction. What a method returned is durable. Cancelling a call leaves its outcome
unknown; callers that must know shield it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from sealwire_protocol.conditions import Current
from sealwire_protocol.errors import DecodeError
from sealwire_protocol.ids import (
    NO_TERM,
    Author,
    DeviceKey,
    KeyId,
    MailboxId,
    Position,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.membership import Role
from sealwire_protocol.messages import StreamKind, StreamState

OUTCOMES_KEPT = 64
"""Outcomes kept for each device of a vault: eight windows of unanswered pushes, so a repeat always finds its own.
A batch lies in the place of its number modulo this, so after a gap older ones stay a little longer."""

PAGE_SEGMENTS_MAX = 2_048
"""Segments in one page: bounds the rows of one answer where segments hold a record each (about 200 kB then)."""


class StoreError(Exception):
    """The store could not do what was asked. The message says what to do next."""


class StoreDownError(StoreError):
    """The database is not reachable now; nothing was written. Try again later."""


class OutcomeUnknownError(StoreError):
    """The connection was lost while a commit was under way: it may or may not have happened."""


class DiskFullError(StoreError):
    """The database has no room left; nothing was written."""


class SchemaError(StoreError):
    """The database's schema does not fit this relay; `sealwire-relay migrate` or a newer relay is needed."""


class VaultState(NamedTuple):
    """A vault's present key: records of another one are refused."""

    epoch: int
    key_id: KeyId


class MemberState(NamedTuple):
    """A member of a vault as the relay's index of the membership log has it."""

    author: Author
    device: DeviceKey
    role: Role


class KeptOutcome(NamedTuple):
    """The verdict on one batch: `digest` tells a repeat from a clone, `answer` is the encoded PUSHED."""

    batch: int
    digest: bytes
    answer: bytes


class PusherState(NamedTuple):
    """Where a device stands with its batches in a vault: (0, number 0) when it never pushed."""

    member: MemberState
    last_batch: int
    last_term: int
    outcomes: tuple[KeptOutcome, ...]


class Subscription(NamedTuple):
    """One consistent view for SUBSCRIBED."""

    term: Term
    vault: VaultState
    member: MemberState
    last_batch: int
    streams: tuple[StreamState, ...]


class StoredSegment(NamedTuple):
    """One row: records of `(prev, last]`."""

    prev: int
    last: int
    body: bytes

    def damaged(self, error: DecodeError) -> DecodeError:
        """What to say if its bytes cannot be read, and why."""
        return DecodeError(
            f"its stored segment that ends at seq {self.last} cannot be read ({error}): a newer relay wrote it, or"
            " the database is damaged there, and a backup is to be restored, to which devices add what came after it"
        )


class Page(NamedTuple):
    """Consecutive segments after a cursor, in order, with the stream's state in the same snapshot.

    The first segment may begin before the cursor. Empty iff the cursor is at (or past) the head.
    `term` is the newest one written in the stream.
    """

    term: Term
    head: int
    floor: int
    floor_head: int
    purged: int
    cleaned_to: int
    segments: tuple[StoredSegment, ...]


GuardName = tuple[VaultId, StreamId, Tag]
"""What a guarded stream holds is looked up by this."""


class StreamWrite(NamedTuple):
    """New segments at the end of one stream; they tile `(expected_head, new_head]`.

    `guards` are what a guarded stream holds of these tags afterwards. Without segments, and so without guards, it is
    a condition alone: that head and floor are still the expected ones.
    """

    stream: StreamId
    expected_head: int
    new_head: int
    new_top: int
    segments: tuple[StoredSegment, ...]
    guards: tuple[tuple[Tag, Current], ...] = ()
    floor: int = 0
    """The one that all this was decided on: a purge moves it, but not the head."""


class BatchWrite(NamedTuple):
    """One batch's verdict, on condition that the device's last batch is still `expected_last`."""

    author: Author
    expected_last: int
    outcome: KeptOutcome


class VaultWrite(NamedTuple):
    """All that one group commit writes to one vault: all of it or nothing.

    Conditions: the term is current, the vault's epoch is `epoch`, every stream's head is its `expected_head`
    and its floor is `floor`, every author is a member still, not replaced, with its `expected_last` batch.
    """

    vault: VaultId
    term: Term
    epoch: int
    streams: tuple[StreamWrite, ...]
    batches: tuple[BatchWrite, ...]


class NewLink(NamedTuple):
    """A verified link to be appended at `seq`, the member that it adds (None: it adds nobody), and the one that has the
    role REPLACED from then on."""

    seq: int
    raw: bytes
    member: MemberState | None
    replaced: Author | None = None


class MailboxVerdict(Enum):
    """What became of a mailbox operation."""

    DONE = auto()
    ABSENT = auto()
    """No such mailbox, or it has expired."""
    USED = auto()
    """Another device's request lies in it."""


class Mailbox(NamedTuple):
    """A mailbox that has not expired. Empty bytes: not there yet."""

    vault: VaultId
    inviter: DeviceKey
    joiner: DeviceKey | None
    request: bytes
    answer: bytes


class Dirty(NamedTuple):
    """A stream of which the records `(compacted, head]` are not compacted yet, its tail.

    Sizes are of bodies, in bytes: of all of its segments, and of those that end after `compacted`. `term` is the
    newest one written in it: what is read from now on is of this history as long as the stream's term is this one.
    """

    vault: VaultId
    stream: StreamId
    head: int
    compacted: int
    bytes: int
    tail_bytes: int
    segments: int
    term: Term


class Room(NamedTuple):
    """What the large bodies of segments take up on the disk, in bytes, as the database counts or estimates it.

    The difference is room that is used again by what is written next. Zeros where the database says nothing.
    """

    size: int
    used: int


class Purge(NamedTuple):
    """Tombstones that a swap leaves out, on condition that the head is still the one up to which the log was read."""

    floor: int
    """The last of them: up to here no tombstone is left (R11)."""
    head: int
    purged: int
    """The greatest of their versions."""
    dropped: tuple[tuple[Tag, int], ...]
    """Their tags and seqs."""
    guarded: bool
    """Whether the stream is guarded: what it holds of these is forgotten then."""


class AckedPosition(NamedTuple):
    """Up to where a device has applied a stream, by what it says itself."""

    vault: VaultId
    stream: StreamId
    device: DeviceKey
    position: Position


class Mark(NamedTuple):
    """The head at some time, in seconds since 1970: what lies at or below it is at least as old."""

    head: int
    at: int


class Reader(NamedTuple):
    """A device that has subscribed to a stream: what it said last of its position, and when (seconds since 1970)."""

    author: Author
    device: DeviceKey
    role: Role
    position: Position
    seen: float


class Tombstones(NamedTuple):
    """The tombstones in the compacted part of a stream, and all that says how long they must stay.

    There are `number` of them, none before `oldest`; either may be too careful where a cleaner was interrupted. `now`
    is the database's clock, by which the ages in `marks` (the oldest first) and `readers` are to be taken. `terms` are
    all of the stream's, the oldest first.
    """

    vault: VaultId
    stream: StreamId
    kind: StreamKind
    head: int
    compacted: int
    floor: int
    number: int
    oldest: int
    marks: tuple[Mark, ...]
    terms: tuple[TermStart, ...]
    readers: tuple[Reader, ...]
    now: float

    @property
    def term(self) -> Term:
        """The newest one written in the stream."""
        return self.terms[-1].term if self.terms else NO_TERM


class Store(ABC):
    """Vaults, streams, segments, terms, outcomes, mailboxes. See the module's text for what every method promises."""

    @abstractmethod
    async def open(self) -> None:
        """Connect and check the schema. Raises StoreDownError or SchemaError."""

    @abstractmethod
    async def close(self) -> None:
        """Give up all connections. Safe to call twice."""

    @abstractmethod
    async def ping(self) -> None:
        """One cheap round trip; raises StoreDownError."""

    @abstractmethod
    async def open_term(self) -> Term:
        """Begin the next term (R7): number + 1, a random id. Done by every relay process when it starts."""

    @abstractmethod
    async def current_term(self) -> Term:
        """The present term."""

    @abstractmethod
    async def create_vault(self, vault: VaultId, state: VaultState, link: NewLink, term: Term) -> bool:
        """Register a vault with its genesis link as seq 1 of stream 0.

        False: it exists already, or `term` is not current. Nothing written then."""

    @abstractmethod
    async def append_link(self, vault: VaultId, link: NewLink, term: Term) -> bool:
        """Append to stream 0. False: its head is not `link.seq - 1`, or `term` is not current. Nothing written then."""

    @abstractmethod
    async def links(self, vault: VaultId) -> tuple[bytes, ...]:
        """The whole membership log in order; empty for a vault that does not exist."""

    @abstractmethod
    async def create_stream(self, vault: VaultId, stream: StreamId, kind: StreamKind) -> StreamKind:
        """Create an empty stream, or leave the one that is there. Returns the kind it has; ABSENT if there is no
        such vault."""

    @abstractmethod
    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """The states of these streams in their order. None: no such vault, or the device is no member of it."""

    @abstractmethod
    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """Segments with `last > after`, in order: at least one if there is any, then as many as fit into
        `bytes_max` body bytes and PAGE_SEGMENTS_MAX. None: no such stream."""

    @abstractmethod
    async def heads(self, names: Sequence[tuple[VaultId, StreamId]]) -> dict[tuple[VaultId, StreamId], int]:
        """The heads of those of these streams that exist."""

    @abstractmethod
    async def pusher(self, vault: VaultId, device: DeviceKey) -> PusherState | None:
        """None: the device is no member."""

    @abstractmethod
    async def guards(self, wanted: Sequence[GuardName]) -> dict[GuardName, Current]:
        """What guarded streams hold of these tags, on one view of the database; those of which they hold nothing are
        left out. It goes with the heads at that time: a decision made on it is written on condition of them."""

    @abstractmethod
    async def append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        """Commit each vault's write whole or not at all. False: a condition did not hold, nothing written there.

        Goes on when the caller is cancelled. On an error nothing was written, unless it is an OutcomeUnknownError:
        then each vault's write was made or not. Raises LocalMisuse if the writes make no sense in themselves."""

    @abstractmethod
    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """The next streams with `tail_min` or more seqs to be compacted, on one view of the database.

        At most `streams_max` of them, in the order of their keys, from the beginning or after the one that is named.
        Stream 0 is never among them."""

    @abstractmethod
    async def swap(
        self,
        vault: VaultId,
        stream: StreamId,
        old: Sequence[StoredSegment],
        new: StoredSegment,
        cleaned_to: int,
        term: Term,
        purge: Purge | None = None,
    ) -> bool:
        """Put `new` in the place of `old`, segments as they were read, and raise `cleaned_to` to this, all at once.

        `new` holds records of `old` at their old seqs and no others. `cleaned_to` is the greatest seq whose record
        was looked at to tell which may go: once a reader misses one of them, it is told that this may be why (R9).
        `term` is the stream's from before the first of these records was read. With `purge` the floor and what goes
        with it are raised too, the floor's head is the purge's, and guards are forgotten.

        False: not all of `old` are there as they were read, the head is below `cleaned_to` or not the purge's, or the
        stream's term is another one. Nothing written then. A segment is as it was read if its place and the size of
        its body are the same: within one history bodies only ever lose records. Appends go on meanwhile. Cancelled, it
        was made or not. Raises OutcomeUnknownError as `append` does, and LocalMisuse if `new` does not begin and end
        where `old` does, `cleaned_to` lies before that end, or the purge is of anything else."""

    @abstractmethod
    async def compacted(
        self, vault: VaultId, stream: StreamId, upto: int, term: Term, tombstones: int, oldest: int
    ) -> bool:
        """Note that up to here of no tag more than one record is left, and that so many of them are tombstones, none
        before `oldest`. Never goes back: of a part that is known to be longer, nothing is noted.

        False: the head is below `upto`, or the stream's term is not `term`. Nothing written then."""

    @abstractmethod
    async def tombstones(self, after: tuple[VaultId, StreamId] | None, streams_max: int) -> list[Tombstones]:
        """The next streams that have tombstones, on one view of the database; else as `dirty`."""

    @abstractmethod
    async def aged(self, vault: VaultId, stream: StreamId, marks: Sequence[Mark], oldest: int, term: Term) -> bool:
        """Note how old records are, in the place of what was noted, and that no tombstone lies before `oldest`, which
        never goes back. Beyond the compacted part, it says that none of the counted ones is left.

        False: the stream's term is not `term`. Nothing written then."""

    @abstractmethod
    async def acked(self, acks: Sequence[AckedPosition]) -> None:
        """Note what devices said of their positions, and that they did so now; the last word counts, also where it
        goes back. Of devices that are no members, and of streams that do not exist, nothing is noted. Raises
        LocalMisuse if one device says two things of a stream."""

    @abstractmethod
    async def reclaim(self) -> Room:
        """Let what is written next use the room of segments that were replaced, and give back to the disk what of it
        lies at the end of a file. Says what is taken up then.

        Takes as long as the database likes, at its own pace, and nobody waits for it. Where that is being done
        already, or not allowed, it does nothing. Cancelled, it was done or not."""

    @abstractmethod
    async def open_mailbox(
        self, mailbox: MailboxId, vault: VaultId, inviter: DeviceKey, seconds: int
    ) -> MailboxVerdict:
        """Open, or leave open, a mailbox. ABSENT: the inviter is no admin of the vault, or it belongs to another."""

    @abstractmethod
    async def deposit(self, mailbox: MailboxId, joiner: DeviceKey, request: bytes) -> MailboxVerdict:
        """Leave a request. The same joiner may replace its own until it is answered; later ones change nothing."""

    @abstractmethod
    async def answer(self, mailbox: MailboxId, inviter: DeviceKey, answer: bytes) -> MailboxVerdict:
        """Leave the answer; only the inviter may. ABSENT: no mailbox of this inviter has a request in it."""

    @abstractmethod
    async def mailbox(self, mailbox: MailboxId) -> Mailbox | None:
        """A mailbox that has not expired."""
