"""The disk of a device, in memory: what a process that dies leaves of its replica, for the next one to find.

Replicas run on SQLite's own store in memory, which several connections of one process share as they would a file. What
is committed is on the disk at once; what is not is lost with the process.
"""

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from sealwire_client.replica import database as real
from sealwire_client.replica import reading
from sealwire_client.replica.database import Database
from sealwire_client.replica.schema import SCHEMA_VERSION

_CACHED_STATEMENTS: Final = 256
_names = itertools.count()

_fresh: Final[dict[int, bytes]] = {}
"""A new replica, made once by each process, by schema: making it takes as long as twenty writes."""


class Disk:
    """One replica's file: the bytes that a process finds when it starts, and the store of the process that runs."""

    def __init__(self) -> None:
        self.kept = b""
        self._name = ""

    def insert(self) -> sqlite3.Connection:
        """A process starts: the connection that writes."""
        self._name = f"file:/replica-{next(_names)}?vfs=memdb"
        connection = self.connect()
        begin_with = self.kept or _fresh.get(SCHEMA_VERSION)
        if begin_with:
            with_kept = sqlite3.connect(":memory:")
            with_kept.deserialize(begin_with)
            with_kept.backup(connection)
            with_kept.close()
        return connection

    def connect(self) -> sqlite3.Connection:
        """A further connection of the process that runs."""
        return sqlite3.connect(self._name, uri=True, isolation_level=None, cached_statements=_CACHED_STATEMENTS)

    def image(self) -> bytes:
        """What is committed now. Not to be called within a transaction."""
        connection = self.connect()
        try:
            return connection.serialize()
        finally:
            connection.close()


class _WithWal:
    """Stands before a connection while the replica is prepared: a store in memory cannot keep a WAL, and needs none."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str) -> sqlite3.Cursor:
        """As the connection's."""
        return self._connection.execute("SELECT 'wal'" if sql == "PRAGMA journal_mode = WAL" else sql)

    def executescript(self, sql: str) -> sqlite3.Cursor:
        """As the connection's."""
        return self._connection.executescript(sql)


class _NoLock:
    """Nobody else can open what is in memory."""

    def __init__(self, folder: Path) -> None:
        """Nothing to lock."""

    def release(self) -> None:
        """Nothing to release."""


@contextmanager
def inserted(disks: dict[Path, Disk]) -> Iterator[None]:
    """While the block lasts, the replicas of these folders are on these disks."""
    prepare = Database._prepare

    def inspect(self: Database) -> bool:
        return bool(disks[self.path.parent].kept)

    def connect(self: Database) -> sqlite3.Connection:
        return disks[self.path.parent].insert()

    def prepared(self: Database, unclean: bool) -> None:
        connection, self.connection = self.connection, _WithWal(self.connection)  # type: ignore[assignment]
        try:
            # The file itself is whole: SQLite has no part in that here.
            prepare(self, unclean=False)
        finally:
            self.connection = connection
        if SCHEMA_VERSION not in _fresh:
            _fresh[SCHEMA_VERSION] = disks[self.path.parent].image()

    def reader(path: Path, *, wanders: bool) -> sqlite3.Connection:
        assert not wanders, "all that is simulated is in one thread"
        return disks[path.parent].connect()

    changes: list[tuple[Any, str, Any]] = [
        (real, "FolderLock", _NoLock),
        (Database, "_inspect", inspect),
        (Database, "_connect", connect),
        (Database, "_prepare", prepared),
        (reading, "connect_reader", reader),
    ]
    patches = [mock.patch.object(*change) for change in changes]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
