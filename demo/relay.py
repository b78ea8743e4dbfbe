"""The relay as a process with a Postgres of its own: started, killed, started again on the same folder."""

import json
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import trio

from demo.processes import StoryError, ended, kill_tree, last_words, spawn
from sealwire_relay.embedded.datafolder import DataFolder

READY_S_MAX: Final = 90.0
"""From the start of the relay to serving devices: creating or recovering the database files on a slow disk."""

END_S_MAX: Final = 90.0
"""For a relay that ends in order: its Postgres writes a checkpoint."""

PORTS: Final = range(20_000, 32_000)
"""Below those that the system lends to outgoing connections: while the relay is dead and devices keep dialling it,
none of them can be lent its port."""


class Relay:
    """One relay on one folder and one port. `options`: further ones of `up`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder / "relay"
        self.log = folder / "relay.log"
        self.port = _free_port()
        self.control = ""
        """Where its metrics are, while it runs."""
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._expected_end = False
        self._started = trio.Event()

    @property
    def origin(self) -> str:
        """Where devices dial."""
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> float:
        """Start it, and wait until devices are served; returns the seconds that took. Raises StoryError."""
        began = time.perf_counter()
        options = ["--port", str(self.port), "--control-port", "0", *self._options]
        process = spawn("sealwire_relay", "up", "--folder", str(self.folder), *options, "--json", log=self.log)
        assert process.stdout is not None
        self._begun(process)
        ready: dict[str, Any] = {}
        with trio.move_on_after(READY_S_MAX):
            await trio.lowlevel.wait_readable(process.stdout.fileno())
            line = process.stdout.readline()
            if not line:
                status = process.wait(END_S_MAX)
                raise StoryError(f"The relay did not start (status {status}):{last_words(self.log)}")
            ready = json.loads(line)
        if not ready.get("ready"):
            raise StoryError(f"The relay was not ready within {READY_S_MAX:.0f} s; its log ends:{last_words(self.log)}")
        self.control = ready["control"]
        return time.perf_counter() - began

    def _begun(self, process: "subprocess.Popen[bytes]") -> None:
        self._process, self._expected_end = process, False
        self._started.set()
        self._started = trio.Event()

    async def watch(self) -> None:
        """Raise StoryError if the relay ends by itself; runs until cancelled."""
        while True:
            started, process = self._started, self._process
            if process is not None:
                await ended(process)
                if process is self._process and not self._expected_end:
                    raise StoryError(
                        f"The relay ended by itself (status {process.returncode}); its log ends:{last_words(self.log)}"
                    )
            await started.wait()

    def kill(self) -> list[int]:
        """Kill -9 the relay, its Postgres and every process of that, at one moment; their ids, all dead."""
        self._expected_end = True
        if self._process is None:
            return []
        dead = kill_tree(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return dead

    def abandon(self) -> None:
        """Kill, and remove what a killed relay leaves outside of its folder."""
        self.kill()
        DataFolder(self.folder).remove_runtime()

    async def end(self) -> int:
        """Let it end in order; its exit status. Raises StoryError if it does not within END_S_MAX."""
        self._expected_end = True
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        process = self._process
        with trio.move_on_after(END_S_MAX):
            await ended(process)
        if process.returncode is None:
            raise StoryError(f"The relay did not end within {END_S_MAX:.0f} s; its log ends:{last_words(self.log)}")
        return process.returncode

    def recovery(self) -> list[str]:
        """What Postgres' log says of recovering from the last crash, a line each."""
        lines = (self.folder / "postgres.log").read_text(errors="replace").splitlines()
        told = [line.partition("LOG:  ")[2] for line in lines]
        return [line for line in told if "automatic recovery" in line or line.startswith("redo done")]


def _free_port() -> int:
    for port in random.sample(PORTS, 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise StoryError(f"No free port was found between {PORTS.start} and {PORTS.stop}: what uses them all?")
