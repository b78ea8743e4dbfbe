"""Where a write stands: on this device, at the relay, or refused for good, and what can be done about that."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from sealwire_client.policies import merge
from sealwire_client.replica import Change, Kind, Place, ReplicaMisuse
from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.log import Verdict
from sealwire_protocol.errors import Outcome, Refusal
from sealwire_protocol.events import Answer
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.messages import Message, Push, Pushed, Refused, Subscribed
from tests.client.guarded import Card, agree, altering, fill, table
from tests.client.party import Note, appended_twice, cut_off, in_step, party, records
from tests.support.virtual import virtual

Judge = Callable[[Push], Pushed]


def judging(monkeypatch: pytest.MonkeyPatch, judge: Judge, times: int = 1_000) -> None:
    """Let the relay take nothing in and tell these verdicts, so often or until `monkeypatch.undo()`."""
    honest, left = MemoryLog.push, times

    def push(log: MemoryLog, device: DeviceKey, message: Push) -> Verdict:
        nonlocal left
        if not left:
            return honest(log, device, message)
        left -= 1
        pusher = log._pusher(log.vaults[message.vault], device)
        pusher.last, pusher.term = message.batch, log.term.number
        return Verdict(Answer(judge(message)))

    monkeypatch.setattr(MemoryLog, "push", push)


def conflict(seq: int) -> Judge:
    """The first record lost against the one at this place."""
    return lambda push: Pushed(push.vault, push.batch, Outcome.DONE, (), (Refused(0, 0, Refusal.CONFLICT, seq, b""),))


# --- where it stands


@virtual
async def test_a_write_is_on_the_device_and_then_at_the_relay(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        async with cut_off(memory_relay):
            write = await a.notes.put("x", Note("one"))
            assert (await write.durable(wait=False)).place is Place.DEVICE
            with trio.move_on_after(3_600) as waited:
                await write.durable()
            assert waited.cancelled_caught
        standing = await write.durable()
        assert (standing.place, standing.reason) == (Place.RELAY, None)
        assert (await write.durable(wait=False)).place is Place.RELAY


@virtual
async def test_a_write_that_a_later_one_replaced_stands_where_that_stands(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as (a,):
        async with cut_off(memory_relay):
            writes = [await a.notes.put("x", Note("again", number)) for number in range(5)]
            writes.append(await a.notes.delete("x"))
            assert {(await write.durable(wait=False)).place for write in writes} == {Place.DEVICE}
        for write in writes:
            assert (await write.durable()).place is Place.RELAY
        assert records(memory_relay, a.vault) == 1


@virtual
async def test_a_write_that_another_device_beat_was_taken_in(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        async with cut_off(memory_relay):
            writes = [await guest.notes.put("x", Note("mine")) for guest in (a, b)]
        for write in writes:
            assert (await write.durable()).place is Place.RELAY


# --- refused


@virtual
async def test_a_refused_write_says_why_and_can_be_tried_again(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with party(open_device, 1) as (a,):
        fill(monkeypatch)
        write = await a.notes.put("x", Note("one"))
        standing = await write.durable()
        assert (standing.place, standing.reason) == (Place.REFUSED, "quota")
        stuck = await a.vault.stuck()
        assert [(one.collection, one.key, one.deletes, one.together) for one in stuck] == [("notes", "x", False, False)]
        assert "vault is full" in stuck[0].reason
        assert a.dump() == {"x": "one"}
        assert not await a.vault.retry("notes", "y")
        monkeypatch.undo()
        assert await a.vault.retry("notes", "x")
        assert (await write.durable()).place is Place.RELAY
        assert await a.vault.stuck() == []
        await a.vault.synced()
        assert records(memory_relay, a.vault) == 1


@virtual
async def test_a_refused_write_that_is_replaced_stands_where_the_new_one_stands(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with party(open_device, 1) as (a,):
        fill(monkeypatch)
        write = await a.notes.put("x", Note("one"))
        assert (await write.durable()).place is Place.REFUSED
        monkeypatch.undo()
        memory_relay.stop()
        await trio.testing.wait_all_tasks_blocked()
        await a.notes.put("x", Note("two"))
        assert (await write.durable(wait=False)).place is Place.DEVICE
        memory_relay.start()
        assert (await write.durable()).place is Place.RELAY
        assert await a.vault.stuck() == []


@virtual
async def test_a_refused_write_that_is_given_up_stays_refused(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("before"))
        await in_step(guests)
        fill(monkeypatch)
        writes = []
        with a.notes.changes() as changes:
            for _ in range(2):
                writes.append(await a.notes.put("x", Note("refused")))
                assert (await writes[-1].durable()).place is Place.REFUSED
                assert await a.vault.discard("notes", "x")
                assert not await a.vault.discard("notes", "x")
                assert a.dump() == {"x": "before"}
            assert Change("x", Kind.UPDATED) in (await anext(changes) or ())
        monkeypatch.undo()
        later = await a.notes.put("x", Note("later"))
        assert (await later.durable()).place is Place.RELAY
        for write in writes:
            standing = await write.durable()
            assert (standing.place, "discarded" in str(standing.reason)) == (Place.REFUSED, True)
        await in_step(guests)
        assert b.dump() == {"x": "later"}


@virtual
async def test_a_transaction_is_refused_tried_again_and_given_up_as_a_whole(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card("before"))
        await agree(seats)
        fill(monkeypatch)
        async with a.vault.transaction() as made:
            await a.cards.put("x", Card("refused"))
            await a.guest.notes.put("n", Note("refused"))
            await a.guest.notes.delete("m")
        assert (await made.durable()).place is Place.REFUSED
        assert [(one.collection, one.key, one.deletes, one.together) for one in await a.vault.stuck()] == [
            ("cards", "x", False, True),
            ("notes", "m", True, True),
            ("notes", "n", False, True),
        ]
        with a.guest.notes.changes() as changes:
            assert await a.vault.discard("cards", "x")
            assert await anext(changes) == [Change("n", Kind.DELETED)]
        assert (a.titles(), a.guest.dump(), await a.vault.stuck()) == ({"x": "before"}, {}, [])
        assert (await made.durable()).place is Place.REFUSED
        async with a.vault.transaction() as made:
            await a.cards.put("x", Card("again"))
            await a.guest.notes.put("n", Note("again"))
        assert (await made.durable()).place is Place.REFUSED
        monkeypatch.undo()
        assert await a.vault.retry("notes", "n")
        assert (await made.durable()).place is Place.RELAY
        await agree(seats)
        assert (b.titles(), b.guest.dump()) == ({"x": "again"}, {"n": "again"})


@virtual
async def test_writes_set_aside_hold_up_no_others(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        fill(monkeypatch)
        await a.cards.put("x", Card("refused"))
        await a.vault.synced()
        monkeypatch.undo()
        await a.cards.put("y", Card("taken"))
        await a.vault.synced()
        await b.cards.put("x", Card(owner="b's"))
        await b.vault.synced()
        assert b.titles() == {"x": "", "y": "taken"}
        assert a.titles() == {"x": "refused", "y": "taken"}
        status = await a.vault.status()
        assert (status.stuck, status.pending) == (1, 0)
        assert await a.vault.retry("cards", "x")
        await agree(seats)
        assert b.cards.get("x") == Card("refused", "b's")


@virtual
async def test_what_came_after_a_refused_write_keeps_what_that_was_merged_with(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later edit was made on the refused one as it was before it was merged."""
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card(labels=frozenset({"old"})))
        await agree(seats)
        async with cut_off(memory_relay):
            for label in ("first", "second"):
                async with a.vault.transaction():
                    held = a.cards.get("x")
                    assert held is not None
                    await a.cards.put("x", replace(held, labels=held.labels | {label}))
                    await a.cards.put(label, Card())
            memory_relay.start()
            await b.cards.put("x", Card(labels=frozenset({"old", "b's"})))
            b.guest.device.wake()
            await b.vault.synced()
            fill(monkeypatch)
        await a.vault.synced()
        assert {one.key for one in await a.vault.stuck()} == {"first", "x", "second"}
        expected = Card(labels=frozenset({"old", "b's", "first", "second"}))
        assert a.cards.get("x") == expected
        monkeypatch.undo()
        assert await a.vault.retry("cards", "x")
        await a.vault.synced()
        await b.vault.synced()
        assert b.cards.get("x") == expected
        assert await a.vault.discard("cards", "first")
        await agree(seats)


