"""What became of a write: asked of what `put` and the others return, or of a transaction."""

from collections.abc import Iterable

from sealwire_client.replica import EditStanding as Standing
from sealwire_client.replica import Mark, Place
from sealwire_client.sync import VaultSync

__all__ = ["Place", "Standing", "Write"]


class Write:
    """Edits made together. They were durable on this device when it was returned (`PRAGMA synchronous = FULL`)."""

    def __init__(self, sync: VaultSync, marks: Iterable[Mark]) -> None:
        self._sync, self._marks = sync, tuple(marks)

    async def durable(self, *, wait: bool = True) -> Standing:
        """Where the write stands: `place` is RELAY (committed there, or superseded by a later write of this device
        that was), REFUSED (for good: kept here, `reason` says why, see `vault.stuck`), or DEVICE.

        Waits as long as it is DEVICE, offline too; with `wait=False` it tells how things stand now. A write that was
        refused and is then tried again or replaced is DEVICE once more; one that was discarded stays REFUSED.
        """
        while True:
            moved = self._sync.moved  # before the look: what happens during it must not be missed
            standing = await self._standing()
            if standing.place is not Place.DEVICE or not wait:
                return standing
            await moved.wait()

    async def _standing(self) -> Standing:
        standings = [await self._sync.aside.standing(mark) for mark in self._marks]
        for place in (Place.REFUSED, Place.DEVICE):
            for standing in standings:
                if standing.place is place:
                    return standing
        return Standing(Place.RELAY)
