"""What every entry must hold in the end: each edit that a device called durable counts, whoever made it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.characters import Character, Fields, fields

Value = Fields | None
"""None: there is no such entry, or it was deleted."""

Edit = tuple[str, Value]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Two replicas beside the ledger, entry by entry."""

    lost: list[str]
    """Keys whose value is on one device none of those that it may be."""
    differing: list[str]
    """Keys whose values differ between the devices."""
    entries: int
    conflicts: dict[str, int]
    """Entries that both devices edited offline, by the device whose edit was kept."""


class Ledger:
    """The initial entries, and all edits: attempted, and durable on their device."""

    def __init__(self, initial: Mapping[str, Character]) -> None:
        self._initial: dict[str, Value] = {key: fields(value) for key, value in initial.items()}
        self._durable: dict[str, dict[str, Value]] = {}
        self._begun: dict[str, dict[str, list[Value]]] = {}
        self.confirmed = 0

    def begin(self, device: str, edits: Iterable[Edit]) -> None:
        """Edits that the device is asked to make now. Those that are never confirmed may or may not be made."""
        for key, value in edits:
            self._begun.setdefault(key, {}).setdefault(device, []).append(value)

    def confirm(self, device: str, key: str) -> None:
        """The device says that its oldest unconfirmed edit of this entry is durable."""
        self._durable.setdefault(key, {})[device] = self._begun[key][device].pop(0)
        self.confirmed += 1

    def durable_of(self, device: str) -> dict[str, Value]:
        """The last durable edit of each entry that this device edited, if it has begun no later one."""
        return {
            key: by[device] for key, by in self._durable.items() if device in by and not self._begun[key].get(device)
        }

    def keys(self) -> set[str]:
        """Every key that ever had a value, or may have had."""
        return self._initial.keys() | self._begun.keys()

    def names(self) -> Iterator[str]:
        """Every name that was ever in a value."""
        values = [*self._initial.values(), *(value for by in self._durable.values() for value in by.values())]
        return (value[0] for value in values if value is not None)

    def edited(self) -> list[str]:
        """Keys that somebody began to edit."""
        return list(self._begun)

    def expected_entries(self) -> int:
        """How many entries there are, if every entry holds the value of its durable edit."""
        ends = {key: next(iter(by.values())) for key, by in self._durable.items()}
        return sum(value is not None for value in (self._initial | ends).values())

    def judge(self, a: Mapping[str, Value], b: Mapping[str, Value]) -> Verdict:
        """Compare two replicas with what is allowed."""
        keys = self._initial.keys() | self._begun.keys() | a.keys() | b.keys()
        lost, differing = [], []
        for key in sorted(keys):
            may_be = self._allowed(key)
            if a.get(key) not in may_be or b.get(key) not in may_be:
                lost.append(key)
            if a.get(key) != b.get(key):
                differing.append(key)
        conflicts: dict[str, int] = {}
        for key, by in self._durable.items():
            if len(by) > 1:
                for device, value in by.items():
                    conflicts[device] = conflicts.get(device, 0) + (a.get(key) == value)
        return Verdict(lost, differing, len(a), conflicts)

    def _allowed(self, key: str) -> list[Value]:
        durable = list(self._durable.get(key, {}).values())
        begun = [value for values in self._begun.get(key, {}).values() for value in values]
        return (durable or [self._initial.get(key)]) + begun


def read_dump(path: Path) -> dict[str, Value]:
    """A replica as a device has dumped it. A key that occurs twice is an error."""
    found: dict[str, Value] = {}
    for line in path.read_text().splitlines():
        key, value = json.loads(line)
        if key in found:
            raise ValueError(f"the entry {key} occurs twice in a replica")
        found[key] = as_value(value)
    return found


def as_value(raw: Any) -> Value:
    """A value as JSON has brought it."""
    return None if raw is None else (raw[0], raw[1], raw[2])
