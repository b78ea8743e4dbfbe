"""Connections between devices and relays: real WebSocket frames at the relay's end, delays, cuts and silence."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, Final

import trio

from sealwire_client.nursery import open_nursery
from sealwire_client.testing.wire import Pipe
from sealwire_client.transport import Transport, TransportError
from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode, Outcome, may_come_back
from sealwire_protocol.messages import Deliver, Pushed
from tests.simulation import faults
from tests.simulation.faults import Faults

if TYPE_CHECKING:
    from tests.simulation.relay import RelayProcess

DELAY_SECONDS_MAX: Final = 0.2
SLOW_SECONDS_MAX: Final = 8.0
SILENCE_SECONDS: Final = 40.0
"""How long nobody notices that a connection is dead: two pings."""

_UPGRADE: Final = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_PONG: Final = b"\x8a\x80\0\0\0\0"
_BINARY, _CLOSE, _PING = 2, 8, 9


def _masked(payload: bytes) -> bytes:
    """A device's binary frame, under the mask that changes nothing."""
    size = len(payload)
    if size < 126:
        return bytes((0x82, 0x80 | size)) + b"\0\0\0\0" + payload
    if size < 65_536:
        return b"\x82\xfe" + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return b"\x82\xff" + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


class Wire:
    """One connection. To the device it is a `Transport`, to the relay an `asyncio.Transport`."""

    def __init__(self, place: str, relay: "RelayProcess", armed: Faults, random: Random, trace: "Trace") -> None:
        self.place, self.relay, self._faults, self._random, self._trace = place, relay, armed, random, trace
        self.to_relay = Pipe(self._delay, self._carried)
        self.to_device = Pipe(self._delay, self._carried)
        self.protocol: Any = None
        self.fell_silent = trio.Event()
        self.slow = self.silent = self.gone = self.last_words = False
        self.on_send: Callable[[bytes], None] = lambda data: None
        self.on_receive: Callable[[bytes], None] = lambda data: None
        self._buffer = b""
        self._upgraded = False

    def _delay(self) -> float:
        return self._random.uniform(0, SLOW_SECONDS_MAX if self.slow else DELAY_SECONDS_MAX)

    def _carried(self) -> None:
        if self._faults.strikes(self.place, faults.CUT):
            self.cut()
        elif not self.silent and self._faults.strikes(self.place, faults.SILENCE):
            self.silent = True
            self.fell_silent.set()

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

    def left(self) -> list[bytes]:
        """What is still on its way from a process that has died and whose last words are carried."""
        return [data for _, data in self.to_relay._items] if self.last_words else []

    async def receive(self) -> bytes:
        """The next message."""
        data = await self.to_device.get()
        self._trace.add("received", self.place, data)
        self.on_receive(data)
        return data

    async def close(self, code: CloseCode, reason: str) -> None:
        """Hang up."""
        gone = TransportError("the device has hung up")
        self.to_relay.end(gone, at_once=False)
        self.to_device.end(gone, at_once=True)

    # --- the relay's end

    def get_extra_info(self, name: str) -> None:
        """There is no socket."""

    def get_write_buffer_size(self) -> int:
        """The network takes everything."""
        return 0

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
        message = codec.decode(payload)
        done = isinstance(message, Pushed) and message.outcome is Outcome.DONE
        if done and self._faults.strikes(self.place, faults.ANSWER_LOST):
            self.cut()
            return
        self.to_device.put(payload)
        session = self.protocol.session
        affordable = isinstance(message, Deliver) and session.credit >= len(payload)
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

    async def feed() -> None:
        try:
            while True:
                data = await wire.to_relay.get()
                wire._trace.add("arrived", wire.place, data)
                relay.call(wire.protocol.data_received, data)
        except TransportError:
            relay.call(wire.protocol.connection_lost, None)

    async def notice() -> None:
        """A silent connection is found out in the end."""
        await wire.fell_silent.wait()
        await trio.sleep(SILENCE_SECONDS)
        wire.cut()

    async with open_nursery() as nursery:
        wire.protocol = relay.loop.factory()
        relay.wires.append(wire)
        relay.call(wire.protocol.connection_made, wire)
        relay.call(wire.protocol.data_received, _UPGRADE)
        nursery.start_soon(feed)
        nursery.start_soon(notice)
        try:
            yield wire
        finally:
            wire.gone = True
            relay.wires.remove(wire)
            for data in wire.left():
                relay.call(wire.protocol.data_received, data)
            relay.call(wire.protocol.connection_lost, None)
            nursery.cancel_scope.cancel()
