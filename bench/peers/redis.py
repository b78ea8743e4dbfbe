"""Redis Streams, appendfsync always: Debian's package, fetched and unpacked here where none is installed."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.harness.processes import BUILD, Cores, Missing, started
from bench.harness.relay import free_port
from bench.harness.result import Figures
from bench.harness.traffic import Connection, Lane, Reader, Span, traffic
from bench.harness.traffic import Protocol as Speech
from bench.peers.streams import PAYLOAD, dialled, until_it_listens

PACKAGES: Final = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
FETCH_S_MAX: Final = 300.0
FILL_UNANSWERED: Final = 4_096

OPTIONS: Final = {"appendonly": "yes", "appendfsync": "always", "auto-aof-rewrite-percentage": "0", "save": ""}
"""Durable, and nothing beside: neither snapshots nor rewriting of the log while it is measured."""


class Redis:
    """A running Redis. Made by `redis_streams`."""

    name, title = "redis_streams", "Redis Streams"
    speech: Speech = "redis"

    def __init__(self, port: int, cores: Cores) -> None:
        self._port, self._cores = port, cores
        told = self._ask(b"INFO", b"server").decode()
        version = next(line.partition(":")[2] for line in told.splitlines() if line.startswith("redis_version:"))
        self.settings: Figures = {
            "version": version,
            "fsync": "appendfsync always: a write is answered when it is on disk",
            "options": OPTIONS,
        }

    def clear(self, streams: int = 1) -> None:
        """FLUSHALL; streams are made by their first XADD."""
        self._ask(b"FLUSHALL")

    def fill(self, records: int) -> None:
        """XADDs of one record."""
        traffic(self.speech, self.writers(1, FILL_UNANSWERED), self._cores, Span(writes=records))

    def writers(self, connections: int, unanswered: int, streams: int = 1) -> list[Connection]:
        """XADDs of one record."""
        messages = [_command(b"XADD", _key(stream), b"*", b"f", PAYLOAD) for stream in range(streams)]
        return [
            Connection(dialled(self._port), (Lane(b"", messages[place % streams], unanswered // connections),))
            for place in range(connections)
        ]

    def followers(self, connections: int, batch: int) -> list[Connection]:
        """XREAD that waits, made again from the last entry on."""
        return [self._reader(b"$", b"COUNT", b"%d" % batch, b"BLOCK", b"0") for _ in range(connections)]

    def catcher(self, batch: int) -> Connection:
        """XREAD, made again from the last entry on."""
        return self._reader(b"0-0", b"COUNT", b"%d" % batch)

    def _reader(self, begin: bytes, *options: bytes) -> Connection:
        words = b"XREAD", *options, b"STREAMS", _key(0)
        again = b"*%d\r\n" % (len(words) + 1) + b"".join(map(_string, words))
        return Connection(dialled(self._port), (), Reader(again, place=begin), _command(*words, begin))

    def _ask(self, *words: bytes) -> bytes:
        """Make one request; its answer, of one line or one string. Raises RuntimeError if it is refused."""
        with dialled(self._port) as opened, opened.makefile("rb") as answers:
            opened.sendall(_command(*words))
            line = answers.readline()
            if line.startswith(b"-"):
                raise RuntimeError(f"Redis says: {line.decode()}")
            return answers.read(int(line[1:])) if line.startswith(b"$") else line


@contextlib.contextmanager
def redis_streams(folder: Path, cores: Cores) -> Iterator[Redis]:
    """A Redis that has its files in a folder. Raises Missing if there is none and none can be had."""
    program, variables = _program()
    folder.mkdir(parents=True)
    port, log = free_port(), folder / "log"
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    where = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--logfile", str(log))
    with started([str(program), *where, *options], cores, log=log, variables=variables) as process:
        until_it_listens(port, process, log)
        yield Redis(port, cores)


def _program() -> tuple[Path, dict[str, str]]:
    """The server, and what its environment needs."""
    installed = shutil.which("redis-server")
    if installed is not None:
        return Path(installed), {}
    folder = BUILD / "redis"
    program = folder / "usr" / "bin" / "redis-server"
    if not program.exists():
        _fetch(folder)
    libraries = ":".join(str(path.parent) for path in folder.glob("usr/lib/*/libjemalloc.so.*"))
    return program, {"LD_LIBRARY_PATH": libraries}


def _fetch(folder: Path) -> None:
    """Unpack Debian's packages into a folder; nothing is installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Missing("redis_streams: there is no redis-server here, and no apt-get to fetch one")
    fetched = folder.with_name("redis.new")
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    done = subprocess.run(
        ["apt-get", "download", *PACKAGES],
        cwd=fetched,
        capture_output=True,
        text=True,
        check=False,
        timeout=FETCH_S_MAX,
    )
    packages = sorted(fetched.glob("*.deb"))
    if done.returncode or len(packages) != len(PACKAGES):
        raise Missing(f"redis_streams: there is no redis-server here, and apt-get says: {done.stderr.strip()[-300:]}")
    for package in packages:
        subprocess.run(["dpkg", "-x", str(package), str(fetched)], check=True, timeout=FETCH_S_MAX)
        package.unlink()
    fetched.rename(folder)


def _key(stream: int) -> bytes:
    return b"s%d" % stream


def _string(word: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(word), word)


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(_string, words))
