"""Writers and readers of one server, in a process of their own in C (bench/load/traffic.c), on sockets opened here."""

import json
import subprocess
from collections.abc import Iterable, Sequence
from socket import socket
from typing import Final, Literal, NamedTuple

from bench.harness.load import built
from bench.harness.processes import Cores, pinned
from sealwire_protocol.limits import ACK_DELAY_SECONDS

LIMIT_S: Final = 240.0
"""For one run: far more than any takes, so that one that hangs is found."""

DRAIN_S_MAX: Final = 60.0

Protocol = Literal["sealwire", "redis", "nats"]


class Lane(NamedTuple):
    """Writes over one connection, `window` of them unanswered. A message is `before`, for Sealwire the number of the
    batch, and `after`; it has so many records. `key` is the vault that an answer names."""

    before: bytes
    after: bytes
    window: int
    records: int = 1
    number: int = 0
    key: bytes = b""


class Reader(NamedTuple):
    """What a reader says to be sent more: `again`, after `every` records (NATS), or after each reply, with the `place`
    that it has come to (Redis). A device needs none of that."""

    again: bytes = b""
    every: int = 0
    place: bytes = b""


class Connection(NamedTuple):
    """A socket that is ready, what was read from it already, and what is to be done with it. `say` is sent at once."""

    socket: socket
    lanes: Sequence[Lane] = ()
    reader: Reader | None = None
    say: bytes = b""
    had: bytes = b""


class Span(NamedTuple):
    """How long to measure: by the clock, or until so many records were read, or so many writes answered. `rate`: writes
    a second, whose times are when they were due; 0: as fast as they are answered."""

    warm_s: float = 0.0
    measure_s: float = 0.0
    until_records: int = 0
    writes: int = 0
    rate: float = 0.0


class Shape(NamedTuple):
    """A record: its bytes on the wire, how far from its end its time stands (0: nowhere), a peer's payload bytes, and
    after how many bytes, or how long after the first of them, a device gives credit back."""

    bytes: int = 0
    stamp_at: int = 0
    payload: int = 0
    credit: int = 0
    credit_s: float = ACK_DELAY_SECONDS


UNSTAMPED: Final = Shape()


class Traffic(NamedTuple):
    """What was measured. `answered` and `delivered` are records; `cpu_share` is the generator's, of one core."""

    seconds: float
    answered: int
    delivered: int
    delivered_bytes: int
    cpu_share: float
    reader_least: int = 0
    reader_most: int = 0
    answer_p50_ms: float = 0.0
    answer_p99_ms: float = 0.0
    delivery_p50_ms: float = 0.0
    delivery_p99_ms: float = 0.0

    @property
    def answered_per_s(self) -> float:
        """Records written, and answered, a second."""
        return self.answered / self.seconds

    @property
    def delivered_per_s(self) -> float:
        """Records read a second, by all readers together."""
        return self.delivered / self.seconds


def traffic(
    protocol: Protocol, connections: Sequence[Connection], cores: Cores, span: Span, shape: Shape = UNSTAMPED
) -> Traffic:
    """Run it on these cores. The sockets are closed afterwards. Raises RuntimeError, with what the server or the
    generator said, when it did not come to its end, and Missing without a C compiler."""
    plan = "\n".join(_lines(protocol, connections, span, shape)) + "\n"
    try:
        program = built("traffic")
        with pinned(cores):
            process = subprocess.Popen(
                [program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[connection.socket.fileno() for connection in connections],
                text=True,
            )
        with process:
            try:
                output, errors = process.communicate(plan, LIMIT_S)
            except BaseException:
                process.kill()
                raise
    finally:
        for connection in connections:
            connection.socket.close()
    if process.returncode:
        raise RuntimeError(f"the load on {protocol} has ended: {errors.strip() or process.returncode}")
    return Traffic(**json.loads(output))


def _lines(protocol: Protocol, connections: Sequence[Connection], span: Span, shape: Shape) -> Iterable[str]:
    yield f"protocol {protocol}"
    yield f"seconds {span.warm_s} {span.measure_s}"
    yield f"rate {span.rate}"
    yield f"until {span.until_records}"
    yield f"writes {span.writes}"
    yield f"credit {shape.credit} {shape.credit_s}"
    yield f"record {shape.bytes} {shape.stamp_at} {shape.payload}"
    for connection in connections:
        yield f"connection {connection.socket.fileno()}"
        for lane in connection.lanes:
            words = _hex(lane.key), _hex(lane.before), _hex(lane.after)
            yield f"lane {lane.window} {lane.records} {lane.number} {' '.join(words)}"
        if (reader := connection.reader) is not None:
            yield f"reader {reader.every} {_hex(reader.again)} {_hex(reader.place)}"
        for word, data in (("had", connection.had), ("say", connection.say)):
            if data:
                yield f"{word} {data.hex()}"


def _hex(data: bytes) -> str:
    return data.hex() or "-"
