"""Devices: real ones, on real SQLite in memory, whose process can die at every write and message.

What survives a crash is what was committed at that moment, and the keystore's file.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar, cast

import trio

from sealwire_client.collection import Collection
from sealwire_client.device import Device
from sealwire_client.invites import InviteError
from sealwire_client.link import RelayRefusedError
from sealwire_client.replica import InlineWriter, Replica, Runner
from sealwire_client.transport import Transport, TransportError
from sealwire_client.vault import Vault
from sealwire_protocol import codec
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import Push, Pushed, Subscribed
from tests.simulation import faults
from tests.simulation.disk import Disk
from tests.simulation.faults import Faults
from tests.simulation.history import History, Violation
from tests.simulation.network import Wire, connected
from tests.simulation.relay import ORIGIN
from tests.simulation.things import ACCOUNTS, KINDS, NOTES

T = TypeVar("T")

STATEMENTS_MAX: Final = 12
"""SQL statements of one write after which a crash within it may come."""

WRITES_MAX: Final = 50_000
"""Calls of the writers in a run, some ten times as many as it needs: more means that a device runs in circles."""


class Killed(BaseException):
    """The process of the device ends here."""


class DyingWriter(InlineWriter[Replica]):
    """The writer of production but for its thread; the process may end before, within and after what it runs."""

    def __init__(self, opens: Callable[[], Replica], owner: "SimDevice", generation: int) -> None:
        super().__init__(opens)
        self._owner, self._generation = owner, generation

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As the writer's; may be the last thing that happens."""
        owner = self._owner
        owner.check(self._generation)
        owner.world.writes += 1
        if owner.world.writes > WRITES_MAX:
            raise Violation(f"everything comes to rest: {owner.name} runs in circles")
        if owner.faults.strikes(owner.name, faults.DEVICE_CRASH_BEFORE):
            owner.die()
            raise Killed
        result = await super().run(self._watched, function, args, kwargs)
        if not owner.certain or owner.faults.strikes(owner.name, faults.DEVICE_CRASH_AFTER):
            owner.die()
            raise Killed
        return result

    async def run_grouped(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As the writer's; may be the last thing that happens."""

        def grouped(replica: Replica) -> Any:
            with replica.transaction():
                return function(replica, *args, **kwargs)

        return await self.run(grouped)

    def _watched(self, replica: Replica, function: Any, args: Any, kwargs: Any) -> Any:
        owner = self._owner
        owner.check(self._generation)
        owner.replica = replica
        owner.world.current = owner
        within = owner.faults.strikes(owner.name, faults.DEVICE_CRASH_WITHIN)
        owner.certain = not within
        if within:
            self._snapshot_at(replica, owner.random.randrange(STATEMENTS_MAX))
        return function(replica, *args, **kwargs)

    def _snapshot_at(self, replica: Replica, statement: int) -> None:
        owner, connection = self._owner, replica.database.connection
        left, committed = [statement], [owner.disk.image()]

        def count(sql: str) -> None:
            left[0] -= 1
            if not connection.in_transaction:
                committed[0] = owner.disk.image()
            if left[0] == 0:
                owner.survives = committed[0]

        connection.set_trace_callback(count)


class SimDevice:
    """One installation: its folder, and the process that is running in it, if any is."""

    def __init__(self, name: str, world: Any, folder: Path, random: Random, starts_at: float) -> None:
        self.name, self.world, self.random, self.starts_at = name, world, random, starts_at
        self.history: History = world.history
        self.faults: Faults = world.faults
        self.folder, self.disk, self.generation = folder / name, Disk(), 0
        self.survives: bytes | None = None
        """From this moment on nothing reaches the disk."""
        self.alive = self.offline = False
        self.names = {NOTES, ACCOUNTS}
        """Collections that its app opens."""
        self.certain = True
        self.replica: Replica | None = None
        self.device: Device | None = None
        self.vault: Vault | None = None
        self.open: dict[str, Collection[Any]] = {}
        self.tops: dict[StreamId, int] = {}
        """The greatest version of each stream, as the relay has told last."""
        self._scopes: set[trio.CancelScope] = set()
        self._wires: list[Wire] = []
        self.ready = False
        self.paused = False
        """Its app does nothing for a while."""
        self.left = self.hurries = 0
        """How many operations it still has to do, and how many of them concern what others have changed as well."""
        self._moved = trio.Event()

    # --- the process

    async def until_ready(self) -> None:
        """Wait until the process is up, with its vault and collections open."""
        while not self.ready:
            await self._moved.wait()

    def check(self, generation: int) -> None:
        """Raises Killed in what a dead process still does."""
        if not self.alive or generation != self.generation:
            raise Killed

    def die(self) -> None:
        """The process ends: nothing more is said or written."""
        if not self.alive:
            return
        if self.survives is None and self.replica is not None:
            self.survives = self.disk.image()
        self.alive = False
        self.ready = False
        self.history.add("died", self.name)
        for wire in self._wires:
            wire.cut()
        for scope in list(self._scopes):
            scope.cancel()

    async def run(self) -> None:
        """Be installed, and start again after every crash."""
        await trio.sleep(self.starts_at)
        while True:
            self.alive, self.survives = True, None
            self.replica, self.device, self.vault, self.open = None, None, None, {}
            self.tops.clear()
            self.history.add("started", self.name)
            await self.during(self._live)
            self._leave_behind()
            self.generation += 1
            await self.world.agenda.rest(0 if self.world.healed else self.random.uniform(0, 20))

    def _leave_behind(self) -> None:
        if self.survives is not None:
            self.disk.kept = self.survives

    async def during(self, function: Callable[[], Awaitable[T]]) -> T | None:
        """Do something within the process. None if it has ended meanwhile."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await function()
            except BaseException:
                if not scope.cancel_called:
                    raise  # else the process has ended, and what its parts make of that reaches nobody
            finally:
                self._scopes.discard(scope)
        return None

    async def _live(self) -> None:
        generation = self.generation

        async def opens(make: Callable[[], Replica]) -> Runner[Replica]:
            return cast("Runner[Replica]", DyingWriter(make, self, generation))

        async with Device.open(self.folder, relay=ORIGIN, dialler=self._dial, writer=opens) as device:
            self.device = device
            if device.vaults:
                vault = device.vaults[0]
            elif self is self.world.host:
                vault = await device.create_vault("home")
            else:
                vault = await self._join(device)
            self.vault = vault
            for name in KINDS.keys() & self.names:
                await self.open_collection(name)
            self.ready = True
            self._moved.set()
            self._moved = trio.Event()
            await trio.sleep_forever()

    async def _join(self, device: Device) -> Vault:
        while True:
            link = await self.world.invite()
            if link is not None:
                with trio.move_on_after(100):
                    try:
                        return await device.join(link)
                    except (InviteError, RelayRefusedError):
                        self.history.add("invite failed", self.name)
            await trio.sleep(1)

    async def open_collection(self, name: str) -> None:
        """Open a collection, which is then kept in step."""
        assert self.vault is not None
        kind, policy = KINDS[name]
        self.open[name] = await self.vault.collection(name, kind, policy=policy)

    def stream(self, name: str) -> StreamId:
        """The stream of a collection."""
        assert self.vault is not None
        return self.vault._sync.keys.stream_id(name)

    # --- the network

    @asynccontextmanager
    async def _dial(self, origin: str) -> AsyncIterator[Transport]:
        await self.world.agenda.rest(self.random.uniform(0, 0.2))
        if self.offline or not self.alive:
            raise TransportError("there is no network")
        wire = self.world.wire(self.name)
        wire.on_send, wire.on_receive = self._sending, self._receiving
        self._wires.append(wire)
        try:
            async with connected(wire) as transport:
                yield transport
        finally:
            self._wires.remove(wire)

    def go_offline(self) -> None:
        """The network is away."""
        self.offline = True
        for wire in self._wires:
            wire.cut()

    def slow_down(self) -> None:
        """The present connection is slow from now on."""
        for wire in self._wires:
            wire.slow = True

    def _sending(self, data: bytes) -> None:
        if not self.alive:
            raise Killed
        message = codec.decode(data) if data[0] == Push.TYPE else None
        if isinstance(message, Push):
            self.history.pushed(self.name, message)
            if self.faults.strikes(self.name, faults.DEVICE_CRASH_SENDING):
                if self.random.random() < 0.5:
                    self._wires[-1].leave(data)
                self.die()
                raise Killed

    def _receiving(self, data: bytes) -> None:
        if not self.alive:
            raise Killed
        message = codec.decode(data) if data[0] in (Pushed.TYPE, Subscribed.TYPE) else None
        if isinstance(message, Subscribed):
            self.tops.update({state.stream: state.top for state in message.streams})
        if isinstance(message, Pushed):
            if message.outcome is Outcome.DONE:
                self.history.answered(self.name, message)
            elif message.outcome is not Outcome.SEAL_AGAIN:  # it may be of a key whose tombstone was purged meanwhile
                self.history.fail(f"no honest write is refused: {self.name}'s batch is {message.outcome.name}")
        if self.faults.strikes(self.name, faults.DEVICE_CRASH_RECEIVING):
            self.die()
            raise Killed
