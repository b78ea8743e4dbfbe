"""Small records, links and sessions for the protocol's tests. Everything is made from counters: nothing is random."""

from nacl.signing import SigningKey

from sealwire_protocol.client_session import ClientSession, ClientState
from sealwire_protocol.codec import encode
from sealwire_protocol.events import Beside, Listen, Opened, Received, Send, Sign, Signed
from sealwire_protocol.ids import START, Author, DeviceKey, KeyId, Position, StreamId, Tag, Term, TermStart, VaultId
from sealwire_protocol.limits import VERSION_MAX, Limits
from sealwire_protocol.links import (
    FIRST_AUTHOR,
    LINK_CONTEXT,
    AddDevice,
    End,
    Genesis,
    Leave,
    LinkType,
    Move,
    NewEpoch,
    ReplaceDevice,
    Role,
    encode_unsigned,
    proved_by,
)
from sealwire_protocol.login import login_payload
from sealwire_protocol.messages import Challenge, Hello, Prove, StreamKind, StreamState, Subscribed, Wanted, Welcome
from sealwire_protocol.relay_session import RelaySession, RelayState
from sealwire_protocol.segment import Record, encode_segment
from tests.support.link import ORIGIN, VAULT, verify

STREAM = StreamId(b"streamA!")
OTHER = StreamId(b"streamB!")
T1, T2 = Term(1, b"\1" * 8), Term(2, b"\2" * 8)
SIGNER = SigningKey(b"\7" * 32)
DEVICE = DeviceKey(bytes(SIGNER.verify_key))
RELAY_NONCE = b"r" * 32


def record(number: int, units: int = 2, version: int | None = None) -> Record:
    """A compact record, all of whose fields come from `number`."""
    tag = Tag(number.to_bytes(16, "big"))
    return Record(tag, version or number, Author(1), 1, KeyId(b"kkkk"), 0, bytes(8), bytes(units * 16 + 16))


def records(first: int, count: int, units: int = 2) -> bytes:
    """A fresh segment of `count` records."""
    return encode_segment(record(number, units) for number in range(first, first + count))


