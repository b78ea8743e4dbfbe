"""Transactions: all edits of a block or none of them, here at once and at the relay as one push."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client.replica import Change, Kind, Place
from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.log import Verdict
from sealwire_client.transactions import TransactionError
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.limits import PUSH_GROUPS_MAX, PUSH_RECORDS_MAX
from sealwire_protocol.messages import ATOMIC, Push
from tests.client.cutting import cut_everywhere
from tests.client.guarded import Account, Card, agree, seated, table
from tests.client.party import Note, appended_twice, cut_off, founded, in_step, notes_of, party, records, returned
from tests.support.virtual import virtual


class Stop(Exception):
    """Raised within a block."""


def pushes(monkeypatch: pytest.MonkeyPatch) -> list[Push]:
    """Collects what devices push."""
    found: list[Push] = []
    judge = MemoryLog.push

    def push(log: MemoryLog, device: DeviceKey, message: Push) -> Verdict:
        found.append(message)
        return judge(log, device, message)

    monkeypatch.setattr(MemoryLog, "push", push)
    return found


# --- in the block


@virtual
async def test_edits_are_made_at_the_end_of_the_block_together(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        notes, theirs = a.guest.notes, b.guest.notes
        await notes.put("gone", Note("before"))
        with a.cards.changes() as changes:
            async with a.vault.transaction() as made:
                write = await a.cards.put("x", Card("one"))
                await a.cards.put("x", Card("two"))
                await notes.put("n", Note("with it"))
                await notes.delete("gone")
                assert (a.cards.get("x"), notes.get("n"), notes.get("gone")) == (Card("two"), Note("with it"), None)
                assert "x" in a.cards
                assert a.titles() == {}
                assert a.guest.dump() == {"gone": "before"}
                for unmade in (write, made):
                    with pytest.raises(TransactionError, match="leave its block first"):
                        await unmade.durable()
            assert a.titles() == {"x": "two"}
            assert await anext(changes) == [Change("x", Kind.INSERTED)]
        assert (await write.durable()).place is Place.RELAY
        assert (await made.durable()).place is Place.RELAY
        await agree(seats)
        assert b.guest.dump() == {"n": "with it"}
        assert theirs.get("n") == Note("with it")


@virtual
async def test_an_exception_makes_none_of_them(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device, 1) as (a,):

        async def fails() -> None:
            async with a.vault.transaction():
                await a.cards.put("x", Card("never"))
                await a.accounts.put("a", Account(1))
                raise Stop

        with pytest.raises(Stop):
            await fails()
        with trio.CancelScope() as scope:
            async with a.vault.transaction():
                await a.cards.put("y", Card("never"))
                scope.cancel()
                await trio.lowlevel.checkpoint()
        await a.cards.put("z", Card("after"))
        await a.vault.synced()
        assert a.titles() == {"z": "after"}
        assert records(memory_relay, a.vault) == 1


@virtual
async def test_a_block_without_edits_does_nothing(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device, 1) as (a,):
        async with a.vault.transaction() as made:
            assert a.cards.get("x") is None
        assert (await made.durable()).place is Place.RELAY
        assert (await a.vault.status()).pending == 0


@virtual
async def test_what_a_transaction_cannot_do_changes_nothing(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as device:
        home, other = await founded(device), await founded(device, "other")
        async with home.vault.transaction():
            with pytest.raises(TransactionError, match="another"):
                await other.notes.put("x", Note("x"))
            with pytest.raises(TransactionError, match="another"):
                other.notes.get("x")
            with pytest.raises(TransactionError, match="within another"):
                async with home.vault.transaction():
                    raise AssertionError("it was begun")
            await home.notes.put("kept", Note("kept"))
        with pytest.raises(TransactionError, match=rf"{PUSH_RECORDS_MAX + 1} edits"):
            async with home.vault.transaction():
                await home.notes.put_many((f"key {n}", Note("x")) for n in range(PUSH_RECORDS_MAX + 1))
        with pytest.raises(TransactionError, match="bytes"):
            async with home.vault.transaction():
                await home.notes.put_many((f"key {n}", Note("x" * 60_000)) for n in range(5))
        many = [await notes_of(home.vault, f"notes{number}") for number in range(PUSH_GROUPS_MAX + 1)]

        async def in_all() -> None:
            async with home.vault.transaction():
                for notes in many:
                    await notes.put("x", Note("x"))

        with pytest.raises(TransactionError, match=f"{len(many)} collections"):
            await in_all()
        assert (home.dump(), other.dump()) == ({"kept": "kept"}, {})
        assert (await home.vault.status()).pending <= 1


@virtual
async def test_tasks_begun_in_the_block_take_part_until_its_end(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device, 1) as (a,):
        leave, left = trio.Event(), trio.Event()

        async def within() -> None:
            await a.cards.put("x", Card("together"))
            leave.set()
            await left.wait()
            await a.cards.put("y", Card("alone"))
            assert a.titles() == {"x": "together", "y": "alone", "z": "together"}

        async def beside() -> None:
            await leave.wait()
            await a.cards.put("w", Card("of nobody's"))
            assert a.titles() == {"w": "of nobody's"}
            await a.cards.delete("w")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beside)
            async with a.vault.transaction():
                nursery.start_soon(within)
                await leave.wait()
                await trio.testing.wait_all_tasks_blocked()
                await a.cards.put("z", Card("together"))
            left.set()


# --- at the relay


@virtual
async def test_a_transaction_is_one_atomic_push(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device) as seats:
        a, _ = seats
        found = pushes(monkeypatch)
        async with cut_off(memory_relay):
            await a.cards.put("before", Card())
            async with a.vault.transaction():
                await a.cards.put("x", Card("together"))
                await a.guest.notes.put("x", Note("together"))
            await a.cards.put("x", Card("after"))
        await agree(seats)
        assert [(push.flags, sum(g.conditions != b"" for g in push.groups), len(push.groups)) for push in found] == [
            (0, 1, 1),
            (ATOMIC, 1, 2),
            (0, 1, 1),
        ]
        assert a.titles() == {"before": "", "x": "after"}


@virtual
async def test_a_transaction_of_one_edit_is_an_edit_like_others(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device, 1) as (a,):
        await a.vault.synced()
        async with cut_off(memory_relay):
            for number in range(5):
                async with a.vault.transaction():
                    await a.cards.put("x", Card(count=number))
        await a.vault.synced()
        assert records(memory_relay, a.vault) == 1


@virtual
async def test_one_conflict_brings_all_of_it_back_and_it_is_sent_again_whole(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put_many({"x": Card(), "y": Card()})
        await agree(seats)
        found = pushes(monkeypatch)
        memory_relay.delay = 0.05
        await b.cards.put("x", Card(owner="b's"))
        await trio.sleep(0.01)
        async with a.vault.transaction() as made:
            for key in "xy":
                await a.cards.put(key, Card(title="a's"))
        await agree(seats)
        assert dict(b.cards.items()) == {"x": Card("a's", "b's"), "y": Card("a's")}
        assert (await made.durable()).place is Place.RELAY
        assert [push.flags for push in found] == [0, ATOMIC, ATOMIC]
        assert [sum(len(group.conditions) > 0 for group in push.groups) for push in found] == [1, 1, 1]
        assert records(memory_relay, a.vault) == 5


@virtual
async def test_what_is_read_in_the_block_is_what_its_edits_are_based_on(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """What comes in between is not undone, be it another device's or another task's."""
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card("first", "first"))
        await agree(seats)
        begin, done = [trio.Event(), trio.Event()], [trio.Event(), trio.Event()]

        async def others() -> None:
            await begin[0].wait()
            await b.cards.put("x", Card("first", "b's"))
            await agree(seats)
            done[0].set()
            await begin[1].wait()
            card = a.cards.get("x")
            assert card is not None
            await a.cards.put("x", replace(card, count=7))
            done[1].set()

        async def edit(turn: int, title: str) -> None:
            async with a.vault.transaction():
                card = a.cards.get("x")
                assert card is not None
                begin[turn].set()
                await done[turn].wait()
                await a.cards.put("x", replace(card, title=title))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await edit(0, "a's")
            await agree(seats)
            assert a.cards.get("x") == Card("a's", "b's")
            async with cut_off(memory_relay):
                await edit(1, "a's, later")
            await agree(seats)
            assert a.cards.get("x") == Card("a's, later", "b's", count=7)


# --- breaks


async def _transact(open_device: OpenDevice, relay: MemoryRelay, cut_after: int) -> bool:
    """Transactions that share keys, and edits between them, while connections break. Each other device sees all of a
    transaction or nothing of it."""
    async with table(open_device) as seats:
        a, b = seats
        await agree(seats)
        dialled = relay.dialled
        relay.cut_after(cut_after)
        for number in range(2):
            for keys in ("xy", "yz"):
                async with a.vault.transaction():
                    for key in keys:
                        await a.cards.put(key, Card(keys, count=number))
                await trio.testing.wait_all_tasks_blocked()
            await a.cards.put("x", Card("alone", count=number))
        await agree(seats)
        assert dict(b.cards.items()) == {
            "x": Card("alone", count=1),
            "y": Card("yz", count=1),
            "z": Card("yz", count=1),
        }
        assert appended_twice(relay) == []
        return relay.dialled > dialled


@virtual
async def test_transactions_keep_their_order_wherever_the_connection_breaks(tmp_path: Path) -> None:
    await cut_everywhere(tmp_path, _transact, more_than=10, less_than=80)


@virtual
async def test_a_transaction_stays_whole_over_restarts(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, _ = seats
        await a.cards.put("y", Card("before"))
        await agree(seats)
        memory_relay.stop()
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            async with a.vault.transaction():
                await a.cards.put("x", Card("x", count=number))
                await a.cards.delete("y")
                await a.guest.notes.put("n", Note("with it", number))
    async with open_device("device 0") as device:  # only one of the collections is open: nothing of it is sent
        memory_relay.start()
        a_again = await returned(device)
        await trio.sleep(100)
        assert records(memory_relay, a_again.vault) == 1
        memory_relay.lose_answers(1)
        a = await seated(a_again)
        await a.vault.synced()
        assert a.titles() == {"x": "x"}
    async with table(open_device) as seats:
        await agree(seats)
        assert seats[1].cards.get("x") == Card("x", count=2)
        assert seats[1].guest.dump() == {"n": "with it"}


@virtual
async def test_transactions_of_open_collections_are_whole_too(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        async with cut_off(memory_relay):
            for number in range(3):
                async with a.vault.transaction():
                    await a.notes.put("x", Note("a's", number))
                    await a.notes.put(f"y{number}", Note("a's", number))
            await b.notes.put("x", Note("b's"))
        await in_step(guests)
        assert set(b.dump()) == {"x", "y0", "y1", "y2"}
