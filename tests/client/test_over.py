"""A vault that is over for a device: what is asked of it ends with the reason, instead of a wait without end."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from sealwire_client import KeyringError, Role, VaultOverError
from sealwire_client.admitting import admit
from sealwire_client.invites import Request
from sealwire_client.rekeying import DELETED, REMOVED
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.messages import AppendLink, OpenMailbox, Push
from tests.client.party import Note, asked_of, cut_off, founded, in_step, party, returned, told, with_admin
from tests.support.virtual import virtual

ELSEWHERE = "ws://127.0.0.1:9"

ASKED: dict[str, Callable[[Vault], Awaitable[object]]] = {
    "invite": lambda vault: vault.invite(),
    "rotate": lambda vault: vault.rotate(),
    "remove": lambda vault: vault.remove(vault.members[-1].device),
    "move": lambda vault: vault.move(ELSEWHERE),
    "move without the old relay": lambda vault: vault.move(ELSEWHERE, without_old=True),
    "recovery words": lambda vault: vault.recovery_words(),
    "be in step": lambda vault: vault.synced(),
}


async def refused(vault: Vault, why: str) -> None:
    """Everything that changes the vault, or waits for it to be in step, says why not."""
    for asks in ASKED.values():
        with pytest.raises(VaultOverError, match=why.split(";")[0]):
            await asks(vault)


async def over(vault: Vault) -> None:
    """Whoever waits for it to be in step is told."""
    with pytest.raises(VaultOverError, match="was removed from the vault"):
        await vault.synced()


@virtual
async def test_what_is_asked_of_a_vault_that_was_deleted_says_that_it_was(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        await b.notes.put("late", Note("1"))
        await a.vault.delete()
        await told(b, DELETED)
        with asked_of(memory_relay, AppendLink) as links, asked_of(memory_relay, OpenMailbox) as mailboxes:
            await refused(a.vault, DELETED)
            with pytest.raises(VaultOverError):
                await b.vault.synced()
        assert not links and not mailboxes
        async with cut_off(memory_relay):
            await refused(a.vault, DELETED)
    async with open_device("device 0") as device:
        await refused(device.vaults[0], DELETED)


@virtual
async def test_what_is_asked_of_a_vault_says_that_this_device_was_removed_from_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1, admin="b") as [a, b]:
        with asked_of(memory_relay, Push, swallowed=True):
            async with trio.open_nursery() as nursery:
                await b.notes.put("x", Note("1"))
                nursery.start_soon(over, b.vault)
                await trio.testing.wait_all_tasks_blocked()
                await a.vault.remove(b.device.key)
        await refused(b.vault, REMOVED)
        async with cut_off(memory_relay):
            await refused(b.vault, REMOVED)


@virtual
async def test_a_device_that_hears_of_its_removal_on_its_way_back_in_waits_on(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """It was away when it was removed and added again: both links come, one after the other."""
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        key, box_key = b.device.key, b.vault._sync.identity.box_key
    async with open_device("device 0") as device:
        a = await returned(device)
        await a.vault.remove(key)
        parted = a.vault._sync.membership.parted()
        await admit(Request(key, box_key, "again"), Role.WRITER, a.vault._sync, a.vault._sync.identity, parted)
        await a.notes.put("x", Note("1"))
        await a.vault.synced()
        async with open_device("device 1") as second:
            await second.vaults[0].synced()
            b = await returned(second)
            await b.vault.synced()
            assert b.dump() == {"x": "1"}


@virtual
async def test_an_invite_into_all_vaults_goes_through_one_that_is_there(open_device: OpenDevice) -> None:
    async with open_device("device 0") as device, open_device("device 1") as second:
        gone, kept = await device.create_vault("gone"), await device.create_vault("kept")
        for vault in (gone, kept):
            await vault.synced()
        await gone.delete()
        invite = await device.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            assert (await second.join(invite.link)).id == kept.id
        await kept.delete()
        with pytest.raises(KeyringError, match="an admin in none of its vaults"):
            await device.invite()


@virtual
async def test_a_device_that_no_relay_knows_any_more_is_told_so_when_it_invites(open_device: OpenDevice) -> None:
    """It was an admin, and was removed while it was away."""
    async with open_device("device 0") as device:
        a = await founded(device)
        async with AsyncExitStack() as stack:
            b = await with_admin(open_device, stack, "b", a)
            await in_step([a, b])
        await a.vault.remove(b.device.key)
        async with open_device("b") as second:
            with pytest.raises(KeyringError, match="no relay knows this device"):
                await second.invite()
