"""What the bench `growth` makes of its rounds."""

import pytest

from bench.growth import SHORT, told
from bench.harness.load import Counts

COUNTED = Counts(*[0] * len(Counts._fields))


def test_a_delivery_is_told_with_its_commit_and_without_round_by_round() -> None:
    few, many = SHORT.few, SHORT.subscribers
    alone, each_of_few, each_of_many = (400.0, 600.0, 500.0), 5.0, 8.0
    spent = {
        0: list(alone),
        few: [commit + few * each_of_few for commit in alone],
        many: [commit + many * each_of_many for commit in alone],
    }
    found = told(SHORT, spent, {few: [4.0], many: [6.0]}, [COUNTED])
    assert found.ours["deliver_us_few_without_commit"]["rounds"] == [each_of_few] * 3
    assert found.ours["deliver_us_many_without_commit"]["rounds"] == [each_of_many] * 3
    assert found.ratios["deliver_cpu_5000_vs_50_without_commit"] == each_of_many / each_of_few
    with_commit = (each_of_many + 500 / many) / (each_of_few + 500 / few)
    assert found.ratios["deliver_cpu_5000_vs_50"] == pytest.approx(with_commit, rel=1e-3)
    assert found.yardsticks["c_epoll"]["many_vs_few"] == 1.5
