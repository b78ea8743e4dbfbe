"""What it costs a server to send one small message to many: deliveries per second of its processor time.

A record of 200 bytes a commit goes to 1,000 devices of one vault, each a member with its own key, logged in, subscribed
and live. Processor time is that of the relay's own process, with everything that it does for it: the push is checked,
committed to Postgres with fsync on, answered, counted, and each delivery takes its device's credit. Others only send: C
with epoll, one send each, is what the kernel costs.

`bulk` is the same with 64 records in a push, and 64 frames in each send of C.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.full_speed import add_full_speed
from bench.harness.devices import found
from bench.harness.fanning import Fan, Fanned, peer_fan, relay_fans
from bench.harness.load import BUSY
from bench.harness.processes import Missing, pinned, places
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Figures, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, interleaved, neat
from bench.peers import fanners
from sealwire_protocol.limits import ACK_DELAY_SECONDS

BULK: Final = 64
"""Records in a push, of which eight are unanswered: some 14 KB for each device."""

BULK_WINDOW: Final = 8

WINDOWS: Final = (1, 4, 16)
"""Pushes unanswered at once, of which the best is taken."""

WINDOW_OURS: Final = 1
"""With more, a commit may have several records."""

OURS: Final = "sealwire"


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    listeners: int
    rounds: int
    seconds: float
    sweep_s: float
    ours_s: float
    """Longer than ACK_DELAY_SECONDS, so that what each device acknowledges after that time is part of the figure."""


LONG: Final = Scale(1_000, ROUNDS, 2.0, 1.0, ACK_DELAY_SECONDS + 1.0)
SHORT: Final = Scale(50, ROUNDS_SHORT, 0.3, 0.1, 0.3)


@dataclass
class Contender:
    """One of those that are compared: its variants by what sets them apart, and what was found."""

    variants: dict[str, tuple[Fan, int]] = field(default_factory=dict)
    best: str = ""
    found: list[Fanned] = field(default_factory=list)

    def figures(self, spread: Spread) -> Figures:
        """What results have of it."""
        return {
            "deliveries_per_cpu_s": spread.told(),
            "deliveries_per_s": Spread(tuple(one.deliveries_per_s for one in self.found)).told(),
            "server_cpu_share": neat(max(one.server_share for one in self.found)),
            "receiver_cpu_share": neat(max(one.receiver_share for one in self.found)),
        }


class Fanout:
    """One run of the bench: everybody's listeners stay connected, and one at a time is pushed to."""

    def __init__(self, scale: Scale, folder: Path, runner: asyncio.Runner, stack: contextlib.ExitStack) -> None:
        self.scale, self.folder, self._runner, self._stack = scale, folder, runner, stack
        self.contenders: dict[str, Contender] = {}
        self.missing: list[str] = []

    def add(self, name: str, variants: Mapping[str, Callable[[], fanners.Fanner]]) -> None:
        """Start a peer in all its variants, or note why it cannot run here."""
        contender = Contender()
        try:
            for variant, how in variants.items():
                fan = peer_fan(self._runner, *how(), self.scale.listeners, self.folder)
                opened = self._stack.enter_context(fan)
                for window in WINDOWS:
                    contender.variants[f"{variant}, {window} unanswered".lstrip(", ")] = opened, window
        except Missing as missing:
            self.missing.append(str(missing))
        else:
            self.contenders[name] = contender

    def measured(self, fan: Fan, window: int, seconds: float) -> Fanned:
        """One measurement."""
        return self._runner.run(fan.measure(window, seconds))

    def sweep(self) -> None:
        """Find each one's best variant."""
        for contender in self.contenders.values():
            reached: dict[str, float] = {}
            for variant, (fan, window) in contender.variants.items():
                reached[variant] = self.measured(fan, window, self.scale.sweep_s).frames_per_cpu_s
            contender.best = max(reached, key=lambda variant: reached[variant])

    def compare(self) -> dict[str, Spread]:
        """All of them in turn, each in its best variant. Should two records of ours meet in a commit, they count as one
        delivery."""

        def contest(name: str) -> float:
            contender = self.contenders[name]
            seconds = self.scale.ours_s if name == OURS else self.scale.seconds
            one = self.measured(*contender.variants[contender.best], seconds)
            contender.found.append(one)
            return one.frames_per_cpu_s

        return interleaved({name: partial(contest, name) for name in self.contenders}, self.scale.rounds)


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    scale = SHORT if short else LONG
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o711)
        running = stack.enter_context(relay(folder))
        stack.enter_context(pinned(places().load))
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        result = _measure(Fanout(scale, folder, runner, stack), running, runner, stack)
    add_full_speed(result, short=short)
    return result


