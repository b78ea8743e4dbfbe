"""Virtual time: trio's clock, which stands still while anything can run, and what happens at moments, without a task.

All moments that the simulation chooses lie on a grid, so that much happens at the same moment: there chance decides
about the order.
"""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Final

import trio

GRAIN_SECONDS: Final = 1 / 64
"""The grid of moments; a sum of floats stays on it exactly."""


def on_grid(seconds: float) -> float:
    """The first moment of the grid that is not earlier."""
    return math.ceil(seconds / GRAIN_SECONDS) * GRAIN_SECONDS


class NothingLeftError(Exception):
    """All tasks wait, and nothing is going to happen."""


class Agenda(trio.abc.Clock):
    """The clock of a run. Jumps to the next deadline or happening as soon as all tasks wait."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._now = 0.0
        self._coming: list[tuple[float, float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, happens: Callable[[], None]) -> None:
        """Let something happen at a moment, now at the earliest, in no task; of one moment's in an order of chance."""
        self._count += 1
        heappush(self._coming, (when, self._random.random(), self._count, happens))

    async def rest(self, seconds: float) -> None:
        """Sleep, until a moment of the grid."""
        await trio.sleep_until(on_grid(self._now + seconds))

    def jump(self, seconds: float) -> None:
        """Time passes in which nobody had a turn."""
        self._now += on_grid(seconds)

    # --- trio.abc.Clock

    def start_clock(self) -> None:
        """It begins at zero."""

    def current_time(self) -> float:
        """Seconds since the run began."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """All tasks wait: go on to what comes next. Raises NothingLeftError."""
        coming = self._coming
        first = min(deadline, coming[0][0]) if coming else deadline
        if first == math.inf:
            raise NothingLeftError("all wait for each other")
        self._now = now = max(self._now, first)
        while coming and coming[0][0] <= now:
            heappop(coming)[3]()
        return 0.0
