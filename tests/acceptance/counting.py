"""A device that counts: `python -m tests.acceptance.counting FOLDER ORIGIN NUMBER COUNT`.

It adds one until what it has added itself, durably, is COUNT; so it knows after every kill how many are left. Some
additions it waits for, some it makes together, some it makes without looking.
"""

import random
import sys
from pathlib import Path
from typing import Final

import trio

from sealwire_client import Device
from tests.faults.devices import stay_online

VAULT: Final = "counter"
COUNTER: Final = "hits"
KEY: Final = "page"

WAITED_PERCENT: Final = 20
"""Additions whose verdict is waited for before the next one: each of them is a record of its own."""

TOGETHER_PERCENT: Final = 20
"""Additions that are made within a transaction, with a second counter."""


async def main(folder: Path, origin: str, number: int, count: int) -> None:
    """Add what is left to add, and wait until all of it is at the relay."""
    async with Device.open(folder / "device", relay=origin) as device, trio.open_nursery() as nursery:
        nursery.start_soon(stay_online, device, origin)
        [vault] = device.vaults
        counters = await vault.counters(COUNTER)
        chance = random.Random(number)
        while counters.mine(KEY) < count:
            kind = chance.randrange(100)
            if kind < TOGETHER_PERCENT:
                async with vault.transaction():
                    await counters.add(KEY, 1)
                    await counters.add(f"of {number}", 1)
                continue
            added = await counters.add(KEY, 1)
            if kind < TOGETHER_PERCENT + WAITED_PERCENT:
                await added.durable()
        await vault.synced()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
