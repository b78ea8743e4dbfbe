"""Every message of the protocol as a frozen dataclass. Field order is wire order; `codec` reads the annotations.

Types from 0x80 on are critical: who does not know one must end the connection. Types below are ancillary and
are ignored by who does not know them. Fields are only ever appended: what follows the known fields is skipped.
0x80-0xBF come from devices, 0xC0-0xFF from relays. PROTOCOL.md says of each what it means and when it may come.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar, Final, NamedTuple

from sealwire_protocol import limits
from sealwire_protocol.errors import Action, FaultCode, Outcome, Refusal
from sealwire_protocol.fields import (
    FIXED4,
    FIXED8,
    FIXED16,
    FIXED32,
    FIXED64,
    POSITION,
    RANK,
    TERM,
    TERM_STARTS,
    U8,
    U16,
    U32,
    VARINT,
    Bytes16,
    Bytes32,
    Enumerated,
    Later,
    ListOf,
    Row,
    Text,
)
from sealwire_protocol.ids import (
    VAULT_ID_BYTES,
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

CRITICAL: Final = 0x80
"""The lowest message type that must not be ignored."""

NO_REQUEST: Final = 0
NO_VAULT: Final = VaultId(bytes(VAULT_ID_BYTES))
ATOMIC: Final = 1
"""PUSH flag: all records or none."""
REFILL: Final = 2
"""PUSH flag: records that the relay has lost, each with the position at which it was held (R14)."""
RESEAL: Final = 4
"""PUSH flag: records of any author, sealed anew under the present key without another version (R5)."""
PUSH_FLAGS: Final = frozenset((0, ATOMIC, REFILL, REFILL | ATOMIC, RESEAL))
"""What a PUSH may be flagged as."""


def push_since(flags: int) -> int:
    """The first version that has a PUSH with these flags."""
    return 2 if flags & (REFILL | RESEAL) else 1


class StreamKind(IntEnum):
    """Chosen when the stream is created. ABSENT: the stream does not exist (yet)."""

    ABSENT = 0
    OPEN = 1
    GUARDED = 2
    MEMBERSHIP = 3


class Wanted(NamedTuple):
    """One stream of a SUBSCRIBE: where the device stands, and the greatest (term, cleaned_to) it was served."""

    stream: StreamId
    cursor: Position
    served: Position


class StreamState(NamedTuple):
    """One stream of a SUBSCRIBED. `terms` are all terms in which the stream was written, oldest first."""

    stream: StreamId
    kind: StreamKind
    head: int
    top: int
    floor: int
    floor_head: int
    purged: int
    cleaned_to: int
    terms: tuple[TermStart, ...]


class Acked(NamedTuple):
    """One stream of an ACK: the position durably applied."""

    vault: VaultId
    stream: StreamId
    position: Position


class Group(NamedTuple):
    """One stream's part of a PUSH. `conditions` is empty for open streams; in a refill it holds positions."""

    stream: StreamId
    conditions: bytes
    records: bytes


class Appended(NamedTuple):
    """One group's answer: its accepted records have `records` consecutive seqs from `first`, under `term`."""

    stream: StreamId
    term: Term
    first: int
    records: int


class Refused(NamedTuple):
    """One refused record, and the record that won (empty: absent)."""

    group: int
    place: int
    reason: Refusal
    seq: int
    winner: bytes


class Prefix(NamedTuple):
    """A range of tags: those that begin with the first `nibbles` half-bytes of `path`, whose rest is zero."""

    nibbles: int
    path: bytes


class Summary(NamedTuple):
    """How many records a range has, and the sum of their fingerprints: 16 bytes, big-endian, modulo 2^128."""

    records: int
    sum: bytes


class Item(NamedTuple):
    """One record of a range, by what tells whether the other side holds it: its tag and packed rank."""

    tag: Tag
    rank: bytes
    seq: int
    flags: int


class Branch(NamedTuple):
    """One range from inside: its sixteen parts, or, if it has at most `BRANCH_ITEMS_MAX` records, those."""

    children: tuple[Summary, ...]
    items: tuple[Item, ...]


class Fetched(NamedTuple):
    """One record of a RECORDS: its seq, and its bytes with skip count 0."""

    seq: int
    record: bytes


