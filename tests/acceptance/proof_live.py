"""Live queries: how soon a commit is told, and what they cost a write that concerns none of them.

One device in a folder of its own, without a relay. Of 100,000 entries a query chooses 1,000 by a range of keys, and one
of them is changed again and again: told are the times from the commit, as the writer's thread knows it, until the
difference is in the hand of who waits for it. Then entries of another collection are written, in turns with a hundred
live queries open and with none: told is what a write takes of the processor, in all threads.
"""

import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
import trio.testing

from sealwire_client import Collection, Device, Vault, latest
from sealwire_client.live import RUNS_APART_SECONDS
from sealwire_client.nursery import open_nursery
from sealwire_client.testing import MemoryRelay

LIMIT_S = 300
LIMIT_SHORT_S = 200

TOLD_MS_MAX: Final = 3.0
EXTRA_MAX: Final = 0.05
"""The part that a write may cost more while queries are open that it does not concern."""

CHOSEN: Final = 1_000
"""Entries of the query's result."""

OPEN: Final = 100
"""Live queries while others' entries are written."""

PREFIX: Final = "050/"

WARMING: Final = 5


@dataclass(frozen=True)
class Plan:
    """Entries in all, changes that are told, and how many turns of how many writes there are."""

    entries: int
    changes: int
    turns: int
    writes: int


LONG: Final = Plan(100_000, 300, 40, 50)
SHORT_PLAN: Final = Plan(100_000, 20, 4, 10)


@dataclass
class Item:
    """An entry of the proof."""

    name: str
    count: int


@asynccontextmanager
async def filled(folder: Path, entries: int) -> AsyncIterator[tuple[Vault, Collection[Item], Collection[Item]]]:
    """A vault with a collection of so many entries, and an empty one."""
    relay = MemoryRelay()
    relay.stop()
    async with Device.open(folder / "device", relay=relay.origin, dialler=relay.dial) as device:
        vault = await device.create_vault("live")
        items = await vault.collection("items", Item, policy=latest())
        others = await vault.collection("others", Item, policy=latest())
        await items.put_many((key_of(number), Item(f"item {number}", number)) for number in range(entries))
        yield vault, items, others


def key_of(number: int) -> str:
    """Keys come in folders of as many as the query chooses."""
    return f"{number // CHOSEN:03}/{number % CHOSEN:03}"


async def told(vault: Vault, items: Collection[Item], changes: int) -> dict[str, object]:
    """Change entries of a live query's result: how soon it is told, and how often the query was run."""
    committed, in_hand, arrived = list[float](), list[float](), trio.Event()
    begun, rows = list[float](), 0

    async def read() -> None:
        nonlocal rows, arrived
        async for difference in live:
            in_hand.append(time.perf_counter())
            rows = len(difference.rows)
            arrived.set()

    def note() -> None:
        committed.append(time.perf_counter())

    touches = await items._writer.run(lambda replica: replica.database.touches)
    touches.register(items.held.number, note)
    sql = "SELECT key, name, count FROM items WHERE key >= ? AND key < ? ORDER BY key"
    async with vault.live(sql, [PREFIX, PREFIX.replace("/", "0")]) as live, open_nursery() as nursery:
        nursery.start_soon(read)
        await arrived.wait()
        in_hand.clear()
        for change in range(changes):
            await trio.sleep(2 * RUNS_APART_SECONDS)  # quiet, so that the next run comes at once
            arrived = trio.Event()
            begun.append(time.perf_counter())
            await items.put(f"{PREFIX}{change * 7 % CHOSEN:03}", Item("changed", change))
            await arrived.wait()
        nursery.cancel_scope.cancel()
    touches.unregister(items.held.number, note)
    after_commit = sorted(1_000 * (there - at) for at, there in zip(committed, in_hand, strict=True))
    from_put = [1_000 * (there - at) for at, there in zip(begun, in_hand, strict=True)]
    return {
        "rows": rows,
        "changes": changes,
        "runs": live.runs,
        "told_ms_p50": round(statistics.median(after_commit), 2),
        "told_ms_p95": round(after_commit[len(after_commit) * 95 // 100], 2),
        "put_to_told_ms_p50": round(statistics.median(from_put), 2),
    }


async def beside(vault: Vault, others: Collection[Item], turns: int, writes: int) -> dict[str, object]:
    """Write what concerns no live query, with and without a hundred of them."""
    alone_us, among_us, extra, runs = list[float](), list[float](), list[float](), list[int]()
    for turn in range(turns):
        alone_us.append(await written(others, turn, writes))
        async with AsyncExitStack() as stack, open_nursery() as nursery:
            lives = [
                await stack.enter_async_context(vault.live("SELECT * FROM items WHERE key = ?", [key_of(number)]))
                for number in range(OPEN)
            ]
            for live in lives:
                await anext(live)
                nursery.start_soon(anext, live)
            await trio.testing.wait_all_tasks_blocked()
            among_us.append(await written(others, turn, writes))
            runs += [live.runs for live in lives]
            nursery.cancel_scope.cancel()
        extra.append(among_us[-1] / alone_us[-1] - 1)
    return {
        "open": OPEN,
        "runs_beside_max": max(runs),
        "write_cpu_us": round(statistics.median(alone_us), 1),
        "write_cpu_us_among": round(statistics.median(among_us), 1),
        "extra": round(statistics.median(extra), 4),
    }


async def written(others: Collection[Item], turn: int, writes: int) -> float:
    """What a write takes of the processor, in microseconds: the median of so many, after some that are not counted."""
    took = list[float]()
    for number in range(WARMING):
        await others.put(f"{number:04}", Item("first", turn))
    for number in range(writes):
        began = time.process_time()
        await others.put(f"{number:04}", Item("other", turn))
        took.append(1e6 * (time.process_time() - began))
    return statistics.median(took)


async def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """Both figures."""
    async with filled(folder, plan.entries) as (vault, items, others):
        return await told(vault, items, plan.changes) | await beside(vault, others, plan.turns, plan.writes)


def run(short: bool) -> dict[str, object]:
    """The proof. The short form holds to what does not depend on speed: which runs there were."""
    plan = SHORT_PLAN if short else LONG
    with tempfile.TemporaryDirectory() as folder:
        figures = trio.run(prove, Path(folder), plan)
    right = (figures["rows"], figures["runs"], figures["runs_beside_max"]) == (CHOSEN, plan.changes + 1, 1)
    in_time = float(str(figures["told_ms_p50"])) <= TOLD_MS_MAX and float(str(figures["extra"])) < EXTRA_MAX
    return {"ok": right and (short or in_time), **figures}
