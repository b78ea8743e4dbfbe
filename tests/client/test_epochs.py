"""A vault's key is changed, and members are removed: who reads and writes what, before and after."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
import trio

from sealwire_client import membering
from sealwire_client.keyring import KeyringError, Names, VaultOverError
from sealwire_client.linkmaking import new_vault
from sealwire_client.rekeying import REMOVED, STALE_MAX
from sealwire_client.sync import VaultSync
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.links import Role
from sealwire_protocol.membership import membership_of, verified_before
from sealwire_protocol.messages import Deliver, Message, Push, Pushed
from tests.client.party import (
    Guest,
    Note,
    asked_of,
    comes,
    cut_off,
    founded,
    in_step,
    joined,
    notes_of,
    party,
    records,
    returned,
    told,
)
from tests.support.virtual import virtual


def epochs(relay: MemoryRelay, guest: Guest) -> list[int]:
    """The epochs of the records in a vault's log, in order."""
    streams = relay.log.vaults[guest.vault.id].streams
    return [placed.record.epoch for name, log in streams.items() if name != MEMBERSHIP for placed in log.records()]


@virtual
async def test_everybody_goes_on_under_the_new_key(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 3) as guests:
        a, b, c = guests
        await a.notes.put("first", Note("1"))
        await in_step(guests)
        await a.vault.rotate()
        for guest in guests:
            await guest.notes.put(guest.device.key.hex(), Note("2"))
        await in_step(guests)
        assert epochs(memory_relay, a) == [1, 2, 2, 2]
        assert (await b.vault.status()).last_error is None
        await a.vault.rotate()
        await c.notes.put("first", Note("3"))
        await in_step(guests)
        async with open_device("newcomer") as device:
            await in_step([*guests, await joined(device, a.vault)])


