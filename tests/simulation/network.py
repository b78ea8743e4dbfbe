"""Connections between devices and relays: real WebSocket frames at the relay's end, delays, cuts and silence."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, Final

import trio

from sealwire_client.transport import Transport, TransportError
from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode, Outcome, may_come_back
from sealwire_protocol.messages import Deliver, Pushed
from tests.simulation import faults
from tests.simulation.agenda import GRAIN_SECONDS, Agenda
from tests.simulation.faults import Faults

if TYPE_CHECKING:
    from tests.simulation.relay import RelayProcess

DELAY_GRAINS_MAX: Final = 12
"""How long a message is on its way: up to a fifth of a second."""

SLOW_GRAINS_MAX: Final = 512
SILENCE_SECONDS: Final = 40.0
"""How long nobody notices that a connection is dead: two pings."""

_UPGRADE: Final = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_PONG: Final = b"\x8a\x80\0\0\0\0"
_BINARY, _CLOSE, _PING = 2, 8, 9

Arrives = Callable[[bytes], None]
Ended = Callable[[TransportError], None]


def _masked(payload: bytes) -> bytes:
    """A device's binary frame, under the mask that changes nothing."""
    size = len(payload)
    if size < 126:
        return bytes((0x82, 0x80 | size)) + b"\0\0\0\0" + payload
    if size < 65_536:
        return b"\x82\xfe" + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return b"\x82\xff" + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


class Lane:
    """Messages one way, in order, each some time after it was put. Ends when it is empty, or is cut at once."""

    def __init__(self, agenda: Agenda, grains: Callable[[], int], arrives: Arrives, ended: Ended) -> None:
        self._agenda, self._grains, self._arrives, self._ended = agenda, grains, arrives, ended
        self._items: deque[bytes] = deque()
        self._last = 0.0
        self._end: TransportError | None = None

    def put(self, data: bytes) -> None:
        """Send a message off; nothing happens after the end."""
        if self._end is None:
            self._items.append(data)
            self._last = max(self._last, self._agenda.current_time() + self._grains() * GRAIN_SECONDS)
            self._agenda.at(self._last, self._arrive)

    def end(self, why: TransportError, at_once: bool) -> None:
        """No more messages; `at_once`: what is on its way is lost."""
        first, self._end = self._end is None, self._end or why
        lost = at_once and bool(self._items)
        if at_once:
            self._items.clear()
        if lost or (first and not self._items):
            self._agenda.at(self._agenda.current_time(), self._tell)

    @property
    def carries(self) -> bool:
        """True while something is on its way."""
        return bool(self._items)

    def _arrive(self) -> None:
        if self._items:
            self._arrives(self._items.popleft())
            if self._end is not None and not self._items:
                self._tell()

    def _tell(self) -> None:
        assert self._end is not None
        self._ended(self._end)


