"""A vault's keys: what links hold of them, how a member gets them out of the membership log, what is derived.

    sealed keys = sealed box of: format u8 = 1, tag key 32, epoch u16, epoch key 32
    commitment  = BLAKE2b-256 under the key itself, over the epoch's number (u16); for the tag key over nothing
    key id      = the first 4 bytes of an epoch key's commitment
    stream id   = BLAKE2b-64(tag key, "stream", or "signed" for one whose entries are signed, ‖ collection name)
    sealed name = epoch u16, then XChaCha20-Poly1305 of both names, bound to the epoch and the device
    share       = epoch key XOR BLAKE2b-256 under what X25519 makes of the link's ephemeral key and the member's box
                  key, over vault, epoch u16, author u32, both keys; the commitment says whether it is right
    wrapped     = the key of the epoch before, by XChaCha20-Poly1305 under one derived from the new key, bound to
                  vault and epoch; one of another end of the log, which had to give way, bound to its commitment too

An epoch key counts only if a link that the log accepted hands it over and it matches the log's commitment; there
is no other way to get one into a `VaultKeys`.
"""

import os
from collections.abc import Iterable, Sequence
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple, NoReturn

from sealwire_client import cipher, sealing
from sealwire_client.cipher import KEY_BYTES, CipherError, Purpose, Random, Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_protocol.ids import KEY_ID_BYTES, MEMBERSHIP, STREAM_ID_BYTES, Author, DeviceKey, KeyId, StreamId, VaultId
from sealwire_protocol.limits import ADOPTED_MAX
from sealwire_protocol.links import (
    COMMITMENT_BYTES,
    FIRST_EPOCH,
    Adopted,
)
from sealwire_protocol.membership import Member, Membership

NAME_BYTES_MAX: Final = 128
"""A device's or a vault's name, in UTF-8: enough for a person to recognise it by, small enough for a mailbox."""

_SEALED_KEYS: Final = Struct(f">B{KEY_BYTES}sH{KEY_BYTES}s")
_SEALED_KEYS_FORMAT: Final = 1
_EPOCH: Final = Struct(">H")


class KeyringError(Exception):
    """The membership log does not give this device the vault's keys."""


class NotAMemberError(KeyringError):
    """This device is not in the vault's membership log."""


class VaultOverError(KeyringError):
    """The vault is none for this device any more: it was deleted, or the device was removed from it. The message says
    which; what the device holds can be read until it is forgotten."""


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
    """All that a member needs to read and write a vault. Made by `new_vault` or `keys_from_log` alone.

    `epochs`: the keys of the log's epochs, by number. `others`: those of other ends of the log, which had to give way,
    by number and key id.
    """

    __slots__ = ("_tag_key", "current", "epochs", "others", "vault")

    def __init__(
        self, vault: VaultId, tag_key: Secret, epochs: Sequence[EpochKey], others: Iterable[EpochKey] = ()
    ) -> None:
        self.vault = vault
        self._tag_key = tag_key
        self.epochs = {epoch.number: epoch for epoch in epochs}
        self.others = dict[tuple[int, KeyId], EpochKey]()
        self.current = max(epochs, key=lambda epoch: epoch.number)
        self.keep(others)

    def take_in(self, newer: "VaultKeys") -> None:
        """Have the epochs that these keys of the same vault have. What was known beside them stays known."""
        known = self.beyond(newer)
        self.epochs, self.current, self.others = newer.epochs, newer.current, dict(newer.others)
        self.keep(known)

    def keep(self, others: Iterable[EpochKey]) -> None:
        """Know these keys too, of other ends of the log."""
        self.others.update({(key.number, key.key_id): key for key in others if not self.has(key)})

    def has(self, key: EpochKey) -> bool:
        """True if this key is known."""
        return self._find(key.number, key.key_id) is not None

    def _find(self, epoch: int, key_id: KeyId) -> EpochKey | None:
        own = self.epochs.get(epoch)
        return own if own is not None and own.key_id == key_id else self.others.get((epoch, key_id))

    def beyond(self, keys: "VaultKeys") -> list[EpochKey]:
        """What these have and those have not."""
        return [key for key in (*self.epochs.values(), *self.others.values()) if not keys.has(key)]

    def stream_id(self, collection: str, signed: bool = False) -> StreamId:
        """The stream of a collection. Stream 0 is taken, so a name that hashes to it is hashed once more.

        A signed collection has another stream than one of the same name that is not: nobody can take the one for the
        other."""
        name = (b"signed" if signed else b"stream") + collection.encode()
        stream = cipher.keyed_hash(self._tag_key, Purpose.STREAM_ID, name, STREAM_ID_BYTES)
        while stream == MEMBERSHIP:
            name += b"\0"
            stream = cipher.keyed_hash(self._tag_key, Purpose.STREAM_ID, name, STREAM_ID_BYTES)
        return StreamId(stream)

    def stream(self, stream: StreamId) -> sealing.Stream:
        """A stream with the key of its tags."""
        return sealing.Stream(self.vault, stream, self._tag_key)

    def stream_keys(self, stream: StreamId, key: EpochKey | None = None) -> sealing.StreamKeys:
        """The keys of a stream under an epoch's key, or the present one."""
        number, key_id, secret = key or self.current
        return sealing.stream_keys(secret, number, key_id, self.vault, stream)

    def named(self, epoch: int, key_id: KeyId) -> EpochKey:
        """The key by which records are sealed that name it so. Raises KeyringError if it is not known."""
        found = self._find(epoch, key_id)
        if found is None:
            raise KeyringError(f"this device has not that key of epoch {epoch}; it may come with the membership log")
        return found

    def opener(self, stream: StreamId, judge: sealing.Judge | None = None) -> sealing.Opener:
        """What opens the records of a stream, of all epochs known now. `judge`: of a signed collection."""
        known = (*self.epochs.values(), *self.others.values())
        return sealing.Opener(self.stream(stream), [self.stream_keys(stream, key) for key in known], judge)

    def sealer(
        self, stream: StreamId, author: Author, hedge_key: Secret, key: EpochKey | None = None
    ) -> sealing.Sealer:
        """What seals the records of a stream in the present epoch; another key is for refills alone."""
        return sealing.Sealer(self.stream(stream), self.stream_keys(stream, key), author, hedge_key)

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


