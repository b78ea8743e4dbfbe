"""A device that makes transfers: `python -m tests.acceptance.transferring FOLDER ORIGIN NUMBER COUNT`.

Each transfer has a name, under which an entry is written in the same transaction: so the app finds out, whatever
happened to it, whether the transfer was made. It ends when all its transfers are.
"""

import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from sealwire_client import ConflictError, Device, OfflineError, Vault
from sealwire_client.collection import Collection
from sealwire_client.policies import strict
from tests.faults.devices import stay_online

VAULT: Final = "transfer"
ACCOUNTS: Final = ("ours", "theirs")
BALANCE: Final = 10_000
"""What each account holds in the beginning."""

AMOUNT_MAX: Final = 100
RETRY_SECONDS: Final = 0.05
CANCELLED_PERCENT: Final = 5
"""Transfers whose app gives up waiting, at any moment, as one does whose person presses a button."""

CANCEL_SECONDS_MAX: Final = 0.02


@dataclass(frozen=True)
class Account:
    """What is there."""

    balance: int


@dataclass(frozen=True)
class Transfer:
    """One transfer that was made, from the first account to the second."""

    amount: int


class Bank:
    """The two collections, opened."""

    def __init__(self, vault: Vault, accounts: Collection[Account], transfers: Collection[Transfer]) -> None:
        self.vault, self.accounts, self.transfers = vault, accounts, transfers

    @classmethod
    async def open(cls, vault: Vault) -> "Bank":
        """Open them."""
        accounts = await vault.collection("accounts", Account, policy=strict())
        return cls(vault, accounts, await vault.collection("transfers", Transfer, policy=strict()))

    async def transfer(self, name: str, amount: int) -> None:
        """Make one transfer, if it has not been made. Raises as a strict write does."""
        ours, theirs = ACCOUNTS
        async with self.vault.transaction():
            if self.transfers.get(name) is not None:
                return
            for account, change in ((ours, -amount), (theirs, amount)):
                before = self.accounts.get(account)
                assert before is not None, f"there is no account {account}"
                await self.accounts.put(account, Account(before.balance + change))
            await self.transfers.put(name, Transfer(amount))


async def until_made(bank: Bank, name: str, amount: int, chance: random.Random, met: Counter[str]) -> None:
    """Make a transfer, whatever it takes, and once."""
    while True:
        patience = chance.random() * CANCEL_SECONDS_MAX if chance.randrange(100) < CANCELLED_PERCENT else None
        try:
            with trio.move_on_after(float("inf") if patience is None else patience) as limit:
                await bank.transfer(name, amount)
        except ConflictError:
            met["conflicts"] += 1
            continue
        except OfflineError:
            met["offline"] += 1
            await trio.sleep(RETRY_SECONDS)
            continue
        if not limit.cancelled_caught:
            return
        # It may have been made, or be made still: what was sent has a verdict once all is in step.
        met["given_up"] += 1
        await bank.vault.synced()


async def main(folder: Path, origin: str, number: int, count: int) -> None:
    """Make all transfers that are not made yet."""
    met: Counter[str] = Counter()
    async with Device.open(folder / "device", relay=origin) as device, trio.open_nursery() as nursery:
        nursery.start_soon(stay_online, device, origin)
        bank = await Bank.open(device.vaults[0])
        await bank.vault.synced()
        for at in range(count):
            name, chance = f"{number}-{at:04}", random.Random(number * count + at)
            amount = chance.randint(-AMOUNT_MAX, AMOUNT_MAX)
            if bank.transfers.get(name) is None:
                await until_made(bank, name, amount, chance, met)
        nursery.cancel_scope.cancel()
    with (folder / "met").open("a") as file:
        file.write(json.dumps(met) + "\n")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
