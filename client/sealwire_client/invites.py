"""Invites, and the two sealed letters by which a device joins. Pure functions; the relay's mailbox carries them.

    invite = "sealwire:" + base64url of: format u8 = 1, vault 16, head seq u32, head hash 32, inviter 32,
             secret 32, origin (u16 length + UTF-8), checksum 4; in formats 2 and 4 a commitment 32 before the checksum

An invite holds no vault key: its secret opens one mailbox, once. The mailbox's name is a hash of the secret, its
two keys are derived from it, and both letters are bound to vault and mailbox. The request is signed by the
joining device, the answer by the inviting one, so that whoever has merely seen the invite can forge neither.

By formats 3 and 4 a person's new device comes into all vaults of that person at once: the answer names the others, each
with its relay and the link by which the device is a member there. Request, code and approval are one for all of them.

For a device of somebody else (formats 2 and 4) two people compare six digits before it is let in. They come of the
joiner's request and of a nonce of the inviter's. The invite commits to the nonce, and a first answer reveals it once
the request is there: so whoever stands between them, with the invite and a relay of their own, must choose what they
send before they can know which digits come of it, and is right once in a million times. The second answer is the
verdict.
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
from sealwire_protocol.limits import ANSWER_BYTES_MAX, MAILBOX_BYTES_MAX
from sealwire_protocol.links import HASH_BYTES

SCHEME: Final = "sealwire:"
FORMAT: Final = 1
FORMAT_COMPARED: Final = 2
"""Of an invite whose two sides compare a code: a program that shows none must not use it."""

FORMAT_ALL: Final = 3
FORMAT_ALL_COMPARED: Final = 4
"""Of an invite into all vaults of a person: who uses it is told so by the link, not by the answer alone."""

NONCE_BYTES: Final = 32
CODE_DIGITS: Final = 6
ORIGIN_BYTES_MAX: Final = 255
"""A relay's address: the longest name of a host, and a port."""

NAME_BYTES_MAX: Final = 128
REASON_BYTES_MAX: Final = 512
"""Texts inside the letters; with keys, signature and seal both stay below MAILBOX_BYTES_MAX."""

_REST_BYTES_MAX: Final = 256
"""An answer without its list of other vaults."""

OTHERS_BYTES_MAX: Final = ANSWER_BYTES_MAX - _REST_BYTES_MAX
"""That list: some 190 vaults on usual relays."""

OTHERS_BYTES_MAX_1: Final = MAILBOX_BYTES_MAX - _REST_BYTES_MAX
"""The same for a relay that speaks version 1 only: nine vaults or so. Another invite does the rest."""

_CHECKSUM_BYTES: Final = 4
_FIXED: Final = Struct(">B16sI32s32s32sH")
_REQUEST: Final = Struct(">B32s32s64s")
_ANSWER: Final = Struct(">BBI32s64s")
_PROMISE: Final = Struct(">16sI32sB")
_APPROVED: Final = 1
_REFUSED: Final = 2
_REVEALED: Final = 3
_APPROVED_FOR_ALL: Final = 4
_REQUEST_CONTEXT: Final = b"sealwire join request v1\0"
_ANSWER_CONTEXT: Final = b"sealwire join answer v1\0"
_ORIGIN: Final = re.compile(r"wss?://[!-~]+")
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*={0,2}")


class InviteError(ValueError):
    """An invite that cannot be used, or a letter that was not made for it."""


_FORMATS: Final = {
    (False, False): FORMAT,
    (False, True): FORMAT_COMPARED,
    (True, False): FORMAT_ALL,
    (True, True): FORMAT_ALL_COMPARED,
}


@dataclass(frozen=True, slots=True)
class Invite:
    """What an inviting device hands over by link or QR code. Whoever has it may ask to join, once.

    `head_seq` and `head_hash` are the end of the membership log when it was made: an older log is not accepted.
    `commitment`: to the inviter's nonce (`committed`), if the two sides are to compare a code; else nothing.
    `for_all`: it invites into all vaults of a person; `vault` is the one through whose relay that is said.
    """

    origin: str
    vault: VaultId
    head_seq: int
    head_hash: bytes
    inviter: DeviceKey
    secret: Secret
    commitment: bytes = b""
    for_all: bool = False

    @property
    def format(self) -> int:
        """Its first byte."""
        return _FORMATS[self.for_all, bool(self.commitment)]

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
            self.format,
            self.vault,
            self.head_seq,
            self.head_hash,
            self.inviter,
            self.secret.reveal(),
            len(origin),
        )
        raw += origin + self.commitment
        return SCHEME + base64.urlsafe_b64encode(raw + _checksum(raw)).decode().rstrip("=")


