"""Deletes what is left of vaults that were deleted, in steps that nobody waits for."""

import logging
from typing import Final

from sealwire_relay.pace import Pace
from sealwire_relay.repeating import Repeating
from sealwire_relay.store.interface import Store

CLEAR_SECONDS: Final = 5.0
"""How often it is looked for vaults that were deleted: a look at a table that is empty mostly."""

ROWS_AT_ONCE: Final = 500
"""Of each kind, deleted in one step: of the largest segments 125 MB, some 0.2 s of the database."""

BUSY: Final = 0.5
"""Part of the time that is spent at it: whoever pushes meanwhile finds a database that has time for it."""

_log = logging.getLogger("sealwire.clearing")


class Clearing:
    """Looks and deletes while it runs. What one process leaves undone the next one finds, or another beside it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._repeating = Repeating(
            self.look,
            CLEAR_SECONDS,
            _log,
            failed="what is left of deleted vaults could not be deleted",
            well="what is left of deleted vaults is deleted again",
        )

    def start(self) -> None:
        """Begin to look."""
        self._repeating.start()

    async def stop(self) -> None:
        """Look no more. Safe twice, and without a start."""
        await self._repeating.stop()

    async def look(self) -> None:
        """Delete all that is left now. Raises StoreError; what was deleted until then is."""
        pace = Pace(BUSY)
        began = pace.time()
        while await self._store.clear(ROWS_AT_ONCE):
            began = await pace.rest(began)
