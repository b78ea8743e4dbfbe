"""Invites, and the two sealed letters by which a device joins. Pure functions; the relay's mailbox carries them.

    invite = "sealwire:" + base64url of: format u8 = 1, vault 16, head seq u32, head hash 32, inviter 32,
             secret 32, origin (u16 length + UTF-8), checksum 4

An invite holds no vault key: its secret opens one mailbox, once. The mailbox's name is a hash of the secret, its
two keys are derived from it, and both letters are bound to vault and mailbox. The request is signed by the
joining device, the answer by the inviting one, so that whoever has merely seen the invite can forge neither.
"""

import base64
import binascii
import os
import re
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from sealwire_client import cipher
from sealwire_client.cipher import KEY_BYTES, SIGNATURE_BYTES, CipherError, Purpose, Random, Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_protocol.ids import MAILBOX_ID_BYTES, DeviceKey, MailboxId, VaultId

SCHEME: Final = "sealwire:"
FORMAT: Final = 1
ORIGIN_BYTES_MAX: Final = 255
"""A relay's address: the longest name of a host, and a port."""

NAME_BYTES_MAX: Final = 128
REASON_BYTES_MAX: Final = 512
"""Texts inside the letters; with keys, signature and seal both stay below MAILBOX_BYTES_MAX."""

_CHECKSUM_BYTES: Final = 4
_FIXED: Final = Struct(">B16sI32s32s32sH")
_REQUEST: Final = Struct(">B32s32s64s")
_ANSWER: Final = Struct(">BBI32s64s")
_APPROVED: Final = 1
_REFUSED: Final = 2
_REQUEST_CONTEXT: Final = b"sealwire join request v1\0"
_ANSWER_CONTEXT: Final = b"sealwire join answer v1\0"
_ORIGIN: Final = re.compile(r"wss?://[!-~]+")
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*={0,2}")


class InviteError(ValueError):
    """An invite that cannot be used, or a letter that was not made for it."""


@dataclass(frozen=True, slots=True)
class Invite:
    """What an inviting device hands over by link or QR code. Whoever has it may ask to join, once.

    `head_seq` and `head_hash` are the end of the membership log when it was made: an older log is not accepted.
    """

    origin: str
    vault: VaultId
    head_seq: int
    head_hash: bytes
    inviter: DeviceKey
    secret: Secret

    @property
    def mailbox(self) -> MailboxId:
        """The mailbox that this invite opens."""
        return mailbox_of(self.secret)

    def encode(self) -> str:
        """The invite as text. It contains the secret: show it to the person who is invited alone."""
        origin = self.origin.encode()
        if len(origin) > ORIGIN_BYTES_MAX or not _ORIGIN.fullmatch(self.origin):
            raise InviteError(
                f"the relay's address {self.origin!r} cannot be put into an invite; it begins with wss://"
            )
        raw = _FIXED.pack(
            FORMAT, self.vault, self.head_seq, self.head_hash, self.inviter, self.secret.reveal(), len(origin)
        )
        raw += origin
        return SCHEME + base64.urlsafe_b64encode(raw + _checksum(raw)).decode().rstrip("=")


class Request(NamedTuple):
    """Who asks to join."""

    device: DeviceKey
    box_key: bytes
    name: str


class Approved(NamedTuple):
    """The joiner is a member: this link of the membership log added it."""

    link_seq: int
    link_hash: bytes


class Refused(NamedTuple):
    """The joiner was refused, for a reason that a person can read."""

    reason: str


def new_invite(
    origin: str, vault: VaultId, head_seq: int, head_hash: bytes, inviter: DeviceKey, random: Random = os.urandom
) -> Invite:
    """An invite with a fresh secret."""
    return Invite(origin, vault, head_seq, head_hash, inviter, Secret(random(KEY_BYTES)))


def parse(text: str) -> Invite:
    """An invite from its text; space and line breaks that crept in are forgiven. Raises InviteError."""
    joined = "".join(text.split())
    if not joined.startswith(SCHEME):
        raise InviteError(f"this is not an invite: it should begin with {SCHEME}; copy it again, from its beginning")
    encoded = joined.removeprefix(SCHEME)
    if not _ALPHABET.fullmatch(encoded):
        raise InviteError("this invite contains characters that belong to no invite; copy it again")
    encoded = encoded.rstrip("=")
    try:
        raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        raise InviteError("this invite is cut off; copy all of it again") from None
    if raw and raw[0] != FORMAT:
        raise InviteError(f"this invite is of format {raw[0]}, which this version does not know; update this program")
    return _decoded(raw)


def _decoded(raw: bytes) -> Invite:
    try:
        _, vault, head_seq, head_hash, inviter, secret, size = _FIXED.unpack_from(raw)
    except StructError:
        raise InviteError("this invite is cut off; copy all of it again") from None
    end = _FIXED.size + size
    if len(raw) < end + _CHECKSUM_BYTES:
        raise InviteError("this invite is cut off; copy all of it again")
    if raw[end:] != _checksum(raw[:end]):
        raise InviteError("this invite was changed on its way (its checksum does not fit); copy it again")
    try:
        origin = raw[_FIXED.size : end].decode("ascii")
    except UnicodeDecodeError:
        origin = ""
    if size > ORIGIN_BYTES_MAX or not _ORIGIN.fullmatch(origin):
        raise InviteError("this invite names no relay that could be dialled; ask for a new one")
    return Invite(origin, VaultId(vault), head_seq, head_hash, DeviceKey(inviter), Secret(secret))


