"""Guarded collections with `merge`: no edit is lost to another, and no device ever conflicts with itself."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client.merging import fields, last
from sealwire_client.policies import Policy, merge
from sealwire_client.replica import Change, Kind, Place
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Refusal
from sealwire_protocol.messages import Message, Pushed
from tests.client.cutting import cut_everywhere
from tests.client.guarded import Card, Seat, agree, fill, seated, table
from tests.client.late import late_writer
from tests.client.party import appended_twice, cut_off, records, returned
from tests.support.virtual import pass_time, virtual


def refusals(relay: MemoryRelay) -> list[tuple[int, Refusal]]:
    """Collects the refusals that the relay tells from now on: batch and reason."""
    found: list[tuple[int, Refusal]] = []

    def listen(message: Message) -> list[Message]:
        if isinstance(message, Pushed):
            found.extend((message.batch, refused.reason) for refused in message.refused)
        return [message]

    relay.alter = listen
    return found


# --- two devices


@virtual
async def test_edits_of_different_fields_made_offline_are_both_kept(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card("at first", "nobody", frozenset({"old"})))
        await agree(seats)
        async with cut_off(memory_relay):
            await a.cards.put("x", Card("a's", "nobody", frozenset({"old", "a"})))
            await b.cards.put("x", Card("at first", "b's", frozenset({"b"})))
        await agree(seats)
        assert a.cards.get("x") == Card("a's", "b's", frozenset({"a", "b"}))


@virtual
async def test_of_edits_of_one_field_the_one_that_comes_last_stays(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card("at first"))
        await agree(seats)
        async with cut_off(memory_relay):
            await a.cards.put("x", Card("a's"))
            await b.cards.put("x", Card("b's"))
            a.guest.device.wake()
            memory_relay.start()
            await a.vault.synced()
        await agree(seats)
        assert b.cards.get("x") == Card("b's")


@pytest.mark.parametrize(("policy", "kept"), [(merge(), True), (merge(fields), True), (merge(last), False)])
@pytest.mark.parametrize("deleted_first", [True, False])
def test_an_edit_against_a_delete(
    open_device: OpenDevice, memory_relay: MemoryRelay, policy: Policy, kept: bool, deleted_first: bool
) -> None:
    @virtual
    async def test() -> None:
        async with table(open_device, policy=policy) as seats:
            a, b = seats
            await a.cards.put("x", Card("at first"))
            await agree(seats)
            async with cut_off(memory_relay):
                await a.cards.delete("x")
                await b.cards.put("x", Card("edited"))
                first = a if deleted_first else b
                first.guest.device.wake()
                memory_relay.start()
                await first.vault.synced()
            await agree(seats)
            stays = kept or deleted_first
            assert a.titles() == ({"x": "edited"} if stays else {})

    test()


@virtual
async def test_two_new_entries_of_one_key_become_one(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        async with cut_off(memory_relay):
            await a.cards.put("x", Card(title="a's"))
            await b.cards.put("x", Card(owner="b's"))
        await agree(seats)
        assert a.cards.get("x") is not None


@virtual
async def test_a_refused_write_is_merged_with_the_winner_and_sent_under_a_new_number(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        told = refusals(memory_relay)
        memory_relay.delay = 0.05
        writes = [await a.cards.put("x", Card(title="a's")), await b.cards.put("x", Card(owner="b's"))]
        await agree(seats)
        assert [reason for _, reason in told] == [Refusal.CONFLICT]
        assert a.cards.get("x") == Card(title="a's", owner="b's")
        assert [(await write.durable()).place for write in writes] == [Place.RELAY] * 2
        assert records(memory_relay, a.vault) == 3


@virtual
async def test_a_newer_edit_waits_for_the_one_on_its_way_and_both_survive_its_refusal(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        told = refusals(memory_relay)
        memory_relay.delay = 0.05
        await b.cards.put("x", Card(owner="b's"))
        await trio.sleep(0.01)
        await a.cards.put("x", Card(title="first"))
        await trio.sleep(0.06)
        await a.cards.put("x", Card(title="first", count=2))
        await agree(seats)
        assert len(told) == 1
        assert b.cards.get("x") == Card("first", "b's", frozenset(), 2)


@virtual
async def test_watchers_hear_of_what_merging_made(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        async with cut_off(memory_relay):
            await a.cards.put("x", Card(title="a's"))
            await b.cards.put("x", Card(owner="b's"))
            with a.cards.changes() as ours, b.cards.changes() as theirs:
                memory_relay.start()
                await agree(seats)
                for changes in (ours, theirs):
                    assert Change("x", Kind.UPDATED) in (await anext(changes) or ())


@virtual
async def test_an_edit_that_says_what_the_log_says_is_not_sent(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card("same"))
        await agree(seats)
        sent = records(memory_relay, a.vault)
        write = await a.cards.put("x", Card("same"))
        await a.cards.delete("never there")
        async with cut_off(memory_relay):
            await a.cards.put("y", Card("both"))
            await b.cards.put("y", Card("both"))
        await agree(seats)
        assert records(memory_relay, a.vault) == sent + 1
        assert (await write.durable()).place is Place.RELAY


@virtual
async def test_an_edit_is_merged_with_what_came_after_a_restart(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        memory_relay.stop()
        await trio.testing.wait_all_tasks_blocked()
        await a.cards.put("x", Card(title="a's"))
    memory_relay.start()
    async with open_device("device 1") as device:
        b = await seated(await returned(device))
        await b.cards.put("x", Card(owner="b's"))
        await b.vault.synced()
    async with table(open_device) as seats:
        await agree(seats)
        assert seats[0].cards.get("x") == Card("a's", "b's")


# --- one device never conflicts with itself


async def _edit_much(open_device: OpenDevice, relay: MemoryRelay, cut_after: int) -> bool:
    """One device edits a few keys again and again; True if the connection broke before the end."""
    async with table(open_device, 1) as (a,):
        told = refusals(relay)
        dialled = relay.dialled
        relay.cut_after(cut_after)
        for number in range(6):
            for key in "xyz":
                await a.cards.put(key, Card(f"{key} {number}", count=number))
            async with a.vault.transaction():
                await a.cards.put("x", Card("together", count=number))
                await a.cards.delete("y")
            await trio.testing.wait_all_tasks_blocked()
        await a.vault.synced()
        assert told == []
        assert appended_twice(relay) == []
        assert a.titles() == {"x": "together", "z": "z 5"}
        assert (await a.vault.status()).stuck == 0
        return relay.dialled > dialled


@virtual
async def test_no_device_conflicts_with_itself_wherever_the_connection_breaks(tmp_path: Path) -> None:
    await cut_everywhere(tmp_path, _edit_much, more_than=15, less_than=80)


async def _meet(open_device: OpenDevice, relay: MemoryRelay, cut_after: int) -> bool:
    """Two devices edit different fields of the same entries while connections break."""
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put_many({key: Card(key) for key in "xyz"})
        await agree(seats)
        dialled = relay.dialled
        relay.cut_after(cut_after)
        for number in (1, 2):
            for key in "xyz":
                mine, theirs = a.cards.get(key), b.cards.get(key)
                assert mine is not None and theirs is not None
                await a.cards.put(key, replace(mine, title=f"{key} {number}"))
                await b.cards.put(key, replace(theirs, count=number))
            await trio.testing.wait_all_tasks_blocked()
        await agree(seats)
        assert dict(a.cards.items()) == {key: Card(f"{key} 2", count=2) for key in "xyz"}
        assert appended_twice(relay) == []
        return relay.dialled > dialled


@virtual
async def test_both_edits_are_kept_wherever_the_connections_break(tmp_path: Path) -> None:
    await cut_everywhere(tmp_path, _meet, more_than=15, less_than=120)


@virtual
async def test_a_lost_answer_brings_the_same_refusal_again(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        memory_relay.delay = 0.05
        memory_relay.lose_answers(3)
        await a.cards.put("x", Card(title="a's"))
        await b.cards.put("x", Card(owner="b's"))
        await agree(seats)
        assert a.cards.get("x") == Card("a's", "b's")
        assert records(memory_relay, a.vault) == 3
        assert appended_twice(memory_relay) == []


def trouble(chance: random.Random, relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something go wrong, or right again, by chance."""
    match chance.randrange(20):
        case 0 | 1:
            relay.cut_after(chance.randrange(1, 30))
        case 2:
            relay.lose_answers(chance.randrange(1, 4))
        case 3:
            relay.stop()
        case 4:
            fill(monkeypatch)
        case 5 | 6 | 7:
            relay.start()
            monkeypatch.undo()


