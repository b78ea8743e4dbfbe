"""Relay processes: the real data plane, from WebSocket frames to conditional writes, over a store in memory.

Several run on one database. They crash at every commit and at any other moment; the database is what remains.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import trio

from sealwire_protocol.ids import DeviceKey, StreamId, VaultId
from sealwire_relay.dataplane import DataPlane
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from sealwire_relay.store.interface import OutcomeUnknownError, Page, StoreDownError, Subscription, VaultWrite
from sealwire_relay.store.memory import MemoryDatabase, MemoryStore
from tests.simulation import faults
from tests.simulation.faults import Faults
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Wire

ORIGIN: Final = "wss://relay.test"
COMMIT_SECONDS_MAX: Final = 0.1
AWAY_SECONDS_MAX: Final = 5.0
SWEEP_SECONDS: Final = 2.0


class FaultyStore(MemoryStore):
    """A store whose calls take time, fail, and sometimes do not say whether they were carried out."""

    def __init__(self, process: "RelayProcess", database: MemoryDatabase) -> None:
        super().__init__(random_bytes=process.random.randbytes, clock=trio.current_time, database=database)
        self._process, self._random, self._armed = process, process.random, process.faults
        self._away_until = 0.0

    async def _wait(self) -> None:
        await asyncio.sleep(self._random.uniform(0, COMMIT_SECONDS_MAX))
        if self._armed.strikes("relays", faults.STORE_DOWN):
            self._away_until = trio.current_time() + self._random.uniform(0, AWAY_SECONDS_MAX)
        if self._process.dead or trio.current_time() < self._away_until:
            raise StoreDownError("the database is away")

    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """As the store's; takes time on the way back, so that what it tells can be old."""
        await self._wait()
        told = await super().subscription(vault, device, streams)
        await asyncio.sleep(self._random.uniform(0, COMMIT_SECONDS_MAX))
        return told

    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """As the store's; takes time on the way back."""
        await self._wait()
        page = await super().read(vault, stream, after, bytes_max)
        await asyncio.sleep(self._random.uniform(0, COMMIT_SECONDS_MAX))
        return page

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
        await asyncio.sleep(self._random.uniform(0, COMMIT_SECONDS_MAX))
        return done


class RelayProcess:
    """One process: started again, with nothing in memory, whenever it has died."""

    def __init__(self, database: MemoryDatabase, armed: Faults, random: Random, failed: Callable[[str], None]) -> None:
        self.database, self.faults, self.random, self._failed = database, armed, random, failed
        self.dead = True
        self.loop = VirtualLoop()
        self.loop.close()  # each start makes one of its own
        self.plane: DataPlane | None = None
        self.wires: list[Wire] = []
        self.healed = False
        self._wake = trio.Event()

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Let the process do this in its next turn."""
        if not self.dead:
            self.loop.call_soon(function, *args)
            self._wake.set()

    def crash(self) -> None:
        """The process is gone: what it had in memory and on its connections is lost."""
        self.dead = True
        for wire in list(self.wires):
            wire.cut()
        self._wake.set()

    def stop(self) -> None:
        """End it in good order."""
        if self.plane is not None and not self.dead:
            task = self.loop.create_task(self.plane.stop())
            task.add_done_callback(lambda _: self.crash())
            self._wake.set()

    def database_restarted(self) -> None:
        """The process finds its database changed, with connections open."""
        if self.plane is not None and not self.dead:
            self.plane.server_changed()
            self.loop.create_task(self.plane.settle())
            self._wake.set()

    async def run(self) -> None:
        """Serve; after every death serve again. Cancelled: nothing is left behind."""
        try:
            await self._serve()
        finally:
            self.dead = True
            if not self.loop.is_closed():
                self.loop.bury()

    async def _serve(self) -> None:
        settings = Settings(origins=(ORIGIN,), sweep_seconds=SWEEP_SECONDS)
        while True:
            self.dead, self.loop = False, VirtualLoop()
            store = FaultyStore(self, self.database)
            self.loop.create_task(store.open())
            self.plane = DataPlane(store, settings, Metrics(), verify)
            self.loop.create_task(self.plane.start())
            while not self.dead:
                self._wake = trio.Event()
                self.loop.turn()
                next_at = self.loop.next_at()
                with trio.move_on_at(next_at if next_at is not None else trio.current_time() + 1):
                    if not self.dead:
                        await self._wake.wait()
            self.loop.bury()
            for error in self.loop.errors:
                self._failed(f"the relay failed: {error}")
            await trio.sleep(0 if self.healed else self.random.uniform(0, 3))
