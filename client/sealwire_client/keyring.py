"""A vault's keys: how they come about, how a member gets them out of the membership log, what is derived.

    sealed keys = sealed box of: format u8 = 1, tag key 32, epoch u16, epoch key 32
    commitment  = BLAKE2b-256 under the key itself, over the epoch's number (u16); for the tag key over nothing
    key id      = the first 4 bytes of an epoch key's commitment
    stream id   = BLAKE2b-64(tag key, "stream" ‖ collection name)
    sealed name = epoch u16, then XChaCha20-Poly1305 of both names, bound to the epoch and the device

An epoch key counts only if a link that the log accepted hands it over and it matches the log's commitment; there
is no other way to get one into a `VaultKeys`.
"""

import os
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple, NoReturn

from sealwire_client import cipher, sealing
from sealwire_client.cipher import KEY_BYTES, CipherError, Purpose, Random, Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_protocol.ids import KEY_ID_BYTES, MEMBERSHIP, STREAM_ID_BYTES, Author, DeviceKey, KeyId, StreamId, VaultId
from sealwire_protocol.membership import (
    COMMITMENT_BYTES,
    FIRST_AUTHOR,
    FIRST_EPOCH,
    HASH_BYTES,
    LINK_CONTEXT,
    AddDevice,
    Genesis,
    LinkType,
    Member,
    Membership,
    ReplaceDevice,
    Role,
    encode_unsigned,
    proved_by,
    vault_id_of,
)

NAME_BYTES_MAX: Final = 128
"""A device's or a vault's name, in UTF-8: enough for a person to recognise it by, small enough for a mailbox."""

_SEALED_KEYS: Final = Struct(f">B{KEY_BYTES}sH{KEY_BYTES}s")
_SEALED_KEYS_FORMAT: Final = 1
_EPOCH: Final = Struct(">H")
_GENESIS_NONCE_BYTES: Final = 16
_NO_VAULT: Final = VaultId(bytes(16))


class KeyringError(Exception):
    """The membership log does not give this device the vault's keys."""


class NotAMemberError(KeyringError):
    """This device is not in the vault's membership log."""


class NameTooLongError(ValueError):
    """A name of more than NAME_BYTES_MAX bytes."""


class Names(NamedTuple):
    """What people call a device, and (in the genesis link alone) its vault."""

    device: str
    vault: str


class EpochKey(NamedTuple):
    """The key of one epoch, which the log has confirmed."""

    number: int
    key_id: KeyId
    secret: Secret


def tag_commitment(tag_key: Secret) -> bytes:
    """What the genesis link says of the tag key, without giving it away."""
    return cipher.keyed_hash(tag_key, Purpose.TAG_COMMITMENT, b"", COMMITMENT_BYTES)


def epoch_commitment(epoch_key: Secret, epoch: int) -> bytes:
    """What a link says of an epoch's key, without giving it away."""
    return cipher.keyed_hash(epoch_key, Purpose.EPOCH_COMMITMENT, _EPOCH.pack(epoch), COMMITMENT_BYTES)


class VaultKeys:
    """All that a member needs to read and write a vault. Made by `new_vault` or `keys_from_log` alone."""

    __slots__ = ("_tag_key", "current", "epochs", "vault")

    def __init__(self, vault: VaultId, tag_key: Secret, epochs: list[EpochKey]) -> None:
        self.vault = vault
        self._tag_key = tag_key
        self.epochs = {epoch.number: epoch for epoch in epochs}
        self.current = max(epochs, key=lambda epoch: epoch.number)

    def stream_id(self, collection: str) -> StreamId:
        """The stream of a collection. Stream 0 is taken, so a name that hashes to it is hashed once more."""
        name = b"stream" + collection.encode()
        stream = cipher.keyed_hash(self._tag_key, Purpose.STREAM_ID, name, STREAM_ID_BYTES)
        while stream == MEMBERSHIP:
            name += b"\0"
            stream = cipher.keyed_hash(self._tag_key, Purpose.STREAM_ID, name, STREAM_ID_BYTES)
        return StreamId(stream)

    def stream(self, stream: StreamId) -> sealing.Stream:
        """A stream with the key of its tags."""
        return sealing.Stream(self.vault, stream, self._tag_key)

    def stream_keys(self, stream: StreamId, epoch: int | None = None) -> sealing.StreamKeys:
        """The keys of a stream in an epoch, or in the present one. Raises KeyringError if it is not known."""
        number = self.current.number if epoch is None else epoch
        if number not in self.epochs:
            raise KeyringError(f"this device has no key of epoch {number}; it comes with the vault's membership log")
        _, key_id, secret = self.epochs[number]
        return sealing.stream_keys(secret, number, key_id, self.vault, stream)

    def opener(self, stream: StreamId) -> sealing.Opener:
        """What opens the records of a stream, of all epochs known now."""
        return sealing.Opener(self.stream(stream), [self.stream_keys(stream, number) for number in self.epochs])

    def sealer(
        self, stream: StreamId, author: Author, hedge_key: Secret, random: Random = os.urandom, epoch: int | None = None
    ) -> sealing.Sealer:
        """What seals the records of a stream in the present epoch; an older one is for refills alone."""
        return sealing.Sealer(self.stream(stream), self.stream_keys(stream, epoch), author, hedge_key, random)

    def names(self, member: Member) -> Names:
        """What a member was named when it was added. Raises KeyringError if that cannot be read."""
        try:
            (number,) = _EPOCH.unpack_from(member.sealed_name)
            key = cipher.derive(self.epochs[number].secret, Purpose.METADATA_KEY)
            padded = cipher.private_open(key, member.sealed_name[_EPOCH.size :], _name_context(number, member.device))
            inside = sealing.unpad(padded)
            if inside is None:
                raise CipherError("a name is not padded")
            return Names(inside[0].decode(), inside[1].decode())
        except (CipherError, StructError, LookupError, ValueError) as error:
            raise KeyringError(f"the name of device {member.author} cannot be read ({error})") from None

    def sealed_for(self, box_key: bytes, random: bytes) -> bytes:
        """These keys, sealed to one device."""
        number, _, secret = self.current
        packed = _SEALED_KEYS.pack(_SEALED_KEYS_FORMAT, self._tag_key.reveal(), number, secret.reveal())
        return cipher.box_seal(packed, box_key, random)

    def sealed_name(self, names: Names, device: DeviceKey, random: bytes) -> bytes:
        """A device's names, sealed for the vault's members. Raises NameTooLongError."""
        raw = [name.encode() for name in names]
        if max(map(len, raw)) > NAME_BYTES_MAX:
            raise NameTooLongError(f"a name of {max(map(len, raw))} bytes is too long; use {NAME_BYTES_MAX} at most")
        number, _, secret = self.current
        key = cipher.derive(secret, Purpose.METADATA_KEY)
        sealed = cipher.private_seal(key, sealing.pad(*raw), _name_context(number, device), random)
        return _EPOCH.pack(number) + sealed

    def __repr__(self) -> str:
        return f"<VaultKeys {self.vault[:4].hex()} epochs={sorted(self.epochs)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault's keys are not pickled or copied; they come from its membership log")


