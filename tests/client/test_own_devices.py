"""A person's new device: one approval lets it into all vaults of that person, on any relays, wherever it breaks."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client import invites, inviting
from sealwire_client.admitting import ADMIT_SECONDS_MAX, LeftOut
from sealwire_client.device import Device
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import Approved, Promise, promise_bytes
from sealwire_client.inviting import NewMember, PendingInvite
from sealwire_client.joining import KNOCK_SECONDS_MAX, ShowCode
from sealwire_client.keyring import KeyringError
from sealwire_client.replica import awaited as awaited_module
from sealwire_client.testing import MemoryRelay
from sealwire_client.transport import InsecureOriginError, Transport
from sealwire_client.vault import Vault
from sealwire_protocol.ids import DeviceKey, VaultId
from sealwire_protocol.limits import MAILBOX_BYTES_MAX
from sealwire_protocol.links import Role
from sealwire_protocol.messages import AnswerJoin, Deliver, Joined, Message
from tests.client.late import late_writer
from tests.client.party import Note, all_synced, asked_of, comes, cut_off, founded, joined, notes_of
from tests.support.virtual import virtual


class Net:
    """Several relays, and devices that can dial each of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.relays = [MemoryRelay(f"wss://relay-{n}.test") for n in (1, 2)]

    @asynccontextmanager
    async def dial(self, origin: str) -> AsyncIterator[Transport]:
        relay = next(relay for relay in self.relays if relay.origin == origin)
        async with relay.dial(origin) as transport:
            yield transport

    def device(self, name: str, relay: int = 0) -> AbstractAsyncContextManager[Device]:
        """The device of this name; new vaults of it go to this relay."""
        origin = self.relays[relay].origin
        return Device.open(self._folder / name, relay=origin, dialler=self.dial, writer=late_writer)


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path)


async def approved(invite: PendingInvite, joiner: Device, show_code: ShowCode | None = None) -> NewMember:
    """Invite and join; what the inviter is told."""
    members: list[NewMember] = []
    async with trio.open_nursery() as nursery:

        async def approve() -> None:
            members.append(await invite.joined())

        nursery.start_soon(approve)
        await joiner.join(invite.link, device_name="phone", show_code=show_code)
    return members[0]


def keeps_back_logs_once_answered(*relays: MemoryRelay) -> None:
    """Nobody is told any link of a membership log, nor anything else, from the inviter's answer on."""

    def note(message: Message) -> list[Message]:
        if isinstance(message, AnswerJoin):
            relays[-1].alter = lambda message: [] if isinstance(message, Deliver) else [message]
        return [message]

    for relay in relays:
        relay.mishear = note


async def all_came(device: Device) -> None:
    """Wait until nothing is awaited any more."""
    while device.awaited:
        await device.another_vault()


async def with_vaults(device: Device, *names: str) -> None:
    """Vaults of its own that the relay knows."""
    for name in names:
        await (await device.create_vault(name, device_name="laptop")).known()


def names(device: Device) -> list[str]:
    return sorted(vault.name for vault in device.vaults)


def roles(device: Device, vault: str) -> dict[str, Role]:
    return {member.name: member.role for member in device.vault(vault).members}


