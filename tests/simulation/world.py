"""One seed: devices and relay processes, what the devices are asked to do, what goes wrong meanwhile, and how it ends.

Everything runs in one thread under a virtual clock. All that chance decides comes from the seed.
"""

import gc
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

import trio

from sealwire_client.encoding import schema_of
from sealwire_client.replica import ALONE, Replica, SealedGroup, Taken
from sealwire_client.replica import Collection as Held
from sealwire_client.replica import Edit as HeldEdit
from sealwire_client.replica.outbox import Outbox
from sealwire_client.sealing import Opener
from sealwire_client.vault import InviteExpiredError, PendingInvite
from sealwire_protocol.ids import MEMBERSHIP, StreamId
from sealwire_protocol.relay_session import RelayState
from sealwire_relay.store.memory import MemoryDatabase
from tests.simulation import faults
from tests.simulation.agenda import Agenda
from tests.simulation.chance import seeded
from tests.simulation.device import FIRST, LATE, Note, SimDevice
from tests.simulation.disk import inserted
from tests.simulation.faults import FAULTS_MAX, FAULTS_MIN, Faults
from tests.simulation.history import Call, Checker, Edit, History, Logged, Seal, Violation, read
from tests.simulation.network import Trace, Wire
from tests.simulation.relay import RelayProcess

DEVICES: Final = 5
RELAYS: Final = 2
OPERATIONS_OF_DEVICE: Final = 62
IDLE_CHANCE: Final = 0.15
"""How often a device pauses before an operation; what it does without a pause gathers in its outbox."""

KEYS: Final = 10
REST_SECONDS_MAX: Final = 600.0
"""Virtual time after the last fault within which everything must have come to rest."""

RUN_SECONDS_MAX: Final = 7_200.0

_SCHEMA = schema_of(Note)


@dataclass(frozen=True)
class Result:
    """What became of a seed."""

    seed: int
    violation: str | None
    digest: str
    steps: int
    virtual_seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)


