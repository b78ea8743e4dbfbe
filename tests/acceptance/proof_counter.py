"""Five devices add to one counter, a thousand times each, while they and relays are killed: it says 5,000 in the end.

What a device has added it knows from its own replica, in which the sum and the addition are one commit; so whatever
moment it is killed at, it goes on with what is left. In the end all replicas, and one made from nothing, must agree.
"""

import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import trio

from sealwire_client import Counters, Device
from sealwire_client.nursery import open_nursery
from tests.acceptance.counting import COUNTER, KEY, VAULT
from tests.faults.devices import DeviceProcess, join
from tests.faults.site import Site, site
from tests.faults.trouble import Plan, trouble
from tests.support.vaults import all_have_read

LIMIT_S = 400
LIMIT_SHORT_S = 300

DEVICES: Final = 5
ADDITIONS: Final = 1_000
ADDITIONS_SHORT: Final = 100
"""Of each device."""

COUNTING_S_MAX: Final = 300.0
IN_STEP_S_MAX: Final = 60.0

TROUBLE: Final = Plan(
    faults=("device", "device", "relay", "connections", "commits", "commits", "postgres"),
    every_s=1.5,
    seed=3,
)


async def prove(folder: Path, count: int) -> dict[str, object]:
    """Count under faults; the figures."""
    async with site(relays=2) as place:
        await place.start(place.relays[0])
        numbers = range(1, DEVICES + 1)
        devices = [DeviceProcess("tests.acceptance.counting", folder, number, str(count)) for number in numbers]
        folders = [*(process.folder / "device" for process in devices), folder / "fresh"]
        async with Device.open(folders[0], relay=place.origin) as first:
            vault = await first.create_vault(VAULT)
            for each in folders[1:]:
                async with Device.open(each) as other:
                    await join(vault, other)
        await place.start(place.relays[1])
        faults: Counter[str] = Counter()
        try:
            for process in devices:
                process.start(place.origin)
            finished = await counted(place, devices, faults)
        finally:
            for process in devices:
                process.kill()
        await place.look()
        figures = await read(folders, count)
        ok = finished and figures.pop("right") is True
        told = {"faults": dict(faults), "unknown_outcomes": place.counted("unknown_outcomes")}
        return {"ok": ok, "wanted": DEVICES * count, **figures, **told, "records": place.counted("records")}


async def counted(place: Site, devices: list[DeviceProcess], faults: Counter[str]) -> bool:
    """Wait until all devices are done. False: they are not in time."""
    async with open_nursery() as troubled:
        troubled.start_soon(trouble, place, devices, TROUBLE, faults)
        with trio.move_on_after(COUNTING_S_MAX) as limit:
            for process in devices:
                await process.finished()
        troubled.cancel_scope.cancel()
    return not limit.cancelled_caught


async def read(folders: list[Path], count: int) -> dict[str, object]:
    """What each replica says once all is in step."""
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(Device.open(folder)) for folder in folders]
        opened = [await device.vaults[0].counters(COUNTER) for device in devices]
        with trio.move_on_after(IN_STEP_S_MAX):
            for device in devices:
                await device.vaults[0].synced()
            await all_have_read([device.vaults[0] for device in devices])
        sides = {sum(value for key, value in counters.items() if key != KEY) for counters in opened}
        return {
            "counter": sorted({said(counters) for counters in opened}),
            "mine": [counters.mine(KEY) for counters in opened],
            "beside": sorted(sides),
            "replicas": len(opened),
            "right": {said(counters) for counters in opened} == {DEVICES * count} and len(sides) == 1,
        }


def said(counters: Counters) -> int:
    """The counter, as one replica has it."""
    return counters.get(KEY)


def run(short: bool) -> dict[str, object]:
    """The proof: ok if every replica says what was added, no more and no less."""
    with tempfile.TemporaryDirectory(prefix="counter-", ignore_cleanup_errors=True) as name:
        return trio.run(prove, Path(name), ADDITIONS_SHORT if short else ADDITIONS)
