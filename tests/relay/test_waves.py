"""In what portions devices are sent away: all of them in time, few at once, and back as they went."""

import math

from hypothesis import given
from hypothesis import strategies as st

from sealwire_relay.waves import SHARE, WAVE_SECONDS, WAVE_SIZE_MIN, plan, return_ms


def test_a_few_devices_leave_at_once_and_many_within_their_share_of_the_time() -> None:
    assert plan(WAVE_SIZE_MIN, 10.0) == (WAVE_SIZE_MIN, 0.0)
    assert plan(10_000, 10.0).span < SHARE * 10.0
    assert plan(10_000, 10.0).size == 400


@given(st.integers(0, 1_000_000), st.floats(0, 600))
def test_every_device_leaves_in_time(devices: int, seconds: float) -> None:
    waves = plan(devices, seconds)
    assert waves.size >= WAVE_SIZE_MIN
    assert waves.span <= SHARE * seconds + 1e-9
    assert (round(waves.span / WAVE_SECONDS) + 1) * waves.size >= devices


def test_nobody_is_asked_back_before_the_last_has_left_and_the_relay_has_started_again() -> None:
    waves = plan(10_000, 10.0)
    assert return_ms(waves, 1.5) == math.ceil(1_000 * (waves.span + 1.5))
    assert return_ms(plan(1, 10.0), 0.0) == 0