@virtual
async def test_edits_of_a_device_that_was_away_arrive_under_the_new_key(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await in_step(guests)
        async with cut_off(memory_relay):
            await b.notes.put("offline", Note("1"))
        await in_step(guests)
    memory_relay.stop()
    async with open_device("device 1") as device:
        b = await returned(device)
        await b.notes.put("away", Note("2"))
    memory_relay.start()
    async with open_device("device 0") as device:
        a = await returned(device)
        await a.vault.rotate()
        async with open_device("device 1") as other:
            await in_step([a, await returned(other)])
            assert a.dump() == {"offline": "1", "away": "2"}
            assert epochs(memory_relay, a) == [1, 2]


@virtual
async def test_what_was_sealed_before_the_link_was_heard_is_sealed_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        held: list[Message] = []

        def late(message: Message) -> Sequence[Message]:
            if isinstance(message, Push) and not held:
                held.append(message)
                nursery.start_soon(a.vault.rotate)
                return ()
            return (message,)

        async with trio.open_nursery() as nursery:
            memory_relay.mishear = late
            await b.notes.put("x", Note("sealed under the first key"))
            await comes(lambda: bool(held))
        memory_relay.mishear = None
        memory_relay.cut()
        await in_step(guests)
        assert a.dump() == {"x": "sealed under the first key"}
        assert epochs(memory_relay, a) == [2]


@virtual
async def test_s10_s11_who_was_removed_reads_and_writes_nothing_more_and_keeps_what_it_has(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 3) as guests:
        a, b, c = guests
        await b.notes.put("before", Note("read by all"))
        await in_step(guests)
        await a.vault.remove(c.device.key)
        await a.notes.put("after", Note("not for c"))
        await in_step([a, b])
        assert epochs(memory_relay, a) == [1, 2]
        await c.notes.put("too late", Note("stays here"))
        await told(c, REMOVED)
        await trio.sleep(3_600)
        assert (await c.vault.status()).state == "refused"
        assert c.dump() == {"before": "read by all", "too late": "stays here"}
        assert "too late" not in a.dump()
        assert [member.device for member in a.vault.members] == [a.device.key, b.device.key]
        assert [each.key for each in (await a.vault.status()).devices] == [a.device.key, b.device.key]
        key = a.vault._sync.keys.current.secret
        assert key not in [epoch.secret for epoch in c.vault._sync.keys.epochs.values()]
    async with open_device("device 2") as device:
        c = await returned(device)
        assert c.dump()["too late"] == "stays here"
        await trio.sleep(60)
        with pytest.raises(VaultOverError):
            await c.vault.synced()
        assert (await c.vault.status()).pending == 1


@virtual
async def test_a_removed_device_says_so_if_it_hears_of_it(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 2) as guests:
        a, b = guests
        await a.vault.remove(b.device.key)
        await comes(lambda: b.vault._sync.membership.head == 3)
        await told(b, REMOVED)
        async with open_device("again") as other:
            await in_step([a, await joined(other, a.vault)])
        with pytest.raises(KeyringError, match="no such device"):
            await a.vault.remove(b.device.key)
        with pytest.raises(KeyringError, match="cannot remove itself"):
            await a.vault.remove(a.device.key)


@virtual
async def test_a_device_that_was_removed_while_away_is_told_what_that_may_mean(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The relay tells it what it tells everybody of a vault that does not exist (S15)."""
    async with party(open_device, 1) as (a,):
        async with open_device("b") as second:
            await joined(second, a.vault)
            key = second.key
        await a.vault.remove(key)
        async with open_device("b") as second:
            b = await returned(second)
            await b.notes.put("kept", Note("by who was removed"))
            await told(b, "it was removed from it, or")
            assert (await b.vault.status()).pending == 1


@virtual
async def test_only_an_admin_changes_the_key(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        _, b = guests
        with pytest.raises(KeyringError, match="ask an admin"):
            await b.vault.rotate()


@virtual
async def test_two_admins_may_change_the_key_at_once(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(open_device(name)) for name in "ab"]
        a = await founded(first)
        b = await joined(second, a.vault, Role.ADMIN)
        await in_step([a, b])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.vault.rotate)
            nursery.start_soon(b.vault.rotate)
        await b.notes.put("x", Note("after both"))
        await in_step([a, b])
        assert epochs(memory_relay, a) == [3]


@virtual
async def test_a_record_that_comes_before_its_key_is_read_when_the_key_comes(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        kept: list[Deliver] = []

        def withhold(message: Message) -> Sequence[Message]:
            if isinstance(message, Deliver) and message.stream == MEMBERSHIP and message.last == 3:
                kept.append(message)
                return ()
            return (message,)

        memory_relay.alter = withhold
        with trio.move_on_after(60):
            await a.vault.rotate()
        memory_relay.alter = None
    async with open_device("device 0") as first, open_device("device 1") as second:
        a, b = await returned(first), await returned(second)
        await in_step([a, b])
        assert b.vault._sync.keys.current.number == 2


@virtual
async def test_a_relay_that_calls_the_present_key_old_for_ever_keeps_nobody_busy(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    def stale(message: Message) -> Sequence[Message]:
        if isinstance(message, Pushed):
            return [Pushed(message.vault, message.batch, Outcome.EPOCH_STALE, (), ())]
        return () if isinstance(message, Deliver) and message.stream != MEMBERSHIP else (message,)

    async with party(open_device, 1) as [a]:
        memory_relay.alter = stale
        with asked_of(memory_relay, Push) as pushes:
            await a.notes.put("x", Note("kept"))
            await trio.sleep(3_600)
        memory_relay.alter = None
        memory_relay.cut()
        await a.vault.synced()
        assert STALE_MAX < len(pushes) < 500
        assert a.dump() == {"x": "kept"}


@virtual
async def test_what_a_device_seals_under_a_wrong_key_by_mistake_is_refused_and_poisons_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("under the vault's key"))
        await in_step(guests)
        mistaken, sync = await notes_of(b.vault, "others"), b.vault._sync
        _, wrong = new_vault(sync.identity, Names("another", "vault"))
        [stream] = [stream for stream in sync.streams if stream.collection.name == "others"]
        stream.sealer = wrong.sealer(stream.collection.stream, sync.held.author, sync.identity.hedge_key)
        await mistaken.put("y", Note("under a stranger's key"))
        await told(b, "close this device and open it again")
        assert epochs(memory_relay, a) == [1] and (await b.vault.status()).pending == 1
        others = await notes_of(a.vault, "others")
        await a.notes.put("z", Note("goes on"))
        await a.vault.synced()
        assert (await a.vault.status()).unreadable == 0
        assert list(others.items()) == []
    async with open_device("device 0") as first, open_device("device 1") as second:
        a, b = await returned(first), await returned(second)
        mistaken, others = await notes_of(b.vault, "others"), await notes_of(a.vault, "others")
        await in_step([a, b])
        await comes(lambda: others.get("y") == Note("under a stranger's key"))
        assert (await a.vault.status()).unreadable == (await b.vault.status()).unreadable == 0


@virtual
async def test_who_was_removed_and_is_invited_again_sends_what_it_kept(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 3) as guests:
        a, b, c = guests
        await a.vault.remove(c.device.key)
        await told(c, REMOVED)
        await c.notes.put("kept", Note("by who was removed"))
        await a.notes.put("meanwhile", Note("not for c"))
        await in_step([a, b])
        began, looks = trio.current_time(), [await c.vault.status()]
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while True:
                    moved = c.vault._sync.moved
                    looks.append(await c.vault.status())
                    await moved.wait()

            nursery.start_soon(watch)
            again = await joined(c.device, a.vault)
            assert again.vault is c.vault
            await in_step(guests)
            nursery.cancel_scope.cancel()
        assert "offline" not in [look.state for look in looks] and trio.current_time() - began < 2
        assert b.dump() == {"kept": "by who was removed", "meanwhile": "not for c"}
        assert epochs(memory_relay, a) == [2, 2]
        assert sum(member.is_this for member in c.vault.members) == 1
    async with open_device("device 0") as first, open_device("device 2") as third:
        await in_step([await returned(first), await returned(third)])


@virtual
async def test_who_was_removed_while_away_joins_again(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 2):
        pass
    async with open_device("device 0") as first:
        a = await returned(first)
        gone = next(member.device for member in a.vault.members if not member.is_this)
        await a.vault.remove(gone)
        async with open_device("device 1") as second:
            await in_step([a, await joined(second, a.vault)])


@virtual
async def test_what_was_taken_before_a_removal_is_not_written_again_after_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The answer was lost, and another device has written the entry since: what was sent then is not newer."""

    def silent(message: Message) -> Sequence[Message]:
        return () if isinstance(message, Pushed | Deliver) else (message,)

    async with party(open_device, 2) as guests:
        a, b = guests
        memory_relay.alter = silent
        await b.notes.put("x", Note("older"))
        await comes(lambda: records(memory_relay, a.vault) == 1)
        memory_relay.stop()
    memory_relay.alter = None
    memory_relay.start()
    async with open_device("device 0") as first:
        a = await returned(first)
        await a.notes.put("x", Note("newer"))
        await a.vault.synced()
        gone = next(member.device for member in a.vault.members if not member.is_this)
        await a.vault.remove(gone)
        async with open_device("device 1") as second:
            b = await joined(second, a.vault)
            await in_step([a, b])
            assert a.dump() == {"x": "newer"}
            await trio.sleep(60)
            await in_step([a, b])
            assert epochs(memory_relay, a) == [1, 1, 2], "what is there was sealed anew, and nothing else came"


@virtual
async def test_a_link_that_went_with_its_end_of_the_log_has_no_hash(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Whoever asked for it may find a shorter end of the log in its place."""
    async with party(open_device, 1) as [a]:
        members = a.vault._sync.members
        assert await members.hash_of_link(1) == members.membership.last_hash
        assert await members.hash_of_link(2) == b""


@virtual
async def test_a_device_that_has_gone_with_its_end_of_the_log_was_not_removed(
    open_device: OpenDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with party(open_device, 3) as [a, _, c]:
        sync = a.vault._sync
        without = membership_of((await sync.members.links())[:2], verified_before)

        async def goes_over(sync: VaultSync, raw: bytes) -> None:
            sync.members.go_over(without)

        monkeypatch.setattr(membering, "ask_for_link", goes_over)
        with pytest.raises(KeyringError, match="remove it then"):
            await a.vault.remove(c.device.key)
