"""From one relay to another: an admin's link says where a vault is, and each of its devices follows (R18).

A device first finishes at the relay where it is, so that what is deleted there stays deleted, then goes over in one
transaction. At the other relay everything counts as lost, and is compared and given back as after any loss.
"""

from collections.abc import Sequence

from sealwire_client import cipher, linkmaking
from sealwire_client.belonging import check_belongs, until_may_sign
from sealwire_client.keyring import KeyringError
from sealwire_client.link import Link
from sealwire_client.logreader import reading
from sealwire_client.membering import LINK_ATTEMPTS_MAX, ask_for_link
from sealwire_client.replica import Replica, Runner
from sealwire_client.sync import VaultSync
from sealwire_client.transport import check_origin
from sealwire_protocol.ids import VaultId
from sealwire_protocol.links import LinkError, link_hash, vault_id_of
from sealwire_protocol.login import normal_origin
from sealwire_protocol.membership import Membership, membership_of, verified_before
from sealwire_protocol.messages import NO_REQUEST, CreateVault
from sealwire_protocol.suffixes import common_links, suffix_of


class MoveError(Exception):
    """The vault was not moved, or not followed. The message says why, and what to do."""


async def move_vault(
    sync: VaultSync, writer: Runner[Replica], relay: str, token: bytes, *, without_old: bool, force: bool
) -> None:
    """Move a vault to another relay, as `Vault.move` says."""
    origin = _address(relay)
    if without_old:
        check_belongs(sync)
    else:
        await until_may_sign(sync)
    linkmaking.move_link(sync.identity, sync.membership, sync.keys, origin)  # so that who may not is told at once
    if origin == sync.held.origin:
        raise MoveError(f"the vault is at {origin} already; nothing was done")
    await _check_all_open(sync, writer, force)
    with sync.another_relay(origin) as link, sync.progress.waits(lambda: _not_there(link)):
        await link.request(CreateVault(NO_REQUEST, (await sync.members.links())[0], token))
    number = sync.held.number
    await writer.run(lambda replica: replica.vaults.keep_token(number, token))
    if without_old:
        await _move_alone(sync, origin)
    else:
        await _move_in_order(sync, origin)
    await sync.until(lambda sync: sync.held.origin == origin and sync.members.is_one)


def _not_there(link: Link) -> str | None:
    why = link.last_error
    return why and f"the vault is to move to {link.origin}, which is waited for, and nothing was moved yet: {why}"


def _address(relay: str) -> str:
    origin = normal_origin(relay)
    check_origin(origin)
    return origin


async def _check_all_open(sync: VaultSync, writer: Runner[Replica], force: bool) -> None:
    names = await writer.run(lambda replica: replica.vaults.collections(sync.held.number))
    missing = sorted(set(names) - {stream.collection.name for stream in sync.streams})
    if missing and not force:
        raise MoveError(
            f"{len(missing)} of the vault's collections are not open here ({', '.join(missing)}), so that this device"
            " may lack what was written to them last: open them first, or move the vault on another device"
        )


async def _move_in_order(sync: VaultSync, origin: str) -> None:
    """Append the link where the vault is, so that there is one order of all links."""
    for _ in range(LINK_ATTEMPTS_MAX):
        known = sync.membership
        async with sync.members.appending:
            if sync.membership.last_hash != known.last_hash:
                continue
            raw = linkmaking.move_link(sync.identity, known, sync.keys, origin)
            await ask_for_link(sync, raw)
        if await sync.members.hash_of_link(known.head + 1) == link_hash(raw):
            return
        if sync.membership.relay != known.relay:
            raise MoveError(
                f"another admin has just moved the vault to {sync.membership.relay}; look before moving it on"
            )
    raise KeyringError("other devices keep changing the vault's members; try again")


async def _move_alone(sync: VaultSync, origin: str) -> None:
    async with sync.members.appending:
        if sync.membership.relay != origin:
            await sync.members.extend([linkmaking.move_link(sync.identity, sync.membership, sync.keys, origin)])
    await sync.relocating.go_over(origin, finished=False)


async def follow(sync: VaultSync, relay: str) -> None:
    """Go over to a relay to which the vault was moved, as `Device.follow` says."""
    origin = _address(relay)
    if origin == sync.held.origin:
        return
    if sync.membership.relay != origin:
        await _learn_of(sync, origin)
    await sync.relocating.go_over(origin, finished=False)


async def _learn_of(sync: VaultSync, origin: str) -> None:
    """Take in the log at a relay which this device's own does not name yet. Raises MoveError if it must not."""
    with sync.another_relay(origin) as link:
        with reading(sync.held.id, link) as reader:
            links = await reader.read()
    if links is None:
        raise MoveError(f"{origin} does not have the vault, or does not know this device in it; nothing was changed")
    own = await sync.members.links()
    membership = _verified(sync.held.id, links)
    same = common_links(own, links)
    goes_on = same == len(own)
    if not goes_on and not _outranks(links, own, same):
        raise MoveError(
            f"{origin} has an older membership log than this device, or one that must give way; nothing was changed"
        )
    # An end without a MOVE, which stands against one with it: the vault never was elsewhere.
    stayed = not goes_on and membership.relay is None
    if not (membership.relay == origin or stayed) or sync.held.author not in membership.members:
        raise MoveError(
            f"the vault's membership log at {origin} does not say that the vault was moved there; nothing was changed"
        )
    if goes_on:
        await sync.members.extend(links[same:])  # else the relay's end is taken in there, as after a loss


def _verified(vault: VaultId, links: Sequence[bytes]) -> Membership:
    try:
        membership = membership_of(links, cipher.verify)
    except LinkError as error:
        raise MoveError(f"the membership log at that relay does not verify ({error}); nothing was changed") from error
    if not links or vault_id_of(links[0]) != vault:
        raise MoveError("that relay shows another vault; nothing was changed")
    return membership


def _outranks(theirs: Sequence[bytes], ours: Sequence[bytes], same: int) -> bool:
    base = membership_of(ours[:same], verified_before)
    return suffix_of(base, theirs[same:], verified_before).outranks(suffix_of(base, ours[same:], verified_before))
