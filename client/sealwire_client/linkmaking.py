"""The links that a device signs: of a new vault, its members, its epochs, where it is, and its end.

Each is the next link of the log as it is given. What its fields are made of says `keyring`.
"""

import os
from collections.abc import Collection, Iterable
from typing import Final

from sealwire_client import cipher
from sealwire_client.cipher import KEY_BYTES, CipherError, Purpose, Random, Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import (
    EpochKey,
    KeyringError,
    Names,
    NotAMemberError,
    VaultKeys,
    epoch_commitment,
    member_of,
    name_of,
    share_context,
    tag_commitment,
    wrap,
    wrap_context,
    wrapped_beside,
    xor,
)
from sealwire_protocol.ids import KEY_ID_BYTES, Author, DeviceKey, KeyId, VaultId
from sealwire_protocol.links import (
    FIRST_AUTHOR,
    FIRST_EPOCH,
    HASH_BYTES,
    LINK_CONTEXT,
    AddDevice,
    End,
    Genesis,
    Leave,
    LinkType,
    Move,
    NewEpoch,
    ReplaceDevice,
    Role,
    encode_unsigned,
    proved_by,
    vault_id_of,
)
from sealwire_protocol.membership import Member, Membership

_GENESIS_NONCE_BYTES: Final = 16
_NO_VAULT: Final = VaultId(bytes(16))


def new_vault(identity: DeviceIdentity, names: Names, random: Random = os.urandom) -> tuple[bytes, VaultKeys]:
    """(genesis link, keys) of a new vault with this device as its first admin. Raises NameTooLongError.

    The keys are in the link, sealed to the device itself: nothing but the link needs to be kept.
    """
    tag_key, epoch_key = Secret(random(KEY_BYTES)), Secret(random(KEY_BYTES))
    commitment = epoch_commitment(epoch_key, FIRST_EPOCH)
    first = EpochKey(FIRST_EPOCH, KeyId(commitment[:KEY_ID_BYTES]), epoch_key)
    keys = VaultKeys(_NO_VAULT, tag_key, [first])
    body = Genesis(
        device=identity.device_key,
        box_key=identity.box_key,
        nonce=random(_GENESIS_NONCE_BYTES),
        epoch=FIRST_EPOCH,
        commitment=commitment,
        tag_commitment=tag_commitment(tag_key),
        sealed_keys=keys.sealed_for(identity.box_key, random(KEY_BYTES)),
        sealed_name=keys.sealed_name(names, identity.device_key, random(KEY_BYTES)),
    )
    unsigned = encode_unsigned(LinkType.GENESIS, 1, _NO_VAULT, bytes(HASH_BYTES), FIRST_AUTHOR, body)
    raw = _signed(identity, unsigned)
    return raw, VaultKeys(vault_id_of(raw), tag_key, [first])


def add_device_link(
    identity: DeviceIdentity,
    membership: Membership,
    keys: VaultKeys,
    device: DeviceKey,
    box_key: bytes,
    role: Role,
    name: str,
    random: Random = os.urandom,
) -> bytes:
    """The next link of the log, signed by this device, which hands the vault's keys to another.

    Raises KeyringError if this device may not, or the other is a member already, and NameTooLongError.
    """
    signer = _signer(identity, membership, keys, device)
    if signer.role is Role.REPLACED:
        raise KeyringError("this device has taken new keys since it made the invite; make a new one")
    if signer.role < Role.ADMIN:
        raise KeyringError("this device may not add devices to the vault; ask an admin of it")
    try:
        sealed_keys = keys.sealed_for(box_key, random(KEY_BYTES))
    except CipherError as error:
        raise KeyringError(f"the device sent a key to which nothing can be sealed ({error}); refuse it") from None
    body = AddDevice(
        device=device,
        box_key=box_key,
        role=role,
        sealed_keys=sealed_keys,
        sealed_name=keys.sealed_name(Names(name, ""), device, random(KEY_BYTES)),
    )
    unsigned = encode_unsigned(
        LinkType.ADD_DEVICE, membership.head + 1, keys.vault, membership.last_hash, signer.author, body
    )
    return _signed(identity, unsigned)


def replace_device_link(
    old: DeviceIdentity, new: DeviceIdentity, membership: Membership, keys: VaultKeys, random: Random = os.urandom
) -> bytes:
    """The next link of the log, by which a device gives its own new keys the place of its old ones.

    Raises KeyringError if the old ones are no member's, or the new ones are.
    """
    signer = _signer(old, membership, keys, new.device_key)
    proved = proved_by(keys.vault, membership.last_hash, signer.author, new.device_key, new.box_key)
    body = ReplaceDevice(
        device=new.device_key,
        box_key=new.box_key,
        proof=new.sign(proved),
        sealed_keys=keys.sealed_for(new.box_key, random(KEY_BYTES)),
        sealed_name=keys.sealed_name(Names(name_of(keys, signer), ""), new.device_key, random(KEY_BYTES)),
    )
    unsigned = encode_unsigned(
        LinkType.REPLACE_DEVICE, membership.head + 1, keys.vault, membership.last_hash, signer.author, body
    )
    return _signed(old, unsigned)


