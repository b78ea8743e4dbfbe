"""Load that is not the bottleneck: programs in C, built here, which take over sockets that Python has opened."""

import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from socket import socket
from typing import Any, Final, Literal, NamedTuple

from bench.harness.processes import BUILD, Cores, Missing, line_of, started
from demo.processes import ROOT
from sealwire_protocol.limits import CREDIT_BYTES_DEFAULT

ACK_BYTES: Final = CREDIT_BYTES_DEFAULT // 2
"""When a device gives credit back: at half a window, as real ones do."""

BUSY: Final = 0.9
"""Share of its core from which a load generator may be the bottleneck itself."""

Speech = Literal["sealwire", "plain", "socketio"]


NO_COMPILER: Final = "there is no C compiler here: install gcc or clang, and the headers of the C library"


def compiler() -> str | None:
    """The C compiler of this machine; None: there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def built(name: str) -> Path:
    """The program of bench/load/NAME*.c. Raises Missing where there is no compiler, or it does not compile."""
    sources = sorted((ROOT / "bench" / "load").glob(f"{name}*.c"))
    read = b"".join(path.read_bytes() for path in sorted((ROOT / "bench" / "load").glob(f"{name}*.[ch]")))
    command = compiler()
    if command is None:
        raise Missing(f"{name}: {NO_COMPILER}")
    program = BUILD / f"{name}-{hashlib.sha256(read).hexdigest()[:12]}"
    if not program.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        made = program.with_suffix(".new")
        done = subprocess.run(
            [command, "-O2", "-o", str(made), *map(str, sources)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Missing(f"{name}: {command} says: {done.stderr[-500:]}")
        made.rename(program)
    return program


class Opened(NamedTuple):
    """A socket that has shaken hands, and what was read from it beyond that."""

    socket: socket
    rest: bytes = b""


class Counts(NamedTuple):
    """What a receiver has counted since it was last told to begin again.

    `least` and `most`: records of one connection. `last_seconds`: until the last of them. `cpu_share`: of one core,
    that the receiver took itself. Latencies (milliseconds, of `stamped` frames) are 0 where there are no stamps.
    """

    connections: int
    closed: int
    frames: int
    records: int
    bytes: int
    least: int
    most: int
    seconds: float
    last_seconds: float
    reads: int
    acks: int
    cpu_share: float
    stamped: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Receiver:
    """Reads all of these sockets in a process of its own. Made by `receiving`."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process, self._log = process, log

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def zero(self) -> None:
        """Begin to count again."""
        self._command("zero")

    def look(self) -> Counts:
        """What was counted since. Raises RuntimeError if a connection has ended."""
        counts = Counts(**self._command("look"))
        if counts.closed:
            raise RuntimeError(f"{counts.closed} of {counts.connections} connections were closed by the server")
        return counts

    def _command(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(line_of(self._process, self._log))
        return told


@contextlib.contextmanager
def receiving(
    opened: Collection[Opened],
    speech: Speech,
    cores: Cores,
    log: Path,
    *,
    ack_bytes: int = ACK_BYTES,
    stamp_at: int = 0,
) -> Iterator[Receiver]:
    """A receiver that has taken over these sockets, which are closed here, and which end with it.

    `stamp_at`: where in a frame, counted from its end, stands when it was sent (8 bytes, nanoseconds of the monotonic
    clock). Raises Missing without a C compiler.
    """
    program = built("receive")
    fds = [one.socket.fileno() for one in opened]
    with started([str(program), speech, str(ack_bytes), str(stamp_at)], cores, log=log, fds=fds) as process:
        assert process.stdin is not None
        lines = [f"{one.socket.fileno()} {one.rest.hex()}".rstrip() for one in opened]
        process.stdin.write("\n".join([str(len(lines)), *lines, ""]).encode())
        process.stdin.flush()
        line_of(process, log)
        close(opened)
        yield Receiver(process, log)


def close(opened: Iterable[Opened]) -> None:
    """Close the sockets here; whoever has taken them over keeps them."""
    for one in opened:
        one.socket.close()
