"""Restores: while devices work, the database is again and again what it was at some earlier moment."""

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_client.replica import VaultGoneError
from tests.simulation import faults
from tests.simulation.agenda import GRAIN_SECONDS
from tests.simulation.epochs import PATIENCE_SECONDS
from tests.simulation.past import Snapshot
from tests.simulation.store import COMMIT_GRAINS_MAX, Process
from tests.simulation.work import HURRIED_OPERATIONS

if TYPE_CHECKING:
    from tests.simulation.device import SimDevice
    from tests.simulation.world import World

RESTORES: Final = (0, 0, 0, 1, 1, 1, 2, 2, 3)
"""How many a run has: in a third of all runs the strictest promises are held against a history that is never cut."""

BEFORE_SECONDS_MAX: Final = 30.0
"""How long after the one before a snapshot is taken, at most."""

LOST_SECONDS_MAX: Final = 40.0
"""How long after a snapshot it is restored, at most: what is committed in between is lost."""

UNKNOWN_SECONDS_MAX: Final = 20.0
"""How long a stranger is waited for that may be the only one to know of a link."""

STRANGER_CHANCE: Final = 0.5
"""How often a device is away from before a snapshot on until that is restored: it writes without knowledge of what was
lost, and often before it is given back."""

SLOW_CHANCE: Final = 0.5
SLOW_SECONDS_MAX: Final = 6.0
"""How long before a restore the network is slow, half of the time: then much is on its way, to the relay and back."""

COMMIT_SECONDS_MAX: Final = 20.0
"""How long a restore waits, half of the time, for a commit to begin: it strikes before it, within it, or when the
outcome is on its way, and what follows is queued or on its way as well."""

SIGNS_CHANCE: Final = 0.5
"""How often a stranger changes the key at once, so that its end of the membership log competes with the one that is
lost (R15), and may stand."""

REMOVES_CHANCE: Final = 0.5
"""How often somebody is removed meanwhile who may stay a member by that."""

SIGNS_MAX: Final = 3
"""How many times, at most."""

AWAY_SECONDS_MAX: Final = 90.0
"""How long a device is away that finds the relay's new writes far beyond its own cursor when it returns."""


class Restores:
    """What restores a run's database."""

    def __init__(self, world: "World", seed: int) -> None:
        self._world, self._random, self._signs = world, Random(f"restores {seed}"), Random(f"signs {seed}")

    async def run(self) -> None:
        """All restores of the run; a last one may come when all work is done."""
        async with trio.open_nursery() as self._nursery:
            await self._restores()

    async def _restores(self) -> None:
        random, snapshots = self._random, list[Snapshot]()
        for _ in range(random.choice(RESTORES)):
            await self._world.agenda.rest(random.uniform(0, BEFORE_SECONDS_MAX))
            stranger = self._stranger() if random.random() < STRANGER_CHANCE else None
            if stranger is not None:
                self._world.hold(stranger)
            snapshots.append(self._world.past.snapshot())
            signs = stranger is not None and self._signs.random() < SIGNS_CHANCE
            if stranger is not None and signs and self._signs.random() < REMOVES_CHANCE:
                self._nursery.start_soon(self._world.epochs.remove_unheard, stranger)
            await self._world.agenda.rest(random.uniform(0, LOST_SECONDS_MAX))
            if random.random() < SLOW_CHANCE:
                for device in self._world.devices:
                    device.slow_down()
                await self._world.agenda.rest(random.uniform(0, SLOW_SECONDS_MAX))
            if random.random() < 0.5:
                with trio.move_on_after(COMMIT_SECONDS_MAX):
                    await self._world.past.commit.wait()
                await self._world.agenda.rest(random.randrange(2 * COMMIT_GRAINS_MAX) * GRAIN_SECONDS)
            until = self._world.agenda.current_time() + UNKNOWN_SECONDS_MAX
            while not self._host_knows_all_links():
                await self._world.agenda.rest(1)
                if stranger is not None and self._world.agenda.current_time() > until:
                    self._world.let_go(stranger)  # it has signed what it did not hear of
                    stranger = None
            self._restore(snapshots[-1] if random.random() < 0.7 else random.choice(snapshots), stranger)
            if stranger is not None and signs:
                self._nursery.start_soon(self._sign, stranger)

    def _stranger(self) -> "SimDevice | None":
        """A device that is not going to hear of what will be lost, and has something to do yet; not the host, who
        makes the links."""
        found = [each for each in self._world.devices[1:] if each.left > HURRIED_OPERATIONS and not each.paused]
        return self._random.choice(found) if found else None

    def _host_knows_all_links(self) -> bool:
        """Whoever was added by a link that is lost before any admin has heard of it, who stays one, must be invited
        anew if another end of the log stands (R15), and whoever was removed by it be removed anew: that takes a person,
        and is not for this simulation."""
        vault = self._world.host.vault
        return vault is None or vault._sync.membership.last_hash == self._world.members.log.last_hash

    def _restore(self, snapshot: Snapshot, stranger: "SimDevice | None") -> None:
        """Bring a snapshot back. Every process either ends with the database, or finds another one behind it. If there
        is a stranger, it goes on before most of those who know what is lost."""
        world, random = self._world, self._random
        world.faults.happened[faults.RESTORE] += 1
        world.history.add(faults.RESTORE, "database")
        away = random.choice((0, 0, 1, 2)) if stranger is None else len(world.devices) - random.choice((1, 1, 2))
        for device in random.sample([each for each in world.devices if each is not stranger], away):
            world.away(device, random.uniform(1, AWAY_SECONDS_MAX), random.random() < 0.5)
        for wire in [wire for relay in world.relays for wire in relay.wires if wire.to_device.carries]:
            if random.random() < 0.5:
                wire.last_words = random.random() < 0.5  # what is on its way to the relay arrives all the same
                wire.cut()
        world.past.restore(snapshot)
        world.history.restores += 1
        processes: list[Process] = [*world.relays, *world.cleaners]
        for process in processes:
            if random.random() < 0.5:
                process.crash()
        if stranger is not None:
            world.let_go(stranger)

    async def _sign(self, stranger: "SimDevice") -> None:
        """Change the key, some times, unless it leaves first."""
        await stranger.until_out()
        for _ in range(self._signs.randint(1, SIGNS_MAX)):
            vault = stranger.vault
            if vault is None or stranger.removed:
                return
            self._world.did(stranger, "rotate")
            with (
                trio.move_on_after(PATIENCE_SECONDS),
                suppress(KeyringError, RelayRefusedError, VaultGoneError),
            ):
                await stranger.during(vault.rotate)
