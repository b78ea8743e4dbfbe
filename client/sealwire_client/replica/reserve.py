"""Room on the disk that a replica keeps for itself, so that it can be opened and read when nothing else is left.

SQLite cannot even read without room: an opening makes an index of the log, and what was committed before the disk was
full is moved out of the log when the replica is closed. A file without contents holds that room. It is deleted when one
of the two meets a full disk, and made again at the end of each opening and closing, where there is room.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

RESERVE_NAME: Final = "replica.reserve"

RESERVE_BYTES: Final = 262_144
"""An index of 32 KiB for every 16 MiB of log, and pages by which the database file grows when a log of some hundred
KiB is moved into it. A longer log stays where it is until there is room, and is read from there."""

SIZES_BYTES: Final = (RESERVE_BYTES, RESERVE_BYTES // 2, RESERVE_BYTES // 4)
"""What is tried where there is less room. An opening that had to give the reserve up takes back what it did not need,
so that changes do not use it up; the least one is good for two openings."""

_BLOCK_BYTES: Final = 512
"""What `st_blocks` counts in, whatever the file system's own blocks are."""


def no_room(error: OSError) -> bool:
    """True if an error of the system says that the disk, or the user's share of it, has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The room kept beside the replica of a folder. Used by whoever holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing."""
        self._path = folder / RESERVE_NAME

    def make(self) -> None:
        """Take the room if it is not held yet, or what there is of it. Never raises: where there is none, none is
        held."""
        with suppress(OSError):
            if self._is_held():
                return
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                for size in SIZES_BYTES:
                    with suppress(OSError):
                        _allocate(file, size)
                        return
                    os.ftruncate(file, size // 2)
                self._path.unlink()
            finally:
                os.close(file)

    def give_up(self) -> bool:
        """Let the disk have the room again. False if none was held. Never raises."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def _is_held(self) -> bool:
        """False also for a copy with holes in the place of blocks."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return found.st_size >= RESERVE_BYTES and found.st_blocks * _BLOCK_BYTES >= RESERVE_BYTES


def _allocate(file: int, size: int) -> None:
    """Real blocks, not a hole. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    written = 0
    while written < size:
        written += os.pwrite(file, bytes(size - written), written)
