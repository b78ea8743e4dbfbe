"""A new device is still reading the log when deletions are forgotten in it: it ends equal to the others.

It is killed with -9 in the middle of its first reading; the entries that it has are deleted by others, and the cleaner
forgets that they were; then it goes on from where it was.
"""

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import trio

from demo.processes import StoryError
from sealwire_client.replica.database import FILE_NAME
from tests.acceptance.cleaned_away import forget_deletions
from tests.acceptance.notes import joined, opened
from tests.acceptance.reading import cursors
from tests.faults.devices import DeviceProcess
from tests.faults.site import site

LIMIT_S = 600
LIMIT_SHORT_S = 300

LOOK_S: Final = 0.002
READING_S_MAX: Final = 60.0
"""For a part of the log to be read."""


async def prove(folder: Path, entries: int) -> dict[str, object]:
    """The whole story; the figures."""
    async with site() as place, AsyncExitStack() as stack:
        await place.start(place.relays[0])
        here = await joined(stack, place.origin, folder / "here", None)
        process = DeviceProcess("tests.acceptance.reading", folder, 1)
        async with AsyncExitStack() as joining:
            await joined(joining, place.origin, process.folder / "device", here)
        await here.write("base", range(entries))
        await here.synced()
        stood = await read_some(process, place.origin, entries)
        deleted = range(0, entries, 2)
        await here.delete("base", deleted)
        await here.write("more", range(entries // 10))
        await here.synced()
        floor = await forget_deletions(place)
        newcomer = await opened(stack, place.origin, process.folder / "device")
        for app in (newcomer, here):
            await app.synced()
        here_has, newcomer_has = here.everything(), newcomer.everything()
        differing = sum(here_has.get(key) != newcomer_has.get(key) for key in here_has.keys() | newcomer_has.keys())
        wanted = entries - len(deleted) + entries // 10
        return {
            "ok": not differing and len(here_has) == wanted and min(stood) < floor,
            "entries": entries,
            "deleted": len(deleted),
            "stood_at": stood,
            "floor": floor,
            "differing": differing,
        }


async def read_some(process: DeviceProcess, origin: str, entries: int) -> list[int]:
    """Let a device read until it is in the midst of the log, then kill it. Returns where it stands in each stream."""
    process.start(origin)
    try:
        with trio.move_on_after(READING_S_MAX):
            while not 0 < sum(cursors(process.folder / "device" / FILE_NAME)) < entries:  # noqa: ASYNC110 - another process
                await trio.sleep(LOOK_S)
    finally:
        process.kill()
    stood = cursors(process.folder / "device" / FILE_NAME)
    if not 0 < sum(stood) < entries:
        raise StoryError(f"the device read {sum(stood)} of {entries} before it could be killed")
    return stood


def run(short: bool) -> dict[str, object]:
    """The proof: ok if both replicas are equal and the floor rose above where the new device stood."""
    with tempfile.TemporaryDirectory(prefix="overlap-", ignore_cleanup_errors=True) as name:
        return trio.run(prove, Path(name), 60_000 if short else 200_000)
