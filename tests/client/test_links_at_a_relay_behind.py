"""A relay is set back while a link is under way: it is asked for again once the relay has what it had lost."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from sealwire_client import Device, RelayRefusedError, Role
from sealwire_client.membering import LINK_ATTEMPTS_MAX
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.log import MemoryLog, Verdict
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.links import LinkError, decode_link
from sealwire_protocol.messages import AppendLink, Fault, Message
from tests.client.party import Guest, asked_of, comes, in_step, joined, party, returned
from tests.support.virtual import virtual

ASKED: dict[str, Callable[[Guest], Awaitable[None]]] = {
    "rotate": lambda guest: guest.vault.rotate(),
    "remove": lambda guest: guest.vault.remove(guest.vault.members[-1].device),
    "leave": lambda guest: guest.vault.leave(),
    "delete": lambda guest: guest.vault.delete(),
}


async def alone_with(open_device: OpenDevice, relay: MemoryRelay) -> MemoryLog:
    """Make a vault of three devices, the first and the last of which are admins; what the relay held when it had two.
    Nobody is there then."""
    async with party(open_device) as [a, b]:
        backup = relay.backup()
        await a.vault.rotate()
        async with open_device("c") as third:
            await in_step([a, b, await joined(third, a.vault, Role.ADMIN)])
    return backup


@pytest.mark.parametrize("name", ASKED)
def test_a_link_that_does_not_follow_what_the_relay_has_left_is_appended_in_the_end(
    open_device: OpenDevice, memory_relay: MemoryRelay, name: str
) -> None:
    @virtual
    async def once() -> None:
        backup = await alone_with(open_device, memory_relay)
        async with open_device("device 0") as device:
            a, refused = await returned(device), list[Fault]()

            def note(message: Message) -> list[Message]:
                refused.extend([message] if isinstance(message, Fault) and message.code is FaultCode.BAD_LINK else [])
                return [message]

            known = a.vault.head[0]
            async with trio.open_nursery() as nursery:
                with asked_of(memory_relay, AppendLink, swallowed=True) as swallowed:
                    nursery.start_soon(ASKED[name], a)
                    await comes(lambda: len(swallowed) > 0)
                memory_relay.alter = note
                memory_relay.restore(backup)
            assert [fault.message for fault in refused] == [f"link {known + 1} does not follow link 2 of this log"]
            assert len(memory_relay.log.vaults[a.vault.id].links) == known + 1

    once()


@virtual
async def test_a_device_that_comes_by_invite_while_the_relay_is_given_the_log_back_is_let_in_then(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    backup = await alone_with(open_device, memory_relay)
    async with open_device("device 0") as device, open_device("d") as fourth, trio.open_nursery() as nursery:
        a, swallowed = await returned(device), list[Message]()
        await a.vault.synced()
        known = a.vault.head[0]

        def swallow(message: Message) -> list[Message]:
            if isinstance(message, AppendLink) and decode_link(message.link).seq <= known:
                swallowed.append(message)
                return []
            return [message]

        invite = await a.vault.invite(seconds=3_600)
        nursery.start_soon(invite.joined)
        memory_relay.mishear = swallow
        memory_relay.restore(backup)
        await comes(lambda: len(swallowed) > 0)
        await trio.sleep(60)  # its mailbox is opened again
        nursery.start_soon(joined_by, fourth, invite.link)
        await trio.sleep(60)
        memory_relay.mishear = None
        memory_relay.cut()
        await comes(lambda: a.vault.members[-1].device == fourth.key)


async def joined_by(device: Device, link: str) -> None:
    """Join."""
    await device.join(link)


@virtual
async def test_a_relay_that_refuses_a_link_again_and_again_is_believed(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with party(open_device) as [a, _]:
        asked = list[AppendLink]()

        def refuse(log: MemoryLog, device: DeviceKey, message: AppendLink) -> Verdict:
            asked.append(message)
            raise LinkError("it is odd")

        monkeypatch.setattr(MemoryLog, "append_link", refuse)
        with pytest.raises(RelayRefusedError, match="it is odd"):
            await a.vault.rotate()
        assert len(asked) == LINK_ATTEMPTS_MAX