class Wire:
    """One connection. To the device it is a `Transport`, to the relay an `asyncio.Transport`."""

    def __init__(self, place: str, relay: "RelayProcess", armed: Faults, random: Random, trace: "Trace") -> None:
        self.place, self.relay, self._faults, self._random, self._trace = place, relay, armed, random, trace
        self._agenda, self._process = relay.agenda, relay.loop
        self.to_relay = Lane(self._agenda, self._grains, self._at_relay, self._lost)
        self.to_device = Lane(self._agenda, self._grains, self._at_device, self._hung_up)
        self.protocol: Any = None
        self.slow = self.silent = self.gone = self.last_words = False
        self.on_send: Callable[[bytes], None] = lambda data: None
        self.on_receive: Callable[[bytes], None] = lambda data: None
        self._arrived: deque[bytes] = deque()
        self._why: TransportError | None = None
        self._moved = trio.Event()
        self._buffer = b""
        self._upgraded = self._relay_knows = False
        self._unread: deque[bytes] = deque()
        self._paused = False

    def _grains(self) -> int:
        return self._random.randrange(SLOW_GRAINS_MAX if self.slow else DELAY_GRAINS_MAX)

    def _carried(self) -> None:
        if self._faults.strikes(self.place, faults.CUT):
            self.cut()
        elif not self.silent and self._faults.strikes(self.place, faults.SILENCE):
            self.silent = True
            self._agenda.at(self._agenda.current_time() + SILENCE_SECONDS, self.cut)

    def cut(self) -> None:
        """The connection breaks, with all that is on its way; the device learns of it now, the relay too."""
        self.gone = True
        why = TransportError("the connection was cut")
        self.to_relay.end(why, at_once=not self.last_words)
        self.to_device.end(why, at_once=True)

    # --- the device's end

    async def send(self, data: bytes) -> None:
        """Send one message."""
        await trio.lowlevel.checkpoint()
        self.on_send(data)
        if not self.silent:
            self.to_relay.put(_masked(data))

    def leave(self, data: bytes) -> None:
        """The last message of a process that dies: the network carries it all the same."""
        self.last_words = not self.silent
        if self.last_words:
            self.to_relay.put(_masked(data))

    async def receive(self) -> bytes:
        """The next message."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._arrived:
            if self._why is not None:
                raise self._why
            self._moved = trio.Event()
            await self._moved.wait()
        data = self._arrived.popleft()
        self._trace.add("received", self.place, data)
        self.on_receive(data)
        return data

    def _at_device(self, data: bytes) -> None:
        self._carried()
        if not self.gone:
            self._arrived.append(data)
            self._moved.set()

    def _hung_up(self, why: TransportError) -> None:
        self._why = self._why or why
        self._moved.set()

    async def ping(self) -> None:
        """Nobody asks for a sign of life here."""

    async def close(self, code: CloseCode, reason: str) -> None:
        """Hang up."""
        gone = TransportError("the device has hung up")
        self.to_relay.end(gone, at_once=False)
        self.to_device.end(gone, at_once=True)

    # --- the relay's end

    def dialled(self) -> None:
        """The relay accepts the connection."""
        assert self._process.factory is not None
        self.protocol = self._process.factory()
        self._process.soon(self.protocol.connection_made, self)
        self._process.soon(self.protocol.data_received, _UPGRADE)

    def _at_relay(self, data: bytes) -> None:
        self._carried()
        self._trace.add("arrived", self.place, data)
        self._unread.append(data)
        self._process.soon(self._read)

    def _read(self) -> None:
        while self._unread and not self._paused:
            self.protocol.data_received(self._unread.popleft())

    def pause_reading(self) -> None:
        """What arrives waits."""
        self._paused = True

    def resume_reading(self) -> None:
        """The relay goes on with what has arrived."""
        self._paused = False
        self._process.soon(self._read)

    def _lost(self, why: TransportError) -> None:
        if not self._relay_knows:
            self._relay_knows = True
            self._process.soon(self.protocol.connection_lost, None)

    def get_extra_info(self, name: str) -> None:
        """There is no socket."""

    def get_write_buffer_size(self) -> int:
        """The network takes everything."""
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing waits, so there is nothing to limit."""

    def is_closing(self) -> bool:
        """True once it is cut."""
        return self.gone

    def write_eof(self) -> None:
        """The relay has nothing more to say."""
        self.to_device.end(TransportError("the relay has closed the connection"), at_once=False)

    def abort(self) -> None:
        """The relay cuts it."""
        self.cut()

    def write(self, data: bytes) -> None:
        """Bytes for the device: the handshake's answer, then frames."""
        if self.relay.dead:
            return
        self._buffer += data
        if not self._upgraded:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._upgraded, self._buffer = True, self._buffer[end + 4 :]
        while len(self._buffer) >= 2:
            size, at = self._buffer[1], 2
            if size >= 126:
                at = 4 if size == 126 else 10
                size = int.from_bytes(self._buffer[2:at], "big")
            if len(self._buffer) < at + size:
                return
            opcode, payload = self._buffer[0] & 15, self._buffer[at : at + size]
            self._buffer = self._buffer[at + size :]
            self._frame(opcode, payload)

    def writelines(self, parts: list[bytes]) -> None:
        """Several in one."""
        self.write(b"".join(parts))

    def _frame(self, opcode: int, payload: bytes) -> None:
        if self.silent:
            return
        if opcode == _PING:
            self.to_relay.put(_PONG)
        elif opcode == _CLOSE:
            code = int.from_bytes(payload[:2], "big")
            why = TransportError(payload[2:].decode(), may_come_back(code), code)
            self.to_device.end(why, at_once=False)
        elif opcode == _BINARY:
            self._message(payload)

    def _message(self, payload: bytes) -> None:
        message = codec.decode(payload) if payload[0] == Pushed.TYPE else None
        done = isinstance(message, Pushed) and message.outcome is Outcome.DONE
        if done and self._faults.strikes(self.place, faults.ANSWER_LOST):
            self.cut()
            return
        self.to_device.put(payload)
        session = self.protocol.session
        affordable = payload[0] == Deliver.TYPE and session.credit >= len(payload)
        if affordable and self._faults.strikes(self.place, faults.TWICE):
            session.credit -= len(payload)
            self.to_device.put(payload)


class Trace:
    """What happens, in order, as a number: two runs of a seed must agree in it."""

    def __init__(self, add: Callable[[str, str, bytes], None]) -> None:
        self.add = add


@asynccontextmanager
async def connected(wire: Wire) -> AsyncIterator[Transport]:
    """The wire for the length of the block, with a relay at its other end."""
    relay = wire.relay
    if relay.dead or relay.loop.factory is None:
        raise TransportError("no relay answers")
    wire.dialled()
    relay.wires.append(wire)
    try:
        yield wire
    finally:
        wire.gone = True
        relay.wires.remove(wire)
        wire.to_relay.end(TransportError("the device is gone"), at_once=not wire.last_words)