def to_adopt(membership: Membership, keys: VaultKeys) -> list[EpochKey] | None:
    """Which keys of other ends of the log its next epoch is to hand on, so that all can open what was sealed under
    them; none: another epoch must come first. None: there is nothing to be handed on."""
    owed = [key for name, key in sorted(keys.others.items()) if not membership.knows_key(*name)]
    ready = [key for key in owed if key.number <= membership.epoch]
    return ready[:ADOPTED_MAX] if owed else None


def wrapped_beside(
    keys: VaultKeys, others: Iterable[EpochKey], under: EpochKey | None = None, random: Random = os.urandom
) -> list[Adopted]:
    """Keys of other ends of the log, each sealed under the present one of these keys, or under the one given."""
    wrapped = list[Adopted]()
    for key in others:
        commitment = epoch_commitment(key.secret, key.number)
        context = wrap_context(keys.vault, key.number) + commitment
        wrapped.append(Adopted(key.number, commitment, wrap(under or keys.current, key.secret, context, random)))
    return wrapped


def unwrapped_beside(keys: VaultKeys, kept: Iterable[tuple[int, Adopted]]) -> list[EpochKey]:
    """What was wrapped under keys of these epochs. What does not open, or is another key, is passed over."""
    found = list[EpochKey]()
    for number, (epoch, commitment, wrapped) in kept:
        try:
            under = keys.epochs[number].secret
            secret = _opened(under, wrapped, wrap_context(keys.vault, epoch) + commitment)
        except (CipherError, LookupError):
            continue
        if epoch_commitment(secret, epoch) == commitment:
            found.append(EpochKey(epoch, KeyId(commitment[:KEY_ID_BYTES]), secret))
    return found


def wrap(under: EpochKey, secret: Secret, context: bytes, random: Random) -> bytes:
    """A key, to be opened by who has this one."""
    wrapping = cipher.derive(under.secret, Purpose.EPOCH_WRAP)
    return cipher.private_seal(wrapping, secret.reveal(), context, random(KEY_BYTES))


def _opened(under: Secret, wrapped: bytes, context: bytes) -> Secret:
    """Raises CipherError."""
    secret = cipher.private_open(cipher.derive(under, Purpose.EPOCH_WRAP), wrapped, context)
    if len(secret) != KEY_BYTES:
        raise CipherError("what was wrapped is no key")
    return Secret(secret)


def share_context(vault: VaultId, epoch: int, member: Member, ephemeral: bytes) -> bytes:
    """What the share of a new epoch's key is bound to that is for this member."""
    return vault + _EPOCH.pack(epoch) + member.author.to_bytes(4, "big") + ephemeral + member.box_key


def wrap_context(vault: VaultId, epoch: int) -> bytes:
    """What a key is bound to that is wrapped in the link of this epoch."""
    return vault + _EPOCH.pack(epoch)


