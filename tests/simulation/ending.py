"""The end of a vault, in some runs: when all else was looked at an admin deletes it, amid work and what goes wrong.

All devices learn of it. Each holds what it had, and shows what it could not send; nobody is told that a write was made
which was not, and the relay keeps nothing but the log that says so.
"""

from random import Random
from typing import TYPE_CHECKING, Final

import trio

from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_protocol.ids import MEMBERSHIP
from tests.simulation import faults
from tests.simulation.history import Violation
from tests.simulation.things import KINDS, SCHEMAS
from tests.simulation.work import OPERATIONS, Work

if TYPE_CHECKING:
    from tests.simulation.device import SimDevice
    from tests.simulation.world import World

CHANCE: Final = 1 / 6
"""How often a run goes on to the end of its vault."""

OPERATIONS_MAX: Final = 12
"""Things that a device does yet, at most, before and after the vault ends."""

PAUSE_SECONDS_MAX: Final = 3.0
"""Between two of them."""

AFTER_SECONDS_MAX: Final = 15.0
"""When the vault is deleted, at most."""

FAULTS: Final = 8
"""Faults that wait for their moment meanwhile."""

RESTORE_CHANCE: Final = 0.3
"""How often the database is restored to before the end, which devices then give back."""

RESTORE_SECONDS_MAX: Final = 10.0
"""How long after it, at most."""

Shown = dict[tuple[str, str], bytes]


class Ending:
    """How one vault ends."""

    def __init__(self, world: "World", random: Random) -> None:
        self._world, self._random = world, random
        self._members = [each for each in world.devices if not each.is_out]

    async def run(self) -> None:
        """The last work, and the end of the vault amid it. Returns when all faults that still come are over."""
        world, random = self._world, self._random
        world.healed = False
        for relay in world.relays:
            relay.healed = False
        for _ in range(FAULTS):
            place = random.choice(world.devices).place
            world.faults.arm(place, random.choice(faults.OF_DEVICES), random.randrange(8))
        before = world.past.snapshot()
        async with trio.open_nursery() as working:
            for device in self._members:
                working.start_soon(self._work, device)
            await world.agenda.rest(random.uniform(0, AFTER_SECONDS_MAX))
            await self._delete(random.choice([each for each in self._members if not each.removed]))
            if random.random() < RESTORE_CHANCE:
                await world.agenda.rest(random.uniform(0, RESTORE_SECONDS_MAX))
                world.faults.happened[faults.RESTORE] += 1
                world.past.restore(before)
                world.history.restores += 1
                for relay in world.relays:
                    relay.crash()

    async def _work(self, device: "SimDevice") -> None:
        world, random = self._world, self._random
        work = Work(world, device, Random(f"ending {random.random()}"))
        for _ in range(random.randrange(OPERATIONS_MAX)):
            await world.agenda.rest(random.uniform(0, PAUSE_SECONDS_MAX))
            await device.until_ready()
            what = random.choices([name for name, _ in OPERATIONS], [weight for _, weight in OPERATIONS])[0]
            world.did(device, what)
            await work.operation(what)

    async def _delete(self, admin: "SimDevice") -> None:
        while True:
            await admin.until_ready()
            vault = admin.vault
            assert vault is not None
            if vault.over is not None:
                return
            self._world.did(admin, "delete the vault")
            try:
                await admin.during(vault.delete)
            except (KeyringError, RelayRefusedError):
                self._world.history.add("deleting failed", admin.name)
            await self._world.agenda.rest(1)

    async def restless(self) -> str | None:
        """Why not all devices know of it yet, and stand still, or None."""
        for device in self._members:
            if not device.ready or device.vault is None:
                return f"{device.name} is not up"
            status = await device.during(device.vault.status)
            knows = device.vault.over is not None or device.removed
            if not knows or status is None or status.state != "refused":
                return f"{device.name} does not know that the vault is over"
        for kept in self._world.past.database.vaults.values():
            if kept.streams.keys() != {MEMBERSHIP}:
                return f"the relay keeps {len(kept.streams)} logs of a vault that was deleted"
        return None

    def shown(self) -> dict[str, Shown]:
        """What each device shows."""
        return {
            device.name: {
                (name, key): SCHEMAS[name].encode(value) for name in KINDS for key, value in device.open[name].items()
            }
            for device in self._members
        }

    def check_kept(self, before: dict[str, Shown], step: int) -> None:
        """What nobody has edited since is shown as it was. Raises Violation."""
        streams = {self._world.host.stream(name): name for name in KINDS}
        edited = {(streams[call.place[0]], call.place[1]) for call in self._world.history.calls if call.step >= step}
        now = self.shown()
        for name, held in before.items():
            for place in (held.keys() | now[name].keys()) - edited:
                if held.get(place) != now[name].get(place):
                    raise Violation(f"a device keeps what it had of a vault that ends: {name} lacks {place[1]}")
