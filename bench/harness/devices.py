"""Many real devices: members of a vault, logged in with their signatures, subscribed; without what they would cost a
client. Sockets are then driven here, or handed to a receiver (bench.harness.load)."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, TypeVar

from bench.harness.load import Opened
from sealwire_protocol import codec
from sealwire_protocol.client_session import ClientSession
from sealwire_protocol.events import ClientEffect, Received, Send, Sign, Signed
from sealwire_protocol.events import Opened as TransportOpened
from sealwire_protocol.ids import MEMBERSHIP, NONCE_BYTES, START, Author, Position, StreamId, Term, VaultId
from sealwire_protocol.messages import (
    Fault,
    Message,
    Push,
    StreamKind,
    StreamState,
    Subscribe,
    Subscribed,
    Wanted,
    Welcome,
)
from sealwire_relay.frames import binary_frame
from tests.support.device import Device, Identity, group, record, stream_id

STREAM: Final = stream_id(1)

AT_ONCE: Final = 48
"""Logins under way: below what a relay takes from one address by default."""

READ_BYTES: Final = 65_536

HANDSHAKE: Final = (
    b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

M = TypeVar("M", bound=Message)
T = TypeVar("T")
R = TypeVar("R")


class Member(NamedTuple):
    """One device of a vault."""

    identity: Identity
    author: Author


@dataclass
class BenchVault:
    """A vault with an open stream, STREAM, in it. The first member is its admin."""

    id: VaultId
    log: list[bytes]
    members: list[Member]

    @property
    def admin(self) -> Member:
        """Who has made it."""
        return self.members[0]


async def found(port: int, first: int, members: int, stream: StreamId = STREAM, nonce: int = 0) -> BenchVault:
    """A vault of so many members, whose keys are made of the numbers from `first` on: the same numbers make the same
    devices, and with another nonce another vault of theirs."""
    identities = [Identity(number) for number in range(first, first + members)]
    async with await Device.open(port, identities[0]) as admin:
        vault, log = await admin.create_vault(nonce)
        await admin.create_stream(vault, stream, StreamKind.OPEN)
        joined = [Member(identities[0], Author(1))]
        for identity in identities[1:]:
            joined.append(Member(identity, await admin.add(log, identity)))
    return BenchVault(vault, log, joined)


class Wire:
    """One WebSocket, driven by the running event loop without a transport, so that its socket can be given away."""

    OPTIONS: ClassVar[tuple[tuple[int, int, int], ...]] = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
    """Of its socket, set before it connects."""

    def __init__(self, opened: socket.socket, rest: bytes = b"") -> None:
        self.socket = opened
        self._bytes = bytearray(rest)

    @classmethod
    async def open(cls, port: int, path: str = "/") -> "Wire":
        """Connect and shake hands. Raises ConnectionError if that is refused."""
        loop = asyncio.get_running_loop()
        made = socket.socket()
        made.setblocking(False)
        for option in cls.OPTIONS:
            made.setsockopt(*option)
        await loop.sock_connect(made, ("127.0.0.1", port))
        wire = cls(made)
        await loop.sock_sendall(made, HANDSHAKE % path.encode())
        while (end := wire._bytes.find(b"\r\n\r\n")) < 0:
            await wire._more()
        if b" 101 " not in wire._bytes[:end].splitlines()[0]:
            raise ConnectionError(bytes(wire._bytes[:200]).decode(errors="replace"))
        del wire._bytes[: end + 4]
        return wire

    async def send(self, frame: bytes) -> None:
        """Send an encoded frame."""
        await asyncio.get_running_loop().sock_sendall(self.socket, frame)

    async def receive(self) -> tuple[int, bytes]:
        """The next frame that is neither a ping nor a pong: its opcode and its payload. Raises ConnectionError at the
        end. Cancelled, it has lost nothing."""
        while True:
            opcode, payload = await self._frame()
            if opcode == 8:
                raise ConnectionError(f"the server closed the connection: {payload[2:].decode(errors='replace')}")
            if opcode == 9:
                await self.send(masked(payload, 0x8A))
            elif opcode != 10:
                return opcode, payload

    async def _frame(self) -> tuple[int, bytes]:
        held = self._bytes
        while True:
            if len(held) >= 2:
                size, head = held[1], 2
                if size >= 126:
                    head += 2 if size == 126 else 8
                    size = int.from_bytes(held[2:head], "big") if len(held) >= head else READ_BYTES
                if len(held) >= head + size:
                    found = held[0] & 15, bytes(held[head : head + size])
                    del held[: head + size]
                    return found
            await self._more()

    async def _more(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.socket, READ_BYTES)
        if not data:
            raise ConnectionError("the server hung up")
        self._bytes += data

    def hand_over(self) -> Opened:
        """The socket, and what was read from it and not looked at; nothing else may be done with this afterwards."""
        return Opened(self.socket, bytes(self._bytes))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class DeviceWire(Wire):
    """The connection of one device to a relay."""

    @classmethod
    async def login(cls, port: int, identity: Identity) -> "DeviceWire":
        """Connect and log in, by the session of a real device. Raises ConnectionError if it is refused."""
        wire = await cls.open(port)
        assert isinstance(wire, DeviceWire)
        session = ClientSession(identity.key, f"ws://127.0.0.1:{port}", os.urandom(NONCE_BYTES), "bench")

        async def carry_out(effects: Iterable[ClientEffect]) -> None:
            for effect in effects:
                if isinstance(effect, Send):
                    await wire.send(masked(effect.data))
                elif isinstance(effect, Sign):
                    await carry_out(session.handle(Signed(identity.sign(effect.payload))))

        await carry_out(session.handle(TransportOpened(0.0)))
        while True:
            _, data = await wire.receive()
            await carry_out(session.handle(Received(data, 0.0)))
            if isinstance(codec.decode(data), Welcome):
                return wire

    async def say(self, *messages: Message) -> None:
        """Send these."""
        await self.send(b"".join(masked(codec.encode(message)) for message in messages))

    async def expect(self, kind: type[M]) -> M:
        """The next message of a kind; others are passed over. Raises ConnectionError at a FAULT."""
        while True:
            _, data = await self.receive()
            message = codec.decode(data)
            if isinstance(message, kind):
                return message
            if isinstance(message, Fault):
                raise ConnectionError(str(message))

    async def subscribe(self, vault: VaultId, *wanted: Wanted) -> Subscribed:
        """Listen to these streams of a vault."""
        await self.say(Subscribe(vault, wanted))
        return await self.expect(Subscribed)


async def heads(port: int, vault: BenchVault, *streams: StreamId) -> dict[StreamId, Position]:
    """Where these streams end now."""
    wire = await DeviceWire.login(port, vault.admin.identity)
    told = await wire.subscribe(vault.id, *(Wanted(stream, START, START) for stream in streams))
    wire.close()
    return {state.stream: _end(state) for state in told.streams}


def _end(state: StreamState) -> Position:
    return Position(state.terms[-1].term, state.head) if state.terms else START


async def fleet(
    port: int, vault: BenchVault, members: Sequence[Member] | None = None, stream: StreamId = STREAM
) -> list[Opened]:
    """These members of a vault, or all of them, each logged in by its own key and subscribed to the membership log and
    to a stream from where they end now: live, as nothing is left to catch up with. A member may be named repeatedly."""
    ends = await heads(port, vault, MEMBERSHIP, stream)

    async def one(member: Member) -> Opened:
        wire = await DeviceWire.login(port, member.identity)
        await wire.subscribe(vault.id, *(Wanted(stream, ends[stream], START) for stream in ends))
        return wire.hand_over()

    return await at_once(one, vault.members if members is None else members)


async def at_once(work: Callable[[T], Awaitable[R]], given: Iterable[T], most: int = AT_ONCE) -> list[R]:
    """Do this with each, so many at once; results in order."""
    slots = asyncio.Semaphore(most)

    async def one(item: T) -> R:
        async with slots:
            return await work(item)

    return list(await asyncio.gather(*(one(item) for item in given)))


def masked(payload: bytes, opcode: int = 0x82) -> bytes:
    """A client's frame. Its mask is zero, which costs no time here; the server cannot tell."""
    frame = bytearray(binary_frame(payload))
    frame[0] = opcode
    frame[1] |= 0x80
    at = 2 + {126: 2, 127: 8}.get(frame[1] & 0x7F, 0)
    frame[at:at] = bytes(4)
    return bytes(frame)


def push_frame(
    vault: VaultId, term: Term, batch: int, author: Author, units: int, records: int = 1, stream: StreamId = STREAM
) -> bytes:
    """A push of so many records of `units` times 16 bytes of ciphertext, as a client's frame."""
    sealed = [record(author=author, units=units, tag=batch * records + place) for place in range(records)]
    return masked(codec.encode(Push(vault, term, batch, 0, (group(stream, *sealed),))))
