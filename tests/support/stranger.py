"""A raw socket in a test: speaks HTTP and WebSocket frames by hand, rightly or wrongly."""

import asyncio
import base64
import contextlib
import socket
from typing import Self, cast

from tests.support.device import WAIT_SECONDS

MASK = b"mask"
KEY = base64.b64encode(bytes(16))
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, length: int | None = None, rsv: int = 0
) -> bytes:
    """A frame from a client; `length` may lie about the payload's."""
    size = len(payload) if length is None else length
    head = bytes((fin << 7 | rsv << 4 | opcode,))
    bit = masked << 7
    if size < 126:
        head += bytes((bit | size,))
    elif size < 65_536:
        head += bytes((bit | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((bit | 127,)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))


class Stranger:
    """One TCP connection. Use as an async context manager."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def dial(cls, port: int, address: str = "127.0.0.1") -> Self:
        """Connect, and say nothing. `address`: from where."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))

    @classmethod
    async def upgraded(cls, port: int, headers: bytes = b"") -> Self:
        """Connect and open a WebSocket."""
        stranger = await cls.dial(port)
        stranger.send(REQUEST + headers + b"\r\n")
        assert (await stranger.response()).startswith(b"HTTP/1.1 101")
        return stranger

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def deafen(self, deaf: bool = True) -> None:
        """Read nothing from the socket, in which next to nothing has room then; or read on."""
        transport = cast(asyncio.Transport, self._writer.transport)
        if deaf:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        (transport.pause_reading if deaf else transport.resume_reading)()

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self._writer.write(data)

    async def response(self) -> bytes:
        """The head of an HTTP response."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Everything until the relay hangs up, upon which this side does, too."""
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""
            finally:
                self._writer.close()

    async def receive(self) -> tuple[int, bytes]:
        """The next frame: (opcode, payload)."""
        async with asyncio.timeout(WAIT_SECONDS):
            first, size = await self._reader.readexactly(2)
            assert first & 0x80
            if size >= 126:
                size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
            return first & 15, await self._reader.readexactly(size)

    async def closed(self) -> int:
        """Wait for a close frame and the end; the close code. 1006: it ended without one."""
        try:
            while True:
                opcode, payload = await self.receive()
                if opcode == CLOSE:
                    assert await self.rest() == b""
                    return int.from_bytes(payload[:2], "big")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 1006
