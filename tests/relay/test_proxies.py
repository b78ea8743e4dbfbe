"""Connections that proxies bring: counted, and written down, as those of the addresses that trusted ones tell."""

import asyncio
from typing import Any

import pytest

from sealwire_protocol.errors import CloseCode
from sealwire_relay.admintokens import make
from sealwire_relay.buckets import BURST_SECONDS
from sealwire_relay.store.memory import MemoryStore
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity
from tests.support.relay import Relay, memory_store, running, turns_until
from tests.support.stranger import BINARY, REQUEST, Stranger, frame

ANNA = Identity(1)
PROXY: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",)}
TCP: dict[str, Any] = {**PROXY, "proxy_header": "proxy-protocol"}


def of(address: str) -> bytes:
    """A header of a request."""
    return f"X-Forwarded-For: {address}\r\n".encode()


def line(address: str) -> bytes:
    """A PROXY header."""
    return f"PROXY TCP4 {address} 127.0.0.1 4711 443\r\n".encode()


async def answer(relay: Relay, headers: bytes, source: str = "127.0.0.1") -> tuple[Stranger, bytes]:
    """A socket that has asked for a WebSocket, and the head of what it was answered."""
    stranger = await Stranger.dial(relay.port, source)
    stranger.send(REQUEST + headers + b"\r\n")
    return stranger, await stranger.response()


def seen(relay: Relay) -> set[str]:
    return {connection.address for connection in relay.plane._gateway._connections}


async def gone(*strangers: Stranger) -> None:
    for stranger in strangers:
        await stranger.__aexit__()


# --- whose word counts


@asyncio_test
async def test_a_trusted_proxy_is_believed_and_nobody_else() -> None:
    async with running(**PROXY) as relay:
        near, _ = await answer(relay, of("192.0.2.1, 198.51.100.7"))
        assert seen(relay) == {"198.51.100.7"}
        await gone(near)
        await turns_until(lambda: relay.plane.connections == 0)
        far, _ = await answer(relay, of("198.51.100.7"), "127.0.0.2")
        assert seen(relay) == {"127.0.0.2"}
        await gone(far)


@asyncio_test
async def test_without_trusted_proxies_nobody_is_believed() -> None:
    async with running() as relay:
        stranger, _ = await answer(relay, of("198.51.100.7"))
        assert seen(relay) == {"127.0.0.1"}
        await gone(stranger)


@asyncio_test
async def test_the_header_that_is_not_set_is_not_looked_at() -> None:
    async with running(**PROXY, proxy_header="forwarded") as relay:
        stranger, _ = await answer(relay, of("198.51.100.7") + b'Forwarded: for="192.0.2.9:1"\r\n')
        assert seen(relay) == {"192.0.2.9"}
        await gone(stranger)


@asyncio_test
async def test_a_proxy_that_writes_no_address_is_told_to_come_back() -> None:
    async with running(**PROXY) as relay:
        stranger, head = await answer(relay, of("rubbish"))
        assert head.startswith(b"HTTP/1.1 503")
        assert b"\r\nRetry-After: 5\r\n" in head
        assert relay.counted("closes_total", code="malformed") == 1
        await gone(stranger)
        await turns_until(lambda: relay.plane.connections == 0)


# --- what is counted


@asyncio_test
async def test_devices_behind_a_proxy_on_this_machine_are_counted_by_their_addresses() -> None:
    async with running(**PROXY, connections_per_address_max=2) as relay:
        crowd = [(await answer(relay, of("198.51.100.7")))[0] for _ in range(2)]
        third, head = await answer(relay, of("198.51.100.7"))
        assert head.startswith(b"HTTP/1.1 503") and b"Retry-After" in head
        assert relay.counted("closes_total", code="refused") == 1
        other, head = await answer(relay, of("198.51.100.8"))
        assert head.startswith(b"HTTP/1.1 101")
        await gone(third, crowd[0])
        await turns_until(lambda: relay.plane.connections == 2)
        late, head = await answer(relay, of("198.51.100.7"))
        assert head.startswith(b"HTTP/1.1 101")
        await gone(crowd[1], other, late)
    assert not relay.plane._gateway._sites._counts


@pytest.mark.usefixtures("still_limits")
@asyncio_test
async def test_who_dials_too_often_is_refused_by_a_proxys_word_too() -> None:
    async with running(**PROXY, address_connections_per_second_max=1) as relay:
        relay.stand_still()
        for _ in range(int(BURST_SECONDS)):
            stranger, head = await answer(relay, of("198.51.100.7"))
            assert head.startswith(b"HTTP/1.1 101")
            await gone(stranger)
        refused, head = await answer(relay, of("198.51.100.7"))
        assert head.startswith(b"HTTP/1.1 503") and b"Retry-After" in head
        other, head = await answer(relay, of("198.51.100.8"))
        assert head.startswith(b"HTTP/1.1 101")
        await gone(refused, other)
        await turns_until(lambda: relay.plane.connections == 0)
    assert not relay.plane._gateway._sites._counts


@pytest.mark.usefixtures("still_limits")
@asyncio_test
async def test_a_trusted_proxy_itself_is_not_counted_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.sites.is_loopback", lambda _: False)
    limits: dict[str, Any] = {
        "connections_per_address_max": 1,
        "handshakes_per_address_max": 1,
        "address_connections_per_second_max": 1,
    }
    many = int(BURST_SECONDS) + 1
    async with running(**PROXY, **limits) as relay:
        own = [await Stranger.upgraded(relay.port) for _ in range(many)]
        assert relay.plane.connections == many
        await gone(*own)