def xor(one: bytes, pad: Secret) -> bytes:
    """A key under a pad that is used once, or out of it again."""
    return bytes(a ^ b for a, b in zip(one, pad.reveal(), strict=True))


def name_of(keys: VaultKeys, member: Member) -> str:
    """What a member is called; nothing if its name cannot be read, which is no reason to be locked out."""
    try:
        return keys.names(member).device
    except KeyringError:
        return ""


def member_of(identity: DeviceIdentity, membership: Membership) -> Member:
    """The member that this device is. Raises NotAMemberError if it is none."""
    member = membership.by_device(identity.device_key)
    if member is None:
        raise NotAMemberError("this device is not a member of the vault; ask a member for an invite")
    return member


def keys_from_log(identity: DeviceIdentity, membership: Membership) -> VaultKeys:
    """The vault's keys of all epochs: out of the link that added this device or gave it these keys of its own, forward
    by its shares in the links that began later epochs, and backward by what each epoch's key opens of the one before.

    Raises NotAMemberError if there is none, KeyringError if what it holds does not open or is not what the log
    commits to; such a key is never used.
    """
    return _keys_of(identity, membership, member_of(identity, membership), membership.epoch)


def keys_held(identity: DeviceIdentity, membership: Membership, author: Author) -> VaultKeys:
    """The vault's keys of those epochs of which a member was handed the key: all, or not those since it was removed.

    Raises KeyringError if not even those of its own link open.
    """
    member, last = membership.members[author], membership.epoch
    while True:
        try:
            return _keys_of(identity, membership, member, last)
        except KeyringError:
            if last == FIRST_EPOCH:
                raise
            last -= 1


def _keys_of(identity: DeviceIdentity, membership: Membership, member: Member, last: int) -> VaultKeys:
    """The keys of all epochs up to this one."""
    if membership.vault is None or membership.genesis is None:
        raise NotAMemberError("there is no membership log of the vault; ask a member for an invite")
    tag_key, number, epoch_key = _unsealed(identity, member)
    secrets = {number: _checked(membership, number, epoch_key)}
    if tag_commitment(tag_key) != membership.genesis.tag_commitment:
        raise KeyringError(
            "the tag key that this device was given is not the vault's: whoever added it made a mistake, or means"
            " harm; nothing was written with it; ask for a new invite"
        )
    for epoch in range(number + 1, last + 1):
        secrets[epoch] = _checked(membership, epoch, _shared(identity, membership, member, epoch))
    for epoch in range(number, FIRST_EPOCH, -1):
        secrets[epoch - 1] = _checked(membership, epoch - 1, _unwrapped(membership, epoch, secrets[epoch]))
    known = [EpochKey(epoch, _key_id(membership, epoch), secret) for epoch, secret in sorted(secrets.items())]
    keys = VaultKeys(membership.vault, tag_key, known)
    keys.keep(unwrapped_beside(keys, membership.adopted.values()))
    return keys


def _checked(membership: Membership, epoch: int, secret: Secret) -> Secret:
    """An epoch's key that is the one to which the log commits (S4)."""
    if epoch_commitment(secret, epoch) != membership.commitment(epoch):
        raise KeyringError(
            f"the key of epoch {epoch} that this device was given is not the vault's: whoever handed it over made a"
            " mistake, or means harm; nothing was opened with it; ask for a new invite"
        )
    return secret


def _key_id(membership: Membership, epoch: int) -> KeyId:
    return KeyId((membership.commitment(epoch) or b"")[:KEY_ID_BYTES])


def _shared(identity: DeviceIdentity, membership: Membership, member: Member, epoch: int) -> Secret:
    """The key of an epoch, out of this device's share of it."""
    share = membership.share(epoch, member.author)
    if share is None or membership.vault is None:
        raise KeyringError(f"the key of epoch {epoch} was not handed to this device; ask for a new invite")
    ephemeral = membership.epochs[epoch].link.ephemeral
    context = share_context(membership.vault, epoch, member, ephemeral)
    try:
        return Secret(xor(share, identity.agreed(ephemeral, Purpose.EPOCH_SHARE, context)))
    except CipherError as error:
        raise KeyringError(f"the link that began epoch {epoch} is not a valid one ({error})") from None


def _unwrapped(membership: Membership, epoch: int, secret: Secret) -> Secret:
    """The key of the epoch before, out of the link that began this one."""
    assert membership.vault is not None
    wrapped = membership.epochs[epoch].link.wrapped
    try:
        return _opened(secret, wrapped, wrap_context(membership.vault, epoch))
    except CipherError as error:
        raise KeyringError(f"the key of epoch {epoch - 1} cannot be opened ({error})") from None


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
