"""A log whose entries are overwritten again and again stays small: a tenth of the keys ten times, cleaned, twice.

The yardstick is the log before the first overwrite: as many entries, each written once. The first cycle is cleaned by
`sealwire-relay clean --all`, the second by the cleaner as a relay runs it beside itself; meanwhile a device of another
vault pushes a record every few milliseconds. What is left must be exactly the greatest versions. Sizes are taken after
a plain VACUUM, which is what autovacuum does by itself. A guarded stream is measured in a database of its own.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]

from sealwire_protocol.messages import StreamKind
from sealwire_relay.embedded import EmbeddedPostgres
from sealwire_relay.settings import Settings
from sealwire_relay.store.migrate import Phase, migrate
from sealwire_relay.store.postgres import PostgresStore
from tests.acceptance.cleaning import Pushes, Ran, at_share, clean_all, clean_beside
from tests.acceptance.filling import Log

LIMIT_S = 600
LIMIT_SHORT_S = 60


@dataclass(frozen=True)
class Plan:
    """How much is to be done."""

    entries: int
    guarded: int
    """Entries of a guarded stream; 0 measures none."""
    records_max: int
    """In one step of the cleaner."""
    quiet_s: float
    """Pushes without a cleaner, to compare with, before each cycle."""
    entry_bytes_max: int
    """In Postgres, all tables and indexes; those take some 100 kB when they are empty."""


LONG: Final = Plan(1_000_000, 100_000, Settings().clean_records_max, 10.0, 120)
SHORT_PLAN: Final = Plan(20_000, 0, 8_192, 0.5, 130)

OVERWRITTEN: Final = 10
"""One of so many keys is overwritten, so many times."""

LIVE_MAX: Final = 1.15
"""Bytes of all segments after cleaning, by those of as many fresh entries."""

TABLE_MAX: Final = 1.8
"""The table with its index and large values, by the same."""

GROWTH_MAX: Final = 1.05
"""The table after the second cycle, by itself after the first."""

SLOWER_MAX: Final = 2.0
"""The time of 99 of 100 pushes beside a cleaner, by that without one."""

MEMORY_BYTES_MAX: Final = 120_000_000
"""Of the cleaner's process: docs/relay.md says 40 MB, and 80 MB for a step of the default size."""

STATEMENT_S_MAX: Final = 120.0

_BEGAN: Final = time.monotonic()


class Bound(NamedTuple):
    """A figure that was promised. One that is not sharp fails nothing: it depends on the machine, or on Postgres."""

    name: str
    value: float
    most: float
    sharp: bool = True


@dataclass(frozen=True)
class Sizes:
    """What a log takes, in bytes: its bodies, the table with all that belongs to it, all tables of the schema."""

    live: int
    table: int
    schema: int


class Place:
    """A database with an open store, and what it says of its sizes."""

    def __init__(self, address: str, store: PostgresStore, connection: Any) -> None:
        self.address, self.store, self._connection = address, store, connection

    async def tidy(self, how: str) -> None:
        """VACUUM or CHECKPOINT."""
        await self._connection.execute(how, timeout=STATEMENT_S_MAX)

    async def sizes(self, log: Log) -> Sizes:
        """Now."""
        return Sizes(
            *await self._connection.fetchrow(
                "SELECT (SELECT sum(octet_length(body))::bigint FROM sealwire.segment"
                "        WHERE vault_id = $1 AND stream <> 0),"
                " pg_total_relation_size('sealwire.segment'),"
                " (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
                "  WHERE relkind = 'r' AND relnamespace = 'sealwire'::regnamespace)",
                UUID(bytes=log.vault),
                timeout=STATEMENT_S_MAX,
            )
        )


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[Place]:
    """A database with the relay's schema."""
    await migrate(address, lambda line: None, Phase.PRE)
    connection = await asyncpg.connect(address)
    store = PostgresStore(address)
    try:
        await store.open()
        await store.open_term()
        yield Place(address, store, connection)
    finally:
        await store.close()
        await connection.close()


