"""The HTTP request that opens a WebSocket, as strangers send it: whole, in pieces, or wrongly. S20: see security.md."""

import pytest
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.server import ServerProtocol

from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode
from sealwire_protocol.ids import NONCE_BYTES
from sealwire_protocol.messages import Challenge, Hello
from sealwire_relay.opening import REQUEST_BYTES_MAX
from tests.support.aio import asyncio_test
from tests.support.device import Identity
from tests.support.relay import running, turns, turns_until
from tests.support.stranger import BINARY, REQUEST, Stranger, frame

HELLO = codec.encode(Hello(1, 1, Identity(1).key, bytes(NONCE_BYTES), "test"))


@asyncio_test
async def test_livez_answers_without_a_websocket() -> None:
    async with running() as relay, await Stranger.dial(relay.port) as stranger:
        stranger.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await stranger.rest()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nalive\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", b"400"),
        (b"GET / HTTP/3.0\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"get lost", b"400"),
        (REQUEST.replace(b"13", b"8") + b"\r\n", b"400"),
        (REQUEST + b"A: " + b"a" * REQUEST_BYTES_MAX, b"400"),
        (REQUEST + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (REQUEST + b"A: " + b"a" * 9_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", b"414"),
    ],
    ids=["plain", "post", "version", "tls", "rubbish", "draft", "endless", "many", "long", "path"],
)
def test_what_is_not_a_websocket_is_told_so_and_hung_up_on(request_: bytes, status: bytes) -> None:
    @asyncio_test
    async def run() -> None:
        async with running() as relay, await Stranger.dial(relay.port) as stranger:
            stranger.send(request_)
            assert (await stranger.rest()).startswith(b"HTTP/1.1 " + status)
            await turns_until(lambda: relay.plane.connections == 0)

    run()


@asyncio_test
async def test_a_request_that_comes_byte_by_byte_is_understood() -> None:
    async with running() as relay, await Stranger.dial(relay.port) as stranger:
        for byte in REQUEST + b"\r\n":
            stranger.send(bytes((byte,)))
            await turns(1)
        assert (await stranger.response()).startswith(b"HTTP/1.1 101")


@asyncio_test
async def test_a_greeting_in_the_packet_of_the_request_is_heard() -> None:
    async with running() as relay, await Stranger.dial(relay.port) as stranger:
        stranger.send(REQUEST + b"\r\n" + frame(BINARY, HELLO))
        await stranger.response()
        _, data = await stranger.receive()
        assert isinstance(codec.decode(data), Challenge)


def answer_of_one_that_compresses(request: bytes) -> bytes:
    """What a server that likes to compress answers a request."""
    server = ServerProtocol(extensions=[ServerPerMessageDeflateFactory()])
    server.receive_data(request)
    [event] = server.events_received()
    assert isinstance(event, Request)
    server.send_response(server.accept(event))
    return b"".join(server.data_to_send())


@asyncio_test
async def test_s20_permessage_deflate_is_not_negotiated() -> None:
    offer = REQUEST + b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    assert b"permessage-deflate" in answer_of_one_that_compresses(offer)
    async with running() as relay, await Stranger.dial(relay.port) as stranger:
        stranger.send(offer)
        response = await stranger.response()
        assert response.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in response.lower()
        stranger.send(frame(BINARY, HELLO, rsv=4))
        assert await stranger.closed() == CloseCode.PROTOCOL_ERROR
