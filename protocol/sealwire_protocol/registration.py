"""Registration tokens: short signed texts that allow whoever holds one to make vaults at a relay (decision 0018).

    format u8 = 1, key id 8, serial 16, expires u64, vaults u32, quota u64, holder (u8 length + UTF-8), signature 64

Written as `sealwire-token:` and base64url without padding. The signature is Ed25519 over TOKEN_CONTEXT and everything
before it. The key id is a hash of the public key, so that a relay that trusts several finds it. Nothing is signed or
verified here.
"""

import base64
import binascii
import hashlib
import struct
from typing import Final, NamedTuple

from sealwire_protocol.errors import DecodeError, LocalMisuse

TOKEN_PREFIX: Final = "sealwire-token:"
TOKEN_FORMAT: Final = 1
TOKEN_CONTEXT: Final = b"sealwire registration token v1\0"
SERIAL_BYTES: Final = 16
SIGNATURE_BYTES: Final = 64
KEY_ID_BYTES: Final = 8

HOLDER_BYTES_MAX: Final = 64
"""What a token says of whom it is for, in bytes of UTF-8: a name, or an app's number of its user."""

TOKEN_VAULTS_MAX: Final = 2**31 - 1
"""Vaults that one token may allow: what a database's integer counts."""

EXPIRES_MAX: Final = 2**63 - 1

QUOTA_MAX: Final = 2**63 - 1
"""Bytes that a vault's quota may be: what a database's integer counts."""

_HEAD: Final = struct.Struct(f">B{KEY_ID_BYTES}s{SERIAL_BYTES}sQIQB")


class Token(NamedTuple):
    """What a token allows: to make so many vaults until `expires` (Unix seconds), each of which may store `quota` bytes
    (0: as many as the relay gives who says nothing). `holder` is for people alone."""

    key_id: bytes
    serial: bytes
    expires: int
    vaults: int
    quota: int = 0
    holder: str = ""


def key_id_of(public_key: bytes) -> bytes:
    """By what a token names the key that signed it."""
    return hashlib.blake2b(public_key, digest_size=KEY_ID_BYTES, person=b"sw token key 1").digest()


def encode_token(token: Token) -> bytes:
    """All of a token but its signature. Raises LocalMisuse if a field does not fit."""
    holder = token.holder.encode()
    if len(holder) > HOLDER_BYTES_MAX:
        raise LocalMisuse(f"whom a token is for takes {len(holder)} bytes, and at most {HOLDER_BYTES_MAX} fit in")
    if (len(token.key_id), len(token.serial)) != (KEY_ID_BYTES, SERIAL_BYTES):
        raise LocalMisuse("a token's key id or serial has another length")
    if not (1 <= token.vaults <= TOKEN_VAULTS_MAX and 0 <= token.expires <= EXPIRES_MAX):
        raise LocalMisuse(f"a token allows 1 to {TOKEN_VAULTS_MAX} vaults, and expires after 1970")
    if not 0 <= token.quota <= QUOTA_MAX:
        raise LocalMisuse(f"a vault's quota is a number of bytes up to {QUOTA_MAX}")
    return _HEAD.pack(TOKEN_FORMAT, *token[:5], len(holder)) + holder


def signed_part(raw: bytes) -> bytes:
    """The bytes that are signed, of a whole token."""
    return TOKEN_CONTEXT + raw[:-SIGNATURE_BYTES]


def decode_token(raw: bytes) -> tuple[Token, bytes]:
    """A token and its signature, which is not verified. Raises DecodeError."""
    if not raw or raw[0] != TOKEN_FORMAT:
        raise DecodeError("it is no token of a format that is known here")
    if len(raw) < _HEAD.size + SIGNATURE_BYTES:
        raise DecodeError("the token is cut off")
    _, key_id, serial, expires, vaults, quota, size = _HEAD.unpack_from(raw)
    if size > HOLDER_BYTES_MAX or len(raw) != _HEAD.size + size + SIGNATURE_BYTES:
        raise DecodeError("the token has another length than it says")
    if not (1 <= vaults <= TOKEN_VAULTS_MAX and expires <= EXPIRES_MAX and quota <= QUOTA_MAX):
        raise DecodeError("the token allows what no token can")
    try:
        holder = raw[_HEAD.size : _HEAD.size + size].decode()
    except UnicodeDecodeError as error:
        raise DecodeError("the token's holder is not UTF-8") from error
    return Token(key_id, serial, expires, vaults, quota, holder), raw[-SIGNATURE_BYTES:]


def token_text(raw: bytes) -> str:
    """A whole token as it is handed to people."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def token_bytes(text: str) -> bytes:
    """A whole token from its text. Raises LocalMisuse for what is none; whether a relay takes it, that relay says."""
    text = text.strip()
    body = text.removeprefix(TOKEN_PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        decode_token(raw)
        if token_text(raw) == text:
            return raw
    except (binascii.Error, ValueError, DecodeError):
        pass
    if body == text:
        raise LocalMisuse(
            f"this is no registration token, which begins with {TOKEN_PREFIX!r}: copy the whole text again"
        )
    raise LocalMisuse("this registration token was changed on its way, or cut off: copy the whole text again")
