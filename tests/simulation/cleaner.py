"""The cleaner: the real one, and the real purge, over the relays' store. It dies in swaps and at any other moment."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final

import trio

from sealwire_relay.cleaner import Cleaner
from sealwire_relay.purging import Purger
from sealwire_relay.retention import Retention
from sealwire_relay.store.interface import StoreError
from tests.simulation.agenda import Agenda
from tests.simulation.faults import Faults
from tests.simulation.loop import VirtualLoop
from tests.simulation.past import CUTOFF_SECONDS, RETENTION_SECONDS, Past
from tests.simulation.store import FaultyStore

PAUSE_SECONDS_MAX: Final = 60.0
"""The longest pause between two looks: a run lasts some minutes."""

RECORDS_MAX: Final = 64
"""Records of one step: few, so that a stream takes several."""

TOMBSTONES_MAX: Final = 4
"""Tombstones of one step of the purge: the same."""


class CleanerProcess:
    """One process: started again whenever it has died. Two of them clean the same logs."""

    def __init__(
        self,
        agenda: Agenda,
        past: Past,
        armed: Faults,
        random: Random,
        failed: Callable[[str], None],
    ) -> None:
        self.agenda, self.faults, self.random, self._failed = agenda, armed, random, failed
        self._past = past
        self.dead = True
        self._died = trio.Event()
        self.loop = VirtualLoop(agenda)
        self.loop.bury()  # each start makes one of its own

    def crash(self) -> None:
        """The process is gone."""
        self.dead = self.loop.halted = True
        self._died.set()

    async def run(self) -> None:
        """Clean; after every death begin anew. Cancelled: nothing is left behind."""
        try:
            while True:
                self.dead, self.loop, self._died = False, VirtualLoop(self.agenda), trio.Event()
                self.loop.begin(self._clean())
                await self._died.wait()
                self.loop.bury()
                for error in self.loop.errors:
                    self._failed(f"the cleaner failed: {error}")
                await trio.sleep(self.random.uniform(0, PAUSE_SECONDS_MAX))
        finally:
            self.dead = True
            if not self.loop.is_closed():
                self.loop.bury()

    async def _clean(self) -> None:
        store = FaultyStore(self, self._past)
        cleaner = Cleaner(store, RECORDS_MAX)
        purger = Purger(store, Retention(RETENTION_SECONDS, CUTOFF_SECONDS), TOMBSTONES_MAX)
        while True:
            await asyncio.sleep(self.random.uniform(0, PAUSE_SECONDS_MAX))
            await store.open()
            try:
                await cleaner.look(lambda dirty: True)
                await purger.look()
            except StoreError:
                continue  # the database was away; the next look goes on
