"""Types that a newer version of an app has more in: what a value is made of, before and after."""

from dataclasses import dataclass
from enum import Enum


class Color(Enum):
    RED = "red"


class MoreColors(Enum):
    """`Color` as a newer app has it: the older one cannot read all of it."""

    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Place:
    street: str = ""


@dataclass(frozen=True)
class PlaceWithZip:
    """`Place` as a newer app has it: the older one leaves be what it does not know."""

    street: str = ""
    zip: str = "none"
    height: float = 0.0
