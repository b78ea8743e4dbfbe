"""Devices leave a vault, and vaults are deleted: what is gone then, what stays, and what nobody loses by it."""

import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client import UnsentError, VaultGoneError
from sealwire_client.belonging import has_keys_of
from sealwire_client.invites import InviteError
from sealwire_client.inviting import InviteRefusedError, PendingInvite
from sealwire_client.keyring import KeyringError
from sealwire_client.linkmaking import leave_link
from sealwire_client.policies import strict
from sealwire_client.rekeying import REMOVED
from sealwire_client.replica import Leaving, Unissued
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.limits import EPOCH_OWED_SECONDS, EPOCH_OWED_SECONDS_MAX
from sealwire_protocol.links import Leave, NewEpoch, Role, decode_link
from sealwire_protocol.messages import AppendLink, Done, Fault, Message, Push
from tests.client.party import (
    Guest,
    Note,
    asked_of,
    comes,
    cut_off,
    founded,
    in_step,
    joined,
    party,
    returned,
    told,
    with_admin,
)
from tests.support.virtual import virtual


def bodies(relay: MemoryRelay, guest: Guest) -> list[object]:
    """What the relay's links of a vault say, in order."""
    return [decode_link(raw).body for raw in relay.log.vaults[guest.vault.id].links]


def epochs_begun(relay: MemoryRelay, guest: Guest) -> int:
    return sum(isinstance(body, NewEpoch) for body in bodies(relay, guest))


def rows(folder: Path) -> dict[str, int]:
    """The rows of every table of a closed replica that has any, but for terms, which belong to no vault."""
    with sqlite3.connect(folder / "replica.db") as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        counts = {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}
    return {name: count for name, count in counts.items() if count and name not in ("_term", "sqlite_sequence")}


# --- leaving


