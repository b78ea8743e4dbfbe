"""The replica's one file: opened by one process, written through one connection, never silently replaced.

SQLite up to 3.51.2 can corrupt a WAL when two connections checkpoint at once. So there is one writing connection,
one process (an advisory lock on `replica.lock`), no memory mapping, and readers that cannot checkpoint
(`mode=ro`). The file must not lie on a network file system.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol, cast
from urllib.parse import quote

from sealwire_client.forks import Birthplace
from sealwire_client.replica.errors import (
    OPENING,
    READING,
    NotAReplicaError,
    ReplicaCorruptError,
    ReplicaError,
    ReplicaFullError,
    ReplicaInUseError,
    ReplicaTooNewError,
    corrupt,
    damage_suspected,
    explained,
    forget_damage,
    full,
    is_full,
)
from sealwire_client.replica.reserve import Reserve, no_room
from sealwire_client.replica.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from sealwire_client.replica.touches import Touches
from sealwire_client.replica.waldamage import TORN_COMMITS_MAX, WriteAheadLog, lost_commits

FILE_NAME: Final = "replica.db"
LOCK_NAME: Final = "replica.lock"
REPAIRING: Final = "repairing"
"""The folder that is there while a damaged replica is being replaced, see `salvage`."""

BUSY_MS: Final = 5_000
"""Longest wait for another program's lock, say of a backup tool that reads the file."""

CACHE_KIB: Final = 16_384
"""SQLite's page cache of the writer: holds the inner pages of a key index of some ten million entries."""

CHECKPOINT_PAGES: Final = 4_096
"""WAL pages before a checkpoint: 16 MiB, a bulk load's pages are written several times otherwise."""

WAL_BYTES_KEPT: Final = 33_554_432
"""What the WAL file is cut back to after a checkpoint, so that a bulk load does not occupy a phone for ever."""

CHECK_BYTES_MAX: Final = 67_108_864
"""Largest file that is checked as a whole after an unclean end: a fifth of a second. Larger ones on demand."""

OWN_TABLES: Final = (
    "_vault",
    "_link",
    "_term",
    "_collection",
    "_told",
    "_lost_term",
    "_edit",
    "_batch",
    "_group",
    "_sent",
    "_stuck",
    "_counted",
    "_dispute",
)
"""What only this device has. It is checked whenever the file is opened: it is little, and must not be built upon if it
is damaged. Everything else can be fetched again, and shows its damage when it is met."""

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_VERSION_AT: Final = 60
_APPLICATION_AT: Final = 68


class FolderLock:
    """Says that this process, and no other, has the replica of a folder open. Ends with the process."""

    def __init__(self, folder: Path) -> None:
        """Raises ReplicaInUseError, which names the other process."""
        self._path = folder / LOCK_NAME
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).strip()
            os.close(self._fd)
            pid = int(holder) if holder.isdigit() else None
            who = f"process {pid}" if pid else "another process"
            raise ReplicaInUseError(
                f"The replica in {folder} is in use by {who}: two writers would damage it; end that one first, or give "
                "this one a folder of its own.",
                pid,
            ) from None
        os.ftruncate(self._fd, 0)
        with suppress(OSError):  # who it is helps others, and need not be known; the disk may be full
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        # A process that is forked from this one has the lock too, and would hold it longer than this one lives.
        self._birthplace = Birthplace(partial(os.close, self._fd))

    def release(self) -> None:
        """Let others in. The file stays: to delete it would let two processes lock two files of one name."""
        if self._birthplace.is_here:
            self._birthplace.end()
            os.ftruncate(self._fd, 0)
            os.close(self._fd)


class Beside(Protocol):
    """What is held in memory beside the file, and changes with its transactions."""

    def mark(self) -> object:
        """How it stands."""

    def go_back(self, mark: object) -> None:
        """Stand as it did."""

    def write(self) -> None:
        """Put it into the file: the outermost transaction ends."""


