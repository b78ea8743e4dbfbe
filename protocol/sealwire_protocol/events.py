"""What sessions take in (events) and give out (effects). None is changed once it is made; a driver only carries them to
and fro. Those that there is one of for each message are not frozen, since that is most of what making one costs.

`now` is seconds of any steady clock; a session never reads one itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

from sealwire_protocol.errors import Action, CloseCode, FaultCode
from sealwire_protocol.ids import START, DeviceKey, Position, StreamId, Term, VaultId
from sealwire_protocol.messages import NO_REQUEST, NO_VAULT, Acked, Deliver, Message, Push, Wanted

# --- events of both sides


@dataclass(frozen=True, slots=True)
class Opened:
    """The transport is open: WebSocket handshake done."""

    now: float


@dataclass(slots=True, unsafe_hash=True)
class Received:
    """One whole binary message came in."""

    data: bytes
    now: float


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; sent at the latest at the session's `deadline`."""

    now: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The transport is gone, for whatever reason."""


@dataclass(frozen=True, slots=True)
class Stop:
    """This side wants to end the connection."""

    code: CloseCode
    reason: str


# --- events of the device's side


@dataclass(frozen=True, slots=True)
class Signed:
    """The signature that a `Sign` effect asked for."""

    signature: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """Send a message that is answered by DONE or FAULT under its request number."""

    message: Message


class Beside(NamedTuple):
    """What a replica knows of a stream beside its positions, for the checks that R10 and R12 ask for.

    `whole_from`: the floor when it was last empty or reconciled, under the term of that time. `answered`: where writes
    of this device stand that are answered and not delivered yet; the greatest of each term is enough. `dropped`: the
    floor up to which tombstones were dropped since then.
    """

    whole_from: Position = START
    answered: tuple[Position, ...] = ()
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Listen:
    """Subscribe to streams of a vault at these positions. `beside`: one for each stream, or none at all."""

    vault: VaultId
    streams: tuple[Wanted, ...]
    beside: tuple[Beside, ...] = ()


@dataclass(frozen=True, slots=True)
class Doubt:
    """What the device holds of a stream is to be compared with the relay's: its subscription ends, as if its history
    were lost. Nothing, if it has none."""

    vault: VaultId
    stream: StreamId
    reason: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Push a batch; the vault must be subscribed and its window open."""

    push: Push


@dataclass(frozen=True, slots=True)
class Applied:
    """The device has durably applied (or deliberately dropped) what an `Apply` effect gave it."""

    vault: VaultId
    stream: StreamId
    position: Position
    frame_bytes: int
    now: float


# --- events of the relay's side


@dataclass(slots=True, unsafe_hash=True)
class Answer:
    """Tell the device this: the answer to something that a `Do` effect asked for, or news for it. `encoded`: its bytes,
    if they are at hand."""

    message: Message
    encoded: bytes = b""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Something that a `Do` effect asked for cannot be done."""

    code: FaultCode
    action: Action
    message: str
    request: int = NO_REQUEST
    vault: VaultId = NO_VAULT
    batch: int | None = None
    retry_ms: int = 0


@dataclass(frozen=True, slots=True)
class PageRead:
    """Stored segments for a lagging subscription: encoded DELIVERs in order, as (last, frame).

    `head` is the greatest head of the stream that the driver knows at this moment, which may be above the one
    read with the page: else a commit between the read and this event would be missed.
    """

    vault: VaultId
    stream: StreamId
    frames: tuple[tuple[int, bytes], ...]
    head: int


@dataclass(frozen=True, slots=True)
class TermChanged:
    """The relay's database has begun another term."""

    term: Term


@dataclass(frozen=True, slots=True)
class Stalled:
    """The device does not read: what was written for it fills its socket's buffers."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A device that had stalled reads again."""


@dataclass(frozen=True, slots=True)
class LinksReplaced:
    """Other links stand now at the end of a vault's membership log (R15).

    A SUBSCRIBE that is not answered yet must be answered from what stands since.
    """

    vault: VaultId


# --- effects of both sides


@dataclass(slots=True, unsafe_hash=True)
class Send:
    """Send one binary message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection with this code; `come_back` says whether trying again makes sense."""

    code: CloseCode
    reason: str
    come_back: bool


# --- effects of the device's side


@dataclass(frozen=True, slots=True)
class Sign:
    """Sign these bytes with the device's key and answer with `Signed`."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message for the parts above: what is no CHALLENGE and no DELIVER."""

    message: Message


@dataclass(frozen=True, slots=True)
class Apply:
    """Records to apply, in order and without a gap. Answer with `Applied` when they are durable."""

    deliver: Deliver
    frame_bytes: int


@dataclass(frozen=True, slots=True)
class HistoryLost:
    """The relay no longer knows the history this replica stands in (R9), or that of a write that it has answered
    (R12), or has forgotten deletions that the replica may miss (R10). The subscription to the stream has ended: it is
    to be reconciled, then listened to again."""

    vault: VaultId
    stream: StreamId
    reason: str


# --- effects of the relay's side


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The device has proved that it holds this key."""

    device: DeviceKey


@dataclass(slots=True, unsafe_hash=True)
class Do:
    """A device asks for this; answer with `Answer` or `Refuse`."""

    message: Message


@dataclass(frozen=True, slots=True)
class Noted:
    """The device has durably applied these positions."""

    positions: tuple[Acked, ...]


@dataclass(frozen=True, slots=True)
class Pump:
    """There is credit and something to deliver from storage: ask the session's `lagging`."""


ClientEvent = Opened | Received | Ticked | Lost | Stop | Signed | Request | Listen | Doubt | Submit | Applied
ClientEffect = Send | Close | Sign | Arrived | Apply | HistoryLost
RelayEvent = (
    Opened
    | Received
    | Ticked
    | Lost
    | Stop
    | Stalled
    | Resumed
    | Answer
    | Refuse
    | PageRead
    | TermChanged
    | LinksReplaced
)
RelayEffect = Send | Close | LoggedIn | Do | Noted | Pump
