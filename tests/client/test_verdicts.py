"""Verdicts that come when nobody expects them any more: the app was started again meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from sealwire_client.collection import Collection
from sealwire_client.policies import merge
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.messages import Deliver, Message, Pushed, Subscribed
from tests.client.party import Guest, party
from tests.support.virtual import virtual


@dataclass(frozen=True)
class Card:
    """Two sides, each edited by another device."""

    front: str = ""
    back: str = ""


Cards = Collection[Card]


async def cards_of(vault: Vault) -> Cards:
    return await vault.collection("cards", Card, policy=merge())


def swallowing_verdicts(relay: MemoryRelay) -> Callable[[], None]:
    """The relay commits, and nobody hears of it until the function is called that this returns."""
    before = relay.alter

    def silence() -> None:
        relay.alter = before

    relay.alter = lambda message: [] if isinstance(message, Pushed) else [message]
    return silence


@virtual
async def test_a_refusal_that_comes_after_a_restart_waits_for_its_collection(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as (a, b):
        cards = [await cards_of(guest.vault) for guest in (a, b)]
        await cards[0].put("x", Card())
        for guest in (a, b):
            await guest.vault.synced()
        memory_relay.delay = 0.5
        speak = swallowing_verdicts(memory_relay)
        await cards[0].put("x", Card(front="a's"))
        await cards[1].put("x", Card(back="b's"))
        await trio.sleep(10)
    speak()
    async with party(open_device) as (a, b):
        await trio.sleep(10)
        cards = [await cards_of(guest.vault) for guest in (a, b)]
        for guest in (a, b, a, b):
            await guest.vault.synced()
        assert [held.get("x") for held in cards] == [Card("a's", "b's")] * 2


@virtual
async def test_a_refused_edit_waits_for_the_winner_though_the_relay_tells_an_older_head_meanwhile(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """A SUBSCRIBE may be answered from a view of the log that is older than a verdict sent before that answer."""
    async with party(open_device) as guests:
        cards = [await cards_of(guest.vault) for guest in guests]
        await cards[0].put("x", Card())
        await agree(guests)
        stream = cards[0].held.stream
        older: list[Subscribed] = []
        silent = False

        def alter(message: Message) -> list[Message]:
            if isinstance(message, Subscribed):
                streams = tuple(state for state in message.streams if state.stream == stream)
                older.append(replace(message, last_batch=0, streams=streams))
            if isinstance(message, Deliver) and message.stream == stream and silent:
                return []
            return [message, *older[-1:]] if isinstance(message, Pushed) and message.refused else [message]

        memory_relay.alter = alter
        for guest in guests:  # so that each is told the head as it is now
            await trio.sleep(2)
            guest.device.wake()
        await agree(guests)
        silent = True
        await cards[1].put("x", Card(back="b's"))
        await trio.sleep(5)
        await cards[0].put("x", Card(front="a's"))
        await trio.sleep(5)
        assert (await guests[0].vault.status()).stuck == 0
        silent = False
        await cards[1].put("y", Card())
        await agree(guests)
        assert [held.get("x") for held in cards] == [Card("a's", "b's")] * 2


async def agree(guests: Sequence[Guest]) -> None:
    """Wait until everything was sent and received."""
    for guest in (*guests, *guests):
        await guest.vault.synced()
