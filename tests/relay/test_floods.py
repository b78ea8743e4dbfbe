"""Floods: what one socket sends is looked at in turns with all others, and of a stranger's very little."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import pytest
from websockets.frames import Opcode

from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode
from sealwire_protocol.ids import VaultId
from sealwire_protocol.messages import Ack, Push
from sealwire_protocol.segment import WALK_RECORDS
from sealwire_relay.connection import FRAME_BYTES, LOGIN_BYTES_MAX, MESSAGE_BYTES, SLICE_BYTES, Connection
from sealwire_relay.frames import FrameReader
from sealwire_relay.peer import Peer
from sealwire_relay.view import Admitted
from tests.relay.test_connection import logged_in
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Relay, running, turns, turns_until
from tests.support.stranger import BINARY, PING, PONG, Stranger, frame

ANNA = Identity(1)
TODOS = stream_id(1)


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
        tiny, slice_of = frame(BINARY, b"\x01"), SLICE_BYTES // (MESSAGE_BYTES + FRAME_BYTES)
        stranger.send(tiny * slice_of)
        await turns_until(lambda: len(paused) == 1)
        stranger.send(tiny * 2 * slice_of)
        await turns_until(lambda: len(paused) == 2)
        stranger.send(tiny)
        await turns_until(lambda: len(paused) == 3)
        assert paused == [False, True, False]


@asyncio_test
async def test_what_was_read_at_once_is_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, looked = FrameReader.feed, [0]

    def watched(self: FrameReader, data: bytes) -> Iterator[tuple[Opcode, bytes]]:
        for message in feed(self, data):
            looked[-1] += 1
            yield message

    on_turn = Connection.on_turn

    def counted(self: Connection) -> None:
        looked.append(0)
        on_turn(self)

    async with running() as relay, await logged_in(relay.port) as stranger:
        (connection,) = relay.plane._gateway._connections
        monkeypatch.setattr(FrameReader, "feed", watched)
        monkeypatch.setattr(Connection, "on_turn", counted)
        connection.data_received(b"".join(frame(PING, n.to_bytes(2, "big")) for n in range(20_000)))
        last: tuple[int, bytes] | None = None
        while last != (PONG, (19_999).to_bytes(2, "big")):
            last = await stranger.receive()
        assert sum(looked) == 20_000 and max(looked) <= SLICE_BYTES // FRAME_BYTES + 1
        stranger.send(frame(PING, b"heard"))
        assert await stranger.receive() == (PONG, b"heard")


@asyncio_test
async def test_of_many_that_bring_much_one_goes_on_in_each_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """So whoever says little waits for the slice of one of them, not for one of each."""
    went_on: list[tuple[int, Connection]] = []
    on_turn, turn = Connection.on_turn, [0]

    def counted(self: Connection) -> None:
        went_on.append((turn[0], self))
        on_turn(self)

    async with running() as relay, AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(await logged_in(relay.port))
        monkeypatch.setattr(Connection, "on_turn", counted)
        for connection in relay.plane._gateway._connections:
            connection.data_received(frame(PING) * 5_000)
        assert not went_on, "who brings much has no slice before its turn"
        while any(connection._incoming is not None for connection in relay.plane._gateway._connections):
            turn[0] += 1
            await asyncio.sleep(0)
        assert len(went_on) == len({at for at, _ in went_on}) > 4
        assert len({who for _, who in went_on[:4]}) == 4, "nobody has two slices before all have one"


class Admitting(NamedTuple):
    """A relay that has begun to admit what a device has pushed to a vault."""

    relay: Relay
    connection: Connection
    anna: Device
    vault: VaultId


@asynccontextmanager
async def admitting(*records: int) -> AsyncIterator[Admitting]:
    """Pushes of so many records each come at once; the first one takes more than a turn."""
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        term = (await anna.subscribe(vault)).term
        (connection,) = relay.plane._gateway._connections
        sealed = [group(TODOS, *(record(place + 1, tag=place) for place in range(count))) for count in records]
        pushes = [Push(vault, term, batch, 0, (pushed,)) for batch, pushed in enumerate(sealed, 1)]
        connection.data_received(b"".join(frame(BINARY, codec.encode(push)) for push in pushes))
        await turns_until(lambda: connection._work is not None)
        yield Admitting(relay, connection, anna, vault)


@pytest.mark.parametrize("slice_bytes", [SLICE_BYTES, 1_000_000])
@asyncio_test
async def test_a_large_push_is_admitted_in_turns_and_what_follows_it_stays_behind_it(
    slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealwire_relay.connection.SLICE_BYTES", slice_bytes)
    async with admitting(1_000, 1) as (relay, connection, anna, vault):
        steps = 1
        while relay.plane._ingest.unanswered == 0:
            assert connection._transport is not None and not connection._transport.is_reading()
            await asyncio.sleep(0)
            steps += connection._work is not None
        assert steps >= 1_000 // WALK_RECORDS
        told = [await anna.verdict(vault, batch) for batch in (1, 2)]
        assert [(one.batch, one.appended[0].first) for one in told] == [(1, 1), (2, 1_001)]


@asyncio_test
async def test_of_who_is_held_back_nothing_more_is_taken_of_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        term = (await anna.subscribe(vault)).term
        (connection,) = relay.plane._gateway._connections
        transport = connection._transport
        assert transport is not None
        taken: list[int] = []

        def hold_back(peer: Peer, admitted: Admitted) -> None:
            taken.append(admitted.push.batch)
            peer.hold_back()

        monkeypatch.setattr(relay.plane._ingest, "push", hold_back)
        pushes = [Push(vault, term, batch, 0, (group(TODOS, record()),)) for batch in (1, 2, 3)]
        connection.data_received(b"".join(frame(BINARY, codec.encode(push)) for push in pushes))
        for batch in (1, 2, 3):
            await turns(10)
            assert taken[-1] == len(taken) == batch
            assert not transport.is_reading()
            connection.go_on()
        await turns_until(transport.is_reading)


@asyncio_test
async def test_a_relay_that_stops_answers_a_push_that_is_being_admitted() -> None:
    async with admitting(1_000) as (_, connection, anna, vault):
        connection.leave(1_000)
        assert (await anna.verdict(vault, 1)).appended[0].records == 1_000
        assert await anna.closed() == CloseCode.RESTARTING


@asyncio_test
async def test_a_push_that_is_being_admitted_is_given_up_when_the_connection_ends() -> None:
    async with admitting(1_000) as (_, connection, _, _):
        connection.close(CloseCode.IDLE, "enough")
        connection.on_turn()
        assert connection._work is None


@asyncio_test
async def test_what_was_read_is_not_looked_at_once_the_connection_ends() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        (connection,) = relay.plane._gateway._connections
        connection.data_received(frame(PING) * 5_000)
        assert connection._incoming is not None
        connection.close(CloseCode.IDLE, "enough")
        assert await stranger.closed() == CloseCode.IDLE
        await turns_until(lambda: relay.plane.connections == 0)
        assert connection._incoming is None


@asyncio_test
async def test_what_was_read_is_not_looked_at_once_the_device_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with admitting(1_000) as (relay, connection, anna, vault):
        ingest = relay.plane._ingest
        held: list[tuple[Peer, Admitted]] = []
        with monkeypatch.context() as patch:
            patch.setattr(ingest, "push", lambda peer, admitted: held.append((peer, admitted)))
            await turns_until(lambda: bool(held))
            connection.data_received(frame(PING) * 5_000)
            assert connection._incoming is not None
            connection.leave(1_000)
            patch.setattr(Connection, "_take_slice", lambda self: pytest.fail("it is looked at"))
            connection.on_turn()
            assert not any(each._incoming for each in relay.plane._gateway._connections)
        ingest.push(*held[0])
        assert (await anna.verdict(vault, 1)).appended[0].records == 1_000
        assert await anna.closed() == CloseCode.RESTARTING


@asyncio_test
async def test_who_is_read_from_again_was_not_silent_meanwhile() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        (connection,) = relay.plane._gateway._connections
        connection.hold_back()
        connection._heard = connection._begun = connection._heard - 1_000.0
        connection.go_on()
        relay.pass_time(30.0)
        assert await stranger.receive() == (PING, b""), "it is asked, and not given up"


@asyncio_test
async def test_s17_what_a_stranger_makes_the_relay_look_at_is_bounded() -> None:
    async with running() as relay, await Stranger.upgraded(relay.port) as stranger:
        stranger.send(frame(PING) * (LOGIN_BYTES_MAX // len(frame(PING)) + 1))
        assert await stranger.closed() == CloseCode.TOO_LARGE
        await turns_until(lambda: relay.plane.connections == 0)


@asyncio_test
async def test_s18_a_message_has_all_its_time_after_another_one() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        (connection,) = relay.plane._gateway._connections
        message = frame(BINARY, codec.encode(Ack(0, ())))
        connection.data_received(message[:3])
        connection._begun -= 60.0
        connection.data_received(message[3:] + message[:3])
        relay.pass_time(17.0)
        connection.data_received(message[3:] + frame(PING, b"still there"))
        assert await stranger.receive() == (PONG, b"still there")


@asyncio_test
async def test_s18_pings_amid_a_message_do_not_prolong_it() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        (connection,) = relay.plane._gateway._connections
        connection.data_received(frame(BINARY, bytes(10), fin=False))
        begun = connection._begun = connection._begun - 60.0
        connection.data_received(frame(PING))
        assert connection._begun == begun
        relay.pass_time(17.0)
        assert await stranger.receive() == (PONG, b"")
        assert await stranger.closed() == CloseCode.TOO_SLOW
