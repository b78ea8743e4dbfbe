"""What a relay endures from a socket: strangers, liars, idlers and floods. S14 and after: security.md has the list."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TypeVar

import pytest
from websockets.exceptions import ConnectionClosed

from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode
from sealwire_protocol.ids import NONCE_BYTES, START, Term, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.login import login_payload
from sealwire_protocol.messages import (
    Ack,
    Challenge,
    CreateStream,
    Done,
    Hello,
    Prove,
    Push,
    StreamKind,
    Subscribe,
    Wanted,
    Welcome,
)
from sealwire_protocol.segment import encode_segment
from sealwire_relay.catchup import PAGE_BYTES_MAX
from sealwire_relay.connection import LOGIN_BYTES_MAX, STALLED_BYTES, Connection
from sealwire_relay.frames import binary_frame
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Mishap, TroubledStore, memory_store, running, turns, turns_until
from tests.support.stranger import BINARY, CLOSE, CONT, PING, PONG, TEXT, Stranger, frame

ANNA, BERT = Identity(1), Identity(2)
TODOS = stream_id(1)
HELLO = codec.encode(Hello(1, 1, ANNA.key, bytes(NONCE_BYTES), "test"))


async def logged_in(port: int, identity: Identity = ANNA) -> Stranger:
    """A socket that has logged in by hand."""
    stranger = await Stranger.upgraded(port)
    stranger.send(frame(BINARY, codec.encode(Hello(1, 1, identity.key, bytes(NONCE_BYTES), "test"))))
    _, data = await stranger.receive()
    challenge = codec.decode(data)
    assert isinstance(challenge, Challenge)
    origin = f"ws://127.0.0.1:{port}"
    payload = login_payload((1, 1, 1), origin, identity.key, bytes(NONCE_BYTES), challenge.nonce)
    stranger.send(frame(BINARY, codec.encode(Prove(origin, identity.sign(payload)))))
    _, data = await stranger.receive()
    assert isinstance(codec.decode(data), Welcome)
    return stranger


# --- frames


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"hello"), 4100),
        (frame(BINARY, HELLO, masked=False), 4100),
        (frame(3, b""), 4100),
        (frame(CONT, b"x"), 4100),
        (frame(BINARY, b"x", fin=False) + frame(BINARY, b"x"), 4100),
        (frame(PING, b"", fin=False), 4100),
        (frame(PING, bytes(126)), 4100),
        (frame(BINARY, b""), 4100),
        (frame(BINARY, b"\xff" + bytes(100)), 4100),
        (frame(BINARY, codec.encode(Ack(0, ()))), 4100),
        (frame(BINARY, codec.encode(Hello(7, 9, ANNA.key, bytes(32), ""))), 4101),
        (frame(BINARY, HELLO) + frame(BINARY, HELLO), 4100),
        (frame(BINARY, HELLO) + frame(BINARY, codec.encode(Prove("ws://elsewhere", bytes(64)))), 4103),
        (frame(BINARY, bytes(LOGIN_BYTES_MAX + 1)), 4104),
        (frame(BINARY, length=2**62), 4104),
        (frame(BINARY, bytes(3000), fin=False) + frame(CONT, bytes(3000), fin=False), 4104),
    ],
    ids=[
        "text", "unmasked", "opcode", "cont", "interleaved", "split-ping", "long-ping", "empty", "type", "too-early",
        "version", "twice", "origin", "large", "lying-length", "fragments",
    ],
)  # fmt: skip
def test_s17_what_the_protocol_forbids_ends_the_connection_with_a_reason(sent: bytes, code: int) -> None:
    @asyncio_test
    async def run() -> None:
        async with running() as relay, await Stranger.upgraded(relay.port) as stranger:
            stranger.send(sent)
            assert await stranger.closed() == code
            await turns_until(lambda: relay.plane.connections == 0)
            assert relay.counted("login_failures_total") == 1
            assert relay.counted("closes_total", code=str(code)) == 1

    run()


@asyncio_test
async def test_a_message_in_fragments_with_a_ping_between_them_is_whole() -> None:
    async with running() as relay, await Stranger.upgraded(relay.port) as stranger:
        stranger.send(frame(BINARY, HELLO[:10], fin=False) + frame(PING, b"?") + frame(CONT, HELLO[10:20], fin=False))
        assert await stranger.receive() == (PONG, b"?")
        stranger.send(frame(CONT, HELLO[20:]))
        _, data = await stranger.receive()
        assert isinstance(codec.decode(data), Challenge)


@asyncio_test
async def test_s17_a_message_over_the_limit_is_refused_by_its_header_and_the_reason_arrives() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger, await Device.open(relay.port, BERT) as bert:
        # It is still sending when the relay says why: were the relay to hang up, the reason would be lost.
        (connection,) = [c for c in relay.plane._gateway._connections if c.device == ANNA.key]
        stranger.deafen()
        stranger.send(frame(BINARY, bytes(3_000_000)))
        await turns_until(lambda: connection._closing)
        await turns(100)
        stranger.deafen(False)
        assert await stranger.closed() == CloseCode.TOO_LARGE
        await bert.create_vault()


@asyncio_test
async def test_s17_counts_and_lengths_that_lie_end_the_connection() -> None:
    lies = [
        b"\x85" + bytes(16) + b"\xff\xff",
        b"\x87" + bytes(16) + b"\x01" + bytes(8) + b"\x01\x00\x00\x01" + bytes(8) + b"\xff\xff\xff\xff",
        b"\x82" + bytes(4) + b"\xff\xff",
    ]
    async with running() as relay:
        for lie in lies:
            async with await logged_in(relay.port) as stranger:
                stranger.send(frame(BINARY, lie))
                assert await stranger.closed() == CloseCode.PROTOCOL_ERROR


@asyncio_test
async def test_a_device_that_says_goodbye_is_answered() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        stranger.send(frame(CLOSE, (1001).to_bytes(2, "big")))
        assert await stranger.closed() == 1000
        await turns_until(lambda: relay.plane.connections == 0)


@asyncio_test
async def test_a_device_that_hangs_up_without_a_word_is_forgotten() -> None:
    async with running() as relay:
        async with await logged_in(relay.port):
            assert relay.plane.connections == 1
        await turns_until(lambda: relay.plane.connections == 0)


# --- logging in


@asyncio_test
async def test_s14_a_captured_login_is_worth_nothing_elsewhere() -> None:
    async with running() as relay:
        device = Device(relay.port, ANNA)
        await device.connect()
        async with device:
            await device.prove(sign=BERT)
            assert await device.closed() == CloseCode.LOGIN_REFUSED
        # A proof made for one socket's nonce is not valid for another's.
        captured: list[bytes] = []
        for _ in range(2):
            async with await Stranger.upgraded(relay.port) as stranger:
                stranger.send(frame(BINARY, HELLO))
                _, data = await stranger.receive()
                challenge = codec.decode(data)
                assert isinstance(challenge, Challenge)
                origin = f"ws://127.0.0.1:{relay.port}"
                payload = login_payload((1, 1, 1), origin, ANNA.key, bytes(NONCE_BYTES), challenge.nonce)
                captured.append(codec.encode(Prove(origin, ANNA.sign(payload))))
                stranger.send(frame(BINARY, captured[0]))
                opcode, _ = await stranger.receive()
                assert opcode == (BINARY if len(captured) == 1 else CLOSE)
        device = Device(relay.port, ANNA)
        await device.connect()
        async with device:
            await device.prove(origin="wss://relay.example.org")
            assert await device.closed() == CloseCode.WRONG_ORIGIN


@asyncio_test
async def test_s16_sockets_that_never_log_in_are_capped_ended_in_time_and_cost_no_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sealwire_relay.handshakes.GRACE_SECONDS", 3_600.0)
    store = TroubledStore(await memory_store())
    async with running(store.store, handshakes_max=4) as relay:
        silent = [await Stranger.dial(relay.port) for _ in range(2)]
        shaken = [await Stranger.upgraded(relay.port) for _ in range(2)]
        async with await Stranger.dial(relay.port) as fifth:
            assert await fifth.rest() == b""
        assert relay.plane.connections == 4
        assert relay.counted("closes_total", code="refused") == 1
        relay.pass_time(1.0)  # and what this test has taken so far
        assert relay.plane.connections == 4
        relay.pass_time(10.0)
        for stranger in silent:
            assert await stranger.rest() == b""
        for stranger in shaken:
            assert await stranger.closed() == CloseCode.TOO_SLOW
        await turns_until(lambda: relay.plane.connections == 0)
        assert [call for call in store.calls if call != "clear"] == ["open_term"], "which the relay does by itself"
        for stranger in silent + shaken:
            await stranger.__aexit__()


@asyncio_test
async def test_s16_strangers_that_dawdle_make_place_for_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.handshakes.GRACE_SECONDS", 0.0)
    async with running(handshakes_max=2) as relay:
        async with await Stranger.upgraded(relay.port) as oldest, await Stranger.upgraded(relay.port):
            async with await Device.open(relay.port, ANNA) as anna:
                await anna.create_vault()
                assert await oldest.closed() == CloseCode.OVERLOADED


@asyncio_test
async def test_s16_one_address_cannot_take_the_place_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.sites.is_loopback", lambda _: False)
    monkeypatch.setattr("sealwire_relay.handshakes.GRACE_SECONDS", 3_600.0)
    async with running(handshakes_max=6, handshakes_per_address_max=2) as relay:
        silent = [await Stranger.dial(relay.port, "127.0.0.2") for _ in range(2)]
        for _ in range(3):
            async with await Stranger.dial(relay.port, "127.0.0.2") as refused:
                assert await refused.rest() == b""
        assert (relay.plane.connections, relay.counted("closes_total", code="refused")) == (2, 3)
        async with await Device.open(relay.port, ANNA) as anna:
            await anna.create_vault()
            monkeypatch.setattr("sealwire_relay.handshakes.GRACE_SECONDS", 0.0)
            async with await Stranger.upgraded(relay.port) as other, await Stranger.dial(relay.port, "127.0.0.2"):
                assert await silent[0].rest() == b"", "of its own address the one that dawdles makes place"
                await turns_until(lambda: relay.plane.connections == 4)
                other.send(frame(BINARY, HELLO))
                await other.receive()
        for stranger in silent:
            await stranger.__aexit__()


@asyncio_test
async def test_connections_are_capped_and_a_place_that_is_given_up_is_free() -> None:
    async with running(connections_max=2) as relay:
        async with await Device.open(relay.port, ANNA):
            async with await Device.open(relay.port, ANNA):
                async with await Stranger.dial(relay.port) as third:
                    assert await third.rest() == b""
            await turns_until(lambda: relay.plane.connections == 1)
            async with await Device.open(relay.port, BERT):
                pass


@asyncio_test
async def test_the_setting_for_the_login_counts_from_accepting_the_socket() -> None:
    async with running(login_seconds=8.0) as relay, await Stranger.upgraded(relay.port) as stranger:
        stranger.send(frame(BINARY, HELLO))
        await stranger.receive()
        relay.pass_time(8.0)
        assert await stranger.closed() == CloseCode.TOO_SLOW


# --- slow and silent ones


@asyncio_test
async def test_a_silent_device_is_pinged_and_then_given_up() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        relay.pass_time(26.0)
        assert await stranger.receive() == (PING, b"")
        relay.pass_time(80.0)
        assert await stranger.closed() == CloseCode.IDLE


@asyncio_test
async def test_s18_a_message_that_never_ends_is_not_waited_for() -> None:
    async with running() as relay, await logged_in(relay.port) as stranger:
        stranger.send(frame(BINARY, bytes(10), length=1000))
        stranger.send(b"x")
        stranger.send(frame(PING))
        relay.pass_time(1.0)
        (connection,) = relay.plane._gateway._connections
        await turns_until(lambda: connection._reader is not None and connection._reader.incomplete)
        relay.pass_time(76.0)
        assert await stranger.closed() == CloseCode.TOO_SLOW


@asyncio_test
async def test_s18_a_subscriber_that_never_reads_is_soon_sent_nothing_more_and_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sealwire_relay.connection.CLOSE_SECONDS", 0.0)
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, log = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        await anna.add(log, BERT)
        await anna.subscribe(vault, TODOS)
        async with await logged_in(relay.port, BERT) as deaf:
            deaf.deafen()
            deaf.send(frame(BINARY, codec.encode(Subscribe(vault, (Wanted(TODOS, START, START),)))))
            (connection,) = [each for each in relay.plane._gateway._connections if each.device == BERT.key]
            transport = connection._transport
            assert transport is not None
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            await turns_until(lambda: any(listener.live for listener in connection.session.listeners.values()))
            unsent = []
            for batch in range(1, 61):
                await anna.push(vault, batch, group(TODOS, record(units=4000)))
                unsent.append(transport.get_write_buffer_size())
            # The system may take some more after a while; then a page is sent, and what was committed meanwhile.
            assert 0 < max(unsent) <= STALLED_BYTES + PAGE_BYTES_MAX + SEGMENT_BYTES_MAX
            assert unsent[-1] == unsent[-10], "it is sent no more"
            assert relay.plane.connections == 2
            relay.pass_time(26.0)
            relay.pass_time(80.0)
            await turns_until(lambda: relay.plane.connections == 0)


Replacing = TypeVar("Replacing", bound=asyncio.Transport)


@contextlib.contextmanager
def sends_to(connection: Connection, transport: Replacing) -> Iterator[Replacing]:
    """All that is sent goes to this transport, and nothing to the socket, which is cut in the end."""
    real = connection._transport
    assert real is not None
    connection._transport, connection._fd = transport, -1
    try:
        yield transport
    finally:
        connection._transport = real
        real.abort()


class FullTransport(asyncio.Transport):
    """A transport whose peer takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.aborted = 0, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.size += len(data)

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.aborted = True


