"""How a device asks to be let into a vault, and gets the membership log of one that it was let into."""

from collections.abc import Callable
from typing import Final

import trio

from sealwire_client import cipher, invites
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import Approved, Invite, InviteError, Promise, Refused
from sealwire_client.link import Link, RelayRefusedError
from sealwire_client.logreader import reading
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.links import LinkError, link_hash, vault_id_of
from sealwire_protocol.membership import Membership, membership_of
from sealwire_protocol.messages import NO_REQUEST, Join, Joined, Joining

ASK_AGAIN_SECONDS: Final = 30.0
"""A joiner that hears nothing asks again so often: so it learns that the invite has expired meanwhile."""

KNOCK_SECONDS_MAX: Final = 5.0
"""A member that has used an invite needs no answer to it. The inviter is told so if that can be done at once."""

ShowCode = Callable[[str], None]
"""Shows the code that two people are to compare."""

Log = tuple[Membership, list[bytes]]
"""A vault's members, and the verified links that they come of."""


async def ask(link: Link, device: DeviceIdentity, invite: Invite, name: str, show_code: ShowCode | None) -> Approved:
    """Ask to be let in; waits until the inviter has approved. Raises InviteError."""
    answered = trio.Event()
    letters: list[bytes] = []

    def receive(mail: Joining | Joined) -> None:
        if isinstance(mail, Joined):
            letters.append(mail.sealed)
            answered.set()

    sealed = invites.seal_request(invite, device, name)
    link.expect_mail(invite.mailbox, receive)
    try:
        asks = True
        while True:
            if asks:
                await link.request(Join(NO_REQUEST, invite.mailbox, sealed))
            with trio.move_on_after(ASK_AGAIN_SECONDS):
                await link.wait_while_online(answered)
            asks, answered = not letters, trio.Event()
            while letters:
                answer = invites.open_answer(invite, device.device_key, letters.pop(0))
                if isinstance(answer, Approved):
                    return answer
                if isinstance(answer, Refused):
                    raise InviteError(f"the inviter refused: {answer.reason}")
                code = invites.short_code(invite, answer.nonce, sealed)
                if show_code is not None:
                    show_code(code)
                    show_code = None  # it may come again
    except RelayRefusedError as error:
        moved = error.fault.code is FaultCode.MOVED
        raise InviteError(f"{error}: ask for a new invite" if moved else str(error)) from error
    finally:
        link.expect_mail(invite.mailbox, None)


async def knock(link: Link, device: DeviceIdentity, invite: Invite, name: str) -> None:
    """Tell an inviter, if that can be done at once, that this device has used the invite: it is a member already."""
    sealed = invites.seal_request(invite, device, name)
    with trio.move_on_after(KNOCK_SECONDS_MAX):
        try:
            await link.request(Join(NO_REQUEST, invite.mailbox, sealed))
        except RelayRefusedError:
            return  # nobody waits there


async def enter(link: Link, device: DeviceIdentity, invite: Invite, name: str, show_code: ShowCode | None) -> Log:
    """Be let into the vault of an invite, or find that one is a member already. Raises InviteError."""
    with reading(invite.vault, link) as reader:
        links = await reader.read()
        if links is not None:
            await knock(link, device, invite, name)
        else:
            approved = await ask(link, device, invite, name, show_code)
            links = await reader.read_until(approved.link_seq)
            check_promise(links, approved.link_seq, approved.link_hash)
    return _checked(links, Promise(invite.vault, invite.origin, invite.head_seq, invite.head_hash), device.device_key)


async def fetch(link: Link, device: DeviceIdentity, promise: Promise) -> Log:
    """The log of a vault into which this device was let. Raises InviteError if the relay shows another or none."""
    with reading(promise.vault, link) as reader:
        links = await reader.read_until(promise.link_seq)
    return _checked(links, promise, device.device_key)


def check_promise(links: list[bytes], seq: int, digest: bytes) -> None:
    """The log must contain the log that the inviter held (S7)."""
    if len(links) < seq or link_hash(links[seq - 1]) != digest:
        raise InviteError("the relay shows an older or another membership log than the inviter's; it was not joined")


def _checked(links: list[bytes], promise: Promise, device: DeviceKey) -> Log:
    if not links or vault_id_of(links[0]) != promise.vault:
        raise InviteError("the relay shows another vault than the invite names; it was not joined")
    check_promise(links, promise.link_seq, promise.link_hash)
    try:
        membership = membership_of(links, cipher.verify)
    except LinkError as error:
        raise InviteError(f"the vault's membership log does not verify ({error}); it was not joined") from error
    if membership.by_device(device) is None:
        raise InviteError("the membership log does not name this device, although the inviter approved; try again")
    return membership, links
