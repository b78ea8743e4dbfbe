"""What the relay asks of its storage. One interface, two implementations, one conformance suite for both.

A store keeps vaults, streams, segments, terms and the outcomes of pushes. What a cleaner asks of it, the mailboxes of
invites, and what is there for those who run the relay are parts of it in modules of their own. It decides nothing:
ingest decides, the store writes on condition.

Every method is a whole transaction. What a method returned is durable. Cancelling a call leaves its outcome
unknown; callers that must know shield it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import (
    KEY_ID_BYTES,
    Author,
    DeviceKey,
    KeyId,
    Position,
    StreamId,
    Tag,
    Term,
    VaultId,
)
from sealwire_protocol.limits import STREAMS_PER_SESSION_MAX
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_relay.store.administration import Administration
from sealwire_relay.store.cleaning import Cleaning
from sealwire_relay.store.mailboxes import Mailboxes
from sealwire_relay.store.segments import StoredSegment

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


class TokenSpentError(Exception):
    """All vaults that a registration token allows have been made; nothing was written."""


class SchemaError(StoreError):
    """The database's schema does not fit this relay; `sealwire-relay migrate` or a newer relay is needed."""


class VaultState(NamedTuple):
    """A vault's present key: records of another one are refused. Epoch 0: the vault was deleted. `moved`: it is at
    another relay, and nothing is appended here but links."""

    epoch: int
    key_id: KeyId
    moved: bool = False

    @property
    def key(self) -> tuple[int, KeyId]:
        """What records must say of it."""
        return self.epoch, self.key_id

    @property
    def ended(self) -> bool:
        """True if the vault was deleted: it has its membership log and its members, and nothing else any more."""
        return self.epoch == 0


ENDED: Final = VaultState(0, KeyId(bytes(KEY_ID_BYTES)))


class Usage(NamedTuple):
    """What a vault stores: the segments of all its streams, in bytes. `quota` is its own, 0 if it has none."""

    bytes: int
    quota: int


class TokenUse(NamedTuple):
    """A vault is made at the expense of the registration tokens of this serial, which allow so many in all."""

    serial: bytes
    vaults_max: int


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
    receipt_key: bytes


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
    a condition alone: that head and floor are still the expected ones. `term`: the stream's own, if that has the
    present number under another id; None: the present one.
    """

    stream: StreamId
    expected_head: int
    new_head: int
    new_top: int
    segments: tuple[StoredSegment, ...]
    guards: tuple[tuple[Tag, Current], ...] = ()
    floor: int = 0
    """The one that all this was decided on: a purge moves it, but not the head."""
    term: Term | None = None


class BatchWrite(NamedTuple):
    """One batch's verdict, on condition that the member's last batch is still `expected_last`, and the member the one
    that was judged: other links may stand in the log meanwhile, which give its number to another device (R15)."""

    member: MemberState
    expected_last: int
    outcome: KeptOutcome

    @property
    def author(self) -> Author:
        """The member's number."""
        return self.member.author


class VaultWrite(NamedTuple):
    """All that one group commit writes to one vault: all of it or nothing.

    Conditions: the term is current, the vault's epoch and key are `key`, every stream's head is its `expected_head`
    and its floor is `floor`, every author is still the member that was judged, with its `expected_last` batch.
    """

    vault: VaultId
    term: Term
    key: tuple[int, KeyId]
    streams: tuple[StreamWrite, ...]
    batches: tuple[BatchWrite, ...]


class NewLink(NamedTuple):
    """A verified link to be appended at `seq`, the member that it adds (None: it adds nobody), and the one that has the
    role REPLACED from then on. One that begins an epoch, removes members, or deletes or moves the vault, has the state
    that all heads are in after it, and whom it removes, of whom nothing is kept. `arrives`: it moves the vault to this
    relay. `there`: the newest term of the log that it was judged on (None: of any); it is not appended to one whose end
    has been replaced since."""

    seq: int
    raw: bytes
    member: MemberState | None
    replaced: Author | None = None
    state: VaultState | None = None
    removed: tuple[Author, ...] = ()
    arrives: bool = False
    there: Term | None = None


class LinkLog(NamedTuple):
    """A membership log, or the end of one, and the newest term that was written in stream 0 (NO_TERM: there is no such
    vault)."""

    term: Term
    links: tuple[bytes, ...]