@asyncio_test
async def test_s18_what_waits_for_a_peer_that_does_not_read_is_bounded() -> None:
    async with running() as relay:
        async with await Device.open(relay.port, ANNA):
            (connection,) = relay.plane._gateway._connections
            with sends_to(connection, FullTransport()) as full:
                connection.pause_writing()
                for _ in range(100):
                    connection.send_frame(bytes(100_000))
                    connection.flush()
            assert full.aborted
            assert full.size <= 4_194_304 + 100_000
            assert relay.counted("closes_total", code="unread") == 1


class OpenTransport(asyncio.Transport):
    """A transport whose peer takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0


class FullSocket(OpenTransport):
    """A transport of which nothing leaves, above a socket that takes some bytes, which `fd` is one end of."""

    def __init__(self) -> None:
        super().__init__()
        self._end, self.fd = os.pipe2(os.O_NONBLOCK)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.writes))

    def taken(self) -> bytes:
        """What was written past the transport."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._end, 1_000_000)
        return b""

    def close(self) -> None:
        os.close(self._end)
        os.close(self.fd)


@asyncio_test
async def test_what_a_socket_does_not_take_at_once_follows_in_order() -> None:
    async with running() as relay, await logged_in(relay.port) as slow:
        (connection,) = relay.plane._gateway._connections
        assert connection._transport is not None
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        sent = [number.to_bytes(4, "big") * 250 for number in range(1_000)]
        waited = 0
        for _ in range(2):
            for data in sent:
                connection.send_frame(binary_frame(data))
                connection.flush()
                waited += bool(connection._transport.get_write_buffer_size())
            for data in sent:
                assert await slow.receive() == (BINARY, data)
        assert waited, "the socket took all of it"
        await turns_until(lambda: not connection.session._stalled)
        connection.send_frame(binary_frame(b"last"))
        connection.flush()
        assert await slow.receive() == (BINARY, b"last") and not connection._queued