_KIND: Final = Enumerated(1, StreamKind)
_WANTED: Final = Row("wanted", Wanted, (FIXED8, POSITION, POSITION))
_STATE: Final = Row(
    "stream state",
    StreamState,
    (FIXED8, _KIND, VARINT, VARINT, VARINT, VARINT, VARINT, VARINT, TERM_STARTS),
)
_ACKED: Final = Row("acked", Acked, (FIXED16, FIXED8, POSITION))
_GROUP: Final = Row("group", Group, (FIXED8, Bytes32(limits.SEGMENT_BYTES_MAX), Bytes32(limits.SEGMENT_BYTES_MAX)))
_APPENDED: Final = Row("appended", Appended, (FIXED8, TERM, VARINT, VARINT))
_REFUSED: Final = Row(
    "refused", Refused, (U8, U16, Enumerated(1, Refusal), VARINT, Bytes32(limits.RECORD_BYTES_MAX + 16))
)
_PREFIX: Final = Row("prefix", Prefix, (U8, FIXED16))
_SUMMARY: Final = Row("summary", Summary, (VARINT, FIXED16))
_ITEM: Final = Row("item", Item, (FIXED16, RANK, VARINT, U8))
_BRANCH: Final = Row("branch", Branch, (ListOf(_SUMMARY, 16), ListOf(_ITEM, limits.BRANCH_ITEMS_MAX)))
_FETCHED: Final = Row("fetched", Fetched, (VARINT, Bytes32(limits.RECORD_BYTES_MAX)))
_LINK: Final = Bytes16(limits.LINK_BYTES_MAX)
_ANY_LINK: Final = Bytes16(limits.EPOCH_LINK_BYTES_MAX)
_SEALED: Final = Bytes16(limits.MAILBOX_BYTES_MAX)
_SEALED_ANSWER: Final = Bytes16(limits.ANSWER_BYTES_MAX)
_REGISTRATION: Final = Later(Bytes16(limits.REGISTRATION_BYTES_MAX), b"")


class Message:
    """Base of all messages. `TYPE` is the first byte on the wire; `SINCE` the first version that has the message."""

    __slots__ = ()
    TYPE: ClassVar[int] = -1
    SINCE: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """A device opens the conversation: the versions it speaks, its key, its nonce, and what it is (free text)."""

    TYPE: ClassVar[int] = 0x80
    version_min: Annotated[int, U16]
    version_max: Annotated[int, U16]
    device: Annotated[DeviceKey, FIXED32]
    nonce: Annotated[bytes, FIXED32]
    agent: Annotated[str, Text(128)]


@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """The version chosen, and the relay's nonce."""

    TYPE: ClassVar[int] = 0xC0
    version: Annotated[int, U16]
    nonce: Annotated[bytes, FIXED32]


@dataclass(frozen=True, slots=True)
class Prove(Message):
    """The origin that the device dialled, and its signature over `login_payload`."""

    TYPE: ClassVar[int] = 0x81
    origin: Annotated[str, Text()]
    signature: Annotated[bytes, FIXED64]


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Logged in. The relay's limits, and the credit that it may use, in bytes of DELIVER frames."""

    TYPE: ClassVar[int] = 0xC1
    credit_bytes: Annotated[int, U32]
    frame_bytes: Annotated[int, U32]
    segment_bytes: Annotated[int, U32]
    record_bytes: Annotated[int, U32]
    push_records: Annotated[int, U16]
    push_window: Annotated[int, U8]
    ping_seconds: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class CreateVault(Message):
    """Register a vault by its genesis link. Answered by DONE, also when it exists already with that link.

    What may entitle the device to it: a registration token, and the receipt that the relay gave for the vault before.
    """

    TYPE: ClassVar[int] = 0x82
    request: Annotated[int, U32]
    link: Annotated[bytes, _LINK]
    token: Annotated[bytes, _REGISTRATION] = b""
    receipt: Annotated[bytes, _REGISTRATION] = b""


@dataclass(frozen=True, slots=True)
class CreateStream(Message):
    """Create a stream of a kind. Answered by DONE, also when it exists already with that kind."""

    TYPE: ClassVar[int] = 0x83
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    stream: Annotated[StreamId, FIXED8]
    kind: Annotated[StreamKind, _KIND]


@dataclass(frozen=True, slots=True)
class AppendLink(Message):
    """Append a membership link. Answered by DONE, also when that very link stands there already."""

    TYPE: ClassVar[int] = 0x84
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    link: Annotated[bytes, _ANY_LINK]


