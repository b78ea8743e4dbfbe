"""After a vault's key was changed, what is there already goes over to the new one, and nobody notices."""

from collections.abc import Sequence
from contextvars import Context
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import trio

from sealwire_client.belonging import has_keys_of
from sealwire_client.resealing import PACE, ROWS_AT_ONCE
from sealwire_client.sending import STRICT_ATTEMPTS_MAX, ConflictError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.errors import Outcome, Refusal
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.links import Role
from sealwire_protocol.messages import RESEAL, Message, Push, Pushed, Refused, Subscribe, Subscribed
from sealwire_protocol.segment import TOMBSTONE, Record
from tests.client.guarded import Account, Card, agree, table
from tests.client.party import (
    Guest,
    Note,
    asked_of,
    comes,
    founded,
    in_step,
    joined,
    party,
    put_many,
    returned,
    sent_by,
)
from tests.client.signed import ledger_of, reasons, signed_party
from tests.support.virtual import virtual


def standing(relay: MemoryRelay, vault: Vault) -> list[Record]:
    """The records that win in the logs of a vault, deletions apart."""
    found: list[Record] = []
    for name, log in relay.log.vaults[vault.id].streams.items():
        if name == MEMBERSHIP:
            continue
        best: dict[bytes, Record] = {}
        for placed in log.records():
            held = best.get(placed.record.tag)
            if held is None or placed.record.rank >= held.rank:
                best[placed.record.tag] = placed.record
        found += [record for record in best.values() if not record.flags & TOMBSTONE]
    return found


def epochs(relay: MemoryRelay, vault: Vault) -> set[int]:
    """The epochs under which entries stand."""
    return {record.epoch for record in standing(relay, vault)}


def writes(relay: MemoryRelay, vault: Vault) -> set[tuple[bytes, int, int]]:
    """Who wrote the entries, and in which version."""
    return {(record.tag, record.version, record.author) for record in standing(relay, vault)}


async def held_epochs(guest: Guest) -> set[int]:
    """The epochs under which a device holds its entries."""
    found = f"SELECT DISTINCT substr(_rank, 9, 2) FROM {guest.notes.held.table.name} WHERE _live"
    rows = await guest.vault._sync._writer.run(lambda replica: replica.database.connection.execute(found).fetchall())
    return {int.from_bytes(epoch, "big") for (epoch,) in rows}


def reseals(asked: Sequence[Push]) -> list[Push]:
    """Those of these pushes that are reseals."""
    return [push for push in asked if push.flags == RESEAL]


@virtual
async def test_after_a_removal_all_entries_come_to_be_under_the_new_key_everywhere(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 3) as guests:
        a, b, c = guests
        for number, guest in enumerate(guests):
            await put_many(guest, f"{number}-", 120)
        await in_step(guests)
        await b.notes.delete("1-7")
        await in_step(guests)
        before, shown = writes(memory_relay, a.vault), a.dump()
        with b.notes.changes() as changes, asked_of(memory_relay, Push) as asked:
            await a.vault.remove(c.device.key)
            await comes(lambda: epochs(memory_relay, a.vault) == {2})
            await in_step([a, b])
            await a.notes.put("the end", Note("of it"))
            named = await anext(changes)
            assert named is not None
            assert [change.key for change in named] == ["the end"], "what is sealed anew is no change"
        pushed = reseals(asked)
        assert len(pushed) == 4 and all(len(push.groups) == 1 for push in pushed)
        assert writes(memory_relay, a.vault) >= before, "each keeps its author and its version"
        await in_step([a, b])
        assert {**shown, "the end": "of it"} == a.dump() == b.dump()
        assert await held_epochs(a) == await held_epochs(b) == {2}
        memory_relay.purge()
        log = memory_relay.log.vaults[a.vault.id].streams[a.notes.held.stream]
        assert {placed.record.epoch for placed in log.records()} == {2}
        async with open_device("newcomer") as device:
            await in_step([a, b, await joined(device, a.vault)])


