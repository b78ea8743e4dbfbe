"""A log whose entries are overwritten again and again stays small: a tenth of the keys ten times, cleaned, twice.

The yardstick is the log before the first overwrite: as many entries, each written once, and a plain VACUUM. The first
cycle is cleaned by `sealwire-relay clean --all`, the second by the cleaner as a relay runs it beside itself; meanwhile
a device of another vault pushes a record every few milliseconds. What is left must be exactly the greatest versions.
Sizes are taken as the cleaner has left files, then as `sealwire-relay compact` has.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealwire_protocol.messages import StreamKind
from sealwire_relay.settings import Settings
from tests.acceptance.cleaning import Pushes, Ran, at_share, clean_all, clean_beside, compact
from tests.acceptance.filling import Log
from tests.acceptance.sizes import Bound, Place, Sizes, database, opened, told

LIMIT_S = 900
LIMIT_SHORT_S = 240


@dataclass(frozen=True)
class Plan:
    """How much is to be done."""

    entries: int
    records_max: int
    """In one step of the cleaner."""
    quiet_s: float
    """Pushes without a cleaner, to compare with, before each cycle and after the last."""


LONG: Final = Plan(1_000_000, Settings().clean_records_max, 20.0)
SHORT_PLAN: Final = Plan(20_000, 8_192, 0.5)
"""Its files are smaller than what a cleaner leaves alone, so only what is in them has bounds."""

OVERWRITTEN: Final = 10
"""One of so many keys is overwritten, so many times."""

LIVE_MAX: Final = 1.15
"""Bytes of all segments after cleaning, by those of as many fresh entries."""

TABLE_MAX: Final = 1.8
"""The table with its index and large values, by the same."""

COMPACTED_MAX: Final = 1.1
"""The same once it was compacted."""

GROWTH_MAX: Final = 1.05
"""The table after the second cycle, by itself after the first."""

SLOWER_MAX: Final = 2.0
"""The time of 99 of 100 pushes beside a cleaner, by that without one."""

MEMORY_BYTES_MAX: Final = 120_000_000
"""Of the cleaner's process: docs/relay.md says 40 MB, and 80 MB for a step of the default size."""

_BEGAN: Final = time.monotonic()


Clean = Callable[[str, int], Awaitable[Ran]]


class Story:
    """One log in one database: filled, overwritten, cleaned; every look at it is kept."""

    def __init__(self, place: Place, log: Log, pushes: Pushes, plan: Plan) -> None:
        self.place, self.log, self.pushes, self.plan = place, log, pushes, plan
        self.wrong = 0

    async def overwrite(self) -> None:
        """A tenth of the keys, ten times; always the same."""
        await self.log.overwrite(list(range(0, self.log.entries, OVERWRITTEN)), OVERWRITTEN)

    async def quiet(self) -> list[float]:
        """The times of pushes without a cleaner."""
        await self.place.tidy("CHECKPOINT")
        return await self.pushes.during(asyncio.create_task(asyncio.sleep(self.plan.quiet_s)))

    async def cleaned(self, clean: Clean) -> tuple[Ran, list[float], Sizes]:
        """Clean while the device pushes, and compare what is left with what should be."""
        await self.place.tidy("CHECKPOINT")
        work = asyncio.ensure_future(clean(self.place.address, self.plan.records_max))
        taken = await self.pushes.during(work)
        ran = await work
        self.wrong += await self.log.wrong()
        return ran, taken, await self.place.sizes(self.log)


async def tell_open(place: Place, plan: Plan) -> tuple[dict[str, object], list[Bound]]:
    """Two cycles on an open stream; the figures, and those that have a bound with it."""
    log, other = await Log.begin(place.store, StreamKind.OPEN), await Log.begin(place.store, StreamKind.OPEN)
    story = Story(place, log, Pushes(other), plan)
    await log.add(plan.entries)
    await place.tidy("VACUUM")
    fresh = await place.sizes(log)
    say(f"{plan.entries:,} entries are written, in {fresh.table:,} bytes")
    quiet = await story.quiet()
    await story.overwrite()
    await place.tidy("VACUUM")
    before = await place.sizes(log)
    say(f"overwritten, {before.table:,} bytes")
    by_hand, beside_hand, first = await story.cleaned(clean_all)
    say(f"cleaned by hand in {by_hand.seconds:.1f} s, {first.table:,} bytes")
    await story.overwrite()
    quiet += await story.quiet()
    by_itself, beside, second = await story.cleaned(clean_beside)
    say(f"overwritten and cleaned again in {by_itself.seconds:.1f} s, {second.table:,} bytes")
    quiet += await story.quiet()
    await place.store.close()
    offline = await compact(place.address)
    packed = await place.sizes(log)
    say(f"compacted in {offline.seconds:.1f} s, {packed.table:,} bytes")
    slow = {"quiet": quiet, "by hand": beside_hand, "beside a relay": beside}
    slower = {name: at_share(each, 0.99) / at_share(quiet, 0.99) for name, each in slow.items()}
    bounds = [
        Bound("live bytes to fresh", first.live / fresh.live, LIVE_MAX),
        Bound("live bytes to fresh, after the second cycle", second.live / fresh.live, LIVE_MAX),
        Bound("the cleaner's memory", max(by_hand.memory_bytes, by_itself.memory_bytes), MEMORY_BYTES_MAX),
        Bound("table to fresh, compacted", packed.table / fresh.table, COMPACTED_MAX),
        *(Bound(f"p99 of pushes, {name}", slower[name], SLOWER_MAX, False) for name in ("by hand", "beside a relay")),
    ]
    if plan is LONG:
        bounds += [
            Bound("table to fresh", first.table / fresh.table, TABLE_MAX),
            Bound("table after the second cycle to the first", second.table / first.table, GROWTH_MAX),
        ]
    figures: dict[str, object] = {
        "entries": plan.entries,
        "wrong": story.wrong,
        "left_out": [by_hand.told["records"], by_itself.told["records"]],
        "unfinished": by_hand.told["unfinished"] + by_itself.told["unfinished"],
        "seconds": [round(ran.seconds, 1) for ran in (by_hand, by_itself, offline)],
        "memory_mb": [round(ran.memory_bytes / 1e6) for ran in (by_hand, by_itself)],
        "live_mb": [round(each.live / 1e6, 1) for each in (fresh, before, first, second)],
        "table_mb": [round(each.table / 1e6, 1) for each in (fresh, before, first, second, packed)],
        "entry_bytes": [round(each.schema / plan.entries, 1) for each in (fresh, before, first, second, packed)],
        "pushes_ms": {name: [round(at_share(each, share), 1) for share in (0.5, 0.99)] for name, each in slow.items()},
        "pushes": {name: len(each) for name, each in slow.items()},
    }
    return figures, bounds


async def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """All of it; the figures."""
    async with database(folder / "data") as address, opened(address) as place:
        figures, bounds = await tell_open(place, plan)
    return told(not (figures["wrong"] or figures["unfinished"]), bounds, figures)


def say(what: str) -> None:
    """How far it is."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s: {what}", flush=True)


def run(short: bool) -> dict[str, object]:
    """The proof."""
    with tempfile.TemporaryDirectory(prefix="compaction-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        plan = SHORT_PLAN if short else LONG
        return asyncio.run(prove(Path(name), plan))
