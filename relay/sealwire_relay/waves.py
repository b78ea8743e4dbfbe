"""In what portions devices are sent away when a relay stops, and when they are asked to come back. Pure."""

import math
from typing import Final, NamedTuple

WAVE_SECONDS: Final = 0.1
"""Between two waves: a device that is away this much longer than another one notices nothing of it."""

WAVE_SIZE_MIN: Final = 50
"""Devices in a wave: about as many as log in to a relay in that time. Fewer than these leave at once."""

SHARE: Final = 1 / 4
"""Of the time for stopping: what is left is for verdicts under way, and a slow database."""


class Waves(NamedTuple):
    """So many devices at a time, and the seconds from the first wave to the last one."""

    size: int
    span: float


def plan(devices: int, drain_seconds: float) -> Waves:
    """How so many devices are sent away in time."""
    most = max(1, math.floor(SHARE * drain_seconds / WAVE_SECONDS))
    size = max(WAVE_SIZE_MIN, math.ceil(devices / most))
    return Waves(size, max(0, math.ceil(devices / size) - 1) * WAVE_SECONDS)


def return_ms(waves: Waves, return_seconds: float) -> int:
    """When a device may come back, from when it was sent away. The same for all: so they come in the waves in which
    they went, the first when the last has gone and the relay had time to start again."""
    return math.ceil((waves.span + return_seconds) * 1000)
