"""Relay processes: the real data plane, from WebSocket frames to conditional writes, over a store in memory.

Several run on one database. They crash at every commit and at any other moment; the database is what remains.
"""

from collections.abc import Callable
from random import Random
from typing import Final
from unittest import mock

import trio

from sealwire_relay import wheel
from sealwire_relay.dataplane import DataPlane
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from tests.simulation.agenda import Agenda
from tests.simulation.faults import Faults
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Wire
from tests.simulation.past import Past
from tests.simulation.store import FaultyStore

ORIGIN: Final = "wss://relay.test"
SWEEP_SECONDS: Final = 3.0
TICK_SECONDS: Final = 5.0
"""How late the relay notices that a deadline has passed: later than in production, where a tick costs nothing."""


class RelayProcess:
    """One process: started again, with nothing in memory, whenever it has died."""

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
        self.loop = VirtualLoop(agenda)
        self.loop.bury()  # each start makes one of its own
        self.plane: DataPlane | None = None
        self.wires: list[Wire] = []
        self.healed = False
        self._died = trio.Event()

    def crash(self) -> None:
        """The process is gone: what it had in memory and on its connections is lost."""
        self.dead = self.loop.halted = True
        for wire in list(self.wires):
            wire.cut()
        self._died.set()

    def stop(self) -> None:
        """End it in good order."""
        if self.plane is not None and not self.dead:
            self.loop.begin(self.plane.stop()).add_done_callback(lambda _: self.crash())

    def database_restarted(self) -> None:
        """The process finds its database changed, with connections open."""
        if self.plane is not None and not self.dead:
            self._changed()
            self.loop.begin(self.plane.settle())

    def _changed(self) -> None:
        assert self.plane is not None
        self.plane.server_changed()

    async def run(self) -> None:
        """Serve; after every death serve again. Cancelled: nothing is left behind."""
        try:
            with mock.patch.object(wheel, "TICK_SECONDS", TICK_SECONDS):
                await self._serve()
        finally:
            self.dead = True
            if not self.loop.is_closed():
                self.loop.bury()

    async def _serve(self) -> None:
        settings = Settings(origins=(ORIGIN,), sweep_seconds=SWEEP_SECONDS)
        while True:
            self.dead, self.loop, self._died = False, VirtualLoop(self.agenda), trio.Event()
            store = FaultyStore(self, self._past, self._changed)
            self.loop.begin(store.open())
            self.plane = DataPlane(store, settings, Metrics(), verify)
            self.loop.begin(self.plane.start())
            await self._died.wait()
            self.loop.bury()
            for error in self.loop.errors:
                self._failed(f"the relay failed: {error}")
            await trio.sleep(0 if self.healed else self.random.uniform(0, 3))
