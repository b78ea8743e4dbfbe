"""One run: devices and relay processes, what the devices are asked to do, and what goes wrong meanwhile.

Everything runs in one thread under a virtual clock. All that chance decides comes from the seed.
"""

import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import trio

from sealwire_client.inviting import InviteExpiredError, InviteRefusedError, PendingInvite
from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_client.replica import VaultGoneError
from sealwire_protocol.links import Role
from tests.simulation import faults
from tests.simulation.agenda import Agenda, on_grid
from tests.simulation.cleaner import CleanerProcess
from tests.simulation.device import SimDevice
from tests.simulation.ending import CHANCE, Ending
from tests.simulation.epochs import Epochs
from tests.simulation.faults import FAULTS_MIN, Faults
from tests.simulation.history import History
from tests.simulation.members import Members
from tests.simulation.network import Trace, Wire
from tests.simulation.parting import partings
from tests.simulation.past import CUTOFF_SECONDS, Past
from tests.simulation.relay import RelayProcess
from tests.simulation.rest import Rest
from tests.simulation.restores import Restores
from tests.simulation.work import HURRIED_OPERATIONS, Work

DEVICES: Final = 5
RELAYS: Final = 2
CLEANERS: Final = 2

ABSENT_SECONDS: Final = (CUTOFF_SECONDS + 5, 3 * CUTOFF_SECONDS)
"""How long a device is away that nobody waits for any more: what was deleted meanwhile may have been forgotten."""

LATE_SECONDS: Final = (100.0, 240.0)
"""When a device may join that comes last: what the others have deleted may have been forgotten before."""

RUN_SECONDS_MAX: Final = 7_200.0


