"""Subscribers that stop reading under full load cost the relay a cursor each: next to no memory, and nobody's time.

Two hundred devices subscribe and never read again, while others push as fast as they are answered and twenty listen.
In turn with rounds without them it is measured what the relay's memory grew by, and when what was pushed arrives. The
slowest hundredth of deliveries is unsteady where other work goes on: it fails if three quarters of the rounds say so.
"""

import socket
import statistics
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.harness.devices import STREAM, BenchVault, DeviceWire, Member, at_once, found, heads
from bench.harness.ours import WITHOUT_PAUSE, followers, pushers, stamped
from bench.harness.processes import places
from bench.harness.relay import BenchRelay, relay
from bench.harness.traffic import Span, Traffic, traffic
from sealwire_protocol.ids import START
from sealwire_protocol.messages import Wanted

LIMIT_S = 400
LIMIT_SHORT_S = 240

STALLED: Final = 200
LISTENERS: Final = 20
PUSHERS: Final = 4
WINDOW: Final = 8
UNITS: Final = 60
"""Of a record, which is a kilobyte so: what two hundred sockets hold is full in a moment."""

SEGMENT_BYTES: Final = 1_400
RECEIVED_BYTES: Final = 16_384

MIB: Final = 1_048_576
GROWTH_MIB_MAX: Final = 20.0

LATER_MAX: Final = 1.1
LATER_SHORT_MAX: Final = 2.0
"""What the slowest hundredth of deliveries may take, of what it takes without them. A few short rounds are unsteady:
while they say no, there are more."""

RECENT_BYTES: Final = 4 * MIB
"""What is kept of the stream for those who catch up is full before it is measured, and so does not count."""

LOADS_MAX: Final = 10
"""How often load is put on again until all who do not read lag: on a slow machine once may be too little for that."""


class Plan(NamedTuple):
    """How often each is measured, how often if that says no, for how long, and how much later deliveries may come."""

    rounds: int
    rounds_max: int
    span: Span
    later_max: float


LONG: Final = Plan(7, 7, Span(1.5, 4.0), LATER_MAX)
SHORT_PLAN: Final = Plan(3, 8, Span(0.7, 1.3), LATER_SHORT_MAX)


class Round(NamedTuple):
    """Without those that do not read, with them, and by how many bytes the relay has grown with them."""

    alone: Traffic
    beside: Traffic
    growth: int

    @property
    def later(self) -> float:
        """How much later deliveries came."""
        return self.beside.delivery_p99_ms / self.alone.delivery_p99_ms


def quarter(rounds: list[Round]) -> float:
    """How much later they came in all but a quarter of the rounds."""
    return sorted(one.later for one in rounds)[len(rounds) // 4]


def load(running: BenchRelay, vault: BenchVault, span: Span) -> Traffic:
    """Push without pause, and listen, for so long."""
    listening = uvloop.run(followers(running.port, vault, vault.members[:1] * LISTENERS))
    pushing = uvloop.run(pushers(running.port, [vault], vault.members, WINDOW, units=UNITS))
    return traffic("sealwire", [*pushing, *listening], places().load, span, stamped(UNITS))


class Deaf(DeviceWire):
    """A subscriber far away: what is sent to it does not vanish in the buffers that loopback has, of megabytes."""

    OPTIONS = (
        (socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_BYTES),
    )


async def subscribed(port: int, vault: BenchVault) -> list[Deaf]:
    """Those that will read no more, live."""
    ends = await heads(port, vault, STREAM)

    async def one(member: Member) -> Deaf:
        wire = await Deaf.login(port, member.identity)
        assert isinstance(wire, Deaf)
        await wire.subscribe(vault.id, Wanted(STREAM, ends[STREAM], START))
        return wire

    return await at_once(one, vault.members[:1] * STALLED)


def measured(running: BenchRelay, vault: BenchVault, span: Span) -> Round:
    """One round of each."""
    alone = load(running, vault, span)
    before = running.rss_bytes()
    deaf = uvloop.run(subscribed(running.port, vault))
    try:
        for _ in range(LOADS_MAX):
            beside = load(running, vault, span)
            grown = running.rss_bytes() - before
            lagging = running.metrics()["sealwire_lagging_streams"]
            if lagging >= STALLED:
                return Round(alone, beside, grown)
    finally:
        for one in deaf:
            one.close()
    raise RuntimeError(f"only {lagging:.0f} of {STALLED} had so much sent to them that they lag")


def prove(folder: Path, plan: Plan) -> dict[str, object]:
    """Rounds in turn, after one that fills what is always full."""
    with relay(folder, {**WITHOUT_PAUSE, "recent_bytes_max": RECENT_BYTES}) as running:
        vault = uvloop.run(found(running.port, 1, PUSHERS))
        measured(running, vault, plan.span)
        rounds = [measured(running, vault, plan.span) for _ in range(plan.rounds)]
        while quarter(rounds) > plan.later_max and len(rounds) < plan.rounds_max:
            rounds.append(measured(running, vault, plan.span))
    growths = [round(one.growth / MIB, 1) for one in rounds]
    return {
        "ok": statistics.median(growths) <= GROWTH_MIB_MAX and quarter(rounds) <= plan.later_max,
        "stalled": STALLED,
        "growth_mib": growths,
        "growth_mib_max": GROWTH_MIB_MAX,
        "p99_later": round(statistics.median(one.later for one in rounds), 2),
        "p99_later_quarter": round(quarter(rounds), 2),
        "p99_later_max": plan.later_max,
        "p99_ms_alone": [round(one.alone.delivery_p99_ms, 1) for one in rounds],
        "p99_ms_beside": [round(one.beside.delivery_p99_ms, 1) for one in rounds],
        "records_per_s_alone": [round(one.alone.answered_per_s) for one in rounds],
        "records_per_s_beside": [round(one.beside.answered_per_s) for one in rounds],
    }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if neither memory nor the others' deliveries suffer."""
    with tempfile.TemporaryDirectory(prefix="stalled-", ignore_cleanup_errors=True) as name:
        return prove(Path(name), SHORT_PLAN if short else LONG)
