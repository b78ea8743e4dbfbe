"""One process at a time on a data folder: a lock that the relay and its Postgres hold together.

The lock is an open file, handed down to Postgres and from there to each of its processes. It is free only
when the last of them has ended, so that a relay started right after a crash waits for the old Postgres and never
races it. The file names the relay that took it.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path


class FolderLock:
    """The lock file of a data folder; not held until `try_take` says so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def fileno(self) -> int:
        """The descriptor to hand down to Postgres. Only while the lock is held."""
        assert self._file is not None
        return self._file

    def try_take(self) -> bool:
        """Take the lock if it is free, without waiting. Raises OSError if the file cannot be written."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {_started(os.getpid())}\n".encode(), 0)
        except OSError:
            os.close(file)
            raise
        self._file = file
        return True

    def holder(self) -> int | None:
        """The pid of the living relay that holds the lock, or None if only its Postgres is still there."""
        try:
            pid, started = (int(word) for word in self._path.read_text().split())
        except (OSError, ValueError):
            return None
        # The start time tells the relay from a stranger that got its number later.
        return pid if started and _started(pid) == started else None

    def release(self) -> None:
        """Give the lock up; it stays taken until the processes that inherited it have ended too."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
        os.close(file)


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = status.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
