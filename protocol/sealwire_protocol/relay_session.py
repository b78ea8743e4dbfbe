"""The relay's end of one connection, as a pure state machine: `handle(event) -> effects`.

It authenticates a device, admits its messages in order and within limits, and keeps what it listens to: for every
stream a cursor and whether it is live. Beyond its credit, or what its socket takes, a device costs a cursor, never a
queue: a frame that does not fit is not kept, the stream merely lags and is pumped from storage when there is room.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import Any, Final

from sealwire_protocol import codec, limits
from sealwire_protocol.errors import Action, CloseCode, FaultCode, LocalMisuse, RemoteFault, may_come_back
from sealwire_protocol.events import (
    Answer,
    Close,
    Do,
    LinksReplaced,
    LoggedIn,
    Lost,
    Noted,
    Opened,
    PageRead,
    Pump,
    Received,
    Refuse,
    RelayEffect,
    RelayEvent,
    Resumed,
    Send,
    Stalled,
    Stop,
    TermChanged,
    Ticked,
)
from sealwire_protocol.faults import term_changed
from sealwire_protocol.ids import MEMBERSHIP, DeviceKey, StreamId, Term, VaultId
from sealwire_protocol.login import login_payload
from sealwire_protocol.membership import Verify
from sealwire_protocol.messages import (
    NO_REQUEST,
    NO_VAULT,
    PUSH_FLAGS,
    Ack,
    AnswerJoin,
    AppendLink,
    Challenge,
    CreateStream,
    CreateVault,
    Done,
    Fault,
    Fetch,
    Hello,
    Join,
    Message,
    OfferLinks,
    OpenMailbox,
    Prove,
    Push,
    Pushed,
    Ranges,
    Reconcile,
    Records,
    StreamKind,
    Subscribe,
    Subscribed,
    Welcome,
    push_since,
)
from sealwire_protocol.reconcile import check_prefix


class RelayState(Enum):
    """Where a connection stands, seen from the relay."""

    IDLE = auto()
    AWAITING_HELLO = auto()
    AWAITING_PROOF = auto()
    READY = auto()
    CLOSED = auto()

    __hash__ = object.__hash__
    """Each is one object, and is looked up in a table for every message and event: at no cost of a call in Python."""


class Listener:
    """One stream that a connection listens to. `live`: it has been sent all up to `cursor`, the head.

    One that its session has dropped is never live again. `name` is one object for all who keep it: ten thousand idle
    devices have some of these each.
    """

    __slots__ = ("awaiting", "cursor", "exists", "live", "name", "session")

    def __init__(self, session: "RelaySession", name: tuple[VaultId, StreamId], cursor: int) -> None:
        self.session, self.name, self.cursor = session, name, cursor
        self.live = self.exists = False
        self.awaiting = 1

    def offer(self, prev: int, last: int, frame_bytes: int) -> bool:
        """A live frame has been committed: True if the driver must send it now. Otherwise the stream lags.

        `frame_bytes` are those of the DELIVER, without the WebSocket's header: so a device counts them.
        The hot path of fan-out: no event, no effect, no allocation.
        """
        session = self.session
        if self.live and prev == self.cursor and session.credit >= frame_bytes:
            self.cursor = last
            session.credit -= frame_bytes
            return True
        if last > self.cursor:
            self.live, self.exists = False, True
        return False


def _is_behind(listener: Listener) -> bool:
    return listener.exists and not listener.live and not listener.awaiting


def _in_frames(message: Subscribed) -> list[bytes]:
    """The message, in as many parts as fit into frames: a stream's terms pile up over the years."""
    data = codec.encode(message)
    if len(data) <= limits.FRAME_BYTES_MAX or len(message.streams) < 2:
        return [data]
    middle = len(message.streams) // 2
    halves = (replace(message, streams=part) for part in (message.streams[:middle], message.streams[middle:]))
    return [part for half in halves for part in _in_frames(half)]