async def add(seat: Seat, chance: random.Random, label: str, added: dict[str, set[str]]) -> None:
    """Add a member to the sets of some entries, alone or in a transaction, and slowly at times."""
    keys = chance.sample("xyz", chance.choice([1, 1, 2, 3]))
    async with seat.vault.transaction():
        for key in keys:
            card = seat.cards.get(key) or Card()
            if chance.random() < 0.3:
                await pass_time(chance.random() / 10)
            await seat.cards.put(key, replace(card, labels=card.labels | {label}))
            added[key].add(label)


async def retry_all(seats: Sequence[Seat]) -> None:
    """Send all that was refused for good again, until nothing is stuck."""
    for seat in seats:
        while stuck := await seat.vault.stuck():
            assert await seat.vault.retry(stuck[0].collection, stuck[0].key)
            await seat.vault.synced()


@pytest.mark.parametrize("number", range(8))
def test_plans_by_chance_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Devices add members to sets, offline and on, with a relay that is full at times, and are ended at any time."""

    @virtual
    async def test() -> None:
        chance = random.Random(number)
        relay = MemoryRelay()
        open_device = OpenDevice(tmp_path, relay, late_writer)
        added: dict[str, set[str]] = {key: set() for key in "xyz"}
        for run in range(4):
            async with table(open_device, 3) as seats:
                relay.delay = chance.choice([0, 0, 0.01, 0.2])
                for step in range(25):
                    async with trio.open_nursery() as nursery:
                        for place in range(chance.choice([1, 1, 2])):
                            label = f"{run}.{step}.{place}"
                            nursery.start_soon(add, chance.choice(seats), chance, label, added)
                    trouble(chance, relay, monkeypatch)
                    if chance.random() < 0.3:
                        await trio.sleep(chance.random())
                relay.start()
                monkeypatch.undo()
                if chance.random() < 0.5:
                    await retry_all(seats)
                    await agree(seats)
        async with table(open_device, 3) as seats:
            relay.delay = 0
            await retry_all(seats)
            await agree(seats)
            assert {key: set(card.labels) for key, card in seats[0].cards.items()} == added
        assert appended_twice(relay) == []

    test()
