"""Two devices move money between two accounts at once: the sum never changes, for nobody, at no time.

Every transfer is a strict transaction over two collections. Connections break, relay, Postgres and the devices are
killed with -9 meanwhile; apps read again after a conflict, try again after they were offline, and look whether a
transfer that they gave up was made. A third device reads all the time and must never see another sum.
"""

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import trio

from sealwire_client import Device
from sealwire_client.nursery import open_nursery
from tests.acceptance.transferring import ACCOUNTS, BALANCE, VAULT, Account, Bank
from tests.faults.devices import DeviceProcess, join, stay_online
from tests.faults.site import Site, site
from tests.faults.trouble import Plan, trouble

LIMIT_S = 400
LIMIT_SHORT_S = 300

TRANSFERS: Final = 1_000
TRANSFERS_SHORT: Final = 60
"""Of each of the two devices."""

TRANSFERS_S_MAX: Final = 360.0
IN_STEP_S_MAX: Final = 60.0
LOOK_S: Final = 0.02

TROUBLE: Final = Plan(
    faults=("connections", "connections", "commits", "commits", "device", "relay", "postgres"),
    every_s=1.5,  # some dozen transfers are made in it
    seed=5,
)

TOTAL: Final = BALANCE * len(ACCOUNTS)


class Reader:
    """The third device: what it has seen."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.looks = 0
        self.wrong: list[int] = []
        self.sums: set[tuple[int, ...]] = set()

    def look(self) -> None:
        """One read of both accounts, at one moment."""
        balances = [account.balance for _, account in self.bank.accounts.items()]
        self.looks += 1
        self.sums.add(tuple(balances))
        if len(balances) != len(ACCOUNTS) or sum(balances) != TOTAL:
            self.wrong.append(sum(balances))

    async def watch(self) -> None:
        """Look at every change, and in between."""
        with self.bank.accounts.changes() as changes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_often)
                async for _ in changes:
                    self.look()

    async def _look_often(self) -> None:
        while True:
            self.look()
            await trio.sleep(LOOK_S)


async def prove(folder: Path, count: int) -> dict[str, object]:
    """Transfer under faults; the figures."""
    async with site() as place:
        await place.start(place.relays[0])
        devices = [DeviceProcess("tests.acceptance.transferring", folder, number, str(count)) for number in (1, 2)]
        faults: Counter[str] = Counter()
        async with Device.open(folder / "reader", relay=place.origin) as device:
            bank = await Bank.open(await device.create_vault(VAULT))
            await bank.vault.known()
            async with bank.vault.transaction():
                for account in ACCOUNTS:
                    await bank.accounts.put(account, Account(BALANCE))
            for process in devices:
                async with Device.open(process.folder / "device") as other:
                    await join(bank.vault, other)
            reader = Reader(bank)
            try:
                seconds = await transfers(place, devices, reader, device, faults)
            finally:
                for process in devices:
                    process.kill()
            told = {"apps_met": met(devices), "unknown_outcomes": place.counted("unknown_outcomes")}
            return figures(reader, count, seconds, faults) | told


async def transfers(
    place: Site, devices: list[DeviceProcess], reader: Reader, device: Device, faults: Counter[str]
) -> float:
    """From the start of both devices until all transfers are made, and can be read; the seconds that took."""
    began = time.monotonic()
    async with open_nursery() as nursery:
        nursery.start_soon(stay_online, device, place.origin)
        nursery.start_soon(reader.watch)
        for process in devices:
            process.start(place.origin)
        async with open_nursery() as troubled:
            troubled.start_soon(trouble, place, devices, TROUBLE, faults)
            with trio.move_on_after(TRANSFERS_S_MAX):
                for process in devices:
                    await process.finished()
            troubled.cancel_scope.cancel()
        seconds = time.monotonic() - began
        await place.look()
        with trio.move_on_after(IN_STEP_S_MAX):
            await reader.bank.vault.synced()
        nursery.cancel_scope.cancel()
    return seconds


def met(devices: list[DeviceProcess]) -> dict[str, int]:
    """What the apps had to deal with, as far as they were not killed before they told."""
    told: Counter[str] = Counter()
    for device in devices:
        for line in (device.folder / "met").read_text().splitlines():
            told.update(json.loads(line))
    return dict(told)


def figures(reader: Reader, count: int, seconds: float, faults: Counter[str]) -> dict[str, object]:
    """Right if every transfer was made once: the accounts hold what all that were made add up to."""
    reader.look()
    bank = reader.bank
    made = [transfer.amount for _, transfer in bank.transfers.items()]
    balances = {account: value.balance for account, value in bank.accounts.items()}
    ours, theirs = ACCOUNTS
    right = balances == {ours: BALANCE - sum(made), theirs: BALANCE + sum(made)}
    return {
        "ok": right and len(made) == 2 * count and not reader.wrong and len(reader.sums) > 2,
        "transfers": len(made),
        "wanted": 2 * count,
        "transfers_s": round(len(made) / seconds, 1),
        "balances_right": right,
        "wrong_sums": len(reader.wrong),
        "looks": reader.looks,
        "states_seen": len(reader.sums),
        "faults": dict(faults),
    }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if every transfer was made once and no look found another sum."""
    with tempfile.TemporaryDirectory(prefix="transfer-", ignore_cleanup_errors=True) as name:
        return trio.run(prove, Path(name), TRANSFERS_SHORT if short else TRANSFERS)
