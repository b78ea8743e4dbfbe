"""Bringing devices together: the invite, its mailbox, the approval; each wherever a connection breaks."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client import invites
from sealwire_client.invites import InviteError
from sealwire_client.inviting import LOOK_AGAIN_SECONDS, InviteExpiredError, NewMember
from sealwire_client.keyring import KeyringError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.transport import InsecureOriginError
from sealwire_client.vault import Vault
from sealwire_protocol.links import Role
from sealwire_protocol.messages import AnswerJoin, AppendLink, Done, Joined, Joining, Message
from tests.client.late import late_writer
from tests.client.party import Note, asked_of, cut_off, founded, in_step, joined, notes_of, party, returned
from tests.support.virtual import virtual


@virtual
async def test_the_inviter_learns_who_joined(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        invite = await a.vault.invite()
        members: list[NewMember] = []
        async with trio.open_nursery() as nursery:

            async def approve() -> None:
                members.append(await invite.joined())

            nursery.start_soon(approve)
            vault = await second.join(invite.link, device_name="the second one")
        assert members == [NewMember(second.key, "the second one", (a.vault.id,))]
        assert (vault.id, vault.name) == (a.vault.id, "home")
        assert second.vault("home") is vault
        assert second.vault(vault.id.hex()[:6]) is vault


@virtual
async def test_an_invite_works_once(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second, open_device("c") as third:
        (a,) = guests
        invite = await a.vault.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            await second.join(invite.link)
        with pytest.raises(InviteError, match="used by another device"):
            await third.join(invite.link)
        assert third.vaults == []
        assert (await a.vault.status()).members == 2


@virtual
async def test_whoever_has_joined_may_join_again(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        invite = await a.vault.invite()
        assert await b.device.join(invite.link) is b.vault


@virtual
async def test_an_invite_that_nobody_used_expires_on_both_sides(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        invite = await a.vault.invite(seconds=30)
        began = trio.current_time()
        with pytest.raises(InviteExpiredError, match="make a new one"):
            await invite.joined()
        assert trio.current_time() - began == 30
        with pytest.raises(InviteError, match="expired"):
            await second.join(invite.link)


@virtual
async def test_a_joiner_whom_nobody_approves_learns_that_the_invite_has_expired(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        invite = await a.vault.invite(seconds=600)
        began = trio.current_time()
        with pytest.raises(InviteError, match="expired"):
            await second.join(invite.link)
        assert 600 <= trio.current_time() - began < 700


@virtual
async def test_a_joiner_that_gave_up_may_ask_again(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        invite = await a.vault.invite()
        with trio.move_on_after(10):
            await second.join(invite.link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            await second.join(invite.link)
        assert [vault.id for vault in second.vaults] == [a.vault.id]


@virtual
async def test_an_inviter_that_is_not_told_of_a_letter_looks_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The joiner may be connected to another process of the relay, which knows nothing of the inviter's connection."""
    untold: list[Message] = []

    def hide_the_first(message: Message) -> list[Message]:
        if isinstance(message, Joining) and not untold:
            untold.append(message)
            return []
        return [message]

    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        memory_relay.alter = hide_the_first
        began = trio.current_time()
        await joined(second, a.vault)
        assert untold and trio.current_time() - began < 2 * LOOK_AGAIN_SECONDS