class RelaySession:
    """One connection. `nonce` is 32 fresh random bytes; `origins` are the names under which this relay is dialled.

    `version` is the one agreed on with the device, 0 before that.
    Raises LocalMisuse if an event does not fit the state; never raises on what a device sends.
    """

    __slots__ = (
        "_deadline",
        "_hello",
        "_nonce",
        "_origins",
        "_pushes",
        "_pushes_under_way",
        "_refused_from",
        "_requests",
        "_stalled",
        "_subscribing",
        "_term",
        "_terms",
        "_turn",
        "_verify",
        "_waiting",
        "_waiting_bytes",
        "credit",
        "device",
        "limits",
        "listeners",
        "state",
        "version",
    )

    def __init__(
        self, origins: frozenset[str], nonce: bytes, verify: Verify, granted: limits.Limits | None = None
    ) -> None:
        self._origins, self._nonce, self._verify = origins, nonce, verify
        self.limits = granted or limits.Limits()
        self.state = RelayState.IDLE
        self.version = 0
        self.device: DeviceKey | None = None
        self.credit = 0
        self.listeners: dict[tuple[VaultId, StreamId], Listener] = {}
        self._hello: Hello | None = None
        self._deadline: float | None = None
        self._term: Term | None = None
        self._terms: dict[VaultId, Term] = {}
        self._pushes: dict[VaultId, list[int]] = {}
        self._refused_from: dict[VaultId, int] = {}
        self._pushes_under_way = self._requests = self._turn = 0
        self._subscribing: tuple[tuple[VaultId, frozenset[StreamId]], ...] = ()
        self._waiting: deque[tuple[int, Message]] | None = None
        """Requests beyond what is carried out at once, and their sizes. Few devices ever have any."""
        self._waiting_bytes = 0
        self._stalled = False

    # --- what a driver may ask

    @property
    def deadline(self) -> float | None:
        """When the driver must send `Ticked` at the latest; None: no need."""
        return self._deadline

    def lagging(self) -> Listener | None:
        """The next stream to pump from storage, round-robin; None: nothing lags, or there is no room for a segment.

        The membership log goes first: nothing else can be opened without it.
        """
        if not self.has_room:
            return None
        behind = [x for x in self.listeners.values() if _is_behind(x)]
        if not behind:
            return None
        members = next((x for x in behind if not any(x.name[1])), None)
        self._turn += 1
        return members or behind[self._turn % len(behind)]

    @property
    def has_room(self) -> bool:
        """True while any segment may be sent. Once there is room again for what lags meanwhile, it says `Pump`."""
        return not self._stalled and self.credit >= self.limits.segment_bytes + limits.DELIVER_HEAD_BYTES_MAX

    def _pump(self) -> list[RelayEffect]:
        return [Pump()] if self.has_room and any(map(_is_behind, self.listeners.values())) else []

    def handle(self, event: RelayEvent) -> list[RelayEffect]:
        """Take one event in. Effects are to be carried out in order."""
        if isinstance(event, Received):
            return self._receive(event)
        handler = RELAY_EVENTS.get((self.state, type(event)))
        if handler is not None:
            return handler(self, event)
        if self.state is RelayState.CLOSED:
            return []
        raise LocalMisuse(f"{type(event).__name__} does not fit a session that is {self.state.name}")

    # --- receiving

    def _receive(self, event: Received) -> list[RelayEffect]:
        if self.state is RelayState.CLOSED:
            return []
        if self._deadline is not None and event.now >= self._deadline:
            return self._too_late()
        try:
            message = codec.decode(event.data)
            if message is None:
                return []
            handler = RELAY_MESSAGES.get((self.state, type(message)))
            if handler is None:
                raise RemoteFault(f"{type(message).__name__} may not come while {self.state.name}")
            if self.version < message.SINCE and self.state is RelayState.READY:
                raise RemoteFault(f"{type(message).__name__} may not come in a conversation of version {self.version}")
            return handler(self, message)
        except RemoteFault as fault:
            return self._close(fault.code, str(fault))

    def _close(self, code: CloseCode, reason: str) -> list[RelayEffect]:
        self._end()
        return [Close(code, reason, may_come_back(code))]

    def _end(self) -> None:
        self.state = RelayState.CLOSED
        self._deadline = None
        for name in list(self.listeners):
            self._drop(name)
        self._waiting = None

    def _drop(self, name: tuple[VaultId, StreamId]) -> None:
        """Stop listening. Whoever still offers frames to the listener is told that they are not wanted."""
        listener = self.listeners.pop(name)
        listener.live = listener.exists = False

    @property
    def has_answered(self) -> bool:
        """True if no push is under way."""
        return self._pushes_under_way == 0

    # --- login

    def _opened(self, event: Opened) -> list[RelayEffect]:
        self.state = RelayState.AWAITING_HELLO
        self._deadline = event.now + limits.LOGIN_SECONDS_MAX
        return []

    def _greeted(self, message: Hello) -> list[RelayEffect]:
        version = min(message.version_max, limits.VERSION_MAX)
        if message.version_min > message.version_max or version < max(message.version_min, limits.VERSION_MIN):
            raise RemoteFault(
                f"this relay speaks versions {limits.VERSION_MIN} to {limits.VERSION_MAX}, the device "
                f"{message.version_min} to {message.version_max}; update whichever is older",
                CloseCode.VERSION_UNSUPPORTED,
            )
        self.state = RelayState.AWAITING_PROOF
        self._hello, self.version = message, version
        return [Send(codec.encode(Challenge(version, self._nonce)))]

    def _proved(self, message: Prove) -> list[RelayEffect]:
        hello = self._hello
        if hello is None:
            raise LocalMisuse("a proof was admitted before a greeting")
        if message.origin not in self._origins:
            raise RemoteFault(
                f"the device dialled {message.origin!r}, which is not a name of this relay; "
                "its host adds names with the setting `origins`",
                CloseCode.WRONG_ORIGIN,
            )
        versions = (hello.version_min, hello.version_max, self.version)
        payload = login_payload(versions, message.origin, hello.device, hello.nonce, self._nonce)
        if not self._verify(hello.device, payload, message.signature):
            raise RemoteFault("the device's signature is not valid", CloseCode.LOGIN_REFUSED)
        self.state, self._deadline, self._hello, self._nonce = RelayState.READY, None, None, b""
        self.device = hello.device
        self.credit = self.limits.credit_bytes
        return [LoggedIn(hello.device), Send(codec.encode(Welcome(*self.limits)))]

    # --- what a device asks

    def _asked(self, message: Message) -> list[RelayEffect]:
        if getattr(message, "request", None) == NO_REQUEST:
            raise RemoteFault("a request is numbered 0, under which it cannot be answered")
        if self._requests < limits.REQUESTS_MAX:
            self._requests += 1
            return [Do(message)]
        size = len(codec.encode(message))
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((size, message))
        self._waiting_bytes += size
        if self._waiting_bytes > limits.REQUEST_BYTES_WAITING_MAX:
            why = f"more than {limits.REQUEST_BYTES_WAITING_MAX} bytes of requests are waiting for their answers"
            raise RemoteFault(why, CloseCode.OVERLOADED)
        return []

    def _compare(self, message: Reconcile | Fetch) -> list[RelayEffect]:
        if message.stream == MEMBERSHIP:
            raise RemoteFault("the membership log is not compared: its links are appended one by one")
        if isinstance(message, Reconcile):
            for prefix in message.prefixes:
                check_prefix(prefix)
        return self._asked(message)

    def _settled(self) -> list[RelayEffect]:
        """A request has been answered: the next one may go."""
        self._requests = max(0, self._requests - 1)
        if not self._waiting:
            return []
        size, message = self._waiting.popleft()
        self._waiting_bytes -= size
        self._requests += 1
        return [Do(message)]

    def _subscribe(self, message: Subscribe) -> list[RelayEffect]:
        streams = frozenset(wanted.stream for wanted in message.streams)
        if len(streams) < len(message.streams):
            raise RemoteFault("a SUBSCRIBE names a stream twice")
        for wanted in message.streams:
            name = (message.vault, wanted.stream)
            listener = self.listeners.get(name)
            if listener is None:
                if len(self.listeners) >= limits.STREAMS_PER_SESSION_MAX:
                    raise RemoteFault(f"more than {limits.STREAMS_PER_SESSION_MAX} streams on one connection")
                self.listeners[name] = Listener(self, name, wanted.cursor.seq)
            else:
                listener.cursor, listener.live = wanted.cursor.seq, False
                listener.awaiting += 1
        self._subscribing += ((message.vault, streams),)
        return self._asked(message)

    def _acked(self, message: Ack) -> list[RelayEffect]:
        self.credit += message.credit_bytes
        if self.credit > self.limits.credit_bytes:
            raise RemoteFault("more credit was given back than was used")
        effects: list[RelayEffect] = [Noted(message.positions)] if message.positions else []
        return effects + self._pump()

    def _push(self, message: Push) -> list[RelayEffect]:
        if message.flags not in PUSH_FLAGS:
            raise RemoteFault(f"push flags {message.flags:#04x} are not known; they may need a newer version")
        if self.version < push_since(message.flags):
            raise RemoteFault(f"push flags {message.flags:#04x} are not known in version {self.version}")
        term = self._terms.get(message.vault)
        if term is None or message.batch > self._refused_from.get(message.vault, message.batch):
            self._void(message.vault, message.batch)
            why = "subscribe to the vault before pushing to it"
            return [self._fault(Refuse(FaultCode.NOT_SUBSCRIBED, Action.RESUBSCRIBE, why, vault=message.vault))]
        if message.term != term:
            self._void(message.vault, message.batch)
            return [self._fault(term_changed(message.vault))]
        self._refused_from.pop(message.vault, None)
        waiting = self._pushes.setdefault(message.vault, [])
        if len(waiting) >= self.limits.push_window:
            raise RemoteFault(f"more than {self.limits.push_window} pushes to a vault are unanswered")
        if self._pushes_under_way >= limits.PUSHES_PER_SESSION_MAX:
            why = f"more than {limits.PUSHES_PER_SESSION_MAX} pushes of one connection are under way"
            raise RemoteFault(why, CloseCode.OVERLOADED)
        waiting.append(message.batch)
        self._pushes_under_way += 1
        return [Do(message)]

    def _void(self, vault: VaultId, batch: int | None = None) -> None:
        """A FAULT about the vault is sent: what is unanswered will be pushed again, after the next SUBSCRIBED.

        That may be on its way already. So a `batch` that is refused keeps those after it out until it comes again, or
        is answered: where gaps are legal, under a new term, they would be carried out before it (R16).
        """
        self._terms.pop(vault, None)
        self._pushes.pop(vault, None)
        if batch is not None:
            self._refused_from[vault] = min(batch, self._refused_from.get(vault, batch))

    # --- what the relay answers

    def _answered(self, event: Answer) -> list[RelayEffect]:
        message = event.message
        if isinstance(message, Subscribed):
            return self._begin(message)
        send: list[RelayEffect] = [Send(event.encoded or codec.encode(message))]
        if isinstance(message, Pushed):
            vault, batch = message.vault, message.batch
            self._judged(vault, batch)
            if vault in self._refused_from and batch >= self._refused_from[vault]:
                del self._refused_from[vault]
            return send
        return send + self._settled() if isinstance(message, (Done, Ranges, Records)) else send

    def _judged(self, vault: VaultId, batch: int) -> bool:
        """A push has been answered: was it still waited for?"""
        self._pushes_under_way = max(0, self._pushes_under_way - 1)
        waiting = self._pushes.get(vault, [])
        if batch not in waiting:
            return False
        waiting.remove(batch)
        return True

    def _begin(self, message: Subscribed) -> list[RelayEffect]:
        effects: list[RelayEffect] = [Send(data) for data in _in_frames(message)]
        self._answer_subscribe(message.vault, frozenset(state.stream for state in message.streams))
        if self._terms.get(message.vault) != message.term:
            self._void(message.vault)
        self._terms[message.vault] = message.term
        for state in message.streams:
            listener = self.listeners.get((message.vault, state.stream))
            if listener is not None:
                # It may have been created after the store was asked: then a frame was offered meanwhile.
                listener.exists = listener.exists or state.kind is not StreamKind.ABSENT
                listener.live = False
        if self._term is not None and self._term.number > message.term.number:
            effects += self._new_term(TermChanged(self._term))
        return effects + self._settled() + self._pump()

    def _answer_subscribe(self, vault: VaultId, streams: frozenset[StreamId] | None) -> frozenset[StreamId] | None:
        """Strike out the SUBSCRIBE that is answered: the oldest for these streams, else the oldest of the vault."""
        places = [place for place, entry in enumerate(self._subscribing) if entry[0] == vault]
        place = next((at for at in places if self._subscribing[at][1] == streams), places[0] if places else None)
        if place is None:
            return None
        found = self._subscribing[place]
        self._subscribing = self._subscribing[:place] + self._subscribing[place + 1 :]
        for stream in found[1]:
            listener = self.listeners.get((vault, stream))
            if listener is not None:
                listener.awaiting = max(0, listener.awaiting - 1)
        return found[1]

    def _refused(self, event: Refuse) -> list[RelayEffect]:
        fault = self._fault(event)
        if event.request != NO_REQUEST:
            return [fault, *self._settled()]  # it is about that request alone
        if event.batch is not None and not self._judged(event.vault, event.batch):
            return []
        if event.code is FaultCode.NO_SUCH_VAULT:
            for name in [name for name in self.listeners if name[0] == event.vault]:
                self._drop(name)
        if event.batch is not None:
            self._void(event.vault, event.batch)
            return [fault]
        if event.vault == NO_VAULT:
            return [fault]
        self._void(event.vault)
        streams = self._answer_subscribe(event.vault, None)
        if streams is None:
            return [fault]
        for name in [(event.vault, stream) for stream in streams]:
            if name in self.listeners and not self.listeners[name].awaiting:
                self._drop(name)
        return [fault, *self._settled()]

    def _fault(self, event: Refuse) -> Send:
        message = event.message.encode(errors="replace")[: limits.TEXT_BYTES_MAX].decode(errors="ignore")
        return Send(codec.encode(Fault(event.request, event.vault, event.code, event.action, event.retry_ms, message)))

    def _paged(self, event: PageRead) -> list[RelayEffect]:
        listener = self.listeners.get((event.vault, event.stream))
        if listener is None or listener.awaiting or listener.live or self._stalled:
            return []
        effects: list[RelayEffect] = []
        for last, frame in event.frames:
            if last <= listener.cursor:
                continue
            if len(frame) > self.credit:
                break
            self.credit -= len(frame)
            listener.cursor = last
            effects.append(Send(frame))
        listener.live = listener.cursor >= event.head
        return effects + self._pump()

    def _new_term(self, event: TermChanged) -> list[RelayEffect]:
        effects: list[RelayEffect] = []
        self._term = event.term
        for vault, term in list(self._terms.items()):
            if term != event.term:
                self._void(vault)
                effects.append(self._fault(term_changed(vault)))
        return effects

    def _links_replaced(self, event: LinksReplaced) -> list[RelayEffect]:
        """Who listens to the membership log subscribes again, and is sent nothing of it before."""
        listener = self.listeners.get((event.vault, MEMBERSHIP))
        if listener is None or listener.awaiting:
            return []
        self._drop((event.vault, MEMBERSHIP))
        self._void(event.vault)
        return [self._fault(term_changed(event.vault))]

    # --- a device that does not read

    def _stall(self, event: Stalled) -> list[RelayEffect]:
        """From now on its streams lag, so that nothing waits for it but what is written already."""
        self._stalled = True
        for listener in self.listeners.values():
            listener.live = False
        return []

    def _resume(self, event: Resumed) -> list[RelayEffect]:
        self._stalled = False
        return self._pump()

    # --- the end

    def _ticked(self, event: Ticked) -> list[RelayEffect]:
        if self._deadline is not None and event.now >= self._deadline:
            return self._too_late()
        return []

    def _too_late(self) -> list[RelayEffect]:
        return self._close(CloseCode.TOO_SLOW, "the login was not finished in time")

    def _stop(self, event: Stop) -> list[RelayEffect]:
        return self._close(event.code, event.reason)

    def _lost(self, event: Lost) -> list[RelayEffect]:
        self._end()
        return []


