"""Floods: what one socket sends is looked at in turns with all others, and of a stranger's very little."""

from collections.abc import Iterator

import pytest
from websockets.frames import Opcode

from sealwire_protocol.errors import CloseCode
from sealwire_relay.connection import LOGIN_BYTES_MAX, TURN_BYTES_MAX, Connection
from sealwire_relay.frames import FrameReader
from tests.relay.test_connection import logged_in
from tests.support.aio import asyncio_test
from tests.support.relay import running, turns_until
from tests.support.stranger import BINARY, PING, PONG, Stranger, frame


@asyncio_test
async def test_a_flood_of_pings_costs_one_pong_a_read() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        stranger.send(b"".join(frame(PING, n.to_bytes(2, "big")) for n in range(2_000)))
        pongs: list[tuple[int, bytes]] = []
        while not pongs or pongs[-1] != (PONG, (1999).to_bytes(2, "big")):
            pongs.append(await stranger.receive())
        assert len(pongs) < 100


@asyncio_test
async def test_a_flood_of_tiny_messages_lets_the_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop reads on from a socket that is never empty for seconds, unless it is told to pause."""
    paused: list[bool] = []
    read = Connection.data_received

    def watched(self: Connection, data: bytes) -> None:
        read(self, data)
        transport = self._transport
        assert transport is not None
        paused.append(not transport.is_reading())

    async with running() as relay, await logged_in(relay.port) as stranger:
        monkeypatch.setattr(Connection, "data_received", watched)
        tiny = frame(BINARY, b"\x01")
        stranger.send(tiny * (TURN_BYTES_MAX // len(tiny)))
        await turns_until(lambda: len(paused) == 1)
        stranger.send(tiny * (TURN_BYTES_MAX // len(tiny) + 1))
        await turns_until(lambda: len(paused) == 2)
        stranger.send(tiny)
        await turns_until(lambda: len(paused) == 3)
        assert paused == [False, True, False]


@asyncio_test
async def test_what_was_read_at_once_is_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    feed = FrameReader.feed

    def watched(self: FrameReader, data: bytes) -> Iterator[tuple[Opcode, bytes]]:
        looked.append(len(data))
        return feed(self, data)

    async with running() as relay, await logged_in(relay.port) as stranger:
        (connection,) = relay.plane._gateway._connections
        sent = b"".join(frame(PING, n.to_bytes(2, "big")) for n in range(20_000))
        monkeypatch.setattr(FrameReader, "feed", watched)
        connection.data_received(sent)
        assert looked == [TURN_BYTES_MAX]
        last: tuple[int, bytes] | None = None
        while last != (PONG, (19_999).to_bytes(2, "big")):
            last = await stranger.receive()
        assert sum(looked) == len(sent) and max(looked) == TURN_BYTES_MAX
        stranger.send(frame(PING, b"heard"))
        assert await stranger.receive() == (PONG, b"heard")


@asyncio_test
async def test_what_was_read_is_not_looked_at_once_the_connection_ends() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        (connection,) = relay.plane._gateway._connections
        connection.data_received(frame(PING) * 5_000)
        assert connection._rest
        connection.close(CloseCode.IDLE, "enough")
        assert await stranger.closed() == CloseCode.IDLE
        await turns_until(lambda: relay.plane.connections == 0)
        assert not connection._rest


@asyncio_test
async def test_s17_what_a_stranger_makes_the_relay_look_at_is_bounded() -> None:
    async with running() as relay, await Stranger.upgraded(relay.port) as stranger:
        stranger.send(frame(PING) * (LOGIN_BYTES_MAX // len(frame(PING)) + 1))
        assert await stranger.closed() == CloseCode.TOO_LARGE
        await turns_until(lambda: relay.plane.connections == 0)
