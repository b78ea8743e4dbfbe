"""Durable appends: records a second, pushed one by one by 16 devices with 256 pushes unanswered in all.

A device may have eight pushes of a vault unanswered, so that each of the 16 pushes to two vaults. Others hold the same
number of unanswered writes over as many connections. The bare yardstick takes the very pushes of a relay, and writes
what it writes to the same tables of the same Postgres, but knows no devices, no limits and no repeats.

Pushes of many records, which are told beside, come when all else is done: what they leave for Postgres to write out and
to clear away would burden whoever is measured next.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import uvloop

from bench.harness.contest import Run, contest, load_limits, load_share, spread, streams, swept
from bench.harness.devices import BenchVault, Wire, found
from bench.harness.ours import RECORD_BYTES, SHAPE, WITHOUT_PAUSE, lane, pushers
from bench.harness.processes import places
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, neat
from bench.harness.traffic import Connection, Span, Traffic, traffic
from bench.peers.bare import serving
from bench.peers.streams import PAYLOAD_BYTES, Streams
from sealwire_protocol.ids import START
from sealwire_protocol.limits import PUSH_WINDOW
from sealwire_relay.borrowed import Relay, database
from sealwire_relay.settings import Settings

CONNECTIONS: Final = 16
UNANSWERED: Final = 256
VAULTS: Final = UNANSWERED // CONNECTIONS // PUSH_WINDOW

BULK_RECORDS: Final = 1_000
BULK_WINDOW: Final = 2
"""Pushes of so many records that a device leaves unanswered: more wait, and are not written sooner."""

STREAMS_SWEPT: Final = tuple(range(1, VAULTS + 1))
"""Streams that a peer's writes are spread over, as those of devices are over vaults; the best number counts."""

WRITERS_SWEPT: Final = tuple(range(1, VAULTS + 1))
"""Writers of the bare yardstick, each with vaults of its own; the best number counts."""

STREAMS_MANY: Final = 16
"""Told beside: some servers write each stream to disk by itself, several at once."""


class Ours:
    """A relay with two vaults of the same 16 members."""

    def __init__(self, running: BenchRelay) -> None:
        self._running, self._nonces = running, count()
        self._vaults = self.more_vaults()
        self.cpu_us: list[float] = []
        self.postgres_cpu_us: list[float] = []

    def more_vaults(self) -> list[BenchVault]:
        """As many other vaults of the members."""
        return [uvloop.run(found(self._running.port, 1, CONNECTIONS, nonce=next(self._nonces))) for _ in range(VAULTS)]

    def push(self, span: Span) -> Traffic:
        """Pushes of one record."""
        before = self._running.cpu_seconds(), self._running.postgres_cpu_seconds()
        done = self._push(span, PUSH_WINDOW, 1)
        after = self._running.cpu_seconds(), self._running.postgres_cpu_seconds()
        # Warming up is in both the time and, by the rate that was measured, in the records.
        pushes = done.answered_per_s * (span.warm_s + span.measure_s)
        self.cpu_us.append((after[0] - before[0]) / pushes * 1e6)
        self.postgres_cpu_us.append((after[1] - before[1]) / pushes * 1e6)
        return done

    def push_bulk(self, span: Span) -> Traffic:
        """Pushes of a thousand records."""
        return self._push(span, BULK_WINDOW, BULK_RECORDS)

    def _push(self, span: Span, window: int, records: int) -> Traffic:
        members = self._vaults[0].members
        made = uvloop.run(pushers(self._running.port, self._vaults, members, window, records))
        return traffic("sealwire", made, places().load, span, SHAPE)


class BareContender:
    """The bare yardstick, on vaults of its own in the same Postgres, which the relay knows nothing new of."""

    def __init__(self, port: int, vaults: Sequence[BenchVault]) -> None:
        self._port, self._vaults = port, vaults

    def push(self, span: Span) -> Traffic:
        """Pushes of one record."""
        return traffic("sealwire", uvloop.run(self._connections()), places().load, span, SHAPE)

    async def _connections(self) -> list[Connection]:
        made = []
        for member in self._vaults[0].members:
            opened = (await Wire.open(self._port, f"/{member.author}")).hand_over()
            lanes = [lane(vault.id, START.term, 1, member, PUSH_WINDOW, 1) for vault in self._vaults]
            made.append(Connection(opened.socket, lanes, None, b"", opened.rest))
        return made


@contextlib.contextmanager
def bare(ours: Ours, rows: Literal["all", "segments"], writers: int, folder: Path) -> Iterator[BareContender]:
    """The bare yardstick on the Postgres of a relay, with all rows or segments alone."""
    vaults = ours.more_vaults()
    dsn, log = uvloop.run(address(folder)), folder / f"bare-{rows}-{writers}.log"
    with serving(dsn, rows, writers, [vault.id for vault in vaults], places().server, log) as port:
        yield BareContender(port, vaults)


