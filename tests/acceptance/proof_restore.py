"""A relay that is restored from an old backup gets back from its devices what the backup did not have.

Three devices write and delete after the backup. When it has been restored a fourth one, which was away since before the
backup, comes first and writes so much that every stream grows past where the three stand; then they come back one by
one. Everything they wrote must be back, what they deleted stay deleted, nothing stand in the log twice, all replicas
and the log say the same, and nobody did anything by hand. Three ways to restore, each with a database of its own.
"""

import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from sealwire_client.replica.database import FILE_NAME
from sealwire_protocol.segment import read_segment
from tests.acceptance.notes import App, Name, Note, joined, opened
from tests.acceptance.restoring import WAYS, Way
from tests.faults.site import Site, site

LIMIT_S = 600
LIMIT_SHORT_S = 450

NAMES: Final = ("first", "second", "third")
"""The devices that write after the backup. The fourth one is called late."""


@dataclass(frozen=True)
class Plan:
    """How much is written: before the backup; after it, by all three together; and by the fourth, past all cursors."""

    before: int
    writes: int
    deletes: int
    beyond: int


LONG: Final = Plan(before=3_000, writes=5_000, deletes=500, beyond=7_000)
SHORT_PLAN: Final = Plan(before=300, writes=500, deletes=60, beyond=700)


async def drill(way: type[Way], plan: Plan, folder: Path) -> dict[str, Any]:
    """One drill; what it came to. `wrong` is empty if all is right."""
    folders = {name: folder / name for name in (*NAMES, "late")}
    async with site() as place:
        chosen = way(place, folder)
        await place.start(place.relays[0])
        wanted, away = await tell_before(place, chosen, plan, folders)
        await place.kill(place.relays[0])
        place.front.cut()
        await chosen.restore()
        await place.start(place.relays[0])
        began = time.monotonic()
        found = await come_back(place, plan, folders)
        seconds = time.monotonic() - began
        wanted |= {key: note for key, note in found["late"].items() if note.writer == "beyond"}
        wrong = differing(wanted, away, found)
        doubles, ranks = await read_log(place)
        wrong["records_twice"] += doubles
        for each in folders.values():
            wrong["fingerprints_differing"] += replica_ranks(each) != ranks
    told = {"records_in_the_log": sum(ranks.values()), "seconds_until_all_agree": round(seconds, 1)}
    return {"wrong": {name: count for name, count in wrong.items() if count}, **told}


async def tell_before(
    place: Site, chosen: Way, plan: Plan, folders: dict[str, Path]
) -> tuple[dict[Name, Note], set[Name]]:
    """All that happens before the disaster. Returns what must be there in the end, and what must not."""
    async with AsyncExitStack() as stack:
        apps = [await joined(stack, place.origin, folders[name], None) for name in NAMES[:1]]
        apps += [await joined(stack, place.origin, folders[name], apps[0]) for name in NAMES[1:]]
        await apps[0].write("base", range(plan.before))
        async with AsyncExitStack() as left_early:
            late = await joined(left_early, place.origin, folders["late"], apps[0])
            for app in (*apps, late):
                await app.synced()
            before = set(late.everything())
        await chosen.back_up()
        third = plan.deletes // len(NAMES) + 1
        for at, (name, app) in enumerate(zip(NAMES, apps, strict=True)):
            share = plan.writes // len(NAMES) + (at < plan.writes % len(NAMES))
            again = range(len(NAMES) * third + at, plan.before, 4 * len(NAMES))
            await app.write(name, range(share - len(again)))
            await app.overwrite("base", again, name)
            await app.delete("base", range(at * third, min(plan.deletes, (at + 1) * third)))
        for _ in NAMES:
            for app in apps:
                await app.synced()
        wanted = apps[0].everything()
        assert len(before - set(wanted)) == plan.deletes, "the devices did not delete what they should"
        assert all(app.everything() == wanted for app in apps), "the devices do not agree before the disaster"
        return wanted, before - set(wanted)


async def come_back(place: Site, plan: Plan, folders: dict[str, Path]) -> dict[str, dict[Name, Note]]:
    """The late device first, which writes; then the others, one by one; in the end all at once. What each has then."""
    async with AsyncExitStack() as stack:
        apps: dict[str, App] = {}
        for name in ("late", *NAMES):
            apps[name] = await opened(stack, place.origin, folders[name])
            await apps[name].synced()
            if name == "late":
                await apps[name].write("beyond", range(plan.beyond))
                await apps[name].synced()
        for app in apps.values():
            await app.synced()
        return {name: app.everything() for name, app in apps.items()}


def differing(
    wanted: dict[Name, Note],
    away: set[Name],
    found: dict[str, dict[Name, Note]],
) -> Counter[str]:
    """What is not as it must be, in any replica."""
    wrong: Counter[str] = Counter()
    for entries in found.values():
        wrong["writes_lost"] += sum(entries.get(key) != note for key, note in wanted.items())
        wrong["deleted_came_back"] += sum(key in entries for key in away)
        wrong["unknown_entries"] += sum(key not in wanted and key not in away for key in entries)
    return wrong


async def read_log(place: Site) -> tuple[int, Counter[bytes]]:
    """How many records stand in the log twice, and the rank of the greatest of each tag."""

    async def rows(connection: Any) -> list[Any]:
        found: list[Any] = await connection.fetch(
            "SELECT vault_id, stream, prev, last, body FROM sealwire.segment WHERE stream <> 0 ORDER BY 1, 2, 4"
        )
        return found

    best: dict[tuple[int, bytes], bytes] = {}
    seen: Counter[tuple[int, bytes, bytes]] = Counter()
    for _, stream, prev, last, body in await place.with_database(rows):
        for _, record in read_segment(body, prev, last):
            rank = record.rank.pack()
            seen[stream, record.tag, rank] += 1
            best[stream, record.tag] = max(best.get((stream, record.tag), b""), rank)
    return sum(count - 1 for count in seen.values()), Counter(best.values())


def replica_ranks(folder: Path) -> Counter[bytes]:
    """The ranks of all that a replica holds of the log, deletions too."""
    connection = sqlite3.connect(f"file:{folder / FILE_NAME}?mode=ro", uri=True)
    try:
        tables = [f"_c{number}" for (number,) in connection.execute("SELECT id FROM _collection")]
        return Counter(
            rank for table in tables for (rank,) in connection.execute(f"SELECT _rank FROM {table}") if rank is not None
        )
    finally:
        connection.close()


def run(short: bool) -> dict[str, object]:
    """The proof: ok if every way ends with nothing wrong."""
    plan = SHORT_PLAN if short else LONG
    with tempfile.TemporaryDirectory(prefix="restore-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        ways = {}
        for way in WAYS:
            folder = Path(name) / way.__name__
            folder.mkdir()
            ways[way.name] = trio.run(drill, way, plan, folder)
    return {"ok": not any(told["wrong"] for told in ways.values()), **vars(plan), "ways": ways}
