"""Devices whose relay was set back, or lost everything: what they hold brings it to where it was (R9 to R15)."""

import random
from collections.abc import Sequence
from copy import deepcopy

import pytest
import trio
import trio.testing

from sealwire_client.device import Device
from sealwire_client.sending import ConflictError, explained
from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.limits import FETCH_RECORDS_MAX
from sealwire_protocol.messages import Deliver, Done, Fault, Message, Push, Ranges, Records
from tests.client.guarded import Account, Card, Seat, agree, seated, shown, table
from tests.client.party import (
    Note,
    cut_off,
    in_step,
    joined,
    party,
    put_many,
    records,
    returned,
    sent_by,
    stream_of,
)
from tests.support.virtual import virtual

# --- what comes back


@virtual
async def test_what_the_relay_lost_comes_back_and_what_was_deleted_stays_so(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 3) as guests:
        a, b, c = guests
        await put_many(a, "kept", 40)
        await in_step(guests)
        backup = memory_relay.backup()
        await put_many(a, "a", 30)
        await put_many(b, "b", 30)
        for number in range(20):
            await c.notes.delete(f"kept{number}")
        await b.notes.put("kept30", Note("changed"))
        await in_step(guests)
        before = a.dump()
        memory_relay.restore(backup)
        await in_step(guests)
        assert a.dump() == before
        assert len(before) == 80
        status = await a.vault.status()
        assert (status.state, status.stuck, status.last_error) == ("synced", 0, None)
        await a.notes.put("later", Note("goes on"))
        await in_step(guests)
        async with open_device("newcomer") as device:
            newcomer = await joined(device, a.vault)
            await in_step([*guests, newcomer])


