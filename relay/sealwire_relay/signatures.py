"""The relay's only cryptography: it verifies Ed25519 signatures, of logins and of membership links."""

from nacl.bindings import crypto_sign_BYTES, crypto_sign_open, crypto_sign_PUBLICKEYBYTES
from nacl.exceptions import BadSignatureError


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `message` under an Ed25519 public key. Never raises on what a peer sends.

    Keys and signatures of another length, low-order keys and malleable signatures are all simply not valid:
    the answer does not say what was wrong. About 60 µs, on the calling thread.
    """
    # The lengths must be checked here: the library is handed bare pointers.
    if len(key) != crypto_sign_PUBLICKEYBYTES or len(signature) != crypto_sign_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, key)
    except BadSignatureError:
        return False
    return True
