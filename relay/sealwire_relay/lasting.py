"""A trouble that lasts, such as a full disk, is told when it begins, once a minute while it lasts, and when it ends."""

import logging
from collections.abc import Callable
from typing import Final

TOLD_SECONDS: Final = 60.0
"""Between two words on one trouble: whoever reads the log is reminded, and what else is in it can be found."""


class Lasting:
    """What may go wrong again and again, for one reason or another. `clock` tells seconds."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self._since: float | None = None
        self._told = 0.0
        self._kind: type[Exception] | None = None
        self._untold = 0

    def failed(self, error: Exception, text: str, *details: object) -> None:
        """It went wrong, once more; `text` and `details` are logged as a warning, the error behind them. Another kind
        of error is told at once."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif type(error) is self._kind and now - self._told < TOLD_SECONDS:
            self._untold += 1
            return
        more = f" (and {self._untold} times more since this was said last)" if self._untold else ""
        self._told, self._kind, self._untold = now, type(error), 0
        self._log.warning(f"{text}: %s{more}", *details, error)

    def went_well(self, text: str) -> None:
        """It went well; if it did not before, `text` is logged, with how long that lasted."""
        if self._since is None:
            return
        self._log.info("%s, after %.0f s", text, self._clock() - self._since)
        self._since, self._untold = None, 0
