"""Sealing the next batch: what merging makes of values must still fit into records and pushes."""

import pytest
import trio

from sealwire_client.batching import TOO_LARGE_FOR_RELAY
from sealwire_client.replica import Place
from sealwire_client.sending import StrictError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.limits import SEGMENT_BYTES_MAX, Limits
from tests.client.guarded import Account, Card, Seat, agree, table
from tests.client.party import appended_twice, cut_off
from tests.support.virtual import virtual


def large(who: str, size: int = 20_000) -> Card:
    """A card of so many bytes, which grows when two of them are merged."""
    return Card(labels=frozenset({who.ljust(size, ".")}))


async def both_edit(seats: list[Seat], relay: MemoryRelay, size: int, together: bool) -> None:
    """b edits ten entries, and a the same ones, without knowledge of each other; b is first."""
    a, b = seats
    cards = {f"key {n}": large("a", size) for n in range(10)}
    async with cut_off(relay):
        if together:
            async with a.vault.transaction():
                await a.cards.put_many(cards)
        else:
            await a.cards.put_many(cards)
        await a.cards.put("other", Card("other"))
        relay.start()
        await b.cards.put_many({key: large("b", size) for key in cards})
        b.guest.device.wake()
        await b.vault.synced()


@virtual
async def test_edits_that_grow_beyond_a_push_are_sent_in_several(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        await both_edit(seats, memory_relay, 20_000, together=False)
        await agree(seats)
        merged = {card.labels for key, card in seats[0].cards.items("key")}
        assert merged == {large("a").labels | large("b").labels}
        assert sum(len(label) for card in merged for label in card) * 10 > SEGMENT_BYTES_MAX
        assert (await seats[0].vault.status()).stuck == 0
        assert appended_twice(memory_relay) == []


@virtual
async def test_a_transaction_that_grows_beyond_a_push_is_set_aside_whole(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        await both_edit(seats, memory_relay, 20_000, together=True)
        a, b = seats
        await a.vault.synced()
        await b.vault.synced()
        stuck = await a.vault.stuck()
        assert [(one.key, one.together) for one in stuck] == [(f"key {n}", True) for n in range(10)]
        assert TOO_LARGE_FOR_RELAY in stuck[0].reason
        assert b.titles() == {"other": "other", **{f"key {n}": "" for n in range(10)}}
        assert await a.vault.discard("cards", "key 3")
        await agree(seats)


@virtual
async def test_a_value_that_grows_beyond_a_record_is_set_aside_alone(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        async with cut_off(memory_relay):
            await a.cards.put_many({"x": large("a", 40_000), "y": large("a", 10)})
            memory_relay.start()
            await b.cards.put_many({"x": large("b", 40_000), "y": large("b", 10)})
            b.guest.device.wake()
            await b.vault.synced()
        await a.vault.synced()
        await b.vault.synced()
        assert [one.key for one in await a.vault.stuck()] == ["x"]
        assert b.cards.get("y") == Card(labels=large("a", 10).labels | large("b", 10).labels)
        assert a.cards.get("x") == large("a", 40_000)
        await a.cards.put("x", large("c", 20_000))
        await agree(seats)
        assert a.cards.get("x") == Card(labels=large("b", 40_000).labels | large("c", 20_000).labels)


@virtual
async def test_what_a_small_relay_does_not_take_at_once_is_told(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    memory_relay.limits = Limits(push_records=5)
    async with table(open_device, 1) as (a,):
        assert await a.cards.put_many({f"key {n}": Card() for n in range(20)}) == 20
        async with a.vault.transaction() as made:
            await a.cards.put_many({f"more {n}": Card() for n in range(6)})
        with trio.fail_after(60):
            assert (await made.durable()).place is Place.REFUSED
        with pytest.raises(StrictError, match="larger than this relay takes"):
            await a.accounts.put_many({f"key {n}": Account(n) for n in range(6)})
        await a.accounts.put_many({f"key {n}": Account(n) for n in range(5)})
        assert len(a.accounts) == 5
        await a.vault.synced()
        assert (await a.vault.status()).stuck == 6