@virtual
async def test_new_writes_that_pass_the_old_cursors_hide_nothing_from_who_returns_last(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await put_many(a, "kept", 5)
        await in_step(guests)
        backup = memory_relay.backup()
        await put_many(a, "lost", 5)
        await b.notes.delete("kept0")
        await in_step(guests)
        before = a.dump()
    memory_relay.restore(backup)
    async with open_device("device 0") as device:
        a = await returned(device)
        await put_many(a, "new", 20)
        await in_step([a])
        async with open_device("device 1") as other:
            b = await returned(other)
            await in_step([a, b])
            assert b.dump() == {**before, **{f"new{number}": "new" for number in range(20)}}


def set_back_beneath(relay: MemoryRelay, backup: MemoryLog) -> None:
    """Set the database back while the relay goes on under its term, until it notices that when it is to write."""
    relay.cut()
    relay.log = deepcopy(backup)

    def notice(message: Message) -> Sequence[Message]:
        if isinstance(message, Push):
            relay.mishear = None
            relay.new_term()
        return [message]

    relay.mishear = notice


@pytest.mark.parametrize("written", [0, 5], ids=["before the term wrote anything", "in its midst"])
def test_a_relay_that_has_not_noticed_yet_that_it_was_set_back_gets_everything_back(
    open_device: OpenDevice, memory_relay: MemoryRelay, written: int
) -> None:
    @virtual
    async def once() -> None:
        async with party(open_device, 1) as [a]:
            await put_many(a, "kept", 5)
            await a.vault.synced()
            memory_relay.restart()
            await put_many(a, "of the term", written)
            await a.vault.synced()
            backup = memory_relay.backup()
            await put_many(a, "lost", 5)
            await a.vault.synced()
            set_back_beneath(memory_relay, backup)
            await a.notes.put("later", Note("goes on"))
            await a.vault.synced()
            async with open_device("newcomer") as device:
                await in_step([a, await joined(device, a.vault)])
            assert len(a.dump()) == written + 11

    once()


@virtual
async def test_a_relay_that_has_lost_everything_is_filled_again_by_whoever_comes_first(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 3) as guests:
        await put_many(guests[0], "kept", 10)
        await in_step(guests)
        before = guests[0].dump()
    empty = MemoryLog()
    empty.open_term()
    memory_relay.restore(empty)
    async with open_device("device 2") as device:
        last = await returned(device)
        await in_step([last])
        assert last.dump() == before
        async with open_device("device 0") as first:
            await in_step([last, await returned(first)])
            assert (await last.vault.status()).last_error is None
            async with open_device("newcomer") as new:
                newcomer = await joined(new, (await returned(first)).vault)
                await in_step([last, newcomer])
                assert newcomer.dump() == before


@virtual
async def test_links_are_given_back_as_often_as_they_are_lost_on_one_connection_too(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        await put_many(guests[0], "kept", 10)
        await in_step(guests)
        before = guests[0].dump()
        for _ in range(3):
            empty = MemoryLog()
            empty.open_term()
            empty.open_term()
            memory_relay.log = empty
            memory_relay.new_term()
            await in_step(guests)
            assert [guest.dump() for guest in guests] == [before, before]
            assert len(empty.vaults[guests[0].vault.id].links) == 2


@virtual
async def test_links_that_the_relay_cannot_take_now_are_given_back_later(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests:
        await put_many(guests[0], "kept", 10)
        await in_step(guests)
    refused: list[Message] = []

    def busy(message: Message) -> Sequence[Message]:
        if not isinstance(message, Done) or refused:
            return [message]
        refused.append(message)
        return [Fault(message.request, guests[0].vault.id, FaultCode.OVERLOADED, Action.RETRY, 2_000, "try again")]

    empty = MemoryLog()
    empty.open_term()
    memory_relay.restore(empty)
    memory_relay.alter = busy
    async with open_device("device 0") as device:
        await in_step([await returned(device)])
    assert refused


@virtual
async def test_a_member_that_the_relay_has_forgotten_comes_back_by_itself(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        backup = memory_relay.backup()
        async with open_device("b") as device:
            b = await joined(device, a.vault)
            await b.notes.put("x", Note("by the new member"))
            await in_step([a, b])
            memory_relay.restore(backup)
            await in_step([a, b])
            assert a.dump() == {"x": "by the new member"}
            assert (await b.vault.status()).members == 2
            await b.notes.put("y", Note("goes on"))
            await in_step([a, b])


@virtual
async def test_edits_made_meanwhile_are_sent_upon_what_comes_back(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        backup = memory_relay.backup()
        await a.notes.put("x", Note("lost"))
        await in_step(guests)
        async with cut_off(memory_relay):
            memory_relay.restore(backup)
            memory_relay.stop()
            await a.notes.put("x", Note("edited"))
            await b.notes.put("y", Note("made"))
        await in_step(guests)
        assert a.dump() == {"x": "edited", "y": "made"}


@virtual
async def test_a_write_whose_answer_came_before_the_loss_is_given_back(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("kept"))
        await in_step(guests)
        backup = memory_relay.backup()
        memory_relay.alter = lambda message: [] if isinstance(message, Deliver) else [message]
        write = await a.notes.put("y", Note("answered, and never delivered"))
        await write.durable()
        assert b.dump() == {"x": "kept"}
        memory_relay.alter = None
        memory_relay.restore(backup)
        await in_step(guests)
        assert b.dump() == {"x": "kept", "y": "answered, and never delivered"}


@virtual
async def test_after_a_second_loss_in_the_midst_of_it_all_of_it_comes_back_as_well(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 3) as guests:
        a, b, _ = guests
        backups = [memory_relay.backup()]
        for step in range(4):
            await put_many(a, f"a{step}-", 5)
            await b.notes.put("shared", Note(f"{step}"))
            await in_step(guests)
            backups.append(memory_relay.backup())
        before = a.dump()
        for seconds in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
            memory_relay.restore(random.choice(backups))
            await trio.sleep(seconds)
        await in_step(guests)
        assert a.dump() == before


@virtual
async def test_only_what_differs_travels(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        for number in range(4):
            await put_many(a, f"kept{number}-", 500)
        await in_step(guests)
        backup = memory_relay.backup()
        await put_many(a, "lost", 7)
        await in_step(guests)
        memory_relay.restore(backup)
        with sent_by(memory_relay) as sent:
            await in_step(guests)
        ranges = [message for message in sent if isinstance(message, Ranges)]
        assert ranges
        assert not [message for message in sent if isinstance(message, Records) and message.records]
        delivers = [message for message in sent if isinstance(message, Deliver) and message.stream != MEMBERSHIP]
        assert sum(deliver.last - deliver.prev for deliver in delivers) <= 4 * 7


@virtual
async def test_more_than_one_request_can_fetch_is_fetched(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    """A device that the relay takes for one of another history has to compare, and lacks more than it has."""
    count = 2 * FETCH_RECORDS_MAX + 10
    async with party(open_device) as guests:
        a, b = guests
        await b.notes.put("x", Note("kept"))
        await in_step(guests)
    async with open_device("device 0") as device:
        a = await returned(device)
        for number in range(0, count, 500):
            await put_many(a, f"n{number}-", min(500, count - number))
        await in_step([a])
        log = memory_relay.log.vaults[a.vault.id].streams[stream_of(memory_relay, a.vault)]
        log.terms[0] = log.terms[0]._replace(term=log.terms[0].term._replace(id=b"another."))
        memory_relay.cut()
        async with open_device("device 1") as other:
            b = await returned(other)
            await in_step([a, b])
            assert len(b.notes) == count + 1


# --- guarded collections


@virtual
async def test_guarded_collections_come_back_and_both_sides_edits_are_merged(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card("title", labels=frozenset("a")))
        await agree(seats)
        backup = memory_relay.backup()
        await a.cards.put("x", Card("title", labels=frozenset("ab")))
        await a.cards.put("y", Card("lost"))
        await b.accounts.put("purse", Account(5))
        await agree(seats)
    memory_relay.restore(backup)
    async with open_device("device 1") as device:
        b = await seat_of(device)
        before = shown(b)
        await agree([b])
        assert shown(b) == before
        await b.cards.put("x", Card("title", labels=frozenset("abc")))
        await agree([b])
        async with open_device("device 0") as other:
            a = await seat_of(other)
            await agree([a, b])
            assert a.cards.get("x") == Card("title", labels=frozenset("abc"))
            assert a.cards.get("y") == Card("lost")
            assert a.accounts.get("purse") == Account(5)
            assert (await a.vault.status()).stuck == 0


async def seat_of(device: Device) -> Seat:
    """A device that holds its vault already."""
    return await seated(await returned(device))


@virtual
async def test_who_wrote_without_knowing_of_the_loss_is_merged_with_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """A device that was away before the loss, and knows nothing of what was lost, writes first."""
    async with table(open_device) as seats:
        await seats[0].cards.put("x", Card("first"))
        await agree(seats)
        backup = memory_relay.backup()
    async with open_device("device 0") as device:
        a = await seat_of(device)
        await agree([a])
        await a.cards.put("x", Card("first", owner="a"))
        await a.accounts.put("purse", Account(5))
        await agree([a])
    memory_relay.restore(backup)
    async with open_device("device 1") as device:
        b = await seat_of(device)
        await agree([b])
        await b.cards.put("x", Card("first", labels=frozenset("b")))
        await b.accounts.put("purse", Account(7))
        await agree([b])
        async with open_device("device 0") as other:
            a = await seat_of(other)
            await agree([a, b])
            card = a.cards.get("x")
            assert card is not None
            assert (card.owner, card.labels) == ("a", frozenset("b"))
            assert a.accounts.get("purse") == Account(7)
            (stuck,) = await a.vault.stuck()
            assert (stuck.collection, stuck.key) == ("accounts", "purse")
            assert "given back" in stuck.reason
            assert explained("given back late") == stuck.reason
            assert await a.vault.discard("accounts", "purse")
            await a.accounts.put("purse", Account(8))
            await agree([a, b])


@virtual
async def test_a_transfer_is_given_back_whole(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        for name in "ab":
            await a.accounts.put(name, Account(50))
        await agree(seats)
        backup = memory_relay.backup()
        async with a.vault.transaction():
            await a.accounts.put("a", Account(40))
            await a.accounts.put("b", Account(60))
        await agree(seats)
        memory_relay.restore(backup)
        await agree(seats)
        assert [account for _, account in sorted(b.accounts.items())] == [Account(40), Account(60)]


@virtual
async def test_a_transfer_that_was_made_and_lost_before_anybody_heard_of_it_is_told_not_to_be_made(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device, 1) as (a,):
        await a.accounts.put("a", Account(50))
        backup = memory_relay.backup()
        await a.accounts.put_many({"a": Account(40), "b": Account(10)})
        memory_relay.delay = 0.1
        memory_relay.lose_answers(1)

        async def transfer() -> None:
            with pytest.raises(ConflictError):
                await a.accounts.put_many({"a": Account(0), "b": Account(50)})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer)
            await trio.sleep(0.11)
            assert records(memory_relay, a.vault) == 5
            memory_relay.restore(backup)
        await agree([a])
        assert dict(a.accounts.items()) == {"a": Account(40), "b": Account(10)}
        assert await a.vault.stuck() == []
        await a.accounts.put_many({"a": Account(0), "b": Account(50)})
