"""What travels between a replica and the relay: everything arrives, once, whatever breaks on the way."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client.testing import MemoryLog, MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.log import Verdict
from sealwire_client.testing.wire import Wire
from sealwire_protocol import codec
from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.events import Refuse
from sealwire_protocol.ids import MEMBERSHIP, DeviceKey, Position, StreamId
from sealwire_protocol.limits import ACK_DELAY_SECONDS, PUSH_WINDOW, PUSHES_PER_SESSION_MAX
from sealwire_protocol.messages import NO_REQUEST, Ack, CreateStream, Deliver, Fault, Message, Push, Pushed
from tests.client.cutting import cut_everywhere
from tests.client.late import late_writer
from tests.client.party import (
    Note,
    appended_twice,
    comes,
    cut_off,
    founded,
    in_step,
    joined,
    notes_of,
    party,
    records,
    returned,
    stream_of,
    told,
)
from tests.support.virtual import virtual

ENTRIES = 300


def many(first: int, count: int = ENTRIES) -> list[tuple[str, Note]]:
    """Entries to be put, each of a size that a few hundred fill several pushes."""
    return [(f"key {number:04}", Note("x" * 2_000, number)) for number in range(first, first + count)]


# --- in good times


@virtual
async def test_what_one_device_puts_the_other_shows(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("from a"))
        await b.notes.put("y", Note("from b"))
        await in_step(guests)
        assert a.dump() == {"x": "from a", "y": "from b"}
        await a.notes.delete("y")
        await in_step(guests)
        assert b.dump() == {"x": "from a"}


@virtual
async def test_a_device_says_what_it_holds_before_it_ends(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a command does, which is open for less than the seconds for which acknowledgements are kept back."""
    heard: dict[StreamId, Position] = {}
    send = Wire.send

    async def listen(wire: Wire, data: bytes) -> None:
        await send(wire, data)
        message = codec.decode(data)
        if isinstance(message, Ack):
            heard.update({acked.stream: acked.position for acked in message.positions})

    monkeypatch.setattr(Wire, "send", listen)
    async with party(open_device, 1) as (a,):
        await a.notes.put("before", Note("mine"))
        await a.vault.synced()
        stream = stream_of(memory_relay, a.vault)
    async with open_device("device 0") as device:
        a = await returned(device)
        heard.clear()
        await a.notes.put("x", Note("mine"))
        began = trio.current_time()
        await a.vault.synced()
        assert trio.current_time() - began < ACK_DELAY_SECONDS
        assert not heard
    assert heard[stream].seq == records(memory_relay, a.vault)


