"""All that is to be broken: a Postgres with fsync on, relay processes on its one database, and the ways between them.

Devices dial one address, behind which any of the relays may be; relays reach Postgres by a way that can be cut.
"""

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg  # type: ignore[import-untyped]
import trio
from prometheus_client.parser import text_string_to_metric_families

from demo.processes import StoryError, kill_tree, last_words, spawn
from sealwire_client.nursery import open_nursery
from tests.faults.passage import Passage
from tests.support.postgres import Server, embedded_binaries

READY_S_MAX: Final = 60.0
"""For a relay to serve devices, or a Postgres to notice that it was hurt, on a busy machine."""

METRICS_S_MAX: Final = 60.0
"""For a relay to tell its metrics, which shares a busy machine with all that it is measured under."""

SWEEP_SECONDS: Final = "0.2"
"""How soon one relay finds what another has committed: devices of both write to the same entries."""

APPEND: Final = "-- Append"
"""How each statement begins that commits records."""

COUNTED: Final = ("records", "commits", "pushes", "unknown_outcomes", "store_errors")
"""What is added up over all lives of a relay."""

T = TypeVar("T")


class ServedRelay:
    """One `sealwire-relay serve`, started and killed any number of times."""

    def __init__(self, name: str, folder: Path, dsn: str, origin: str) -> None:
        self.name, self._log, self._dsn, self._origin = name, folder / f"{name}.log", dsn, origin
        self.port = 0
        self._control = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._now = dict.fromkeys(COUNTED, 0)
        self._before = dict.fromkeys(COUNTED, 0)

    @property
    def runs(self) -> bool:
        """True from its start until it is killed."""
        return self._process is not None

    async def start(self) -> None:
        """Start it, and wait until devices are served. Raises StoryError."""
        options = ["--database-url", self._dsn, "--origin", self._origin, "--sweep-seconds", SWEEP_SECONDS]
        process = spawn(
            "sealwire_relay", "serve", *options, "--port", "0", "--control-port", "0", "--json", log=self._log
        )
        assert process.stdout is not None
        line = b""
        try:
            with trio.move_on_after(READY_S_MAX):
                await trio.lowlevel.wait_readable(process.stdout.fileno())
                line = process.stdout.readline()
        except BaseException:
            _end(process)
            raise
        if not line:
            _end(process)
            raise StoryError(f"Relay {self.name} did not start; its log ends:{last_words(self._log)}")
        ready: dict[str, Any] = json.loads(line)
        self._process, self._control = process, ready["control"]
        self.port = int(ready["data"].rpartition(":")[2])

    async def look(self) -> None:
        """Read its counters. One that does not answer has told all that it will tell."""
        process = self._process
        if process is not None:
            try:
                told = await trio.to_thread.run_sync(metrics, self._control)
            except OSError:
                return
            if process is self._process:
                self._now = {name: int(told.get(f"sealwire_{name}_total", 0)) for name in COUNTED}

    async def figure(self, name: str) -> float:
        """One of its metrics, as it is now. Raises OSError if it does not answer."""
        told = await trio.to_thread.run_sync(metrics, self._control)
        return told[name]

    def counted(self, name: str) -> int:
        """The sum of a counter over all its lives, as it was last read."""
        return self._before[name] + self._now[name]

    def kill(self) -> None:
        """Kill -9."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
            self._before = {name: self.counted(name) for name in COUNTED}
            self._now = dict.fromkeys(COUNTED, 0)

    def check(self) -> None:
        """Raise StoryError if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise StoryError(
                f"Relay {self.name} ended by itself (status {self._process.returncode}):{last_words(self._log)}"
            )


