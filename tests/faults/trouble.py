"""Faults by chance: connections that break, and processes that are killed with -9, while devices of a proof work."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from tests.faults.devices import DeviceProcess
from tests.faults.site import Site

Fault = Literal["connections", "commits", "device", "relay", "postgres"]
"""What breaks: all connections of devices, one of a relay to Postgres as it commits, or a process."""

ARRIVES_PERCENT = 75
"""Commits that Postgres hears of although the relay does not learn their outcome."""

COMMIT_S_MAX = 1.0
"""How long a commit to break is waited for."""


@dataclass(frozen=True)
class Plan:
    """What to break and how often."""

    faults: tuple[Fault, ...]
    """To choose from: one that is named twice comes twice as often."""

    every_s: float
    """Seconds between two faults, on average."""

    seed: int


async def trouble(place: Site, devices: Sequence[DeviceProcess], plan: Plan, faults: Counter[str]) -> None:
    """Break something now and then, until cancelled, and count it. What was begun is brought to its end."""
    chance = random.Random(plan.seed)
    while True:
        await trio.sleep(chance.random() * 2 * plan.every_s)
        fault = chance.choice(plan.faults)
        with trio.CancelScope(shield=True):
            faults[fault] += 1
            match fault:
                case "connections":
                    place.front.cut()
                case "commits":
                    arrives = chance.random() * 100 < ARRIVES_PERCENT
                    await place.back.cut_asking(arrives=arrives, limit_s=COMMIT_S_MAX)
                case "device":
                    device = chance.choice(devices)
                    if not device.done():
                        device.kill()
                        device.start(place.origin)
                case "relay":
                    relay = chance.choice(place.relays)
                    await place.kill(relay)
                    await place.start(relay)
                case "postgres":
                    await place.kill_postgres()
