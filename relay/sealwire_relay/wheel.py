"""One timer for all connections: a wheel of one-second slots. Nothing is allocated for a connection but its place."""

import asyncio
from typing import Final, Protocol

TICK_SECONDS: Final = 1.0
"""How late a deadline may be noticed. Pings, logins and idle limits are all tens of seconds."""


class Timed(Protocol):
    """Something that wants to be called at times."""

    def on_time(self, now: float) -> float | None:
        """Do what is due; return when to be called again, or None for never."""


class Wheel:
    """Calls each member at the tick after the time it asked for. Runs on the event loop it is started in."""

    def __init__(self) -> None:
        self._slots: dict[int, list[Timed]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._last = 0

    def start(self) -> None:
        """Begin to turn."""
        loop = asyncio.get_running_loop()
        self._last = int(loop.time())
        self._handle = loop.call_later(TICK_SECONDS, self._turn)

    def stop(self) -> None:
        """Stop turning; members are forgotten."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._slots.clear()

    def add(self, member: Timed, when: float) -> None:
        """Call `member.on_time` at the first tick after `when` (loop time, seconds)."""
        slot = max(int(when) + 1, self._last + 1)
        self._slots.setdefault(slot, []).append(member)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._handle = loop.call_later(TICK_SECONDS, self._turn)
        first, self._last = self._last + 1, int(now)
        for slot in range(first, self._last + 1):
            for member in self._slots.pop(slot, ()):
                again = member.on_time(now)
                if again is not None:
                    self.add(member, again)
