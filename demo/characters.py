"""The demo's real input: every named character of Unicode, as the standard library knows them."""

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Final

VAULT: Final = "Ada's reading room"
COLLECTION: Final = "characters_of_unicode"
DEVICES: Final = {"A": "Ada's laptop", "B": "Ada's telephone"}
"""Names that nothing but the demo's data holds, so that finding one at the relay means a leak."""

CODE_POINTS: Final = 0x110000


@dataclass(frozen=True, slots=True)
class Character:
    """One entry; its key is the code point in hex, as in U+1F600."""

    name: str
    category: str
    numeric: float | None


Fields = tuple[str, str, float | None]
"""A character as it travels in JSON."""


@cache
def _named() -> list[int]:
    return [point for point in range(CODE_POINTS) if unicodedata.name(chr(point), "")]


def available() -> int:
    """How many named characters this Python knows."""
    return len(_named())


def characters(count: int) -> dict[str, Character]:
    """`count` named characters, evenly spread over all of them, by key."""
    named = _named()
    chosen = (named[place * len(named) // count] for place in range(count))
    return {f"{point:04X}": _character(chr(point)) for point in chosen}


def _character(char: str) -> Character:
    return Character(unicodedata.name(char), unicodedata.category(char), unicodedata.numeric(char, None))


def fields(character: Character | None) -> Fields | None:
    """A character as JSON can carry it."""
    return None if character is None else (character.name, character.category, character.numeric)
