"""A WebSocket to the relay as the link sees it: send, receive, close; every failure in one sentence.

Cancellation of `receive` loses nothing; of `send` it may cut a message, so a transport is given up afterwards.
"""

import ipaddress
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol
from urllib.parse import urlsplit

import trio
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    ProxyError,
    WebSocketException,
)
from websockets.trio.client import ClientConnection, connect

from sealwire_client.nursery import open_nursery
from sealwire_protocol.errors import CloseCode, may_come_back
from sealwire_protocol.limits import FRAME_BYTES_MAX

CONNECT_SECONDS_MAX: Final = 10.0
"""From dialling to an open WebSocket. A phone on a bad link needs seconds; more means there is nobody."""

PING_SECONDS: Final = 20.0
"""Proxies cut idle sockets at 60 s; two lost pings are still inside that."""

CLOSE_SECONDS_MAX: Final = 2.0
"""A goodbye that the relay does not answer in this time is not waited for."""

FRAMES_WAITING_MAX: Final = 32
"""Frames that wait to be read before the socket is not read any more: a relay can claim so many times
`FRAME_BYTES_MAX` of memory here, and no more."""

_HINT_DIGITS_MAX: Final = 6
"""A proxy that asks for more than 999,999 seconds is not taken at its word."""


class InsecureOriginError(ValueError):
    """`ws://` to another machine: everything but the sealed contents would be open to the network."""


class TransportError(Exception):
    """The relay cannot be reached, or the connection has ended. `come_back`: trying again makes sense, but not
    before `retry_seconds`, which is what the other side asked for."""

    def __init__(
        self, message: str, come_back: bool = True, code: int | None = None, retry_seconds: float = 0.0
    ) -> None:
        super().__init__(message)
        self.come_back, self.code, self.retry_seconds = come_back, code, retry_seconds


class Transport(Protocol):
    """An open connection that carries whole binary messages, in order, until it ends."""

    async def send(self, data: bytes) -> None:
        """Send one message; waits while the network is slow. Raises TransportError."""

    async def receive(self) -> bytes:
        """The next message. Raises TransportError when the connection has ended."""

    async def ping(self) -> None:
        """Ask the other side for a sign of life; returns when it has come. Raises TransportError, or waits on."""

    async def close(self, code: CloseCode, reason: str) -> None:
        """Say goodbye, and wait a moment for the answer. Never raises."""


def check_origin(origin: str) -> None:
    """Raises InsecureOriginError for `ws://` to anything but this machine."""
    parts = urlsplit(origin)
    if parts.scheme == "ws" and not _is_loopback(parts.hostname or ""):
        raise InsecureOriginError(
            f"{origin} would send logins and metadata unprotected over the network; use wss://{parts.netloc}"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _WebSocket:
    def __init__(self, socket: ClientConnection, origin: str) -> None:
        self._socket, self._origin = socket, origin

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send(data)
        except ConnectionClosed as error:
            raise _ended(self._origin, error) from error

    async def receive(self) -> bytes:
        try:
            data = await self._socket.recv()
        except ConnectionClosed as error:
            raise _ended(self._origin, error) from error
        if isinstance(data, str):
            raise TransportError(f"{self._origin} answered with text: it is not a Sealwire relay", come_back=False)
        return data

    async def ping(self) -> None:
        try:
            answered = await self._socket.ping()
        except ConnectionClosed as error:
            raise _ended(self._origin, error) from error
        await answered.wait()

    async def close(self, code: CloseCode, reason: str) -> None:
        with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
            await self._socket.aclose(code, reason)


@asynccontextmanager
async def dial(origin: str) -> AsyncIterator[Transport]:
    """A connection to a relay for the length of the block. Raises TransportError, InsecureOriginError."""
    check_origin(origin)
    dialling = connect(
        origin,
        compression=None,
        proxy=None if _is_loopback(urlsplit(origin).hostname or "") else True,
        open_timeout=CONNECT_SECONDS_MAX,
        ping_interval=PING_SECONDS,
        ping_timeout=PING_SECONDS,
        close_timeout=CLOSE_SECONDS_MAX,
        max_size=FRAME_BYTES_MAX,
        max_queue=FRAMES_WAITING_MAX,
    )
    async with open_nursery() as nursery:
        try:
            socket = await dialling.connect(nursery)
        except (OSError, trio.BrokenResourceError, WebSocketException, UnicodeError, ImportError) as error:
            raise _unreachable(origin, error) from error
        try:
            yield _WebSocket(socket, origin)
        finally:
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await socket.aclose()
            nursery.cancel_scope.cancel()


def _ended(origin: str, closed: ConnectionClosed) -> TransportError:
    if closed.rcvd is None:
        return TransportError(f"the connection to {origin} was cut; it is tried again by itself")
    code, reason = closed.rcvd.code, closed.rcvd.reason
    return TransportError(
        f"the relay ended the connection: {reason or 'no reason given'} ({code})", may_come_back(code), code
    )


def _unreachable(origin: str, error: BaseException) -> TransportError:
    if isinstance(error, InvalidStatus):
        status, hint = error.response.status_code, error.response.headers.get("Retry-After", "")
        why = f"{origin} answers, but not as a relay (HTTP {status}); check the address"
        seconds = float(hint) if hint.isdecimal() and len(hint) <= _HINT_DIGITS_MAX else 0.0
        return TransportError(why, come_back=status >= 500, retry_seconds=seconds)
    tls = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(tls, ssl.SSLCertVerificationError):
        why = f"{origin} has no certificate that this device trusts ({tls.verify_message}); check the address"
        return TransportError(why)
    if isinstance(tls, ssl.SSLError):
        why = f"{origin} does not speak TLS as this device does ({tls.reason or tls}); check the address"
        return TransportError(why)
    if isinstance(error, ImportError | InvalidProxy | ProxyError):
        return TransportError(f"{origin} cannot be reached through this machine's proxy ({error}); check its settings")
    if isinstance(error, InvalidHandshake):
        return TransportError(f"{origin} answers, but not as a relay; check the address")
    if isinstance(error, TimeoutError):
        return TransportError(
            f"{origin} did not answer within {CONNECT_SECONDS_MAX:.0f} s; see that the relay is running there"
        )
    why = _first_cause(error)
    return TransportError(f"no relay answers at {origin} ({why}); see that it is running, and the address is right")


def _first_cause(error: BaseException) -> str:
    """In the system's words; of the attempts to reach a name's several addresses the first one's."""
    cause = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__