def signer(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


def key_of(key: SigningKey) -> DeviceKey:
    return DeviceKey(bytes(key.verify_key))


def genesis(key: SigningKey, epoch: int = 1) -> bytes:
    """A vault's first link."""
    body = Genesis(key_of(key), b"x" * 32, b"n" * 16, epoch, b"c" * 32, b"t" * 32, b"keys", b"name")
    unsigned = encode_unsigned(LinkType.GENESIS, 1, VaultId(bytes(16)), bytes(32), FIRST_AUTHOR, body)
    return unsigned + key.sign(LINK_CONTEXT + unsigned).signature


def add_device(
    key: SigningKey, signed_by: Author, vault: VaultId, seq: int, previous: bytes, device: DeviceKey, role: Role
) -> bytes:
    """A link that adds a device, signed with `key`."""
    body = AddDevice(device, b"y" * 32, role, b"keys", b"name")
    unsigned = encode_unsigned(LinkType.ADD_DEVICE, seq, vault, previous, signed_by, body)
    return unsigned + key.sign(LINK_CONTEXT + unsigned).signature


def replace_device(
    key: SigningKey, signed_by: Author, vault: VaultId, seq: int, previous: bytes, new: SigningKey
) -> bytes:
    """A link by which a device takes another key, signed with both."""
    proof = new.sign(proved_by(vault, previous, signed_by, key_of(new), b"z" * 32)).signature
    body = ReplaceDevice(key_of(new), b"z" * 32, proof, b"keys", b"name")
    unsigned = encode_unsigned(LinkType.REPLACE_DEVICE, seq, vault, previous, signed_by, body)
    return unsigned + key.sign(LINK_CONTEXT + unsigned).signature


def new_epoch(
    key: SigningKey,
    signed_by: Author,
    vault: VaultId,
    seq: int,
    previous: bytes,
    shares: int,
    removed: tuple[int, ...] = (),
    epoch: int = 2,
) -> bytes:
    """A link that begins an epoch, with so many shares."""
    lineages = tuple(map(Author, removed))
    body = NewEpoch(lineages, epoch, bytes([epoch]) * 32, b"e" * 32, b"wrapped", bytes(32 * shares))
    unsigned = encode_unsigned(LinkType.NEW_EPOCH, seq, vault, previous, signed_by, body)
    return unsigned + key.sign(LINK_CONTEXT + unsigned).signature


def leave(key: SigningKey, signed_by: Author, vault: VaultId, seq: int, previous: bytes) -> bytes:
    """A link by which its signer leaves."""
    unsigned = encode_unsigned(LinkType.LEAVE, seq, vault, previous, signed_by, Leave())
    return unsigned + key.sign(LINK_CONTEXT + unsigned).signature


def end(key: SigningKey, signed_by: Author, vault: VaultId, seq: int, previous: bytes) -> bytes:
    """A link that deletes the vault."""
    unsigned = encode_unsigned(LinkType.END, seq, vault, previous, signed_by, End())
    return unsigned + key.sign(LINK_CONTEXT + unsigned).signature


def move(key: SigningKey, signed_by: Author, vault: VaultId, seq: int, previous: bytes, origin: str) -> bytes:
    """A link that moves a vault to another relay."""
    unsigned = encode_unsigned(LinkType.MOVE, seq, vault, previous, signed_by, Move(origin))
    return unsigned + key.sign(LINK_CONTEXT + unsigned).signature


def stream_state(
    stream: StreamId = STREAM, head: int = 0, terms: tuple[TermStart, ...] = (), floor: int = 0
) -> StreamState:
    return StreamState(stream, StreamKind.OPEN, head, head, floor, 0, 0, 0, terms)


def subscribed(*states: StreamState, term: Term = T1) -> Subscribed:
    return Subscribed(VAULT, term, 1, KeyId(b"kkkk"), 0, states)


def wanted(stream: StreamId = STREAM, cursor: Position = START, served: Position = START) -> Wanted:
    return Wanted(stream, cursor, served)


def client_in(
    state: ClientState, now: float = 0.0, limits: Limits | None = None, version: int = VERSION_MAX
) -> ClientSession:
    """A device's session that has come as far as `state`."""
    session = ClientSession(DEVICE, ORIGIN, b"c" * 32)
    if state is ClientState.IDLE:
        return session
    session.handle(Opened(now))
    if state is ClientState.GREETED:
        return session
    if state is ClientState.CLOSED:
        session.handle(Received(b"", now))
        return session
    session.handle(Received(encode(Challenge(version, RELAY_NONCE)), now))
    if state is ClientState.SIGNING:
        return session
    session.handle(Signed(bytes(64)))
    if state is ClientState.PROVED:
        return session
    session.handle(Received(encode(Welcome(*(limits or Limits()))), now))
    assert session.state is ClientState.READY
    return session


def listening(*states: StreamState, cursor: Position = START, beside: Beside | None = None) -> ClientSession:
    """A ready session that is subscribed to these streams under T1."""
    session = client_in(ClientState.READY)
    known = (beside,) * len(states) if beside else ()
    session.handle(Listen(VAULT, tuple(wanted(state.stream, cursor) for state in states), known))
    session.handle(Received(encode(subscribed(*states)), 0.0))
    return session


def proof(session: ClientSession, challenge: Challenge) -> bytes:
    """What a device answers to a challenge, signed."""
    [effect] = session.handle(Received(encode(challenge), 0.0))
    assert isinstance(effect, Sign)
    [sent] = session.handle(Signed(SIGNER.sign(effect.payload).signature))
    assert isinstance(sent, Send)
    return sent.data


def relay_in(
    state: RelayState, now: float = 0.0, granted: Limits | None = None, version: int = VERSION_MAX
) -> RelaySession:
    """A relay's session that has come as far as `state`."""
    session = RelaySession(frozenset({ORIGIN}), RELAY_NONCE, verify, granted)
    if state is RelayState.IDLE:
        return session
    session.handle(Opened(now))
    if state is RelayState.AWAITING_HELLO:
        return session
    if state is RelayState.CLOSED:
        session.handle(Received(b"", now))
        return session
    hello = Hello(1, version, DEVICE, b"c" * 32, "")
    session.handle(Received(encode(hello), now))
    if state is RelayState.AWAITING_PROOF:
        return session
    payload = login_payload((1, version, version), ORIGIN, DEVICE, hello.nonce, RELAY_NONCE)
    session.handle(Received(prove(ORIGIN, SIGNER.sign(payload).signature), now))
    assert session.state is RelayState.READY
    return session


def prove(origin: str, signature: bytes) -> bytes:
    return encode(Prove(origin, signature))
