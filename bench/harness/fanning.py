"""Servers that send what one client pushes to many listeners, and what that costs them: the relay, and others."""

import asyncio
import contextlib
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from bench.harness import pushing
from bench.harness.devices import STREAM, BenchVault, Wire, at_once, fleet, masked
from bench.harness.load import Opened, Receiver, Speech, receiving
from bench.harness.processes import cpu_seconds, line_of, places, started
from bench.harness.relay import BenchRelay

PAYLOAD_BYTES: Final = 200
UNITS: Final = 10
"""Of 16 bytes of ciphertext: a sealed record of 213 bytes, its seq included."""

ARRIVED_S_MAX: Final = 120.0
"""For the last deliveries to arrive, on a busy machine."""

POLL_S: Final = 0.02


class Pusher(Protocol):
    """Who sends what is fanned out."""

    async def push(self) -> None:
        """Send the next one."""

    async def answered(self) -> None:
        """Wait until one more has been answered."""

    def close(self) -> None:
        """Hang up."""


class RelayPusher:
    """A device that pushes so many records at a time."""

    def __init__(self, device: pushing.Pusher, records: int) -> None:
        self._device, self._records = device, records

    @classmethod
    async def open(cls, port: int, vault: BenchVault, records: int) -> "RelayPusher":
        """The vault's admin, logged in once more."""
        return cls(await pushing.Pusher.open(port, vault, vault.admin), records)

    async def push(self) -> None:
        await self._device.send(STREAM, UNITS, self._records)

    async def answered(self) -> None:
        await self._device.verdict()

    def close(self) -> None:
        self._device.close()


class PlainPusher:
    """A WebSocket that pushes the same again and again; each is answered by one message, which says nothing."""

    def __init__(self, wire: Wire, frames: bytes, answers: Callable[[int, bytes], bool]) -> None:
        self._wire, self._frames, self._answers = wire, frames, answers

    async def push(self) -> None:
        await self._wire.send(self._frames)

    async def answered(self) -> None:
        while not self._answers(*await self._wire.receive()):
            pass

    def close(self) -> None:
        self._wire.close()


class Fanned(NamedTuple):
    """What a measurement found. A delivery is one record (or message) at one listener; frames may hold several."""

    deliveries_per_cpu_s: float
    frames_per_cpu_s: float
    deliveries_per_s: float
    server_share: float
    receiver_share: float
    records_per_frame: float


class Fan:
    """A server with all its listeners connected. `per_push`: deliveries to one listener for each push. A pusher is
    there only while it pushes: between that, nobody would answer the server's pings."""

    def __init__(
        self, pid: int, receiver: Receiver, pusher: Callable[[], Awaitable[Pusher]], per_push: int = 1
    ) -> None:
        self.pid, self._receiver, self._pusher, self._per_push = pid, receiver, pusher, per_push

    async def measure(self, window: int, seconds: float) -> Fanned:
        """Push for so long, `window` pushes unanswered. Raises RuntimeError if a listener does not get everything."""
        pusher = await self._pusher()
        self._receiver.zero()
        begun, cpu = time.perf_counter(), cpu_seconds((self.pid,))
        expected = self._per_push * await push_for(pusher, window, seconds)
        deadline = time.monotonic() + ARRIVED_S_MAX
        while (counts := self._receiver.look()).least < expected:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{counts.least} of {expected} deliveries arrived at one listener")
            await asyncio.sleep(POLL_S)
        cpu, took = cpu_seconds((self.pid,)) - cpu, time.perf_counter() - begun
        pusher.close()
        if counts.most != expected:
            raise RuntimeError(f"{counts.most} deliveries arrived at one listener, for {expected}")
        return Fanned(
            counts.records / cpu,
            counts.frames / cpu,
            counts.records / counts.last_seconds,
            cpu / took,
            counts.cpu_share,
            counts.records / counts.frames,
        )


async def push_for(pusher: Pusher, window: int, seconds: float) -> int:
    """Keep `window` pushes unanswered for so long; returns how many were made, all of them answered."""
    until = time.perf_counter() + seconds
    for _ in range(window):
        await pusher.push()
    pushed = under_way = window
    while under_way:
        await pusher.answered()
        if time.perf_counter() < until:
            await pusher.push()
            pushed += 1
        else:
            under_way -= 1
    return pushed


@contextlib.contextmanager
def relay_fans(
    runner: asyncio.Runner, running: BenchRelay, vault: BenchVault, sizes: Sequence[int], folder: Path
) -> Iterator[list[Fan]]:
    """A relay whose vault's members all listen, as one fan for each size: records in a push."""
    opened = runner.run(fleet(running.port, vault))
    with receiving(opened, "sealwire", places().load, folder / "receive.log") as receiver:
        pushers = {size: partial(RelayPusher.open, running.port, vault, size) for size in sizes}
        yield [Fan(running.pid, receiver, pusher, size) for size, pusher in pushers.items()]


class Plain:
    """How to talk to a server that is a mere WebSocket: listeners at /, pushers at /push."""

    speech: Speech = "plain"

    async def listener(self, port: int) -> Opened:
        """A listener, to be handed over."""
        return (await Wire.open(port)).hand_over()

    async def pusher(self, port: int) -> Pusher:
        """A pusher."""
        frames = masked(bytes(PAYLOAD_BYTES))
        return PlainPusher(await Wire.open(port, "/push"), frames, lambda _, payload: not payload)


class Socketio:
    """How to talk to a server of socket.io. What is pushed is binary, or the same in base64."""

    speech: Speech = "socketio"

    def __init__(self, text: bool) -> None:
        self._text = text

    async def _open(self, port: int) -> Wire:
        wire = await Wire.open(port, "/socket.io/?EIO=4&transport=websocket")
        await wire.receive()
        await wire.send(masked(b"40", 0x81))
        await wire.receive()
        return wire

    async def listener(self, port: int) -> Opened:
        """A listener, to be handed over."""
        return (await self._open(port)).hand_over()

    async def pusher(self, port: int) -> Pusher:
        """A pusher."""
        if self._text:
            frames = masked(b'42["push","%s"]' % b64encode(bytes(PAYLOAD_BYTES)), 0x81)
        else:
            named = masked(b'451-["push",{"_placeholder":true,"num":0}]', 0x81)
            frames = named + masked(bytes(PAYLOAD_BYTES))
        return PlainPusher(await self._open(port), frames, lambda _, payload: payload.startswith(b'42["done"'))


@contextlib.contextmanager
def served(command: Sequence[str], folder: Path) -> Iterator[tuple[int, int]]:
    """A server that prints its port, on the server's core: its process and that port."""
    log = folder / "peers.log"
    with started(command, places().server, log=log) as server:
        yield server.pid, int(line_of(server, log))


async def listen(peer: Plain | Socketio, port: int, listeners: int) -> list[Opened]:
    """So many listeners, connected."""

    async def listener(_: int) -> Opened:
        return await peer.listener(port)

    return await at_once(listener, range(listeners))


@contextlib.contextmanager
def peer_fan(
    runner: asyncio.Runner,
    command: Sequence[str],
    peer: Plain | Socketio,
    listeners: int,
    folder: Path,
    per_push: int = 1,
) -> Iterator[Fan]:
    """A server with all its listeners connected; it sends what comes of the pusher to them."""
    with served(command, folder) as (pid, port):
        opened = runner.run(listen(peer, port, listeners))
        with receiving(opened, peer.speech, places().load, folder / "receive.log") as receiver:
            yield Fan(pid, receiver, partial(peer.pusher, port), per_push)