@virtual
async def test_a_collection_is_looked_through_once_and_its_batches_come_with_pauses(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as [a]:
        await put_many(a, "n", ROWS_AT_ONCE + 500)
        await in_step([a])
        before = memory_relay.log.vaults[a.vault.id].streams[a.notes.held.stream].head
        times: list[float] = []

        def note(message: Message) -> list[Message]:
            if isinstance(message, Push) and message.flags == RESEAL:
                times.append(trio.current_time())
            return [message]

        memory_relay.mishear = note
        await a.vault.rotate()
        await comes(lambda: epochs(memory_relay, a.vault) == {2})
        assert min(later - earlier for earlier, later in pairwise(times)) >= PACE.pause_seconds
        await trio.sleep(7_200)
        after = memory_relay.log.vaults[a.vault.id].streams[a.notes.held.stream].head
        assert after - before == ROWS_AT_ONCE + 500, "each was sealed anew once"
        assert len(times) == 45


@virtual
async def test_one_large_entry_fills_a_batch(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 1) as [a]:
        await a.notes.put_many([(str(number), Note("x" * 50_000)) for number in range(3)])
        await in_step([a])
        with asked_of(memory_relay, Push) as asked:
            await a.vault.rotate()
            await comes(lambda: epochs(memory_relay, a.vault) == {2})
        assert len(reseals(asked)) == 3


@virtual
async def test_others_do_what_is_left_after_a_long_time(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 3) as guests:
        await put_many(guests[0], "n", 30)
        await in_step(guests)
        await guests[0].vault.rotate()
    async with open_device("device 1") as one, open_device("device 2") as two:
        b, c = await returned(one), await returned(two)
        await in_step([b, c])
        with asked_of(memory_relay, Push) as asked:
            await trio.sleep(PACE.others_seconds - 60)
            assert not asked
            await trio.sleep(PACE.others_seconds + 3_600)
        assert len(asked) == 1, "the second of them found nothing left"
        assert epochs(memory_relay, b.vault) == await held_epochs(b) == await held_epochs(c) == {2}


@virtual
async def test_an_open_collection_is_asked_for_its_head_under_the_new_epoch_first(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Else a record of an older epoch could be on its way that is of the same version, and would lose."""
    async with party(open_device, 1) as [a]:
        await put_many(a, "n", 3)
        await in_step([a])
        with asked_of(memory_relay, Subscribe) as asked, sent_by(memory_relay) as sent:
            await a.vault.rotate()
            await comes(lambda: epochs(memory_relay, a.vault) == {2})
            await in_step([a])
        stream = a.notes.held.stream
        assert [wanted.stream for message in asked for wanted in message.streams if wanted.stream != MEMBERSHIP] == [
            stream
        ]
        told = [
            each.epoch
            for each in sent
            if isinstance(each, Subscribed) and stream in [one.stream for one in each.streams]
        ]
        assert told == [2]


@virtual
async def test_who_begins_goes_on_after_a_restart(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 1) as [a]:
        await put_many(a, "n", 30)
        await in_step([a])
        await a.vault.rotate()
    async with open_device("device 0") as device:
        a = await returned(device)
        await comes(lambda: epochs(memory_relay, a.vault) == {2})


@virtual
async def test_a_reader_seals_nothing_anew(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("writer") as device, open_device("reader") as other:
        a = await founded(device)
        await put_many(a, "n", 30)
        b = await joined(other, a.vault, Role.READER)
        await in_step([a, b])
        memory_relay.mishear = lambda message: [] if isinstance(message, Push) else [message]
        await a.vault.rotate()
        await trio.sleep(3 * PACE.others_seconds)
        assert b.vault._sync.keys.current.number == 2
        assert b.vault._sync._resealing._passes == {}


@virtual
async def test_an_edit_goes_first_and_what_is_on_its_way_holds_back_edits_of_its_keys(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """R4."""
    async with party(open_device, 2) as [a, b]:
        await put_many(a, "n", 10)
        await in_step([a, b])
        memory_relay.mishear = lambda message: [] if isinstance(message, Push) else [message]
        await a.vault.rotate()
        await trio.sleep(10)
        await a.notes.put("n3", Note("edited"))
        await a.notes.put("other", Note("edited"))
        await trio.sleep(10)
        vault = a.vault._sync.held.number
        found = await a.vault._sync._writer.run(lambda replica: replica.outbox.sent.unanswered(vault))
        assert [batch.flags for batch in found] == [RESEAL, 0]
        assert (await a.vault.status()).pending == 2
        memory_relay.mishear = None
        with asked_of(memory_relay, Push) as asked:
            memory_relay.cut()
            await in_step([a, b])
        assert [(push.batch, push.flags) for push in asked] == [(2, RESEAL), (3, 0), (4, 0)]
        assert a.dump()["n3"] == b.dump()["n3"] == "edited"
        assert epochs(memory_relay, a.vault) == {2}


@virtual
async def test_nothing_of_it_is_pending_or_shown(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 2) as [a, b]:
        await put_many(a, "n", 10)
        await in_step([a, b])
        memory_relay.mishear = lambda message: [] if isinstance(message, Push) else [message]
        await a.vault.rotate()
        await trio.sleep(60)
        status = await a.vault.status()
        assert (status.state, status.pending, status.last_error) == ("synced", 0, None)
        await a.vault.synced()


@virtual
async def test_a_deletion_that_was_forgotten_meanwhile_stays(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """What was sealed before it arrives after it: there is nothing left that it would lose against."""
    async with party(open_device, 2) as [a, b]:
        await put_many(a, "n", 10)
        await in_step([a, b])
        held: list[Push] = []

        def hold(message: Message) -> list[Message]:
            if isinstance(message, Push) and message.flags == RESEAL and not held:
                held.append(message)
                return []
            return [message]

        memory_relay.mishear = hold
        await a.vault.rotate()
        await comes(lambda: bool(held))
        await b.notes.delete("n3")
        await in_step([a, b])
        memory_relay.purge()
        with sent_by(memory_relay) as sent:
            memory_relay.cut()
            await comes(lambda: epochs(memory_relay, a.vault) == {2})
            await in_step([a, b])
        outcomes = [message.outcome for message in sent if isinstance(message, Pushed)]
        assert outcomes == [Outcome.SEAL_AGAIN, Outcome.DONE]
        assert sorted(a.dump()) == sorted(b.dump()) == [f"n{number}" for number in range(10) if number != 3]


@virtual
async def test_a_crash_at_any_time_seals_nothing_twice(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 1) as [a]:
        await put_many(a, "n", 10)
        await in_step([a])
        memory_relay.lose_answers(1)
        with asked_of(memory_relay, Push) as asked:
            await a.vault.rotate()
            await comes(lambda: len(asked) == 2)
            await trio.sleep(600)
        assert asked[0].groups == asked[1].groups and len(asked) == 2
        assert len(standing(memory_relay, a.vault)) == 10 and epochs(memory_relay, a.vault) == {2}


# --- guarded collections


@virtual
async def test_guarded_entries_go_over_too_and_edits_upon_the_old_ones_are_made_in_silence(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("card", Card(title="mine", owner="a"))
        await a.accounts.put("account", Account(7))
        await agree(seats)
        held: list[Push] = []

        def hold(message: Message) -> list[Message]:
            """b's edit arrives after what a has sealed anew, upon which it is not made."""
            if isinstance(message, Push) and message.flags != RESEAL and not held:
                held.append(message)
                return []
            return [message]

        memory_relay.mishear = hold
        with b.cards.changes() as changes:
            await a.vault.rotate()
            await has_keys_of(b.vault._sync, 2)
            await b.cards.put("card", Card(title="mine", owner="b"))
            await comes(lambda: epochs(memory_relay, a.vault) == {2})
            memory_relay.cut()
            await agree(seats)
            assert held and a.cards.get("card") == Card(title="mine", owner="b")
            await b.cards.put("last", Card())
            named = await anext(changes)
        assert [change.key for change in named or ()] == ["card", "last"]
        assert (await b.vault.status()).stuck == 0


@virtual
async def test_a_strict_write_is_not_refused_because_what_it_replaces_was_sealed_anew(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("account", Account(7))
        await agree(seats)
        held: list[Push] = []

        def hold(message: Message) -> list[Message]:
            if isinstance(message, Push) and message.flags != RESEAL and not held:
                held.append(message)
                nursery.start_soon(resealed)
                return []
            return [message]

        async def resealed() -> None:
            await comes(lambda: epochs(memory_relay, a.vault) == {2})
            memory_relay.cut()

        await a.vault.rotate()
        await has_keys_of(b.vault._sync, 2)
        async with trio.open_nursery() as nursery:
            memory_relay.mishear = hold
            await b.accounts.put("account", Account(8))
        await agree(seats)
        assert held and a.accounts.get("account") == b.accounts.get("account") == Account(8)


@virtual
async def test_a_strict_transaction_is_not_refused_if_what_it_read_was_sealed_anew(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("account", Account(7))
        await agree(seats)
        async with b.vault.transaction():
            account = b.accounts.get("account")
            assert account is not None
            await a.vault.rotate()
            await comes(lambda: epochs(memory_relay, a.vault) == {2})
            await agree(seats)
            await b.accounts.put("account", Account(account.cents + 1))
        assert b.accounts.get("account") == Account(8)


@virtual
async def test_a_strict_write_is_refused_if_it_was_sealed_anew_and_then_written(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("account", Account(7))
        await agree(seats)

        async def pay() -> None:
            async with b.vault.transaction():
                assert b.accounts.get("account") == Account(7)
                await a.vault.rotate()
                await comes(lambda: epochs(memory_relay, a.vault) == {2})
                async with trio.open_nursery() as nursery:  # not within b's transaction
                    Context().run(nursery.start_soon, a.accounts.put, "account", Account(7))
                await agree(seats)
                await b.accounts.put("account", Account(8))

        with pytest.raises(ConflictError):
            await pay()


@virtual
async def test_a_relay_that_always_says_so_is_not_asked_for_ever(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("account", Account(7))
        await agree(seats)
        number = memory_relay.log.vaults[a.vault.id].streams[a.accounts.held.stream].head

        def lie(message: Message) -> list[Any]:
            if isinstance(message, Pushed) and message.appended:
                refused = Refused(0, 0, Refusal.CONFLICT, number, b"")
                return [replace(message, appended=(), refused=(refused,))]
            return [message]

        memory_relay.alter = lie
        with asked_of(memory_relay, Push) as asked, pytest.raises(ConflictError):
            await b.accounts.put("account", Account(8))
        assert len(asked) <= STRICT_ATTEMPTS_MAX


# --- signed collections


@virtual
async def test_in_a_signed_collection_the_authors_signature_stays_and_for_who_is_gone_somebody_vouches(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 3) as guests:
        a, b, c = guests
        for guest in guests:
            await guest.notes.put(guest.device.key.hex(), Note("signed"))
        await in_step(guests)
        await a.vault.remove(c.device.key)
        await comes(lambda: epochs(memory_relay, a.vault) == {2})
        await in_step([a, b])
        assert len(a.dump()) == len(b.dump()) == 3
        await a.vault.rotate()
        await comes(lambda: epochs(memory_relay, a.vault) == {3})
        async with open_device("newcomer") as device:
            guest = await joined(device, a.vault)
            d = guest._replace(notes=await ledger_of(guest.vault))
            await in_step([a, b, d])
            assert len(d.dump()) == 3 and await reasons(d) == []
            assert await held_epochs(d) == {3}