def new_epoch_link(
    identity: DeviceIdentity,
    membership: Membership,
    keys: VaultKeys,
    removed: Collection[Author] = (),
    random: Random = os.urandom,
    adopt: Iterable[EpochKey] = (),
) -> bytes:
    """The next link of the log, by which the vault gets a new key, handed to all who are members then; `removed`, which
    are lineages of members, are none any more. Keys of other ends of the log are handed on with it: see `to_adopt`.

    Raises KeyringError if this device may not, or would remove itself or someone who is no member.
    """
    signer = _admin(identity, membership, keys)
    lineages = {member.lineage for member in membership.present()}
    if signer.lineage in removed:
        raise KeyringError("this device cannot remove itself; let another admin do it")
    if not lineages.issuperset(removed):
        raise KeyringError("who is to be removed is no member of the vault; nothing needs to be done")
    epoch, secret = membership.epoch + 1, Secret(random(KEY_BYTES))
    public, private = cipher.box_pair(cipher.derive(Secret(random(KEY_BYTES)), Purpose.EPOCH_ONCE, secret.reveal()))
    shares = []
    for member in [each for each in membership.present() if each.lineage not in removed]:
        try:
            context = share_context(keys.vault, epoch, member, public)
            pad = cipher.agreed(private, member.box_key, Purpose.EPOCH_SHARE, context)
        except CipherError:
            pad = Secret(random(KEY_BYTES))  # to such a key nothing can be handed, and it must not hold up the others
        shares.append(xor(secret.reveal(), pad))
    commitment = epoch_commitment(secret, epoch)
    under = EpochKey(epoch, KeyId(commitment[:KEY_ID_BYTES]), secret)
    body = NewEpoch(
        removed=tuple(sorted(removed)),
        epoch=epoch,
        commitment=commitment,
        ephemeral=public,
        wrapped=wrap(under, keys.current.secret, wrap_context(keys.vault, epoch), random),
        shares=b"".join(shares),
        adopted=tuple(wrapped_beside(keys, adopt, under, random)),
    )
    unsigned = encode_unsigned(
        LinkType.NEW_EPOCH, membership.head + 1, keys.vault, membership.last_hash, signer.author, body
    )
    return _signed(identity, unsigned)


def move_link(identity: DeviceIdentity, membership: Membership, keys: VaultKeys, origin: str) -> bytes:
    """The next link of the log, by which the vault is at another relay from then on.

    Raises KeyringError if this device may not, LocalMisuse for what is no address.
    """
    signer, head = _admin(identity, membership, keys), membership.head + 1
    unsigned = encode_unsigned(LinkType.MOVE, head, keys.vault, membership.last_hash, signer.author, Move(origin))
    return _signed(identity, unsigned)


def leave_link(identity: DeviceIdentity, membership: Membership) -> bytes:
    """The next link of the log, by which this device is a member no more. Raises KeyringError if it may not leave."""
    signer = _present(identity, membership)
    if not membership.may_leave(signer):
        raise KeyringError(
            "this device is the only admin of the vault, which cannot be without one: make another device an admin, or"
            " delete the vault"
        )
    return _parting(LinkType.LEAVE, identity, membership, signer, Leave())


def end_link(identity: DeviceIdentity, membership: Membership) -> bytes:
    """The last link of the log, by which the vault is deleted. Raises KeyringError if this device may not."""
    return _parting(LinkType.END, identity, membership, _present_admin(identity, membership), End())


def _parting(
    kind: LinkType, identity: DeviceIdentity, membership: Membership, signer: Member, body: Leave | End
) -> bytes:
    if membership.vault is None:
        raise NotAMemberError("there is no membership log of the vault; ask a member for an invite")
    where = membership.head + 1, membership.vault, membership.last_hash
    return _signed(identity, encode_unsigned(kind, *where, signer.author, body))


def _signed(identity: DeviceIdentity, unsigned: bytes) -> bytes:
    return unsigned + identity.sign(LINK_CONTEXT + unsigned)


def _signer(identity: DeviceIdentity, membership: Membership, keys: VaultKeys, device: DeviceKey) -> Member:
    """The member that this device is, as which it signs a link that adds another. Raises KeyringError."""
    signer = membership.by_device(identity.device_key)
    if signer is None:
        raise NotAMemberError("this device is not a member of the vault, so it cannot add another")
    if membership.by_device(device) is not None:
        raise KeyringError("the device is a member of the vault already; nothing needs to be done")
    _check_present(membership, keys)
    return signer


def _admin(identity: DeviceIdentity, membership: Membership, keys: VaultKeys) -> Member:
    """The member that this device is, as which it signs what an admin alone may. Raises KeyringError."""
    signer = _present_admin(identity, membership)
    _check_present(membership, keys)
    return signer


def _present_admin(identity: DeviceIdentity, membership: Membership) -> Member:
    signer = _present(identity, membership)
    if signer.role < Role.ADMIN:
        raise KeyringError("this device may not do that in the vault; ask an admin of it")
    return signer


def _present(identity: DeviceIdentity, membership: Membership) -> Member:
    signer = member_of(identity, membership)
    if signer.role is Role.REPLACED:
        raise KeyringError("this device has taken new keys meanwhile; try again")
    return signer


def _check_present(membership: Membership, keys: VaultKeys) -> None:
    if (membership.vault, membership.epoch) != (keys.vault, keys.current.number):
        raise KeyringError("these are not the vault's present keys; read its membership log first")
