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

import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import uvloop

from bench.harness.devices import BenchVault, found
from bench.harness.ours import STAMPED, WITHOUT_PAUSE, followers, pushers
from bench.harness.processes import places
from bench.harness.relay import BenchRelay, relay
from bench.harness.traffic import Span, Traffic, traffic
from sealwire_protocol.limits import PUSH_WINDOW

LIMIT_S = 300
LIMIT_SHORT_S = 300

QUIET: Final = 20
PER_S: Final = 10
"""Vaults that push little, and how often one of them does."""

NOISE_RECORDS: Final = (1, 200, 200, 3_000)
"""In each push of a noisy device: little edits, uploads, the largest that there are."""

NOISE_PER_S_MIN: Final = 20_000
"""Records of the noisy vault below which it was none: a device that sends all it has makes some ten thousand."""

NOISE_PER_S_SHORT_MIN: Final = 20 * QUIET * PER_S
"""On a slow machine too it must be much more than what the others push."""

MARGIN_S: Final = 0.5
"""For which there is noise before others are measured, and at least afterwards."""

RATIO_MAX: Final = 4 / 3
RATIO_SHORT_MAX: Final = 4.0
"""The short form is for machines on which other things run too, and few pushes tell little of the slowest hundredth:
it finds vaults that wait for another one's commit, or for a read of what it sends, which takes five times as long.
While pairs say no, more of them are measured."""

MIDDLE_RATIO_MAX: Final = 2.5
"""Of the 50th percentile, which tells less than the 99th on a quiet machine, and more on one that is busy: there it is
3 or more with such a vault, and 1.1 to 1.7 without."""


class Plan(NamedTuple):
    """How many pairs of spans, how many if those say no, for how long each is measured, and what must hold."""

    pairs: int
    pairs_max: int
    span_s: float
    ratio_max: float
    noise_per_s_min: float


LONG: Final = Plan(9, 9, 4.0, RATIO_MAX, NOISE_PER_S_MIN)
SHORT_PLAN: Final = Plan(3, 9, 1.5, RATIO_SHORT_MAX, NOISE_PER_S_SHORT_MIN)


class Pair(NamedTuple):
    """What was measured of the others, without noise and with it, and what was pushed of that."""

    alone: Traffic
    beside: Traffic
    noise: Traffic

    @property
    def ratio(self) -> float:
        """How much later the latest hundredth arrives beside the noise."""
        return self.beside.delivery_p99_ms / self.alone.delivery_p99_ms

    @property
    def middle_ratio(self) -> float:
        """How much later things arrive in the median."""
        return self.beside.delivery_p50_ms / self.alone.delivery_p50_ms


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


class Ratios(NamedTuple):
    """How much later things arrive beside the noise, by the median of pairs."""

    p99: float
    p50: float

    @classmethod
    def of(cls, pairs: list[Pair]) -> "Ratios":
        """Of these."""
        return cls(median(pair.ratio for pair in pairs), median(pair.middle_ratio for pair in pairs))

    def is_fair(self, plan: Plan) -> bool:
        """Whether that is what must hold."""
        return self.p99 <= plan.ratio_max and self.p50 <= MIDDLE_RATIO_MAX


def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """Pairs of spans, after one that warms up."""
    with relay(folder, WITHOUT_PAUSE) as running:
        others = [uvloop.run(found(running.port, 1 + 2 * place, 2)) for place in range(QUIET)]
        noisy = uvloop.run(found(running.port, 1 + 2 * QUIET, len(NOISE_RECORDS)))
        measured(running, others, noisy, plan.span_s)
        pairs = [measured(running, others, noisy, plan.span_s) for _ in range(plan.pairs)]
        while not Ratios.of(pairs).is_fair(plan) and len(pairs) < plan.pairs_max:
            pairs.append(measured(running, others, noisy, plan.span_s))
    ratios = Ratios.of(pairs)
    noise = [pair.noise.answered_per_s for pair in pairs]
    return {
        "ok": ratios.is_fair(plan) and min(noise) >= plan.noise_per_s_min,
        "p99_ratio": round(ratios.p99, 2),
        "p99_ratio_max": round(plan.ratio_max, 2),
        "p50_ratio": round(ratios.p50, 2),
        "p50_ratio_max": MIDDLE_RATIO_MAX,
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