@asyncio_test
async def test_nothing_overtakes_what_was_left_to_the_transport() -> None:
    async with running() as relay:
        async with await Device.open(relay.port, ANNA):
            (connection,) = relay.plane._gateway._connections
            real = connection._transport
            sent = [b"head", bytes(100_000), b"small"]

            def send(*frames: bytes) -> None:
                for one in frames:
                    connection.send_frame(one)
                connection.flush()

            with contextlib.closing(FullSocket()) as full:
                connection._transport, connection._fd = full, full.fd
                send(sent[1])
                begun = full.taken()
                assert 0 < len(begun) < len(sent[1]), "the socket takes some of it"
                send(sent[2])
                assert (full.taken(), begun + b"".join(full.writes)) == (b"", sent[1] + sent[2])
            with contextlib.closing(FullSocket()) as full:
                connection._transport, connection._fd, connection._queued = full, full.fd, False
                send(*sent[:2])
                send(sent[2])
                assert (full.taken(), b"".join(full.writes)) == (b"", b"".join(sent))
            connection._transport, connection._fd = real, -1
            assert real is not None
            real.abort()


@asyncio_test
async def test_nothing_is_sent_any_more_once_a_connection_is_cut() -> None:
    async with running() as relay, await logged_in(relay.port) as cut:
        (connection,) = relay.plane._gateway._connections
        connection.send_frame(binary_frame(b"not any more"))
        connection.abort()
        connection.send_frame(binary_frame(b"nor this"))
        connection.flush()
        assert await cut.rest() == b""
        await turns_until(lambda: connection._transport is None)
        assert connection._fd == -1
        connection.flush()


