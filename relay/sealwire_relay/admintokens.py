"""Admin tokens: what those who run a relay show its control port. They are worth nothing to devices, nor on their port.

    sealwire-admin- and 32 random bytes in base64url without padding

A token is shown once, when it is made; the relay keeps its hash. 32 random bytes are found by nobody from a plain hash.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from sealwire_relay.store.administration import AdminToken

PREFIX: Final = "sealwire-admin-"
"""By which a token is told wherever it is shown, by a search for leaked secrets too."""

SECRET_BYTES: Final = 32


class Made(NamedTuple):
    """A new token: its text, for who is to have it, and its hash, for the database."""

    text: str
    hash: bytes


def make() -> Made:
    """A token that nobody knows yet."""
    text = PREFIX + base64.urlsafe_b64encode(os.urandom(SECRET_BYTES)).decode().rstrip("=")
    return Made(text, _hash(text))


def hash_of(text: str) -> bytes | None:
    """By what the relay knows a token; None: this is none."""
    body = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return _hash(text) if body != text and len(raw) == SECRET_BYTES else None


def found_in(data: bytes) -> bytes | None:
    """If bytes that a stranger sent hold what every token begins with, the hash of what stands there; else None."""
    at = data.find(PREFIX.encode())
    if at < 0:
        return None
    length = len(PREFIX) + -(-SECRET_BYTES * 4 // 3)
    return _hash(data[at : at + length].decode("latin-1"))


def known(shown: bytes, tokens: Iterable[AdminToken]) -> AdminToken | None:
    """The token with this hash. Takes as long wherever among them it is, and however much of it is right."""
    same = [token for token in tokens if hmac.compare_digest(token.hash, shown)]
    return same[0] if same else None


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=32, person=b"sw admin token 1").digest()