def _name_context(epoch: int, device: DeviceKey) -> bytes:
    return _EPOCH.pack(epoch) + device


def _signed(identity: DeviceIdentity, unsigned: bytes) -> bytes:
    return unsigned + identity.sign(LINK_CONTEXT + unsigned)


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
        sealed_name=keys.sealed_name(Names(_name(keys, signer), ""), new.device_key, random(KEY_BYTES)),
    )
    unsigned = encode_unsigned(
        LinkType.REPLACE_DEVICE, membership.head + 1, keys.vault, membership.last_hash, signer.author, body
    )
    return _signed(old, unsigned)


def _signer(identity: DeviceIdentity, membership: Membership, keys: VaultKeys, device: DeviceKey) -> Member:
    """The member that this device is, as which it signs a link that adds another. Raises KeyringError."""
    signer = membership.by_device(identity.device_key)
    if signer is None:
        raise NotAMemberError("this device is not a member of the vault, so it cannot add another")
    if membership.by_device(device) is not None:
        raise KeyringError("the device is a member of the vault already; nothing needs to be done")
    if (membership.vault, membership.epoch) != (keys.vault, keys.current.number):
        raise KeyringError("these are not the vault's present keys; read its membership log first")
    return signer


def _name(keys: VaultKeys, member: Member) -> str:
    """What a member is called; nothing if its name cannot be read, which is no reason to be locked out."""
    try:
        return keys.names(member).device
    except KeyringError:
        return ""


def keys_from_log(identity: DeviceIdentity, membership: Membership) -> VaultKeys:
    """The vault's keys, out of the link that added this device or gave it these keys of its own.

    Raises NotAMemberError if there is none, KeyringError if what it holds does not open or is not what the log
    commits to; such a key is never used.
    """
    member = membership.by_device(identity.device_key)
    if member is None or membership.vault is None or membership.genesis is None:
        raise NotAMemberError("this device is not a member of the vault; ask a member for an invite")
    tag_key, number, epoch_key = _unsealed(identity, member)
    committed = membership.genesis.commitment
    if number != membership.epoch or epoch_commitment(epoch_key, number) != committed:
        raise KeyringError(
            "the key that this device was given is not the vault's: whoever added it made a mistake, or means harm;"
            " nothing was opened with it; ask for a new invite"
        )
    if tag_commitment(tag_key) != membership.genesis.tag_commitment:
        raise KeyringError(
            "the tag key that this device was given is not the vault's: whoever added it made a mistake, or means"
            " harm; nothing was written with it; ask for a new invite"
        )
    return VaultKeys(membership.vault, tag_key, [EpochKey(number, membership.key_id, epoch_key)])


def _unsealed(identity: DeviceIdentity, member: Member) -> tuple[Secret, int, Secret]:
    try:
        packed = Secret(identity.open_sealed(member.sealed_keys))
    except CipherError:
        raise KeyringError(
            "the keys in the membership log do not open for this device: they were sealed to another; ask for a new"
            " invite"
        ) from None
    if len(packed) != _SEALED_KEYS.size or packed.reveal()[0] != _SEALED_KEYS_FORMAT:
        raise KeyringError("the keys in the membership log are of a kind that needs a newer version of this program")
    return _split(packed)


def _split(packed: Secret) -> tuple[Secret, int, Secret]:
    _, tag_key, number, epoch_key = _SEALED_KEYS.unpack(packed.reveal())
    return Secret(tag_key), number, Secret(epoch_key)
