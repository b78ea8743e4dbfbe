"""A device that pushes as fast as it is answered, if it is told to: `python -m tests.acceptance.noise ORIGIN RECORDS`.

On stdin `on` and `off`; to each line it answers with the records that were acknowledged since the one before.
"""

import sys
from functools import partial
from typing import Final

import trio

from tests.acceptance.pushing import Pusher

NUMBER: Final = 1_000_000
"""Of its keys: nobody else has it."""

WINDOW: Final = 8
"""All that the protocol lets a device have under way to one vault."""


async def main(origin: str, records: int) -> None:
    """Until stdin ends."""
    pusher = Pusher(origin, NUMBER, window=WINDOW, records=records, same=True)
    pusher.eager = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pusher.link.run)
        await pusher.found()
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(pusher.begin_again(line.strip() == "on"), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(partial(main, sys.argv[1], int(sys.argv[2])))
