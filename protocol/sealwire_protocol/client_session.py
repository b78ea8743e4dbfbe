"""The device's end of one connection, as a pure state machine: `handle(event) -> effects`.

It logs in, keeps subscriptions, admits deliveries by the one rule (R8), counts credit, and matches nothing else:
what an answer means is for the parts above. A session lives as long as one connection.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

from sealwire_protocol import codec, limits
from sealwire_protocol.errors import Action, CloseCode, FaultCode, LocalMisuse, RemoteFault, may_come_back
from sealwire_protocol.events import (
    Applied,
    Apply,
    Arrived,
    Beside,
    ClientEffect,
    ClientEvent,
    Close,
    Doubt,
    HistoryLost,
    Listen,
    Lost,
    Opened,
    Received,
    Request,
    Send,
    Sign,
    Signed,
    Stop,
    Submit,
    Ticked,
)
from sealwire_protocol.history import newest_term, whole_from, why_history_is_lost, why_incomplete
from sealwire_protocol.ids import DeviceKey, Position, StreamId, Term, VaultId
from sealwire_protocol.login import login_payload
from sealwire_protocol.messages import (
    NO_REQUEST,
    NO_VAULT,
    Ack,
    Acked,
    Challenge,
    Deliver,
    Done,
    Fault,
    Hello,
    Joined,
    Joining,
    Message,
    Prove,
    Push,
    Pushed,
    Ranges,
    Records,
    Subscribe,
    Subscribed,
    Wanted,
    Welcome,
    push_since,
)


class ClientState(Enum):
    """Where a connection stands, seen from the device."""

    IDLE = auto()
    GREETED = auto()
    SIGNING = auto()
    PROVED = auto()
    READY = auto()
    CLOSED = auto()


class _Listening:
    """One subscribed stream: the position up to which records were admitted, the term they came under, and how often
    in a row it was subscribed to again with nothing to apply in between.

    `whole_from` is that of `Beside`, `whole` what it is worth now. `answered`: the greatest seq of each term at which a
    write was answered. `asked`: how many SUBSCRIBEs are unanswered; `to_check` are the writes that were answered when
    the first of these was sent: a SUBSCRIBED does not say which one it answers, but knows them whichever it is.
    `unsure`: others were to be checked, too, so that it is asked once more when all have their answer.
    `voided`: a FAULT has said that it must be subscribed to again, and it is not yet.
    """

    __slots__ = (
        "answered",
        "asked",
        "awaiting",
        "dropped",
        "in_vain",
        "position",
        "served",
        "term",
        "to_check",
        "unsure",
        "voided",
        "whole",
        "whole_from",
    )

    def __init__(self, wanted: Wanted, beside: Beside) -> None:
        self.position = wanted.cursor
        self.served = wanted.served
        self.term: Term | None = None
        self.awaiting, self.voided = True, False
        self.asked = self.in_vain = self.whole = 0
        self.whole_from, self.dropped = beside.whole_from, beside.dropped
        self.answered: dict[Term, int] = {}
        for position in beside.answered:
            self.answer(position)
        self.to_check: tuple[Position, ...] = ()
        self.unsure = False

    def ask(self) -> None:
        """A SUBSCRIBE is sent."""
        answered = tuple(Position(term, seq) for term, seq in self.answered.items())
        self.awaiting = True
        if not self.asked:
            self.to_check = answered
        self.unsure = answered != self.to_check
        self.asked += 1

    def answer(self, position: Position) -> None:
        """A write of this device stands there."""
        if position.seq > self.answered.get(position.term, 0):
            self.answered[position.term] = position.seq
        if len(self.answered) > limits.TERMS_TOLD_MAX:
            raise RemoteFault("the relay has answered writes under more terms than it can tell of")

    def passed(self, position: Position) -> None:
        """All up to here was delivered: what was answered is covered by the cursor from now on."""
        if self.answered.get(position.term, position.seq + 1) <= position.seq:
            del self.answered[position.term]


class ClientSession:
    """One connection of one device. Not for use by two tasks at once.

    `nonce` is 32 fresh random bytes; `origin` is the normal form of the address dialled. `version` is the one that the
    relay has chosen, 0 before it has: what a later version brought must not be sent under it.
    Raises LocalMisuse if an event does not fit the state; never raises on what the relay sends.
    """

    def __init__(self, device: DeviceKey, origin: str, nonce: bytes, agent: str = "") -> None:
        self.device, self.origin, self.nonce, self.agent = device, origin, nonce, agent
        self.state = ClientState.IDLE
        self.limits = limits.Limits()
        self.version = 0
        self._deadline: float | None = None
        self._streams: dict[tuple[VaultId, StreamId], _Listening] = {}
        self._terms: dict[VaultId, Term] = {}
        self._outstanding: dict[VaultId, set[int]] = {}
        self._again_at: dict[VaultId, float] = {}
        self._voided: dict[VaultId, int] = {}
        self._in_hand = self._credit_due = 0
        self._acked: dict[tuple[VaultId, StreamId], Position] = {}
        self._ack_at: float | None = None

    # --- what a driver may ask

    @property
    def deadline(self) -> float | None:
        """When the driver must send `Ticked` at the latest; None: no need."""
        times = [at for at in (self._deadline, self._ack_at) if at is not None]
        return min([*times, *self._again_at.values()], default=None)

    def term_of(self, vault: VaultId) -> Term | None:
        """The relay's term for pushes to this vault, once it is subscribed."""
        return self._terms.get(vault)

    def outstanding(self, vault: VaultId) -> frozenset[int]:
        """Batches sent on this connection and not answered yet."""
        return frozenset(self._outstanding.get(vault, ()))

    @property
    def full(self) -> bool:
        """True if the connection takes no more pushes, to whatever vault, before one is answered or voided."""
        return sum(map(len, self._outstanding.values())) >= limits.PUSHES_PER_SESSION_MAX

    def may_push(self, vault: VaultId) -> bool:
        """True if a `Submit` for this vault is allowed now."""
        return (
            self.state is ClientState.READY
            and vault in self._terms
            and len(self._outstanding.get(vault, ())) < self.limits.push_window
            and not self.full
        )

    def handle(self, event: ClientEvent) -> list[ClientEffect]:
        """Take one event in. Effects are to be carried out in order."""
        if isinstance(event, Received):
            return self._receive(event)
        handler = CLIENT_EVENTS.get((self.state, type(event)))
        if handler is not None:
            return handler(self, event)
        if self.state is ClientState.CLOSED and isinstance(event, Ticked | Lost | Stop | Applied | Signed):
            return []
        raise LocalMisuse(f"{type(event).__name__} does not fit a session that is {self.state.name}")

    # --- receiving

    def _receive(self, event: Received) -> list[ClientEffect]:
        if self.state is ClientState.CLOSED:
            return []
        if self._deadline is not None and event.now >= self._deadline:
            return self._too_late()
        try:
            message = codec.decode(event.data)
            if message is None:
                return []
            handler = CLIENT_MESSAGES.get((self.state, type(message)))
            if handler is None:
                raise RemoteFault(f"the relay sent {type(message).__name__} while {self.state.name}")
            if self.version < message.SINCE and self.state is ClientState.READY:
                raise RemoteFault(f"the relay sent {type(message).__name__}, unknown in version {self.version}")
            return handler(self, message, event)
        except RemoteFault as fault:
            return self._close(fault.code, str(fault))

    def _close(self, code: CloseCode, reason: str) -> list[ClientEffect]:
        self._end()
        return [Close(code, reason, may_come_back(code))]

    def _end(self) -> None:
        self.state = ClientState.CLOSED
        self._deadline = self._ack_at = None
        self._again_at.clear()

    def _send(self, message: Message) -> Send:
        data = codec.encode(message)
        if len(data) > self.limits.frame_bytes:
            raise LocalMisuse(f"a message of {len(data)} bytes is over the relay's limit of {self.limits.frame_bytes}")
        return Send(data)

    # --- login

    def _opened(self, event: Opened) -> list[ClientEffect]:
        self.state = ClientState.GREETED
        self._deadline = event.now + limits.LOGIN_SECONDS_MAX
        hello = Hello(limits.VERSION_MIN, limits.VERSION_MAX, self.device, self.nonce, self.agent)
        return [Send(codec.encode(hello))]

    def _challenged(self, message: Challenge, event: Received) -> list[ClientEffect]:
        if not limits.VERSION_MIN <= message.version <= limits.VERSION_MAX:
            raise RemoteFault(
                f"the relay speaks version {message.version}, this device {limits.VERSION_MIN} to "
                f"{limits.VERSION_MAX}; update whichever is older",
                CloseCode.VERSION_UNSUPPORTED,
            )
        self.state, self.version = ClientState.SIGNING, message.version
        versions = (limits.VERSION_MIN, limits.VERSION_MAX, message.version)
        return [Sign(login_payload(versions, self.origin, self.device, self.nonce, message.nonce))]

    def _signed(self, event: Signed) -> list[ClientEffect]:
        self.state = ClientState.PROVED
        return [Send(codec.encode(Prove(self.origin, event.signature)))]

    def _welcomed(self, message: Welcome, event: Received) -> list[ClientEffect]:
        told = limits.Limits(*(getattr(message, name) for name in limits.Limits._fields))
        if told.credit_bytes < limits.CREDIT_BYTES_MIN:
            raise RemoteFault("the relay grants less credit than two segments need")
        if told.frame_bytes < limits.FRAME_BYTES_MIN:
            raise RemoteFault("the relay takes no message as long as a segment")
        if not all(told):
            raise RemoteFault("the relay tells a limit of nothing")
        self.state = ClientState.READY
        self._deadline = None
        self.limits = told
        return [Arrived(message)]

    # --- subscriptions

    def _listen(self, event: Listen) -> list[ClientEffect]:
        if len({wanted.stream for wanted in event.streams}) < len(event.streams):
            raise LocalMisuse("a stream is listened to twice")
        if event.beside and len(event.beside) != len(event.streams):
            raise LocalMisuse("what is known beside the positions is to be given for each stream, or for none")
        send = self._send(Subscribe(event.vault, event.streams))
        for wanted, beside in zip(event.streams, event.beside or (Beside(),) * len(event.streams), strict=True):
            before = self._streams.get((event.vault, wanted.stream))
            listening = self._streams[event.vault, wanted.stream] = _Listening(wanted, beside)
            if before is not None:
                listening.asked, listening.to_check = before.asked, before.to_check
            listening.ask()
        return [send]

    def _resubscribe(self, vault: VaultId, streams: list[StreamId]) -> list[ClientEffect]:
        wanted = []
        for stream in streams:
            listening = self._streams[vault, stream]
            listening.ask()
            wanted.append(Wanted(stream, listening.position, listening.served))
        step = limits.SUBSCRIBE_STREAMS_MAX
        return [self._send(Subscribe(vault, tuple(wanted[at : at + step]))) for at in range(0, len(wanted) or 1, step)]

    def _subscribe_again(self, vault: VaultId) -> list[ClientEffect]:
        self._again_at.pop(vault, None)
        return self._resubscribe(vault, [stream for of, stream in self._streams if of == vault])

    def _subscribed(self, message: Subscribed, event: Received) -> list[ClientEffect]:
        if any(state.top > limits.VERSION_TOP_MAX for state in message.streams):
            raise RemoteFault("the relay tells of a version that no stream reaches")
        effects: list[ClientEffect] = [Arrived(message)]
        if self._terms.get(message.vault) != message.term:
            self._terms[message.vault] = message.term
            self._outstanding[message.vault] = set()
        unsure: list[StreamId] = []
        for state in message.streams:
            listening = self._streams.get((message.vault, state.stream))
            if listening is None:
                continue
            listening.asked = max(0, listening.asked - 1)
            at, beside = listening.position, (listening.whole_from, listening.to_check, listening.dropped)
            lost = why_history_is_lost(state, at, listening.served, *beside)
            if lost is not None:
                effects.append(self._lose(message.vault, state.stream, lost))
                continue
            listening.awaiting = listening.voided = False
            listening.term = newest_term(state)
            for position in listening.to_check:
                if position.seq <= at.seq:
                    listening.passed(position)
            listening.position = Position(listening.term, at.seq)
            if at.seq == 0:
                listening.whole_from = Position(listening.term, state.floor)
            listening.whole = whole_from(state, listening.whole_from)
            listening.dropped = max(listening.dropped, state.floor)
            if listening.unsure and not listening.asked:
                unsure.append(state.stream)
        if unsure:
            return effects + self._resubscribe(message.vault, unsure)
        if not any(x.awaiting or x.voided for (vault, _), x in self._streams.items() if vault == message.vault):
            self._again_at.pop(message.vault, None)
        return effects

    def _doubt(self, event: Doubt) -> list[ClientEffect]:
        known = (event.vault, event.stream) in self._streams
        return [self._lose(event.vault, event.stream, event.reason)] if known else []

    def _lose(self, vault: VaultId, stream: StreamId, reason: str) -> HistoryLost:
        """The subscription ends: nothing may be applied to the stream before it was reconciled."""
        del self._streams[vault, stream]
        return HistoryLost(vault, stream, reason)

    def _delivered(self, message: Deliver, event: Received) -> list[ClientEffect]:
        size = len(event.data)
        if message.prev >= message.last:
            raise RemoteFault("a delivery covers nothing")
        listening = self._streams.get((message.vault, message.stream))
        if listening is None or listening.awaiting:
            return self._give_back(size, event.now)
        if message.term != listening.term or message.prev > listening.position.seq:
            return self._give_back(size, event.now) + self._find_again(message, listening, event.now)
        if message.last <= listening.position.seq:
            return self._give_back(size, event.now)
        if listening.position.seq == 0:
            listening.whole_from, listening.whole = Position(message.term, message.floor), message.floor
        incomplete = why_incomplete(message.floor, listening.position.seq, listening.whole)
        if incomplete is not None:
            lost = self._lose(message.vault, message.stream, incomplete)
            return [*self._give_back(size, event.now), lost]
        self._in_hand += size
        listening.in_vain = 0
        listening.position = Position(message.term, message.last)
        listening.passed(listening.position)
        listening.served = max(listening.served, Position(message.term, message.cleaned_to), key=_by_number)
        listening.dropped = max(listening.dropped, message.floor)
        return [Apply(message, size)]

    def _find_again(self, message: Deliver, listening: _Listening, now: float) -> list[ClientEffect]:
        """Subscribe again to a stream whose delivery does not join: at once, or, if that has not helped, in a while."""
        listening.in_vain += 1
        if listening.in_vain <= limits.RESUBSCRIBES_AT_ONCE_MAX:
            return self._resubscribe(message.vault, [message.stream])
        listening.awaiting = True
        self._again_at.setdefault(message.vault, now + limits.RESUBSCRIBE_SECONDS_MIN)
        return []

    # --- credit and acknowledgements

    def _give_back(self, size: int, now: float) -> list[ClientEffect]:
        self._credit_due += size
        if self._ack_at is None:
            self._ack_at = now + limits.ACK_DELAY_SECONDS
        if self._credit_due >= self._kept_back_max or len(self._acked) >= limits.ACK_STREAMS_MAX:
            return self._ack()
        return []

    @property
    def _kept_back_max(self) -> int:
        """Half of the credit; less where the other half would not let a whole segment pass: the relay would wait."""
        granted = self.limits.credit_bytes
        return min(granted // 2, granted - self.limits.segment_bytes - limits.DELIVER_HEAD_BYTES_MAX)

    def _ack(self) -> list[ClientEffect]:
        positions = tuple(Acked(vault, stream, at) for (vault, stream), at in self._acked.items())
        ack = Ack(self._credit_due, positions)
        self._credit_due, self._ack_at = 0, None
        self._acked.clear()
        return [Send(codec.encode(ack))]

    def _applied(self, event: Applied) -> list[ClientEffect]:
        if event.frame_bytes > self._in_hand:
            raise LocalMisuse("more was applied than this connection delivered; was it another connection's?")
        self._in_hand -= event.frame_bytes
        self._acked[event.vault, event.stream] = event.position
        return self._give_back(event.frame_bytes, event.now)

    def _ticked(self, event: Ticked) -> list[ClientEffect]:
        if self._deadline is not None and event.now >= self._deadline:
            return self._too_late()
        effects: list[ClientEffect] = []
        if self._ack_at is not None and event.now >= self._ack_at:
            effects += self._ack()
        for vault in [vault for vault, at in self._again_at.items() if event.now >= at]:
            effects += self._subscribe_again(vault)
        return effects

    def _too_late(self) -> list[ClientEffect]:
        return self._close(CloseCode.TOO_SLOW, "the relay did not finish the login in time")

    # --- pushing and requests

    def _request(self, event: Request) -> list[ClientEffect]:
        if getattr(event.message, "request", NO_REQUEST) == NO_REQUEST:
            raise LocalMisuse("a request needs a number other than 0, under which it is answered")
        if self.version < event.message.SINCE:
            raise LocalMisuse(f"{type(event.message).__name__} is not known to a relay of version {self.version}")
        return [self._send(event.message)]

    def _submit(self, event: Submit) -> list[ClientEffect]:
        push: Push = event.push
        if not self.may_push(push.vault):
            raise LocalMisuse("a push needs a subscribed vault and an open window")
        if self.version < push_since(push.flags):
            raise LocalMisuse(f"push flags {push.flags:#04x} are not known to a relay of version {self.version}")
        waiting = self._outstanding.setdefault(push.vault, set())
        if push.batch in waiting:
            raise LocalMisuse(f"batch {push.batch} was sent on this connection and is not answered yet")
        send = self._send(push)
        waiting.add(push.batch)
        return [send]

    def _pushed(self, message: Pushed, event: Received) -> list[ClientEffect]:
        self._outstanding.get(message.vault, set()).discard(message.batch)
        self._voided.pop(message.vault, None)
        for stream, term, first, records in message.appended:
            listening = self._streams.get((message.vault, stream))
            if listening is not None and records:
                listening.answer(Position(term, first + records - 1))
        return [Arrived(message)]

    def _faulted(self, message: Fault, event: Received) -> list[ClientEffect]:
        """One about a vault voids the right to push to it, and what is unanswered, until the next SUBSCRIBED."""
        effects: list[ClientEffect] = [Arrived(message)]
        vault = message.vault
        if message.request != NO_REQUEST or vault == NO_VAULT:
            return effects
        known = self._terms.pop(vault, None) is not None
        self._outstanding.pop(vault, None)
        for (of, _), listening in self._streams.items():
            if of == vault:
                listening.asked = 0  # it may be the answer to a SUBSCRIBE
        if message.action is Action.STOP:
            self._again_at.pop(vault, None)
            if message.code is FaultCode.NO_SUCH_VAULT:
                self._streams = {name: x for name, x in self._streams.items() if name[0] != vault}
            return effects
        self._voided[vault] = self._voided.get(vault, 0) + known
        if message.action is Action.RESUBSCRIBE and known and self._voided[vault] <= limits.RESUBSCRIBES_AT_ONCE_MAX:
            return effects + self._subscribe_again(vault)
        for (of, _), listening in self._streams.items():
            listening.voided = listening.voided or of == vault
        # What else was on its way is refused too, and knows nothing of when to come back.
        again_at = event.now + max(message.retry_ms / 1000, limits.RESUBSCRIBE_SECONDS_MIN)
        self._again_at[vault] = max(again_at, self._again_at.get(vault, again_at))
        return effects

    def _arrived(self, message: Message, event: Received) -> list[ClientEffect]:
        return [Arrived(message)]

    # --- the end

    def _stop(self, event: Stop) -> list[ClientEffect]:
        return self._close(event.code, event.reason)

    def _lost(self, event: Lost) -> list[ClientEffect]:
        self._end()
        return []


def _by_number(position: Position) -> tuple[int, int]:
    return position.term.number, position.seq


_S = ClientState
_Handler = Callable[[ClientSession, Any], list[ClientEffect]]
_MessageHandler = Callable[[ClientSession, Any, Received], list[ClientEffect]]

CLIENT_EVENTS: Final[dict[tuple[ClientState, type[Any]], _Handler]] = {
    (_S.IDLE, Opened): ClientSession._opened,
    (_S.SIGNING, Signed): ClientSession._signed,
    (_S.READY, Request): ClientSession._request,
    (_S.READY, Listen): ClientSession._listen,
    (_S.READY, Doubt): ClientSession._doubt,
    (_S.READY, Submit): ClientSession._submit,
    (_S.READY, Applied): ClientSession._applied,
    **{(state, Ticked): ClientSession._ticked for state in (_S.GREETED, _S.SIGNING, _S.PROVED, _S.READY)},
    **{(state, Stop): ClientSession._stop for state in _S if state is not _S.CLOSED},
    **{(state, Lost): ClientSession._lost for state in _S if state is not _S.CLOSED},
}
"""Which event is legal in which state. Anything else is LocalMisuse, save late echoes in CLOSED."""

CLIENT_MESSAGES: Final[dict[tuple[ClientState, type[Message]], _MessageHandler]] = {
    (_S.GREETED, Challenge): ClientSession._challenged,
    (_S.PROVED, Welcome): ClientSession._welcomed,
    (_S.READY, Subscribed): ClientSession._subscribed,
    (_S.READY, Deliver): ClientSession._delivered,
    (_S.READY, Pushed): ClientSession._pushed,
    (_S.READY, Ranges): ClientSession._arrived,
    (_S.READY, Records): ClientSession._arrived,
    (_S.READY, Done): ClientSession._arrived,
    (_S.READY, Joining): ClientSession._arrived,
    (_S.READY, Joined): ClientSession._arrived,
    (_S.READY, Fault): ClientSession._faulted,
    **{(state, Fault): ClientSession._arrived for state in (_S.GREETED, _S.SIGNING, _S.PROVED)},
}
"""Which message a relay may send in which state. Anything else ends the connection."""