class Request(NamedTuple):
    """Who asks to join."""

    device: DeviceKey
    box_key: bytes
    name: str


class Promise(NamedTuple):
    """A vault of which the joiner is a member: its relay, and a link of its membership log that must be found there."""

    vault: VaultId
    origin: str
    link_seq: int
    link_hash: bytes


class Approved(NamedTuple):
    """The joiner is a member: this link of the membership log added it. So it is of `others`."""

    link_seq: int
    link_hash: bytes
    others: tuple[Promise, ...] = ()


class Refused(NamedTuple):
    """The joiner was refused, for a reason that a person can read."""

    reason: str


class Revealed(NamedTuple):
    """The inviter's nonce: from here on both sides know the code to compare. The verdict comes in another answer."""

    nonce: bytes


Verdict = Approved | Refused


def new_invite(
    origin: str,
    vault: VaultId,
    head_seq: int,
    head_hash: bytes,
    inviter: DeviceKey,
    commitment: bytes = b"",
    for_all: bool = False,
    random: Random = os.urandom,
) -> Invite:
    """An invite with a fresh secret."""
    return Invite(origin, vault, head_seq, head_hash, inviter, Secret(random(KEY_BYTES)), commitment, for_all)


def committed(nonce: bytes) -> bytes:
    """The commitment to an inviter's nonce, which tells nothing of it."""
    return cipher.plain_hash(Purpose.CODE_COMMITMENT, nonce, HASH_BYTES)


def short_code(invite: Invite, nonce: bytes, request: bytes) -> str:
    """The six digits that both sides show, of the sealed request as it was sent and came. Raises InviteError if the
    nonce is not the one that the invite commits to."""
    if committed(nonce) != invite.commitment:
        raise InviteError("what came from the inviter does not belong to this invite; ask for another one")
    heard = invite.vault + invite.mailbox + invite.inviter + request
    number = int.from_bytes(cipher.keyed_hash(Secret(nonce), Purpose.SHORT_CODE, heard, 8)) % 10**CODE_DIGITS
    digits = f"{number:0{CODE_DIGITS}}"
    return f"{digits[:3]} {digits[3:]}"


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
    if raw and raw[0] not in _FORMATS.values():
        raise InviteError(f"this invite is of format {raw[0]}, which this version does not know; update this program")
    return _decoded(raw)


def _decoded(raw: bytes) -> Invite:
    try:
        known, vault, head_seq, head_hash, inviter, secret, size = _FIXED.unpack_from(raw)
    except StructError:
        raise InviteError("this invite is cut off; copy all of it again") from None
    origin_end = _FIXED.size + size
    for_all, compared = next(kind for kind, number in _FORMATS.items() if number == known)
    end = origin_end + (HASH_BYTES if compared else 0)
    if len(raw) < end + _CHECKSUM_BYTES:
        raise InviteError("this invite is cut off; copy all of it again")
    if raw[end:] != _checksum(raw[:end]):
        raise InviteError("this invite was changed on its way (its checksum does not fit); copy it again")
    try:
        origin = raw[_FIXED.size : origin_end].decode("ascii")
    except UnicodeDecodeError:
        origin = ""
    if size > ORIGIN_BYTES_MAX or not _ORIGIN.fullmatch(origin):
        raise InviteError("this invite names no relay that could be dialled; ask for a new one")
    commitment = raw[origin_end:end]
    return Invite(origin, VaultId(vault), head_seq, head_hash, DeviceKey(inviter), Secret(secret), commitment, for_all)


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
    answer: Verdict | Revealed,
    random: Random = os.urandom,
) -> bytes:
    """The inviter's answer to one joiner. `identity` must be the inviter that the invite names."""
    if identity.device_key != invite.inviter:
        raise InviteError("an invite is answered by the device that made it, and this is another")
    if isinstance(answer, Approved):
        kind = _APPROVED_FOR_ALL if invite.for_all else _APPROVED
        seq, digest, text = answer.link_seq, answer.link_hash, b"".join(map(_packed, answer.others))
        if len(text) > (OTHERS_BYTES_MAX if invite.for_all else 0):
            raise InviteError(f"an answer to this invite cannot name {len(answer.others)} further vaults")
    elif isinstance(answer, Revealed):
        kind, seq, digest, text = _REVEALED, 0, answer.nonce, b""
    else:
        kind, seq, digest, text = _REFUSED, 0, bytes(32), _text(answer.reason, REASON_BYTES_MAX, "reason")
    bound = _bound(_ANSWER_CONTEXT, invite) + joiner
    unsigned = _ANSWER.pack(FORMAT, kind, seq, digest, bytes(SIGNATURE_BYTES)) + text
    plain = _ANSWER.pack(FORMAT, kind, seq, digest, identity.sign(bound + unsigned)) + text
    key = cipher.derive(invite.secret, Purpose.MAILBOX_ANSWER)
    return cipher.private_seal(key, plain, bound, random(KEY_BYTES))


