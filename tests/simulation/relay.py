"""Relay processes: the real data plane, from WebSocket frames to conditional writes, over a store in memory.

Several run on one database. They crash at every commit and at any other moment; the database is what remains.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final
from unittest import mock

import trio

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import DeviceKey, StreamId, VaultId
from sealwire_relay import wheel
from sealwire_relay.dataplane import DataPlane
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from sealwire_relay.store.interface import (
    GuardName,
    OutcomeUnknownError,
    Page,
    StoreDownError,
    Subscription,
    VaultWrite,
)
from sealwire_relay.store.memory import MemoryDatabase, MemoryStore
from tests.simulation import faults
from tests.simulation.agenda import GRAIN_SECONDS, Agenda
from tests.simulation.faults import Faults
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Wire

ORIGIN: Final = "wss://relay.test"
COMMIT_GRAINS_MAX: Final = 6
"""How long a call of the database takes, there and back; half of them take no time."""
AWAY_SECONDS_MAX: Final = 5.0
SWEEP_SECONDS: Final = 3.0
TICK_SECONDS: Final = 5.0
"""How late the relay notices that a deadline has passed: later than in production, where a tick costs nothing."""


class FaultyStore(MemoryStore):
    """A store whose calls take time, fail, and sometimes do not say whether they were carried out."""

    def __init__(self, process: "RelayProcess", database: MemoryDatabase) -> None:
        super().__init__(random_bytes=process.random.randbytes, clock=process.agenda.current_time, database=database)
        self._process, self._random, self._armed = process, process.random, process.faults
        self._away_until = 0.0

    async def _travel(self) -> None:
        grains = self._random.randint(-COMMIT_GRAINS_MAX, COMMIT_GRAINS_MAX)
        if grains > 0:
            await asyncio.sleep(grains * GRAIN_SECONDS)

    async def _wait(self) -> None:
        await self._travel()
        if self._armed.strikes("relays", faults.STORE_DOWN):
            self._away_until = self._process.agenda.current_time() + self._random.uniform(0, AWAY_SECONDS_MAX)
        if self._process.dead or self._process.agenda.current_time() < self._away_until:
            raise StoreDownError("the database is away")

    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """As the store's; takes time on the way back, so that what it tells can be old."""
        await self._wait()
        told = await super().subscription(vault, device, streams)
        await self._travel()
        return told

    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """As the store's; takes time on the way back."""
        await self._wait()
        page = await super().read(vault, stream, after, bytes_max)
        await self._travel()
        return page

    async def guards(self, wanted: Sequence[GuardName]) -> dict[GuardName, Current]:
        """As the store's; takes time on the way back."""
        await self._wait()
        held = await super().guards(wanted)
        await self._travel()
        return held

    async def append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        """As the store's, with what can go wrong before and after the commit."""
        await self._wait()
        if self._armed.strikes("relays", faults.RELAY_CRASH_BEFORE):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("relays", faults.UNKNOWN_NOT_DONE):
            raise OutcomeUnknownError("the connection was lost before the commit")
        done = await super().append(writes)
        if self._armed.strikes("relays", faults.RELAY_CRASH_AFTER):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("relays", faults.UNKNOWN_DONE):
            raise OutcomeUnknownError("the connection was lost after the commit")
        await self._travel()
        return done


class RelayProcess:
    """One process: started again, with nothing in memory, whenever it has died."""

    def __init__(
        self,
        agenda: Agenda,
        database: MemoryDatabase,
        armed: Faults,
        random: Random,
        failed: Callable[[str], None],
    ) -> None:
        self.agenda, self.database, self.faults, self.random, self._failed = agenda, database, armed, random, failed
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
            self.plane.server_changed()
            self.loop.begin(self.plane.settle())

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
            store = FaultyStore(self, self.database)
            self.loop.begin(store.open())
            self.plane = DataPlane(store, settings, Metrics(), verify)
            self.loop.begin(self.plane.start())
            await self._died.wait()
            self.loop.bury()
            for error in self.loop.errors:
                self._failed(f"the relay failed: {error}")
            await trio.sleep(0 if self.healed else self.random.uniform(0, 3))
