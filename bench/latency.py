"""Latency: from a push to its arrival at each of 100 devices, one record at a time, 100 a second, durable.

The time at which it was due to be pushed stands in the record itself: the generator that pushes is the one that reads,
so that there is one clock. It is taken off when what was read is looked at, so that it holds the generator's own wait
for its turn, for everybody alike. A push that must wait for others to be answered waits on the relay's account.
"""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.harness.contest import Run, contest, load_limits, load_share, spread, streams
from bench.harness.devices import BenchVault, found
from bench.harness.ours import STAMPED, WITHOUT_PAUSE, followers, pushers
from bench.harness.processes import places
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, neat
from bench.harness.traffic import Shape, Span, Traffic, traffic
from bench.peers.streams import LINE_BYTES, PAYLOAD_BYTES, Streams
from sealwire_protocol.limits import PUSH_WINDOW

DEVICES: Final = 100
PUSHERS: Final = 16
PER_S: Final = 100
UNANSWERED: Final = PUSHERS * PUSH_WINDOW
"""So many may wait, for the others too: more than ever should."""

BATCH: Final = 100
"""Records that a peer's reader takes at a time, should it be late; at this rate one waits."""

ROUNDS_MORE: Final = 2
"""Beyond the usual: the slowest hundredth of a round is unsteady."""


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    rounds = ROUNDS_SHORT if short else ROUNDS + ROUNDS_MORE
    span = Span(0.3, 1.0, rate=PER_S) if short else Span(1.0, 6.0, rate=PER_S)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(relay(folder, WITHOUT_PAUSE))
        peers, missing = stack.enter_context(streams(folder))
        vault = uvloop.run(found(running.port, 1, PUSHERS + DEVICES))
        contenders: dict[str, Run] = {"sealwire": lambda: deliver(running, vault, span)}
        contenders |= {peer.name: delivered(peer, span) for peer in peers}
        done = contest(contenders, rounds)
    return told(peers, done, missing)


def deliver(running: BenchRelay, vault: BenchVault, span: Span) -> Traffic:
    """The relay's turn: some members push, one after the other, and all others listen."""
    listening = uvloop.run(followers(running.port, vault, vault.members[PUSHERS:]))
    pushing = uvloop.run(pushers(running.port, [vault], vault.members[:PUSHERS], PUSH_WINDOW))
    return traffic("sealwire", [*pushing, *listening], places().load, span, STAMPED)


def delivered(peer: Streams, span: Span) -> Run:
    """A peer's turn."""

    def turn() -> Traffic:
        peer.clear()
        connections = [*peer.writers(1, UNANSWERED), *peer.followers(DEVICES, BATCH)]
        return traffic(peer.speech, connections, places().load, span, Shape(0, LINE_BYTES, PAYLOAD_BYTES))

    return turn


def told(peers: Sequence[Streams], done: Mapping[str, Sequence[Traffic]], missing: list[str]) -> Result:
    """The result."""
    p50 = {name: spread(of, lambda one: one.delivery_p50_ms) for name, of in done.items()}
    p99 = {name: spread(of, lambda one: one.delivery_p99_ms) for name, of in done.items()}
    figures: dict[str, dict[str, Any]] = {
        name: {
            "p50_ms": p50[name].told(),
            "p99_ms": p99[name].told(),
            "answer_p50_ms": spread(of, lambda one: one.answer_p50_ms).told(),
            "answer_p99_ms": spread(of, lambda one: one.answer_p99_ms).told(),
            **load_share(of),
        }
        for name, of in done.items()
    }
    ratios = {}
    if (redis := "redis_streams") in done:
        ratios["p50_vs_redis_streams"] = neat(p50["sealwire"].median / p50[redis].median)
        ratios["p99_vs_redis_streams"] = neat(p99["sealwire"].median / p99[redis].median)
    settings: dict[str, Any] = {
        "sealwire": {**settings_of(WITHOUT_PAUSE), "members": PUSHERS + DEVICES, "pushers": PUSHERS},
        "load": {"devices": DEVICES, "pushes_per_s": PER_S, "payload_bytes": PAYLOAD_BYTES},
    }
    return Result(
        ours=figures["sealwire"],
        peers={peer.name: figures[peer.name] for peer in peers},
        ratios=dict(ratios),
        settings=settings | {peer.name: peer.settings for peer in peers},
        missing=missing + load_limits(done),
        bars=Bars(
            "Push to arrival at 100 devices, median",
            "ms",
            {"Sealwire": p50["sealwire"].median, **{peer.title: p50[peer.name].median for peer in peers}},
        ),
    )
