"""The relay's end of one connection, as a pure state machine: `handle(event) -> effects`.

It authenticates a device, admits its messages in order and within limits, and keeps what it listens to: for every
stream a cursor and whether it is live. Beyond its credit a device costs a cursor, never a queue: a frame that does
not fit is not kept, the stream merely lags and is pumped from storage when credit comes back.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

from sealwire_protocol import codec, limits
from sealwire_protocol.errors import Action, CloseCode, FaultCode, LocalMisuse, RemoteFault, may_come_back
from sealwire_protocol.events import (
    Answer,
    Close,
    Do,
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
    Send,
    Stop,
    TermChanged,
    Ticked,
)
from sealwire_protocol.ids import DeviceKey, StreamId, Term, VaultId
from sealwire_protocol.login import login_payload
from sealwire_protocol.membership import Verify
from sealwire_protocol.messages import (
    Ack,
    AnswerJoin,
    AppendLink,
    Challenge,
    CreateStream,
    CreateVault,
    Done,
    Fault,
    Hello,
    Join,
    Message,
    OpenMailbox,
    Prove,
    Push,
    Pushed,
    StreamKind,
    Subscribe,
    Subscribed,
    Welcome,
)

REQUESTS_MAX: Final = 32
"""Requests and SUBSCRIBEs of one connection that may be unanswered: more is a client that does not wait."""


class RelayState(Enum):
    """Where a connection stands, seen from the relay."""

    IDLE = auto()
    AWAITING_HELLO = auto()
    AWAITING_PROOF = auto()
    READY = auto()
    CLOSED = auto()


class Listener:
    """One stream that a connection listens to. `live`: it has been sent all up to `cursor`, the head."""

    __slots__ = ("awaiting", "cursor", "exists", "live", "session", "stream", "vault")

    def __init__(self, session: "RelaySession", vault: VaultId, stream: StreamId, cursor: int) -> None:
        self.session, self.vault, self.stream, self.cursor = session, vault, stream, cursor
        self.live = self.exists = False
        self.awaiting = 1

    def offer(self, prev: int, last: int, frame_bytes: int) -> bool:
        """A live frame has been committed: True if the driver must send it now. Otherwise the stream lags.

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


def term_changed(vault: VaultId, batch: int | None = None) -> Refuse:
    """The refusal that tells a device to subscribe again, since the relay's history has a new term."""
    why = "the relay's database has begun a new term; subscribe again"
    return Refuse(FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, why, vault=vault, batch=batch)


