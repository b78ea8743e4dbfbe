"""Mints registration tokens (decision 0018): apart from the relay, without a network, by who has the private key.

An app's backend calls `mint` for its own users, or the command `sealwire-relay token mint`. A running relay knows
public keys alone, and nothing that is minted need be told to it.
"""

import base64
import binascii
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from nacl.signing import SigningKey

from sealwire_protocol.registration import SERIAL_BYTES, Token, encode_token, key_id_of, signed_part, token_text

SEED_BYTES: Final = 32
DAY_SECONDS: Final = 86_400

_NO_SIGNATURE: Final = bytes(64)


class MintingError(Exception):
    """A key's file cannot be used. The message is a sentence that says why, and what to do."""


class Minted(NamedTuple):
    """A token as it is handed over, and what it allows."""

    text: str
    token: Token


def generate_key(path: Path) -> str:
    """Make a key in a file (mode 0600) that must not be there yet, durably. Returns its public part in base64, which is
    what the setting `registration_keys` takes. Raises MintingError."""
    key = SigningKey.generate()
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(base64.b64encode(bytes(key)) + b"\n")
            out.flush()
            os.fsync(out.fileno())
    except FileExistsError as error:
        raise MintingError(f"{path} is there already, and no key is ever overwritten: name another file.") from error
    except OSError as error:
        raise MintingError(f"{path} cannot be written: {error.strerror or error}.") from error
    return _public(key)


def public_key(path: Path) -> str:
    """The public part of the key in a file, in base64. Raises MintingError."""
    return _public(_read(path))


def mint(path: Path, *, vaults: int = 1, days: float = 30.0, quota: int = 0, holder: str = "") -> Minted:
    """A token for this many vaults within so many days, each of which may store `quota` bytes (0: as many as the relay
    gives by itself), of a random serial. `holder` says for people whom it is for: the relay writes it to its log.

    Raises MintingError, and LocalMisuse if a number or the holder does not fit."""
    key = _read(path)
    expires = int(time.time() + days * DAY_SECONDS)
    token = Token(key_id_of(bytes(key.verify_key)), os.urandom(SERIAL_BYTES), expires, vaults, quota, holder)
    unsigned = encode_token(token)
    return Minted(token_text(unsigned + key.sign(signed_part(unsigned + _NO_SIGNATURE)).signature), token)


def _public(key: SigningKey) -> str:
    return base64.b64encode(bytes(key.verify_key)).decode()


def _read(path: Path) -> SigningKey:
    try:
        with path.open("rb") as file:
            loose = os.fstat(file.fileno()).st_mode & 0o077
            text = file.read(256)
    except OSError as error:
        raise MintingError(
            f"The key {path} cannot be read: {error.strerror or error}. `sealwire-relay token keygen` makes one."
        ) from error
    if loose:
        raise MintingError(f"Others may read the key {path}: make it yours alone with `chmod 600`, or make a new one.")
    try:
        seed = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        seed = b""
    if len(seed) != SEED_BYTES:
        raise MintingError(f"{path} is no private key as `sealwire-relay token keygen` makes them: name another file.")
    return SigningKey(seed)