@asyncio_test
async def test_connections_of_an_address_are_counted_logged_in_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.sites.is_loopback", lambda _: False)
    async with running(connections_per_address_max=2) as relay:
        async with await Device.open(relay.port, ANNA), await Stranger.dial(relay.port):
            await turns_until(lambda: relay.plane.connections == 2)
            async with await Stranger.dial(relay.port) as third:
                assert await third.rest() == b""
            async with await Stranger.dial(relay.port, "127.0.0.2"):
                await turns_until(lambda: relay.plane.connections == 3)
        await turns_until(lambda: relay.plane.connections == 0)
    assert not relay.plane._gateway._sites._counts


@asyncio_test
async def test_s16_handshakes_behind_a_proxy_are_capped_by_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.handshakes.GRACE_SECONDS", 3_600.0)
    async with running(**PROXY, handshakes_per_address_max=2) as relay:
        silent = [(await answer(relay, of("198.51.100.7")))[0] for _ in range(2)]
        refused, head = await answer(relay, of("198.51.100.7"))
        assert head.startswith(b"HTTP/1.1 503")
        other, head = await answer(relay, of("198.51.100.8"))
        assert head.startswith(b"HTTP/1.1 101")
        monkeypatch.setattr("sealwire_relay.handshakes.GRACE_SECONDS", 0.0)
        late, head = await answer(relay, of("198.51.100.7"))
        assert head.startswith(b"HTTP/1.1 101")
        assert await silent[0].closed() == CloseCode.OVERLOADED
        await gone(*silent, refused, other, late)
        await turns_until(lambda: relay.plane.connections == 0)
    assert not relay.plane._gateway._handshakes._sites


@asyncio_test
async def test_s21_what_is_written_down_of_an_admin_token_is_the_address_that_the_proxy_tells() -> None:
    store: MemoryStore = await memory_store()
    async with running(store, **PROXY) as relay:
        first, _ = await answer(relay, of("198.51.100.7") + b"Authorization: Bearer " + make().text.encode() + b"\r\n")
        second, _ = await answer(relay, of("198.51.100.8"))
        second.send(frame(BINARY, make().text.encode()))
        assert await second.closed() == CloseCode.LOGIN_REFUSED
        await relay.plane.audit.flush()
        assert {asked.address for asked in await store.audit(10)} == {"198.51.100.7", "198.51.100.8"}
        await gone(first)


# --- the PROXY protocol


@asyncio_test
async def test_a_connection_begins_with_a_proxy_header_whole_or_in_pieces() -> None:
    async with running(**TCP) as relay:
        async with await Stranger.dial(relay.port) as stranger:
            for byte in line("198.51.100.7"):
                stranger.send(bytes((byte,)))
                await asyncio.sleep(0)
            stranger.send(REQUEST + of("192.0.2.66") + b"\r\n")
            assert (await stranger.response()).startswith(b"HTTP/1.1 101")
            assert seen(relay) == {"198.51.100.7"}, "a header of the request is not looked at then"
        await turns_until(lambda: relay.plane.connections == 0)
        async with await Stranger.dial(relay.port) as stranger:
            stranger.send(b"PROXY UNKNOWN\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stranger.rest()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "begin", [REQUEST + b"\r\n", b"PROXY TCP4 x\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", b"PROXY " + b"a" * 200]
)
@asyncio_test
async def test_a_connection_that_does_not_is_hung_up_on(begin: bytes) -> None:
    async with running(**TCP) as relay, await Stranger.dial(relay.port) as stranger:
        stranger.send(begin)
        assert await stranger.rest() == b""
        assert relay.counted("closes_total", code="malformed") == 1
        await turns_until(lambda: relay.plane.connections == 0)


@asyncio_test
async def test_from_others_nothing_is_taken_then() -> None:
    async with running(**TCP) as relay:
        async with await Stranger.dial(relay.port, "127.0.0.2") as stranger:
            stranger.send(line("198.51.100.7") + REQUEST + b"\r\n")
            assert await stranger.rest() == b""
        assert relay.counted("closes_total", code="refused") == 1
        assert relay.plane.connections == 0


@asyncio_test
async def test_addresses_that_the_proxy_protocol_tells_are_capped() -> None:
    async with running(**TCP, connections_per_address_max=1) as relay:
        async with await Stranger.dial(relay.port) as first:
            first.send(line("198.51.100.7"))
            await turns_until(lambda: seen(relay) == {"198.51.100.7"})
            async with await Stranger.dial(relay.port) as second:
                second.send(line("198.51.100.7") + REQUEST + b"\r\n")
                assert await second.rest() == b""
        await turns_until(lambda: relay.plane.connections == 0)
    assert not relay.plane._gateway._sites._counts


@asyncio_test
async def test_a_proxy_header_that_never_ends_is_waited_for_no_longer_than_a_login() -> None:
    async with running(**TCP) as relay, await Stranger.dial(relay.port) as stranger:
        stranger.send(b"PROXY TCP4")
        await turns_until(lambda: relay.plane.connections == 1)
        relay.pass_time(10.0)
        assert await stranger.rest() == b""
        await turns_until(lambda: relay.plane.connections == 0)
