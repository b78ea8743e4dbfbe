"""Who belongs to a vault: looking, removing, changing the key; and how a link of this device's gets into the log."""

import logging
import random
from dataclasses import dataclass
from typing import Final

import trio

from sealwire_client import keyring, linkmaking
from sealwire_client.belonging import another_log_than, has_keys_of, until_may_sign
from sealwire_client.keyring import KeyringError
from sealwire_client.link import RelayRefusedError
from sealwire_client.nursery import open_nursery
from sealwire_client.sync import VaultSync
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.limits import EPOCH_OWED_SECONDS, EPOCH_OWED_SECONDS_MAX
from sealwire_protocol.links import Role, link_hash
from sealwire_protocol.messages import NO_REQUEST, AppendLink

LINK_ATTEMPTS_MAX: Final = 5
"""Times that a link is signed anew because another admin's came first."""

_log = logging.getLogger("sealwire.members")


@dataclass(frozen=True, slots=True)
class VaultMember:
    """A device that belongs to a vault, as this one knows it."""

    name: str
    device: DeviceKey
    role: Role
    is_this: bool


def members_of(sync: VaultSync) -> tuple[VaultMember, ...]:
    """The devices that belong to the vault, in the order in which they came; not those that were removed, and of one
    that has taken new keys the newest."""
    return tuple(
        VaultMember(keyring.name_of(sync.keys, member), member.device, member.role, member.author == sync.held.author)
        for member in sync.membership.present()
    )


async def begin_epoch(sync: VaultSync, removed: DeviceKey | None = None, *, owed: bool = False) -> None:
    """Give the vault a new key, and remove a device with it. When it returns, this device seals under the new key, and
    the relay refuses what is sealed under an older one. `owed`: only if the vault still owes an epoch by then.

    Waits for the relay. Raises RelayRefusedError, KeyringError if this device may not, if it is the one to be removed,
    or if the other is no member.
    """
    await until_may_sign(sync)
    for attempt in range(LINK_ATTEMPTS_MAX):
        known = sync.membership
        if owed and not known.owes_epoch:
            return
        member = None if removed is None else known.by_device(removed)
        if removed is not None and member is None:
            if not attempt:
                raise KeyringError("there is no such device in the vault; nothing was done")
            if any(each.device == removed and each.removed for each in known.members.values()):
                return  # another admin has removed it meanwhile
            raise KeyringError(
                "the relay had lost links of the vault's log, and the device is not in it just now; those who knew of"
                " it add it again: remove it then"
            )
        lineages = () if member is None else (member.lineage,)
        async with sync.members.appending:
            if sync.membership.last_hash != known.last_hash:
                continue
            raw = linkmaking.new_epoch_link(sync.identity, known, sync.keys, lineages)
            await ask_for_link(sync, raw)
        if await sync.members.hash_of_link(known.head + 1) == link_hash(raw):
            await has_keys_of(sync, known.epoch + 1)
            return
    raise KeyringError("other devices keep changing the vault's members; try again")


async def begin_owed_epochs(sync: VaultSync) -> None:
    """Whenever somebody has left, change the vault's key if this device is an admin, until cancelled: who has left
    still has the present one. The first admin does it soon, others wait longer, each another time: mostly it is done
    then."""
    while True:
        await sync.until(_is_to_pay)
        admins = [member for member in sync.membership.present() if member.role is Role.ADMIN]
        first = min(admins).author == sync.held.author
        wait = EPOCH_OWED_SECONDS if first else random.uniform(EPOCH_OWED_SECONDS, EPOCH_OWED_SECONDS_MAX)
        with trio.move_on_after(wait) as waiting:
            await sync.until(lambda sync: not _is_to_pay(sync))
        if not waiting.cancelled_caught:
            continue
        try:
            await begin_epoch(sync, owed=True)
        except (KeyringError, RelayRefusedError) as error:
            _log.warning("vault %s: somebody has left, and the key could not be changed: %s", sync.held.name, error)
            await trio.sleep(EPOCH_OWED_SECONDS_MAX)


def _is_to_pay(sync: VaultSync) -> bool:
    own = sync.membership.members.get(sync.held.author)
    is_admin = own is not None and own.is_present and own.role is Role.ADMIN
    return is_admin and sync.membership.owes_epoch and sync.may_sign


async def ask_for_link(sync: VaultSync, raw: bytes) -> None:
    """Ask for the next link, until there is one, whosever it is. It is not asked for any longer then: a relay that is
    set back afterwards would take it in the place of the one that is known. Under `sync.members.appending`."""
    known = sync.membership.last_hash

    async def ask() -> None:
        try:
            await request_link(sync, raw)
        except RelayRefusedError as error:
            if error.fault.code is not FaultCode.LINK_CONFLICT:
                raise

    async with open_nursery() as asking:
        asking.start_soon(ask)
        await another_log_than(sync, known)
        asking.cancel_scope.cancel()


async def request_link(sync: VaultSync, raw: bytes) -> None:
    """Ask the relay for a link that follows the log here. Where it does not follow the relay's, which was set back
    while the request was on its way, it is asked for again once the relay has all links. Raises RelayRefusedError."""
    for left in reversed(range(LINK_ATTEMPTS_MAX)):
        try:
            await sync.link.request(AppendLink(NO_REQUEST, sync.held.id, raw))
        except RelayRefusedError as error:
            if error.fault.code is not FaultCode.BAD_LINK or not left:
                raise
        else:
            return
        sync.doubt_log()
        await sync.until(lambda sync: sync.may_sign or sync.over is not None or sync.is_strange)
