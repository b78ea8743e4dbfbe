"""Vaults are deleted, and devices forget what is over for them: what is gone then, and what nobody loses by it."""

from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client import UnsentError
from sealwire_client.keyring import KeyringError
from sealwire_client.linkmaking import _parting
from sealwire_client.rekeying import DELETED, REMOVED
from sealwire_client.status import State, Status
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.links import End, LinkType, encode_links
from sealwire_protocol.messages import Fault, Push, Reconcile
from tests.client.party import (
    Note,
    asked_of,
    comes,
    in_step,
    joined,
    party,
    returned,
    sent_by,
    told,
)
from tests.client.test_leaving import bodies, rows
from tests.support.virtual import virtual


@virtual
async def test_a_vault_that_was_deleted_is_so_on_every_device_and_at_the_relay(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with party(open_device, 3) as guests:
        a, b, c = guests
        await a.notes.put("kept", Note("here"))
        await in_step(guests)
    async with open_device("device 0") as first, open_device("device 1") as second:
        a, b = await returned(first), await returned(second)
        await in_step([a, b])
        with pytest.raises(KeyringError, match="ask an admin"):
            await b.vault.delete()
        with pytest.raises(KeyringError, match="leave it instead"):
            await first.forget(a.vault)
        await a.vault.delete()
        await told(b, DELETED)
        for guest in (a, b):
            status = await guest.vault.status()
            assert (status.state, status.last_error, guest.vault.over) == ("refused", DELETED, DELETED)
            assert guest.dump() == {"kept": "here"}
        kept = memory_relay.log.vaults[a.vault.id]
        assert (set(kept.streams), isinstance(bodies(memory_relay, a)[-1], End)) == ({MEMBERSHIP}, True)
        async with open_device("device 2") as late:
            c = await returned(late)
            await told(c, DELETED)
            assert c.dump() == {"kept": "here"}
            await late.forget(c.vault)
        await first.forget(a.vault)
        assert first.vaults == []
    assert rows(tmp_path / "device 0") == rows(tmp_path / "device 2") == {}


@virtual
async def test_a_vault_that_is_over_says_so_from_the_first_look_on(open_device: OpenDevice) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        await a.vault.delete()
        await told(b, DELETED)
    async with open_device("device 1") as device:
        vault, looks = device.vaults[0], list[Status]()
        while State.REFUSED not in [look.state for look in looks]:
            looks.append(await vault.status())
        assert (looks[-1].state, looks[-1].last_error) == (State.REFUSED, DELETED)


@virtual
async def test_what_was_not_sent_before_a_vault_was_deleted_is_kept_until_it_is_discarded(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
    memory_relay.stop()
    async with open_device("device 1") as device:
        await (await returned(device)).notes.put("unsent", Note("1"))
    memory_relay.start()
    async with open_device("device 0") as device:
        a = await returned(device)
        await a.vault.delete()
    async with open_device("device 1") as device:
        with asked_of(memory_relay, Push) as pushed:
            b = await returned(device)
            await told(b, DELETED)
            await b.notes.put("later", Note("2"))
            await trio.sleep(600)
            assert not pushed
        assert ((await b.vault.status()).pending, b.dump()) == (2, {"later": "2", "unsent": "1"})
        with pytest.raises(UnsentError):
            await device.forget(b.vault)
        assert b.dump() == {"later": "2", "unsent": "1"}, "it goes on as it was"
        await device.forget(b.vault, discard=True)
        assert device.vaults == []


@virtual
async def test_a_push_that_meets_the_end_of_its_vault_is_kept(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])
        memory_relay.alter = lambda message: [] if getattr(message, "stream", None) == MEMBERSHIP else [message]
        with trio.move_on_after(30):
            await a.vault.delete()
        with sent_by(memory_relay) as sent:
            await b.notes.put("late", Note("1"))
            await told(b, "was deleted")
        assert FaultCode.VAULT_DELETED in {message.code for message in sent if isinstance(message, Fault)}
        assert b.vault.over is None, "nobody has told it by a link"
        memory_relay.cut()
        await told(b, DELETED)
        assert b.dump() == {"late": "1"}
        assert (await b.vault.status()).pending == 1


@virtual
async def test_r15_a_restored_relay_is_told_that_a_vault_was_deleted_and_deletes_it_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 3) as [a, b, c]:
        await in_step([a, b, c])
        backup = memory_relay.backup()
        await a.vault.delete()
        await told(b, DELETED)
        await told(c, DELETED)
        memory_relay.restore(backup)
        ended = memory_relay.log.vaults[a.vault.id]
        assert not ended.membership.ended
        await comes(lambda: ended.membership.ended)
        assert set(ended.streams) == {MEMBERSHIP}


@virtual
async def test_r15_a_vault_that_was_deleted_stays_so_whatever_others_signed_after_a_restore(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, admin="c") as [a, _, _]:
        pass
    backup = memory_relay.backup()
    async with open_device("device 0") as device:
        await (await returned(device)).vault.delete()
    memory_relay.restore(backup)
    async with open_device("c") as device:
        c = await returned(device)
        await c.vault.rotate()
        await c.vault.rotate()
        await c.notes.put("c", Note("has not heard of it"))
        await c.vault.synced()
        async with open_device("device 0") as first:
            await returned(first)
            await told(c, DELETED)
        assert c.dump() == {"c": "has not heard of it"}
    assert memory_relay.log.vaults[a.vault.id].membership.ended


@virtual
async def test_s03_a_link_by_which_nobody_may_delete_the_vault_is_not_believed(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        await in_step([a, b])

        sync = b.vault._sync
        own = sync.membership.members[sync.held.author]
        forged = _parting(LinkType.END, sync.identity, sync.membership, own, End())
        deliver = memory_relay.log.forge(a.vault.id, MEMBERSHIP, encode_links([forged]))
        memory_relay.offer(deliver)
        await told(a, "was not accepted")
        assert a.vault.over is None
        assert not a.vault._sync.membership.ended


# --- forgetting


@virtual
async def test_who_was_removed_forgets_when_it_wants(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with party(open_device) as [a, b]:
        await a.notes.put("kept", Note("1"))
        await in_step([a, b])
        await a.vault.remove(b.device.key)
        await told(b, REMOVED)
        assert b.dump() == {"kept": "1"}
        assert b.vault.over == REMOVED
        await b.device.forget(b.vault)
        again = await joined(b.device, a.vault)
        await in_step([a, again])


@virtual
async def test_subscribing_to_a_deleted_vault_loses_nothing_here_and_compares_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as [a, b]:
        await b.notes.put("kept", Note("1"))
        await in_step([a, b])
    async with open_device("device 0") as device:
        await (await returned(device)).vault.delete()
    async with open_device("device 1") as device:
        b = await returned(device)
        await told(b, DELETED)
        with asked_of(memory_relay, Reconcile) as compared:
            for _ in range(3):
                memory_relay.cut()
                await trio.sleep(60)
                assert (await b.vault.status()).last_error == DELETED
        assert (compared, b.dump()) == ([], {"kept": "1"})