class World:
    """All parts of one run."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = Random(f"world {seed}")
        self.agenda = Agenda(Random(f"agenda {seed}"))
        self.history = History()
        self.faults = Faults(Random(f"faults {seed}"))
        self.database = MemoryDatabase()
        self.operations: Counter[str] = Counter()
        self.healed = False
        self.writes = 0
        self.current: SimDevice | None = None
        self._wires = self._numbers = 0
        self._seed = seed
        self.relays = [
            RelayProcess(self.agenda, self.database, self.faults, Random(f"relay {seed} {n}"), self.history.fail)
            for n in range(RELAYS)
        ]
        starts = [0.0, 0.0, *(self.random.uniform(0, 20) for _ in range(DEVICES - 3)), self.random.uniform(20, 60)]
        self.devices = [
            SimDevice(f"device {n}", self, folder, Random(f"device {seed} {n}"), starts[n]) for n in range(DEVICES)
        ]
        self.host = self.devices[0]
        self._busy = DEVICES

    def wire(self, place: str) -> Wire:
        """A new connection of a device, to one of the relays."""
        self._wires += 1
        relay = self.random.choice(self.relays)
        return Wire(place, relay, self.faults, Random(f"wire {self._seed} {self._wires}"), Trace(self.history.add))

    async def invite(self) -> str | None:
        """An invite of the host's; None if the host dies over it."""
        host = self.host
        await host.until_ready()
        vault = host.vault
        if vault is None:
            return None
        with trio.move_on_after(60):
            pending = await host.during(vault.invite)
            if pending is not None:
                self._nursery.start_soon(host.during, lambda: self._approve(pending))
                return pending.link
        return None

    async def _approve(self, pending: PendingInvite) -> None:
        try:
            await pending.joined()
        except InviteExpiredError:
            self.history.add("invite expired", self.host.name)  # the joiner asks for another one

    # --- the run

    async def main(self) -> None:
        """Everything, from the first start to rest. Raises Violation."""
        with trio.fail_after(RUN_SECONDS_MAX):
            async with trio.open_nursery() as self._nursery:
                for relay in self.relays:
                    self._nursery.start_soon(relay.run)
                for device in self.devices:
                    self._nursery.start_soon(device.run)
                async with trio.open_nursery() as working:
                    for device in self.devices:
                        working.start_soon(self._work, device, Random(f"work {self._seed} {device.name}"))
                    working.start_soon(self._spoil)
                await self._rest()
                self._nursery.cancel_scope.cancel()

    async def _work(self, device: SimDevice, random: Random) -> None:
        """The operations of one device."""
        late_at = random.randrange(OPERATIONS_OF_DEVICE)
        for number in range(OPERATIONS_OF_DEVICE):
            if random.random() < IDLE_CHANCE:
                await self.agenda.rest(random.uniform(0, 4))
            await device.until_ready()
            if number == late_at:
                device.late = True
                self._did(device, "open late")
                await device.during(lambda: device.open_collection(LATE))
                continue
            await self._operation(device, random, random.random())
        self._busy -= 1

    async def _operation(self, device: SimDevice, random: Random, what: float) -> None:
        name = LATE if LATE in device.open and random.random() < 0.3 else FIRST
        key = f"key {random.randrange(KEYS)}"
        if what < 0.15:
            self._read(device, name, key)
        elif what < 0.72:
            await self._edit(device, "put", name, [(key, self._note(device))])
        elif what < 0.85:
            await self._edit(device, "delete", name, [(key, None)])
        elif what < 0.97:
            keys = random.sample(range(3 * KEYS), random.randint(2, 5))
            await self._edit(device, "put_many", name, [(f"key {k}", self._note(device)) for k in keys])
        elif what < 0.985:
            self._did(device, "offline")
            self.faults.happened[faults.OFFLINE] += 1
            device.go_offline()
            self._nursery.start_soon(self._back_online, device, random.uniform(1, 40), random.random() < 0.5)
        else:
            self._did(device, "wake")
            if device.device is not None:
                device.device.wake()

    async def _back_online(self, device: SimDevice, seconds: float, wakes: bool) -> None:
        await self.agenda.rest(seconds)
        device.offline = False
        self._did(device, "online")
        if wakes and device.device is not None:
            device.device.wake()

    def _note(self, device: SimDevice) -> Note:
        self._numbers += 1
        return Note(f"{self._numbers} of {device.name}")

    def _did(self, device: SimDevice, what: str) -> None:
        self.operations[what] += 1
        self.history.add(what, device.name)

    async def _edit(self, device: SimDevice, what: str, name: str, items: Sequence[tuple[str, Note | None]]) -> None:
        collection, stream = device.open[name], self._stream_at(device, name)
        self._did(device, what)
        for key, note in items:
            raw = None if note is None else _SCHEMA.encode(note)
            self.history.calls.append(Call(device.name, (stream, key), raw, self.history.step))
        puts = [(key, note) for key, note in items if note is not None]
        if len(puts) > 1:
            await device.during(lambda: collection.put_many(puts))
        elif puts:
            await device.during(lambda: collection.put(*puts[0]))
        else:
            await device.during(lambda: collection.delete(items[0][0]))

    def _read(self, device: SimDevice, name: str, key: str) -> None:
        """A device sees its own edits from the moment on in which they are durable."""
        self._did(device, "get")
        note = device.open[name].get(key)
        place = (self._stream_at(device, name), key)
        mine = self.history.unsealed(device.name, place)
        if mine is not None and mine.certain:
            shown = None if note is None else _SCHEMA.encode(note)
            if shown != mine.value:
                self.history.fail(f"a device sees its own edits: {device.name} does not see its edit of {key}")

    async def _spoil(self) -> None:
        """Faults, one after the other, for as long as there is work, and until there were enough."""
        random = self.faults.random
        while self.faults.total < FAULTS_MIN or (self._busy and self.faults.total < FAULTS_MAX):
            await self.agenda.rest(random.uniform(0.5, 5))
            kind = random.choice(faults.ALL)
            device, relay = random.choice(self.devices), random.choice(self.relays)
            if kind == faults.CLOCK:
                self.agenda.jump(random.choice((1.0, 30.0, 600.0)))
            elif kind == faults.OFFLINE:
                continue  # an operation of the devices
            elif kind == faults.SLOW:
                device.slow_down()
            elif kind == faults.RELAY_CRASH:
                relay.crash()
            elif kind == faults.RELAY_STOP:
                relay.stop()
            elif kind == faults.NEW_TERM:
                relay.database_restarted()
            elif kind in faults.OF_RELAYS:
                self.faults.arm("relays", kind, random.randrange(3))
                continue
            else:
                self.faults.arm(device.name, kind, random.randrange(8))
                continue
            self.faults.happened[kind] += 1
            self.history.add(kind, device.name)

    # --- the end

    async def _rest(self) -> None:
        self.healed = True
        self.faults.disarm()
        for relay in self.relays:
            relay.healed = True
            for wire in [wire for wire in relay.wires if wire.silent or wire.slow]:
                wire.cut()
        for device in self.devices:
            device.late = True
            device.offline = False
        why = await self._until_rest()
        if why is None:
            # One more edit, delivered twice to all, on connections that then stay: what they leak shows.
            for device in self.devices:
                self.faults.arm(device.name, faults.TWICE, 0)
            await self._edit(self.host, "put", FIRST, [("last", self._note(self.host))])
            why = await self._until_rest()
        if self.history.broken:
            raise Violation(self.history.broken)
        checker = self._checker()
        checker.check()
        if why is not None:
            raise Violation(f"everything comes to rest: {why}")
        self._replicas_agree(checker)
        await trio.sleep(5)  # acknowledgements are kept back for a second
        self._credit_came_home()

    async def _until_rest(self) -> str | None:
        """Wait for it. Returns why it has not come."""
        why: str | None = "nothing was looked at"
        with trio.move_on_after(REST_SECONDS_MAX):
            while why is not None:
                await trio.sleep(5)
                why = await self._restless()
        return why

    async def _restless(self) -> str | None:
        """Why it is not at rest yet, or None."""
        for device in self.devices:
            if not device.ready or device.vault is None:
                return f"{device.name} is not up"
            if LATE not in device.open:
                await device.during(lambda device=device: device.open_collection(LATE))  # type: ignore[misc]
            status = await device.during(device.vault.status)
            if status is None or status.state != "synced" or status.behind or status.stuck or status.unreadable:
                return f"{device.name} stands at {status}"
        heads = {self._stream(name): (name, 0) for name in (FIRST, LATE)}
        for kept in self.database.vaults.values():
            heads |= {stream: (heads[stream][0], log.head) for stream, log in kept.streams.items() if stream in heads}
        for stream, (name, head) in heads.items():
            for device in self.devices:
                if device.vault is not None and device.vault._sync._streams[stream].cursor != head:
                    return f"{device.name} has not all of {name}"
        return None

    def _stream(self, name: str) -> StreamId:
        return self._stream_at(self.host, name)

    @staticmethod
    def _stream_at(device: SimDevice, name: str) -> StreamId:
        assert device.vault is not None
        return device.vault._sync.keys.stream_id(name)

    def _checker(self) -> Checker:
        vault = self.host.vault
        if vault is None:
            raise Violation("everything comes to rest: the host is not up")
        keys = vault._sync.keys
        logs: dict[StreamId, list[Logged]] = {}
        openers: dict[StreamId, Opener] = {}
        for kept in self.database.vaults.values():
            for stream, log in kept.streams.items():
                if stream != MEMBERSHIP:
                    sets = [keys.stream_keys(stream, epoch) for epoch in keys.epochs]
                    openers[stream] = Opener(keys.stream(stream), sets)
                    logs[stream] = list(read(openers[stream], log.segments))
                    if len(logs[stream]) != log.head:
                        raise Violation(f"seqs have no gaps: {len(logs[stream])} records, and the head is {log.head}")
        return Checker(self.history, logs, openers)

    def _replicas_agree(self, checker: Checker) -> None:
        for name in (FIRST, LATE):
            must = checker.shown(self._stream(name))
            for device in self.devices:
                shows = {key: _SCHEMA.encode(note) for key, note in device.open[name].items()}
                if shows != must:
                    keys = sorted(key for key in {*shows, *must} if shows.get(key) != must.get(key))
                    raise Violation(f"replicas converge: {device.name} differs in {name} at {keys}")

    def _credit_came_home(self) -> None:
        for relay in self.relays:
            for wire in relay.wires:
                session = wire.protocol.session
                if session.state is RelayState.READY and session.credit != session.limits.credit_bytes:
                    missing = session.limits.credit_bytes - session.credit
                    raise Violation(f"credit comes home: {missing} bytes of {wire.place} are missing")


