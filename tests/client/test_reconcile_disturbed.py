"""A comparison that is disturbed: broken connections, stale pins, an old relay, other work meanwhile (R13)."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from sealwire_client.reconcile import AGAIN_SECONDS
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.messages import ATOMIC, REFILL, Fault, Message, Push, Ranges
from tests.client.guarded import Account, agree, seated, table
from tests.client.party import Note, asked_of, comes, founded, in_step, notes_of, party, put_many, returned, told
from tests.support.virtual import virtual


def fault(message: Ranges, code: FaultCode, action: Action, why: str) -> Fault:
    """A refusal in the place of an answer."""
    return Fault(message.request, message.vault, code, action, 0, why)


# --- in bad moments


def test_connections_that_break_at_any_moment_of_it_change_nothing_in_the_end(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    @virtual
    async def once() -> None:
        async with party(open_device) as guests:
            a, b = guests
            await put_many(a, "kept", 20)
            await in_step(guests)
            backup = memory_relay.backup()
            await put_many(a, "a", 5)
            await b.notes.delete("kept3")
            await in_step(guests)
            before = a.dump()
            for messages in range(1, 60):
                memory_relay.restore(backup)
                memory_relay.cut_after(messages)
                await in_step(guests)
                assert a.dump() == before

    once()


@virtual
async def test_a_pin_that_has_gone_stale_is_taken_anew(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        await put_many(a, "kept", 50)
        await in_step(guests)
        backup = memory_relay.backup()
        await put_many(a, "lost", 3)
        await in_step(guests)
        before, stale = a.dump(), [3]

        def alter(message: Message) -> Sequence[Message]:
            if isinstance(message, Ranges) and stale[0]:
                stale[0] -= 1
                return [fault(message, FaultCode.STALE_PIN, Action.RESUBSCRIBE, "begin again")]
            return [message]

        memory_relay.restore(backup)
        memory_relay.alter = alter
        await in_step(guests)
        assert a.dump() == before
        assert stale == [0]


@virtual
async def test_the_others_go_on_while_one_collection_cannot_be_compared(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        other = await notes_of(a.vault, "other")
        await other.put("x", Note("here"))
        await in_step(guests[:1])
        backup = memory_relay.backup()
        await a.notes.put("x", Note("lost there"))
        await in_step(guests)

        def alter(message: Message) -> Sequence[Message]:
            if isinstance(message, Ranges):
                return [fault(message, FaultCode.UNSUPPORTED, Action.STOP, "the database is too small")]
            return [message]

        memory_relay.alter = alter
        memory_relay.restore(backup)
        await told(a, "too small")
        assert (await a.vault.status()).state != "synced"
        await other.put("y", Note("goes on"))
        theirs = await notes_of(b.vault, "other")
        await comes(lambda: theirs.get("y") is not None)
        assert a.dump() == b.dump() == {"x": "lost there"}
        memory_relay.alter = None
        await trio.sleep(2 * AGAIN_SECONDS)
        await in_step(guests)
        assert (await a.vault.status()).last_error is None


@virtual
async def test_edits_are_made_and_shown_while_it_goes_on(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await put_many(a, "kept", 50)
        await in_step(guests)
        backup = memory_relay.backup()
        await put_many(a, "lost", 3)
        await in_step(guests)
        memory_relay.delay = 2.0
        memory_relay.restore(backup)
        with a.notes.changes() as changes:
            for number in range(10):
                await a.notes.put("lost1", Note(f"edit {number}"))
                assert a.notes.get("lost1") == Note(f"edit {number}")
                await trio.sleep(1)
            await anext(changes)
        memory_relay.delay = 0.0
        await in_step(guests)
        assert b.notes.get("lost1") == Note("edit 9")


@virtual
async def test_a_relay_that_is_too_old_for_it_is_told_so_and_nothing_is_given_up(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("kept"))
        await in_step(guests)
        backup = memory_relay.backup()
        await a.notes.put("y", Note("lost there"))
        await in_step(guests)
        monkeypatch.setattr("sealwire_protocol.limits.VERSION_MAX", 1)
        memory_relay.restore(backup)
        for guest in guests:
            await told(guest, "too old")
            assert (await guest.vault.status()).state != "synced"
        await a.notes.put("z", Note("later"))
        await trio.sleep(600)
        assert (await a.vault.status()).pending == 1
        assert a.dump() == {"x": "kept", "y": "lost there", "z": "later"}
        assert b.dump() == {"x": "kept", "y": "lost there"}
        monkeypatch.undo()
        memory_relay.cut()
        await in_step(guests)
        assert b.dump() == {"x": "kept", "y": "lost there", "z": "later"}


@virtual
async def test_a_write_to_a_stream_that_was_lost_is_sent_again_before_its_collection_is_opened(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("device") as device:
        guest = await founded(device)
        await guest.vault.synced()
        backup = memory_relay.backup()
        other = await notes_of(guest.vault, "other")
        await other.put("x", Note("known"))
        await guest.vault.synced()
        memory_relay.lose_answers(1)
        await other.put("y", Note("sent"))
        await trio.testing.wait_all_tasks_blocked()
    memory_relay.restore(backup)
    async with open_device("device") as device:
        guest = await returned(device)
        await trio.sleep(60)
        assert (await guest.vault.status()).stuck == 0
        other = await notes_of(guest.vault, "other")
        await guest.vault.synced()
        assert {key: note.text for key, note in other.items()} == {"x": "known", "y": "sent"}
        assert (await guest.vault.status()).stuck == 0


# --- another loss meanwhile


@pytest.mark.parametrize("slow", [False, True])
def test_what_stands_together_is_given_back_upon_nothing_less_than_what_it_was_compared_with(
    open_device: OpenDevice, memory_relay: MemoryRelay, slow: bool
) -> None:
    """Of two transfers one device gives back the first, and another is about to give back what that lacks of the
    second. Then the relay loses the first one again."""

    @virtual
    async def once() -> None:
        async with table(open_device) as seats:
            await seats[0].accounts.put_many({name: Account(50) for name in "abc"})
            await agree(seats)
            backup = memory_relay.backup()
            await seats[1].accounts.put_many({"a": Account(40), "c": Account(60)})
            await agree(seats)
        async with open_device("device 1") as device:
            b = await seated(await returned(device))
            await agree([b])
            await b.accounts.put_many({"a": Account(30), "b": Account(60)})
        memory_relay.restore(backup)
        async with open_device("device 0") as device:
            await agree([await seated(await returned(device))])
        with asked_of(memory_relay, Push, swallowed=True) as pushed:
            async with open_device("device 1") as device:
                await seated(await returned(device))
                await trio.testing.wait_all_tasks_blocked()
            assert [push.flags for push in pushed] == [REFILL | ATOMIC]
        memory_relay.restore(backup)
        async with open_device("device 1") as device:
            if slow:
                with asked_of(memory_relay, Push, swallowed=True) as pushed:
                    b = await seated(await returned(device))
                    await trio.testing.wait_all_tasks_blocked()
                assert len(pushed) == 1, "no other one is made before this one is judged"
                memory_relay.cut()
            else:
                b = await seated(await returned(device))
            await agree([b])
            balances = {"a": Account(30), "b": Account(60), "c": Account(60)}
            assert dict(b.accounts.items()) == balances
            assert await b.vault.stuck() == []
            async with open_device("device 0") as other:
                await agree([await seated(await returned(other)), b])
                assert dict(b.accounts.items()) == balances

    once()
