"""A device for tests of the relay: real sockets, `ClientSession`, PyNaCl, made-up ciphertext. It can misbehave.

Everything that comes in is kept in order in `log`; a test waits for what it expects with `until`. Nothing is
acknowledged and nothing subscribed again behind a test's back unless it says `applies=True`.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Iterable
from typing import Self, TypeVar

from nacl.signing import SigningKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sealwire_protocol import codec
from sealwire_protocol.client_session import ClientSession
from sealwire_protocol.conditions import Condition, Names, encode_condition
from sealwire_protocol.events import (
    Applied,
    Apply,
    Arrived,
    ClientEffect,
    ClientEvent,
    Close,
    HistoryLost,
    Listen,
    Lost,
    Opened,
    Received,
    Send,
    Sign,
    Signed,
)
from sealwire_protocol.ids import (
    MEMBERSHIP,
    NONCE_BYTES,
    START,
    Author,
    DeviceKey,
    KeyId,
    Position,
    StreamId,
    Tag,
    Term,
    VaultId,
)
from sealwire_protocol.lines import encode_held
from sealwire_protocol.links import (
    LINK_CONTEXT,
    SHARE_BYTES,
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
    link_hash,
    proved_by,
    vault_id_of,
)
from sealwire_protocol.login import login_payload
from sealwire_protocol.messages import (
    AppendLink,
    Challenge,
    CreateStream,
    CreateVault,
    Deliver,
    Done,
    Fault,
    Group,
    Hello,
    Message,
    Prove,
    Push,
    Pushed,
    Ranges,
    Records,
    StreamKind,
    Subscribe,
    Subscribed,
    Wanted,
    Welcome,
)
from sealwire_protocol.segment import MAC_BYTES, SALT_BYTES, TOMBSTONE, Record, encode_segment, read_segment

WAIT_SECONDS = 60.0
"""Only a test that fails waits so long."""

COMMITMENT = bytes(range(32))
KEY_ID = KeyId(COMMITMENT[:4])

M = TypeVar("M", bound=Message)

Answered = Done | Fault | Ranges | Records
"""What a request is answered by."""


class Identity:
    """A device's key pair, from a number: the same number is the same device."""

    def __init__(self, number: int) -> None:
        self.signer = SigningKey(number.to_bytes(32, "big"))
        self.key = DeviceKey(bytes(self.signer.verify_key))

    def sign(self, payload: bytes) -> bytes:
        """An Ed25519 signature."""
        return self.signer.sign(payload).signature


def genesis(identity: Identity, nonce: int = 0) -> bytes:
    """The link that founds a vault."""
    body = Genesis(identity.key, bytes(32), nonce.to_bytes(16, "big"), 1, COMMITMENT, bytes(32), b"keys", b"name")
    unsigned = encode_unsigned(LinkType.GENESIS, 1, VaultId(bytes(16)), bytes(32), Author(1), body)
    return unsigned + identity.sign(LINK_CONTEXT + unsigned)


def add_link(admin: Identity, log: list[bytes], added: Identity, role: Role = Role.WRITER) -> bytes:
    """The link, signed by author 1, that adds a device to the vault of `log`."""
    body = AddDevice(added.key, bytes(32), role, b"keys", b"name")
    vault, previous = vault_id_of(log[0]), link_hash(log[-1])
    unsigned = encode_unsigned(LinkType.ADD_DEVICE, len(log) + 1, vault, previous, Author(1), body)
    return unsigned + admin.sign(LINK_CONTEXT + unsigned)


def replace_link(old: Identity, author: int, log: list[bytes], new: Identity) -> bytes:
    """The link by which the device that is `author` in the vault of `log` takes another key."""
    vault, previous = vault_id_of(log[0]), link_hash(log[-1])
    proof = new.sign(proved_by(vault, previous, Author(author), new.key, bytes(32)))
    body = ReplaceDevice(new.key, bytes(32), proof, b"keys", b"name")
    unsigned = encode_unsigned(LinkType.REPLACE_DEVICE, len(log) + 1, vault, previous, Author(author), body)
    return unsigned + old.sign(LINK_CONTEXT + unsigned)