class RelaySession:
    """One connection. `nonce` is 32 fresh random bytes; `origins` are the names under which this relay is dialled.

    Raises LocalMisuse if an event does not fit the state; never raises on what a device sends.
    """

    __slots__ = (
        "_deadline",
        "_hello",
        "_nonce",
        "_origins",
        "_pushes",
        "_requests",
        "_terms",
        "_turn",
        "_verify",
        "_version",
        "credit",
        "device",
        "limits",
        "listeners",
        "state",
    )

    def __init__(
        self, origins: frozenset[str], nonce: bytes, verify: Verify, granted: limits.Limits | None = None
    ) -> None:
        self._origins, self._nonce, self._verify = origins, nonce, verify
        self.limits = granted or limits.Limits()
        self.state = RelayState.IDLE
        self.device: DeviceKey | None = None
        self.credit = 0
        self.listeners: dict[tuple[VaultId, StreamId], Listener] = {}
        self._hello: Hello | None = None
        self._version = 0
        self._deadline: float | None = None
        self._terms: dict[VaultId, Term] = {}
        self._pushes: dict[VaultId, int] = {}
        self._requests = 0
        self._turn = 0

    # --- what a driver may ask

    @property
    def deadline(self) -> float | None:
        """When the driver must send `Ticked` at the latest; None: no need."""
        return self._deadline

    def lagging(self) -> Listener | None:
        """The next stream to pump from storage, round-robin; None: nothing lags, or there is no credit.

        The membership log goes first: nothing else can be opened without it.
        """
        if self.credit < self.limits.segment_bytes:
            return None
        behind = [x for x in self.listeners.values() if x.exists and not x.live and not x.awaiting]
        if not behind:
            return None
        members = next((x for x in behind if not any(x.stream)), None)
        self._turn += 1
        return members or behind[self._turn % len(behind)]

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
        try:
            message = codec.decode(event.data)
            if message is None:
                return []
            handler = RELAY_MESSAGES.get((self.state, type(message)))
            if handler is None:
                raise RemoteFault(f"{type(message).__name__} may not come while {self.state.name}")
            return handler(self, message)
        except RemoteFault as fault:
            return self._close(fault.code, str(fault))

    def _close(self, code: CloseCode, reason: str) -> list[RelayEffect]:
        self._end()
        return [Close(code, reason, may_come_back(code))]

    def _end(self) -> None:
        self.state = RelayState.CLOSED
        self._deadline = None
        for listener in self.listeners.values():
            listener.live = listener.exists = False
        self.listeners.clear()

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
        self._hello, self._version = message, version
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
        versions = (hello.version_min, hello.version_max, self._version)
        payload = login_payload(versions, message.origin, hello.device, hello.nonce, self._nonce)
        if not self._verify(hello.device, payload, message.signature):
            raise RemoteFault("the device's signature is not valid", CloseCode.LOGIN_REFUSED)
        self.state, self._deadline, self._hello = RelayState.READY, None, None
        self.device = hello.device
        self.credit = self.limits.credit_bytes
        return [LoggedIn(hello.device), Send(codec.encode(Welcome(*self.limits)))]

    # --- what a device asks

    def _asked(self, message: Message) -> list[RelayEffect]:
        self._count_request()
        return [Do(message)]

    def _count_request(self) -> None:
        self._requests += 1
        if self._requests > REQUESTS_MAX:
            raise RemoteFault(f"more than {REQUESTS_MAX} requests are unanswered")

    def _subscribe(self, message: Subscribe) -> list[RelayEffect]:
        self._count_request()
        for wanted in message.streams:
            name = (message.vault, wanted.stream)
            listener = self.listeners.get(name)
            if listener is None:
                if len(self.listeners) >= limits.STREAMS_PER_SESSION_MAX:
                    raise RemoteFault(f"more than {limits.STREAMS_PER_SESSION_MAX} streams on one connection")
                self.listeners[name] = Listener(self, *name, wanted.cursor.seq)
            else:
                listener.cursor, listener.live = wanted.cursor.seq, False
                listener.awaiting += 1
        return [Do(message)]

    def _acked(self, message: Ack) -> list[RelayEffect]:
        self.credit += message.credit_bytes
        if self.credit > self.limits.credit_bytes:
            raise RemoteFault("more credit was given back than was used")
        effects: list[RelayEffect] = [Noted(message.positions)] if message.positions else []
        return [*effects, Pump()] if self.lagging() else effects

    def _push(self, message: Push) -> list[RelayEffect]:
        term = self._terms.get(message.vault)
        if term is None:
            why = (FaultCode.NOT_SUBSCRIBED, Action.RESUBSCRIBE, "subscribe to the vault before pushing to it")
            return [self._fault(Refuse(*why, vault=message.vault))]
        if message.term != term:
            return [self._fault(term_changed(message.vault))]
        waiting = self._pushes.get(message.vault, 0) + 1
        if waiting > self.limits.push_window:
            raise RemoteFault(f"more than {self.limits.push_window} pushes to a vault are unanswered")
        self._pushes[message.vault] = waiting
        return [Do(message)]

    # --- what the relay answers

    def _answered(self, event: Answer) -> list[RelayEffect]:
        message = event.message
        send = Send(codec.encode(message))
        if isinstance(message, Pushed):
            self._pushes[message.vault] = max(0, self._pushes.get(message.vault, 0) - 1)
            return [send]
        if isinstance(message, Subscribed):
            self._requests -= 1
            return [send, *self._begin(message)]
        if isinstance(message, Done):
            self._requests -= 1
        return [send]

    def _begin(self, message: Subscribed) -> list[RelayEffect]:
        self._terms[message.vault] = message.term
        for state in message.streams:
            listener = self.listeners.get((message.vault, state.stream))
            if listener is None:
                continue
            listener.awaiting = max(0, listener.awaiting - 1)
            listener.exists = state.kind is not StreamKind.ABSENT
            listener.live = False
        return [Pump()] if self.lagging() else []

    def _refused(self, event: Refuse) -> list[RelayEffect]:
        if event.batch is not None:
            self._pushes[event.vault] = max(0, self._pushes.get(event.vault, 0) - 1)
        else:
            self._requests = max(0, self._requests - 1)
        if event.code is FaultCode.NO_SUCH_VAULT:
            for name in [name for name in self.listeners if name[0] == event.vault]:
                del self.listeners[name]
            self._terms.pop(event.vault, None)
        return [self._fault(event)]

    def _fault(self, event: Refuse) -> Send:
        fault = Fault(event.request, event.vault, event.code, event.action, event.retry_ms, event.message)
        return Send(codec.encode(fault))

    def _paged(self, event: PageRead) -> list[RelayEffect]:
        listener = self.listeners.get((event.vault, event.stream))
        if listener is None or listener.awaiting or listener.live:
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
        return [*effects, Pump()] if self.lagging() else effects

    def _new_term(self, event: TermChanged) -> list[RelayEffect]:
        effects: list[RelayEffect] = []
        for vault, term in list(self._terms.items()):
            if term != event.term:
                del self._terms[vault]
                effects.append(self._fault(term_changed(vault)))
        return effects

    # --- the end

    def _ticked(self, event: Ticked) -> list[RelayEffect]:
        if self._deadline is not None and event.now >= self._deadline:
            return self._close(CloseCode.TOO_SLOW, "the login was not finished in time")
        return []

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
    **{(state, Ticked): RelaySession._ticked for state in _S if state not in (_S.IDLE, _S.CLOSED)},
    **{(state, Stop): RelaySession._stop for state in _S if state is not _S.CLOSED},
    **{(state, Lost): RelaySession._lost for state in _S if state is not _S.CLOSED},
}
"""Which event is legal in which state. In CLOSED every event is a late echo and does nothing."""

RELAY_MESSAGES: Final[dict[tuple[RelayState, type[Message]], _Handler]] = {
    (_S.AWAITING_HELLO, Hello): RelaySession._greeted,
    (_S.AWAITING_PROOF, Prove): RelaySession._proved,
    (_S.READY, Subscribe): RelaySession._subscribe,
    (_S.READY, Ack): RelaySession._acked,
    (_S.READY, Push): RelaySession._push,
    **{
        (_S.READY, kind): RelaySession._asked
        for kind in (CreateVault, CreateStream, AppendLink, OpenMailbox, Join, AnswerJoin)
    },
}
"""Which message a device may send in which state. Anything else ends the connection."""
