"""Fan-out at full durable speed: records a second delivered to 100 devices, all that is pushed being on disk before.

A part of the bench `fanout`: one device pushes without pause, many records at a time, and 100 others get all of it.
Redis has no writes of many records; there they are many that are not waited for.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from bench.harness.contest import Run, contest, load_limits, load_share, spread, streams, swept
from bench.harness.devices import BenchVault, found
from bench.harness.ours import SHAPE, WITHOUT_PAUSE, followers, pushers
from bench.harness.processes import places
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, neat
from bench.harness.traffic import Shape, Span, Traffic, traffic
from bench.peers.streams import PAYLOAD_BYTES, Streams
from sealwire_protocol.limits import PUSH_WINDOW

DEVICES: Final = 100
FIGURE: Final = "max_deliveries_per_s"
RATIO: Final = "max_deliveries_vs_redis_streams"

RECORDS_SWEPT: Final = (16, 64, 256, 1_000, 3_000)
"""Records in one of a device's pushes; the best number counts. It leaves eight unanswered, as it may."""

SINGLE_PUSHERS: Final = 16
"""Devices that push one record at a time, which is told beside: together they leave 128 unanswered."""

UNANSWERED_SWEPT: Final = (16, 64, 256, 1_000, 4_000)
"""Unanswered writes of a peer's writer; readers take up to as many at a time. The best number counts."""


def add_full_speed(result: Result, *, short: bool) -> None:
    """Add this figure of a relay, and of Redis Streams, to a result. Measures in a temporary folder."""
    rounds = ROUNDS_SHORT if short else ROUNDS
    span = Span(0.3, 0.7) if short else Span(1.0, 3.0)
    brief = Span(span.warm_s / 2, span.measure_s / 2)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(relay(folder, WITHOUT_PAUSE))
        peers, missing = stack.enter_context(streams(folder, nats=False))
        vault = uvloop.run(found(running.port, 1, SINGLE_PUSHERS + DEVICES))
        records = swept(lambda number: deliver(running, vault, 1, number, brief), RECORDS_SWEPT, per_s)
        contenders: dict[str, Run] = {
            "sealwire": lambda: deliver(running, vault, 1, records, span),
            "sealwire_singly": lambda: deliver(running, vault, SINGLE_PUSHERS, 1, span),
        }
        for peer in peers:
            best = best_unanswered(peer, brief)
            contenders[peer.name] = delivered(peer, best, span)
            result.settings[peer.name] = {**peer.settings, "unanswered": best, "devices": DEVICES}
        done = contest(contenders, rounds)
    rates = {name: spread(of, per_s) for name, of in done.items()}
    result.ours["full_speed"] = {"pushed_singly_per_s": rates["sealwire_singly"].told(), **load_share(done["sealwire"])}
    result.ours[FIGURE] = rates["sealwire"].told()
    for peer in peers:
        result.peers[peer.name] = {FIGURE: rates[peer.name].told(), **load_share(done[peer.name])}
        result.ratios[RATIO] = neat(rates["sealwire"].median / rates[peer.name].median)
    result.settings["full_speed"] = {**settings_of(WITHOUT_PAUSE), "records_per_push": records, "devices": DEVICES}
    result.missing += missing + load_limits(done)


def deliver(running: BenchRelay, vault: BenchVault, pushing: int, records: int, span: Span) -> Traffic:
    """The relay's turn: so many members push so many records at a time, and a hundred others listen."""
    listening = uvloop.run(followers(running.port, vault, vault.members[SINGLE_PUSHERS:]))
    loaders = uvloop.run(pushers(running.port, [vault], vault.members[:pushing], PUSH_WINDOW, records))
    return traffic("sealwire", [*loaders, *listening], places().load, span, SHAPE)


def delivered(peer: Streams, unanswered: int, span: Span) -> Run:
    """A peer's turn."""

    def turn() -> Traffic:
        peer.clear()
        connections = [*peer.writers(1, unanswered), *peer.followers(DEVICES, unanswered)]
        return traffic(peer.speech, connections, places().load, span, Shape(payload=PAYLOAD_BYTES))

    return turn


def best_unanswered(peer: Streams, span: Span) -> int:
    """The number of unanswered writes at which a peer delivers most."""
    return swept(lambda unanswered: delivered(peer, unanswered, span)(), UNANSWERED_SWEPT, per_s)


def per_s(one: Traffic) -> float:
    """What counts."""
    return one.delivered_per_s