@virtual
async def test_one_approval_lets_a_new_device_into_all_of_a_persons_vaults(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home", "work", "diary")
        member = await approved(await laptop.invite(), phone)
        await all_came(phone)
        assert (member.device, member.name, member.left_out) == (phone.key, "phone", ())
        assert set(member.vaults) == {vault.id for vault in laptop.vaults} == {vault.id for vault in phone.vaults}
        assert names(phone) == ["diary", "home", "work"]
        assert all(roles(phone, name) == {"laptop": Role.ADMIN, "phone": Role.ADMIN} for name in names(phone))


@virtual
async def test_all_vaults_of_a_device_travel_over_one_connection_to_each_relay(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home", "work")
    async with net.device("laptop", relay=1) as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "diary", "letters")
        await approved(await laptop.invite(), phone)
        await all_came(phone)
        assert names(phone) == ["diary", "home", "letters", "work"]
        for name in names(phone):
            here, there = await notes_of(laptop.vault(name)), await notes_of(phone.vault(name))
            await there.put("x", Note(name))
            await all_synced([phone.vault(name), laptop.vault(name)])
            assert here.get("x") == Note(name)
        assert [sorted(relay.devices) for relay in net.relays] == 2 * [sorted([laptop.key, phone.key])]
        assert [relay.connections for relay in net.relays] == [2, 2]


@virtual
async def test_a_hundred_vaults_come_by_one_approval_over_one_connection(net: Net) -> None:
    relay, _ = net.relays
    async with net.device("laptop") as laptop:
        await with_vaults(laptop, *(f"vault {n}" for n in range(100)))
        async with net.device("phone") as phone:
            asked = trio.current_time()
            member = await approved(await laptop.invite(), phone)
            await all_came(phone)
            assert len(member.vaults) == len(phone.vaults) == 100
            assert trio.current_time() - asked < ADMIT_SECONDS_MAX
            assert (relay.connections, relay.dialled) == (2, 2)
        async with net.device("phone") as phone:
            await all_synced([phone.vault("vault 99"), laptop.vault("vault 99")])
            assert len(phone.vaults) == 100 and relay.connections == 2


@virtual
async def test_vaults_of_others_are_named_and_left_out(net: Net) -> None:
    async with net.device("theirs") as theirs, net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home")
        family = (await joined(laptop, (await founded(theirs, "family")).vault)).vault
        member = await approved(await laptop.invite(), phone)
        await all_came(phone)
        assert names(phone) == ["home"]
        assert member.vaults == (laptop.vault("home").id,)
        (left_out,) = member.left_out
        assert (left_out.vault, left_out.name) == (family.id, "family") and "an admin of it" in left_out.why
        assert len(theirs.vault("family").members) == 2


@virtual
async def test_who_is_an_admin_nowhere_is_told_so_at_once(net: Net) -> None:
    async with net.device("theirs") as theirs, net.device("laptop") as laptop:
        with pytest.raises(KeyringError, match="in none of its vaults"):
            await laptop.invite()
        await joined(laptop, (await founded(theirs, "family")).vault)
        with pytest.raises(KeyringError, match="in none of its vaults"):
            await laptop.invite()


@virtual
async def test_a_relay_that_is_away_holds_up_no_other_and_another_invite_does_the_rest(net: Net) -> None:
    here, away = net.relays
    async with net.device("laptop", relay=1) as laptop:
        await with_vaults(laptop, "away")
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home")
        async with cut_off(away):
            began = trio.current_time()
            member = await approved(await laptop.invite(), phone)
            assert names(phone) == ["home"] and trio.current_time() - began <= ADMIT_SECONDS_MAX
            assert [(each.name, "did not answer" in each.why) for each in member.left_out] == [("away", True)]
        await laptop.vault("away").known()
        member = await approved(await laptop.invite(), phone)
        await all_came(phone)
        assert names(phone) == ["away", "home"] and member.left_out == ()
        assert len(here.log.vaults[laptop.vault("home").id].links) == 2, "it was in there already"


@virtual
async def test_what_a_relay_did_not_deliver_comes_after_a_restart(net: Net) -> None:
    _, away = net.relays
    async with net.device("laptop") as laptop:
        await with_vaults(laptop, "home")
    async with net.device("laptop", relay=1) as laptop:
        await with_vaults(laptop, "away")
        await laptop.vault("home").known()
        keeps_back_logs_once_answered(*net.relays)
        async with net.device("phone") as phone:
            await approved(await laptop.invite(), phone)
            assert names(phone) == ["home"]
            assert {(promise.origin, why) for promise, why in phone.awaited.items()} == {(away.origin, None)}
        away.alter = None
        async with net.device("phone") as phone:
            await all_came(phone)
            assert names(phone) == ["away", "home"]
        async with net.device("phone") as phone:
            assert names(phone) == ["away", "home"] and not phone.awaited


@virtual
async def test_a_device_may_be_closed_while_vaults_are_coming(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    remember, late = Vault.remember, list[Vault]()

    async with net.device("phone") as phone:
        await with_vaults(phone, "home", "work")

        async def slowly(vault: Vault) -> None:
            await remember(vault)
            if not late:
                late.append(await phone.create_vault("diary"))

        monkeypatch.setattr(Vault, "remember", slowly)
    async with net.device("phone") as phone:
        assert late and names(phone) == ["diary", "home", "work"]


@virtual
async def test_what_has_not_come_in_a_month_is_not_asked_for_any_longer(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home", "away")
        keeps_back_logs_once_answered(net.relays[0])
        with trio.move_on_after(60):
            await approved(await laptop.invite(), phone)
        assert len(phone.awaited) == 2
    monkeypatch.setattr(awaited_module, "AWAITED_MS_MAX", -1)
    async with net.device("phone") as phone:
        assert not phone.awaited


@virtual
async def test_the_same_link_goes_on_where_it_stopped(net: Net) -> None:
    async with net.device("laptop") as laptop:
        await with_vaults(laptop, "home", "work")
        invite = await laptop.invite()
        for tried in range(3):
            async with net.device("phone") as phone:
                net.relays[0].alter = [
                    lambda message: [] if isinstance(message, Joined) else [message],
                    lambda message: [] if isinstance(message, Deliver) else [message],
                    None,
                ][tried]
                async with trio.open_nursery() as nursery:
                    if not tried:
                        nursery.start_soon(invite.joined)
                    with trio.move_on_after(1000 if tried == 2 else 20):
                        await phone.join(invite.link)
                if tried == 2:
                    await all_came(phone)
                    assert names(phone) == ["home", "work"]
        assert len(laptop.vault("work").members) == 2


def test_a_device_comes_into_all_vaults_wherever_a_connection_breaks(tmp_path: Path) -> None:
    @virtual
    async def test() -> None:
        broken = 0
        for cut_after in range(1, 60, 5):
            net = Net(tmp_path / str(cut_after))
            relay = net.relays[0]
            async with net.device("laptop") as laptop, net.device("phone") as phone:
                await with_vaults(laptop, "home", "work", "diary")
                invite, dialled = await laptop.invite(), relay.dialled
                relay.cut_after(cut_after)
                member = await approved(invite, phone)
                await all_came(phone)
                broken += relay.dialled > dialled + 1
                assert len(member.vaults) == 3 and names(phone) == ["diary", "home", "work"]
                assert {len(kept.links) for kept in relay.log.vaults.values()} == {2}
        assert 6 < broken < 12

    test()


@virtual
async def test_one_code_is_compared_for_all_vaults(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home", "work")
        shown: list[str] = []
        seen: list[tuple[str, str]] = []

        async def agree(code: str, name: str) -> bool:
            seen.append((code, name))
            assert [len(vault.members) for vault in laptop.vaults] == [1, 1]
            return True

        invite = await laptop.invite(confirm=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined, agree)
            await phone.join(invite.link, device_name="phone", show_code=shown.append)
        await all_came(phone)
        assert seen == [(shown[0], "phone")] and len(shown) == 1 and names(phone) == ["home", "work"]


@virtual
async def test_who_is_in_one_vault_already_must_still_be_recognised_for_the_others(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home", "work")
        await joined(phone, laptop.vault("home"))
        compared: list[str] = []

        async def agree(code: str, name: str) -> bool:
            compared.append(code)
            return True

        invite = await laptop.invite(confirm=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined, agree)
            await phone.join(invite.link, show_code=compared.append)
        await all_came(phone)
        assert len(compared) == 2 and names(phone) == ["home", "work"]
        assert Role.WRITER in roles(laptop, "home").values(), "it keeps the role that it had"


@virtual
async def test_a_vault_whose_relay_shows_another_log_than_promised_is_not_joined(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = invites.seal_answer

    def seal(invite: invites.Invite, identity: DeviceIdentity, joiner: DeviceKey, answer: Approved) -> bytes:
        others = tuple(promise._replace(link_hash=bytes(32)) for promise in answer.others)
        return honest(invite, identity, joiner, answer._replace(others=others))

    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home", "work")
        monkeypatch.setattr(invites, "seal_answer", seal)
        await approved(await laptop.invite(), phone)
        await comes(lambda: all(phone.awaited.values()))
        (why,) = phone.awaited.values()
        assert "another membership log" in (why or "") and len(phone.vaults) == 1
        monkeypatch.undo()
        await approved(await laptop.invite(), phone)
        await all_came(phone)
        assert names(phone) == ["home", "work"]


@virtual
async def test_a_relay_that_would_not_be_dialled_is_not_dialled_for_an_answer_either(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    lured = Promise(VaultId(bytes(16)), "ws://relay.example.org", 1, bytes(32))
    monkeypatch.setattr(inviting, "promise_of", lambda sync: lured)

    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home")
        monkeypatch.setattr(inviting, "admit_to_all", lambda *_: promised())

        async def promised() -> tuple[list[Promise], list[LeftOut]]:
            return [lured], []

        invite = await laptop.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            with pytest.raises(InsecureOriginError):
                await phone.join(invite.link)
        assert not phone.awaited and not phone.vaults


@virtual
async def test_more_vaults_than_an_answer_can_name_take_another_invite(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, "home", "work", "diary", "letters")
        monkeypatch.setattr(invites, "OTHERS_BYTES_MAX", 2 * promise_bytes(net.relays[0].origin))
        member = await approved(await laptop.invite(), phone)
        assert len(member.vaults) == 3 and "too many" in member.left_out[0].why
        member = await approved(await laptop.invite(), phone)
        await all_came(phone)
        assert names(phone) == ["diary", "home", "letters", "work"]


@virtual
async def test_an_older_relay_is_given_no_longer_answer_than_it_takes(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealwire_protocol.limits.VERSION_MAX", 1)
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        await with_vaults(laptop, *(f"vault {n}" for n in range(15)))
        with asked_of(net.relays[0], AnswerJoin) as answers:
            first = await approved(await laptop.invite(), phone)
            assert (await approved(await laptop.invite(), phone)).vaults != first.vaults
        assert [len(answer.sealed) <= MAILBOX_BYTES_MAX for answer in answers] == [True, True]
        await all_came(phone)
        assert len(phone.vaults) == 15


# --- who is in already


@virtual
async def test_an_inviter_hears_of_a_device_that_is_a_member_already(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        home = (await founded(laptop)).vault
        b = await joined(phone, home)
        began = trio.current_time()
        member = await approved(await home.invite(), phone)
        assert member == NewMember(phone.key, "phone", (home.id,))
        assert await phone.join((await home.invite()).link) is b.vault
        assert trio.current_time() - began <= KNOCK_SECONDS_MAX and len(home.members) == 2


@virtual
async def test_nothing_is_compared_with_a_device_that_is_a_member_already(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        home = (await founded(laptop)).vault
        await joined(phone, home)
        invite = await home.invite(confirm=True)

        async def agree(code: str, name: str) -> bool:
            raise AssertionError("nobody is there to look")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined, agree)
            await phone.join(invite.link, show_code=lambda code: None)


@virtual
async def test_a_member_whose_relay_is_away_is_told_that_it_is_one(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        home = (await founded(laptop)).vault
        b = await joined(phone, home)
        invite = await home.invite()
        async with cut_off(net.relays[0]):
            began = trio.current_time()
            assert await phone.join(invite.link) is b.vault
            assert trio.current_time() - began <= KNOCK_SECONDS_MAX


@virtual
async def test_a_member_that_was_never_told_tells_the_inviter_of_the_next_invite(net: Net) -> None:
    async with net.device("laptop") as laptop, net.device("phone") as phone:
        home = (await founded(laptop)).vault
        net.relays[0].alter = lambda message: [] if isinstance(message, Joined) else [message]
        invite = await home.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            with trio.move_on_after(10):
                await phone.join(invite.link)
        assert not phone.vaults and len(home.members) == 2
        net.relays[0].alter = None
        assert (await approved(await home.invite(), phone)).device == phone.key
        assert names(phone) == ["home"]
