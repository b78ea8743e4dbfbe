from bench.harness.rounds import Spread, interleaved, neat


def test_contenders_take_turns_and_each_round_begins_with_another_one() -> None:
    order: list[str] = []

    def contender(name: str, figure: float) -> float:
        order.append(name)
        return figure

    found = interleaved({"a": lambda: contender("a", 1), "b": lambda: contender("b", 2)}, 3)
    assert "".join(order) == "abbaab"
    assert found == {"a": Spread((1, 1, 1)), "b": Spread((2, 2, 2))}


def test_a_spread_is_told_with_its_median_and_its_ends() -> None:
    told = Spread((3, 1.23456, 2)).told()
    assert told == {"median": 2, "least": 1.235, "most": 3, "rounds": [3, 1.235, 2]}


def test_figures_have_four_digits() -> None:
    assert [neat(figure) for figure in (0.123456, 12345.6, 3.0, 0)] == [0.1235, 12350, 3, 0]
