"""Devices and the real relay, which is set back to a backup while they hold more: all of it comes back (R9 to R15)."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sealwire_client.collection import Collection
from sealwire_client.counters import Counters
from sealwire_client.device import Device
from sealwire_client.policies import merge, strict
from tests.client.guarded import Account, Card
from tests.client.party import Guest, Note, Open, all_synced, founded, joined, returned
from tests.client.realrelay import RealRelay, real_relay
from tests.support.vaults import all_have_read

pytestmark = pytest.mark.trio


@pytest.fixture
def relay() -> Iterator[RealRelay]:
    """A fresh relay."""
    with real_relay() as relay:
        yield relay


@pytest.fixture
def open_device(relay: RealRelay, tmp_path: Path) -> Open:
    """Opens devices of that relay."""
    return lambda name: Device.open(tmp_path / name, relay=relay.origin)


class House:
    """A device with a collection of each kind."""

    def __init__(self, guest: Guest, cards: Collection[Card], accounts: Collection[Account], tallies: Counters) -> None:
        self.guest, self.vault, self.notes = guest, guest.vault, guest.notes
        self.cards, self.accounts, self.tallies = cards, accounts, tallies

    def shown(self) -> list[object]:
        """All that it shows."""
        entries: list[object] = [dict(one.items()) for one in (self.notes, self.cards, self.accounts)]
        return [*entries, dict(self.tallies.items())]


async def furnished(guest: Guest) -> House:
    """With all collections open."""
    cards = await guest.vault.collection("cards", Card, policy=merge())
    accounts = await guest.vault.collection("accounts", Account, policy=strict())
    return House(guest, cards, accounts, await guest.vault.counters("tallies"))


@asynccontextmanager
async def houses(open_device: Open, names: str) -> AsyncIterator[list[House]]:
    """Devices that have the vault already, each named by a letter."""
    async with _opened(open_device, names) as devices:
        yield [await furnished(await returned(device)) for device in devices]


@asynccontextmanager
async def _opened(open_device: Open, names: str) -> AsyncIterator[list[Device]]:
    if not names:
        yield []
        return
    async with open_device(names[0]) as device, _opened(open_device, names[1:]) as others:
        yield [device, *others]


async def agree(*found: House) -> None:
    """Wait until everything was sent, and all show the same."""
    await all_synced([house.vault for house in found])
    await all_have_read([house.vault for house in found])
    assert all(house.shown() == found[0].shown() for house in found)


async def test_the_real_relay_is_filled_up_again_in_collections_of_every_kind(
    open_device: Open, relay: RealRelay
) -> None:
    async with _opened(open_device, "abc") as devices:
        a = await furnished(await founded(devices[0]))
        b, c = [await furnished(await joined(device, a.vault)) for device in devices[1:]]
        await agree(a, b, c)
        await a.notes.put_many([(f"kept{number}", Note("kept")) for number in range(100)])
        await a.cards.put("card", Card("first"))
        await a.accounts.put("purse", Account(5))
        await a.tallies.add("visits", 3)
        await agree(a, b, c)
        await relay.backup()
        await a.notes.put_many([(f"lost{number}", Note("lost")) for number in range(400)])
        for number in range(50):
            await b.notes.delete(f"kept{number}")
        await b.cards.put("card", Card("first", owner="b"))
        await b.accounts.put("purse", Account(7))
        await b.tallies.add("visits", 4)
        await c.cards.put("other", Card("lost"))
        await c.tallies.add("visits", 5)
        await agree(a, b, c)
        before = a.shown()
    await relay.restore()
    async with houses(open_device, "b") as (b,):
        await b.notes.put_many([(f"new{number}", Note("new")) for number in range(600)])
        await agree(b)
        async with houses(open_device, "ac") as (a, c):
            await agree(a, b, c)
            for number in range(600):
                await c.notes.delete(f"new{number}")
            await agree(a, b, c)
            assert a.shown() == before
            assert a.tallies.get("visits") == 12
            status = await a.vault.status()
            assert (status.stuck, status.unreadable, status.last_error) == (0, 0, None)


async def test_a_relay_set_back_to_before_the_vault_gets_it_back_from_any_member(
    open_device: Open, relay: RealRelay
) -> None:
    await relay.backup()
    async with _opened(open_device, "ab") as devices:
        a = await furnished(await founded(devices[0]))
        b = await furnished(await joined(devices[1], a.vault))
        await a.notes.put("x", Note("kept"))
        await b.cards.put("card", Card("kept"))
        await b.tallies.add("visits", 4)
        await agree(a, b)
        before = a.shown()
    await relay.restore()
    async with houses(open_device, "b") as (b,):
        await agree(b)
        assert b.shown() == before
        async with houses(open_device, "a") as (a,):
            await agree(a, b)
            assert a.shown() == before
