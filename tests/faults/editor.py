"""A device that edits as fast as the relay takes it: `python -m tests.faults.editor FOLDER ORIGIN NUMBER`.

It edits in rounds, each of which is a function of its number alone, and notes each round once it is durable here, so
that from the last note follows what its collections must hold. Whenever it is started it goes on where it was.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from sealwire_client import Device, Vault
from sealwire_client.collection import Collection
from sealwire_client.policies import latest, merge
from tests.faults import acks
from tests.faults.devices import stay_online

VAULT: Final = "faults"
DEVICES: Final = 3

NOTES: Final = 120
"""New entries of a round in an open collection."""

TASKS: Final = 60
TASK_SETS: Final = 5
"""Entries of a round in a guarded collection, which only this device edits: every set of them again and again."""

CELLS: Final = 20
CELL_SETS: Final = 4
"""Entries of a round in a guarded collection that all devices edit at once, each one field of its own."""

PENDING_MAX: Final = 1_500
"""Writes without a verdict: more would only make a killed device's start slower."""

LOOK_SECONDS: Final = 0.02


@dataclass
class Note:
    """An entry that nobody else edits."""

    device: int
    round: int


@dataclass(frozen=True)
class Cell:
    """An entry that everybody edits."""

    first: int = 0
    second: int = 0
    third: int = 0


FIELDS: Final = ("first", "second", "third")


class Collections:
    """The three collections of the proof, opened."""

    def __init__(self, vault: Vault, notes: Collection[Note], tasks: Collection[Note], cells: Collection[Cell]) -> None:
        self.vault, self.notes, self.tasks, self.cells = vault, notes, tasks, cells

    @classmethod
    async def open(cls, vault: Vault) -> "Collections":
        """Open them."""
        return cls(
            vault,
            await vault.collection("notes", Note, policy=latest()),
            await vault.collection("tasks", Note, policy=merge()),
            await vault.collection("cells", Cell, policy=merge()),
        )

    async def edit(self, device: int, number: int) -> None:
        """One round of one device, durable here when it returns."""
        note = Note(device, number)
        await self.notes.put_many((key, note) for key in note_keys(device, number))
        await self.tasks.put_many((key, note) for key in task_keys(device, number))
        mine: dict[str, Any] = {FIELDS[device]: number}
        async with self.vault.transaction():
            for key in cell_keys(number):
                await self.cells.put(key, replace(self.cells.get(key) or Cell(), **mine))

    def streams(self) -> dict[str, bytes]:
        """What the relay calls them."""
        return {each.name: each.held.stream for each in (self.notes, self.tasks, self.cells)}

    def everything(self) -> dict[str, dict[str, Any]]:
        """All that is in them."""
        found: dict[str, dict[str, Any]] = {"notes": {}, "tasks": {}, "cells": {}}
        found["notes"].update(self.notes.items())
        found["tasks"].update(self.tasks.items())
        found["cells"].update(self.cells.items())
        return found


def note_keys(device: int, number: int) -> list[str]:
    """The open entries of a round."""
    return [f"{device}-{number:06}-{n:03}" for n in range(NOTES)]


def task_keys(device: int, number: int) -> list[str]:
    """The guarded entries of a round that are the device's own."""
    return [f"{device}-{number % TASK_SETS}-{n:03}" for n in range(TASKS)]


def cell_keys(number: int) -> list[str]:
    """The guarded entries of a round that are everybody's."""
    return [f"{number % CELL_SETS}-{n:03}" for n in range(CELLS)]


def rounds_durable(folder: Path) -> int:
    """How many rounds a device has noted as durable: a byte each."""
    path = folder / "rounds"
    return path.stat().st_size if path.exists() else 0


async def main(folder: Path, origin: str, number: int) -> None:
    """Edit until killed."""
    dialler = acks.noting(folder / "acks")
    async with Device.open(folder / "device", relay=origin, dialler=dialler) as device, trio.open_nursery() as nursery:
        nursery.start_soon(stay_online, device, origin)
        [vault] = device.vaults
        collections = await Collections.open(vault)
        with (folder / "rounds").open("ab", buffering=0) as rounds:
            while True:
                await collections.edit(number, rounds_durable(folder) + 1)
                rounds.write(b".")
                while (await vault.status()).pending > PENDING_MAX:  # noqa: ASYNC110 - nothing tells of it
                    await trio.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
