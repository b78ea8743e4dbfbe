"""Strict collections: a write is made on condition of what was shown, and is known to be made or not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sealwire_client.batching import Batcher
from sealwire_client.collection import Collection
from sealwire_client.policies import latest, merge, strict
from sealwire_client.replica import Change, Kind, NeedsNewerAppError, Place, ReplicaFullError, ReplicaMisuse
from sealwire_client.replica.aside import Aside
from sealwire_client.sending import ConflictError, OfflineError, StrictError
from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Outcome
from sealwire_protocol.links import LinkError
from sealwire_protocol.messages import Pushed
from tests.client.cutting import cut_everywhere
from tests.client.guarded import Account, Card, Seat, agree, altering, seated, table
from tests.client.party import appended_twice, cut_off, founded, joined, notes_of, records, returned, told
from tests.support.virtual import virtual


async def transfer(seat: Seat, cents: int) -> None:
    """Move money between two accounts."""
    async with seat.vault.transaction():
        giver, taker = seat.accounts.get("a"), seat.accounts.get("b")
        assert giver is not None and taker is not None
        await seat.accounts.put("a", Account(giver.cents - cents))
        await seat.accounts.put("b", Account(taker.cents + cents))


def no_room(told: Pushed) -> Pushed:
    """A verdict, turned into that of a relay without room. For `altering`."""
    return Pushed(told.vault, told.batch, Outcome.QUOTA, (), ())


# --- one write


@virtual
async def test_a_write_can_be_read_when_it_returns_and_not_before(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await agree(seats)
        memory_relay.delay = 1
        with a.accounts.changes() as changes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.accounts.put, "a", Account(5))
                await trio.sleep(0.9)
                assert a.accounts.get("a") is None
            assert a.accounts.get("a") == Account(5)
            assert await anext(changes) == [Change("a", Kind.INSERTED)]
        write = await a.accounts.delete("a")
        assert a.accounts.get("a") is None
        assert (await write.durable(wait=False)).place is Place.RELAY
        await agree(seats)
        assert list(b.accounts.items()) == []


@virtual
async def test_without_a_connection_it_fails_at_once_and_reading_goes_on(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, _ = seats
        await a.accounts.put("a", Account(5))
        async with cut_off(memory_relay):
            began = trio.current_time()
            with pytest.raises(OfflineError, match="no connection"):
                await a.accounts.put("a", Account(6))
            with pytest.raises(OfflineError):
                await a.accounts.delete("a")
            assert trio.current_time() == began
            assert a.accounts.get("a") == Account(5)
        await agree(seats)
        assert records(memory_relay, a.vault) == 1


@virtual
async def test_who_comes_second_is_told_and_can_read_the_winner_at_once(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        await seats[0].accounts.put("a", Account(0))
        await agree(seats)
        memory_relay.delay = 0.5
        failed: list[Account | None] = []

        async def put(seat: Seat, cents: int) -> None:
            try:
                await seat.accounts.put("a", Account(cents))
            except ConflictError:
                failed.append(seat.accounts.get("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, seats[0], 1)
            nursery.start_soon(put, seats[1], 2)
        assert failed in ([Account(1)], [Account(2)])
        await agree(seats)
        assert seats[0].accounts.get("a") == failed[0]
        assert [(await seat.vault.status()).stuck for seat in seats] == [0, 0]


@virtual
async def test_a_write_based_on_what_was_shown_before_catching_up_is_not_made(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Also one without a transaction: what it replaces was never shown to its user."""
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("a", Account(1))
        await agree(seats)
        memory_relay.delay = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.accounts.put, "a", Account(2))
            await trio.sleep(1.5)  # the relay has it, and a does not know yet
            assert a.accounts.get("a") == Account(1)
            with pytest.raises(ConflictError, match="came first"):
                await a.accounts.put("a", Account(3))
            assert a.accounts.get("a") == Account(2)
            await a.accounts.put("a", Account(3))


