"""A device that reads what the relay has, until killed: `python -m tests.acceptance.reading FOLDER ORIGIN NUMBER`."""

import sqlite3
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from tests.acceptance.notes import opened


def cursors(replica: Path) -> list[int]:
    """Where a replica stands in each of its collections, as another process may see it."""
    try:
        connection = sqlite3.connect(f"file:{replica}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return []
    try:
        return [int(seq) for (seq,) in connection.execute("SELECT cursor_seq FROM _collection")]
    finally:
        connection.close()


async def main(folder: Path, origin: str) -> None:
    """Read until killed."""
    async with AsyncExitStack() as stack:
        await opened(stack, origin, folder / "device")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
