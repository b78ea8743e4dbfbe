"""Restores: while devices work, the database is again and again what it was at some earlier moment."""

from random import Random
from typing import TYPE_CHECKING, Final

from sealwire_protocol.ids import MEMBERSHIP
from tests.simulation import faults
from tests.simulation.past import Snapshot
from tests.simulation.store import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

RESTORES: Final = (0, 0, 0, 1, 1, 1, 2, 2, 3)
"""How many a run has: in a third of all runs the strictest promises are held against a history that is never cut."""

BEFORE_SECONDS_MAX: Final = 30.0
"""How long after the one before a snapshot is taken, at most."""

LOST_SECONDS_MAX: Final = 40.0
"""How long after a snapshot it is restored, at most: what is committed in between is lost."""

AWAY_SECONDS_MAX: Final = 90.0
"""How long a device is away that finds the relay's new writes far beyond its own cursor when it returns."""


class Restores:
    """What restores a run's database."""

    def __init__(self, world: "World", random: Random) -> None:
        self._world, self._random = world, random

    async def run(self) -> None:
        """All restores of the run; a last one may come when all work is done."""
        random, snapshots = self._random, list[Snapshot]()
        for _ in range(random.choice(RESTORES)):
            await self._world.agenda.rest(random.uniform(0, BEFORE_SECONDS_MAX))
            snapshots.append(self._world.past.snapshot())
            await self._world.agenda.rest(random.uniform(0, LOST_SECONDS_MAX))
            while not self._host_knows_all_links():
                await self._world.agenda.rest(1)
            self._restore(snapshots[-1] if random.random() < 0.7 else random.choice(snapshots))

    def _host_knows_all_links(self) -> bool:
        """A link that is lost before the admin who made it has heard of it is made anew by him. Whoever has heard of
        the first one meets another log then, which needs a hand (R15): that is not for this simulation."""
        vault, kept = self._world.host.vault, self._world.past.database.vaults
        links = max((each.streams[MEMBERSHIP].head for each in kept.values()), default=0)
        return not links or (vault is not None and vault._sync.membership.head >= links)

    def _restore(self, snapshot: Snapshot) -> None:
        """Bring a snapshot back. Every process either ends with the database, or finds another one behind it."""
        world, random = self._world, self._random
        world.faults.happened[faults.RESTORE] += 1
        world.history.add(faults.RESTORE, "database")
        for device in random.sample(world.devices, random.choice((0, 0, 1, 2))):
            world.away(device, random.uniform(1, AWAY_SECONDS_MAX), random.random() < 0.5)
        world.past.restore(snapshot)
        world.history.restores += 1
        processes: list[Process] = [*world.relays, *world.cleaners]
        for process in processes:
            if random.random() < 0.5:
                process.crash()