def key_id_of(epoch: int) -> KeyId:
    """The key id of an epoch that a test begins, or of a vault's first one."""
    return KEY_ID if epoch == 1 else KeyId(epoch.to_bytes(4, "little"))


def epoch_link(admin: Identity, log: list[bytes], epoch: int, members: int, *removed: int, author: int = 1) -> bytes:
    """The link by which an admin begins an epoch, with shares for so many members."""
    commitment, shares = key_id_of(epoch).ljust(32, b"\xcc"), bytes(SHARE_BYTES * members)
    vault, previous = vault_id_of(log[0]), link_hash(log[-1])
    body = NewEpoch(tuple(Author(one) for one in removed), epoch, commitment, bytes(32), b"wrapped", shares)
    unsigned = encode_unsigned(LinkType.NEW_EPOCH, len(log) + 1, vault, previous, Author(author), body)
    return unsigned + admin.sign(LINK_CONTEXT + unsigned)


def leave_link(device: Identity, author: int, log: list[bytes]) -> bytes:
    """The link by which a device, which is this author, leaves the vault of `log`."""
    return _parting_link(LinkType.LEAVE, device, author, log, Leave())


def end_link(admin: Identity, log: list[bytes], author: int = 1) -> bytes:
    """The link by which an admin deletes the vault of `log`."""
    return _parting_link(LinkType.END, admin, author, log, End())


def move_link(admin: Identity, log: list[bytes], origin: str, author: int = 1) -> bytes:
    """The link by which an admin moves the vault of `log` to another relay."""
    return _parting_link(LinkType.MOVE, admin, author, log, Move(origin))


def _parting_link(kind: LinkType, device: Identity, author: int, log: list[bytes], body: Leave | End | Move) -> bytes:
    vault, previous = vault_id_of(log[0]), link_hash(log[-1])
    unsigned = encode_unsigned(kind, len(log) + 1, vault, previous, Author(author), body)
    return unsigned + device.sign(LINK_CONTEXT + unsigned)


_salts = itertools.count(1)


def record(version: int = 1, author: int = 1, units: int = 1, tag: int = 0, **changes: object) -> Record:
    """A record as the relay sees one: its body is noise."""
    salt = next(_salts).to_bytes(SALT_BYTES, "big")
    body = os.urandom(units * 16 + MAC_BYTES)
    made = Record(Tag(tag.to_bytes(16, "big")), version, Author(author), 1, KEY_ID, 0, salt, body)
    return made._replace(**changes)  # type: ignore[arg-type]


def stream_id(number: int) -> StreamId:
    """A stream's name."""
    return StreamId(number.to_bytes(8, "big"))


def group(stream: StreamId, *records: Record) -> Group:
    """One stream's part of a push."""
    return Group(stream, b"", encode_segment(records))


def replaces(current: Record) -> Condition:
    """The condition of a write that replaces this record."""
    return Condition(Names.TOMBSTONE if current.flags & TOMBSTONE else Names.ENTRY, current.version, current.salt)


def guarded(stream: StreamId, *writes: tuple[Condition, Record]) -> Group:
    """One guarded stream's part of a push: each record with its condition."""
    conditions = b"".join(encode_condition(condition) for condition, _ in writes)
    return Group(stream, conditions, encode_segment(record for _, record in writes))


def returned(stream: StreamId, *lost: tuple[Position, Record], compared: Position = START) -> Group:
    """One stream's part of a refill: each record with the position at which it was held."""
    held = encode_held([position for position, _ in lost], {}, compared)
    return Group(stream, held, encode_segment(record for _, record in lost))


