"""The wheel of time: everybody is called after the time asked for, once, and nobody because of another."""

from dataclasses import dataclass, field

import pytest

from sealwire_relay.wheel import TICK_SECONDS, Wheel
from tests.support.aio import asyncio_test


@dataclass
class Member:
    """Notes when it is called; asks to be called again after `every` seconds."""

    every: float | None = None
    fails: bool = False
    calls: list[float] = field(default_factory=list)

    def on_time(self, now: float) -> float | None:
        self.calls.append(now)
        if self.fails:
            raise ZeroDivisionError
        return None if self.every is None else now + self.every


def test_a_member_is_called_once_at_the_first_tick_after_its_time() -> None:
    wheel, member = Wheel(), Member()
    wheel.add(member, 10.5)
    for now in (9.0, 10.0, 10.9):
        wheel.turn(now)
    assert member.calls == []
    wheel.turn(11.2)
    wheel.turn(12.0)
    assert member.calls == [11.2]


@pytest.mark.parametrize("when", [0.0, 0.1, 4.999, 5.0, 17.3])
def test_nobody_is_called_early_or_more_than_a_tick_late(when: float) -> None:
    wheel, member = Wheel(), Member()
    wheel.add(member, when)
    now = 0.0
    while not member.calls:
        now += 0.25
        wheel.turn(now)
    assert when <= member.calls[0] <= when + TICK_SECONDS + 0.25


def test_a_member_that_asks_for_it_is_called_again() -> None:
    wheel, member = Wheel(), Member(every=5.0)
    wheel.add(member, 5.0)
    for now in range(40):
        wheel.turn(float(now))
    assert len(member.calls) == 6
    assert all(b - a >= 5.0 for a, b in zip(member.calls, member.calls[1:], strict=False))


def test_time_that_jumps_calls_everyone_that_is_due() -> None:
    wheel, members = Wheel(), [Member() for _ in range(10)]
    for place, member in enumerate(members):
        wheel.add(member, float(place))
    wheel.turn(1000.0)
    assert all(member.calls == [1000.0] for member in members)
    late = Member()
    wheel.add(late, 3.0)
    wheel.turn(1001.0)
    assert late.calls == [1001.0]


def test_time_that_runs_backwards_calls_nobody_and_loses_nobody() -> None:
    wheel, member = Wheel(), Member()
    wheel.turn(100.0)
    wheel.add(member, 101.0)
    wheel.turn(50.0)
    assert member.calls == []
    wheel.turn(102.0)
    assert member.calls == [102.0]


def test_one_that_fails_is_not_in_the_way_of_the_others() -> None:
    wheel, bad, good = Wheel(), Member(fails=True, every=1.0), Member(every=1.0)
    for member in (bad, good):
        wheel.add(member, 1.0)
    for now in (2.0, 4.0, 6.0):
        wheel.turn(now)
    assert len(bad.calls) == 1
    assert len(good.calls) >= 2


@asyncio_test
async def test_a_wheel_that_was_stopped_calls_nobody() -> None:
    wheel, member = Wheel(), Member()
    wheel.start()
    wheel.add(member, 0.0)
    wheel.stop()
    wheel.turn(1e9)
    assert member.calls == []
