"""One timer for all connections: a wheel of one-second slots. Nothing is allocated for a connection but its place."""

import asyncio
import logging
from typing import Final, Protocol

TICK_SECONDS: Final = 1.0
"""How late a deadline may be noticed. Pings, logins and idle limits are all tens of seconds."""


_log = logging.getLogger("sealwire.wheel")


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
        self._handle = loop.call_later(TICK_SECONDS, self._tick)

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

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(TICK_SECONDS, self._tick)
        self.turn(loop.time())

    def turn(self, now: float) -> None:
        """Call what is due at `now` (loop time, seconds). Time that stands still or runs backwards calls nobody."""
        self._last = max(self._last, int(now))
        for slot in sorted(slot for slot in self._slots if slot <= self._last):
            for member in self._slots.pop(slot):
                try:
                    again = member.on_time(now)
                except Exception:
                    _log.exception("a timed call failed; it is not made again")
                    continue
                if again is not None:
                    self.add(member, again)