def _measure(bench: Fanout, running: BenchRelay, runner: asyncio.Runner, stack: contextlib.ExitStack) -> Result:
    vault = runner.run(found(running.port, 1, bench.scale.listeners))
    single, bulk = stack.enter_context(relay_fans(runner, running, vault, (1, BULK), bench.folder))
    bench.contenders[OURS] = Contender({f"{WINDOW_OURS} unanswered": (single, WINDOW_OURS)})
    bench.add("c_epoll", {"": partial(fanners.c_epoll, 1)})
    loops = ("asyncio", "uvloop")
    bench.add("websockets_broadcast", {loop: partial(fanners.websockets_broadcast, loop) for loop in loops})
    bench.add("node_ws", {"": fanners.node_ws})
    bench.add("socketio", {"": partial(fanners.socketio, text=False)})
    bench.add("socketio_text", {"": partial(fanners.socketio, text=True)})
    bench.sweep()
    postgres = running.postgres_cpu_seconds()
    commits = running.metrics()["sealwire_commits_total"]
    spreads = bench.compare()
    postgres = running.postgres_cpu_seconds() - postgres
    commits = running.metrics()["sealwire_commits_total"] - commits
    ours = bench.contenders[OURS].figures(spreads[OURS])
    ours["records_per_delivery"] = neat(max(one.records_per_frame for one in bench.contenders[OURS].found))
    ours["postgres_cpu_ms_per_commit"] = neat(1_000 * postgres / commits)
    result = _result(bench, spreads, ours)
    _measure_bulk(bench, bulk, runner, stack, result)
    return result


def _measure_bulk(
    bench: Fanout, bulk: Fan, runner: asyncio.Runner, stack: contextlib.ExitStack, result: Result
) -> None:
    """Many records at once, beside C with as many frames in one send."""
    contenders = {OURS: lambda: bench.measured(bulk, BULK_WINDOW, bench.scale.sweep_s).deliveries_per_cpu_s}
    with contextlib.suppress(Missing):
        fanner = fanners.c_epoll(BULK)
        fan = stack.enter_context(peer_fan(runner, *fanner, bench.scale.listeners, bench.folder, BULK))
        contenders["c_epoll"] = lambda: bench.measured(fan, 1, bench.scale.sweep_s).deliveries_per_cpu_s
    spreads = interleaved(contenders, bench.scale.rounds)
    result.ours["bulk_deliveries_per_cpu_s"] = spreads[OURS].told()
    if "c_epoll" in spreads:
        result.yardsticks["c_epoll"]["bulk_deliveries_per_cpu_s"] = spreads["c_epoll"].told()


def _result(bench: Fanout, spreads: Mapping[str, Spread], ours: Figures) -> Result:
    others = {name: bench.contenders[name].figures(spread) for name, spread in spreads.items() if name != OURS}
    keys = {
        "c_epoll": "vs_c_epoll",
        "websockets_broadcast": "vs_broadcast",
        "node_ws": "vs_node_ws",
        "socketio": "vs_socketio",
    }
    busy = [
        f"{name}: the receiver took {share:.0%} of its core, and may have been the limit"
        for name, contender in bench.contenders.items()
        if (share := max(one.receiver_share for one in contender.found)) > BUSY
    ]
    best = {name: contender.best for name, contender in bench.contenders.items()}
    titles = {
        OURS: "Sealwire, whole relay",
        "c_epoll": "C with epoll, which does nothing else",
        "websockets_broadcast": "websockets.broadcast()",
        "node_ws": "Node ws",
        "socketio": "socket.io, binary",
        "socketio_text": "socket.io, as text",
    }
    return Result(
        ours=ours,
        peers={name: figures for name, figures in others.items() if name != "c_epoll"},
        yardsticks={name: figures for name, figures in others.items() if name == "c_epoll"},
        ratios={keys[name]: neat(spreads[OURS].median / spreads[name].median) for name in others if name in keys},
        settings=_settings(best),
        missing=bench.missing + busy,
        bars=Bars(
            f"One record of 200 bytes to {bench.scale.listeners:,} devices",
            "deliveries per second of the server's processor time",
            {title: spreads[name].median for name, title in titles.items() if name in spreads},
        ),
    )


def _settings(best: Mapping[str, str]) -> dict[str, Any]:
    of = {
        OURS: settings_of() | {"counted": "the relay's own process; Postgres beside, per commit"},
        **fanners.settings(),
    }
    return {name: {**about, "best": best[name]} for name, about in of.items() if name in best}