class Device:
    """One connection. Made by `Device.open`, which also logs in; use as an async context manager."""

    def __init__(self, port: int, identity: Identity, *, applies: bool = True) -> None:
        self.identity, self.port, self.applies = identity, port, applies
        self.origin = f"ws://127.0.0.1:{port}"
        self.session = ClientSession(identity.key, self.origin, os.urandom(NONCE_BYTES), "test")
        self.log: list[Message] = []
        self.delivered: list[Deliver] = []
        self.effects: list[ClientEffect] = []
        self.close_code: int | None = None
        self.close_reason = ""
        self.bytes_delivered = 0
        self._requests = itertools.count(1)
        self._changed = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, port: int, identity: Identity, *, applies: bool = True) -> "Device":
        """Connect and log in."""
        device = cls(port, identity, applies=applies)
        await device.connect()
        await device.login()
        return device

    async def connect(self) -> None:
        """Open the WebSocket and read from it; no word is said."""
        self._socket = await connect(self.origin, compression=None, max_size=None, ping_interval=None)
        self._reader = asyncio.create_task(self._read(self._socket))

    async def login(self) -> None:
        """Say HELLO, and wait for WELCOME."""
        await self.handle(Opened(self._now()))
        await self.until(Welcome)

    async def prove(self, *, sign: Identity | None = None, origin: str | None = None) -> None:
        """Log in by hand, with another signature or origin than the honest ones."""
        nonce = os.urandom(NONCE_BYTES)
        await self.send(Hello(1, 1, self.identity.key, nonce, "test"))
        challenge = await self.until(Challenge)
        named = origin or self.origin
        payload = login_payload((1, 1, 1), named, self.identity.key, nonce, challenge.nonce)
        await self.send(Prove(named, (sign or self.identity).sign(payload)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await self._reader

    # --- sending

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def send(self, *messages: Message) -> None:
        """Send these as they are, past the session."""
        for message in messages:
            await self.send_bytes(codec.encode(message))

    async def send_bytes(self, data: bytes) -> None:
        """One binary message, whatever is in it."""
        assert self._socket is not None
        await self._socket.send(data)

    async def handle(self, event: ClientEvent) -> None:
        """Give the session an event and carry out what it says."""
        for effect in self.session.handle(event):
            self.effects.append(effect)
            if isinstance(effect, Send):
                try:
                    await self.send_bytes(effect.data)
                except ConnectionClosed:
                    pass  # the reader tells the session
            elif isinstance(effect, Sign):
                await self.handle(Signed(self.identity.sign(effect.payload)))
            elif isinstance(effect, Apply):
                self._take(effect)
                if self.applies:
                    await self.applied(effect)
        self._changed.set()

    def _take(self, effect: Apply) -> None:
        self.delivered.append(effect.deliver)

    async def applied(self, effect: Apply) -> None:
        """Tell the session that a delivery is durable here."""
        deliver = effect.deliver
        position = Position(deliver.term, deliver.last)
        await self.handle(Applied(deliver.vault, deliver.stream, position, effect.frame_bytes, self._now()))

    # --- receiving

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for data in socket:
                assert isinstance(data, bytes)
                message = codec.decode(data)
                if message is not None:
                    self.log.append(message)
                if isinstance(message, Deliver):
                    self.bytes_delivered += len(data)
                if self.session.state.name != "IDLE":
                    await self.handle(Received(data, self._now()))
                self._changed.set()
        except ConnectionClosed:
            pass
        self.close_code, self.close_reason = socket.close_code, socket.close_reason or ""
        self.session.handle(Lost())
        self._changed.set()

    async def when(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of this device; fails if it does not within WAIT_SECONDS."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise AssertionError(
                f"waited in vain; closed: {self.close_code} {self.close_reason!r}; {self.log}"
            ) from error

    async def until(self, kind: type[M], suits: Callable[[M], bool] = lambda _: True) -> M:
        """The first message of this kind that suits; it is taken out of the log."""
        found: list[M] = []

        def look() -> bool:
            for place, message in enumerate(self.log):
                if isinstance(message, kind) and suits(message):
                    found.append(message)
                    del self.log[place]
                    return True
            assert self.close_code is None, f"closed: {self.close_code} {self.close_reason!r}; {self.log}"
            return False

        await self.when(look)
        return found[0]

    async def closed(self) -> int:
        """Wait until the connection has ended; its close code (1006: without one)."""
        await self.when(lambda: self.close_code is not None)
        assert self.close_code is not None
        return self.close_code

    async def ask(self, make: Callable[[int], Message]) -> Answered:
        """Make a request and wait for its answer."""
        number = next(self._requests)
        await self.send(make(number))
        found: list[Answered] = []

        def look() -> bool:
            found.extend(m for m in self.log if isinstance(m, Answered) and m.request == number)
            return bool(found)

        await self.when(look)
        self.log.remove(found[0])
        return found[0]

    async def request(self, make: Callable[[int], Message]) -> Done | Fault:
        """Make a request that asks for nothing in return, and wait until it is done."""
        answer = await self.ask(make)
        assert isinstance(answer, Done | Fault), answer
        return answer

    # --- what devices do

    async def create_vault(self, nonce: int = 0) -> tuple[VaultId, list[bytes]]:
        """Found a vault; its id and its log."""
        link = genesis(self.identity, nonce)
        answer = await self.request(lambda number: CreateVault(number, link))
        assert isinstance(answer, Done), answer
        return vault_id_of(link), [link]

    async def create_stream(self, vault: VaultId, stream: StreamId, kind: StreamKind = StreamKind.OPEN) -> None:
        """A stream, open unless another kind is given."""
        answer = await self.request(lambda number: CreateStream(number, vault, stream, kind))
        assert isinstance(answer, Done), answer

    async def add(self, log: list[bytes], other: Identity, role: Role = Role.WRITER) -> Author:
        """Add a member; its author index."""
        link = add_link(self.identity, log, other, role)
        answer = await self.request(lambda number: AppendLink(number, vault_id_of(log[0]), link))
        assert isinstance(answer, Done), answer
        log.append(link)
        return Author(len(log))

    async def replace(self, log: list[bytes], author: int, new: Identity) -> Author:
        """Take another key; its author index."""
        link = replace_link(self.identity, author, log, new)
        answer = await self.request(lambda number: AppendLink(number, vault_id_of(log[0]), link))
        assert isinstance(answer, Done), answer
        log.append(link)
        return Author(len(log))

    async def subscribe(self, vault: VaultId, *streams: StreamId, cursor: Position = START) -> Subscribed:
        """Listen to streams from a position, through the session."""
        await self.handle(Listen(vault, tuple(Wanted(stream, cursor, START) for stream in streams)))
        return await self.until(Subscribed, lambda told: told.vault == vault)

    async def subscribe_raw(self, vault: VaultId, *streams: StreamId, cursor: Position = START) -> None:
        """Listen to streams past the session; the answer is not waited for."""
        await self.send(Subscribe(vault, tuple(Wanted(stream, cursor, START) for stream in streams)))

    def term(self, vault: VaultId) -> Term:
        """The term told by the last SUBSCRIBED."""
        term = self.session.term_of(vault)
        assert term is not None
        return term

    async def push(self, vault: VaultId, batch: int, *groups: Group, flags: int = 0) -> Pushed:
        """Push a batch, as soon as the vault is subscribed, and wait for its verdict."""
        await self.when(lambda: self.session.term_of(vault) is not None)
        await self.send(Push(vault, self.term(vault), batch, flags, groups))
        return await self.verdict(vault, batch)

    async def verdict(self, vault: VaultId, batch: int) -> Pushed:
        """Wait for the verdict on a batch."""
        return await self.until(Pushed, lambda told: (told.vault, told.batch) == (vault, batch))

    def seqs(self, stream: StreamId) -> list[int]:
        """The seqs of all records applied in a stream, in the order in which they came."""
        return [
            placed.seq
            for deliver in self.delivered
            if deliver.stream == stream and stream != MEMBERSHIP
            for placed in read_segment(deliver.segment, deliver.prev)
        ]

    def records(self, stream: StreamId) -> list[Record]:
        """The records applied in a stream, in order."""
        return [
            placed.record
            for deliver in self.delivered
            if deliver.stream == stream
            for placed in read_segment(deliver.segment, deliver.prev)
        ]

    async def has(self, stream: StreamId, records: int) -> None:
        """Wait until so many records of the stream are applied."""
        await self.when(lambda: len(self.seqs(stream)) >= records)


def closes(effects: Iterable[ClientEffect]) -> list[Close | HistoryLost]:
    """What ended a session or a stream."""
    return [effect for effect in effects if isinstance(effect, Close | HistoryLost)]


def arrived(effects: Iterable[ClientEffect], kind: type[M]) -> list[M]:
    """Messages of a kind that the session handed up."""
    return [e.message for e in effects if isinstance(e, Arrived) and isinstance(e.message, kind)]
