"""Contenders measured in turn, round by round, so that what else the machine does meets all of them alike."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Final, NamedTuple

ROUNDS: Final = 5
ROUNDS_SHORT: Final = 1


class Spread(NamedTuple):
    """One figure over all rounds."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """What counts."""
        return median(self.rounds)

    def told(self) -> dict[str, object]:
        """As results have it."""
        return {
            "median": neat(self.median),
            "least": neat(min(self.rounds)),
            "most": neat(max(self.rounds)),
            "rounds": [neat(one) for one in self.rounds],
        }


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Spread]:
    """Measure each contender once a round; every round begins with another one, as the first may fare worse."""
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        begin = turn % len(names)
        for name in names[begin:] + names[:begin]:
            found[name].append(contenders[name]())
    return {name: Spread(tuple(figures)) for name, figures in found.items()}


def neat(figure: float) -> float:
    """Four significant digits: more says nothing."""
    rounded = float(f"{figure:.4g}")
    return int(rounded) if rounded.is_integer() else rounded
