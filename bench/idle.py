"""What a device that is merely there costs: the relay's memory before and after so many have logged in and subscribed.

10,000 devices in 100 vaults of 100 members, each with a key of its own, logged in with its signature, subscribed to the
membership log and to one stream. They answer pings and say nothing else. One relay process, no TLS.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from bench.harness.devices import BenchVault, at_once, fleet, found
from bench.harness.load import Opened, receiving
from bench.harness.processes import pinned, places
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Result
from bench.harness.rounds import neat

DEVICES: Final = 10_000
DEVICES_SHORT: Final = 200
VAULTS: Final = 100
VAULTS_SHORT: Final = 4
VAULTS_AT_ONCE: Final = 8
REST_S: Final = 5.0
"""Between what is done and what is read: the relay's timers and its allocator come to rest."""

SPARE: Final = 100
"""Connections that the relay may have beside the devices."""


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    devices, vaults = (DEVICES_SHORT, VAULTS_SHORT) if short else (DEVICES, VAULTS)
    options = {"connections_max": devices + SPARE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with relay(folder, options) as running, pinned(places().load):
            return uvloop.run(_measure(running, folder, devices, vaults, settings_of(options)))


async def _measure(running: BenchRelay, folder: Path, devices: int, vaults: int, settings: dict[str, object]) -> Result:
    members = devices // vaults

    async def vault(number: int) -> BenchVault:
        return await found(running.port, 1 + number * members, members)

    made = await at_once(vault, range(vaults), VAULTS_AT_ONCE)
    # The first logins, and the vaults that the relay knows by now, are not what a device costs.
    await asyncio.sleep(REST_S)
    before = running.rss_bytes()
    begun = time.perf_counter()
    opened: list[Opened] = []
    for one in made:
        opened += await fleet(running.port, one)
    logins_per_s = devices / (time.perf_counter() - begun)
    with receiving(opened, "sealwire", places().load, folder / "receive.log") as receiver:
        await asyncio.sleep(REST_S)
        after = running.rss_bytes()
        cpu = running.cpu_seconds()
        await asyncio.sleep(REST_S)
        cpu = running.cpu_seconds() - cpu
        connections = running.metrics()["sealwire_connections"]
        receiver.look()
    if connections != devices:
        raise RuntimeError(f"the relay has {connections:.0f} connections, not {devices}")
    kib = neat((after - before) / 1024 / devices)
    return Result(
        ours={
            "devices": devices,
            "kib_per_device": kib,
            "rss_before_mib": neat(before / 2**20),
            "rss_after_mib": neat(after / 2**20),
            "logins_per_s": neat(logins_per_s),
            "cpu_share_idle": neat(cpu / REST_S),
        },
        ratios={"kib_per_device": kib},
        settings={"sealwire": {**settings, "vaults": vaults, "members": members, "streams_per_device": 2}},
    )
