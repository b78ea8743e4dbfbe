"""Token buckets: in the long run no more than the rate, at once no more than a burst, and nobody is kept for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_relay.buckets import BURST_SECONDS, RETURN_SECONDS, SPREAD, SWEEP_SIZE_MIN, Buckets, PushLimits, Rate

ANNA, BERT = DeviceKey(b"\x00" * 32), DeviceKey(b"\xff" * 32)
HOME, WORK = VaultId(b"home" * 4), VaultId(b"work" * 4)
NO_LIMIT = Rate(0, 0)


def test_a_full_bucket_holds_a_burst_and_then_says_when_it_is_half_full() -> None:
    buckets = Buckets[str]("device", Rate(pushes=10, bytes=0))
    for _ in range(round(10 * BURST_SECONDS)):
        assert buckets.limited("a", 1, 100.0) is None
        buckets.take("a", 1, 100.0)
    told = buckets.limited("a", 1, 100.0)
    assert told is not None
    assert told.by == "device_pushes"
    assert told.seconds == pytest.approx(RETURN_SECONDS)
    back = 100.0 + told.seconds
    for _ in range(round(10 * RETURN_SECONDS)):
        assert buckets.limited("a", 1, back) is None
        buckets.take("a", 1, back)
    assert buckets.limited("a", 1, back) is not None
    assert buckets.limited("b", 1, back) is None, "everybody has a bucket of their own"


def test_bytes_are_limited_by_themselves_and_a_push_larger_than_a_bucket_passes_when_it_is_full() -> None:
    buckets = Buckets[str]("vault", Rate(pushes=1_000, bytes=100))
    large = round(100 * BURST_SECONDS * 3)
    assert buckets.limited("a", large, 0.0) is None
    buckets.take("a", large, 0.0)
    told = buckets.limited("a", 1, 0.0)
    assert told is not None
    assert told.by == "vault_bytes"
    assert told.seconds == pytest.approx(3 * BURST_SECONDS - RETURN_SECONDS)
    assert buckets.limited("a", large, 3 * BURST_SECONDS - 0.1) is not None
    assert buckets.limited("a", large, 3 * BURST_SECONDS) is None


def test_without_limits_nothing_is_kept() -> None:
    limits = PushLimits(NO_LIMIT, NO_LIMIT)
    assert all(limits.take(ANNA, HOME, batch, 1 << 20, 0.0) is None for batch in range(1_000))
    assert len(limits._devices) == len(limits._vaults) == 0


def test_one_device_that_is_limited_takes_nothing_from_its_vault() -> None:
    limits = PushLimits(Rate(1, 0), Rate(10, 0))
    taken = [limits.take(ANNA, HOME, batch, 1, 0.0) for batch in range(100)]
    assert sum(one is None for one in taken) == BURST_SECONDS
    assert limits.take(BERT, HOME, 1, 1, 0.0) is None


def test_a_vault_that_is_limited_does_not_limit_its_devices_elsewhere() -> None:
    limits = PushLimits(NO_LIMIT, Rate(1, 0))
    told = [limits.take(ANNA, HOME, batch, 1, 0.0) for batch in range(10)]
    assert [one.by for one in told if one is not None] == ["vault_pushes"] * round(10 - BURST_SECONDS)
    assert limits.take(ANNA, WORK, 1, 1, 0.0) is None


def test_those_who_share_a_limit_return_at_different_times() -> None:
    limits = PushLimits(NO_LIMIT, Rate(1, 0))
    for batch in range(round(BURST_SECONDS)):
        assert limits.take(ANNA, HOME, batch, 1, 0.0) is None
    first, last = limits.take(ANNA, HOME, 9, 1, 0.0), limits.take(BERT, HOME, 9, 1, 0.0)
    assert first is not None and last is not None
    assert (first.seconds, last.seconds) == pytest.approx((RETURN_SECONDS, RETURN_SECONDS * (1 + SPREAD)))


def test_full_buckets_are_forgotten() -> None:
    buckets = Buckets[int]("device", Rate(10, 0))
    for number in range(20 * SWEEP_SIZE_MIN):
        buckets.take(number, 1, number / 1_000)  # each is full again after a hundred others
    assert len(buckets) <= SWEEP_SIZE_MIN


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 400)), min_size=1, max_size=200),
    st.integers(1, 20),
    st.integers(50, 2_000),
)
def test_never_more_than_a_burst_and_the_rate(steps: list[tuple[float, int]], pushes: int, size: int) -> None:
    buckets = Buckets[str]("device", Rate(pushes, size))
    now = 0.0
    taken: list[tuple[float, int]] = []
    for pause, each in steps:
        now += pause
        if buckets.limited("a", each, now) is None:
            buckets.take("a", each, now)
            taken.append((now, each))
    for place, (began, _) in enumerate(taken):
        for end in range(place, len(taken)):
            span = BURST_SECONDS + taken[end][0] - began
            assert end - place + 1 <= pushes * span + 1e-6
            # One that is larger than a bucket is let pass by a full one, and paid for afterwards.
            assert (
                sum(each for _, each in taken[place : end + 1])
                <= size * span + max(0, 400 - size * BURST_SECONDS) + 1e-6
            )


@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=100))
def test_who_returns_when_it_was_told_is_taken(sizes: list[int]) -> None:
    limits = PushLimits(Rate(3, 1_000), Rate(5, 2_000))
    now = 0.0
    for batch, size in enumerate(sizes):
        told = limits.take(ANNA, HOME, batch, size, now)
        if told is not None:
            assert told.seconds > 0
            # The bytes may be scarcer than what it was told of.
            for _ in range(4):
                if told is not None:
                    now += told.seconds + 1e-6
                    told = limits.take(ANNA, HOME, batch, size, now)
            assert told is None
