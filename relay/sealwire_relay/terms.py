"""The relay's term (R7): one row of the database says which history it is; every process follows or opens the next."""

import asyncio
import logging
from collections.abc import Callable

from sealwire_protocol.ids import NO_TERM, Term
from sealwire_relay.metrics import Metrics
from sealwire_relay.store.interface import Store

_log = logging.getLogger("sealwire.terms")


class Terms:
    """The term under which this process writes. `changed` is called with every new one."""

    def __init__(self, store: Store, metrics: Metrics, changed: Callable[[Term], None]) -> None:
        self._store, self._metrics, self._changed = store, metrics, changed
        self._term = NO_TERM
        self._doubts = self._settled = 0
        self._lock = asyncio.Lock()

    @property
    def present(self) -> Term:
        """The term as last read or opened."""
        return self._term

    def doubt(self) -> None:
        """The database is not the one it was (restarted, restored, failed over): open the next term first."""
        self._doubts += 1

    @property
    def doubtful(self) -> bool:
        """True until the next term is open."""
        return self._doubts != self._settled

    async def open(self) -> Term:
        """Open the next term. Raises StoreError; doubt stays then, as it does if it is raised again meanwhile."""
        async with self._lock:
            return await self._open()

    async def now(self) -> Term:
        """The term to write under: opens the next one if the database came back changed. Raises StoreError."""
        if not self.doubtful:
            return self._term
        async with self._lock:
            settled_meanwhile = self._settled == self._doubts
            return self._term if settled_meanwhile else await self._open()

    async def refresh(self) -> Term:
        """Read the term again: adopt a higher one; open the next if history went backwards. Raises StoreError."""
        async with self._lock:
            return await self._read()

    async def _open(self) -> Term:
        doubts = self._doubts
        term = await self._store.open_term()
        self._settled = doubts
        _log.info("Term %d begins: this relay has opened it.", term.number)
        self._adopt(term)
        return term

    async def _read(self) -> Term:
        if self.doubtful:
            return await self._open()
        term = await self._store.current_term()
        if self._doubts != self._settled:  # the row that was read is of another history
            return await self._open()
        if term == self._term:
            return term
        if term.number <= self._term.number:
            _log.warning("the database shows term %d where %d was known: history was lost", *_numbers(term, self._term))
            return await self._open()
        _log.info("Term %d has begun: another relay has opened it.", term.number)
        self._adopt(term)
        return term

    def _adopt(self, term: Term) -> None:
        if term != self._term:
            self._term = term
            self._metrics.term.set(term.number)
            self._changed(term)


def _numbers(*terms: Term) -> tuple[int, ...]:
    return tuple(term.number for term in terms)
