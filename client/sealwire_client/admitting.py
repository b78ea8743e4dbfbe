"""Letting a device into vaults: the next link of a membership log, or of several, in the name of this device."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from sealwire_client import linkmaking
from sealwire_client.belonging import until_may_sign
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import InviteError, Promise, Request, promise_bytes
from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_client.membering import LINK_ATTEMPTS_MAX, ask_for_link
from sealwire_client.nursery import open_nursery
from sealwire_client.sync import VaultSync
from sealwire_protocol.ids import Author, DeviceKey, VaultId
from sealwire_protocol.links import Role

ADMIT_SECONDS_MAX: Final = 20.0
"""A vault whose relay does not answer keeps the others, and the device that waits to come in, no longer than this."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A vault of this device into which another one was not let, and why: in a sentence that says what to do."""

    vault: VaultId
    name: str
    why: str


PARTED: Final = (
    "the device has left the vault, or was removed from it, after this invite was made, so it was not let in by it;"
    " make another one if it is to come back"
)


async def admit(
    request: Request,
    role: Role,
    sync: VaultSync,
    identity: DeviceIdentity,
    parted: Collection[DeviceKey] = (),
) -> Author:
    """Add a device to the vault, in the name of this one; returns as which member, once the log here says so. One that
    has parted from it is not added, unless it is one of those who had `parted` before it was invited.

    Waits for the relay. Raises RelayRefusedError, KeyringError, NameTooLongError, InviteError.
    """
    for _ in range(LINK_ATTEMPTS_MAX):
        member = sync.membership.by_device(request.device)
        if member is not None:
            return member.author
        async with sync.members.appending:
            if request.device in sync.membership.parted().difference(parted):
                raise InviteError(PARTED)
            if sync.membership.by_device(request.device) is None:
                keys = sync.membership, sync.keys, request.device, request.box_key
                await ask_for_link(sync, linkmaking.add_device_link(identity, *keys, role, request.name))
    raise InviteError("other devices keep changing the vault's members; try again")


def is_admin(sync: VaultSync) -> bool:
    """True if this device may add others to the vault, as far as it has heard."""
    own = sync.membership.by_device(sync.identity.device_key)
    return own is not None and own.role is Role.ADMIN


def promise_of(sync: VaultSync) -> Promise:
    """A vault with the end of its log, as it is known here."""
    return Promise(sync.held.id, sync.link.origin, sync.membership.head, sync.membership.last_hash)


async def admit_to_all(
    request: Request, role: Role, syncs: Sequence[VaultSync], room: int, parted: Mapping[VaultId, Collection[DeviceKey]]
) -> tuple[list[Promise], list[LeftOut]]:
    """Add a device to all of these vaults in which this one is an admin, at once: (where it is a member now, the rest).

    What one vault's relay says, or does not say, holds up no other. Where the device is a member already, it keeps its
    role. Those where it is not yet come first, if there are more vaults than can be named in `room` bytes: another
    invite then does the rest. `parted`: see `admit`.
    """
    promised, left_out = list[Promise](), list[LeftOut]()

    async def let_in(sync: VaultSync) -> None:
        why = f"{sync.link.origin} did not answer; make the same invite again when it does"
        with trio.move_on_after(ADMIT_SECONDS_MAX):
            try:
                await until_may_sign(sync)
                await admit(request, role, sync, sync.identity, parted.get(sync.held.id, ()))
                promised.append(promise_of(sync))
                return
            except (RelayRefusedError, KeyringError, InviteError) as error:
                why = str(error)
        left_out.append(LeftOut(sync.held.id, sync.held.name, why))

    async with open_nursery() as letting_in:
        for sync in sorted(syncs, key=lambda sync: sync.membership.by_device(request.device) is not None):
            taken = promise_bytes(sync.link.origin)
            if not is_admin(sync):
                why = "this device is no admin there: an admin of it must invite"
                left_out.append(LeftOut(sync.held.id, sync.held.name, why))
            elif taken > room:
                left_out.append(LeftOut(sync.held.id, sync.held.name, "there are too many; make the same invite again"))
            else:
                room -= taken
                letting_in.start_soon(let_in, sync)
    return promised, left_out
