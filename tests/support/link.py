"""Both ends of the protocol wired through a fake link that can be cut at any byte, without sockets or clocks.

`Store` stands for a relay's database: it outlives connections. `Replica` stands for a device's: positions, records
and outbox outlive connections too. A `ConnectionPair` is one connection between them, with a driver at each end.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from sealwire_protocol import codec
from sealwire_protocol.client_session import ClientSession, ClientState
from sealwire_protocol.errors import Outcome
from sealwire_protocol.events import (
    Answer,
    Applied,
    Apply,
    Arrived,
    ClientEffect,
    ClientEvent,
    Close,
    Do,
    HistoryLost,
    Listen,
    LoggedIn,
    Lost,
    Noted,
    Opened,
    PageRead,
    Pump,
    Received,
    RelayEffect,
    RelayEvent,
    Send,
    Sign,
    Signed,
    Submit,
    TermChanged,
    Ticked,
)
from sealwire_protocol.faults import term_changed
from sealwire_protocol.ids import NO_TERM, START, DeviceKey, KeyId, Position, StreamId, Term, TermStart, VaultId
from sealwire_protocol.limits import Limits
from sealwire_protocol.messages import (
    Acked,
    Appended,
    Deliver,
    Group,
    Message,
    Push,
    Pushed,
    StreamKind,
    StreamState,
    Subscribe,
    Subscribed,
    Wanted,
)
from sealwire_protocol.relay_session import RelaySession, RelayState
from sealwire_protocol.segment import finished, read_segment, surveying

ORIGIN = "wss://relay.example.org"
KEY_ID = KeyId(b"kkkk")
VAULT = VaultId(b"V" * 16)

Name = tuple[VaultId, StreamId]


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Ed25519, as drivers pass it in."""
    try:
        VerifyKey(key).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


@dataclass
class Log:
    """One stream: its segments in order, and in which terms it was written."""

    segments: list[tuple[int, int, bytes]] = field(default_factory=list)
    terms: list[TermStart] = field(default_factory=list)
    head: int = 0
    cleaned_to: int = 0

    def term(self) -> Term:
        return self.terms[-1].term if self.terms else NO_TERM


class Store:
    """What a relay keeps: streams, the present term, outcomes. Connections listen to what is committed."""

    def __init__(self) -> None:
        self.term = Term(1, b"\1" * 8)
        self.logs: dict[Name, Log] = {}
        self.outcomes: dict[int, Pushed] = {}
        self.connections: list[ConnectionPair] = []

    def deliver(self, name: Name, prev: int, last: int, body: bytes) -> bytes:
        log = self.logs[name]
        return codec.encode(Deliver(*name, log.term(), 0, 0, 0, log.cleaned_to, prev, last, body))

    def append(self, name: Name, body: bytes) -> Appended:
        """Commit a segment, then offer it to whoever listens."""
        log = self.logs.setdefault(name, Log())
        if log.term() != self.term:
            log.terms.append(TermStart(self.term, log.head))
        records = finished(surveying(body)).records
        prev, log.head = log.head, log.head + records
        log.segments.append((prev, log.head, body))
        frame = self.deliver(name, prev, log.head, body)
        for connection in list(self.connections):
            connection.offer(name, prev, log.head, frame)
        return Appended(name[1], self.term, prev + 1, records)

    def push(self, push: Push) -> Pushed:
        """The verdict on a batch, the same again when it is repeated."""
        if push.batch not in self.outcomes:
            appended = tuple(self.append((push.vault, group.stream), group.records) for group in push.groups)
            self.outcomes[push.batch] = Pushed(push.vault, push.batch, Outcome.DONE, appended, ())
        return self.outcomes[push.batch]

    def state(self, vault: VaultId, stream: StreamId) -> StreamState:
        log = self.logs.get((vault, stream))
        if log is None:
            return StreamState(stream, StreamKind.ABSENT, 0, 0, 0, 0, 0, 0, ())
        return StreamState(stream, StreamKind.OPEN, log.head, log.head, 0, 0, 0, log.cleaned_to, tuple(log.terms))

    def new_term(self) -> None:
        """Begin another term, and say so on every connection."""
        self.term = Term(self.term.number + 1, bytes([self.term.number + 1]) * 8)
        for connection in list(self.connections):
            if connection.relay.state is RelayState.READY:
                connection.tell_relay(TermChanged(self.term))

    def restore(self, name: Name, head: int) -> None:
        """What a dump restored does: the tail of a stream is gone, and a new term begins."""
        log = self.logs[name]
        log.segments = [segment for segment in log.segments if segment[1] <= head]
        log.head = log.segments[-1][1] if log.segments else 0
        self.new_term()

    def subscribed(self, message: Subscribe) -> Subscribed:
        states = tuple(self.state(message.vault, wanted.stream) for wanted in message.streams)
        last_batch = max(self.outcomes, default=0)
        return Subscribed(message.vault, self.term, 1, KEY_ID, last_batch, states)


