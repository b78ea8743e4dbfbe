"""The membership log: signed, hash-chained links in stream 0, verified alike by the relay and by every device.

A link is laid out as (integers big-endian):

    version u8 = 1, type u8, seq u32, vault 16, previous 32, signer u32, body (u16 length + bytes), signature 64

`seq` is its place in stream 0, from 1. In the genesis link `vault` and `previous` are zeros. The signature
covers everything before it, after a context string. The hash of a link is BLAKE2b-256 of all its bytes; the
vault id is BLAKE2b-128 of the genesis link.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.ids import (
    DEVICE_KEY_BYTES,
    KEY_ID_BYTES,
    SIGNATURE_BYTES,
    VAULT_ID_BYTES,
    Author,
    DeviceKey,
    KeyId,
    VaultId,
)
from sealwire_protocol.limits import ADOPTED_MAX, EPOCH_LINK_BYTES_MAX, LINK_BYTES_MAX, MEMBERS_MAX, TEXT_BYTES_MAX
from sealwire_protocol.login import normal_origin

LINK_VERSION: Final = 1
LINK_CONTEXT: Final = b"sealwire membership link v1\0"
REPLACE_CONTEXT: Final = b"sealwire replace device v1\0"
HASH_BYTES: Final = 32
BOX_KEY_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32
FIRST_EPOCH: Final = 1
FIRST_AUTHOR: Final = Author(1)
SHARE_BYTES: Final = 32
SEALED_BYTES_MAX: Final = 1_024
"""Vault keys sealed to one device, or a sealed device name."""

WRAPPED_BYTES_MAX: Final = 128
"""The key of an epoch, sealed under that of another one."""

_HEAD: Final = Struct(f">BBI{VAULT_ID_BYTES}s{HASH_BYTES}sIH")
_GENESIS: Final = Struct(f">{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}s16sH{COMMITMENT_BYTES}s{COMMITMENT_BYTES}s")
_ADD: Final = Struct(f">{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}sB")
_REPLACE: Final = Struct(f">{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}s{SIGNATURE_BYTES}s")
_EPOCH: Final = Struct(f">H{COMMITMENT_BYTES}s{BOX_KEY_BYTES}sH")
_ADOPTED: Final = Struct(f">H{COMMITMENT_BYTES}s")
_AUTHOR: Final = Struct(">I")
_NOTHING: Final = Struct(">")
_PROVED: Final = Struct(f">{VAULT_ID_BYTES}s{HASH_BYTES}sI{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}s")


class LinkType(IntEnum):
    """Kinds of links. Who is removed by others, is so by a new epoch; the number 3 is not used."""

    GENESIS = 1
    ADD_DEVICE = 2
    NEW_EPOCH = 4
    REPLACE_DEVICE = 5
    LEAVE = 6
    END = 7
    MOVE = 8


class Role(IntEnum):
    """What a member may do; each includes the ones below it. Nobody is added as REPLACED: a device becomes it by the
    first `ReplaceDevice` that it signs, may still read and sign others, and does nothing else any more."""

    REPLACED = 0
    READER = 1
    WRITER = 2
    ADMIN = 3


class LinkError(DecodeError):
    """A link that is malformed, out of place, or not signed by someone who may."""


class Genesis(NamedTuple):
    """The first link: it makes its signer the first member and admin, and commits to the vault's keys."""

    device: DeviceKey
    box_key: bytes
    nonce: bytes
    epoch: int
    commitment: bytes
    tag_commitment: bytes
    sealed_keys: bytes
    sealed_name: bytes


class AddDevice(NamedTuple):
    """Adds a member, and hands it the vault's keys, sealed to its X25519 key."""

    device: DeviceKey
    box_key: bytes
    role: Role
    sealed_keys: bytes
    sealed_name: bytes


