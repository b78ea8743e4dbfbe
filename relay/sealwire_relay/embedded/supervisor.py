"""Starts, watches and stops the embedded Postgres."""

import asyncio
import errno
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from sealwire_relay.embedded import account as accounts
from sealwire_relay.embedded import binaries as installation
from sealwire_relay.embedded import configuration
from sealwire_relay.embedded.account import Account
from sealwire_relay.embedded.binaries import Binaries
from sealwire_relay.embedded.datafolder import DataFolder
from sealwire_relay.embedded.errors import (
    AlreadyRunningError,
    DataFolderError,
    DiskFullError,
    EmbeddedPostgresError,
    MissingBinariesError,
)
from sealwire_relay.embedded.processes import end, finish, kill_group, output_of, reaches, spawn
from sealwire_relay.embedded.readiness import REPORT_EVERY_S, Readiness
from sealwire_relay.embedded.serverlog import ServerLog, explain

MAX_CONNECTIONS = 40  # the relay's pool, its listener and an administrator's psql; each costs about 10 MB
LOCK_S_MAX = 120  # what an earlier Postgres may take to end: longer than its own limits for stopping
LOCK_POLL_S = 0.05
INITDB_S_MAX = 300  # it takes a second or two; a slow network disk a minute
LOG_CHECK_EVERY_S = 60  # how often the log's size is looked at
SOCKET_PATH_BYTES_MAX = 100  # the kernel's limit is 107
# The server process finds its folder by the one path that needs no permission on the folders above: where it
# already stands. So data may lie below root's home while Postgres runs as another user.
HERE = "/proc/self/cwd"


def _silent(_: str) -> None:
    """Report to nobody."""


