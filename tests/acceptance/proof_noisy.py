"""One vault at full speed, beside others that push little: how much longer these wait for their verdicts.

Devices of as many vaults push a record now and then. In turn another one, in a process of its own, is silent, or pushes
as fast as it is answered. What counts is the 99th percentile of the time from a push to its verdict: the median of the
spans with noise, and of those without.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Final

import trio

from demo.processes import spawn
from demo.relay import Relay
from tests.acceptance.pushing import Pusher

LIMIT_S = 400
LIMIT_SHORT_S = 240

QUIET: Final = 20
"""Devices that push little, each to a vault of its own."""

PAUSE_S: Final = 0.1
"""Between two pushes of one of them."""

NOISE_RECORDS: Final = 200
"""In each push of the noisy one: what a device puts into one that uploads all it has."""

SPANS: Final = 7
SPANS_SHORT: Final = 3
SPAN_S: Final = 5.0
SPAN_SHORT_S: Final = 2.0

RATIO_MAX: Final = 4 / 3
RATIO_SHORT_MAX: Final = 10.0
"""The short form is for machines on which other things run too: it finds vaults that wait for all of another one."""


class Noise:
    """The noisy device's process."""

    def __init__(self, origin: str, folder: Path) -> None:
        self._process = spawn("tests.acceptance.noise", origin, str(NOISE_RECORDS), log=folder / "noise.log")

    def turn(self, on: bool) -> int:
        """Begin or end; returns how many records it had acknowledged since it was told so last. Blocks."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"on\n" if on else b"off\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


async def measure(folder: Path, spans: int, span_s: float) -> dict[str, list[list[float]]]:
    """By `noisy` and `quiet`, for each span the sorted seconds of its pushes, and how many records the noise had."""
    relay = Relay(folder)
    noise: Noise | None = None
    found: dict[str, list[list[float]]] = {"quiet": [], "noisy": [], "noise": []}
    try:
        await relay.start()
        pushers = [Pusher(relay.origin, number + 1, window=0, records=1) for number in range(QUIET)]
        noise = Noise(relay.origin, folder)
        async with trio.open_nursery() as nursery:
            for pusher in pushers:
                nursery.start_soon(pusher.link.run)
            for pusher in pushers:
                await pusher.found()
            for place, pusher in enumerate(pushers):
                nursery.start_soon(_push_little, pusher, PAUSE_S * place / QUIET)
            await trio.to_thread.run_sync(noise.turn, False)
            for span in range(2 * spans + 1):
                noisy = span % 2 == 0
                await trio.to_thread.run_sync(noise.turn, noisy)
                await trio.sleep(span_s / 4)
                for pusher in pushers:
                    pusher.begin_again(False)
                await trio.sleep(span_s)
                if span:  # the first one warms up
                    seconds = sorted(each for pusher in pushers for each in pusher.seconds)
                    found["noisy" if noisy else "quiet"].append(seconds)
                records = await trio.to_thread.run_sync(noise.turn, False)
                if noisy:
                    found["noise"].append([records / (1.25 * span_s)])
            nursery.cancel_scope.cancel()
    finally:
        if noise is not None:
            noise.kill()
        relay.abandon()
    return found


async def _push_little(pusher: Pusher, first_s: float) -> None:
    await trio.sleep(first_s)
    while True:
        pusher.push()
        await trio.sleep(PAUSE_S)


def _percentile(spans: list[list[float]], part: float) -> float:
    """The median over all spans, in milliseconds."""
    return 1_000 * statistics.median(span[min(len(span) - 1, int(part * len(span)))] for span in spans)


def run(short: bool) -> dict[str, object]:
    """The proof: ok if the others' 99th percentile is at most a third higher beside the noise."""
    with tempfile.TemporaryDirectory(prefix="noisy-", ignore_cleanup_errors=True) as name:
        spans, span_s = (SPANS_SHORT, SPAN_SHORT_S) if short else (SPANS, SPAN_S)
        found = trio.run(measure, Path(name), spans, span_s)
    quiet, noisy = (_percentile(found[which], 0.99) for which in ("quiet", "noisy"))
    return {
        "ok": noisy <= quiet * (RATIO_SHORT_MAX if short else RATIO_MAX),
        "p99_ratio": round(noisy / quiet, 2),
        "quiet_p99_ms": round(quiet, 2),
        "noisy_p99_ms": round(noisy, 2),
        "quiet_p50_ms": round(_percentile(found["quiet"], 0.5), 2),
        "noisy_p50_ms": round(_percentile(found["noisy"], 0.5), 2),
        "spans": spans,
        "pushes_a_span": [len(span) for span in found["noisy"]],
        "noise_records_a_second": [round(rate) for (rate,) in found["noise"]],
    }
