"""Leaving: members that go by themselves, and some of them come again by an invite."""

from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from sealwire_client.keyring import KeyringError, VaultOverError
from sealwire_client.link import RelayRefusedError
from sealwire_client.replica import UnsentError
from tests.simulation.epochs import KEEPERS

if TYPE_CHECKING:
    from tests.simulation.device import SimDevice
    from tests.simulation.world import World

PARTINGS: Final = (0, 0, 0, 1, 1, 2)
"""How many devices leave in a run: in half of all runs none."""

AT: Final = (5, 60)
"""Before which of its operations a device leaves, or as soon as it is a member."""

RETURN_CHANCE: Final = 0.5
"""How often who has left is invited again."""

AWAY_SECONDS_MAX: Final = 60.0
"""After how long, at most."""

SEND_SECONDS_MAX: Final = 10.0
"""How long an app waits for what is unsent before it asks again to leave."""


ATTEMPTS_MAX: Final = 60
"""Times that it asks, of which each takes some seconds while it is offline: more means that nothing can be sent."""


class Parting(NamedTuple):
    """A device is to leave before this operation of its; `returns`: it asks for another invite then."""

    at: int
    returns: bool


def partings(random: Random, devices: "Sequence[SimDevice]") -> dict[str, Parting]:
    """Who leaves in a run, by the place where it is: none of the first devices, which others rely on."""
    leavers = random.sample(devices[KEEPERS:], random.choice(PARTINGS))
    return {each.place: Parting(random.randrange(*AT), random.random() < RETURN_CHANCE) for each in leavers}


async def leave(world: "World", device: "SimDevice") -> bool:
    """Leave the vault, with nothing unsent. True: the device holds nothing of it, also across its deaths. False: it is
    out, and could not send what a restore took from the relay just then, or it has given up: it holds what it has."""
    device.removed = True
    device.leaves.set()
    for _ in range(ATTEMPTS_MAX):
        if device.is_out or world.history.broken:
            return device.is_out
        await device.until_out()
        vault = device.vault
        if vault is None:
            continue
        world.did(device, "leave")
        try:
            device.keys_left = list(vault._sync.keys.epochs.values())
            await device.during(vault.leave)
        except UnsentError:
            if vault.over is not None:
                device.surely_removed = True
                return False
            await device.discard_strict()
            with trio.move_on_after(SEND_SECONDS_MAX), suppress(VaultOverError):
                await device.during(vault.synced)
        except (KeyringError, RelayRefusedError):
            world.history.add("leaving failed", device.name)
        await world.agenda.rest(1)
    return device.is_out
