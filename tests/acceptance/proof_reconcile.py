"""A replica and a relay of a million entries that differ in a hundred: only the hundred travel.

The relay is set back to a copy of its disk, so that it lacks what one device has written since; another device writes
something else then. When the first one comes home, what it sends and is sent is counted on the wire, in every byte.
Afterwards hundreds of connections compare their history at once: the relay reads the stream for all of them once.
"""

import sqlite3
import tempfile
import time
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from demo.processes import StoryError, until
from sealwire_client import Device, Vault
from sealwire_client.collection import Collection
from sealwire_client.disputing import STATED_RECORDS
from sealwire_client.link import Link, LinkState
from sealwire_client.nursery import open_nursery
from sealwire_client.policies import latest
from sealwire_client.replica.database import FILE_NAME
from sealwire_protocol.ids import START
from sealwire_protocol.messages import NO_REQUEST, Ranges, Reconcile, Summary
from sealwire_protocol.reconcile import ROOT
from tests.acceptance.restoring import Snapshot
from tests.faults.devices import join
from tests.faults.site import Site, site

LIMIT_S = 900
LIMIT_SHORT_S = 360

SIDE: Final = 50
"""Entries that one side has and the other has not."""

WIRE_BYTES_MAX: Final = 200_000
SECONDS_MAX: Final = 8.0
RETURNING: Final = 500
RETURNING_SHORT: Final = 60
"""Connections that compare at once."""

PUT_AT_ONCE: Final = 50_000
FILLING_S_MAX: Final = 600.0
HOME_S_MAX: Final = 60.0
STATED_S_MAX: Final = 150.0
"""A device that could not tell when it was its turn looks again after a minute."""


@dataclass(frozen=True)
class Item:
    """An entry of 32 bytes."""

    value: bytes


def key(number: int) -> str:
    """Its key, of 8 bytes."""
    return f"{number:08x}"


def item(number: int) -> Item:
    """What it holds."""
    return Item(number.to_bytes(32, "big"))


async def opened(vault: Vault) -> Collection[Item]:
    """The collection."""
    return await vault.collection("items", Item, policy=latest())


async def write(vault: Vault, numbers: range) -> None:
    """Entries, and until the relay has them."""
    items = await opened(vault)
    for at in range(numbers.start, numbers.stop, PUT_AT_ONCE):
        await items.put_many((key(n), item(n)) for n in range(at, min(at + PUT_AT_ONCE, numbers.stop)))
    with trio.fail_after(FILLING_S_MAX):
        await vault.synced()


def states_nothing(folder: Path) -> bool:
    """Whether a device has nothing to state of the items: it, or another one for it, has just said what it holds."""
    with closing(sqlite3.connect(f"file:{folder / FILE_NAME}?mode=ro", uri=True)) as replica:
        (changed,) = replica.execute("SELECT cursor_seq - stated_seq FROM _collection WHERE name = 'items'").fetchone()
    return abs(int(changed)) < STATED_RECORDS


async def stated(*folders: Path) -> None:
    """Until no device has anything to state: devices choose the moment by chance, and a statement that the relay loses
    would be given back, or fetched, beside the items."""
    if not await until(lambda: all(states_nothing(folder) for folder in folders), STATED_S_MAX):
        raise StoryError(f"Not every device had stated what it holds within {STATED_S_MAX:.0f} s.")


async def prove(folder: Path, entries: int, returning: int) -> dict[str, Any]:
    """The whole story; the figures."""
    first, second = folder / "first", folder / "second"
    async with site() as place:
        await place.start(place.relays[0])
        disk = Snapshot(place, folder)
        async with AsyncExitStack() as stack:
            device = await stack.enter_async_context(Device.open(first, relay=place.origin))
            vault = await device.create_vault("reconcile")
            await write(vault, range(entries))
            async with Device.open(second, relay=place.origin) as other:
                joined = await join(vault, other)
                await write(joined, range(0))
                await stated(first, second)
                for each in (vault, joined):
                    await each.synced()
            await disk.back_up()
            await write(vault, range(entries, entries + SIDE))
        await place.kill(place.relays[0])
        await disk.restore()
        await place.start(place.relays[0])
        async with Device.open(second, relay=place.origin) as other:
            await write(other.vaults[0], range(entries + SIDE, entries + 2 * SIDE))
        figures = await come_home(place, first)
        async with Device.open(second, relay=place.origin) as other:
            await write(other.vaults[0], range(0))
            items = await opened(other.vaults[0])
            figures["second_has"] = len(items)
        return figures | await all_at_once(place, first, returning)


async def come_home(place: Site, folder: Path) -> dict[str, Any]:
    """The first device, back: what that took."""
    fetched = await place.relays[0].figure("sealwire_fetched_records_total")
    records = await place.relays[0].figure("sealwire_records_total")
    before, began = place.front.carried_bytes, time.monotonic()
    async with Device.open(folder, relay=place.origin) as device:
        vault = device.vaults[0]
        items = await opened(vault)
        with trio.fail_after(HOME_S_MAX):
            await vault.synced()
        seconds = time.monotonic() - began
        wire = place.front.carried_bytes - before
        return {
            "home_s": round(seconds, 2),
            "wire_bytes": wire,
            "fetched": int(await place.relays[0].figure("sealwire_fetched_records_total") - fetched),
            "given_back": int(await place.relays[0].figure("sealwire_records_total") - records),
            "first_has": len(items),
        }


async def all_at_once(place: Site, folder: Path, returning: int) -> dict[str, Any]:
    """So many connections compare the stream at once, of a relay that has just started."""
    await place.kill(place.relays[0])
    await place.start(place.relays[0])
    async with Device.open(folder) as device:
        vault = device.vaults[0]
        items = await opened(vault)
        ask = Reconcile(NO_REQUEST, vault.id, items.held.stream, START, (ROOT,))
        identity = device._identities.present  # five hundred connections of one device do
    sums: set[Summary] = set()
    began = time.monotonic()
    with trio.fail_after(HOME_S_MAX):
        async with open_nursery() as nursery:

            async def compare() -> None:
                link = Link(place.origin, identity)
                nursery.start_soon(link.run)
                await link.until(lambda link: link.state is LinkState.ONLINE)
                answer = await link.request(ask)
                assert isinstance(answer, Ranges)
                sums.add(answer.total)

            async with open_nursery() as comparing:
                for _ in range(returning):
                    comparing.start_soon(compare)
            nursery.cancel_scope.cancel()
    return {
        "returning": returning,
        "returning_s": round(time.monotonic() - began, 2),
        "scans": int(await place.relays[0].figure("sealwire_scans_total")),
        "sums_told": len(sums),
    }


def run(short: bool) -> dict[str, object]:
    """The proof: ok if nothing but the difference travelled, in time if it is the long one, and one scan served all."""
    entries = 20_000 if short else 1_000_000
    with tempfile.TemporaryDirectory(prefix="reconcile-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        told = trio.run(prove, Path(name), entries, RETURNING_SHORT if short else RETURNING)
    in_time = short or told["home_s"] < SECONDS_MAX
    right = told["first_has"] == told["second_has"] == entries + 2 * SIDE
    only_those = told["fetched"] == told["given_back"] == SIDE and told["wire_bytes"] < WIRE_BYTES_MAX
    return {
        "ok": right and only_those and in_time and told["scans"] == told["sums_told"] == 1,
        "entries": entries,
        "differing": 2 * SIDE,
        **told,
    }
