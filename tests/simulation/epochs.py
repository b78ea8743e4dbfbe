"""Epochs: while devices work, admins change the vault's key, and remove members; two may do so at once."""

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_client.replica import VaultGoneError
from sealwire_client.vault import Vault
from sealwire_protocol.ids import DeviceKey

if TYPE_CHECKING:
    from tests.simulation.device import SimDevice
    from tests.simulation.world import World

CHANGES: Final = (0, 0, 1, 2, 2, 3, 4, 5)
"""How often the key changes in a run: in a quarter of all runs never."""

BETWEEN_SECONDS_MAX: Final = 40.0
"""How long after the one before the key changes again, at most."""

COMMIT_SECONDS_MAX: Final = 10.0
"""How long a change waits for somebody to write, at most: what is written then is often sealed under the key before."""

TOGETHER_CHANCE: Final = 0.3
"""How often two admins change it at once."""

REMOVAL_CHANCE: Final = 0.4
"""How often somebody is removed with it."""

REMOVED_MAX: Final = 2
"""Devices that are no members at one time, at most, of those that there are."""

KEEPERS: Final = 2
"""The first devices, which remove others and are never removed: where two ends of the log remove who has signed the
other one, people must agree (R15), and that is not for this simulation."""

AGAIN_CHANCE: Final = 0.5
"""How often a device that was removed is invited again."""

AGAIN_SECONDS_MAX: Final = 60.0
"""How long after its removal, at most."""

ATTEMPTS_MAX: Final = 5
"""Times that it is invited until it is one."""

PATIENCE_SECONDS: Final = 60.0
"""How long an app waits for a new key before it gives up, and does not know."""


class Epochs:
    """What changes a run's keys."""

    def __init__(self, world: "World", random: Random) -> None:
        self._world, self._random = world, random

    async def run(self) -> None:
        """All changes of the run."""
        world, random = self._world, self._random
        for _ in range(random.choice(CHANGES)):
            await world.agenda.rest(random.uniform(0, BETWEEN_SECONDS_MAX))
            with trio.move_on_after(COMMIT_SECONDS_MAX):
                await world.past.commit.wait()
            admins = [each for each in world.devices if each.ready and not each.removed]
            count = 2 if random.random() < TOGETHER_CHANCE else 1
            async with trio.open_nursery() as changing:
                for admin in random.sample(admins, min(count, len(admins))):
                    victim = self._victim() if admin in world.devices[:KEEPERS] else None
                    changing.start_soon(self._change, admin, victim)

    def _victim(self) -> "SimDevice | None":
        removed = [each for each in self._world.devices if each.removed]
        if self._random.random() > REMOVAL_CHANCE or len(removed) >= REMOVED_MAX:
            return None
        found = self._removable()
        return self._random.choice(found) if found else None

    def _removable(self) -> "list[SimDevice]":
        return [each for each in self._world.devices[KEEPERS:] if each.ready and not each.removed]

    async def remove_unheard(self, stranger: "SimDevice") -> None:
        """Remove somebody while a device is away that is going to know nothing of it."""
        admins = [each for each in self._world.devices[:KEEPERS] if each.ready and each is not stranger]
        victims = [each for each in self._removable() if each is not stranger]
        if admins and victims:
            await self._change(self._random.choice(admins), self._random.choice(victims))

    async def _change(self, admin: "SimDevice", victim: "SimDevice | None") -> None:
        vault = admin.vault
        assert vault is not None
        gone: DeviceKey | None = None
        if victim is not None and victim.device is not None:
            gone, victim.removed = victim.device.key, True
        self._world.did(admin, "rotate" if gone is None else "remove")
        with trio.move_on_after(PATIENCE_SECONDS), suppress(KeyringError, RelayRefusedError, VaultGoneError):
            if victim is None or gone is None:
                await admin.during(vault.rotate)
            elif await admin.during(lambda: _done(vault, gone)):
                victim.surely_removed = True
        if victim is not None and victim.surely_removed and self._random.random() < AGAIN_CHANCE:
            await self._world.agenda.rest(self._random.uniform(0, AGAIN_SECONDS_MAX))
            await self._invite_again(victim, victim.member)

    async def _invite_again(self, device: "SimDevice", before: int) -> None:
        """It may hold that it is a member still, as a relay may that was set back; then it is tried again. It may also
        have left by itself meanwhile."""
        self._world.history.came_back.add(device.name)
        for _ in range(ATTEMPTS_MAX):
            await device.until_out()
            if device.is_out:
                return
            self._world.did(device, "join again")
            if await device.during(device.join_again) and device.ready and device.member != before:
                device.removed = device.surely_removed = False
                return
            await self._world.agenda.rest(AGAIN_SECONDS_MAX)


async def _done(vault: Vault, device: DeviceKey) -> bool:
    await vault.remove(device)
    return True