class Site:
    """Made by `site`."""

    def __init__(self, folder: Path, postgres: Server, relays: int) -> None:
        self.postgres = postgres
        self.front = Passage.tcp()
        """Between devices and relays."""
        self.back = Passage.unix(folder / ".s.PGSQL.5432", APPEND.encode())
        """Between relays and Postgres."""
        self.back.lead_to(postgres.folder / ".s.PGSQL.5432")
        dsn = f"postgresql://postgres@/postgres?host={folder}"
        self.relays = [ServedRelay(f"relay-{n}", folder, dsn, self.origin) for n in range(1, relays + 1)]

    @property
    def origin(self) -> str:
        """Where devices dial."""
        return f"ws://127.0.0.1:{self.front.port}"

    def lead(self) -> None:
        """Lead devices to the relays that run, in turn."""
        self.front.lead_to(*(("127.0.0.1", relay.port) for relay in self.relays if relay.runs))

    async def start(self, *relays: ServedRelay) -> None:
        """Start relays, and lead devices to them too."""
        for relay in relays:
            await relay.start()
        self.lead()

    async def kill(self, relay: ServedRelay) -> None:
        """Kill -9 a relay, after a last look at its counters."""
        await relay.look()
        relay.kill()
        self.lead()

    def counted(self, name: str) -> int:
        """The sum of a counter over all relays and all their lives."""
        return sum(relay.counted(name) for relay in self.relays)

    async def look(self) -> None:
        """Read the counters of all relays."""
        for relay in self.relays:
            relay.check()
            await relay.look()

    # --- Postgres

    async def kill_postgres(self) -> None:
        """Kill -9 every process of it at one moment, and start it again; it recovers by itself."""
        self.postgres.kill()
        await self.with_asyncio(self.postgres.start)

    async def kill_appender(self, limit_s: float) -> bool:
        """Kill -9 the one process of Postgres that is writing records now; Postgres itself then ends all the others
        and recovers. False if none wrote in time. Returns when Postgres answers again."""
        killed = await self.with_database(_kill_appender, limit_s)
        if killed:
            await self.with_asyncio(self.postgres.answering)
        return killed

    async def with_database(self, work: Callable[..., Awaitable[T]], *given: Any) -> T:
        """Run `work` on a connection past the way that is cut."""

        async def connected() -> T:
            connection = await asyncpg.connect(self.postgres.dsn())
            try:
                return await work(connection, *given)
            finally:
                connection.terminate()

        return await self.with_asyncio(connected)

    async def with_asyncio(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run what needs asyncio, in a thread."""

        async def run() -> T:
            return await work()

        return await trio.to_thread.run_sync(lambda: asyncio.run(run()))


@asynccontextmanager
async def site(relays: int = 1) -> AsyncIterator[Site]:
    """A Postgres that runs, relays that do not yet, the ways between them; nothing is left afterwards."""
    binaries = embedded_binaries()
    assert binaries is not None, "the embedded Postgres is not installed"
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        folder = _reachable(Path(name))
        postgres = Server(binaries, folder / "pg", settings=())
        await trio.to_thread.run_sync(postgres.make)
        made = Site(folder, postgres, relays)
        async with open_nursery() as nursery:
            try:
                await made.with_asyncio(postgres.start)
                nursery.start_soon(made.front.serve)
                nursery.start_soon(made.back.serve)
                yield made
            finally:
                for relay in made.relays:
                    relay.kill()
                postgres.kill()
                nursery.cancel_scope.cancel()


def _reachable(folder: Path) -> Path:
    """For the user that Postgres runs as."""
    folder.chmod(0o711)
    (folder / "pg").mkdir(mode=0o700)
    return folder


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill -9, and hang up."""
    kill_tree(process)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


async def _kill_appender(connection: Any, limit_s: float) -> bool:
    """Returns when Postgres has noticed: it has ended this connection too."""
    ended = asyncio.Event()
    connection.add_termination_listener(lambda _: ended.set())
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        pid = await connection.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
            " AND starts_with(query, $1) LIMIT 1",
            APPEND,
        )
        if pid is not None:
            try:
                os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(READY_S_MAX):
                    await ended.wait()
            except (ProcessLookupError, TimeoutError):
                continue  # its connection had been cut, and it was about to end by itself
            return True
    return False


def metrics(control: str) -> dict[str, float]:
    """All metrics of a relay, by name. Blocks. Raises OSError if it does not answer."""
    with urllib.request.urlopen(f"{control}/metrics", timeout=METRICS_S_MAX) as answer:
        text = answer.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
