"""Deletions that the relay has forgotten, and devices that have not heard of them, or hear of them again (R10, R11)."""

import trio
import trio.testing

from sealwire_client.findings import Verdict
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.limits import CREDIT_BYTES_MIN, Limits
from sealwire_protocol.messages import Ranges, Records
from tests.client.guarded import Card, agree, table
from tests.client.party import Note, in_step, joined, party, put_many, returned, sent_by
from tests.support.virtual import virtual


@virtual
async def test_who_was_away_for_too_long_brings_its_edits_and_no_deleted_entry(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        await put_many(a, "kept", 300)
        await in_step(guests)
    memory_relay.stop()
    async with open_device("device 1") as device:
        b = await returned(device)
        await put_many(b, "mine", 50)
        await b.notes.put("kept290", Note("edited"))
    memory_relay.start()
    async with open_device("device 0") as device:
        a = await returned(device)
        for number in range(200):
            await a.notes.delete(f"kept{number}")
        await in_step([a])
        memory_relay.purge()
        await a.notes.put("later", Note("more"))
        await in_step([a])
        with sent_by(memory_relay) as sent:
            async with open_device("device 1") as other:
                b = await returned(other)
                await in_step([a, b])
                assert len(b.notes) == 100 + 50 + 1
                assert b.notes.get("kept290") == Note("edited")
                assert b.notes.get("kept0") is None
        assert any(isinstance(message, Ranges) for message in sent)
        assert sum(len(message.records) for message in sent if isinstance(message, Records)) <= 1


@virtual
async def test_a_deletion_that_another_device_gave_back_is_forgotten_by_all_at_once(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Else those who had it before the loss would not take what comes back of the entry later, as all others do."""
    async with party(open_device, 3) as [a, b, c]:
        await put_many(a, "kept", 5)
        await in_step([a, b, c])
        backup = memory_relay.backup()
        await put_many(b, "kept", 1)
        await in_step([a, b, c])
    async with open_device("device 0") as first:
        a = await returned(first)
        async with open_device("device 1") as second:
            b = await returned(second)
            await a.notes.delete("kept0")
            await in_step([a, b])
        memory_relay.restore(backup)
        await in_step([a])
        await put_many(a, "more", 3)
        await in_step([a])
        async with open_device("device 1") as second:
            b = await returned(second)
            await in_step([a, b])
            memory_relay.purge()
            await a.notes.put("later", Note("more"))
            await in_step([a, b])
            async with open_device("device 2") as third:
                await in_step([a, b, await returned(third)])


@virtual
async def test_deletions_that_a_backup_brings_back_are_known_again_to_who_had_forgotten_them(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """One forgets while it listens, one came when they were forgotten already, one was not there."""
    async with party(open_device) as guests:
        a, _ = guests
        await put_many(a, "kept", 5)
        await a.notes.delete("kept0")
        await in_step(guests)
    async with open_device("device 0") as device:
        a = await returned(device)
        await in_step([a])
        backup = memory_relay.backup()
        memory_relay.purge()
        memory_relay.cut()
        await in_step([a])
        async with open_device("newcomer") as third:
            c = await joined(third, a.vault)
            await in_step([a, c])
            memory_relay.restore(backup)
            async with open_device("device 1") as other:
                guests = [a, await returned(other), c]
                await in_step(guests)
                for guest in guests:
                    assert (await guest.device.examine()).verdict is Verdict.IN_SYNC


@virtual
async def test_a_deletion_that_was_forgotten_comes_back_with_no_backup(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The devices that know of it forget it when they are told to, and not sooner."""
    async with party(open_device) as guests:
        a, b = guests
        await put_many(a, "kept", 20)
        await in_step(guests)
        for number in range(10):
            await b.notes.delete(f"kept{number}")
        await in_step(guests)
        memory_relay.purge()
        backup = memory_relay.backup()
        await a.notes.put("kept0", Note("again"))
        await b.notes.put("kept19", Note("changed"))
        await in_step(guests)
        before = a.dump()
        assert before["kept0"] == "again"
        memory_relay.restore(backup)
        await in_step(guests)
        assert a.dump() == before


@virtual
async def test_edits_sealed_before_a_purge_are_sealed_again_above_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card("first"))
        await agree(seats)
        memory_relay.delay = 1.0
        await b.cards.put("y", Card("sealed before"))
        await trio.sleep(0.5)
        for number in range(5):
            await a.cards.put(f"gone{number}", Card("x"))
        await trio.sleep(20)
        for number in range(5):
            await a.cards.delete(f"gone{number}")
            await b.cards.put("y", Card(f"sealed before {number}"))
            memory_relay.purge()
            await trio.sleep(1.5)
        memory_relay.delay = 0.0
        await agree(seats)
        memory_relay.purge()
        memory_relay.cut()
        await agree(seats)
        assert b.titles() == {"x": "first", "y": "sealed before 4"}


@virtual
async def test_a_newcomer_that_catches_up_while_deletions_are_forgotten_ends_like_the_others(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        for number in range(20):
            await a.notes.put_many([(f"k{number}-{each}", Note("x" * 2_000)) for each in range(50)])
            await in_step(guests)
        memory_relay.limits = Limits(credit_bytes=CREDIT_BYTES_MIN)
        memory_relay.delay = 0.3
        with sent_by(memory_relay) as sent:
            async with open_device("newcomer") as device:
                b = await joined(device, a.vault)
                for number in range(20):
                    for each in range(0, 50, 7):
                        await a.notes.delete(f"k{number}-{each}")
                    await trio.sleep(0.3)
                    memory_relay.purge()
                memory_relay.delay = 0.0
                await in_step([a, b])
                assert len(b.notes) == 20 * (50 - 8)
        assert any(isinstance(message, Ranges) for message in sent)
