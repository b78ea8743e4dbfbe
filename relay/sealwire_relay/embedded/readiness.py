"""Waits until a starting Postgres answers, with our database and our settings, telling what it is busy with."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]

from sealwire_relay.embedded import configuration
from sealwire_relay.embedded.errors import DiskFullError, EmbeddedPostgresError, StartTimeoutError
from sealwire_relay.embedded.serverlog import ServerLog, explain

POLL_S = 0.02
REPORT_EVERY_S = 3.0  # a person who waits sees that something happens
NO_PROGRESS_S_MAX = 600.0  # without one new line in the log; during recovery Postgres writes one every 2 s
CONNECT_S_MAX = 10.0  # for one connection, to a server that has said that it is ready
STATUS_LINE = 7  # of postmaster.pid, counted from 0 (LOCK_FILE_LINE_PM_STATUS in Postgres' miscadmin.h)


class Readiness:
    """One wait for one server process."""

    def __init__(
        self, *, process: Process, socket: Path, cluster: Path, log: ServerLog, report: Callable[[str], None]
    ) -> None:
        self._process = process
        self._socket = socket
        self._pid_file = cluster / "postmaster.pid"
        self._log = log
        self._log_path = cluster.parent / "postgres.log"
        self._report = report

    async def wait(self) -> None:
        """Return once the database exists, connections are accepted and the settings are proved to be in force.

        Raises what the log says if the process ends, StartTimeoutError if it does nothing any more,
        UnsafeSettingsError if its settings could lose data, EmbeddedPostgresError (DiskFullError) if it runs and its
        database cannot be used. Leaves the process alone in any case.
        """
        clock = asyncio.get_running_loop().time
        began = progressed = clock()
        told, size, busy_with = began, self._log.size(), None
        while not (self._says_ready() and await self._serves()):
            if self._process.returncode is not None:
                raise explain(
                    self._log.tail(),
                    log=self._log_path,
                    status=self._process.returncode,
                )
            now = clock()
            if (grown := self._log.size()) != size:
                size, progressed = grown, now
                recovery = self._log.recovery()
                if recovery is not None and busy_with is None:
                    self._report("Postgres was not shut down in order and is recovering; nothing is lost ...")
                    told = now
                busy_with = recovery
            if now - progressed > NO_PROGRESS_S_MAX:
                raise StartTimeoutError(
                    f"Postgres showed no progress for {NO_PROGRESS_S_MAX:.0f} s while starting and was ended, with "
                    f"its data intact; look into {self._log_path} and start again."
                )
            if now - told >= REPORT_EVERY_S:
                told = now
                doing = f"recovering ({busy_with})" if busy_with else "starting"
                self._report(f"Postgres is {doing}, {now - began:.0f} s ...")
            await asyncio.sleep(POLL_S)

    def _says_ready(self) -> bool:
        # Asking by connecting would write a line into the log each time, for as long as recovery takes.
        try:
            lines = self._pid_file.read_text().splitlines()
        except OSError:
            return False
        return len(lines) > STATUS_LINE and lines[0] == str(self._process.pid) and lines[STATUS_LINE].strip() == "ready"

    async def _serves(self) -> bool:
        try:
            return await self._answers()
        except asyncpg.DiskFullError as error:
            raise DiskFullError(
                f"The disk under the data folder is full ({error.args[0]}); what was committed is intact; make room, "
                "and start the relay again."
            ) from error
        except asyncpg.PostgresError as error:
            raise EmbeddedPostgresError(
                f"Postgres runs, but its database cannot be used ({error.args[0]}); see {self._log_path}; if its files "
                "are damaged, restore a backup into another data folder."
            ) from error

    async def _answers(self) -> bool:
        """Whether a connection was possible; if so, the database is there and the settings are proved."""
        try:
            connection = await self._connect("postgres")
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.InterfaceError):
            return False
        try:
            known = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", configuration.DATABASE)
            if known is None:
                await connection.execute(f"CREATE DATABASE {configuration.DATABASE}")
        finally:
            connection.terminate()
        connection = await self._connect(configuration.DATABASE)
        try:
            await configuration.verify(connection)
        finally:
            connection.terminate()
        return True

    async def _connect(self, database: str) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=str(self._socket),
            port=configuration.PORT,
            user=configuration.USER,
            database=database,
            password="",  # none: not from the environment, not from a password file
            ssl=False,
            timeout=CONNECT_S_MAX,
        )