def open_answer(invite: Invite, joiner: DeviceKey, sealed: bytes) -> Verdict | Revealed:
    """An answer to `joiner`'s request, signed by the inviter whom the invite names. Raises InviteError."""
    bound = _bound(_ANSWER_CONTEXT, invite) + joiner
    plain = _letter(invite, Purpose.MAILBOX_ANSWER, sealed, bound, _ANSWER)
    _, kind, seq, digest, signature = _ANSWER.unpack_from(plain)
    text = plain[_ANSWER.size :]
    unsigned = _ANSWER.pack(FORMAT, kind, seq, digest, bytes(SIGNATURE_BYTES)) + text
    if not cipher.verify(invite.inviter, bound + unsigned, signature):
        raise InviteError("the answer was not signed by the device that made the invite; ask for a new invite")
    if kind == _APPROVED and not text and not invite.for_all:
        return Approved(seq, digest)
    if kind == _APPROVED_FOR_ALL and invite.for_all:
        return Approved(seq, digest, _promises(text))
    if kind == _REVEALED and not text:
        return Revealed(digest)
    if kind == _REFUSED:
        return Refused(_read_text(text, REASON_BYTES_MAX))
    raise InviteError("the answer is of a kind that does not belong to this invite; update this program")


def _letter(invite: Invite, purpose: Purpose, sealed: bytes, bound: bytes, layout: Struct) -> bytes:
    try:
        plain = cipher.private_open(cipher.derive(invite.secret, purpose), sealed, bound)
    except CipherError:
        raise InviteError("a letter in the mailbox does not open with this invite; it was not made for it") from None
    if len(plain) < layout.size or plain[0] != FORMAT:
        raise InviteError("a letter in the mailbox is of a kind that this version does not know; update this program")
    return plain


def promise_bytes(origin: str) -> int:
    """What a vault at this relay takes of OTHERS_BYTES_MAX."""
    return _PROMISE.size + len(origin.encode())


def _packed(promise: Promise) -> bytes:
    origin = promise.origin.encode()
    return _PROMISE.pack(promise.vault, promise.link_seq, promise.link_hash, len(origin)) + origin


def _promises(raw: bytes) -> tuple[Promise, ...]:
    found, at = list[Promise](), 0
    while at < len(raw):
        try:
            vault, seq, digest, size = _PROMISE.unpack_from(raw, at)
            begin, at = at + _PROMISE.size, at + _PROMISE.size + size
            origin = raw[begin:at].decode("ascii")
        except (StructError, UnicodeDecodeError):
            raise InviteError("the answer's list of vaults cannot be read; ask for a new invite") from None
        if at > len(raw) or not _ORIGIN.fullmatch(origin):
            raise InviteError("the answer's list of vaults cannot be read; ask for a new invite")
        found.append(Promise(VaultId(vault), origin, seq, digest))
    return tuple(found)


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