async def address(folder: Path) -> str:
    """The database of the relay that runs in a folder."""
    async with database(Settings(folder=folder / "relay"), Relay.WELCOME) as dsn:
        return dsn


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    rounds = ROUNDS_SHORT if short else ROUNDS
    span = Span(warm_s=0.3, measure_s=0.7) if short else Span(warm_s=1.0, measure_s=3.0)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = Ours(stack.enter_context(relay(folder, WITHOUT_PAUSE)))
        peers, missing = stack.enter_context(streams(folder))
        brief = Span(span.warm_s / 2, span.measure_s / 2)
        everything = {writers: stack.enter_context(bare(ours, "all", writers, folder)) for writers in WRITERS_SWEPT}
        writers = swept(lambda number: everything[number].push(brief), WRITERS_SWEPT, per_s)
        segments = stack.enter_context(bare(ours, "segments", writers, folder))
        spreads = {peer.name: best_streams(peer, brief) for peer in peers}
        contenders: dict[str, Run] = {
            "sealwire": lambda: ours.push(span),
            "bare_asyncpg": lambda: everything[writers].push(span),
            "bare_asyncpg_segments": lambda: segments.push(span),
        }
        contenders |= {peer.name: written(peer, spreads[peer.name], span) for peer in peers}
        contenders |= {many(peer): written(peer, STREAMS_MANY, span) for peer in peers}
        done = contest(contenders, rounds) | contest({"sealwire_bulk": lambda: ours.push_bulk(span)}, rounds)
    for peer in peers:
        peer.settings["streams"] = spreads[peer.name]
    return told(ours, peers, writers, done, missing)


def many(peer: Streams) -> str:
    """The name of a peer that writes to many streams."""
    return f"{peer.name}_{STREAMS_MANY}"


def written(peer: Streams, streams: int, span: Span) -> Run:
    """A peer's turn."""

    def turn() -> Traffic:
        peer.clear(streams)
        return traffic(peer.speech, peer.writers(CONNECTIONS, UNANSWERED, streams), places().load, span)

    return turn


def best_streams(peer: Streams, span: Span) -> int:
    """The number of streams over which a peer writes most."""
    return swept(lambda number: written(peer, number, span)(), STREAMS_SWEPT, per_s)


def per_s(one: Traffic) -> float:
    """What counts."""
    return one.answered_per_s


def told(
    ours: Ours, peers: Sequence[Streams], writers: int, done: Mapping[str, Sequence[Traffic]], missing: list[str]
) -> Result:
    """The result."""
    rates = {name: spread(found, per_s) for name, found in done.items()}
    figures = {
        name: {
            "records_per_s": rate.told(),
            "answer_p50_ms": spread(done[name], lambda one: one.answer_p50_ms).told(),
            **load_share(done[name]),
        }
        for name, rate in rates.items()
    }
    mine = rates["sealwire"].median
    ratios = {f"vs_{peer.name}": neat(mine / rates[peer.name].median) for peer in peers}
    settings: dict[str, Any] = {
        "sealwire": {
            **settings_of(WITHOUT_PAUSE),
            "vaults": VAULTS,
            "members": CONNECTIONS,
            "record_wire_bytes": RECORD_BYTES,
        },
        "bare_asyncpg": {
            "database": "the same Postgres; segments, heads, members and outcomes in one statement a commit",
            "writers": writers,
        },
        "bare_asyncpg_segments": {"database": "the same Postgres; segments alone", "writers": writers},
        "load": {"connections": CONNECTIONS, "unanswered": UNANSWERED, "payload_bytes": PAYLOAD_BYTES},
    }
    return Result(
        ours={
            **figures["sealwire"],
            "cpu_us": Spread(tuple(ours.cpu_us)).told(),
            "postgres_cpu_us": Spread(tuple(ours.postgres_cpu_us)).told(),
            "bulk": {**figures["sealwire_bulk"], "records_per_push": BULK_RECORDS},
        },
        peers={
            peer.name: {**figures[peer.name], f"over_{STREAMS_MANY}_streams": figures[many(peer)]} for peer in peers
        },
        yardsticks={name: figures[name] for name in ("bare_asyncpg", "bare_asyncpg_segments")},
        ratios={"vs_bare_asyncpg": neat(mine / rates["bare_asyncpg"].median), **ratios},
        settings=settings | {peer.name: peer.settings for peer in peers},
        missing=missing + load_limits(done),
        bars=Bars(
            "Durable appends, pushed one by one",
            "records/s",
            {
                "Sealwire": mine,
                "bare asyncpg": rates["bare_asyncpg"].median,
                **{peer.title: rates[peer.name].median for peer in peers},
            },
        ),
    )
