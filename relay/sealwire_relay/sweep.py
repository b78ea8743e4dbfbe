"""Looks, every so often, for what other relays on the same database have committed: new records, new terms, removals.

A hint that is never sent cannot be lost: whatever becomes of faster ways between relays, this one bounds how late a
device can be.
"""

import logging
from typing import Final

from sealwire_protocol.ids import MEMBERSHIP, Position, VaultId
from sealwire_relay.fanout import Fanout
from sealwire_relay.removals import Removals
from sealwire_relay.repeating import Repeating
from sealwire_relay.store.interface import Store
from sealwire_relay.terms import Terms

STREAMS_AT_ONCE: Final = 2_000
"""Streams asked for in one query: a few milliseconds of one connection."""

_log = logging.getLogger("sealwire.sweep")


class Sweep:
    """Compares the heads of streams that are listened to here, and of their membership logs, with the database's."""

    def __init__(self, store: Store, fanout: Fanout, removals: Removals, terms: Terms, seconds: float) -> None:
        self._store, self._fanout, self._removals, self._terms = store, fanout, removals, terms
        self._repeating = Repeating(
            self.look,
            seconds,
            _log,
            failed="other relays' commits could not be looked for",
            well="other relays' commits are found again",
        )

    def start(self) -> None:
        """Begin to look."""
        self._repeating.start()

    async def stop(self) -> None:
        """Look no more."""
        await self._repeating.stop()

    async def look(self) -> None:
        """Look once. Raises StoreError."""
        await self._terms.refresh()
        listened = self._fanout.listened()
        names = list({*listened, *((vault, MEMBERSHIP) for vault, _ in listened)})
        logs: dict[VaultId, Position] = {}
        for at in range(0, len(names), STREAMS_AT_ONCE):
            asked = names[at : at + STREAMS_AT_ONCE]
            before = self._fanout.heads(asked)
            heads = await self._store.heads(asked)
            for name, there in heads.items():
                self._fanout.looked(name, before.get(name), there)
                if name[1] == MEMBERSHIP:
                    logs[name[0]] = there
        await self._removals.compare(logs)