@virtual
async def test_who_leaves_holds_nothing_of_the_vault_any_more(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with party(open_device, 3) as guests:
        a, b, c = guests
        await b.notes.put("b", Note("mine"))
        await in_step(guests)
        await b.vault.leave()
        assert b.device.vaults == []
        await comes(lambda: epochs_begun(memory_relay, a) == 1)
        await a.notes.put("a", Note("after"))
        await in_step([a, c])
        assert c.dump() == {"b": "mine", "a": "after"}
        assert (await a.vault.status()).members == 2
        assert [member.device for member in a.vault.members] == [a.device.key, c.device.key]
        assert b.device.key not in {device.key for device in (await c.vault.status()).devices}
    assert rows(tmp_path / "device 1") == {}
    async with open_device("device 1") as device:
        assert device.vaults == []


@virtual
async def test_s11_s10_who_has_left_reads_nothing_that_comes_and_writes_nothing_any_more(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        keys, identity = b.vault._sync.keys, b.vault._sync.identity
        await b.vault.leave()
        await comes(lambda: epochs_begun(memory_relay, a) == 1)
        await a.notes.put("secret", Note("after"))
        await a.vault.synced()
        vault = memory_relay.log.vaults[a.vault.id]
        assert vault.membership.by_device(identity.device_key) is None
        for stream, log in vault.streams.items():
            if stream != MEMBERSHIP:
                _, unopened = keys.opener(stream).open_segment(log.segments[-1][2], log.segments[-1][0])
                assert len(unopened) == 1
        push = Push(a.vault.id, memory_relay.log.term, 9, 0, ())
        told = memory_relay.log.push(identity.device_key, push).told
        assert getattr(told, "code", None) is FaultCode.NO_SUCH_VAULT


@virtual
async def test_nothing_that_was_not_sent_is_lost_by_leaving(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        async with cut_off(memory_relay):
            await b.notes.put("one", Note("1"))
            await b.notes.put("two", Note("2"))
            with pytest.raises(UnsentError, match="2 writes of the vault would be lost") as caught:
                await b.vault.leave()
            assert caught.value.count == 2
            assert b.dump() == {"one": "1", "two": "2"}
        await in_step([a, b])
        assert a.dump() == {"one": "1", "two": "2"}
        await b.vault.leave()
        assert not b.device.vaults


@virtual
async def test_what_is_stuck_counts_as_unsent_and_goes_if_that_is_said(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with open_device("a") as device, open_device("b") as second:
        a = await founded(device)
        b = await joined(second, a.vault, Role.READER)
        await a.notes.put("there", Note("from the start"))
        await in_step([a, b])
        await b.notes.put("mine", Note("a reader's"))
        await told(b, "may not write")
        with pytest.raises(UnsentError, match="1 write of the vault would be lost"):
            await b.vault.leave()
        await b.vault.leave(discard=True)
        assert second.vaults == []
    assert rows(tmp_path / "b") == {}


@virtual
async def test_a_strict_write_that_is_under_way_counts_as_unsent(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [_, b]:
        seats = await b.vault.collection("seats", Note, policy=strict())
        await b.vault.synced()
        with asked_of(memory_relay, Push, swallowed=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(seats.put, "1A", Note("b"))
                await trio.sleep(1)
                with pytest.raises(UnsentError) as caught:
                    await b.vault.leave()
                assert caught.value.count == 1
                nursery.cancel_scope.cancel()


@virtual
async def test_the_only_admin_stays_until_there_is_another_one(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b], AsyncExitStack() as stack:
        with pytest.raises(KeyringError, match="only admin"):
            await a.vault.leave()
        assert await a.vault._writer.run(lambda replica: replica.parting.intended(1)) is None
        await a.notes.put("still", Note("here"))
        await in_step([a, b])
        c = await with_admin(open_device, stack, "c", a)
        await in_step([a, b, c])
        await a.vault.leave()
        assert a.device.vaults == []
        await comes(lambda: epochs_begun(memory_relay, c) == 1)
        await b.notes.put("without", Note("a"))
        await in_step([b, c])


@virtual
async def test_a_device_that_is_alone_deletes_instead(open_device: OpenDevice) -> None:
    async with open_device() as device:
        guest = await founded(device)
        await guest.vault.synced()
        with pytest.raises(KeyringError, match="or delete the vault"):
            await guest.vault.leave()
        await guest.vault.delete()
        await device.forget(guest.vault)
        assert device.vaults == []


@virtual
async def test_who_has_left_is_told_so_wherever_it_still_asks(open_device: OpenDevice) -> None:
    async with party(open_device) as [_, b]:
        ended = trio.Event()

        async def watch() -> None:
            with b.notes.changes() as changes:
                async for _ in changes:
                    pass
            ended.set()

        async def wait() -> None:
            with pytest.raises(VaultGoneError):
                await b.vault._sync.until(lambda sync: False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await b.vault.leave()
            await ended.wait()
        for read in (lambda: b.notes.get("x"), lambda: list(b.notes.items()), lambda: b.vault.select("SELECT 1")):
            with pytest.raises(VaultGoneError, match="not on this device any more"):
                read()
        with pytest.raises(VaultGoneError):
            await b.notes.put("x", Note("1"))
        with pytest.raises(VaultGoneError):
            await b.vault.collection("others", Note, policy=strict())
        with pytest.raises(VaultGoneError):
            await b.vault.synced()


@virtual
async def test_an_edit_that_comes_while_the_vault_goes_is_kept_or_refused(open_device: OpenDevice) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        writer, number = b.vault._writer, b.vault._held.number
        await writer.run(lambda replica: replica.parting.forget(number, discard=False))
        with pytest.raises(VaultGoneError):
            await writer.run(lambda replica: replica.edit(b.notes.held, []))
        fresh = await founded(b.device, "another")
        assert fresh.vault._held.number != number
        assert fresh.notes.held.number != b.notes.held.number, "somebody may still know the one that went by it"


@virtual
async def test_who_has_left_may_join_again_and_vaults_that_stay_are_as_they_were(open_device: OpenDevice) -> None:
    async with party(open_device) as [a, b]:
        other = await founded(b.device, "another")
        await other.notes.put("k", Note("v"))
        await a.notes.put("first", Note("1"))
        await in_step([a, b])
        await b.vault.leave()
        assert [vault.name for vault in b.device.vaults] == ["another"]
        await other.vault.synced()
        again = await joined(b.device, a.vault)
        await again.notes.put("second", Note("2"))
        await in_step([a, again])
        assert a.dump() == {"first": "1", "second": "2"}
        assert other.dump() == {"k": "v"}


@virtual
async def test_an_invite_that_was_used_says_that_the_device_is_no_member_any_more(open_device: OpenDevice) -> None:
    async with open_device("a") as device, open_device("b") as other:
        a = await founded(device)
        invite = await a.vault.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            vault = await other.join(invite.link)
        await vault.leave()
        with pytest.raises(InviteError, match="has left since"):
            await other.join(invite.link)


@pytest.mark.parametrize("removed", [False, True])
@virtual
async def test_s11_an_invite_from_before_it_parted_lets_no_device_in_again(
    open_device: OpenDevice, removed: bool
) -> None:
    async with party(open_device) as [a, b]:
        early = await a.vault.invite()
        if removed:
            await a.vault.remove(b.device.key)
            await told(b, REMOVED)
            await b.device.forget(b.vault)
        else:
            await b.vault.leave()
        epoch = a.vault._sync.membership.head
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuses, early)
            with pytest.raises(InviteError, match="after this invite was made"):
                await b.device.join(early.link)
        assert (a.vault._sync.membership.head - epoch, len(a.vault.members)) in ((0, 1), (1, 1)), "but for a new key"
        again = await joined(b.device, a.vault)
        await in_step([a, again])


async def refuses(invite: PendingInvite) -> None:
    """An invite that lets nobody in."""
    with pytest.raises(InviteRefusedError, match="after this invite was made"):
        await invite.joined()


# --- who changes the key then


@virtual
async def test_the_first_admin_begins_one_epoch_soon_for_all_who_left(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 4, admin="e") as [a, b, c, _, _]:
        began = trio.current_time()
        await b.vault.leave()
        await c.vault.leave()
        await comes(lambda: epochs_begun(memory_relay, a) > 0)
        assert trio.current_time() - began < EPOCH_OWED_SECONDS + 2
        await trio.sleep(2 * EPOCH_OWED_SECONDS_MAX)
        assert epochs_begun(memory_relay, a) == 1
        signers = [decode_link(raw).signer for raw in memory_relay.log.vaults[a.vault.id].links]
        assert signers[-1] == a.vault._sync.held.author


@virtual
async def test_another_admin_does_it_where_the_first_one_is_away(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, admin="c"):
        pass
    async with open_device("c") as device:
        c = await returned(device)
        async with open_device("device 1") as leaving:
            b = await returned(leaving)
            await in_step([b, c])
            began = trio.current_time()
            await b.vault.leave()
        await comes(lambda: epochs_begun(memory_relay, c) == 1)
        assert EPOCH_OWED_SECONDS < trio.current_time() - began < EPOCH_OWED_SECONDS_MAX + 2
    async with open_device("device 0") as device:
        a = await returned(device)
        await has_keys_of(a.vault._sync, 2)


@virtual
async def test_an_epoch_that_was_owed_when_the_app_ended_is_begun_by_the_next_run(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
    async with open_device("device 1") as device:
        b = await returned(device)
        await b.vault.synced()
        await b.vault.leave()
    assert [type(body) for body in bodies(memory_relay, a)][-1] is Leave
    async with open_device("device 0") as device:
        a = await returned(device)
        await comes(lambda: epochs_begun(memory_relay, a) == 1)


@virtual
async def test_r15_who_has_left_before_a_relay_lost_it_is_removed_by_who_heard_of_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, admin="c") as [a, b, c]:
        backup = memory_relay.backup()
        with asked_of(memory_relay, AppendLink) as asked:
            await b.vault.leave()
        assert isinstance(decode_link(asked[0].link).body, Leave)
        await comes(lambda: epochs_begun(memory_relay, a) == 1)
        key = b.device.key
        memory_relay.restore(backup)
        assert memory_relay.log.vaults[a.vault.id].membership.by_device(key) is not None
        await comes(lambda: memory_relay.log.vaults[a.vault.id].membership.by_device(key) is None)
        await in_step([a, c])


@virtual
async def test_r15_who_knows_of_a_removal_that_a_relay_lost_makes_it_again_before_it_leaves(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, admin="c") as [a, b, c]:
        member = a.vault._sync.membership.by_device(b.device.key)
        assert member is not None
        owed = Unissued(member.device, member.box_key, Role.REPLACED, "b", 0)
        await a.vault._writer.run(lambda replica: replica.vaults.add_unissued(a.vault._held.number, [owed]))
        async with trio.open_nursery() as nursery:
            async with a.vault._sync.members.appending:  # another link of this device's is under way
                nursery.start_soon(a.vault.leave)
                await trio.testing.wait_all_tasks_blocked()
            a.vault._sync._agreeing._may_issue = True  # as when an end of the log has just given way
            a.vault._sync._listen_again()
        membership = memory_relay.log.vaults[c.vault.id].membership
        assert [member.device for member in membership.present()] == [c.device.key]


# --- an end in between


def unanswered(message: Message) -> list[Message]:
    """A device hears of nothing that it has asked, and of no link that comes by it."""
    return [] if isinstance(message, Done | Fault) or getattr(message, "stream", None) == MEMBERSHIP else [message]


@pytest.mark.parametrize("arrives", [False, True], ids=["the relay was not reached", "the answer was lost"])
@virtual
async def test_leaving_goes_on_with_the_next_run(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path, arrives: bool
) -> None:
    async with party(open_device) as [a, b]:
        await b.notes.put("b", Note("1"))
        await in_step([a, b])
        with asked_of(memory_relay, AppendLink, swallowed=not arrives) as asked:
            memory_relay.alter = unanswered
            with trio.move_on_after(30):
                await b.vault.leave()
            assert asked
        assert b.device.vaults, "it does not know yet that it is out"
        left = memory_relay.log.vaults[a.vault.id].membership.by_device(b.device.key) is None
        assert left is arrives
    memory_relay.alter = None
    async with open_device("device 1") as device:
        await comes(lambda: not device.vaults)
    assert rows(tmp_path / "device 1") == {}
    assert memory_relay.log.vaults[a.vault.id].membership.by_device(b.device.key) is None
    assert [type(body) for body in bodies(memory_relay, a)].count(Leave) == 1


@virtual
async def test_who_asks_again_to_leave_while_it_is_under_way_is_told_when_it_is_done(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """As somebody does after the app has ended: the next run has gone on with it by then."""
    async with party(open_device) as [_, b]:
        await in_step([_, b])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.vault.leave)
            nursery.start_soon(b.vault.leave)
        assert b.device.vaults == []
        await b.vault.leave()


@virtual
async def test_an_end_before_the_vault_is_forgotten_is_made_up_for(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        discarding: list[bool] = []

        async def dies(discard: bool) -> None:
            discarding.append(discard)

        b.vault._forget = dies
        await b.vault.leave()
        assert discarding == [False]
        assert b.device.vaults
    async with open_device("device 1") as device:
        await comes(lambda: not device.vaults)
    assert rows(tmp_path / "device 1") == {}


@pytest.mark.parametrize("discard", [False, True])
def test_what_was_to_be_discarded_is_by_the_next_run_and_nothing_else(
    open_device: OpenDevice, memory_relay: MemoryRelay, discard: bool
) -> None:
    @virtual
    async def once() -> None:
        async with party(open_device) as [a, b]:
            await in_step([a, b])
            memory_relay.stop()
            await b.notes.put("unsent", Note("1"))
            sync = b.vault._sync
            leaving = Leaving(leave_link(sync.identity, sync.membership), discard)
            await b.vault._writer.run(lambda replica: replica.parting.intend(1, leaving))
        memory_relay.start()
        async with open_device("device 1") as device:
            if discard:
                await comes(lambda: not device.vaults)
                return
            await trio.sleep(600)
            assert (await returned(device)).dump() == {"unsent": "1"}
        assert Leave not in {type(body) for body in bodies(memory_relay, a)}

    once()


@virtual
async def test_who_was_removed_meanwhile_is_out_all_the_same(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        with asked_of(memory_relay, AppendLink, swallowed=True):
            with trio.move_on_after(30):
                await b.vault.leave()
    async with open_device("device 0") as device:
        await (await returned(device)).vault.remove(b.device.key)
    async with open_device("device 1") as device:
        await comes(lambda: not device.vaults)


@virtual
async def test_who_was_removed_while_it_was_away_forgets_the_vault(open_device: OpenDevice) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        removed = b.device.key
    async with open_device("device 0") as device:
        await (await returned(device)).vault.remove(removed)
    async with open_device("device 1") as device:
        b = await returned(device)
        await b.notes.put("x", Note("not sent"))
        assert (b.vault.is_known, await b.vault.known()) == (None, False)
        with pytest.raises(UnsentError):
            await device.forget(b.vault)
        assert b.vault.is_known is False, "who is refused goes on as it was, and need not ask again"
        await told(b, "ask an admin")
        await device.forget(b.vault, discard=True)
        assert not device.vaults


@virtual
async def test_a_vault_whose_relay_is_gone_is_forgotten_if_that_is_said_and_nobody_is_told(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        await a.vault.synced()
        b = await joined(second, a.vault)
        await in_step([a, b])
        with pytest.raises(KeyringError, match="leave it instead"):
            await second.forget(b.vault, without_relay=True)  # the relay is there, and can be told
        async with cut_off(memory_relay):
            await b.notes.put("k", Note("not sent"))
            with pytest.raises(KeyringError, match="without the relay"):
                await second.forget(b.vault)
            with pytest.raises(UnsentError):
                await second.forget(b.vault, without_relay=True)
            assert b.dump() == {"k": "not sent"}
            await second.forget(b.vault, without_relay=True, discard=True)
            assert not second.vaults
        await a.vault.synced()
        assert len(a.vault.members) == 2, "nobody was told"
        await a.vault.remove(second.key)
        await a.vault.synced()
        b = await joined(second, a.vault)
        await in_step([a, b])
    async with cut_off(memory_relay), open_device("b") as second:
        await second.forget(second.vaults[0], without_relay=True)
    assert rows(second.folder) == {}