class ReplaceDevice(NamedTuple):
    """Adds another key of the device that signs it, with the role that the device was given.

    `proof` is the new key's own signature (see `proved_by`): nobody can put a stranger's key into a log by it.
    """

    device: DeviceKey
    box_key: bytes
    proof: bytes
    sealed_keys: bytes
    sealed_name: bytes


class Adopted(NamedTuple):
    """The key of an epoch of another end of the log, one that had to give way: `wrapped` under the key of an epoch that
    stands, and a commitment to it. What was sealed under it can be opened by all."""

    epoch: int
    commitment: bytes
    wrapped: bytes

    @property
    def key_id(self) -> KeyId:
        """What records name the key by, beside their epoch."""
        return KeyId(self.commitment[:KEY_ID_BYTES])


class NewEpoch(NamedTuple):
    """Begins the next epoch, under a new key, and removes members with it; none: the key alone is changed.

    `removed`: lineages, see `Member`, in ascending order. `commitment`: to the new key. `ephemeral`: an X25519 key of
    this link alone. `shares`: the new key for each member who is present then, in ascending order of author: 32 bytes
    each, which open with that member's X25519 key. `wrapped`: the key of the epoch before, sealed under the new one,
    for those who come later; `adopted`: others that are handed on so.
    """

    removed: tuple[Author, ...]
    epoch: int
    commitment: bytes
    ephemeral: bytes
    wrapped: bytes
    shares: bytes
    adopted: tuple[Adopted, ...] = ()


@dataclass(frozen=True, slots=True)
class Leave:
    """Its signer is a member no more, with all of its lineage. The key stays: an admin changes it by a new epoch."""


@dataclass(frozen=True, slots=True)
class End:
    """The vault is deleted: nothing follows this link, and a relay drops what was written in the vault."""


class Move(NamedTuple):
    """The vault is at this relay from now on, whose address is in its normal form (`normal_origin`)."""

    origin: str


Adding = Genesis | AddDevice | ReplaceDevice
"""What adds a member: the one whose author is the link's seq."""

Body = Adding | NewEpoch | Leave | End | Move

_FIXED: Final = {
    LinkType.GENESIS: _GENESIS,
    LinkType.ADD_DEVICE: _ADD,
    LinkType.NEW_EPOCH: _EPOCH,
    LinkType.REPLACE_DEVICE: _REPLACE,
    LinkType.LEAVE: _NOTHING,
    LinkType.END: _NOTHING,
    LinkType.MOVE: _NOTHING,
}
_EMPTY: Final[dict[LinkType, Body]] = {LinkType.LEAVE: Leave(), LinkType.END: End()}


