"""What goes wrong: kinds of faults, which of them are due, and how many have happened."""

from collections import Counter
from random import Random
from typing import Final

CUT: Final = "connection cut at a message"
ANSWER_LOST: Final = "answer lost after the commit"
SILENCE: Final = "connection falls silent"
TWICE: Final = "delivery repeated"
SLOW: Final = "network slow"
UNKNOWN_DONE: Final = "outcome unknown, committed"
UNKNOWN_NOT_DONE: Final = "outcome unknown, not committed"
STORE_DOWN: Final = "database away"
RELAY_CRASH_BEFORE: Final = "relay crash before a commit"
RELAY_CRASH_AFTER: Final = "relay crash after a commit"
RELAY_CRASH: Final = "relay crash at any time"
RELAY_STOP: Final = "relay stopped in good order"
NEW_TERM: Final = "database restarted beneath the relay"
DEVICE_CRASH_BEFORE: Final = "device crash before a write"
DEVICE_CRASH_WITHIN: Final = "device crash within a write"
DEVICE_CRASH_AFTER: Final = "device crash after a write"
DEVICE_CRASH_SENDING: Final = "device crash at sending"
DEVICE_CRASH_RECEIVING: Final = "device crash at receiving"
CLEANER_CRASH: Final = "cleaner crash at any time"
CLEANER_CRASH_BEFORE: Final = "cleaner crash before a swap"
CLEANER_CRASH_AFTER: Final = "cleaner crash after a swap"
SWAP_UNKNOWN: Final = "outcome of a swap unknown"
RESTORE: Final = "database restored to an earlier moment"
CLOCK: Final = "clock jump"
OFFLINE: Final = "device offline"
ABSENT: Final = "device away for longer than it is waited for"

OF_DEVICES: Final = (
    CUT,
    ANSWER_LOST,
    SILENCE,
    TWICE,
    SLOW,
    DEVICE_CRASH_BEFORE,
    DEVICE_CRASH_WITHIN,
    DEVICE_CRASH_AFTER,
    DEVICE_CRASH_SENDING,
    DEVICE_CRASH_RECEIVING,
)
OF_RELAYS: Final = (
    UNKNOWN_DONE,
    UNKNOWN_NOT_DONE,
    STORE_DOWN,
    RELAY_CRASH_BEFORE,
    RELAY_CRASH_AFTER,
    RELAY_CRASH,
    RELAY_STOP,
    NEW_TERM,
)
OF_CLEANERS: Final = (CLEANER_CRASH, CLEANER_CRASH_BEFORE, CLEANER_CRASH_AFTER, SWAP_UNKNOWN)
OF_ITSELF: Final = (RESTORE, OFFLINE, ABSENT)
"""What comes in its own time, and is not chosen among others."""
ALL: Final = (*OF_DEVICES, *OF_RELAYS, *OF_CLEANERS, CLOCK, *OF_ITSELF)

FAULTS_MIN: Final = 30
"""Faults that must have happened in a run before it may come to rest."""


class Faults:
    """Faults that wait at a place for their moment, and those that have happened."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.happened: Counter[str] = Counter()
        self._due: dict[tuple[object, str], int] = {}

    def arm(self, place: object, kind: str, after: int) -> None:
        """Let it happen at a place, when so many more occasions have passed."""
        self._due[place, kind] = after

    def strikes(self, place: object, kind: str) -> bool:
        """An occasion: True if the fault happens now."""
        left = self._due.get((place, kind))
        if left is None:
            return False
        if left > 0:
            self._due[place, kind] = left - 1
            return False
        del self._due[place, kind]
        self.happened[kind] += 1
        return True

    def disarm(self) -> None:
        """From now on nothing goes wrong."""
        self._due.clear()

    @property
    def total(self) -> int:
        """How many have happened."""
        return self.happened.total()

    @property
    def expected(self) -> int:
        """How many have happened, or wait for their moment."""
        return self.total + len(self._due)
