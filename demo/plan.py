"""Which entries are edited when, by whom: decided before the story begins, the same in every run."""

from collections.abc import Iterator, Mapping
from typing import Final

from demo.characters import Character
from demo.ledger import Edit

WHILE_JOINING: Final = 10
LIVE: Final = 100
"""Edits of which the latency is measured: enough for a 95th percentile, few enough not to swell the log, in which
each is a segment of its own."""

OWN: Final = 12
"""Entries that each device edits alone when the relay is killed; the first edits still reach the relay."""

SAME: Final = 10
"""Entries that both edit offline."""

NEW_AND_DELETED: Final = 2
"""Entries that each device adds offline, and as many that it deletes."""

LAST: Final = 20
"""Entries that device A edits when it is killed itself."""

ENTRIES_MIN: Final = 1_000
"""Enough that all of these are different entries."""

NEW_FROM: Final = 0xF0000
"""Code points for private use: they have no names yet."""


class Plan:
    """The edits of all phases. Every one gives its entry a value that no other gives."""

    def __init__(self, initial: Mapping[str, Character]) -> None:
        self._initial = initial
        self._edits = 0
        step = max(1, len(initial) // ENTRIES_MIN)
        self._keys = iter(list(initial)[::step])
        self.while_joining = [self._edit(key, "A") for key in self._next(WHILE_JOINING)]
        self.live = [self._edit(key, "A") for key in self._next(LIVE)]
        self.conflicts = list(self._next(SAME))
        self.offline = {device: self._offline(device, place) for place, device in enumerate("AB")}
        self.last = [self._edit(key, "A") for key in self._next(LAST)]

    def _next(self, count: int) -> Iterator[str]:
        return (next(self._keys) for _ in range(count))

    def _edit(self, key: str, device: str) -> Edit:
        self._edits += 1
        character = self._initial[key]
        return key, (f"EDIT {self._edits:03} BY {device}", character.category, character.numeric)

    def _offline(self, device: str, place: int) -> list[Edit]:
        """Own entries first, so that those which both edit come when the relay is gone."""
        own = [self._edit(key, device) for key in self._next(OWN)]
        deleted: list[Edit] = [(key, None) for key in self._next(NEW_AND_DELETED)]
        points = range(NEW_FROM + place * NEW_AND_DELETED, NEW_FROM + (place + 1) * NEW_AND_DELETED)
        new: list[Edit] = [(f"{point:04X}", (f"PRIVATE {point:X} OF {device}", "Co", None)) for point in points]
        return [*own, *deleted, *new, *(self._edit(key, device) for key in self.conflicts)]