class Link(NamedTuple):
    """One parsed link, its bytes as received, and its hash."""

    type: LinkType
    seq: int
    vault: VaultId
    previous: bytes
    signer: Author
    body: Body
    signature: bytes
    raw: bytes
    hash: bytes

    @property
    def signed_part(self) -> bytes:
        """The bytes that the signature covers, context first."""
        return LINK_CONTEXT + self.raw[:-SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"<Link {self.type.name} #{self.seq}>"


def link_hash(raw: bytes) -> bytes:
    """BLAKE2b-256 of a link's bytes."""
    return hashlib.blake2b(raw, digest_size=HASH_BYTES).digest()


def vault_id_of(genesis: bytes) -> VaultId:
    """BLAKE2b-128 of the genesis link's bytes."""
    return VaultId(hashlib.blake2b(genesis, digest_size=VAULT_ID_BYTES).digest())


def _with_length(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _take(data: bytes, at: int, most: int) -> tuple[bytes, int]:
    size = int.from_bytes(data[at : at + 2], "big")
    end = at + 2 + size
    if at + 2 > len(data) or end > len(data) or size > most:
        raise LinkError("a link's field is cut off or too large")
    return data[at + 2 : end], end


def proved_by(vault: VaultId, previous: bytes, signer: Author, device: DeviceKey, box_key: bytes) -> bytes:
    """What a new key signs, so that it can take the place of an old one: which keys, whose place, in which log."""
    return REPLACE_CONTEXT + _PROVED.pack(vault, previous, signer, device, box_key)


def encode_body(body: Body) -> bytes:
    """The body's layout: its fixed fields, then what has no fixed size. Of a link that adds a member: the two sealed
    fields with a u16 length each. Of a new epoch: whom it removes, u32 each, the wrapped key with a u16 length, the
    adopted keys with their count, and the shares up to the end. Of a move: the address with a u16 length. Of one that
    leaves or ends: nothing. Raises LocalMisuse."""
    if isinstance(body, Leave | End):
        return b""
    if isinstance(body, NewEpoch):
        return _encode_epoch(body)
    if isinstance(body, Move):
        return _with_length(normal_origin(body.origin).encode())
    if len(body.device) != DEVICE_KEY_BYTES or len(body.box_key) != BOX_KEY_BYTES:
        raise LocalMisuse("a device's keys have 32 bytes each")
    if max(len(body.sealed_keys), len(body.sealed_name)) > SEALED_BYTES_MAX:
        raise LocalMisuse(f"a sealed field of a link has at most {SEALED_BYTES_MAX} bytes")
    if isinstance(body, Genesis):
        fixed = _GENESIS.pack(body.device, body.box_key, body.nonce, body.epoch, body.commitment, body.tag_commitment)
    elif isinstance(body, ReplaceDevice):
        fixed = _REPLACE.pack(body.device, body.box_key, body.proof)
    else:
        fixed = _ADD.pack(body.device, body.box_key, body.role)
    return fixed + _with_length(body.sealed_keys) + _with_length(body.sealed_name)


def _encode_epoch(body: NewEpoch) -> bytes:
    if len(body.wrapped) > WRAPPED_BYTES_MAX or len(body.shares) > MEMBERS_MAX * SHARE_BYTES:
        raise LocalMisuse(f"a vault has at most {MEMBERS_MAX:,} members")
    if len(body.adopted) > ADOPTED_MAX or any(len(each.wrapped) > WRAPPED_BYTES_MAX for each in body.adopted):
        raise LocalMisuse(f"a link adopts at most {ADOPTED_MAX} keys")
    removed = b"".join(author.to_bytes(4, "big") for author in body.removed)
    fixed = _EPOCH.pack(body.epoch, body.commitment, body.ephemeral, len(body.removed))
    adopted = [_ADOPTED.pack(each.epoch, each.commitment) + _with_length(each.wrapped) for each in body.adopted]
    return fixed + removed + _with_length(body.wrapped) + bytes([len(adopted)]) + b"".join(adopted) + body.shares


def _decode_epoch(data: bytes) -> NewEpoch:
    epoch, commitment, ephemeral, count = _EPOCH.unpack_from(data)
    at = _EPOCH.size + 4 * count
    if at > len(data):
        raise LinkError("a link's body is cut off")
    removed = tuple(Author(author) for (author,) in _AUTHOR.iter_unpack(data[_EPOCH.size : at]))
    wrapped, at = _take(data, at, WRAPPED_BYTES_MAX)
    adopted, at = _decode_adopted(data, at)
    return NewEpoch(removed, epoch, commitment, ephemeral, wrapped, data[at:], adopted)


def _decode_adopted(data: bytes, at: int) -> tuple[tuple[Adopted, ...], int]:
    count = data[at] if at < len(data) else ADOPTED_MAX + 1
    if count > ADOPTED_MAX:
        raise LinkError("a link's body is cut off, or adopts too many keys")
    at, adopted = at + 1, list[Adopted]()
    for _ in range(count):
        if at + _ADOPTED.size > len(data):
            raise LinkError("a link's body is cut off")
        epoch, commitment = _ADOPTED.unpack_from(data, at)
        wrapped, at = _take(data, at + _ADOPTED.size, WRAPPED_BYTES_MAX)
        adopted.append(Adopted(epoch, commitment, wrapped))
    return tuple(adopted), at


def _decode_move(data: bytes) -> Move:
    raw, _ = _take(data, 0, TEXT_BYTES_MAX)
    try:
        origin = raw.decode()
        if normal_origin(origin) == origin:
            return Move(origin)
    except (UnicodeDecodeError, LocalMisuse):
        pass
    raise LinkError("a link moves the vault to what is no relay's address in its normal form")


def _decode_body(kind: LinkType, data: bytes) -> Body:
    fixed = _FIXED[kind]
    if len(data) < fixed.size:
        raise LinkError("a link's body is cut off")
    if kind is LinkType.NEW_EPOCH:
        return _decode_epoch(data)
    if kind in _EMPTY:
        return _EMPTY[kind]
    if kind is LinkType.MOVE:
        return _decode_move(data)
    fields = fixed.unpack_from(data)
    keys, at = _take(data, fixed.size, SEALED_BYTES_MAX)
    name, _ = _take(data, at, SEALED_BYTES_MAX)
    if kind is LinkType.GENESIS:
        return Genesis(*(*fields, keys, name))
    if kind is LinkType.REPLACE_DEVICE:
        return ReplaceDevice(*(*fields, keys, name))
    device, box_key, role = fields
    if role not in Role.__members__.values() or role == Role.REPLACED:
        raise LinkError(f"role {role} is not known; it may need a newer version")
    return AddDevice(device, box_key, Role(role), keys, name)


def encode_unsigned(kind: LinkType, seq: int, vault: VaultId, previous: bytes, signer: Author, body: Body) -> bytes:
    """A link without its signature. Sign `LINK_CONTEXT` + this, and append the 64 bytes."""
    encoded = encode_body(body)
    return _HEAD.pack(LINK_VERSION, kind, seq, vault, previous, signer, len(encoded)) + encoded


def decode_link(raw: bytes) -> Link:
    """Parse one link. Only its layout is checked here; `Membership.apply` checks what it claims."""
    if len(raw) > EPOCH_LINK_BYTES_MAX or len(raw) < _HEAD.size + SIGNATURE_BYTES:
        raise LinkError("a link is cut off or too large")
    version, kind, seq, vault, previous, signer, size = _HEAD.unpack_from(raw)
    if kind != LinkType.NEW_EPOCH and len(raw) > LINK_BYTES_MAX:
        raise LinkError("a link is too large")
    if version != LINK_VERSION:
        raise LinkError(f"link version {version} is not known; it may need a newer version")
    if kind not in _FIXED:
        raise LinkError(f"link type {kind} is not known; it may need a newer version")
    if len(raw) != _HEAD.size + size + SIGNATURE_BYTES:
        raise LinkError("a link's length does not fit its body")
    body = _decode_body(LinkType(kind), raw[_HEAD.size : _HEAD.size + size])
    return Link(
        LinkType(kind),
        seq,
        VaultId(vault),
        previous,
        Author(signer),
        body,
        raw[-SIGNATURE_BYTES:],
        raw,
        link_hash(raw),
    )


def encode_links(links: Iterable[bytes]) -> bytes:
    """A segment of stream 0: each link preceded by its skip count, always 0 here, and its length as u16."""
    return b"".join([b"\0" + _with_length(raw) for raw in links])


def decode_links(segment: bytes) -> list[bytes]:
    """The links of a segment of stream 0, in order, none of them parsed. Raises DecodeError on anything else.

    Stream 0 is never compacted, so a link that skips a place is refused.
    """
    at, links = 0, list[bytes]()
    while at < len(segment):
        if segment[at]:
            raise LinkError("a link skips a place")
        raw, at = _take(segment, at + 1, EPOCH_LINK_BYTES_MAX)
        if not raw:
            raise LinkError("a link is empty")
        links.append(raw)
    return links