@asyncio_test
async def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    async with running() as relay:
        async with await Device.open(relay.port, ANNA):
            (connection,) = relay.plane._gateway._connections
            with sends_to(connection, OpenTransport()) as transport:
                connection.send_frame(b"alone")
                assert transport.writes == []
                await turns(1)
                for part in (b"one, ", b"two, ", b"three"):
                    connection.send_frame(part)
                await turns(1)
                connection.send_frame(b"alone again")
                connection.flush()
                await turns(1)
            assert transport.writes == [b"alone", b"one, two, three", b"alone again"]


@asyncio_test
async def test_the_kernel_waits_for_no_more_bytes_and_for_no_dead_peer() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA):
        (connection,) = relay.plane._gateway._connections
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 75_000


# --- floods of those who have logged in


@asyncio_test
async def test_requests_may_be_sent_without_waiting_and_are_all_answered() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.send(*[CreateStream(100 + n, vault, stream_id(n + 1), StreamKind.OPEN) for n in range(200)])
        await anna.when(lambda: len([m for m in anna.log if isinstance(m, Done)]) == 200)


@asyncio_test
async def test_a_flood_of_requests_that_wait_ends_the_connection() -> None:
    store = TroubledStore(await memory_store())
    held = asyncio.Event()
    async with running(store.store) as relay, await Device.open(relay.port, ANNA, applies=False) as anna:
        wanted = tuple(Wanted(stream_id(n), START, START) for n in range(1, 257))
        store.expect("subscription", *[Mishap(made=True, before=held.wait)] * 40)
        for n in range(200):
            with contextlib.suppress(ConnectionClosed):
                await anna.send(Subscribe(VaultId(n.to_bytes(16, "big")), wanted))
        assert await anna.closed() in (CloseCode.OVERLOADED, CloseCode.PROTOCOL_ERROR)
        held.set()
        await turns_until(lambda: not relay.plane._gateway._tasks and not relay.plane.connections)
        assert not relay.plane._fanout._listeners