@virtual
async def test_two_tasks_of_one_device_write_one_after_the_other(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Each is based on what was shown to it, so one of two that saw the same must look again."""
    async with table(open_device, 1) as (a,):
        await a.accounts.put("a", Account(0))
        memory_relay.delay = 0.1

        async def add() -> None:
            while True:
                held = a.accounts.get("a")
                assert held is not None
                try:
                    await a.accounts.put("a", Account(held.cents + 1))
                    return
                except ConflictError:
                    continue

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(add)
        assert a.accounts.get("a") == Account(5)


@virtual
async def test_many_entries_are_put_all_or_none(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        assert await a.accounts.put_many({str(n): Account(n) for n in range(100)}) == 100
        await agree(seats)
        assert len(b.accounts) == 100
        memory_relay.delay = 0.5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.accounts.put, "7", Account(-7))
            await trio.sleep(0.6)
            with pytest.raises(ConflictError):
                await a.accounts.put_many({str(n): Account(0) for n in range(100)})
        assert a.accounts.get("7") == Account(-7)
        assert a.accounts.get("8") == Account(8)


# --- transactions


@virtual
async def test_transfers_by_two_devices_at_once_keep_the_sum(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        await seats[0].accounts.put_many({"a": Account(1_000), "b": Account(0)})
        await agree(seats)
        memory_relay.delay = 0.01
        lost = 0

        async def move(seat: Seat) -> None:
            nonlocal lost
            for _ in range(20):
                while True:
                    try:
                        await transfer(seat, 1)
                        break
                    except StrictError:
                        lost += 1
                        await trio.sleep(0.01)

        async def trouble() -> None:
            while True:
                memory_relay.cut_after(25)
                await trio.sleep(0.4)

        async with trio.open_nursery() as outer:
            outer.start_soon(trouble)
            async with trio.open_nursery() as nursery:
                for seat in seats:
                    nursery.start_soon(move, seat)
            outer.cancel_scope.cancel()
        await agree(seats)
        assert lost > 0
        assert dict(seats[0].accounts.items()) == {"a": Account(960), "b": Account(40)}
        assert appended_twice(memory_relay) == []


@virtual
async def test_a_strict_collection_makes_the_whole_transaction_strict(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("a", Account(1))
        await a.cards.put("x", Card("before"))
        notes = await notes_of(a.vault)
        await agree(seats)
        memory_relay.delay = 0.5

        async def both(title: str) -> None:
            async with a.vault.transaction() as made:
                account = a.accounts.get("a")
                assert account is not None
                await a.accounts.put("a", Account(account.cents + 1))
                await a.cards.put("x", Card(title))
            assert (await made.durable()).place is Place.RELAY

        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.cards.put, "x", Card("theirs"))
            await trio.sleep(0.6)
            with pytest.raises(ConflictError):
                await both("refused")
            assert (a.titles(), a.accounts.get("a")) == ({"x": "theirs"}, Account(1))
        await both("made")
        assert (a.titles(), a.accounts.get("a")) == ({"x": "made"}, Account(2))
        assert len(notes) == 0
        async with cut_off(memory_relay):
            with pytest.raises(OfflineError):
                await both("offline")
            assert a.titles() == {"x": "made"}


@virtual
async def test_what_this_device_itself_has_not_sent_yet_is_no_conflict(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device, 1) as (a,):
        notes = await notes_of(a.vault)
        await a.accounts.put("a", Account(1))
        memory_relay.delay = 0.1
        for number in range(5):
            await a.cards.put("x", Card("plain", count=number))
            async with a.vault.transaction():
                card = a.cards.get("x")
                assert card == Card("plain", count=number)
                await a.cards.put("x", replace(card, title="strict"))
                await a.accounts.put("a", Account(number))
            assert a.cards.get("x") == Card("strict", count=number)
            assert a.accounts.get("a") == Account(number)
        assert (await a.vault.status()).stuck == 0
        assert len(notes) == 0


@virtual
async def test_an_edit_of_another_key_does_not_wait_for_strict_writes(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device, 1) as (a,):
        await a.vault.synced()
        memory_relay.delay = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.accounts.put, "a", Account(1))
            await a.cards.put("x", Card("plain"))
            await a.vault.synced()
        assert a.titles() == {"x": "plain"}


# --- connections that break


async def _write(open_device: OpenDevice, relay: MemoryRelay, cut_after: int) -> bool:
    """Write again and again while the connection breaks; True if it broke. What was said to be made is made."""
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("a", Account(0))
        await agree(seats)
        dialled = relay.dialled
        relay.cut_after(cut_after)
        made = 0
        for number in range(1, 5):
            try:
                await a.accounts.put("a", Account(number))
                made = number
                assert a.accounts.get("a") == Account(number)
            except OfflineError:
                assert a.accounts.get("a") == Account(made)
                await a.vault.synced()
        await agree(seats)
        assert b.accounts.get("a") == Account(made)
        assert appended_twice(relay) == []
        return relay.dialled > dialled


@virtual
async def test_what_is_said_to_be_made_is_made_wherever_the_connection_breaks(tmp_path: Path) -> None:
    await cut_everywhere(tmp_path, _write, more_than=8, less_than=60)


@virtual
async def test_an_answer_that_was_lost_is_waited_for(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("a", Account(0))
        await agree(seats)
        memory_relay.lose_answers(2)
        await a.accounts.put("a", Account(1))
        memory_relay.delay = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.accounts.put, "a", Account(2))
            await trio.sleep(0.11)
            memory_relay.lose_answers(1)
            with pytest.raises(ConflictError):
                await a.accounts.put("a", Account(3))
        assert a.accounts.get("a") == Account(2)
        assert records(memory_relay, a.vault) == 3


@virtual
async def test_a_write_that_nobody_waits_for_any_more_leaves_nothing_behind(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("a", Account(0))
        await agree(seats)
        memory_relay.delay = 0.1
        for after in (0.0, 0.05, 0.15, 0.25):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(b.accounts.put, "a", Account(int(after * 100)))
                await trio.sleep(0.05)
                with trio.move_on_after(after):
                    try:
                        await a.accounts.put("a", Account(-1))
                    except ConflictError:
                        pass
            await agree(seats)
        assert await a.vault.stuck() == []


@virtual
async def test_a_verdict_that_no_app_waited_for_is_shown(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put_many({"a": Account(0), "b": Account(0)})
        await agree(seats)
        memory_relay.delay = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.accounts.put, "a", Account(1))
            await trio.sleep(0.05)
            nursery.start_soon(transfer, a, 5)
            await trio.sleep(0.13)  # it was sent, and the answer is on its way
            nursery.cancel_scope.cancel()
    async with open_device("device 0") as device:
        a = await seated(await returned(device))
        await a.vault.synced()
        assert a.accounts.get("a") == Account(1)
        stuck = await a.vault.stuck()
        assert [(one.collection, one.key, one.deletes) for one in stuck] == [
            ("accounts", "a", False),
            ("accounts", "b", False),
        ]
        assert "before a strict one" in stuck[0].reason
        assert (await a.vault.status()).stuck == 2
        with pytest.raises(ReplicaMisuse, match="was strict"):
            await a.vault.retry("accounts", "a")
        assert await a.vault.discard("accounts", "a")
        await a.accounts.put("b", Account(9))
        assert await a.vault.discard("accounts", "b")
        assert dict(a.accounts.items()) == {"a": Account(1), "b": Account(9)}
        assert (await a.vault.status()).stuck == 0


# --- what cannot be written


@virtual
async def test_a_collection_that_cannot_be_written_says_so(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with table(open_device) as seats:
        a, b = seats
        theirs = await b.vault.collection("ledger", Account, policy=latest())
        await theirs.put("a", Account(1))
        await agree(seats)
        ledger = await a.vault.collection("ledger", Account, policy=strict())
        with pytest.raises(StrictError, match=r"ledger cannot be: .* is open at the relay"):
            await ledger.put("a", Account(2))
        with pytest.raises(StrictError, match="ledger cannot be"):
            await ledger.put("a", Account(2))
        await a.accounts.put("a", Account(3))


@virtual
async def test_a_relay_that_refuses_for_ever_makes_nobody_wait(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, _ = seats
        await a.accounts.put("a", Account(0))
        altering(memory_relay, no_room)
        for _ in range(3):
            with pytest.raises(StrictError, match="quota"):
                await a.accounts.put("b", Account(1))
        assert await a.vault.stuck() == []


@dataclass(frozen=True)
class Ledger:
    """An account as a newer app has it."""

    cents: int
    currency: str = "EUR"


@dataclass(frozen=True)
class Spelt:
    """An account that the older app cannot read."""

    cents: str


async def of_two_ages(seats: Sequence[Seat], value: object) -> tuple[Collection[Any], Collection[Account]]:
    """One collection, as a newer app has it, which has put this value as "a", and as an older app has it."""
    a, b = seats
    newer: Collection[Any] = await b.vault.collection("ledger", type(value), policy=strict())
    await newer.put("a", value)
    older = await a.vault.collection("ledger", Account, policy=strict())
    await agree(seats)
    return newer, older


@virtual
async def test_what_a_newer_app_wrote_beside_it_survives(open_device: OpenDevice) -> None:
    async with table(open_device) as seats:
        newer, older = await of_two_ages(seats, Ledger(1, "USD"))
        assert older.get("a") == Account(1)
        await older.put("a", Account(2))
        await agree(seats)
        assert newer.get("a") == Ledger(2, "USD")


@virtual
async def test_a_value_that_needs_a_newer_app_is_not_replaced(open_device: OpenDevice) -> None:
    async with table(open_device) as seats:
        newer, older = await of_two_ages(seats, Spelt("one"))
        with pytest.raises(NeedsNewerAppError):
            await older.put("a", Account(2))
        with pytest.raises(NeedsNewerAppError):
            await older.delete("a")
        await newer.put("a", Spelt("two"))


@virtual
async def test_a_full_disk_makes_nobody_wait(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device, 1) as (a,):
        await a.accounts.put("a", Account(0))

        def full(*_: object) -> None:
            raise ReplicaFullError("the disk is full")

        with monkeypatch.context() as patched, trio.fail_after(60):
            patched.setattr(Batcher, "strict", full)
            with pytest.raises(ReplicaFullError):
                await a.accounts.put("a", Account(1))
        await agree([a])
        assert a.accounts.get("a") == Account(0)
        altering(memory_relay, no_room)
        with monkeypatch.context() as patched, trio.fail_after(60):
            patched.setattr(Aside, "forget_strict", full)
            with pytest.raises(StrictError, match="quota"):
                await a.accounts.put("b", Account(1))


@virtual
async def test_a_relay_that_does_not_know_the_vault_any_more_and_will_not_have_it_makes_nobody_wait(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise LinkError("this relay takes in no more vaults")

    async with table(open_device) as seats:
        _, b = seats
        await b.accounts.put("a", Account(0))
        await agree(seats)
        monkeypatch.setattr(MemoryLog, "create_vault", refuse)
        del memory_relay.log.vaults[b.vault.id]
        memory_relay.restart()
        await told(b.guest, "no such vault")
        with trio.fail_after(60), pytest.raises(StrictError, match="no such vault"):
            await b.accounts.put("a", Account(1))


@virtual
async def test_what_is_shown_of_a_stuck_write_is_no_conflict_but_stands_in_the_way(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """To look again would show the same again, for ever."""

    def undecided(*_: Card | None) -> Card:
        raise RuntimeError("not decided yet")

    async with table(open_device, policy=merge(undecided)) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        async with cut_off(memory_relay):
            await a.cards.put("x", Card(owner="a"))
            await b.cards.put("x", Card(owner="b"))
        for seat in (*seats, *seats):
            await seat.vault.synced()
        one = a if await a.vault.stuck() else b

        async def write() -> None:
            async with one.vault.transaction():
                held = one.cards.get("x")
                assert held is not None
                await one.cards.put("x", replace(held, title="seen"))
                await one.accounts.put("a", Account(1))

        with pytest.raises(StrictError, match="'x' in cards is stuck") as caught:
            await write()
        assert not isinstance(caught.value, ConflictError)
        assert one.accounts.get("a") is None
        await one.vault.discard("cards", "x")
        await write()
        await agree(seats)


@virtual
async def test_an_edit_from_the_time_when_a_collection_merged_replaces_nobody_elses(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("host") as host, open_device("b") as device:
        a = await founded(host)
        theirs = await a.vault.collection("cards", Card, policy=merge())
        await theirs.put("x", Card("first"))
        b = await joined(device, a.vault)
        mine = await b.vault.collection("cards", Card, policy=merge())
        await b.vault.synced()
        memory_relay.stop()
        await mine.put("x", Card("mine"))
        await mine.put("y", Card("nobody else's"))
        await theirs.put("x", Card("theirs"))
    memory_relay.start()
    async with open_device("host") as host:
        a = await returned(host)
        theirs = await a.vault.collection("cards", Card, policy=merge())
        await a.vault.synced()
        async with open_device("b") as device:
            b = await returned(device)
            now_strict = await b.vault.collection("cards", Card, policy=strict())
            await b.vault.synced()
            [stuck] = await b.vault.stuck()
            assert (stuck.key, "strict now" in stuck.reason) == ("x", True)
            await b.vault.discard("cards", "x")
            assert now_strict.get("x") == Card("theirs")
        await a.vault.synced()
        assert dict(theirs.items()) == {"x": Card("theirs"), "y": Card("nobody else's")}
