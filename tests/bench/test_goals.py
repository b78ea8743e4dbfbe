"""Which ratios count, and what is said of them."""

from typing import Any

import pytest

from bench.goals import GOALS, INVALID, Known, judged, table, verdict
from bench.harness.result import Bars, Result, figure_at


def fanout(c_epoll: float, **ratios: float) -> dict[str, Any]:
    found = Result(yardsticks={"c_epoll": {"deliveries_per_cpu_s": {"median": c_epoll}}}, ratios={**ratios})
    return found.told("fanout")


def test_a_result_has_exactly_the_keys_that_are_promised() -> None:
    told = Result(bars=Bars("", "", {})).told("idle")
    assert list(told) == [
        "name", "machine", "commit", "ours", "peers", "yardsticks", "ratios", "settings", "missing",
    ]  # fmt: skip
    assert set(told["machine"]) == {"cores", "processor", "memory_gib", "kernel", "python"}


def test_a_figure_is_a_number_or_the_median_of_its_spread() -> None:
    result = {"ours": {"a": 2, "b": {"median": 3.5, "least": 1}, "c": "words"}}
    assert figure_at(result, "ours.a") == 2
    assert figure_at(result, "ours.b") == 3.5
    assert [figure_at(result, path) for path in ("ours.c", "ours.d", "ours.a.median", "peers.x")] == [None] * 4


def test_a_ratio_to_something_that_fell_short_is_invalid_and_what_it_would_be_is_told() -> None:
    found = judged(fanout(100_000, vs_c_epoll=0.9))
    assert found["ratios"] == {"vs_c_epoll": INVALID}
    (why,) = found["missing"]
    assert why.startswith("vs_c_epoll would be 0.9, but yardsticks.c_epoll.deliveries_per_cpu_s is 100000, 31% worse")


@pytest.mark.parametrize("c_epoll", [145_000 * 0.71, 145_000, 400_000])
def test_a_ratio_to_something_that_is_as_fast_as_known_counts(c_epoll: float) -> None:
    result = fanout(c_epoll, vs_c_epoll=0.9)
    assert judged(result) == result


def test_for_what_should_be_small_more_is_worse() -> None:
    known = Known("peers.redis_streams.p50_ms", 3.2, "less")
    assert known.shortfall({"peers": {"redis_streams": {"p50_ms": 6.4}}}) == pytest.approx(0.5)
    assert known.shortfall({"peers": {"redis_streams": {"p50_ms": 1.6}}}) == pytest.approx(-1.0)
    assert known.shortfall({"peers": {}}) is None


def test_a_goal_is_met_missed_invalid_or_not_measured() -> None:
    goals = {goal.key: goal for goal in GOALS if goal.bench == "fanout"}
    results = {"fanout": {"ratios": {"vs_c_epoll": 0.75, "vs_broadcast": 1.29, "vs_node_ws": INVALID}}}
    assert verdict(goals["vs_c_epoll"], results) == ("0.75", "met")
    assert verdict(goals["vs_broadcast"], results) == ("1.29", "missed")
    assert verdict(goals["vs_node_ws"], results) == ("–", "invalid")
    assert verdict(goals["vs_socketio"], results) == ("–", "not measured")
    idle = next(goal for goal in GOALS if goal.bench == "idle")
    assert verdict(idle, {"idle": {"ratios": {"kib_per_device": 4.0}}}) == ("4", "met")
    assert verdict(idle, {"idle": {"ratios": {"kib_per_device": 4.1}}}) == ("4.1", "missed")


def test_the_table_has_every_goal_of_the_benches_asked_for() -> None:
    assert table({}).count("not measured") == len(GOALS)
    assert table({}, ("idle",)).count("\n") == 2
