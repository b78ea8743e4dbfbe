"""What a durable stream of somebody else's can do in a bench: the same for each, so that the benches read alike."""

import contextlib
import socket
import time
from pathlib import Path
from subprocess import Popen
from typing import Final, Protocol

from bench.harness.result import Figures
from bench.harness.traffic import Connection
from bench.harness.traffic import Protocol as Speech

PAYLOAD_BYTES: Final = 32
PAYLOAD: Final = bytes(range(PAYLOAD_BYTES))

LINE_BYTES: Final = PAYLOAD_BYTES + 2
"""A payload and the end of the line that it is in both protocols: where its time stands, counted from its end."""

START_S_MAX: Final = 60.0
ASK_S_MAX: Final = 120.0
POLL_S: Final = 0.02


class Streams(Protocol):
    """A running server that writes to disk before it answers."""

    name: str
    title: str
    speech: Speech
    settings: Figures

    def clear(self, streams: int = 1) -> None:
        """Forget everything: the next figure begins with so many empty streams."""

    def fill(self, records: int) -> None:
        """Put so many records into the one stream, as fast as that can be."""

    def writers(self, connections: int, unanswered: int, streams: int = 1) -> list[Connection]:
        """So many unanswered writes of one record in all, spread over connections, and these over streams."""

    def followers(self, connections: int, batch: int) -> list[Connection]:
        """Readers of what comes from now on, up to `batch` records at a time where they have to ask."""

    def catcher(self, batch: int) -> Connection:
        """A reader of the whole stream, up to `batch` records at a time."""


def dialled(port: int) -> socket.socket:
    """A connection to a server on this machine."""
    made = socket.create_connection(("127.0.0.1", port), timeout=ASK_S_MAX)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def until_it_listens(port: int, process: "Popen[bytes]", log: Path) -> None:
    """Wait until a server takes connections. Raises RuntimeError, with what it wrote, if it ends or takes none."""
    deadline = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), dialled(port):
            return
        time.sleep(POLL_S)
    raise RuntimeError(f"{process.args!r} does not listen: {log.read_text(errors='replace')[-2000:]}")
