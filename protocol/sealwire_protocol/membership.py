"""The membership log: signed, hash-chained links in stream 0, verified alike by the relay and by every device.

A link is laid out as (integers big-endian):

    version u8 = 1, type u8, seq u32, vault 16, previous 32, signer u32, body (u16 length + bytes), signature 64

`seq` is its place in stream 0, from 1. In the genesis link `vault` and `previous` are zeros. The signature
covers everything before it, after a context string. The hash of a link is BLAKE2b-256 of all its bytes; the
vault id is BLAKE2b-128 of the genesis link.
"""

import hashlib
from collections.abc import Callable, Iterable
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
from sealwire_protocol.limits import LINK_BYTES_MAX, REPLACEMENTS_MAX

LINK_VERSION: Final = 1
LINK_CONTEXT: Final = b"sealwire membership link v1\0"
REPLACE_CONTEXT: Final = b"sealwire replace device v1\0"
HASH_BYTES: Final = 32
BOX_KEY_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32
FIRST_EPOCH: Final = 1
FIRST_AUTHOR: Final = Author(1)
SEALED_BYTES_MAX: Final = 1_024
"""Vault keys sealed to one device, or a sealed device name."""

_HEAD: Final = Struct(f">BBI{VAULT_ID_BYTES}s{HASH_BYTES}sIH")
_GENESIS: Final = Struct(f">{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}s16sH{COMMITMENT_BYTES}s{COMMITMENT_BYTES}s")
_ADD: Final = Struct(f">{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}sB")
_REPLACE: Final = Struct(f">{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}s{SIGNATURE_BYTES}s")
_PROVED: Final = Struct(f">{VAULT_ID_BYTES}s{HASH_BYTES}sI{DEVICE_KEY_BYTES}s{BOX_KEY_BYTES}s")

Verify = Callable[[bytes, bytes, bytes], bool]
"""(Ed25519 public key, message, signature) -> is it valid. Passed in: this package has no cipher of its own."""


class LinkType(IntEnum):
    """Kinds of links. The numbers 3 and 4 are taken by removal and new epochs."""

    GENESIS = 1
    ADD_DEVICE = 2
    REMOVE_DEVICE = 3
    NEW_EPOCH = 4
    REPLACE_DEVICE = 5


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


Body = Genesis | AddDevice | ReplaceDevice

_FIXED: Final = {LinkType.GENESIS: _GENESIS, LinkType.ADD_DEVICE: _ADD, LinkType.REPLACE_DEVICE: _REPLACE}


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


class Member(NamedTuple):
    """A device in the log. `author` is the index of the link that added it.

    `given`: the role that it was added with, which outlasts its replacement. `lineage`: the member from which it
    descends by replacements, which an admin has added (or which began the vault); its own author if there were none.
    """

    author: Author
    device: DeviceKey
    box_key: bytes
    role: Role
    given: Role
    lineage: Author
    sealed_keys: bytes
    sealed_name: bytes


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
    """The body's layout: its fixed fields, then the two sealed ones with a u16 length each. Raises LocalMisuse."""
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


def _decode_body(kind: LinkType, data: bytes) -> Body:
    fixed = _FIXED[kind]
    if len(data) < fixed.size:
        raise LinkError("a link's body is cut off")
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
    if len(raw) > LINK_BYTES_MAX or len(raw) < _HEAD.size + SIGNATURE_BYTES:
        raise LinkError("a link is cut off or too large")
    version, kind, seq, vault, previous, signer, size = _HEAD.unpack_from(raw)
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


class Membership:
    """The members of one vault after a prefix of its log. Grows by `apply` alone."""

    __slots__ = ("epoch", "genesis", "head", "key_id", "last_hash", "members", "vault")

    def __init__(self) -> None:
        self.vault: VaultId | None = None
        self.genesis: Genesis | None = None
        self.head = 0
        self.last_hash = bytes(HASH_BYTES)
        self.epoch = 0
        self.key_id = KeyId(bytes(KEY_ID_BYTES))
        self.members: dict[Author, Member] = {}

    def by_device(self, device: DeviceKey) -> Member | None:
        """The member that logs in with this key, or None."""
        return next((m for m in self.members.values() if m.device == device), None)

    def apply(self, raw: bytes, verify: Verify) -> Link:
        """Verify the next link and take it in. Raises LinkError, and stays as it was, if anything is wrong."""
        link = decode_link(raw)
        if link.seq != self.head + 1 or link.previous != self.last_hash:
            raise LinkError(f"link {link.seq} does not follow link {self.head} of this log")
        if isinstance(link.body, Genesis):
            self._check_genesis(link, link.body, verify)
        else:
            self._check_signed(link, link.body, verify)
        self._take_in(link)
        return link

    def _check_genesis(self, link: Link, body: Genesis, verify: Verify) -> None:
        if self.head or link.signer != FIRST_AUTHOR or any(link.vault):
            raise LinkError("a genesis link stands anywhere but first")
        if body.epoch != FIRST_EPOCH:
            raise LinkError("a vault's first epoch is 1")
        if not verify(body.device, link.signed_part, link.signature):
            raise LinkError("the genesis link's signature is not valid")

    def _check_signed(self, link: Link, body: AddDevice | ReplaceDevice, verify: Verify) -> None:
        signer = self.members.get(link.signer)
        if not self.head or link.vault != self.vault:
            raise LinkError("a link belongs to another vault")
        if signer is None or (isinstance(body, AddDevice) and signer.role < Role.ADMIN):
            raise LinkError("a link is signed by someone who is no admin of this vault, or no member")
        if self.by_device(body.device) is not None:
            raise LinkError("the device is a member already")
        if not verify(signer.device, link.signed_part, link.signature):
            raise LinkError("a link's signature is not valid")
        if isinstance(body, ReplaceDevice):
            if self.replacements(signer.lineage) >= REPLACEMENTS_MAX:
                raise LinkError(
                    f"the device has been replaced {REPLACEMENTS_MAX} times, which is as often as it may be; an admin"
                    " must invite it again"
                )
            proved = proved_by(link.vault, link.previous, link.signer, body.device, body.box_key)
            if not verify(body.device, proved, body.proof):
                raise LinkError("a new key was not signed for by its owner")

    def replacements(self, lineage: Author) -> int:
        """How many keys have taken the place of this member's first one, or of one that had."""
        return sum(member.lineage == lineage for member in self.members.values()) - 1

    def _take_in(self, link: Link) -> None:
        body, author = link.body, Author(link.seq)
        lineage = author
        if isinstance(body, Genesis):
            self.vault, self.genesis, self.epoch = vault_id_of(link.raw), body, body.epoch
            self.key_id = KeyId(body.commitment[:KEY_ID_BYTES])
            role = Role.ADMIN
        elif isinstance(body, ReplaceDevice):
            signer = self.members[link.signer]
            role, lineage = signer.given, signer.lineage
            self.members[link.signer] = signer._replace(role=Role.REPLACED)
        else:
            role = body.role
        self.members[author] = Member(
            author, body.device, body.box_key, role, role, lineage, body.sealed_keys, body.sealed_name
        )
        self.head, self.last_hash = link.seq, link.hash


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
        raw, at = _take(segment, at + 1, LINK_BYTES_MAX)
        if not raw:
            raise LinkError("a link is empty")
        links.append(raw)
    return links