_S = RelayState
_Handler = Callable[[RelaySession, Any], list[RelayEffect]]

RELAY_EVENTS: Final[dict[tuple[RelayState, type[Any]], _Handler]] = {
    (_S.IDLE, Opened): RelaySession._opened,
    (_S.READY, Answer): RelaySession._answered,
    (_S.READY, Refuse): RelaySession._refused,
    (_S.READY, PageRead): RelaySession._paged,
    (_S.READY, TermChanged): RelaySession._new_term,
    (_S.READY, LinksReplaced): RelaySession._links_replaced,
    **{(state, Ticked): RelaySession._ticked for state in _S if state not in (_S.IDLE, _S.CLOSED)},
    **{(state, Stop): RelaySession._stop for state in _S if state is not _S.CLOSED},
    **{(state, Stalled): RelaySession._stall for state in _S if state is not _S.CLOSED},
    **{(state, Resumed): RelaySession._resume for state in _S if state is not _S.CLOSED},
    **{(state, Lost): RelaySession._lost for state in _S if state is not _S.CLOSED},
}
"""Which event is legal in which state. In CLOSED every event is a late echo and does nothing."""

RELAY_MESSAGES: Final[dict[tuple[RelayState, type[Message]], _Handler]] = {
    (_S.AWAITING_HELLO, Hello): RelaySession._greeted,
    (_S.AWAITING_PROOF, Prove): RelaySession._proved,
    (_S.READY, Subscribe): RelaySession._subscribe,
    (_S.READY, Ack): RelaySession._acked,
    (_S.READY, Push): RelaySession._push,
    (_S.READY, Reconcile): RelaySession._compare,
    (_S.READY, Fetch): RelaySession._compare,
    **{
        (_S.READY, kind): RelaySession._asked
        for kind in (CreateVault, CreateStream, AppendLink, OfferLinks, OpenMailbox, Join, AnswerJoin)
    },
}
"""Which message a device may send in which state. Anything else ends the connection."""
