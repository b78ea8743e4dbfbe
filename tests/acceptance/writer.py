"""A device that edits without pause, for proofs that kill it: `python -m tests.acceptance.writer FOLDER ORIGIN FROM`.

Prints a line for every edit that is durable on the device: "KEY VALUE". Every tenth edit is of an older entry.
"""

import sys
from dataclasses import dataclass

import trio

from sealwire_client import Device, latest

COLLECTION = "numbers"
VAULT = "killed"


@dataclass
class Number:
    """An entry of the proof."""

    value: int


async def main(folder: str, origin: str, first: int) -> None:
    """Edit until killed."""
    async with Device.open(folder, relay=origin) as device:
        vault = device.vaults[0] if device.vaults else await device.create_vault(VAULT)
        numbers = await vault.collection(COLLECTION, Number, policy=latest())
        value = first
        while True:
            key = f"{value if value % 10 else value // 2:08}"
            await numbers.put(key, Number(value))
            print(key, value, flush=True)
            value += 1


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
