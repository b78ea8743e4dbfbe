"""Catching up: records a second that one reader is served, of a stream of 1,000,000 that it has nothing of.

All read raw: frames are counted and credit is given back, but nothing is opened or kept.
"""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.harness.contest import Run, contest, load_limits, load_share, spread, streams, swept
from bench.harness.devices import BenchVault, found
from bench.harness.ours import RECORD_BYTES, SHAPE, WITHOUT_PAUSE, catcher, pushers
from bench.harness.processes import places
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, neat
from bench.harness.traffic import Shape, Span, Traffic, traffic
from bench.peers.streams import PAYLOAD_BYTES, Streams

RECORDS: Final = 1_000_000
RECORDS_SHORT: Final = 100_000
RECORDS_PER_PUSH: Final = 1_000
WINDOW: Final = 4

BATCHES_SWEPT: Final = (100, 1_000, 10_000, 100_000)
"""Records that a peer's reader asks for at a time; the best number counts."""


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    records, rounds = (RECORDS_SHORT, ROUNDS_SHORT) if short else (RECORDS, ROUNDS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(relay(folder, WITHOUT_PAUSE))
        # Reading writes nothing: that it was filled without waiting for the disk changes nothing but the time it took.
        peers, missing = stack.enter_context(streams(folder, nats_sync="1m"))
        vault = uvloop.run(found(running.port, 1, 1))
        fill(running, vault, records)
        batches = {}
        for peer in peers:
            peer.clear()
            peer.fill(records)
            batches[peer.name] = best_batch(peer, records)
        contenders: dict[str, Run] = {"sealwire": lambda: serve(running, vault, records)}
        contenders |= {peer.name: served(peer, batches[peer.name], records) for peer in peers}
        done = contest(contenders, rounds)
    for peer in peers:
        peer.settings["records_per_request"] = batches[peer.name]
    return told(records, peers, done, missing)


def fill(running: BenchRelay, vault: BenchVault, records: int) -> None:
    """So many records, by pushes of a thousand."""
    made = uvloop.run(pushers(running.port, [vault], vault.members, WINDOW, RECORDS_PER_PUSH))
    traffic("sealwire", made, places().load, Span(writes=records // RECORDS_PER_PUSH), SHAPE)


def serve(running: BenchRelay, vault: BenchVault, records: int) -> Traffic:
    """A device's turn, from SUBSCRIBE to the last record."""
    made = uvloop.run(catcher(running.port, vault))
    return traffic("sealwire", [made], places().load, Span(until_records=records), SHAPE)


def served(peer: Streams, batch: int, records: int) -> Run:
    """A turn of a peer's reader, from its first request to the last record."""
    shape = Shape(payload=PAYLOAD_BYTES)
    return lambda: traffic(peer.speech, [peer.catcher(batch)], places().load, Span(until_records=records), shape)


def best_batch(peer: Streams, records: int) -> int:
    """The number of records to ask for at which a peer's reader is served fastest."""
    return swept(lambda batch: served(peer, batch, records)(), BATCHES_SWEPT, per_s)


def per_s(one: Traffic) -> float:
    """What counts."""
    return one.delivered_per_s


def told(records: int, peers: Sequence[Streams], done: Mapping[str, Sequence[Traffic]], missing: list[str]) -> Result:
    """The result."""
    rates = {name: spread(of, per_s) for name, of in done.items()}
    figures: dict[str, dict[str, Any]] = {
        name: {
            "records_per_s": rate.told(),
            "wire_bytes_per_record": neat(done[name][0].delivered_bytes / records),
            **load_share(done[name]),
        }
        for name, rate in rates.items()
    }
    mine = rates["sealwire"].median
    settings: dict[str, Any] = {
        "sealwire": {
            **settings_of(WITHOUT_PAUSE),
            "records_per_push": RECORDS_PER_PUSH,
            "record_wire_bytes": RECORD_BYTES,
        },
        "load": {"records": records, "payload_bytes": PAYLOAD_BYTES, "readers": 1},
    }
    return Result(
        ours=figures["sealwire"],
        peers={peer.name: figures[peer.name] for peer in peers},
        ratios={f"vs_{peer.name}": neat(mine / rates[peer.name].median) for peer in peers},
        settings=settings | {peer.name: peer.settings for peer in peers},
        missing=missing + load_limits(done),
        bars=Bars(
            "Catching up, one raw reader",
            "records/s",
            {"Sealwire": mine, **{peer.title: rates[peer.name].median for peer in peers}},
        ),
    )
