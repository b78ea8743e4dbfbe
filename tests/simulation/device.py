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
from sealwire_client.keyring import EpochKey
from sealwire_client.link import RelayRefusedError
from sealwire_client.replica import InlineWriter, Replica, Runner
from sealwire_client.transport import Transport, TransportError
from sealwire_client.vault import Vault
from sealwire_protocol import codec
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import RESEAL, Push, Pushed, Subscribed
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
        if owner.faults.strikes(owner.place, faults.DEVICE_CRASH_BEFORE):
            owner.die()
            raise Killed
        result = await super().run(self._watched, function, args, kwargs)
        if not owner.certain or owner.faults.strikes(owner.place, faults.DEVICE_CRASH_AFTER):
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
        within = owner.faults.strikes(owner.place, faults.DEVICE_CRASH_WITHIN)
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
        self.place: Final = name
        """The name under which faults wait for it. As a device of the vault it has another one each time it comes."""
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
        self.removed = self.surely_removed = False
        """An admin was asked to remove it; the admin was told that it is done."""
        self.paused = False
        """Its app does nothing for a while."""
        self.left = self.hurries = 0
        """How many operations it still has to do, and how many of them concern what others have changed as well."""
        self.is_out = False
        """It has left the vault, and holds nothing of it."""
        self.leaves, self.returns = trio.Event(), trio.Event()
        """Its app has begun to leave; asks to be invited again."""
        self.keys_left: list[EpochKey] = []
        """The keys that it had when it left."""
        self._moved = trio.Event()

    # --- the process

    async def until_ready(self) -> None:
        """Wait until the process is up, with its vault and collections open."""
        while not self.ready:
            await self._moved.wait()

    async def until_out(self) -> None:
        """Wait until the vault is gone from the device, or there is an app again that can ask for that."""
        while not self.ready and not self.is_out:
            await self._moved.wait()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

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
        """Do something within the process. None if it has ended meanwhile, or before."""
        if not self.alive:
            return None
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
            while True:
                self.vault = vault = await self._enter(device)
                for name in KINDS.keys() & self.names:
                    await self.open_collection(name)
                self.ready = True
                self._move()
                await self.leaves.wait()
                while vault in device.vaults:
                    await self.world.agenda.rest(1)
                self._is_gone()

    async def _enter(self, device: Device) -> Vault:
        vault = device.vaults[0] if device.vaults else await self._come_in(device)
        if self.is_out:  # it has come in again, maybe while it went down
            self.is_out = self.removed = self.surely_removed = False
            self.leaves, self.name = trio.Event(), f"{self.name} again"
        return vault

    async def _come_in(self, device: Device) -> Vault:
        if self is self.world.host:
            return await device.create_vault("home")
        if self.leaves.is_set():
            self._is_gone()
            await self.returns.wait()
        return await self._join(device)

    def _is_gone(self) -> None:
        """The device holds nothing of the vault any more."""
        if not self.is_out:
            self.world.did(self, "left")
            self.world.departed.add(self.name)
        self.ready, self.is_out, self.vault, self.open = False, True, None, {}
        self.tops.clear()
        self._move()

    async def discard_strict(self) -> None:
        """An app that has died over a strict write is told in the end that it was refused, and lets go of it."""
        vault = self.vault
        assert vault is not None
        for write in await self.during(vault.stuck) or ():
            if write.collection == ACCOUNTS:
                await self.during(lambda key=write.key: vault.discard(ACCOUNTS, key))  # type: ignore[misc]

    async def _join(self, device: Device) -> Vault:
        while True:
            vault = await self._try_to_join(device)
            if vault is not None:
                return vault
            await trio.sleep(1)

    async def _try_to_join(self, device: Device) -> Vault | None:
        link = await self.world.invite()
        if link is not None:
            with trio.move_on_after(100):
                try:
                    return await device.join(link)
                except (InviteError, RelayRefusedError):
                    self.history.add("invite failed", self.name)
        return None

    async def join_again(self) -> bool:
        """Come back after a removal. False: it has not succeeded yet."""
        assert self.device is not None
        return await self._try_to_join(self.device) is not None

    async def open_collection(self, name: str) -> None:
        """Open a collection, which is then kept in step."""
        assert self.vault is not None
        kind, policy = KINDS[name]
        self.open[name] = await self.vault.collection(name, kind, policy=policy)

    @property
    def member(self) -> int:
        """Which member of the vault it is: another one may come of two ends of the membership log (R15)."""
        assert self.vault is not None
        return self.vault._sync.held.author

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
        wire = self.world.wire(self.place)
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
            self.history.pushed(self.name, message, self.member)
            if self.faults.strikes(self.place, faults.DEVICE_CRASH_SENDING):
                if self.random.random() < 0.5:
                    self._wires[-1].leave(data)
                self.die()
                raise Killed

    def _was_sealed_anew(self, message: Pushed) -> bool:
        return bool(self.history.batch(self.name, message.batch, self.member).flags & RESEAL)

    def _judged(self, message: Pushed) -> None:
        if message.outcome is Outcome.DONE:
            self.history.answered(self.name, message, self.member)
            return
        self.history.turn_away(self.name, message.batch, self.member)
        if message.outcome is Outcome.EPOCH_STALE:
            self.world.members.stale(self.name, self.history.batch(self.name, message.batch, self.member))
        elif self._was_sealed_anew(message) and self.history.restores:
            pass  # of records that the relay has lost
        elif message.outcome is not Outcome.SEAL_AGAIN:  # it may be of a key whose tombstone was purged meanwhile
            self.history.fail(f"no honest write is refused: {self.name}'s batch is {message.outcome.name}")

    def _receiving(self, data: bytes) -> None:
        if not self.alive:
            raise Killed
        message = codec.decode(data) if data[0] in (Pushed.TYPE, Subscribed.TYPE) else None
        if isinstance(message, Subscribed):
            self.tops.update({state.stream: state.top for state in message.streams})
        if isinstance(message, Pushed):
            self._judged(message)
        if self.faults.strikes(self.place, faults.DEVICE_CRASH_RECEIVING):
            self.die()
            raise Killed