class Database:
    """The writing connection. Belongs to the thread that opened it."""

    def __init__(self, folder: Path) -> None:
        """Open, or make, the replica of a folder.

        A disk that is full does not keep it from being opened, but for a reserve that could not be made before, see
        `reserve`. Raises ReplicaInUseError, NotAReplicaError, ReplicaTooNewError (the file untouched in all three),
        ReplicaCorruptError, ReplicaFullError or ReplicaUnreadableError.
        """
        self.path = folder / FILE_NAME
        self._reserve = Reserve(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FolderLock(folder)
        except OSError as error:
            if no_room(error):
                raise full(self.path, OPENING) from error
            raise ReplicaError(f"The folder {folder} cannot hold a replica ({error}): choose another one.") from error
        self._depth = 0
        self.beside: list[Beside] = []
        self.touches = Touches()
        self._damage: ReplicaCorruptError | None = None
        try:
            try:
                self._open()
            except ReplicaFullError:
                if not self._reserve.give_up():
                    raise
                self._open()
        except BaseException:
            self._lock.release()
            raise
        self._reserve.make()

    def _open(self) -> None:
        unclean = self._inspect()
        self.connection = self._connect()
        try:
            self._prepare(unclean)
        except BaseException as error:
            self._close_as_it_is()
            if isinstance(error, sqlite3.Error) and (meant := explained(error, self.path, OPENING)):
                raise meant from error
            raise

    def _inspect(self) -> bool:
        """Read the header before SQLite does. True if the last process did not close the file."""
        log = self.path.with_name(FILE_NAME + "-wal")
        if self.path.with_name(REPAIRING).exists():
            raise corrupt(self.path, "its repair was begun, and not ended")
        if self.path.with_name(FILE_NAME + "-journal").exists():
            return True  # SQLite must first roll back what the header says
        try:
            with self.path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except FileNotFoundError:
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            return False
        except OSError as error:
            raise ReplicaError(f"{self.path} cannot be read ({error}): see to its permissions.") from error
        if not header and log.exists() and log.stat().st_size:
            raise corrupt(self.path, "the file is empty, and what was to be added to it is there")
        if header and (len(header) < _HEADER_BYTES or not header.startswith(_MAGIC)):
            self._refuse("is not an SQLite file")
        if header and int.from_bytes(header[_APPLICATION_AT : _APPLICATION_AT + 4], "big") != APPLICATION_ID:
            self._refuse("belongs to another application")
        self._refuse_newer(int.from_bytes(header[_VERSION_AT : _VERSION_AT + 4], "big"))
        return bool(header) and log.exists()

    def _refuse(self, why: str) -> None:
        raise NotAReplicaError(
            f"{self.path} {why}: it was left as it is; move it away, or choose another folder for the replica. If a"
            " device lived here, ask another one for an invite then, and join again."
        )

    def _refuse_newer(self, version: int) -> None:
        if version > SCHEMA_VERSION:
            raise ReplicaTooNewError(
                f"{self.path} was written by a newer Sealwire (schema {version}, this one knows {SCHEMA_VERSION}): it "
                "was left as it is; update this program."
            )

    def _connect(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(self.path, timeout=BUSY_MS / 1000, isolation_level=None, cached_statements=256)
        except sqlite3.Error as error:
            raise explained(error, self.path, OPENING) or error from error

    def _prepare(self, unclean: bool) -> None:
        run = self.connection.execute
        run("PRAGMA mmap_size = 0")
        version: int = run("PRAGMA user_version").fetchone()[0]
        application: int = run("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID and run("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            self._refuse("belongs to another application")
        self._refuse_newer(version)
        run("PRAGMA synchronous = FULL")
        run("PRAGMA fullfsync = 1")
        run("PRAGMA checkpoint_fullfsync = 1")
        if application != APPLICATION_ID:
            # Before WAL, so that the header of the file itself says whose it is from its first page on.
            self.connection.executescript(f"BEGIN EXCLUSIVE; PRAGMA application_id = {APPLICATION_ID}; COMMIT")
        if run("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise ReplicaError(f"{self.path} lies where SQLite cannot keep a WAL: choose a folder on a local disk.")
        run(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        run(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
        run(f"PRAGMA cache_size = -{CACHE_KIB}")
        run("PRAGMA temp_store = MEMORY")
        run("PRAGMA foreign_keys = ON")
        if unclean:
            self._check_log()
        whole = damage_suspected(self.path)
        if whole:
            self.check("integrity_check(1)")
            forget_damage(self.path)
        elif unclean and self.path.stat().st_size <= CHECK_BYTES_MAX:
            whole = True
            self.check()
        for number in range(version, SCHEMA_VERSION):
            # One string: executescript() would commit a transaction begun before it.
            script = f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT"
            self.connection.executescript(script)
        for table in () if whole else OWN_TABLES:
            self.check(f"quick_check({table})")

    def _check_log(self) -> None:
        """After an unclean end: SQLite must have read all transactions of the log but the last, which may be torn."""
        log = self.path.with_name(FILE_NAME + "-wal")
        try:
            frames = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            # The log stays, and is read from where it lies. How much of it SQLite reads, its checksums tell as well.
            lost = lost_commits(log)
        else:
            if frames < 0:  # another program reads the file
                return
            with log.open("rb") as file:
                lost = WriteAheadLog(file).commits_beyond(frames)
        if lost > TORN_COMMITS_MAX:
            raise corrupt(self.path, f"{lost} of its last transactions cannot be read")

    def check(self, which: str = "quick_check(1)") -> None:
        """Read the whole file and compare what must agree. Raises ReplicaCorruptError. Seconds for each GB."""
        try:
            found = self.connection.execute(f"PRAGMA {which}").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise self.explained(error) from error
        if found != "ok":
            raise self.explained(corrupt(self.path, found.splitlines()[0]))

    def explained(self, error: BaseException) -> BaseException:
        """What an error that came out of here means. Once the file was found to be damaged, nothing more is written."""
        meant = explained(error, self.path) if isinstance(error, sqlite3.Error) else None
        if isinstance(meant or error, ReplicaCorruptError):
            self._damage = self._damage or cast("ReplicaCorruptError", meant or error)
        if meant is not None:
            meant.__cause__ = error
        return meant or error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable when the outermost one ends without an error; none of it otherwise.

        Within another it is a savepoint, which fails alone. SQLite's errors come out as replica errors.
        """
        connection, name = self.connection, f"s{self._depth}"
        if self._damage is not None:
            raise self._damage
        marks = [each.mark() for each in self.beside]
        try:
            connection.execute(f"SAVEPOINT {name}" if self._depth else "BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield connection
                if self._depth == 1:
                    for each in self.beside:
                        each.write()
                connection.execute(f"RELEASE {name}" if self._depth > 1 else "COMMIT")
            except BaseException:
                for each, mark in zip(self.beside, marks, strict=True):
                    each.go_back(mark)
                # A full disk makes SQLite roll back the whole transaction by itself.
                if connection.in_transaction:
                    if self._depth > 1:
                        connection.execute(f"ROLLBACK TO {name}")
                        connection.execute(f"RELEASE {name}")
                    else:
                        connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1
        except sqlite3.Error as error:
            raise self.explained(error) from error
        if not self._depth:
            self.touches.committed()

    @property
    def in_transaction(self) -> bool:
        """False also after SQLite has given up a transaction by itself, because the disk is full."""
        return self.connection.in_transaction

    def close(self) -> None:
        """Checkpoint, close and let other processes in. Where the disk has no room for that, the log stays."""
        try:
            try:
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                if is_full(error):
                    self._reserve.give_up()  # closing tries once more
            self.connection.close()
            self._reserve.make()
        finally:
            self._lock.release()

    def _close_as_it_is(self) -> None:
        """Close without writing the log into the file, which may hold more than SQLite reads of it: whoever closes
        last and cannot write leaves it."""
        try:
            last = connect_reader(self.path)
            with suppress(sqlite3.Error):
                last.execute("SELECT count(*) FROM sqlite_schema")
            self.connection.close()
            last.close()
        except ReplicaError:
            self.connection.close()


def connect_reader(path: Path, *, wanders: bool = False) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint. Open it only while a Database has the file open. `wanders`:
    several threads use it, one at a time."""
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro",
            uri=True,
            isolation_level=None,
            cached_statements=256,
            check_same_thread=not wanders,
        )
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA temp_store = MEMORY")
    except sqlite3.Error as error:
        raise explained(error, path, READING) or error from error
    return connection
