"""Lines of a file or a pipe, in batches: as many as there are, so that a slow writer is not kept waiting."""

import os
import select
import stat
from collections.abc import AsyncGenerator
from typing import Final

import trio

from sealwire_client.cli.failures import Failure

READ_BYTES: Final = 262_144
"""Read at once: a few pages of a disk, several fillings of a pipe."""

LINE_BYTES_MAX: Final = 1_048_576
"""Longest line: an entry of 65,535 bytes in which every character is escaped has some 400,000."""

LINES_TOGETHER_MAX: Final = 5_000
"""Lines of one batch, which becomes one transaction: some 50 ms of writing."""


async def batches(fd: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
    """Numbered lines, without their ends. Cancelled: what was read and not given is lost, the file stays open."""
    is_file = stat.S_ISREG(os.fstat(fd).st_mode)
    number, rest = 0, b""
    batch: list[tuple[int, bytes]] = []
    while True:
        # Not through sys.stdin: a thread that waits in it would hold a lock that the interpreter's end needs.
        data = await trio.to_thread.run_sync(os.read, fd, READ_BYTES, abandon_on_cancel=True)
        found = (rest + data).split(b"\n") if data else [rest, b""]
        rest = found.pop()
        if len(rest) > LINE_BYTES_MAX:
            raise Failure(
                f"Line {number + len(found) + 1} is longer than {LINE_BYTES_MAX:,} bytes, which no entry needs: it was"
                " not saved; is this a file of JSON lines?",
                "value",
            )
        for line in found:
            number += 1
            batch.append((number, line))
        while batch and (not data or len(batch) >= LINES_TOGETHER_MAX or not (is_file or _has_more(fd))):
            yield batch[:LINES_TOGETHER_MAX]
            batch = batch[LINES_TOGETHER_MAX:]
        if not data:
            return


def _has_more(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
