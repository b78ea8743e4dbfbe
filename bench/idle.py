"""What a device that is merely there costs: the relay's memory before and after so many have logged in and subscribed.

10,000 devices in 100 vaults of 100 members, each with a key of its own, logged in with its signature, subscribed to the
membership log and to one stream. They answer pings and say nothing else. One relay process, no TLS.

In each round the relay is started anew: from making the vaults it would have memory left that is counted already, and
devices would be put there. Before it is looked at first, one device of each vault has been there: what a relay knows of
vaults, and the first logins of all, are not what a device costs.

The others: as many WebSockets that have shaken hands and are kept in a set to be sent to, without any login; once, as
theirs hardly differ from one time to the next.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.harness.devices import BenchVault, at_once, fleet, found
from bench.harness.fanning import listen, served
from bench.harness.load import Opened, close, receiving
from bench.harness.processes import Missing, pinned, places, rss_bytes
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, neat
from bench.peers import fanners


@dataclass(frozen=True)
class Scale:
    """How much is done. `rest_s` is between what is done and what is read: timers and allocators come to rest."""

    devices: int
    vaults: int
    rest_s: float
    rounds: int


LONG: Final = Scale(10_000, 100, 5.0, ROUNDS)
SHORT: Final = Scale(200, 4, 0.5, ROUNDS_SHORT)
VAULTS_AT_ONCE: Final = 8

PEERS: Final[Mapping[str, Callable[[], fanners.Fanner]]] = {
    "websockets_broadcast": partial(fanners.websockets_broadcast, "uvloop"),
    "node_ws": fanners.node_ws,
    "socketio": partial(fanners.socketio, text=False),
}

SPARE: Final = 100
"""Connections that the relay may have beside the devices."""


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    scale = SHORT if short else LONG
    options = {"connections_max": scale.devices + SPARE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with pinned(places().load), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            with relay(folder, options) as running:
                result = runner.run(_measure(running, folder, scale, settings_of(options)))
            for name, fanner in PEERS.items():
                try:
                    kib = neat(_kib_of_peer(runner, fanner(), scale, folder))
                except Missing as missing:
                    result.missing.append(str(missing))
                else:
                    result.peers[name] = {"kib_per_device": kib}
                    result.settings[name] = fanners.settings()[name]
    return _with_bars(result, scale.devices)


def _kib_of_peer(runner: asyncio.Runner, fanner: fanners.Fanner, scale: Scale, folder: Path) -> float:
    command, peer = fanner
    with served(command, folder) as (pid, port):
        time.sleep(scale.rest_s)
        before = rss_bytes(pid)
        opened = runner.run(listen(peer, port, scale.devices))
        with receiving(opened, peer.speech, places().load, folder / "receive.log") as receiver:
            time.sleep(scale.rest_s)
            receiver.look()
            return (rss_bytes(pid) - before) / 1024 / scale.devices


def _with_bars(result: Result, devices: int) -> Result:
    titles = {"websockets_broadcast": "websockets", "node_ws": "Node ws", "socketio": "socket.io"}
    others = {title: result.peers[name]["kib_per_device"] for name, title in titles.items() if name in result.peers}
    bars = {"Sealwire, logged in": result.ratios["kib_per_device"], **others}
    result.bars = Bars(f"Memory of a server for each of {devices:,} idle connections", "KiB", bars)
    return result


async def _measure(running: BenchRelay, folder: Path, scale: Scale, settings: dict[str, object]) -> Result:
    members = scale.devices // scale.vaults

    async def vault(number: int) -> BenchVault:
        return await found(running.port, 1 + number * members, members)

    vaults = await at_once(vault, range(scale.vaults), VAULTS_AT_ONCE)
    rounds = [await _round(running, folder, scale, vaults) for _ in range(scale.rounds)]
    figures = {field: Spread(tuple(getattr(one, field) for one in rounds)) for field in Round._fields}
    return Result(
        ours={"devices": scale.devices, **{name: spread.told() for name, spread in figures.items()}},
        ratios={"kib_per_device": neat(figures["kib_per_device"].median)},
        settings={"sealwire": {**settings, "vaults": scale.vaults, "members": members, "streams_per_device": 2}},
    )


class Round(NamedTuple):
    """What one relay took. `cpu_share_idle` is of one core."""

    kib_per_device: float
    rss_before_mib: float
    rss_after_mib: float
    logins_per_s: float
    cpu_share_idle: float


async def _round(running: BenchRelay, folder: Path, scale: Scale, vaults: Sequence[BenchVault]) -> Round:
    running.kill()
    await asyncio.get_running_loop().run_in_executor(None, running.start)
    for vault in vaults:
        close(await fleet(running.port, vault, vault.members[:1]))
    await asyncio.sleep(scale.rest_s)
    before = running.rss_bytes()
    begun = time.perf_counter()
    opened: list[Opened] = []
    for vault in vaults:
        opened += await fleet(running.port, vault)
    logins_per_s = scale.devices / (time.perf_counter() - begun)
    with receiving(opened, "sealwire", places().load, folder / "receive.log") as receiver:
        await asyncio.sleep(scale.rest_s)
        after = running.rss_bytes()
        cpu = running.cpu_seconds()
        await asyncio.sleep(scale.rest_s)
        cpu = running.cpu_seconds() - cpu
        connections = running.metrics()["sealwire_connections"]
        receiver.look()
    if connections != scale.devices:
        raise RuntimeError(f"the relay has {connections:.0f} connections, not {scale.devices}")
    return Round(
        kib_per_device=(after - before) / 1024 / scale.devices,
        rss_before_mib=before / 2**20,
        rss_after_mib=after / 2**20,
        logins_per_s=logins_per_s,
        cpu_share_idle=cpu / scale.rest_s,
    )