@virtual
async def test_an_own_edit_is_not_told_twice(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        with a.notes.changes() as changes:
            await a.notes.put("x", Note("once"))
            await in_step(guests)
            told = await anext(changes)
            assert [(change.key, change.kind.value) for change in told or ()] == [("x", "inserted")]
            with trio.move_on_after(60) as waiting:
                await anext(changes)
            assert waiting.cancelled_caught, "the echo from the relay is no change"


@virtual
async def test_edits_of_one_key_made_meanwhile_are_sent_as_one(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        async with cut_off(memory_relay):
            for number in range(50):
                await a.notes.put("x", Note("again", number))
        await in_step(guests)
        assert records(memory_relay, a.vault) == 1


@virtual
async def test_several_vaults_and_collections_share_a_connection(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as device:
        for number in range(3):
            guest = await founded(device, f"vault {number}")
            for name in ("notes", "tasks"):
                await (await notes_of(guest.vault, name)).put("x", Note(name))
        for vault in device.vaults:
            await vault.synced()
            assert records(memory_relay, vault) == 2
        assert memory_relay.connections == 1


# --- offline, and back


@virtual
async def test_edits_made_offline_are_sent_later(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = guests
        async with cut_off(memory_relay):
            await a.notes.put("x", Note("offline"))
            assert a.notes.get("x") == Note("offline"), "shown at once"
            assert (await a.vault.status()).pending == 1
            assert (await a.vault.status()).state == "offline"
            assert b.notes.get("x") is None
        await in_step(guests)
        assert b.notes.get("x") == Note("offline")


@virtual
async def test_edits_made_before_a_restart_are_sent_once_after_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as device:
        guest = await founded(device)
        await guest.vault.synced()
        async with cut_off(memory_relay):
            await guest.notes.put("x", Note("before"))
        memory_relay.stop()
    async with open_device("a") as device:
        vault = device.vaults[0]
        notes = await notes_of(vault)
        assert notes.get("x") == Note("before")
        memory_relay.start()
        await vault.synced()
        assert records(memory_relay, vault) == 1


@virtual
async def test_a_vault_made_offline_reaches_the_relay_later(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    memory_relay.stop()
    async with open_device("a") as device:
        guest = await founded(device)
        await guest.notes.put("x", Note("before anyone knew"))
    async with open_device("a") as device:
        memory_relay.start()
        notes = await notes_of(device.vaults[0])
        await device.vaults[0].synced()
        assert records(memory_relay, device.vaults[0]) == 1
        assert notes.get("x") == Note("before anyone knew")


@virtual
async def test_two_edits_of_one_key_made_offline_end_alike_everywhere(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("at first"))
        await in_step(guests)
        async with cut_off(memory_relay):
            await a.notes.put("x", Note("a's"))
            await b.notes.put("x", Note("b's"))
        await in_step(guests)
        stream = memory_relay.log.vaults[a.vault.id]
        ranked = [
            placed.record for name, log in stream.streams.items() if name != MEMBERSHIP for placed in log.records()
        ]
        winner = max(ranked, key=lambda record: record.rank)
        author = {1: "a's", 2: "b's"}[winner.author]
        assert a.dump() == b.dump() == {"x": author}


@pytest.mark.parametrize("late", [True, False])
def test_a_deletion_and_an_edit_made_offline_end_alike_everywhere(
    open_device: OpenDevice, memory_relay: MemoryRelay, late: bool
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            await a.notes.put("x", Note("at first"))
            await in_step(guests)
            async with cut_off(memory_relay):
                await a.notes.delete("x")
                await b.notes.put("x", Note("b's"))
                first, second = (b, a) if late else (a, b)
            first.device.wake()
            await first.vault.synced()
            second.device.wake()
            await in_step(guests)
            assert a.dump() == b.dump()
            assert a.dump() in ({}, {"x": "b's"})

    test()


# --- when connections break


@virtual
async def test_a_push_whose_answer_was_lost_gets_the_same_verdict_and_is_not_repeated(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        memory_relay.lose_answers(5)
        await a.notes.put_many(many(0))
        await in_step(guests)
        assert records(memory_relay, a.vault) == ENTRIES
        assert appended_twice(memory_relay) == []
        assert len(b.notes) == ENTRIES
        assert (await a.vault.status()).last_error is None


async def _bulk(open_device: OpenDevice, relay: MemoryRelay, cut_after: int) -> bool:
    """Put a lot on one device while connections break; True if the break came before the end."""
    async with party(open_device) as guests:
        a, b = guests
        dialled = relay.dialled
        relay.cut_after(cut_after)
        await a.notes.put_many(many(0, 60))
        await b.notes.put("key 0000", Note("b's"))
        await b.notes.put("other", Note("b's"))
        await in_step(guests)
        assert len(a.notes) == 61
        assert appended_twice(relay) == []
        return relay.dialled > dialled


@virtual
async def test_a_bulk_of_edits_arrives_wherever_the_connection_breaks(tmp_path: Path) -> None:
    await cut_everywhere(tmp_path, _bulk, more_than=10, less_than=60)


def test_catching_up_arrives_wherever_the_connection_breaks(tmp_path: Path) -> None:
    async def attempt(number: int) -> bool:
        relay = MemoryRelay()
        open_device = OpenDevice(tmp_path / str(number), relay, late_writer)
        async with party(open_device, 1) as guests:
            (a,) = guests
            for first in range(0, 30, 5):
                await a.notes.put_many(many(first, 5))
                await a.vault.synced()
            async with open_device("late") as device:
                b = await joined(device, a.vault)
                dialled = relay.dialled
                relay.cut_after(number)
                await in_step([a, b])
                assert len(b.notes) == 30
        return relay.dialled > dialled

    @virtual
    async def test() -> None:
        found = [await attempt(number) for number in range(1, 16)]
        assert found[0] and not found[-1]
        assert sum(found) >= 6, "each segment is a message of its own"

    test()


@virtual
async def test_a_flood_of_breaks_stops_nothing(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    memory_relay.delay = 0.02
    async with party(open_device) as guests:
        a, b = guests

        async def trouble() -> None:
            while True:
                memory_relay.cut_after(40)
                await trio.sleep(7)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble)
            for number in range(60):
                await a.notes.put(f"a{number % 7}", Note("a's", number))
                await b.notes.put(f"b{number % 5}", Note("b's", number))
                await a.notes.put("both", Note("a's", number))
                await b.notes.put("both", Note("b's", number))
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
        await in_step(guests)
        assert appended_twice(memory_relay) == []
        assert set(a.dump()) == {f"a{n}" for n in range(7)} | {f"b{n}" for n in range(5)} | {"both"}


@virtual
async def test_a_link_that_blinks_before_the_vaults_task_has_its_turn_leaves_nothing_waiting(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        async with cut_off(memory_relay):
            a.vault._sync.online()
            a.vault._sync.offline()
            await trio.testing.wait_all_tasks_blocked()
        await a.notes.put("x", Note("after"))
        await a.vault.synced()
        assert records(memory_relay, a.vault) == 1


# --- when the relay's history changes


@virtual
async def test_a_relay_that_restarts_goes_on(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = guests
        for number in range(5):
            await a.notes.put("x", Note("a's", number))
            memory_relay.restart()
            await b.notes.put("y", Note("b's", number))
        await in_step(guests)
        assert (a.notes.get("x"), a.notes.get("y")) == (Note("a's", 4), Note("b's", 4))
        assert appended_twice(memory_relay) == []


@pytest.mark.parametrize("turns", range(0, 40, 2))
def test_a_new_term_beneath_a_living_connection_loses_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay, turns: int
) -> None:
    """Batches that were sent under the old term are sent again before any later one, else they count as stale."""

    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            memory_relay.delay = 0.01
            await a.notes.put_many(many(0))
            for _ in range(turns):
                await trio.sleep(0.001)
            memory_relay.new_term()
            await in_step(guests)
            status = await a.vault.status()
            assert (status.stuck, status.pending) == (0, 0)
            assert len(b.notes) == ENTRIES
            assert appended_twice(memory_relay) == []

    test()


@virtual
async def test_a_collection_goes_on_when_the_relay_finds_its_history_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        backup = memory_relay.backup()
        await a.notes.put("x", Note("kept"))
        await in_step(guests)
        newer = memory_relay.backup()
        memory_relay.restore(backup)
        await in_step(guests)
        await a.notes.put("y", Note("meanwhile"))
        await in_step(guests)
        memory_relay.restore(newer)
        await in_step(guests)
        assert a.dump() == {"x": "kept", "y": "meanwhile"}
        assert (await a.vault.status()).last_error is None


@virtual
async def test_another_collection_goes_on_when_one_has_lost_its_history(
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
        memory_relay.restore(backup)
        await other.put("y", Note("goes on"))
        theirs = await notes_of(b.vault, "other")
        await comes(lambda: theirs.get("y") is not None)
        assert (await a.vault.status()).pending == 0


# --- refusals


@virtual
async def test_a_collection_that_may_not_be_made_holds_up_no_other(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = MemoryLog.create_stream
    refused: list[StreamId] = []

    def refuse(log: MemoryLog, device: DeviceKey, message: CreateStream) -> Verdict:
        if message.stream in refused or not refused:
            refused.append(message.stream)
            why = "this collection is of another kind"
            return Verdict(Refuse(FaultCode.STREAM_KIND, Action.STOP, why, message.request, message.vault))
        return make(log, device, message)

    monkeypatch.setattr(MemoryLog, "create_stream", refuse)
    async with open_device("a") as device:
        a = await founded(device)
        await a.notes.put("x", Note("not taken"))
        await told(a, "another kind")
        other = await notes_of(a.vault, "other")
        await other.put("x", Note("taken"))
        await comes(lambda: records(memory_relay, a.vault) > 0)
        await told(a, "notes: this collection is of another kind")
        assert (await a.vault.status()).pending == 1


@virtual
async def test_the_window_is_kept(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    """No more batches wait for a verdict than one window, so that none is ever too old to be told."""
    answered: list[int] = []

    def hold_back(message: Message) -> Sequence[Message]:
        if isinstance(message, Pushed):
            answered.append(message.batch)
            return []
        return [message]

    async with party(open_device) as guests:
        a, _ = guests
        memory_relay.alter = hold_back
        await a.notes.put_many(many(0, 1_500))
        await trio.sleep(100)
        assert len(answered) == PUSH_WINDOW
        memory_relay.alter = None
        memory_relay.cut()
        await in_step(guests)
        assert appended_twice(memory_relay) == []


@virtual
async def test_status_says_why_a_write_was_set_aside(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    def full(message: Message) -> list[Message]:
        if isinstance(message, Pushed):
            return [Pushed(message.vault, message.batch, Outcome.QUOTA, (), ())]
        return [] if isinstance(message, Deliver) and message.stream != MEMBERSHIP else [message]

    async with open_device("a") as device:
        home = await founded(device)
        memory_relay.alter = full
        await home.notes.put("n", Note("text"))
        await home.vault.synced()
        status = await home.vault.status()
        assert status.stuck == 1
        assert "the vault is full" in (status.last_error or "")


@virtual
async def test_status_says_why_pushes_are_refused_and_not_what_the_others_on_their_way_are_told(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    def full(message: Message) -> list[Message]:
        if not isinstance(message, Pushed):
            return [message]
        why = Fault(NO_REQUEST, message.vault, FaultCode.OVERLOADED, Action.RETRY, 60_000, "the relay's disk is full")
        late = replace(why, code=FaultCode.NOT_SUBSCRIBED, action=Action.RESUBSCRIBE, retry_ms=0, message="subscribe")
        return [why, late]

    async with open_device("a") as device:
        home = await founded(device)
        memory_relay.alter = full
        await home.notes.put("n", Note("text"))
        await told(home, "the relay's disk is full")
        await home.notes.put("m", Note("text"))
        await trio.sleep(30)
        assert (await home.vault.status()).last_error == "the relay's disk is full"
        memory_relay.alter = None
        await home.vault.synced()
        assert (await home.vault.status()).last_error is None


@virtual
async def test_many_busy_vaults_share_what_one_connection_takes(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Each has a window of its own, and all together are more than a relay works on for one connection: it would end
    that before it has answered anything, and the next one the same."""
    most = 0
    async with open_device("a") as device:
        guests = [await founded(device, f"vault {number}") for number in range(PUSHES_PER_SESSION_MAX // 8 + 2)]
        for guest in guests:
            await guest.notes.put("first", Note("text"))
            await guest.vault.synced()
        memory_relay.delay = 1
        session = guests[0].vault._sync.link.session
        assert session is not None
        for number in range(40):
            for guest in guests:
                await guest.notes.put(f"n{number}", Note("text"))
            await trio.sleep(0.1)
            most = max(most, sum(len(session.outstanding(guest.vault.id)) for guest in guests))
        assert most == PUSHES_PER_SESSION_MAX
        with trio.fail_after(600):
            for guest in guests:
                await guest.vault.synced()
        assert memory_relay.dialled == 1


@virtual
async def test_nothing_follows_a_message_that_was_cut_short_by_the_end(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that the relay takes while the one before them is lost leave that one without a verdict for ever."""
    sent: list[int] = []
    send = Wire.send

    async def stall(wire: Wire, data: bytes) -> None:
        message = codec.decode(data)
        if isinstance(message, Push):
            sent.append(message.batch)
            await trio.sleep(60)
        await send(wire, data)

    async with party(open_device, 1) as (a,):
        await a.vault.synced()
        memory_relay.restart()
        await trio.sleep(60)
        monkeypatch.setattr(Wire, "send", stall)
        for number in range(3):
            await a.notes.put(f"x{number}", Note("mine"))
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(10)
    assert len(sent) == 1
    monkeypatch.setattr(Wire, "send", send)
    async with party(open_device, 1) as (a,):
        await in_step([a])
        assert len(a.notes) == 3
        assert (await a.vault.status()).last_error is None


@virtual
async def test_how_streams_stand_is_not_known_any_more_after_a_fault(open_device: OpenDevice) -> None:
    """The relay may have lost them: what is sent to one that is not there counts as a mistake."""
    async with party(open_device, 1) as [a]:
        await a.vault.synced()
        sync = a.vault._sync
        assert all(stream.told for stream in sync.streams)
        for stream in sync.streams:
            stream.refused = True  # as if it could not be created just now
        sync.fault(Fault(NO_REQUEST, a.vault.id, FaultCode.INTERNAL, Action.RETRY, 1_000, "later"))
        await trio.testing.wait_all_tasks_blocked()
        assert not any(stream.told or stream.refused for stream in sync.streams)
        assert sync._creating.missing([a.notes.held.stream]) == {a.notes.held.stream}


@virtual
async def test_a_collection_that_is_to_be_reconciled_is_so_after_a_fault_too(open_device: OpenDevice) -> None:
    """The relay does not tell again how it stands."""
    async with party(open_device, 1) as [a]:
        await a.notes.put("x", Note("here"))
        await a.vault.synced()
        sync = a.vault._sync
        sync.history_lost(a.notes.held.stream, "as if")
        sync.fault(Fault(NO_REQUEST, a.vault.id, FaultCode.INTERNAL, Action.RETRY, 1_000, "later"))
        await trio.testing.wait_all_tasks_blocked()
        assert not any(stream.lost for stream in sync.streams)