@virtual
async def test_a_device_may_be_asked_to_join_twice_at_once(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        invite = await a.vault.invite()
        vaults: list[Vault] = []

        async def join() -> None:
            vaults.append(await second.join(invite.link))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(join)
            nursery.start_soon(join)
            nursery.start_soon(invite.joined)
        assert vaults[0] is vaults[1]
        assert (await a.vault.status()).members == 2


@virtual
async def test_a_device_joins_several_vaults(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second:
        for name in ("home", "work"):
            await joined(second, (await founded(first, name)).vault)
        assert [vault.name for vault in second.vaults] == ["home", "work"]


@virtual
async def test_two_invites_approved_at_once_both_come_true(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        async with open_device("b") as second, open_device("c") as third:
            pending = [await a.vault.invite() for _ in range(2)]
            async with trio.open_nursery() as nursery:
                for device, invite in zip((second, third), pending, strict=True):
                    nursery.start_soon(invite.joined)
                    nursery.start_soon(device.join, invite.link)
            await in_step([a, await returned(second), await returned(third)])
            assert (await a.vault.status()).members == 3


@virtual
async def test_two_admins_who_approve_at_once_both_succeed(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    memory_relay.delay = 0.05
    async with party(open_device, 1) as guests, open_device("admin") as other:
        (a,) = guests
        invite = await a.vault.invite(role=Role.ADMIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            theirs = await other.join(invite.link)
        async with open_device("b") as second, open_device("c") as third:
            pending = [await a.vault.invite(), await theirs.invite()]
            async with trio.open_nursery() as nursery:
                for device, invite in zip((second, third), pending, strict=True):
                    nursery.start_soon(device.join, invite.link)
                    nursery.start_soon(invite.joined)
            await a.vault.known()
            assert (await a.vault.status()).members == 4
        assert len(memory_relay.log.vaults[a.vault.id].links) == 4


@virtual
async def test_a_device_asks_for_one_link_at_a_time(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    """A relay that is set back would take the second one in the place of the first."""
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        a = await founded(first)
        one, two = await a.vault.invite(), await a.vault.invite()
        async with trio.open_nursery() as nursery:
            with asked_of(memory_relay, AppendLink, swallowed=True) as asked:
                for invite, device in ((one, second), (two, third)):
                    nursery.start_soon(invite.joined)
                    nursery.start_soon(device.join, invite.link)
                await trio.sleep(10)
            assert len({message.link for message in asked}) == 1
            memory_relay.cut()


@virtual
async def test_a_link_that_is_known_to_stand_is_asked_for_no_longer(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        await a.vault.synced()
        invite = await a.vault.invite()
        with asked_of(memory_relay, AppendLink) as links:

            def alter(message: Message) -> Sequence[Message]:
                lost = isinstance(message, Done) and message.request in {link.request for link in links}
                return [] if lost else [message]

            memory_relay.alter = alter
            async with trio.open_nursery() as nursery:
                nursery.start_soon(invite.joined)
                await second.join(invite.link)
            memory_relay.cut()
            await a.vault.synced()
            await trio.sleep(10)
        assert len(links) == 1


@virtual
async def test_a_joiner_learns_that_the_relay_has_lost_that_it_was_let_in(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        await a.vault.synced()
        invite, backup = await a.vault.invite(), memory_relay.backup()
        asked: list[bytes] = []

        def lose(message: Message) -> Iterator[Message]:
            if isinstance(message, AppendLink):
                asked.append(message.link)
                if len(asked) > 1:
                    return  # it is not given back, for now
            yield message
            if isinstance(message, AnswerJoin):
                memory_relay.log = deepcopy(backup)
                memory_relay.new_term()

        memory_relay.mishear = lose
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            with pytest.raises(InviteError, match="ask for a new invite"):
                await second.join(invite.link)


@virtual
async def test_a_writer_may_not_invite(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        _, b = guests
        with pytest.raises(KeyringError, match="may not add devices"):
            await b.vault.invite()


@virtual
async def test_an_invite_is_approved_after_a_time_without_the_relay(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        invite = await a.vault.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            await trio.testing.wait_all_tasks_blocked()
            async with cut_off(memory_relay):
                nursery.start_soon(second.join, invite.link)
                await trio.sleep(100)
        assert len(second.vaults) == 1


@virtual
async def test_a_member_that_was_never_told_finds_itself_in_the_log(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The inviter ended after it had added the device and before it could say so."""
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        invite = await a.vault.invite(seconds=300)
        memory_relay.alter = lambda message: [] if isinstance(message, Joined) else [message]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            with trio.move_on_after(10) as waiting:
                await second.join(invite.link)
        assert waiting.cancelled_caught
        assert second.vaults == []
        memory_relay.log.mailboxes.clear()
        assert (await second.join(invite.link)).id == a.vault.id


def _attempts(tmp_path: Path, most: int) -> list[tuple[int, MemoryRelay, OpenDevice]]:
    relays = [MemoryRelay() for _ in range(most)]
    return [(k, relay, OpenDevice(tmp_path / str(k), relay, late_writer)) for k, relay in enumerate(relays, 1)]


def test_a_vault_is_made_wherever_the_connection_breaks(tmp_path: Path) -> None:
    @virtual
    async def test() -> None:
        broken = 0
        for cut_after, relay, open_device in _attempts(tmp_path, 24):
            relay.cut_after(cut_after)
            async with open_device("a") as device:
                a = await founded(device)
                await a.notes.put("x", Note("kept"))
                await a.vault.synced()
                broken += relay.dialled > 1
            assert len(relay.log.vaults) == 1
            assert [log.head for log in relay.log.vaults[a.vault.id].streams.values()] == [1, 1]
        assert 12 < broken < 24, "some breaks come in the midst of it, the last ones after it"

    test()


def test_a_device_joins_wherever_the_connection_breaks(tmp_path: Path) -> None:
    @virtual
    async def test() -> None:
        broken = 0
        for cut_after, relay, open_device in _attempts(tmp_path, 45):
            async with open_device("a") as first, open_device("b") as second:
                a = await founded(first)
                await a.notes.put("x", Note("kept"))
                await a.vault.synced()
                dialled = relay.dialled
                relay.cut_after(cut_after)
                b = await joined(second, a.vault)
                await in_step([a, b])
                broken += relay.dialled > dialled + 1
                assert b.dump() == {"x": "kept"}
                assert len(relay.log.vaults[a.vault.id].links) == 2
        assert 20 < broken < 45

    test()


@virtual
async def test_a_device_goes_on_after_a_restart_in_the_midst_of_joining(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        await a.notes.put("x", Note("kept"))
        invite = await a.vault.invite()
        async with open_device("b") as second:
            with trio.move_on_after(1):
                await second.join(invite.link)
            assert second.vaults == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            async with open_device("b") as second:
                vault = await second.join(invite.link)
                notes = await notes_of(vault)
                await vault.synced()
                assert notes.get("x") == Note("kept")


@pytest.mark.parametrize("link", ["", "hello", "sealwire:", "sealwire:AAAA"])
def test_what_is_no_invite_is_told_at_once(open_device: OpenDevice, link: str) -> None:
    @virtual
    async def test() -> None:
        async with open_device("b") as device:
            with pytest.raises(InviteError):
                await device.join(link)

    test()


@virtual
async def test_an_invite_to_a_relay_without_tls_is_refused(open_device: OpenDevice) -> None:
    async with party(open_device, 1) as guests, open_device("b") as second:
        (a,) = guests
        invite = invites.parse((await a.vault.invite()).link)
        lured = invites.new_invite(
            "ws://relay.example.org", invite.vault, invite.head_seq, invite.head_hash, invite.inviter
        )
        with pytest.raises(InsecureOriginError):
            await second.join(lured.encode())
