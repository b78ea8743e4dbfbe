"""Deletions forgotten on purpose: the real cleaner with days so short that they pass while a proof waits."""

import sys
from typing import Any, Final

import trio

from tests.acceptance.restoring import run
from tests.faults.site import Site

DAY_S: Final = 86_400.0
CUTOFF_S: Final = 1.0
FORGOTTEN_S_MAX: Final = 60.0


async def forget_deletions(place: Site) -> int:
    """Clean until no deletion is left in the log. Returns the greatest floor. Raises TooSlowError if some stay."""
    days = ("--retention-days", str(CUTOFF_S / DAY_S), "--cutoff-days", str(CUTOFF_S / DAY_S))
    database = ("--database-url", place.postgres.dsn())
    with trio.fail_after(FORGOTTEN_S_MAX):
        while True:
            await run(sys.executable, "-m", "sealwire_relay", "clean", "--all", *days, *database)
            left, floor = await place.with_database(_deletions)
            if not left:
                return int(floor)
            await trio.sleep(CUTOFF_S)  # until what the cleaner saw is old enough


async def _deletions(connection: Any) -> tuple[int, int]:
    row = await connection.fetchrow(
        "SELECT sum(tombstones)::bigint AS left, max(floor) AS floor FROM sealwire.stream WHERE stream <> 0"
    )
    return row["left"], row["floor"]
