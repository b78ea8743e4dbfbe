"""What an entry takes up in Postgres: a key of 8 bytes and a value of 32, sealed, with all that a relay keeps of it.

A tenth of the keys is overwritten twice, and `sealwire-relay clean --all` leaves superseded records out. Files then
also hold room for what is pushed next, so three figures are told: what files take, what of it is in use, and what they
take once `sealwire-relay compact` has given that room back. All tables count, with their indexes. Guarded streams keep
an index of what they hold, and have no bound; they are measured in a database of their own.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealwire_protocol.messages import StreamKind
from sealwire_relay.settings import Settings
from tests.acceptance.cleaning import clean_all, compact
from tests.acceptance.filling import Log
from tests.acceptance.sizes import Bound, database, opened, told

LIMIT_S = 400
LIMIT_SHORT_S = 240


@dataclass(frozen=True)
class Plan:
    """How many entries, and how much each may take up."""

    entries: int
    guarded: int
    entry_bytes_max: int


LONG: Final = Plan(1_000_000, 100_000, 120)
SHORT_PLAN: Final = Plan(30_000, 5_000, 130)
"""Tables and indexes that are all but empty take some 200 kB, 7 bytes for each of so few entries; 60 kB
more if Postgres has cleaned all of them by itself meanwhile."""

OVERWRITTEN: Final = 10
"""One of so many keys is overwritten."""

TIMES: Final = 2


@dataclass(frozen=True)
class Taken:
    """Bytes an entry, each time of all tables and indexes."""

    fresh: float
    files: float
    in_use: float
    compacted: float
    wrong: int
    """Records that are not as they should be after all that."""


async def measure(folder: Path, kind: StreamKind, entries: int) -> Taken:
    """The story of one stream, in a Postgres of its own."""
    async with database(folder) as address, opened(address) as place:
        log = await Log.begin(place.store, kind)
        await log.add(entries)
        await place.tidy("VACUUM")
        fresh = await place.sizes(log)
        await log.overwrite(list(range(0, entries, OVERWRITTEN)), TIMES)
        await clean_all(address, Settings().clean_records_max)
        cleaned = await place.sizes(log)
        room = await place.store.reclaim()
        await place.store.close()
        await compact(address)
        compacted = await place.sizes(log)
        await place.store.open()
        wrong = await log.wrong()
        in_use = cleaned.schema - max(0, room.size - room.used)
        fresh_each, files, used, packed = (
            size / entries for size in (fresh.schema, cleaned.schema, in_use, compacted.schema)
        )
        return Taken(fresh_each, files, used, packed, wrong)


async def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """Both kinds of streams; the figures."""
    taken = await measure(folder / "open", StreamKind.OPEN, plan.entries)
    guarded = await measure(folder / "guarded", StreamKind.GUARDED, plan.guarded)
    bounds = [
        Bound("bytes an entry, written once", taken.fresh, plan.entry_bytes_max),
        Bound("bytes an entry in use, cleaned", taken.in_use, plan.entry_bytes_max),
        Bound("bytes an entry, compacted", taken.compacted, plan.entry_bytes_max),
    ]
    figures: dict[str, object] = {
        "entries": [plan.entries, plan.guarded],
        "wrong": taken.wrong + guarded.wrong,
        **{
            f"{name}_entry_bytes": [round(each, 1) for each in (of.fresh, of.files, of.in_use, of.compacted)]
            for name, of in (("open", taken), ("guarded", guarded))
        },
    }
    return told(not figures["wrong"], bounds, figures)


def run(short: bool) -> dict[str, object]:
    """The proof."""
    with tempfile.TemporaryDirectory(prefix="bytes-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        return asyncio.run(prove(Path(name), SHORT_PLAN if short else LONG))
