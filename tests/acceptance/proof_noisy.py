"""One vault at full speed beside others that push little: how much later what these push arrives.

In each of twenty vaults one device pushes ten records a second, at moments that are fixed before, and another one
listens. In turn with spans in which nothing else happens four devices push to a further vault as fast as they can: one,
two hundred or three thousand records at a time, eight pushes of each unanswered, as many as the protocol allows. No
bucket limits them here, so that what is measured is the relay's fairness alone.

What counts is the 99th percentile of the time from the moment at which a push is due until it is delivered, of a span
with noise over that of the span before: the median of all such pairs, so that what else the machine does cancels out.
The relay has one core, Postgres and both generators, which are in C, the others: if there is but one other, what noise
takes of that core counts against the relay too.
"""

import statistics
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.harness.devices import BenchVault, found
from bench.harness.ours import STAMPED, WITHOUT_PAUSE, followers, pushers
from bench.harness.processes import places
from bench.harness.relay import BenchRelay, relay
from bench.harness.traffic import Span, Traffic, traffic
from sealwire_protocol.limits import PUSH_WINDOW

LIMIT_S = 300
LIMIT_SHORT_S = 180

QUIET: Final = 20
PER_S: Final = 10
"""Vaults that push little, and how often one of them does."""

NOISE_RECORDS: Final = (1, 200, 200, 3_000)
"""In each push of a noisy device: little edits, uploads, the largest that there are."""

NOISE_PER_S_MIN: Final = 20_000
"""Records of the noisy vault below which it was none: a device that sends all it has makes some ten thousand."""

MARGIN_S: Final = 0.5
"""For which there is noise before others are measured, and at least afterwards."""

RATIO_MAX: Final = 4 / 3
RATIO_SHORT_MAX: Final = 3.0
"""The short form is for machines on which other things run too, and few pushes tell little of the slowest hundredth:
it finds vaults that wait for another one's commit, or for a read of what it sends, which takes five times as long."""


class Plan(NamedTuple):
    """How many pairs of spans, and for how long each is measured."""

    pairs: int
    span_s: float
    ratio_max: float


LONG: Final = Plan(9, 4.0, RATIO_MAX)
SHORT_PLAN: Final = Plan(3, 1.5, RATIO_SHORT_MAX)


class Pair(NamedTuple):
    """What was measured of the others, without noise and with it, and what was pushed of that."""

    alone: Traffic
    beside: Traffic
    noise: Traffic

    @property
    def ratio(self) -> float:
        """How much later things arrive beside the noise."""
        return self.beside.delivery_p99_ms / self.alone.delivery_p99_ms


def little(running: BenchRelay, vaults: list[BenchVault], span_s: float) -> Traffic:
    """The others."""
    connections = []
    for vault in vaults:
        connections += uvloop.run(pushers(running.port, [vault], vault.members[:1], PUSH_WINDOW))
        connections += uvloop.run(followers(running.port, vault, vault.members[1:]))
    return traffic("sealwire", connections, places().load, Span(MARGIN_S, span_s, rate=QUIET * PER_S), STAMPED)


def much(running: BenchRelay, vault: BenchVault, span_s: float) -> Traffic:
    """The noise, from before the others are measured until after that."""
    connections = []
    for member, records in zip(vault.members, NOISE_RECORDS, strict=True):
        connections += uvloop.run(pushers(running.port, [vault], [member], PUSH_WINDOW, records))
    return traffic("sealwire", connections, places().load, Span(0, span_s + 4 * MARGIN_S), STAMPED)


def measured(running: BenchRelay, others: list[BenchVault], noisy: BenchVault, span_s: float) -> Pair:
    """One span without noise, and one with it."""
    alone = little(running, others, span_s)
    with ThreadPoolExecutor(1) as thread:
        noise: Future[Traffic] = thread.submit(much, running, noisy, span_s)
        beside = little(running, others, span_s)
        return Pair(alone, beside, noise.result())


def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """Pairs of spans, after one that warms up."""
    with relay(folder, WITHOUT_PAUSE) as running:
        others = [uvloop.run(found(running.port, 1 + 2 * place, 2)) for place in range(QUIET)]
        noisy = uvloop.run(found(running.port, 1 + 2 * QUIET, len(NOISE_RECORDS)))
        measured(running, others, noisy, plan.span_s)
        pairs = [measured(running, others, noisy, plan.span_s) for _ in range(plan.pairs)]
    ratio = statistics.median(pair.ratio for pair in pairs)
    noise = [pair.noise.answered_per_s for pair in pairs]
    return {
        "ok": ratio <= plan.ratio_max and min(noise) >= NOISE_PER_S_MIN,
        "p99_ratio": round(ratio, 2),
        "p99_ratio_max": round(plan.ratio_max, 2),
        "p99_ratios": [round(pair.ratio, 2) for pair in pairs],
        "p99_ms_alone": [round(pair.alone.delivery_p99_ms, 2) for pair in pairs],
        "p99_ms_beside": [round(pair.beside.delivery_p99_ms, 2) for pair in pairs],
        "p50_ms_alone": [round(pair.alone.delivery_p50_ms, 2) for pair in pairs],
        "p50_ms_beside": [round(pair.beside.delivery_p50_ms, 2) for pair in pairs],
        "noise_records_per_s": [round(rate) for rate in noise],
    }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if the others' 99th percentile is at most a third higher beside the noise."""
    with tempfile.TemporaryDirectory(prefix="noisy-", ignore_cleanup_errors=True) as name:
        return prove(Path(name), SHORT_PLAN if short else LONG)