class World:
    """All parts of one run."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = Random(f"world {seed}")
        self.agenda = Agenda(Random(f"agenda {seed}"))
        self.history = History()
        self.faults = Faults(Random(f"faults {seed}"))
        self.members = Members(self.history)
        self.past = Past(self.agenda.current_time, self.history.fail, self.members)
        self.operations: Counter[str] = Counter()
        self.healed = False
        self.departed: set[str] = set()
        """Those who have left, by the names that they had."""
        self.writes = self.numbers = 0
        self._away_until: dict[str, float] = {}
        self.current: SimDevice | None = None
        self._wires = 0
        self._seed = seed
        self.relays = [
            RelayProcess(self.agenda, self.past, self.faults, Random(f"relay {seed} {n}"), self.history.fail)
            for n in range(RELAYS)
        ]
        self.cleaners = [
            CleanerProcess(self.agenda, self.past, self.faults, Random(f"cleaner {seed} {n}"), self.history.fail)
            for n in range(CLEANERS)
        ]
        last = self.random.choice((False, False, True))
        joins = self.random.uniform(*(LATE_SECONDS if last else (20, 60)))
        starts = [0.0, 0.0, *(self.random.uniform(0, 20) for _ in range(DEVICES - 3)), joins]
        self.devices = [
            SimDevice(f"device {n}", self, folder, Random(f"device {seed} {n}"), starts[n]) for n in range(DEVICES)
        ]
        self.host = self.devices[0]
        self.epochs = Epochs(self, Random(f"epochs {seed}"))
        self.partings = partings(Random(f"partings {seed}"), self.devices)
        self.busy = DEVICES
        """Devices that have not done all their work."""

    def wire(self, place: str) -> Wire:
        """A new connection of a device, to one of the relays."""
        self._wires += 1
        relay = self.random.choice(self.relays)
        return Wire(place, relay, self.faults, Random(f"wire {self._seed} {self._wires}"), Trace(self.history.add))

    async def invite(self) -> str | None:
        """An invite by one of those who are there, all of whom are admins; None if it dies over it, or may not."""
        await self.host.until_ready()
        inviter = self.random.choice([device for device in self.devices if device.ready and not device.removed])
        vault = inviter.vault
        if vault is None:
            return None
        with (
            trio.move_on_after(60),
            suppress(RelayRefusedError, KeyringError, VaultGoneError),
        ):  # a restore may have taken the vault
            pending = await inviter.during(lambda: vault.invite(role=Role.ADMIN))
            if pending is not None:
                self._nursery.start_soon(inviter.during, lambda: self._approve(inviter, pending))
                return pending.link
        return None

    async def _approve(self, inviter: SimDevice, pending: PendingInvite) -> None:
        try:
            await pending.joined()
        except (InviteExpiredError, InviteRefusedError, RelayRefusedError, KeyringError, VaultGoneError):
            # Or a restore took it, or who has it has left since: the joiner asks for another one.
            self.history.add("invite expired", inviter.name)

    def number(self) -> int:
        """The next number: what is written never looks like anything else that was."""
        self.numbers += 1
        return self.numbers

    def did(self, device: SimDevice, what: str) -> None:
        """A device does something."""
        self.operations[what] += 1
        self.history.add(what, device.name)

    # --- the run

    async def main(self) -> None:
        """Everything, from the first start to rest. Raises Violation."""
        with trio.fail_after(RUN_SECONDS_MAX):
            async with trio.open_nursery() as self._nursery:
                for relay in self.relays:
                    self._nursery.start_soon(relay.run)
                for cleaner in self.cleaners:
                    self._nursery.start_soon(cleaner.run)
                for device in self.devices:
                    self._nursery.start_soon(device.run)
                async with trio.open_nursery() as working:
                    for device in self.devices:
                        working.start_soon(self._work, device)
                    working.start_soon(self._spoil)
                    working.start_soon(self.epochs.run)
                    working.start_soon(Restores(self, self._seed).run)
                rest, ending = Rest(self), Random(f"ending {self._seed}")
                await rest.come()
                if ending.random() < CHANCE:
                    await rest.come_to_an_end(Ending(self, ending))
                self._nursery.cancel_scope.cancel()

    async def _work(self, device: SimDevice) -> None:
        await Work(self, device, Random(f"work {self._seed} {device.name}")).run()
        self.busy -= 1
        while device.offline:
            await self.agenda.rest(1)

    def away(self, device: SimDevice, seconds: float, wakes: bool) -> None:
        """The network of a device is away for so long."""
        self.faults.happened[faults.OFFLINE] += 1
        device.go_offline()
        self._nursery.start_soon(self._back_online, device, seconds, wakes, 0.0)

    def absent(self, device: SimDevice, random: Random) -> None:
        """The network of a device is away for longer than anybody waits for it. It is back at any time after that, or
        just when deletions are about to be forgotten that it does not know of."""
        self.faults.happened[faults.ABSENT] += 1
        device.go_offline()
        first, longest = ABSENT_SECONDS
        waits = random.choice((True, False))
        seconds = first if waits else random.uniform(first, longest)
        self._nursery.start_soon(self._back_online, device, seconds, True, longest - first if waits else 0.0)

    def hold(self, device: SimDevice) -> None:
        """A device is away, and its app does nothing, until it is let go."""
        self.faults.happened[faults.OFFLINE] += 1
        device.go_offline()
        device.paused = True
        self._away_until[device.place] = math.inf

    def let_go(self, device: SimDevice) -> None:
        """It is back, and does something at once."""
        self._away_until[device.place] = self.agenda.current_time()
        device.hurries = HURRIED_OPERATIONS
        self._is_back(device, True)
        device.paused = False

    async def _back_online(self, device: SimDevice, seconds: float, wakes: bool, waits_for_purge: float) -> None:
        until = self._away_until[device.place] = max(
            self._away_until.get(device.place, 0.0), self.agenda.current_time() + seconds
        )
        if math.isinf(until):
            return  # it is held, and will be let go
        await trio.sleep_until(on_grid(until))
        if waits_for_purge:
            with trio.move_on_after(waits_for_purge):
                await self.past.purge.wait()
        if self.agenda.current_time() < self._away_until[device.place]:
            return
        self._is_back(device, wakes)

    def _is_back(self, device: SimDevice, wakes: bool) -> None:
        device.offline = False
        self.did(device, "online")
        if wakes and device.device is not None:
            device.device.wake()

    async def _spoil(self) -> None:
        """Faults, one after the other, for as long as there is work, and until there were enough."""
        random = self.faults.random
        while self.faults.total < FAULTS_MIN:
            await self.agenda.rest(random.uniform(0.5, 5))
            if self.busy and self.faults.expected >= FAULTS_MIN:
                continue  # they are still to happen
            kind = random.choice(faults.ALL)
            device, relay = random.choice(self.devices), random.choice(self.relays)
            if kind == faults.CLOCK:
                self.agenda.jump(random.choice((1.0, 30.0, 600.0)))
            elif kind in faults.OF_ITSELF:
                continue
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
            elif kind == faults.CLEANER_CRASH:
                random.choice(self.cleaners).crash()
            elif kind in faults.OF_CLEANERS:
                self.faults.arm("cleaners", kind, random.randrange(3))
                continue
            else:
                self.faults.arm(device.place, kind, random.randrange(8))
                continue
            self.faults.happened[kind] += 1
            self.history.add(kind, device.name)
