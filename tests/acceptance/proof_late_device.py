"""A device that was away for longer than the relay keeps deletions comes home with edits that it has not sent.

Others deleted entries meanwhile, and the log has forgotten that they did. The late device must find out which of its
entries are gone, keep what it edited, and not be sent everything again.
"""

import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.acceptance.cleaned_away import forget_deletions
from tests.acceptance.notes import App, Name, Note, joined, opened
from tests.faults.site import Site, site

LIMIT_S = 600
LIMIT_SHORT_S = 300

EDITS: Final = 50
DELETES: Final = 200

SHARE_MAX: Final = 0.2
"""Of the bytes of a full download, what comes and goes when the device is back. In the short form there is little to
download, and what 250 entries take weighs more."""

SHARE_SHORT_MAX: Final = 0.6


@dataclass(frozen=True)
class Stay:
    """What the devices have, as it should be and as it is."""

    wanted: dict[Name, Note]
    deleted: set[Name]
    found: list[dict[Name, Note]]
    floor: int
    download_bytes: int
    home_bytes: int
    home_s: float


async def prove(folder: Path, entries: int) -> Stay:
    """The whole story."""
    async with site() as place, AsyncExitStack() as stack:
        await place.start(place.relays[0])
        here = await joined(stack, place.origin, folder / "here", None)
        await here.write("base", range(entries))
        await here.synced()
        before = place.front.carried_bytes
        async with AsyncExitStack() as until_late:
            late = await joined(until_late, place.origin, folder / "late", here)
            await late.synced()
        download = place.front.carried_bytes - before
        edited = range(DELETES, DELETES + EDITS)
        await edit_offline(place, folder / "late", edited)
        await here.delete("base", range(DELETES))
        await here.synced()
        gone = set(late_entries(entries)) - set(here.everything())
        floor = await forget_deletions(place)
        before, began = place.front.carried_bytes, time.monotonic()
        late = await opened(stack, place.origin, folder / "late")
        for app in (late, here, late):
            await app.synced()
        home = place.front.carried_bytes - before
        seconds = time.monotonic() - began
        wanted = {name: note for name, note in late_entries(entries).items() if name not in gone}
        wanted |= {name: Note("late", note.number) for name, note in wanted.items() if note.number in edited}
        return Stay(wanted, gone, [here.everything(), late.everything()], floor, download, home, seconds)


async def edit_offline(place: Site, folder: Path, numbers: range) -> None:
    """Edit where no relay can be reached."""
    place.front.lead_to()
    async with AsyncExitStack() as stack:
        app: App = await opened(stack, place.origin, folder)
        await app.overwrite("base", numbers, "late")
        status = await app.vault.status()
        # What the device states of its collections, at a moment of its choice, may wait beside them.
        assert status.pending >= len(numbers), f"{status.pending} edits wait, not {len(numbers)}"
    place.lead()


def late_entries(entries: int) -> dict[Name, Note]:
    """What everybody had."""
    names = ("notes", "tasks")
    return {(names[n % len(names)], f"base-{n:07}"): Note("base", n) for n in range(entries)}


def run(short: bool) -> dict[str, object]:
    """The proof: ok if the edits arrived, the deleted stay deleted, and not everything was sent again."""
    entries = 10_000 if short else 50_000
    with tempfile.TemporaryDirectory(prefix="late-", ignore_cleanup_errors=True) as name:
        stay = trio.run(prove, Path(name), entries)
    lost = sum(found.get(key) != note for found in stay.found for key, note in stay.wanted.items())
    back = sum(key in found for found in stay.found for key in stay.deleted)
    edits = {key: note for key, note in stay.wanted.items() if note.writer == "late"}
    share = stay.home_bytes / stay.download_bytes
    return {
        "ok": not lost
        and not back
        and stay.floor > 0
        and len(stay.deleted) == DELETES
        and all(len(found) == len(stay.wanted) for found in stay.found)
        and share < (SHARE_SHORT_MAX if short else SHARE_MAX),
        "entries": entries,
        "edits_that_arrived": sum(stay.found[0].get(key) == note for key, note in edits.items()),
        "deleted": len(stay.deleted),
        "deleted_came_back": back,
        "lost": lost,
        "floor": stay.floor,
        "bytes_of_a_full_download": stay.download_bytes,
        "bytes_when_it_came_home": stay.home_bytes,
        "share": round(share, 3),
        "home_s": round(stay.home_s, 2),
    }
