"""The programs of this version and of one released before, as processes: `sealwire` and `sealwire-relay`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from demo.processes import FOREIGN, kill_tree

RELEASED: Final = Path(__file__).parent / "released" / "0.1.0.zip"
PACKAGES: Final = ("protocol", "relay", "client")

STEP_S_MAX: Final = 100.0
"""For one command, or for a relay to be ready: only a test that fails waits so long."""


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        """The last object of its JSON."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


class Version:
    """One version of all three packages. `folder` None: the present one, as it is installed."""

    def __init__(self, folder: Path | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
        if folder is not None:
            kept["PYTHONPATH"] = os.pathsep.join(str(folder / package) for package in PACKAGES)
        self._environment = kept | {"PYTHONDONTWRITEBYTECODE": "1"}

    async def python(self, *arguments: str, given: bytes = b"") -> Done:
        """Run Python with these packages."""
        with trio.fail_after(STEP_S_MAX):
            done = await trio.run_process(
                [sys.executable, *arguments],
                env=self._environment,
                stdin=given,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    async def sealwire(self, folder: Path, *arguments: str) -> Done:
        """Run a command of a device."""
        place = ("--folder", str(folder), "--json", "--wait", "20")
        return await self.python("-m", "sealwire_client", *arguments, *place)

    @asynccontextmanager
    async def inviting(self, folder: Path) -> AsyncIterator[str]:
        """`sealwire invite`, whose link is given; in the end it must have been used."""
        command = ["-m", "sealwire_client", "invite", "--folder", str(folder), "--json"]
        process = self._start(*command)
        try:
            yield str((await self._line(process))["link"])
            assert "joined" in await self._line(process)
            with trio.fail_after(STEP_S_MAX):
                assert await trio.to_thread.run_sync(process.wait) == 0
        finally:
            _end(process)

    @asynccontextmanager
    async def relay(self, dsn: str, origin: str, port: int) -> AsyncIterator[str]:
        """`sealwire-relay serve`, which devices call `origin`; gives where it is found."""
        options = ["--port", str(port), "--control-port", "0", "--sweep-seconds", "0.2", "--drain-seconds", "1"]
        process = self._start(
            "-m", "sealwire_relay", "serve", "--database-url", dsn, "--origin", origin, *options, "--json"
        )
        try:
            yield str((await self._line(process))["data"])
            assert process.poll() is None, "the relay ended by itself"
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(STEP_S_MAX):
                assert await trio.to_thread.run_sync(process.wait) == 0
        finally:
            _end(process)

    async def refused_relay(self, dsn: str) -> Done:
        """`sealwire-relay serve` where it cannot start."""
        return await self.python(
            "-m", "sealwire_relay", "serve", "--database-url", dsn, "--port", "0", "--control-port", "0"
        )

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, *arguments], env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )

    async def _line(self, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
        assert process.stdout is not None
        with trio.fail_after(STEP_S_MAX):
            line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        assert line, "the program ended before it was ready; what it printed says why"
        found: dict[str, Any] = json.loads(line)
        return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Leave nothing of a process."""
    kill_tree(process)
    if process.stdout is not None:
        process.stdout.close()
