"""What the relay's own path costs, without a database: `python -m bench.parts.relay_path` prints one JSON object.

The relay runs in a process of its own on a store in memory; the load comes from this one, over loopback, so two free
cores are needed for the rates. `push_us` and `deliver_us` are the relay's processor time for each, load or not.
Pushes are single records from 16 connections, eight under way on each; deliveries go to 200 subscribers.
"""

import asyncio
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable

import uvloop

from sealwire_protocol import codec
from sealwire_protocol.events import Opened, Received
from sealwire_protocol.ids import START, Author, Term, VaultId
from sealwire_protocol.messages import Ack, Deliver, Message, Push, Pushed, Subscribe, Subscribed, Wanted, Welcome
from sealwire_relay.dataplane import DataPlane
from sealwire_relay.frames import binary_frame
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from sealwire_relay.store.memory import MemoryStore
from tests.support.device import Device, Identity, group, record, stream_id

PUSHERS = 16
SUBSCRIBERS = 200
SECONDS = 4.0
WINDOW = 8
STREAM = stream_id(1)
ACK_BYTES = 1_000_000


async def serve() -> None:
    """The relay's process: says its port, then on every line that comes in how much processor time it has used."""
    store = MemoryStore()
    await store.open()
    plane = DataPlane(store, Settings(port=0), Metrics(), verify)
    print(await plane.start(), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(time.process_time(), flush=True)
    await plane.stop()


def masked(message: Message) -> bytes:
    """A client's frame. Its mask is zero, which costs this process nothing."""
    frame = bytearray(binary_frame(codec.encode(message)))
    frame[1] |= 0x80
    at = 2 + {126: 2, 127: 8}.get(frame[1] & 0x7F, 0)
    frame[at:at] = bytes(4)
    return bytes(frame)


class Light(asyncio.Protocol):
    """A connection that costs this process as little as possible. `on_message` is called with every message."""

    def __init__(self, identity: Identity, port: int) -> None:
        self.device = Device(port, identity)
        self.counted = self.bytes_due = 0
        self._buffer = b""
        self._shaken = False
        self.on_message: Callable[[bytes], None] = lambda _: None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a WebSocket at once."""
        self.transport = transport  # type: ignore[assignment]
        self.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )

    def write(self, data: bytes) -> None:
        """Send bytes."""
        assert self.transport is not None
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Cut into messages."""
        data, at = self._buffer + data, 0
        if not self._shaken:
            self._shaken, at = True, data.index(b"\r\n\r\n") + 4
        end = len(data)
        while at + 10 <= end or (at + 2 <= end and data[at + 1] < 126):
            size, body = data[at + 1], at + 2
            if size >= 126:
                wide = 2 if size == 126 else 8
                size, body = int.from_bytes(data[body : body + wide], "big"), body + wide
            if body + size > end:
                break
            if data[at] == 0x82:
                self.on_message(data[body : body + size])
            at = body + size
        self._buffer = data[at:]

    async def expect(self, kind: type[Message], *first: Message) -> Message:
        """Send these and wait for a message of a kind."""
        found: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def look(data: bytes) -> None:
            message = codec.decode(data)
            if isinstance(message, kind) and not found.done():
                found.set_result(message)

        self.on_message = look
        for message in first:
            self.write(masked(message))
        return await found

    async def login(self) -> None:
        """Log in by the session of a real device."""
        device = self.device

        async def send(data: bytes) -> None:
            message = codec.decode(data)
            assert message is not None
            self.write(masked(message))

        device.send_bytes = send  # type: ignore[method-assign]
        arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self.on_message = arrived.put_nowait
        await device.handle(Opened(0.0))
        while True:
            data = await arrived.get()
            await device.handle(Received(data, 0.0))
            if isinstance(codec.decode(data), Welcome):
                return

    def count_deliveries(self, data: bytes) -> None:
        """A subscriber: counts, and gives credit back as a device does."""
        if data[0] != Deliver.TYPE:
            return
        self.counted += 1
        self.bytes_due += len(data)
        if self.bytes_due >= ACK_BYTES:
            self.write(masked(Ack(self.bytes_due, ())))
            self.bytes_due = 0


class Load:
    """A vault, its devices, and what they do."""

    def __init__(self, port: int, relay: "subprocess.Popen[str]") -> None:
        self.port, self.relay = port, relay

    def cpu(self) -> float:
        """The relay's processor time until now, in seconds."""
        assert self.relay.stdin is not None
        assert self.relay.stdout is not None
        self.relay.stdin.write("\n")
        self.relay.stdin.flush()
        return float(self.relay.stdout.readline())

    async def connect(self, identity: Identity) -> Light:
        """One logged-in connection."""
        loop = asyncio.get_running_loop()
        _, light = await loop.create_connection(lambda: Light(identity, self.port), "127.0.0.1", self.port)
        await light.login()
        return light

    async def vault(self, members: list[Identity]) -> VaultId:
        """A vault of the first of them, with all the others in it, and one stream."""
        async with await Device.open(self.port, members[0]) as admin:
            vault, log = await admin.create_vault()
            for member in members[1:]:
                await admin.add(log, member)
            await admin.create_stream(vault, STREAM)
        return vault

    async def push(self, light: Light, vault: VaultId, author: int, seconds: float) -> int:
        """Push single records with a full window for so long; how many were answered."""
        subscribed = await light.expect(Subscribed, Subscribe(vault, ()))
        assert isinstance(subscribed, Subscribed)
        frames = self.frames(vault, subscribed.term, author)
        done = asyncio.get_running_loop().create_future()
        until, answered, under_way = time.perf_counter() + seconds, 0, WINDOW

        def on_message(data: bytes) -> None:
            nonlocal answered, under_way
            assert data[0] == Pushed.TYPE, codec.decode(data)
            answered += 1
            if time.perf_counter() < until:
                light.write(next(frames))
            else:
                under_way -= 1
                if not under_way:
                    done.set_result(None)

        light.on_message = on_message
        for _ in range(WINDOW):
            light.write(next(frames))
        await done
        return answered

    @staticmethod
    def frames(vault: VaultId, term: Term, author: int):  # type: ignore[no-untyped-def]
        """Pushes of one record each, numbered from 1."""
        one = group(STREAM, record(author=Author(author), units=2))
        batch = 0
        while True:
            batch += 1
            yield masked(Push(vault, term, batch, 0, (one,)))

    async def pushes(self) -> tuple[float, float]:
        """(pushes a second, relay's µs for each)."""
        members = [Identity(n) for n in range(1, PUSHERS + 1)]
        vault = await self.vault(members)
        lights = [await self.connect(member) for member in members]
        cpu, began = self.cpu(), time.perf_counter()
        done = sum(await asyncio.gather(*[self.push(light, vault, n, SECONDS) for n, light in enumerate(lights, 1)]))
        took, used = time.perf_counter() - began, self.cpu() - cpu
        for light in lights:
            light.write(b"\x88\x80\0\0\0\0")
        return done / took, used / done * 1e6

    async def deliveries(self) -> tuple[float, float]:
        """(deliveries a second, relay's µs for each)."""
        member = Identity(1000)
        vault = await self.vault([member])
        lights = [await self.connect(member) for _ in range(SUBSCRIBERS)]
        for light in lights:
            await light.expect(Subscribed, Subscribe(vault, (Wanted(STREAM, START, START),)))
            light.on_message = light.count_deliveries
        pusher = await self.connect(member)
        cpu, began = self.cpu(), time.perf_counter()
        await self.push(pusher, vault, 1, SECONDS)
        took, used = time.perf_counter() - began, self.cpu() - cpu
        done = sum(light.counted for light in lights)
        return done / took, used / done * 1e6


async def measure(relay: "subprocess.Popen[str]") -> dict[str, object]:
    """Load a relay that has just been started."""
    assert relay.stdout is not None
    load = Load(int(relay.stdout.readline()), relay)
    pushes, push_us = await load.pushes()
    deliveries, deliver_us = await load.deliveries()
    return {
        "name": "relay_path",
        "ok": True,
        "pushers": PUSHERS,
        "subscribers": SUBSCRIBERS,
        "pushes_per_s": round(pushes),
        "push_us": round(push_us, 1),
        "deliveries_per_s": round(deliveries),
        "deliver_us": round(deliver_us, 2),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        uvloop.run(serve())
    else:
        command = [sys.executable, "-m", "bench.parts.relay_path", "--serve"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            print(json.dumps(uvloop.run(measure(process))))
            if process.stdin is not None:
                process.stdin.close()