class Replica:
    """What a device keeps: where it stands in each stream, what it holds, what it has to send."""

    def __init__(self, seed: int, streams: Iterable[StreamId], outbox: Iterable[Push] = ()) -> None:
        self.key = SigningKey(bytes([seed]) * 32)
        self.device = DeviceKey(bytes(self.key.verify_key))
        self.positions = dict.fromkeys(streams, START)
        self.served = dict.fromkeys(self.positions, START)
        self.tags: dict[StreamId, list[tuple[int, bytes]]] = {stream: [] for stream in self.positions}
        self.outbox = list(outbox)
        self.verdicts: dict[int, Pushed] = {}
        self.lost: list[HistoryLost] = []

    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(Wanted(stream, at, self.served[stream]) for stream, at in self.positions.items())

    def apply(self, deliver: Deliver) -> Position:
        """One transaction: records that are not held yet, and the cursor."""
        cursor = self.positions[deliver.stream].seq
        for seq, record in read_segment(deliver.segment, deliver.prev):
            if seq > cursor:
                self.tags[deliver.stream].append((seq, record.tag))
        position = Position(deliver.term, deliver.last)
        self.positions[deliver.stream] = position
        self.served[deliver.stream] = Position(deliver.term, deliver.cleaned_to)
        return position


class ConnectionPair:
    """One connection: bytes on their way in both directions, and a driver at each end that carries effects out.

    `budget` is the number of bytes that still pass; a message of which not all bytes pass never arrives.
    """

    def __init__(self, store: Store, replica: Replica, budget: int | None = None, limits: Limits | None = None) -> None:
        self.store, self.replica, self.budget, self.now = store, replica, budget, 100.0
        self.client = ClientSession(replica.device, ORIGIN, b"c" * 32)
        self.relay = RelaySession(frozenset({ORIGIN}), b"r" * 32, verify, limits)
        self.to_relay: deque[bytes] = deque()
        self.to_device: deque[bytes] = deque()
        self.passed = 0
        self.pumping = False
        self.hold_applies = False
        self.held: deque[Apply] = deque()
        self.closes: list[Close] = []
        self.noted: list[Acked] = []
        self.arrived: list[Message] = []
        store.connections.append(self)
        self.tell_relay(Opened(self.now))
        self.tell_client(Opened(self.now))

    # --- the link

    @property
    def open(self) -> bool:
        return self.client.state is not ClientState.CLOSED and self.relay.state is not RelayState.CLOSED

    def run(self, step: Callable[[], None] | None = None) -> bool:
        """Carry messages until nothing moves or the link is cut. True: it is still open."""
        while self.open and (self.to_relay or self.to_device or self.pumping):
            if self.pumping:
                self._serve()
            for queue, tell in ((self.to_relay, self.tell_relay), (self.to_device, self.tell_client)):
                if queue and self.open:
                    self._carry(queue, tell)
            if step is not None:
                step()
        if not self.open:
            self.cut()
        return self.open

    def _carry(self, queue: deque[bytes], tell: Callable[[Received], None]) -> None:
        data = queue.popleft()
        if self.budget is not None:
            self.budget -= len(data)
            if self.budget < 0:
                self.cut()
                return
        self.passed += len(data)
        tell(Received(data, self.now))

    def cut(self) -> None:
        """The link breaks: what is on its way never arrives."""
        self.to_relay.clear()
        self.to_device.clear()
        self.client.handle(Lost())
        self.relay.handle(Lost())
        if self in self.store.connections:
            self.store.connections.remove(self)

    def tick(self, seconds: float) -> None:
        """Time passes on both sides."""
        self.now += seconds
        if self.open:
            self.tell_relay(Ticked(self.now))
            self.tell_client(Ticked(self.now))

    # --- the device's driver

    def tell_client(self, event: ClientEvent) -> None:
        for effect in self.client.handle(event):
            self._carry_out_client(effect)

    def _carry_out_client(self, effect: ClientEffect) -> None:
        match effect:
            case Send(data):
                self.to_relay.append(data)
            case Sign(payload):
                self.tell_client(Signed(self.replica.key.sign(payload).signature))
            case Apply():
                self.held.append(effect)
                if not self.hold_applies:
                    self.apply_held()
            case HistoryLost():
                self.replica.lost.append(effect)
            case Close():
                self.closes.append(effect)
            case Arrived(message):
                self.arrived.append(message)
                self._arrived(message)

    def apply_held(self) -> None:
        """Apply durably what was delivered and not applied yet."""
        while self.held:
            deliver, size = (effect := self.held.popleft()).deliver, effect.frame_bytes
            position = self.replica.apply(deliver)
            self.tell_client(Applied(deliver.vault, deliver.stream, position, size, self.now))

    def _arrived(self, message: Message) -> None:
        if isinstance(message, Pushed):
            self.replica.verdicts[message.batch] = message
            self.replica.outbox = [push for push in self.replica.outbox if push.batch != message.batch]
        elif isinstance(message, Subscribed):
            self.send_outbox()
        elif type(message).__name__ == "Welcome":
            self.tell_client(Listen(VAULT, self.replica.wanted()))

    def send_outbox(self) -> None:
        """Push what is in the outbox and not on its way, as far as the window allows."""
        term = self.client.term_of(VAULT)
        for push in self.replica.outbox:
            if term is not None and self.client.may_push(VAULT) and push.batch not in self.client.outstanding(VAULT):
                self.tell_client(Submit(Push(push.vault, term, push.batch, push.flags, push.groups)))

    # --- the relay's driver

    def tell_relay(self, event: RelayEvent) -> None:
        for effect in self.relay.handle(event):
            self._carry_out_relay(effect)

    def _carry_out_relay(self, effect: RelayEffect) -> None:
        match effect:
            case Send(data):
                self.to_device.append(data)
            case Do(Subscribe() as message):
                self.tell_relay(Answer(self.store.subscribed(message)))
            case Do(Push() as message):
                if message.term == self.store.term:
                    self.tell_relay(Answer(self.store.push(message)))
                else:
                    self.tell_relay(term_changed(message.vault, message.batch))
            case Pump():
                self.pumping = True
            case Noted(positions):
                self.noted.extend(positions)
            case Close():
                self.closes.append(effect)
            case LoggedIn(device):
                assert device == self.replica.device

    def offer(self, name: Name, prev: int, last: int, frame: bytes) -> None:
        """A frame was committed: send it to a live listener, else pump."""
        listener = self.relay.listeners.get(name)
        if listener is None:
            return
        if listener.offer(prev, last, len(frame)):
            self.to_device.append(frame)
        else:
            self.pumping = True

    def _serve(self) -> None:
        listener = self.relay.lagging()
        self.pumping = False
        if listener is None:
            return
        name = listener.name
        log = self.store.logs.get(name, Log())
        rows = [row for row in log.segments if row[1] > listener.cursor][:4]
        frames = tuple((last, self.store.deliver(name, prev, last, body)) for prev, last, body in rows)
        self.tell_relay(PageRead(*name, frames, log.head))


def batch(number: int, stream: StreamId, records: bytes) -> Push:
    """A push of one group, as it waits in an outbox; its term is filled in when it is sent."""
    return Push(VAULT, NO_TERM, number, 0, (Group(stream, b"", records),))
