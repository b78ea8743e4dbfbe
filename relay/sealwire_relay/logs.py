"""Membership logs as far as this process has followed them: what is new of one is read, and nothing twice.

A link is judged by all that came before it. In a vault with a thousand members that is a megabyte, which is not to be
read and taken apart anew for each of a thousand links.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from sealwire_protocol.ids import Term, VaultId
from sealwire_protocol.links import link_hash
from sealwire_protocol.membership import Membership, verified_before
from sealwire_relay.store.interface import Store

LINKS_KEPT_MAX: Final = 100_000
"""Links of all logs that are kept, some 700 bytes each: the largest vaults of many, or small ones in thousands. The log
that was asked for least recently is forgotten first, and read whole when it is asked for again; one is always kept."""


class Followed(NamedTuple):
    """A log to its end: the newest term written in it, and whom it makes members. The membership is not to be changed:
    a copy of it may grow."""

    term: Term
    membership: Membership


class Logs:
    """The logs of one store. What others do to a log shows at the next look, for it is always looked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[VaultId, Membership] = OrderedDict()
        self._links = 0

    async def now(self, vault: VaultId) -> Followed | None:
        """A vault's log as the store has it; None: there is no such vault. Raises StoreError.

        What is known is the beginning of what is there if the last link that is known stands in its place: each names
        the one before it. So that link is read once more, with those behind it.
        """
        known = self._known.get(vault)
        if known is not None:
            log = await self._store.links(vault, known.head - 1)
            if log.links and link_hash(log.links[0]) == known.last_hash:
                return Followed(log.term, self._grown(vault, known, log.links[1:]))
        log = await self._store.links(vault)
        if not log.links:
            self._forget(vault)
            return None
        return Followed(log.term, self._grown(vault, Membership(), log.links))

    def _grown(self, vault: VaultId, known: Membership, more: Sequence[bytes]) -> Membership:
        grown = known.copy() if more else known
        for raw in more:
            grown.apply(raw, verified_before)
        self._forget(vault)
        self._known[vault] = grown
        self._links += grown.head
        while self._links > LINKS_KEPT_MAX and len(self._known) > 1:
            self._forget(next(iter(self._known)))
        return grown

    def _forget(self, vault: VaultId) -> None:
        known = self._known.pop(vault, None)
        self._links -= known.head if known is not None else 0
