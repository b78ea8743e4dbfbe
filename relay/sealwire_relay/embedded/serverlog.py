"""What Postgres writes to its log: kept within bounds, and read for why it ended or how far recovery is."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Final

from sealwire_relay.embedded.errors import DataFolderError, DiskFullError, EmbeddedPostgresError

LOG_BYTES_MAX = 16 * 1024 * 1024  # then it is moved to postgres.log.1: weeks of ordinary messages, twice that on disk
TAIL_BYTES = 64 * 1024  # read back at most: the decisive lines are the last ones

_DECISIVE = re.compile(
    r"(?:\b(?:PANIC|FATAL): +|^initdb: error: |^postgres: |error (?=while loading shared libraries))(.*)$"
)
# What a client was told, not why the server ended.
_TO_CLIENTS = re.compile(
    r"the database system is|terminating (connection|background|walreceiver)|sorry, too many|remaining connection slots"
    r'|(role|database) ".*" (does not exist|is not permitted to log in)|\S+ authentication failed|no pg_hba\.conf entry'
    r"|canceling authentication|connection to client lost|unsupported frontend protocol"
    r"|invalid length of startup packet"
)
# The last of them: a write that was cut short has no errno, only a hint on a line of its own.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "Check free disk space")
_DAMAGE = re.compile(r'incorrect checksum in control file|"global/pg_control": read \d+ of|a valid checkpoint record')
_RECOVERY = re.compile(r"LOG: +((?:redo|syncing data|resetting unlogged|database system was not properly).*)$")


class ServerLog:
    """The log file. `mark` remembers its end, and everything read is what came after the mark."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = 0

    def open(self) -> int:
        """A descriptor to append to the log with, for the caller to close, after bounding the file."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.bound()
        return os.open(self._path, flags, 0o600)

    def mark(self) -> None:
        """Leave out of everything read later what was written until now."""
        self._mark = self.size()

    def size(self) -> int:
        """Bytes in the log."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def bound(self) -> None:
        """Move the contents to `postgres.log.1` if they are too large. Postgres goes on appending to this file."""
        if self.size() > LOG_BYTES_MAX:
            shutil.copyfile(self._path, self._path.with_suffix(".log.1"))
            os.truncate(self._path, 0)
            self._mark = 0

    def tail(self) -> str:
        """The last part of what was written after the mark."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(self._mark, self.size() - TAIL_BYTES))
                return file.read(TAIL_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def recovery(self) -> str | None:
        """The last line about crash recovery, None if there is none."""
        found = [match[1] for line in self.tail().splitlines() if (match := _RECOVERY.search(line))]
        return found[-1] if found else None


def decisive_line(text: str) -> str | None:
    """Why Postgres or initdb ended, in its own words: the last fatal line of a log; None if there is none."""
    for line in reversed(text.splitlines()):
        found = _DECISIVE.search(line)
        if found and not _TO_CLIENTS.match(found[1]):
            return found[1]
    return None


_ONCE_MORE: Final = "and start the relay again if it has ended"
"""A relay that served devices goes on, and starts its Postgres again by itself."""

_RESTORE: Final = "restore a backup into another data folder"


def explain(text: str, *, log: Path, status: int) -> EmbeddedPostgresError:
    """The error for a Postgres or initdb that ended with this status, having written this text to the log."""
    # Whoever was ended by a signal from outside (SIGABRT is its own) did not end for anything that it wrote before.
    line = decisive_line(text) if status >= 0 or status == -signal.SIGABRT else None
    where = f"see {log}"
    if any(words in text for words in _DISK_FULL):
        # What follows from a full disk comes last, and tells less.
        return DiskFullError(
            f"The disk under the data folder is full; what was committed is intact; {where}, make room, {_ONCE_MORE}."
        )
    if line is None:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return EmbeddedPostgresError(f"Postgres {how} and gave no reason; {where}, {_ONCE_MORE}.")
    if "could not look up effective user" in line:
        return EmbeddedPostgresError(
            f"Postgres needs a user that has a name ({line}); add the user to /etc/passwd, or give the relay a "
            "Postgres of your own with --database-url."
        )
    if "incompatible with server" in line:
        # Of another major version they are not: that was looked at before, and is told as such.
        return DataFolderError(
            "`postgres/global/pg_control` in the data folder is damaged, or written by another build of Postgres"
            f" ({line}); start the relay that made it, or {_RESTORE}."
        )
    if _DAMAGE.search(line):
        return DataFolderError(f"Database files in the data folder are damaged ({line}); {where}, and {_RESTORE}.")
    if "ermission denied" in line or "invalid permissions" in line or "wrong ownership" in line:
        return DataFolderError(
            f"Postgres may not use its files ({line}); give `postgres/` in the data folder back to its user, 0700."
        )
    if "shared memory" in line and ("in use" in line or "Cannot allocate" in line):
        return EmbeddedPostgresError(f"Postgres got no shared memory ({line}); end what uses it; {where}.")
    return EmbeddedPostgresError(f"Postgres ended: {line}; {where}, mend the cause, {_ONCE_MORE}.")
