"""What is written down of those who ask with an admin token, or for what needs one.

What a known token asks is written before it is answered. What strangers ask is written behind, and only so much of it:
whoever floods the relay with tokens costs it a statement a second, and some memory that is bounded.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from sealwire_relay.repeating import Repeating
from sealwire_relay.store.administration import Asked
from sealwire_relay.store.interface import Store, StoreError

FLUSH_SECONDS: Final = 1.0
"""How often what strangers ask is written."""

WAITING_MAX: Final = 64
"""Of what strangers ask in that time so much is written one by one, and then how much more there was: a flood of
requests must not push all that was written before out of the table at once."""

_log = logging.getLogger("sealwire.audit")


class Audit:
    """The audit of one relay process. `clock` tells Unix seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._waiting: list[Asked] = []
        self._more = 0
        self._repeating = Repeating(
            self.flush,
            FLUSH_SECONDS,
            _log,
            failed="what was asked of the relay could not be written down",
            well="what is asked of the relay is written down again",
        )

    async def write(self, token: bytes | None, address: str, asked: str, verdict: str) -> None:
        """Write down what was asked, durably. Raises StoreError."""
        await self._store.add_audit([Asked(self._clock(), token, address, asked, verdict)])

    def note(self, token: bytes | None, address: str, asked: str, verdict: str) -> None:
        """Have it written down soon, if there is not too much of it."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(Asked(self._clock(), token, address, asked, verdict))
        else:
            self._more += 1

    def start(self) -> None:
        """Begin to write every FLUSH_SECONDS."""
        self._repeating.start()

    async def stop(self) -> None:
        """Write what waits, if the store takes it, and end. Safe twice, and without a start."""
        if await self._repeating.stop():
            with contextlib.suppress(StoreError):
                await self.flush()

    async def flush(self) -> None:
        """Write what waits. Raises StoreError; then, or cancelled, it waits on."""
        waiting, more = self._waiting, self._more
        if not waiting:
            return
        told = [*waiting, waiting[-1]._replace(token=None, asked=f"{more} more like these")] if more else waiting
        await self._store.add_audit(told)
        self._waiting, self._more = self._waiting[len(waiting) :], self._more - more
        _log.warning("%d requests were refused that need an admin token, or showed one in vain", len(waiting) + more)