class EmbeddedPostgres:
    """One Postgres, child of this process, on one data folder. To be used from one event loop.

    It dies with this process, even by kill -9, within seconds, and with the thread that started it. It listens
    on a unix socket only, which this user and root can reach. Progress lines, of one sentence each, go to
    `report`. `folder` is created if absent; its parents too. Nothing outside it is changed, save a temporary
    folder where the path is too long for a socket, or where root's installed binaries must be copied to be reached.
    """

    def __init__(
        self, folder: Path, *, report: Callable[[str], None] = _silent, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        self._folder = DataFolder(folder)
        self._log = ServerLog(self._folder.log)
        self._report = report
        self._max_connections = max_connections
        self._process: Process | None = None
        self._helper: Process | None = None
        self._dsn: str | None = None
        self._starting: asyncio.Task[str] | None = None
        self._tending: asyncio.Task[None] | None = None
        self._runtime: Path | None = None
        self._stopping = False
        self._shutting = asyncio.Lock()

    def exists(self) -> bool:
        """Whether the folder has database files. Raises DataFolderError if it is not a relay's; changes nothing."""
        self._folder.check()
        return self._folder.owner() is not None

    def look(self) -> None:
        """Raise what keeps `start` from the folder as it is now: AlreadyRunningError if a relay runs there, or
        DataFolderError if it is not a relay's. Waits for nothing, and changes nothing."""
        self._folder.check()
        pid = self._folder.lock.holder()
        if pid is not None:
            raise self._in_use(pid)

    def _in_use(self, pid: int) -> AlreadyRunningError:
        return AlreadyRunningError(
            f"The data folder {self._folder.path} is in use by the relay with process id {pid}; stop that one, or "
            "choose another data folder.",
            pid,
        )

    @property
    def address_of_other(self) -> str:
        """The DSN of the Postgres that another process runs on this folder, once `start` has said that one does."""
        return _dsn(self._folder.socket_in_use())

    @property
    def pid(self) -> int | None:
        """The pid of the running server process; None if there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> str:
        """Start Postgres, wait until it answers, and return a DSN for asyncpg, of the database "sealwire".

        Creates folder, cluster and database where missing. Waits as long as crash recovery makes progress, and
        tells so. While it runs, another call returns the same DSN; after it has died, or was stopped, it is
        started again. Cancelling ends what was started before the cancellation is delivered. Raises
        EmbeddedPostgresError, or the subclass that names the cause; then no process is left.
        """
        if self._starting is None:
            if self._dsn is not None and self.pid is not None:
                return self._dsn
            self._stopping = False
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._started)
        starting = self._starting
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            mine = asyncio.current_task()
            if starting.cancelled() and mine is not None and not mine.cancelling():
                raise EmbeddedPostgresError("Postgres was stopped while it was starting; start it again.") from None
            starting.cancel()
            await finish(_settled(starting))
            raise

    async def stop(self) -> None:
        """End Postgres in order, if it runs or is starting; on return no process of it is left and nothing is lost.

        Fast shutdown first, by force in the end; see `processes.end` for the limits. May be called in any state
        and again. A cancellation is delivered after the end.
        """
        self._stopping = True
        if self._starting is not None:
            self._starting.cancel()
            await finish(_settled(self._starting))
        await finish(self._shut())

    async def wait_died(self) -> int:
        """Wait until Postgres ends without `stop` having been asked; returns its exit status (negative: signal).

        After a `stop` it never returns, so await it in a task of its own and cancel that. `why_died` tells the
        cause. Raises EmbeddedPostgresError if Postgres was not started.
        """
        process = self._process
        if process is None:
            raise EmbeddedPostgresError("Postgres was not started, so that its end cannot be awaited; start it first.")
        status = await process.wait()
        if self._stopping:
            await asyncio.Event().wait()
        return status

    def why_died(self) -> EmbeddedPostgresError:
        """The cause of an end that `wait_died` told, as far as the log knows it."""
        status = self._process.returncode if self._process is not None else None
        return explain(self._log.tail(), log=self._folder.log, status=status or 0)

    def _started(self, task: asyncio.Task[str]) -> None:
        self._starting = None
        if not task.cancelled():
            task.exception()  # told to whoever awaits start(), if anyone still does

    async def _start(self) -> str:
        try:
            await self._shut()  # what is left of one that has died
            return await self._start_steps()
        except OSError as error:
            await finish(self._shut())
            raise self._translated(error) from error
        except BaseException:
            await finish(self._shut())
            raise

    async def _start_steps(self) -> str:
        if sys.platform != "linux":
            raise MissingBinariesError(
                f"The embedded Postgres runs on Linux only; {installation.ALTERNATIVE.removeprefix('or ')}."
            )
        installed = installation.find()
        folder = self._folder
        await finish(asyncio.to_thread(folder.check))
        await finish(asyncio.to_thread(folder.create))
        await self._take_lock()
        await finish(asyncio.to_thread(folder.check))  # again: another process may have been at it meanwhile
        user = accounts.choose(folder.owner())
        await finish(asyncio.to_thread(folder.prepare, user))
        binaries = await self._reachable(installed, user)
        major = installation.major_of(await output_of([str(binaries.postgres), "-V"], account=user))
        folder.check_major(major)
        await self._create_cluster(binaries, user, major)
        socket, socket_argument = await self._socket_folder(user)
        await self._launch(binaries, user, socket_argument)
        assert self._process is not None
        await Readiness(
            process=self._process, socket=socket, cluster=folder.cluster, log=self._log, report=self._report
        ).wait()
        self._tending = asyncio.create_task(self._tend_log(self._process))
        self._dsn = _dsn(socket)
        return self._dsn

    async def _take_lock(self) -> None:
        lock, began, told = self._folder.lock, asyncio.get_running_loop().time(), -REPORT_EVERY_S
        while not lock.try_take():
            if (pid := lock.holder()) is not None:
                raise self._in_use(pid)
            waited = asyncio.get_running_loop().time() - began
            if waited > LOCK_S_MAX:
                raise AlreadyRunningError(
                    f"The Postgres of an earlier relay still uses {self._folder.path} after {LOCK_S_MAX} s; end the "
                    "postgres process that works there, or choose another data folder."
                )
            if waited - told >= REPORT_EVERY_S:
                told = waited
                self._report(f"Waiting for the Postgres of an earlier relay to end ({waited:.0f} s) ...")
            await asyncio.sleep(LOCK_POLL_S)

    async def _reachable(self, installed: Binaries, user: Account) -> Binaries:
        """The binaries where Postgres' user can run them: as installed, or copied."""
        if await reaches(user, installed.postgres):
            return installed
        target = self._folder.binaries
        if not await reaches(user, self._folder.path):
            target = await self._runtime_folder(user) / "binaries"
        copied = await finish(asyncio.to_thread(installation.copy, installed, target))
        if await reaches(user, copied.postgres):
            return copied
        raise MissingBinariesError(
            f"Postgres' user ({accounts.name_of(user.uid)}) cannot run the programs in {installed.root}, nor a copy of "
            f"them in {target}; install sealwire-relay[embedded] where every user can run programs."
        )

    async def _create_cluster(self, binaries: Binaries, user: Account, major: int) -> None:
        folder = self._folder
        self._log.bound()
        self._log.mark()
        if folder.owner() is None:
            self._report("Creating the database files, once (a few seconds) ...")
            await finish(asyncio.to_thread(folder.make_for, user, folder.unfinished_cluster))
            log = self._log.open()
            try:
                self._helper = await spawn(
                    [str(binaries.initdb), "-D", HERE, *configuration.INITDB_ARGUMENTS],
                    account=user,
                    folder=folder.unfinished_cluster,
                    log=log,
                    lock=folder.lock.fileno(),
                )
            finally:
                os.close(log)
            try:
                async with asyncio.timeout(INITDB_S_MAX):
                    status = await self._helper.wait()
            except TimeoutError as error:
                raise EmbeddedPostgresError(
                    f"Creating the database files took longer than {INITDB_S_MAX} s; use a faster disk."
                ) from error
            if status != 0:
                raise explain(self._log.tail(), log=folder.log, status=status)
            self._helper = None
        await finish(asyncio.to_thread(folder.complete_cluster, major))

    async def _socket_folder(self, user: Account) -> tuple[Path, str]:
        """The folder of the socket, as the relay calls it and as Postgres calls it, made afresh."""
        socket, argument = self._folder.socket, f"../{self._folder.socket.name}"
        longest = f"{socket}/.s.PGSQL.{configuration.PORT}"
        # Every driver takes a comma for a list of hosts.
        if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX or "," in longest:
            socket = await self._runtime_folder(user) / "socket"
            argument = str(socket)
        self._folder.make_for(user, socket)
        return socket, argument

    async def _runtime_folder(self, user: Account) -> Path:
        """A private temporary folder with a short path that Postgres' user can reach, removed by stop()."""
        if self._runtime is not None:
            return self._runtime
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
            short = len(os.fsencode(f"{parent}/sealwire-12345678/socket/.s.PGSQL.5432")) <= SOCKET_PATH_BYTES_MAX
            if short and os.access(parent, os.W_OK | os.X_OK) and await reaches(user, Path(parent)):
                self._runtime = Path(tempfile.mkdtemp(prefix="sealwire-", dir=parent))
                self._runtime.chmod(0o711 if user.dropped else 0o700)
                self._folder.remember_runtime(self._runtime)
                return self._runtime
        raise DataFolderError(
            f"The data folder {self._folder.path} needs a temporary folder beside it, for its path is too long for a "
            "socket or Postgres' user cannot reach it, and there is none; choose a data folder with a shorter, "
            "reachable path."
        )

    async def _launch(self, binaries: Binaries, user: Account, socket_argument: str) -> None:
        self._folder.remove_stale_pid_file()
        settings = configuration.arguments(socket_folder=socket_argument, max_connections=self._max_connections)
        log = self._log.open()
        try:
            self._log.mark()
            self._process = await spawn(
                [str(binaries.postgres), "-D", HERE, *settings],
                account=user,
                folder=self._folder.cluster,
                log=log,
                lock=self._folder.lock.fileno(),
            )
        finally:
            os.close(log)

    async def _tend_log(self, process: Process) -> None:
        while process.returncode is None:
            await asyncio.sleep(LOG_CHECK_EVERY_S)
            try:
                await asyncio.to_thread(self._log.bound)
            except OSError as error:
                self._report(f"The log of Postgres could not be shortened ({error}); look at the disk.")

    async def _shut(self) -> None:
        """Back to nothing running, nothing held; runs in every state, and once at a time."""
        async with self._shutting:
            await self._shut_steps()

    async def _shut_steps(self) -> None:
        self._dsn = None
        tending, self._tending = self._tending, None
        if tending is not None:
            tending.cancel()
            await _settled(tending)
        helper, self._helper = self._helper, None
        if helper is not None:
            await kill_group(helper)
            await asyncio.to_thread(self._folder.remove_unfinished_cluster)
        process, self._process = self._process, None
        if process is not None:
            await end(process, self._report)
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await asyncio.to_thread(shutil.rmtree, runtime, ignore_errors=True)
            self._folder.remove_runtime()
        self._folder.lock.release()

    def _translated(self, error: OSError) -> EmbeddedPostgresError:
        what = f"{error.strerror or error} ({error.filename or self._folder.path})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFullError(
                f"The disk under the data folder is full: {what}; what was committed is intact; make room and start "
                "the relay again."
            )
        return DataFolderError(f"The data folder cannot be used: {what}; mend that, or choose another data folder.")


def _dsn(socket: Path) -> str:
    return (
        f"postgresql://{configuration.USER}@/{configuration.DATABASE}"
        f"?host={quote(str(socket), safe='')}&port={configuration.PORT}"
    )


async def _settled(task: asyncio.Task[object] | asyncio.Task[str] | asyncio.Task[None]) -> None:
    """Wait until a task has ended, whatever its outcome."""
    await asyncio.wait([task])