class Store(Administration, Cleaning, Mailboxes):
    """Vaults, streams, segments, terms, outcomes. See the module's text for what every method promises."""

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
    async def create_vault(
        self, vault: VaultId, state: VaultState, link: NewLink, term: Term, use: TokenUse | None = None, quota: int = 0
    ) -> bool:
        """Register a vault with its genesis link as seq 1 of stream 0, and count it for the token that it is made with.
        `quota` is its own (0: none).

        False: it exists already, or `term` is not current. Nothing written then, nor counted. Raises TokenSpentError;
        cancelled, or with OutcomeUnknownError, it was made and counted, or neither."""

    @abstractmethod
    async def raise_quota(self, vault: VaultId, quota: int, use: TokenUse) -> bool:
        """Give a vault a quota of its own, or a greater one, and count it for the token that allows it.

        False: there is no such vault, or its own is as great. Nothing written then, nor counted. Raises as
        `create_vault` does."""

    @abstractmethod
    async def usage(self, vault: VaultId) -> Usage | None:
        """What a vault stores, as its heads have it: exact on one view of the database. None: no such vault.

        Costs a look at every head of the vault, of which there are at most STREAMS_PER_SESSION_MAX."""

    @abstractmethod
    async def receipt_key(self) -> bytes:
        """A secret of the database, 16 bytes, for as long as it lives: also that of every backup of it."""

    @abstractmethod
    async def append_link(self, vault: VaultId, link: NewLink, term: Term) -> Term | None:
        """Append to stream 0. Returns the term it was written under: that one, or the stream's own, if that has its
        number and another id since links were replaced under it.

        What a link's epoch does to the vault's heads and members is done with it: an append that was decided on another
        epoch is refused from then on, and no stream comes into being with it. With the state ENDED all streams but the
        membership log are gone from then on, and none comes into being; what was kept of them waits for `clear`.
        Once the vault has moved every append is refused. When it comes back, nothing is left in any stream but the log,
        and each begins anew under a term of its own: the number of `term` with a new random id.

        None: the head is not `link.seq - 1`, `term` is not current, or beside a link that begins an epoch a stream came
        into being just now. Nothing written then. Cancelled, it was made or not. Raises OutcomeUnknownError as `append`
        does."""

    @abstractmethod
    async def replace_links(
        self,
        vault: VaultId,
        there: LinkLog,
        after: int,
        links: Sequence[bytes],
        members: Sequence[MemberState],
        state: VaultState,
        term: Term,
    ) -> bool:
        """Put verified links in the place of those behind `after` (at least 1) in the log that is `there`.

        From `after` on stream 0 has another term: the number of `term` with a new random id. `members` are all that
        the log has then: who stays the same member keeps its batches, those of all others are forgotten. All heads are
        in `state` after it, as by `append_link`.

        False: the log is not the one that is `there`, `term` is not current, or a stream came into being just now.
        Nothing written then. Cancelled, it was made or not. Raises as `append` does."""

    @abstractmethod
    async def clear(self, rows_max: int) -> bool:
        """Delete some of what is still kept of a vault that was deleted, at most so many rows of each kind: segments,
        guards, outcomes, positions, mailboxes. Its membership log and its members stay. False: nothing is left of any,
        or others are at it just now. Safe in several processes at once; cancelled, it was done or not."""

    @abstractmethod
    async def links(self, vault: VaultId, after: int = 0) -> LinkLog:
        """The membership log behind its first `after` links, in order, on one view of the database."""

    @abstractmethod
    async def members(self, vaults: Sequence[VaultId]) -> dict[VaultId, set[DeviceKey]]:
        """The devices of the members of these vaults, on one view of the database; none where there is no vault."""

    @abstractmethod
    async def create_stream(
        self, vault: VaultId, stream: StreamId, kind: StreamKind, streams_max: int = STREAMS_PER_SESSION_MAX
    ) -> StreamKind:
        """Create an empty stream, or leave the one that is there. Returns the kind it has; ABSENT if there is no
        such vault, it was deleted, or it has `streams_max` others (a few more, if several are made at once)."""

    @abstractmethod
    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """The states of these streams in their order. None: no such vault, or the device is no member of it."""

    @abstractmethod
    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """Segments with `last > after`, in order: at least one if there is any, then as many as fit into
        `bytes_max` body bytes and PAGE_SEGMENTS_MAX. None: no such stream."""

    @abstractmethod
    async def heads(self, names: Sequence[tuple[VaultId, StreamId]]) -> dict[tuple[VaultId, StreamId], Position]:
        """The heads of those of these streams that exist, each with the newest term written in it."""

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