@dataclass(frozen=True, slots=True)
class OfferLinks(Message):
    """Put these links behind the first `after` of the membership log, in the place of those that stand there (R15).

    `links` are laid out as a segment of stream 0. Answered by DONE, also when these very links stand there already.
    """

    TYPE: ClassVar[int] = 0x8D
    SINCE: ClassVar[int] = 2
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    after: Annotated[int, U32]
    links: Annotated[bytes, Bytes32(limits.SEGMENT_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Subscribe(Message):
    """Listen to these streams of a vault from these positions; replaces earlier subscriptions to them."""

    TYPE: ClassVar[int] = 0x85
    vault: Annotated[VaultId, FIXED16]
    streams: Annotated[tuple[Wanted, ...], ListOf(_WANTED, limits.SUBSCRIBE_STREAMS_MAX)]


@dataclass(frozen=True, slots=True)
class Subscribed(Message):
    """The relay's present term, the vault's present key, and the state of each stream asked for. `receipt` says to this
    relay alone that it has had the vault; it comes with stream 0."""

    TYPE: ClassVar[int] = 0xC3
    vault: Annotated[VaultId, FIXED16]
    term: Annotated[Term, TERM]
    epoch: Annotated[int, U16]
    key_id: Annotated[KeyId, FIXED4]
    last_batch: Annotated[int, VARINT]
    streams: Annotated[tuple[StreamState, ...], ListOf(_STATE, limits.SUBSCRIBE_STREAMS_MAX)]
    receipt: Annotated[bytes, _REGISTRATION] = b""


@dataclass(frozen=True, slots=True)
class Deliver(Message):
    """Records `(prev, last]` of a stream, live or from storage alike. `term`: the newest written in it."""

    TYPE: ClassVar[int] = 0xC4
    vault: Annotated[VaultId, FIXED16]
    stream: Annotated[StreamId, FIXED8]
    term: Annotated[Term, TERM]
    floor: Annotated[int, VARINT]
    floor_head: Annotated[int, VARINT]
    purged: Annotated[int, VARINT]
    cleaned_to: Annotated[int, VARINT]
    prev: Annotated[int, VARINT]
    last: Annotated[int, VARINT]
    segment: Annotated[bytes, Bytes32(limits.SEGMENT_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """Credit given back for DELIVERs applied or skipped, and positions durably applied."""

    TYPE: ClassVar[int] = 0x86
    credit_bytes: Annotated[int, U32]
    positions: Annotated[tuple[Acked, ...], ListOf(_ACKED, limits.ACK_STREAMS_MAX)]


@dataclass(slots=True, unsafe_hash=True)
class Push(Message):
    """One batch of sealed records, under the relay's term told in SUBSCRIBED.

    Like PUSHED it is never changed once it is made, but not frozen: a relay makes one for each push, and a frozen one
    costs it twice as much."""

    TYPE: ClassVar[int] = 0x87
    vault: Annotated[VaultId, FIXED16]
    term: Annotated[Term, TERM]
    batch: Annotated[int, VARINT]
    flags: Annotated[int, U8]
    groups: Annotated[tuple[Group, ...], ListOf(_GROUP, limits.PUSH_GROUPS_MAX)]


@dataclass(slots=True, unsafe_hash=True)
class Pushed(Message):
    """The verdict on a batch: durable, and the same again whenever the batch is repeated."""

    TYPE: ClassVar[int] = 0xC5
    vault: Annotated[VaultId, FIXED16]
    batch: Annotated[int, VARINT]
    outcome: Annotated[Outcome, Enumerated(1, Outcome)]
    appended: Annotated[tuple[Appended, ...], ListOf(_APPENDED, limits.PUSH_GROUPS_MAX)]
    refused: Annotated[tuple[Refused, ...], ListOf(_REFUSED, limits.PUSH_RECORDS_MAX)]


@dataclass(frozen=True, slots=True)
class Reconcile(Message):
    """Ask for ranges of a stream's tags as they stand at `pin` (START: at the present head). Answered by RANGES."""

    TYPE: ClassVar[int] = 0x8B
    SINCE: ClassVar[int] = 2
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    stream: Annotated[StreamId, FIXED8]
    pin: Annotated[Position, POSITION]
    prefixes: Annotated[tuple[Prefix, ...], ListOf(_PREFIX, limits.RECONCILE_PREFIXES_MAX)]


@dataclass(frozen=True, slots=True)
class Ranges(Message):
    """The ranges asked for, in order, as they stand at `pin`, and the stream's state at that head.

    `pin.term` is the newest term written in the stream: NO_TERM, with seq 0, for one that is empty or absent.
    """

    TYPE: ClassVar[int] = 0xC9
    SINCE: ClassVar[int] = 2
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    stream: Annotated[StreamId, FIXED8]
    pin: Annotated[Position, POSITION]
    total: Annotated[Summary, _SUMMARY]
    top: Annotated[int, VARINT]
    floor: Annotated[int, VARINT]
    floor_head: Annotated[int, VARINT]
    purged: Annotated[int, VARINT]
    cleaned_to: Annotated[int, VARINT]
    terms: Annotated[tuple[TermStart, ...], TERM_STARTS]
    branches: Annotated[tuple[Branch, ...], ListOf(_BRANCH, limits.RECONCILE_PREFIXES_MAX)]


@dataclass(frozen=True, slots=True)
class Fetch(Message):
    """Ask for the records at these seqs, which RANGES named. Answered by RECORDS."""

    TYPE: ClassVar[int] = 0x8C
    SINCE: ClassVar[int] = 2
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    stream: Annotated[StreamId, FIXED8]
    pin: Annotated[Position, POSITION]
    seqs: Annotated[tuple[int, ...], ListOf(VARINT, limits.FETCH_RECORDS_MAX)]


@dataclass(frozen=True, slots=True)
class Records(Message):
    """The records asked for, as far as one answer goes: the first `considered` seqs were looked at.

    Ask again for the others. A seq that was looked at and has no record here is gone: superseded since.
    """

    TYPE: ClassVar[int] = 0xCA
    SINCE: ClassVar[int] = 2
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    stream: Annotated[StreamId, FIXED8]
    cleaned_to: Annotated[int, VARINT]
    considered: Annotated[int, VARINT]
    records: Annotated[tuple[Fetched, ...], ListOf(_FETCHED, limits.FETCH_RECORDS_MAX)]


@dataclass(frozen=True, slots=True)
class OpenMailbox(Message):
    """An inviter opens (or, after a reconnect, opens again) the mailbox of an invite. Answered by DONE."""

    TYPE: ClassVar[int] = 0x88
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    mailbox: Annotated[MailboxId, FIXED16]
    seconds: Annotated[int, U32]


@dataclass(frozen=True, slots=True)
class Join(Message):
    """A joiner leaves its sealed request in a mailbox. The first one takes it; the same one may repeat itself."""

    TYPE: ClassVar[int] = 0x89
    request: Annotated[int, U32]
    mailbox: Annotated[MailboxId, FIXED16]
    sealed: Annotated[bytes, _SEALED]


@dataclass(frozen=True, slots=True)
class Joining(Message):
    """To the inviter: this sealed request lies in the mailbox."""

    TYPE: ClassVar[int] = 0xC6
    mailbox: Annotated[MailboxId, FIXED16]
    sealed: Annotated[bytes, _SEALED]


@dataclass(frozen=True, slots=True)
class AnswerJoin(Message):
    """The inviter's sealed answer to the joiner. Answered by DONE."""

    TYPE: ClassVar[int] = 0x8A
    request: Annotated[int, U32]
    mailbox: Annotated[MailboxId, FIXED16]
    sealed: Annotated[bytes, _SEALED_ANSWER]


@dataclass(frozen=True, slots=True)
class Joined(Message):
    """To the joiner: the inviter's sealed answer."""

    TYPE: ClassVar[int] = 0xC7
    mailbox: Annotated[MailboxId, FIXED16]
    sealed: Annotated[bytes, _SEALED_ANSWER]


@dataclass(frozen=True, slots=True)
class Done(Message):
    """A request is done, durably."""

    TYPE: ClassVar[int] = 0xC2
    request: Annotated[int, U32]


@dataclass(frozen=True, slots=True)
class Fault(Message):
    """Something was refused. About a request, about a vault, or (both zero) about the connection."""

    TYPE: ClassVar[int] = 0xC8
    request: Annotated[int, U32]
    vault: Annotated[VaultId, FIXED16]
    code: Annotated[FaultCode, Enumerated(2, FaultCode, FaultCode.INTERNAL)]
    action: Annotated[Action, Enumerated(1, Action, Action.RETRY)]
    retry_ms: Annotated[int, U32]
    message: Annotated[str, Text()]


FROM_DEVICE: Final[tuple[type[Message], ...]] = (
    Hello,
    Prove,
    CreateVault,
    CreateStream,
    AppendLink,
    OfferLinks,
    Subscribe,
    Ack,
    Push,
    Reconcile,
    Fetch,
    OpenMailbox,
    Join,
    AnswerJoin,
)
FROM_RELAY: Final[tuple[type[Message], ...]] = (
    Challenge,
    Welcome,
    Done,
    Subscribed,
    Deliver,
    Pushed,
    Ranges,
    Records,
    Joining,
    Joined,
    Fault,
)
BY_TYPE: Final[dict[int, type[Message]]] = {kind.TYPE: kind for kind in FROM_DEVICE + FROM_RELAY}