@asynccontextmanager
async def databases(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Two databases of a Postgres of our own."""
    postgres = EmbeddedPostgres(folder)
    try:
        address = await postgres.start()
        connection = await asyncpg.connect(address)
        await connection.execute("CREATE DATABASE guarded")
        await connection.close()
        yield address, address.replace("@/sealwire?", "@/guarded?")
    finally:
        await postgres.stop()


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
        await self.place.tidy("VACUUM")
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
    await place.tidy("VACUUM FULL")
    packed = await place.sizes(log)
    slow = {"quiet": quiet, "by hand": beside_hand, "beside a relay": beside}
    slower = {name: at_share(each, 0.99) / at_share(quiet, 0.99) for name, each in slow.items()}
    bounds = [
        Bound("live bytes to fresh", first.live / fresh.live, LIVE_MAX),
        Bound("live bytes to fresh, after the second cycle", second.live / fresh.live, LIVE_MAX),
        Bound("bytes an entry, packed", packed.schema / plan.entries, plan.entry_bytes_max),
        Bound("the cleaner's memory", max(by_hand.memory_bytes, by_itself.memory_bytes), MEMORY_BYTES_MAX),
        Bound("table after the second cycle to the first", second.table / first.table, GROWTH_MAX, plan is LONG),
        Bound("table to fresh", first.table / fresh.table, TABLE_MAX, False),
        Bound("bytes an entry, files as they are", first.schema / plan.entries, plan.entry_bytes_max, False),
        *(Bound(f"p99 of pushes, {name}", slower[name], SLOWER_MAX, False) for name in ("by hand", "beside a relay")),
    ]
    figures: dict[str, object] = {
        "entries": plan.entries,
        "wrong": story.wrong,
        "left_out": [by_hand.told["records"], by_itself.told["records"]],
        "unfinished": by_hand.told["unfinished"] + by_itself.told["unfinished"],
        "seconds_cleaning": [round(by_hand.seconds, 1), round(by_itself.seconds, 1)],
        "memory_mb": [round(ran.memory_bytes / 1e6) for ran in (by_hand, by_itself)],
        "live_mb": [round(each.live / 1e6, 1) for each in (fresh, before, first, second)],
        "table_mb": [round(each.table / 1e6, 1) for each in (fresh, before, first, second, packed)],
        "entry_bytes": [round(each.schema / plan.entries, 1) for each in (fresh, before, first, second, packed)],
        "pushes_ms": {name: [round(at_share(each, share), 1) for share in (0.5, 0.99)] for name, each in slow.items()},
        "pushes": {name: len(each) for name, each in slow.items()},
    }
    return figures, bounds


async def tell_guarded(place: Place, plan: Plan) -> dict[str, object]:
    """One cycle on a guarded stream; what an entry takes."""
    log = await Log.begin(place.store, StreamKind.GUARDED)
    await log.add(plan.guarded)
    await place.tidy("VACUUM")
    fresh = await place.sizes(log)
    await log.overwrite(list(range(0, plan.guarded, OVERWRITTEN)), OVERWRITTEN)
    await clean_all(place.address, plan.records_max)
    wrong = await log.wrong()
    await place.tidy("VACUUM")
    cleaned = await place.sizes(log)
    await place.tidy("VACUUM FULL")
    packed = await place.sizes(log)
    sizes = [round(each.schema / plan.guarded, 1) for each in (fresh, cleaned, packed)]
    return {"guarded_wrong": wrong, "guarded_entries": plan.guarded, "guarded_entry_bytes": sizes}


async def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """All of it; the figures."""
    async with databases(folder / "data") as (open_address, guarded_address):
        async with opened(open_address) as place:
            figures, bounds = await tell_open(place, plan)
        if plan.guarded:
            say("measuring a guarded stream")
            async with opened(guarded_address) as place:
                figures |= await tell_guarded(place, plan)
    ratios = {bound.name: round(bound.value, 3) for bound in bounds}
    missed = [bound for bound in bounds if bound.value > bound.most]
    right = not (figures["wrong"] or figures["unfinished"] or figures.get("guarded_wrong"))
    return {
        "ok": right and not any(bound.sharp for bound in missed),
        "missed": [f"{bound.name}: {bound.value:,.2f}, {bound.most:,} at most" for bound in missed],
        "ratios": ratios,
        **figures,
    }


def say(what: str) -> None:
    """How far it is."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s: {what}", flush=True)


def run(short: bool) -> dict[str, object]:
    """The proof."""
    with tempfile.TemporaryDirectory(prefix="compaction-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        plan = SHORT_PLAN if short else LONG
        return asyncio.run(prove(Path(name), plan))