@virtual
async def test_only_an_open_collection_can_be_told_what_to_do(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as (a,):
        for what in (a.vault.retry, a.vault.discard):
            with pytest.raises(ReplicaMisuse, match="is not open"):
                await what("other", "x")


# --- merge functions that fail


@virtual
async def test_a_merge_function_that_raises_sets_only_its_write_aside(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    broken = True

    def together(base: Card | None, mine: Card | None, theirs: Card | None) -> Card | None:
        if broken:
            raise ValueError("no idea")
        return Card("merged")

    async with table(open_device, policy=merge(together)) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        async with cut_off(memory_relay):
            await b.cards.put("x", Card(owner="b's"))
            b.guest.device.wake()
            memory_relay.start()
            await b.vault.synced()
            memory_relay.stop()
            write = await a.cards.put("x", Card(title="a's"))
            async with a.vault.transaction():
                await a.cards.put("x", Card(title="a's, later"))
                await a.cards.put("z", Card("together"))
            await a.cards.put("y", Card("other"))
        await a.vault.synced()
        await b.vault.synced()
        assert b.titles() == {"x": "", "y": "other"}
        assert a.titles() == {"x": "a's, later", "y": "other", "z": "together"}
        stuck = await a.vault.stuck()
        assert [(one.key, one.together) for one in stuck] == [("x", True), ("z", True)]
        assert "no idea" in stuck[0].reason
        assert (await write.durable()).place is Place.REFUSED, "the later one stands for it"
        broken = False
        assert await a.vault.retry("cards", "z")
        await agree(seats)
        assert b.titles() == {"x": "merged", "y": "other", "z": "together"}


# --- relays that lie


@pytest.mark.parametrize("seq", [1, 0])
def test_a_relay_that_refuses_for_ever_makes_no_loop(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch, seq: int
) -> None:
    """It names as the winner what this device has applied already, or nothing at all."""

    @virtual
    async def test() -> None:
        async with table(open_device, 1) as (a,):
            await a.cards.put("x", Card("first"))
            await a.vault.synced()
            judging(monkeypatch, conflict(seq))
            carried = memory_relay.carried
            write = await a.cards.put("x", Card("refused"))
            with trio.fail_after(60):
                standing = await write.durable()
            assert standing.place is Place.REFUSED
            assert memory_relay.carried - carried < 20
            monkeypatch.undo()
            await a.cards.put("y", Card("other"))
            await a.vault.synced()
            assert await a.vault.retry("cards", "x")
            assert (await write.durable()).place is Place.RELAY

    test()


@virtual
async def test_after_a_refusal_for_nothing_the_device_asks_before_it_seals_again(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device, 1) as (a,):
        await a.cards.put("x", Card("first"))
        await a.vault.synced()
        asked: list[Message] = []

        def listen(message: Message) -> list[Message]:
            if isinstance(message, Subscribed | Pushed):
                asked.append(message)
            return [message]

        memory_relay.alter = listen
        judging(monkeypatch, conflict(0), times=2)
        await a.cards.put("x", Card("second"))
        await a.vault.synced()
        assert [type(message) for message in asked[:2]] == [Pushed, Subscribed]


@virtual
async def test_a_winner_that_never_comes_holds_up_its_collection_alone(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device, 1) as (a,):
        await a.cards.put("x", Card("first"))
        await a.vault.synced()
        judging(monkeypatch, conflict(10**9), times=1)
        write = await a.cards.put("x", Card("refused"))
        await trio.sleep(60)
        note = await a.guest.notes.put("n", Note("goes on"))
        assert (await note.durable()).place is Place.RELAY
        assert (await write.durable(wait=False)).place is Place.DEVICE
        assert (await a.vault.status()).behind > 0
        memory_relay.cut()
        assert (await write.durable()).place is Place.REFUSED
        assert "came first" in (await a.vault.stuck())[0].reason
        assert await a.vault.retry("cards", "x")
        assert (await write.durable()).place is Place.RELAY


@virtual
async def test_a_verdict_that_fits_no_batch_ends_the_connection_and_loses_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device, 1) as (a,):
        lies = 3

        def lie(told: Pushed) -> Pushed:
            nonlocal lies
            lies -= 1
            strange = (Refused(0, 5, Refusal.CONFLICT, 9, b""), Refused(3, 0, Refusal.ATOMIC, 0, b""))
            return told if lies < 0 else replace(told, refused=strange)

        altering(memory_relay, lie)
        write = await a.cards.put("x", Card("kept"))
        await trio.sleep(100)
        assert a.titles() == {"x": "kept"}
        assert (await write.durable()).place is Place.RELAY
        await a.vault.synced()
        assert appended_twice(memory_relay) == []
