"""Inviting somebody else's device: six digits that two people compare, committed to before they can be chosen."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from sealwire_client import invites
from sealwire_client.cipher import Secret
from sealwire_client.device import Device
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import InviteError, Revealed, committed, new_invite, parse, short_code
from sealwire_client.inviting import InviteRefusedError, NewMember, PendingInvite
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import VaultId
from sealwire_protocol.messages import AnswerJoin, Joining
from tests.client.party import asked_of, cut_off, founded
from tests.support.virtual import pass_time, virtual

INVITER, JOINER = (DeviceIdentity(Secret(bytes([n]) * 32)) for n in (1, 2))
NONCE = b"n" * 32


class People:
    """Whoever sits at the two devices: what they see, and whether they find that it is the same."""

    def __init__(self) -> None:
        self.here: list[tuple[str, str]] = []
        self.there: list[str] = []
        self.compared = trio.Event()

    async def agree(self, code: str, name: str) -> bool:
        """At the inviter's."""
        self.here.append((code, name))
        await self.compared.wait()
        return self.there == [code]

    async def meet(
        self, invite: PendingInvite, joiner: Device, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> NewMember:
        """Invite and join, compare after half a minute."""
        members: list[NewMember] = []
        async with trio.open_nursery() as nursery:

            async def approve() -> None:
                members.append(await invite.joined(self.agree))

            async def join() -> None:
                await joiner.join(invite.link, device_name="theirs", show_code=self.there.append)

            nursery.start_soon(approve)
            nursery.start_soon(join)
            await pass_time(30)
            if meanwhile is not None:
                await meanwhile()
            self.compared.set()
        return members[0]


def test_an_invite_with_a_commitment_comes_back_from_its_text() -> None:
    made = new_invite("wss://r.example", VaultId(b"v" * 16), 6, b"g" * 32, INVITER.device_key, committed(NONCE))
    assert parse(made.encode()) == made
    plain = replace(made, commitment=b"")
    assert parse(plain.encode()) == plain
    assert made.encode()[:12] != plain.encode()[:12], "a program that compares no codes does not know this format"


def test_the_code_depends_on_all_that_was_said() -> None:
    made = new_invite("wss://r.example", VaultId(b"v" * 16), 6, b"g" * 32, INVITER.device_key, committed(NONCE))
    request = invites.seal_request(made, JOINER, "theirs")
    code = short_code(made, NONCE, request)
    assert len(code) == 7 and code.replace(" ", "").isdigit()
    others = [
        short_code(made, NONCE, invites.seal_request(made, JOINER, "theirs")),
        short_code(made, NONCE, request[:-1] + b"x"),
        short_code(replace(made, vault=VaultId(b"w" * 16)), NONCE, request),
        short_code(replace(made, secret=Secret(b"s" * 32)), NONCE, request),
        short_code(replace(made, inviter=JOINER.device_key), NONCE, request),
        short_code(replace(made, commitment=committed(b"m" * 32)), b"m" * 32, request),
    ]
    assert code not in others and len(set(others)) == len(others)


def test_another_nonce_than_the_committed_one_gives_no_code() -> None:
    made = new_invite("wss://r.example", VaultId(b"v" * 16), 6, b"g" * 32, INVITER.device_key, committed(NONCE))
    with pytest.raises(InviteError, match="does not belong to this invite"):
        short_code(made, b"m" * 32, b"request")
    with pytest.raises(InviteError, match="does not belong to this invite"):
        short_code(replace(made, commitment=b""), NONCE, b"request")


@virtual
async def test_both_see_the_same_code_and_then_the_device_is_let_in(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a, people = await founded(first), People()
        invite = await a.vault.invite(confirm=True)

        async def nobody_yet() -> None:
            assert len(memory_relay.log.vaults[a.vault.id].links) == 1

        member = await people.meet(invite, second, nobody_yet)
        assert member == NewMember(second.key, "theirs", (a.vault.id,))
        assert people.here == [(people.there[0], "theirs")] and len(people.there) == 1


@virtual
async def test_a_code_is_compared_across_lost_connections(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a, people = await founded(first), People()
        invite = await a.vault.invite(confirm=True)

        async def lose() -> None:
            async with cut_off(memory_relay):
                await trio.sleep(100)

        await people.meet(invite, second, lose)
        assert len(people.there) == 1 and len(second.vaults) == 1


@virtual
async def test_a_device_with_another_code_is_refused(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        invite = await a.vault.invite(confirm=True)
        refused: list[str] = []

        async def join() -> None:
            with pytest.raises(InviteError, match="the codes were not the same"):
                await second.join(invite.link, show_code=refused.append)

        async def no(code: str, name: str) -> bool:
            return False

        async with trio.open_nursery() as nursery:
            nursery.start_soon(join)
            with pytest.raises(InviteRefusedError, match="make a new one"):
                await invite.joined(no)
        assert len(refused) == 1 and second.vaults == []
        assert len(memory_relay.log.vaults[a.vault.id].links) == 1


@virtual
async def test_a_relay_that_puts_its_own_request_in_the_place_of_the_joiners_is_seen(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """It has the invite. What it sends was sealed before the nonce was revealed, so its code is another one."""
    async with open_device("a") as first, open_device("b") as second:
        a, people = await founded(first), People()
        invite = await a.vault.invite(confirm=True)
        forged = invites.seal_request(parse(invite.link), JOINER, "theirs")
        memory_relay.alter = lambda message: [
            replace(message, sealed=forged) if isinstance(message, Joining) else message
        ]
        people.compared.set()
        async with trio.open_nursery() as nursery:

            async def join() -> None:
                with pytest.raises(InviteError):
                    await second.join(invite.link, show_code=people.there.append)

            nursery.start_soon(join)
            with pytest.raises(InviteRefusedError):
                await invite.joined(people.agree)
        assert len(people.here) == 1 and people.there == [], "the answer was for the forger's key"
        assert len(memory_relay.log.vaults[a.vault.id].links) == 1


@virtual
async def test_a_nonce_is_revealed_once(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    """Whoever knows it can make requests until one has the code that is wanted."""
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        invite = await a.vault.invite(confirm=True)

        async def never(code: str, name: str) -> bool:
            await trio.Event().wait()
            return True

        with asked_of(memory_relay, AnswerJoin) as answers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: second.join(invite.link, show_code=lambda code: None))
                with trio.move_on_after(10):
                    await invite.joined(never)
                with pytest.raises(InviteRefusedError, match="has been used"):
                    await invite.joined(never)
                nursery.cancel_scope.cancel()
        assert len(answers) == 1


@virtual
async def test_who_shows_no_code_does_not_join_by_such_an_invite(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        invite, plain = await a.vault.invite(confirm=True), await a.vault.invite()
        with pytest.raises(InviteError, match="show_code"):
            await second.join(invite.link)
        with pytest.raises(LocalMisuse):
            await invite.joined()
        with pytest.raises(LocalMisuse):
            await plain.joined(People().agree)


def test_a_revealed_nonce_is_read_by_its_joiner_alone() -> None:
    made = new_invite("wss://r.example", VaultId(b"v" * 16), 6, b"g" * 32, INVITER.device_key, committed(NONCE))
    sealed = invites.seal_answer(made, INVITER, JOINER.device_key, Revealed(NONCE))
    assert invites.open_answer(made, JOINER.device_key, sealed) == Revealed(NONCE)
    with pytest.raises(InviteError):
        invites.open_answer(made, INVITER.device_key, sealed)