@asyncio_test
async def test_more_pushes_than_the_window_end_the_connection() -> None:
    store = TroubledStore(await memory_store())
    held = asyncio.Event()
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        await anna.subscribe(vault, TODOS)
        store.expect("append", Mishap(made=True, before=held.wait))
        await anna.send(*[Push(vault, anna.term(vault), n, 0, (group(TODOS, record()),)) for n in range(1, 10)])
        assert await anna.closed() == CloseCode.PROTOCOL_ERROR
        held.set()
        await turns_until(lambda: not relay.plane._ingest.unanswered)


@asyncio_test
async def test_credit_that_was_never_used_cannot_be_given_back() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        await anna.send(Ack(1, ()))
        assert await anna.closed() == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("records", "code"),
    [
        (encode_segment([record()] * 2049), CloseCode.TOO_LARGE),
        (encode_segment([record(), record(author=2)]), CloseCode.PROTOCOL_ERROR),
        (b"", CloseCode.PROTOCOL_ERROR),
        (b"\xff" * 100, CloseCode.PROTOCOL_ERROR),
        (encode_segment([record()])[:-1], CloseCode.PROTOCOL_ERROR),
    ],
    ids=["too-many", "two-authors", "empty", "rubbish", "cut-off"],
)
def test_a_push_that_no_honest_client_makes_ends_the_connection(records: bytes, code: CloseCode) -> None:
    @asyncio_test
    async def run() -> None:
        async with running() as relay, await Device.open(relay.port, ANNA) as anna:
            vault, _ = await anna.create_vault()
            for stream in (TODOS, stream_id(2)):
                await anna.create_stream(vault, stream)
            await anna.subscribe(vault, TODOS)
            spoilt = [group(stream, record())._replace(records=records) for stream in (TODOS, stream_id(2))]
            await anna.send(Push(vault, anna.term(vault), 1, 0, tuple(spoilt)))
            assert await anna.closed() == code

    run()


@asyncio_test
async def test_a_push_without_a_subscription_is_told_to_subscribe() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.send(Push(vault, Term(1, bytes(8)), 1, 0, (group(TODOS, record()),)))
        await anna.when(lambda: "NOT_SUBSCRIBED" in repr(anna.log))
