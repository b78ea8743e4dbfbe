"""Dialling over real sockets: every way to fail in one sentence, and whether it makes sense to try again."""

import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from websockets.trio.server import ServerConnection, serve

from sealwire_client.transport import FRAMES_WAITING_MAX, InsecureOriginError, TransportError, check_origin, dial
from sealwire_protocol.errors import CloseCode
from sealwire_protocol.limits import FRAME_BYTES_MAX

pytestmark = pytest.mark.trio

ANSWER_BYTES_MAX = 65_536

STUCK_SECONDS = 0.5
"""Nobody has read for so long, though both ends are on one machine: the other end does not read."""


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """Something on loopback that answers every request with these bytes and hangs up. Gives its address."""

    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(ANSWER_BYTES_MAX)
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def relay(talk: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """A WebSocket server on loopback. Gives its address."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(serve, talk, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{server.listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def failure(origin: str) -> TransportError:
    """How dialling fails."""
    with pytest.raises(TransportError) as caught:
        async with dial(origin):
            pass
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "told", "come_back"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "not as a relay (HTTP 404)", False),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "not as a relay (HTTP 502)", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "not as a relay (HTTP 200)", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not as a relay", True),
        (b"", "not as a relay", True),
    ],
)
async def test_who_is_no_relay_is_told_apart(answer: bytes, told: str, come_back: bool) -> None:
    async with answering(answer) as origin:
        error = await failure(origin)
    assert told in str(error)
    assert origin in str(error)
    assert error.come_back is come_back
    assert error.retry_seconds == 0


@pytest.mark.parametrize(
    ("hint", "seconds"), [("120", 120.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("-5", 0.0), ("nan", 0.0)]
)
async def test_a_proxy_that_says_when_to_come_back_is_heard(hint: str, seconds: float) -> None:
    answer = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {hint}\r\nContent-Length: 0\r\n\r\n"
    async with answering(answer.encode()) as origin:
        error = await failure(origin)
    assert (error.come_back, error.retry_seconds) == (True, seconds)


async def test_nobody_listening_is_told() -> None:
    error = await failure("ws://127.0.0.1:9")
    assert "no relay answers at ws://127.0.0.1:9 (Connection refused);" in str(error)
    assert error.come_back


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70 + ".example.org", "a..b"])
async def test_a_name_that_cannot_be_found_is_told(host: str) -> None:
    error = await failure(f"wss://{host}")
    assert "no relay answers" in str(error)
    assert error.come_back


async def test_a_relay_without_tls_dialled_with_tls_is_told() -> None:
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as origin:
        error = await failure(origin.replace("ws://", "wss://"))
    assert "does not speak TLS" in str(error)
    assert error.come_back


async def test_a_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    error = await failure("wss://relay.example.org")
    assert "proxy" in str(error)


async def test_messages_go_both_ways_and_the_end_says_why() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(await socket.recv())
        await socket.aclose(CloseCode.REMOVED, "this device was removed")

    async with relay(talk) as origin:
        async with dial(origin) as transport:
            await transport.send(b"hello")
            assert await transport.receive() == b"hello"
            with pytest.raises(TransportError, match=r"this device was removed \(4105\)") as caught:
                await transport.receive()
            assert (caught.value.come_back, caught.value.code) == (False, CloseCode.REMOVED)
            with pytest.raises(TransportError):
                await transport.send(b"too late")
            await transport.close(CloseCode.NORMAL, "closing twice is no error")


async def test_text_is_not_what_a_relay_sends() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send("hello")
        await socket.recv()

    async with relay(talk) as origin:
        async with dial(origin) as transport:
            with pytest.raises(TransportError, match="not a Sealwire relay") as caught:
                await transport.receive()
    assert not caught.value.come_back


async def test_an_error_of_the_caller_comes_out_as_it_is() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.recv()

    own = ExceptionGroup("the caller's own", [ValueError("one")])
    async with relay(talk) as origin:
        with pytest.raises(ExceptionGroup) as caught:
            async with dial(origin):
                raise own
    assert caught.value is own


@pytest.mark.parametrize(
    "origin", ["wss://relay.example.org", "ws://127.0.0.1:7800", "ws://localhost", "ws://[::1]:1", "ws://a.localhost"]
)
async def test_loopback_needs_no_tls(origin: str) -> None:
    check_origin(origin)


@pytest.mark.parametrize("origin", ["ws://relay.example.org", "ws://192.168.1.7:7800", "ws://localhost.example.org"])
async def test_other_machines_need_tls(origin: str) -> None:
    with pytest.raises(InsecureOriginError, match="use wss://"):
        check_origin(origin)
    with pytest.raises(InsecureOriginError):
        async with dial(origin):
            pass


async def test_a_relay_that_sends_more_than_is_read_is_made_to_wait() -> None:
    """Else it could fill the device's memory as fast as the network goes."""
    sent = 0
    stuck = trio.Event()

    async def flood(socket: ServerConnection) -> None:
        nonlocal sent
        message = bytes(FRAME_BYTES_MAX)
        while sent < 4 * FRAMES_WAITING_MAX:
            with trio.move_on_after(STUCK_SECONDS if sent >= FRAMES_WAITING_MAX else math.inf) as waiting:
                await socket.send(message)
                sent += 1
            if waiting.cancelled_caught:
                break
        stuck.set()
        await trio.sleep_forever()

    async with relay(flood) as origin, dial(origin) as transport:
        await stuck.wait()
        assert FRAMES_WAITING_MAX <= sent < 3 * FRAMES_WAITING_MAX
        assert len(await transport.receive()) == FRAME_BYTES_MAX


async def test_a_sign_of_life_comes_from_who_is_there_and_from_nobody_else() -> None:
    async def hear(socket: ServerConnection) -> None:
        async for _ in socket:
            pass

    async with relay(hear) as origin:
        async with dial(origin) as transport:
            await transport.ping()
            await transport.close(CloseCode.GOING_AWAY, "")
            with pytest.raises(TransportError, match=r"ended|cut"):
                await transport.ping()