@contextmanager
def observed(world: World) -> Iterator[None]:
    """While the block lasts, what replicas do is entered into the history, and looked at."""
    edit, store, answer, history = Replica.edit, Outbox.store, Outbox.answer, world.history

    def watch_edit(self: Replica, collection: Held, edits: Sequence[HeldEdit], tx: int = ALONE) -> None:
        device = world.current
        assert device is not None
        seen = [self.entries.rank_of(collection.table, edit.key) or b"" for edit in edits]
        edit(self, collection, edits, tx)
        for one, rank in zip(edits, seen, strict=True):
            place = (collection.stream, one.key)
            history.edited(Edit(device.name, place, one.value, history.step, rank, device.certain))
        history.add("edited", device.name)

    def watch_store(self: Outbox, taken: Taken, sealed: Sequence[SealedGroup]) -> bool:
        device = world.current
        assert device is not None
        stored = store(self, taken, sealed)
        if stored:
            for group, seals in zip(taken.groups, sealed, strict=True):
                for one, seal in zip(group.edits, seals.seals, strict=True):
                    place = (group.stream, one.key)
                    history.sealed(Seal(device.name, place, one.value, seal[0], history.step))
            history.add("sealed", device.name)
        twice = self._database.connection.execute(
            "SELECT key FROM _sent WHERE seq IS NULL GROUP BY collection, key HAVING count(*) > 1"
        ).fetchone()
        if twice:
            history.fail(f"one write of a key is in flight: {device.name} has two of {twice[0]}")
        return stored

    def watch_answer(self: Outbox, *args: Any) -> Any:
        answered = answer(self, *args)
        for held in self._entries.opened.values():
            cursor = self.sent._positions.standing(held.number).cursor.seq
            found = self._database.connection.execute(f"SELECT max(_seq) FROM {held.table.name}").fetchone()[0]
            if (found or 0) > cursor:
                history.fail(f"entries stand within the cursor: one at {found}, and the cursor at {cursor}")
        return answered

    with (
        mock.patch.object(Replica, "edit", watch_edit),
        mock.patch.object(Outbox, "store", watch_store),
        mock.patch.object(Outbox, "answer", watch_answer),
    ):
        yield


def simulate(seed: int) -> Result:
    """Run one seed. Never raises on what the simulated parts do: that is a violation too."""
    logging.getLogger("sealwire").setLevel(logging.CRITICAL + 1)
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()  # what was imported is not looked at again
    gc.disable()  # garbage is collected between runs
    try:
        return _simulate(seed)
    finally:
        gc.enable()
        gc.collect()


def _simulate(seed: int) -> Result:
    memory = Path("/dev/shm")
    violation: str | None = None
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder, seeded(seed):
        world = World(seed, Path(folder))
        with observed(world), inserted({device.folder: device.disk for device in world.devices}):
            try:
                trio.run(world.main, clock=world.agenda)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                violation = world.history.broken or _told(error)
    return Result(
        seed,
        violation,
        world.history.digest,
        world.history.step,
        world.agenda.current_time(),
        world.faults.happened,
        world.operations,
    )


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = next((e for e in error.exceptions if not isinstance(e, trio.Cancelled)), error.exceptions[0])
    if isinstance(error, Violation):
        return str(error)
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    return f"nothing crashes: {type(error).__name__}: {error}{where}"