def mailbox_of(secret: Secret) -> MailboxId:
    """The mailbox that a secret opens."""
    return MailboxId(cipher.keyed_hash(secret, Purpose.MAILBOX_ID, b"", MAILBOX_ID_BYTES))


def _checksum(raw: bytes) -> bytes:
    return cipher.plain_hash(Purpose.INVITE_CHECKSUM, raw, _CHECKSUM_BYTES)


def _bound(context: bytes, invite: Invite) -> bytes:
    return context + invite.vault + invite.mailbox


def seal_request(invite: Invite, identity: DeviceIdentity, name: str, random: Random = os.urandom) -> bytes:
    """A joiner's request. To repeat it after a lost connection, send the same bytes: a mailbox takes one request."""
    text = _text(name, NAME_BYTES_MAX, "name")
    bound = _bound(_REQUEST_CONTEXT, invite)
    signature = identity.sign(bound + identity.device_key + identity.box_key + text)
    plain = _REQUEST.pack(FORMAT, identity.device_key, identity.box_key, signature) + text
    key = cipher.derive(invite.secret, Purpose.MAILBOX_REQUEST)
    return cipher.private_seal(key, plain, bound, random(KEY_BYTES))


def open_request(invite: Invite, sealed: bytes) -> Request:
    """A joiner's request, by a device that has proved to own its key. Raises InviteError."""
    bound = _bound(_REQUEST_CONTEXT, invite)
    plain = _letter(invite, Purpose.MAILBOX_REQUEST, sealed, bound, _REQUEST)
    _, device, box_key, signature = _REQUEST.unpack_from(plain)
    text = plain[_REQUEST.size :]
    if not cipher.verify(device, bound + device + box_key + text, signature):
        raise InviteError("a request to join is not signed by the device that it names; it was ignored")
    return Request(DeviceKey(device), box_key, _read_text(text, NAME_BYTES_MAX))


def seal_answer(
    invite: Invite,
    identity: DeviceIdentity,
    joiner: DeviceKey,
    answer: Approved | Refused,
    random: Random = os.urandom,
) -> bytes:
    """The inviter's answer to one joiner. `identity` must be the inviter that the invite names."""
    if identity.device_key != invite.inviter:
        raise InviteError("an invite is answered by the device that made it, and this is another")
    if isinstance(answer, Approved):
        kind, seq, digest, text = _APPROVED, answer.link_seq, answer.link_hash, b""
    else:
        kind, seq, digest, text = _REFUSED, 0, bytes(32), _text(answer.reason, REASON_BYTES_MAX, "reason")
    bound = _bound(_ANSWER_CONTEXT, invite) + joiner
    unsigned = _ANSWER.pack(FORMAT, kind, seq, digest, bytes(SIGNATURE_BYTES)) + text
    plain = _ANSWER.pack(FORMAT, kind, seq, digest, identity.sign(bound + unsigned)) + text
    key = cipher.derive(invite.secret, Purpose.MAILBOX_ANSWER)
    return cipher.private_seal(key, plain, bound, random(KEY_BYTES))


def open_answer(invite: Invite, joiner: DeviceKey, sealed: bytes) -> Approved | Refused:
    """The answer to `joiner`'s request, signed by the inviter whom the invite names. Raises InviteError."""
    bound = _bound(_ANSWER_CONTEXT, invite) + joiner
    plain = _letter(invite, Purpose.MAILBOX_ANSWER, sealed, bound, _ANSWER)
    _, kind, seq, digest, signature = _ANSWER.unpack_from(plain)
    text = plain[_ANSWER.size :]
    unsigned = _ANSWER.pack(FORMAT, kind, seq, digest, bytes(SIGNATURE_BYTES)) + text
    if not cipher.verify(invite.inviter, bound + unsigned, signature):
        raise InviteError("the answer was not signed by the device that made the invite; ask for a new invite")
    if kind == _APPROVED and not text:
        return Approved(seq, digest)
    if kind == _REFUSED:
        return Refused(_read_text(text, REASON_BYTES_MAX))
    raise InviteError("the answer is of a kind that this version does not know; update this program")


def _letter(invite: Invite, purpose: Purpose, sealed: bytes, bound: bytes, layout: Struct) -> bytes:
    try:
        plain = cipher.private_open(cipher.derive(invite.secret, purpose), sealed, bound)
    except CipherError:
        raise InviteError("a letter in the mailbox does not open with this invite; it was not made for it") from None
    if len(plain) < layout.size or plain[0] != FORMAT:
        raise InviteError("a letter in the mailbox is of a kind that this version does not know; update this program")
    return plain


def _text(text: str, most: int, what: str) -> bytes:
    raw = text.encode()
    if len(raw) > most:
        raise InviteError(f"a {what} of {len(raw)} bytes is too long; use {most} at most")
    return raw


def _read_text(raw: bytes, most: int) -> str:
    if len(raw) > most:
        raise InviteError("a letter in the mailbox holds a longer text than is allowed; it was ignored")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InviteError("a letter in the mailbox holds something that is not text; it was ignored") from None
