import asyncio
import signal
import socket

import msgspec
import pytest

from sealwire_relay.control.app import Readiness, control_app
from sealwire_relay.control.server import ControlServer
from sealwire_relay.metrics import Metrics
from tests.support.aio import asyncio_test


async def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


@asyncio_test
async def test_it_says_whether_and_why_not() -> None:
    reasons: list[str] = ["The database does not answer."]
    server = ControlServer(control_app(Metrics(), lambda: reasons), "127.0.0.1", 0)
    port = await server.start()
    try:
        assert (await get(port, "/livez"))[0] == 200
        status, headers, body = await get(port, "/readyz")
        assert status == 503
        assert headers["cache-control"] == "no-store"
        assert msgspec.json.decode(body, type=Readiness) == Readiness(ready=False, reasons=reasons)
        reasons = []
        status, _, body = await get(port, "/readyz")
        assert status == 200
        assert msgspec.json.decode(body, type=Readiness) == Readiness(ready=True, reasons=[])
        assert (await get(port, "/other"))[0] == 404
    finally:
        await server.stop()


@asyncio_test
async def test_it_shows_metrics() -> None:
    metrics = Metrics()
    metrics.follow(lambda: True)
    metrics.closes.labels("1012").inc(3)
    metrics.term.set(7)
    server = ControlServer(control_app(metrics, list), "127.0.0.1", 0)
    port = await server.start()
    try:
        status, headers, body = await get(port, "/metrics")
    finally:
        await server.stop()
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    lines = body.decode().splitlines()
    for line in ('sealwire_closes_total{code="1012"} 3.0', "sealwire_term 7.0", "sealwire_ready 1.0"):
        assert line in lines


def test_two_relays_in_a_process_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.logins.inc()
    assert b"sealwire_logins_total 1.0" in one.text()
    assert b"sealwire_logins_total 0.0" in other.text()


@asyncio_test
async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ControlServer(control_app(Metrics(), list), "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await server.start()
        await server.stop()


@asyncio_test
async def test_it_leaves_signals_alone_and_frees_its_port() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    server = ControlServer(control_app(Metrics(), list), "127.0.0.1", 0)
    port = await server.start()
    assert (await get(port, "/livez"))[0] == 200
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    await server.stop()
    await server.stop()
    with pytest.raises(ConnectionRefusedError):
        await get(port, "/livez")


@asyncio_test
async def test_a_device_that_dials_it_by_mistake_gets_no_socket_and_fills_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ControlServer(control_app(Metrics(), list), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start())
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    await server.stop()
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


@asyncio_test
async def test_who_keeps_a_connection_open_does_not_keep_the_relay_from_stopping() -> None:
    server = ControlServer(control_app(Metrics(), list), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", await server.start())
    await server.stop()
    writer.close()
