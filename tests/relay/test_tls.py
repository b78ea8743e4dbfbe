"""TLS on the data port, with a real certificate: what it must not change, and how its files may be wrong."""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import ssl
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_protocol import codec
from sealwire_protocol.errors import CloseCode, RemoteFault
from sealwire_protocol.ids import NONCE_BYTES
from sealwire_protocol.messages import Challenge, Hello
from sealwire_relay.buckets import BURST_SECONDS
from sealwire_relay.connection import SLICE_BYTES
from sealwire_relay.settings import SettingsError
from sealwire_relay.tls import Certificate, TlsTransport, load
from tests.support.aio import asyncio_test
from tests.support.certificate import Pair, make_pair
from tests.support.device import WAIT_SECONDS, Identity
from tests.support.relay import Relay, running, turns_until
from tests.support.stranger import BINARY, PONG, REQUEST, Stranger, frame

HELLO = frame(BINARY, codec.encode(Hello(1, 1, Identity(1).key, bytes(NONCE_BYTES), "test")))


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


async def dial(relay: Relay, context: ssl.SSLContext, before: bytes = b"") -> Stranger:
    """A socket that has shaken hands by TLS. `before`: what is sent in clear first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(before)
    async with asyncio.timeout(WAIT_SECONDS):
        await writer.start_tls(context, server_hostname="127.0.0.1")
    return Stranger(reader, writer)


async def greet(stranger: Stranger) -> None:
    """Open a WebSocket and say hello."""
    stranger.send(REQUEST + b"\r\n" + HELLO)
    assert (await stranger.response()).startswith(b"HTTP/1.1 101")
    _, data = await stranger.receive()
    assert isinstance(codec.decode(data), Challenge)


@asyncio_test
async def test_what_is_said_over_tls_is_heard_and_answered(pair: Pair) -> None:
    async with running(**pair.settings()) as relay, await dial(relay, pair.trusting()) as stranger:
        await greet(stranger)
        stranger.send(frame(9, bytes(100)))
        assert await stranger.receive() == (PONG, bytes(100))


@asyncio_test
async def test_many_bytes_pass_both_ways(pair: Pair) -> None:
    async with running(**pair.settings()) as relay, await dial(relay, pair.trusting()) as stranger:
        await greet(stranger)
        (connection,) = relay.plane._gateway._connections
        connection.send_frame(bytes((0x82, 127)) + (1_000_000).to_bytes(8, "big") + bytes(1_000_000))
        assert await stranger.receive() == (BINARY, bytes(1_000_000))


@asyncio_test
async def test_much_that_says_nothing_waits_for_its_turn_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(**pair.settings()) as relay, await dial(relay, pair.trusting()) as stranger:
        await greet(stranger)
        (connection,) = relay.plane._gateway._connections
        transport = connection._transport
        assert transport is not None
        monkeypatch.setattr(TlsTransport, "receive", lambda self, data: b"")
        connection.data_received(bytes(SLICE_BYTES))
        assert transport.is_reading()
        connection.data_received(bytes(SLICE_BYTES + 1))
        assert not transport.is_reading()
        await turns_until(transport.is_reading)
        transport.abort()


@asyncio_test
async def test_the_last_words_arrive_while_the_peer_still_sends(pair: Pair) -> None:
    async with running(**pair.settings()) as relay, await dial(relay, pair.trusting()) as stranger:
        await greet(stranger)
        stranger.send(frame(BINARY, bytes(4_000)) * 200)
        assert await stranger.closed() == CloseCode.TOO_LARGE
        await turns_until(lambda: relay.plane.connections == 0)


@asyncio_test
async def test_a_device_that_hangs_up_by_tls_alone_is_forgotten(pair: Pair) -> None:
    async with running(**pair.settings()) as relay:
        stranger = await dial(relay, pair.trusting())
        await greet(stranger)
        await stranger.__aexit__()
        await turns_until(lambda: relay.plane.connections == 0)


@asyncio_test
async def test_the_relay_stops_with_a_goodbye_over_tls(pair: Pair) -> None:
    async with running(**pair.settings()) as relay:
        stranger = await dial(relay, pair.trusting())
        await greet(stranger)
        goodbye = asyncio.create_task(stranger.closed())
        await relay.plane.stop()
        assert await goodbye == CloseCode.RESTARTING


@pytest.mark.parametrize("sent", [REQUEST + b"\r\n", bytes(500), b"\x16\x03\x01\xff\xff" + bytes(70_000)])
@asyncio_test
async def test_what_is_not_tls_is_hung_up_on(sent: bytes, pair: Pair) -> None:
    async with running(**pair.settings()) as relay, await Stranger.dial(relay.port) as stranger:
        stranger.send(sent)
        assert b"HTTP" not in await stranger.rest()
        await turns_until(lambda: relay.plane.connections == 0)
        assert relay.counted("closes_total", code="malformed") == 1


@asyncio_test
async def test_rubbish_within_tls_ends_it_with_an_alert(pair: Pair) -> None:
    async with running(**pair.settings()) as relay:
        stranger = await dial(relay, pair.trusting())
        await greet(stranger)
        with socket.socket(fileno=os.dup(stranger._writer.get_extra_info("socket").fileno())) as below:
            below.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            await stranger.receive()
        stranger._writer.transport.abort()
        await turns_until(lambda: relay.plane.connections == 0)


@pytest.mark.usefixtures("still_limits")
@asyncio_test
async def test_who_dials_too_often_is_refused_before_anything_is_decrypted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealwire_relay.sites.is_loopback", lambda _: False)
    begun: list[asyncio.Transport] = []

    class Counted(TlsTransport):
        def __init__(self, below: asyncio.Transport, context: ssl.SSLContext) -> None:
            super().__init__(below, context)
            begun.append(below)

    monkeypatch.setattr("sealwire_relay.connection.TlsTransport", Counted)
    async with running(**pair.settings(), address_connections_per_second_max=1) as relay:
        relay.stand_still()
        for _ in range(int(BURST_SECONDS)):
            async with await Stranger.dial(relay.port) as stranger:
                stranger.send(REQUEST + b"\r\n")
                await stranger.rest()
        for _ in range(9):
            async with await Stranger.dial(relay.port) as stranger:
                stranger.send(REQUEST + b"\r\n")
                assert await stranger.rest() == b""
        assert len(begun) == BURST_SECONDS
        assert relay.counted("closes_total", code="refused") == 9
        async with await Stranger.dial(relay.port, "127.0.0.2"):
            await turns_until(lambda: relay.plane.connections == 1)


@asyncio_test
async def test_half_a_handshake_is_waited_for_no_longer_than_a_login(pair: Pair) -> None:
    async with running(**pair.settings()) as relay, await Stranger.dial(relay.port) as stranger:
        stranger.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await turns_until(lambda: relay.plane.connections == 1)
        relay.pass_time(10.0)
        assert await stranger.rest() == b""


@asyncio_test
async def test_nothing_older_than_tls_1_2_is_spoken(pair: Pair) -> None:
    old = pair.trusting()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with running(**pair.settings()) as relay:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await dial(relay, old)


class Nowhere(asyncio.Transport):
    """A transport that leads nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Thrown away."""

    def close(self) -> None:
        """Nothing to close."""


def spoilt(data: bytes, place: int, rubbish: bytes) -> bytes:
    """Bytes in which some have been overwritten."""
    place %= len(data)
    return data[:place] + rubbish + data[place + len(rubbish) :]


def test_s19_any_bytes_instead_of_a_handshake_are_waited_on_or_a_typed_error(pair: Pair) -> None:
    context, trusting = load(*pair), pair.trusting()
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trusting.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    hello = out.read()

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, 2_000), st.binary(max_size=40), st.binary(max_size=200))
    def spoil(place: int, rubbish: bytes, after: bytes) -> None:
        tls = TlsTransport(Nowhere(), context)
        for data in (spoilt(hello, place, rubbish), after, after):
            try:
                assert tls.receive(data) == b""
            except RemoteFault:
                break
        tls.write(b"thrown away")

    spoil()


# --- a proxy that passes TLS on


@asyncio_test
async def test_tls_may_begin_behind_a_proxy_header_in_the_same_packet(pair: Pair) -> None:
    header = b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 443\r\n"
    behind = {**pair.settings(), "trusted_proxies": ("127.0.0.1",), "proxy_header": "proxy-protocol"}
    async with running(None, **behind) as relay, await dial(relay, pair.trusting(), header) as stranger:
        await greet(stranger)
        (connection,) = relay.plane._gateway._connections
        assert connection.address == "198.51.100.7"


# --- the files


def test_files_that_are_missing_or_cannot_be_read_are_named(pair: Pair, tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    for files in ((missing, pair.key), (pair.certificate, missing)):
        with pytest.raises(SettingsError, match=r"none\.pem, .* cannot be read: No such file"):
            load(*files)
    with pytest.raises(SettingsError, match="Is a directory"):
        load(tmp_path, pair.key)


def test_files_of_something_else_are_refused(pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("hello")
    for files in ((other, pair.key), (pair.certificate, other), (pair.key, pair.certificate)):
        with pytest.raises(SettingsError, match="BEGIN CERTIFICATE"):
            load(*files)


def test_a_key_of_another_certificate_is_refused(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_pair(tmp_path / "other")
    with pytest.raises(SettingsError, match="is not that of the certificate"):
        load(pair.certificate, other.key)


def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    locked = make_pair(tmp_path, passphrase=b"secret")
    with pytest.raises(SettingsError, match="passphrase"):
        load(*locked)


def test_an_outdated_certificate_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Certificate(*make_pair(tmp_path))
    assert not caplog.records
    Certificate(*make_pair(tmp_path, days=-1))
    assert "certificate has expired" in caplog.text


@asyncio_test
async def test_a_renewed_certificate_is_taken_up_by_the_relay_that_runs(pair: Pair, tmp_path: Path) -> None:
    old = pair.trusting()
    async with running(**pair.settings()) as relay:
        renewed = make_pair(tmp_path)
        async with await dial(relay, old):
            pass
        relay.pass_time(31.0)
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(relay, old)
        async with await dial(relay, renewed.trusting()) as late:
            await greet(late)


@asyncio_test
async def test_connections_that_are_open_outlive_the_certificate(pair: Pair, tmp_path: Path) -> None:
    async with running(**pair.settings()) as relay, await dial(relay, pair.trusting()) as early:
        await greet(early)
        renewed = make_pair(tmp_path)
        certificate = relay.plane._gateway.certificate
        assert certificate is not None
        certificate.on_time(0.0)
        async with await dial(relay, renewed.trusting()):
            early.send(frame(9, b"still"))
            assert await early.receive() == (PONG, b"still")


def test_a_renewal_that_is_half_written_is_told_once_and_taken_up_when_whole(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(*pair)
    before = certificate.context
    (tmp_path / "new").mkdir()
    new = make_pair(tmp_path / "new")
    shutil.copy(new.certificate, pair.certificate)
    for now in (30.0, 60.0):
        assert certificate.on_time(now) == now + 30.0
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert certificate.context is before
    shutil.copy(new.key, pair.key)
    certificate.on_time(90.0)
    assert certificate.context is not before
    pair.key.unlink()
    current = certificate.context
    certificate.on_time(120.0)
    assert certificate.context is current
    assert "cannot be read" in caplog.text


def test_files_that_go_while_they_are_read_are_looked_at_again(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate(*pair)
    before = certificate.context
    make_pair(tmp_path)
    with monkeypatch.context() as patch:
        # They are there whenever they are looked at, and not when they are read.
        status = pair.key.stat()
        patch.setattr("sealwire_relay.tls._status", lambda _: status)
        hidden = pair.key.rename(tmp_path / "hidden")
        assert certificate.on_time(30.0) == 60.0
        assert "cannot be read" in caplog.text
        assert certificate.context is before
        hidden.rename(pair.key)
    certificate.on_time(60.0)
    assert certificate.context is not before


def test_a_certificate_that_goes_once_it_is_loaded_is_taken_up(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate(*pair)
    before = certificate.context
    make_pair(tmp_path)

    def load_and_hide(file: Path, key: Path) -> ssl.SSLContext:
        context = load(file, key)
        file.rename(tmp_path / "hidden")
        return context

    monkeypatch.setattr("sealwire_relay.tls.load", load_and_hide)
    certificate.on_time(30.0)
    assert "it cannot be read again" in caplog.text
    assert certificate.context is not before
