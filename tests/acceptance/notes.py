"""What devices of the proofs of history keep: notes, in an open collection and in a guarded one."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from sealwire_client import Device, Vault
from sealwire_client.collection import Collection
from sealwire_client.policies import latest, merge
from tests.faults.devices import join

VAULT: Final = "history"
IN_STEP_S_MAX: Final = 120.0

TOGETHER: Final = 1_000
"""Deletions in one transaction."""

Name = tuple[str, str]
"""A collection and a key."""


@dataclass(frozen=True)
class Note:
    """An entry."""

    writer: str
    number: int


class App:
    """A device with its collections."""

    def __init__(self, device: Device, vault: Vault, collections: list[Collection[Note]]) -> None:
        self.device, self.vault, self.collections = device, vault, collections

    @classmethod
    async def open(cls, device: Device, vault: Vault) -> "App":
        """Open the collections."""
        notes = await vault.collection("notes", Note, policy=latest())
        return cls(device, vault, [notes, await vault.collection("tasks", Note, policy=merge())])

    async def write(self, name: str, numbers: range) -> None:
        """New entries, half of them in each collection."""
        for collection, mine in zip(self.collections, self._shares(numbers), strict=True):
            await collection.put_many((f"{name}-{number:07}", Note(name, number)) for number in mine)

    async def overwrite(self, name: str, numbers: range, by: str) -> None:
        """New values of entries that `write` made under that name."""
        for collection, mine in zip(self.collections, self._shares(numbers), strict=True):
            await collection.put_many((f"{name}-{number:07}", Note(by, number)) for number in mine)

    async def delete(self, name: str, numbers: range) -> None:
        """Delete entries that `write` made under that name."""
        for collection, mine in zip(self.collections, self._shares(numbers), strict=True):
            for at in range(0, len(mine), TOGETHER):
                async with self.vault.transaction():
                    for number in mine[at : at + TOGETHER]:
                        await collection.delete(f"{name}-{number:07}")

    def _shares(self, numbers: range) -> list[list[int]]:
        return [[n for n in numbers if n % len(self.collections) == at] for at in range(len(self.collections))]

    async def synced(self) -> None:
        """All is sent, and all is here."""
        with trio.fail_after(IN_STEP_S_MAX):
            await self.vault.synced()

    def everything(self) -> dict[Name, Note]:
        """All that is in it."""
        return {(each.name, key): value for each in self.collections for key, value in each.items()}


async def opened(stack: AsyncExitStack, origin: str, folder: Path) -> App:
    """A device that is a member already."""
    device = await stack.enter_async_context(Device.open(folder, relay=origin))
    return await App.open(device, device.vaults[0])


async def joined(stack: AsyncExitStack, origin: str, folder: Path, member: App | None) -> App:
    """A new device of the vault, which the first one makes."""
    device = await stack.enter_async_context(Device.open(folder, relay=origin))
    if member is not None:
        return await App.open(device, await join(member.vault, device))
    vault = await device.create_vault(VAULT)
    await vault.known()
    return await App.open(device, vault)
