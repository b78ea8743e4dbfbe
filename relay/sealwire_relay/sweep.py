"""Looks, every so often, for what other relays on the same database have committed: new records, and new terms.

A hint that is never sent cannot be lost: whatever becomes of faster ways between relays, this one bounds how late a
device can be.
"""

import asyncio
import logging
from typing import Final

from sealwire_relay.fanout import Fanout
from sealwire_relay.store.interface import Store, StoreError
from sealwire_relay.terms import Terms

STREAMS_AT_ONCE: Final = 2_000
"""Streams asked for in one query: a few milliseconds of one connection."""

_log = logging.getLogger("sealwire.sweep")


class Sweep:
    """Compares the heads of all streams that are listened to here with the database's."""

    def __init__(self, store: Store, fanout: Fanout, terms: Terms, seconds: float) -> None:
        self._store, self._fanout, self._terms, self._seconds = store, fanout, terms, seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except StoreError as error:
                _log.warning("other relays' commits could not be looked for: %s", error)
            except Exception:
                _log.exception("looking for other relays' commits failed; it is tried again")

    async def look(self) -> None:
        """Look once. Raises StoreError."""
        await self._terms.refresh()
        names = self._fanout.listened()
        for at in range(0, len(names), STREAMS_AT_ONCE):
            heads = await self._store.heads(names[at : at + STREAMS_AT_ONCE])
            for (vault, stream), head in heads.items():
                self._fanout.moved(vault, stream, head)
