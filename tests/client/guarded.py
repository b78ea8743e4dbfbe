"""Devices that share guarded collections, and what tests ask of them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from sealwire_client.collection import Collection
from sealwire_client.policies import Policy, merge, strict
from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.errors import Outcome
from sealwire_protocol.messages import Message, Pushed
from tests.client.party import Guest, all_synced, party


@dataclass(frozen=True)
class Card:
    """What these tests keep: fields that different devices edit."""

    title: str = ""
    owner: str = ""
    labels: frozenset[str] = frozenset()
    count: int = 0


@dataclass(frozen=True)
class Account:
    """Something that must be exactly right."""

    cents: int


class Seat(NamedTuple):
    """A device, its vault, and the collections of these tests."""

    guest: Guest
    vault: Vault
    cards: Collection[Card]
    accounts: Collection[Account]

    def titles(self) -> dict[str, str]:
        """What it shows of the cards."""
        return {key: card.title for key, card in self.cards.items()}


async def seated(guest: Guest, policy: Policy | None = None) -> Seat:
    """A guest with both collections open."""
    vault = guest.vault
    cards = await vault.collection("cards", Card, policy=policy or merge())
    return Seat(guest, vault, cards, await vault.collection("accounts", Account, policy=strict()))


@asynccontextmanager
async def table(open_device: OpenDevice, guests: int = 2, policy: Policy | None = None) -> AsyncIterator[list[Seat]]:
    """Devices in one vault with both collections open, in step. Called again: the same ones, come back."""
    async with party(open_device, guests) as found:
        seats = [await seated(guest, policy) for guest in found]
        yield seats


async def agree(seats: Sequence[Seat]) -> None:
    """Wait until all have sent and received everything. They show the same then."""
    await all_synced([seat.vault for seat in seats])
    assert all(shown(seat) == shown(seats[0]) for seat in seats)


def shown(seat: Seat) -> dict[str, Any]:
    """All that a device shows."""
    return {**dict(seat.cards.items()), **{f"account {key}": value for key, value in seat.accounts.items()}}


def altering(relay: MemoryRelay, verdict: Callable[[Pushed], Pushed]) -> None:
    """Let the relay tell other verdicts than its own."""

    def alter(message: Message) -> list[Message]:
        return [verdict(message) if isinstance(message, Pushed) else message]

    relay.alter = alter


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let relays have no room, until `monkeypatch.undo()`."""
    monkeypatch.setattr(MemoryLog, "_judge", lambda *_: (Outcome.QUOTA, {}))
