"""The one place that touches native cryptography, so that another binding can take its place here.

ChaCha20-Poly1305 (RFC 8439) seals records, XChaCha20-Poly1305 seals the few things whose nonce is stored,
Ed25519 signs, X25519 sealed boxes hand keys to one device, Argon2id stretches passphrases. Hashes come from
`hashlib`, which is faster than the binding and gives the same bytes. Every key derived from another carries a
`Purpose` of its own, so that no key is ever used for two things.
"""

import hashlib
import hmac
import importlib
import unicodedata
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

from nacl import bindings
from nacl.exceptions import CryptoError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
MAC_BYTES: Final = 16
PRIVATE_NONCE_BYTES: Final = 24
PRIVATE_OVERHEAD_BYTES: Final = PRIVATE_NONCE_BYTES + MAC_BYTES
SIGNATURE_BYTES: Final = 64
BOX_OVERHEAD_BYTES: Final = KEY_BYTES + MAC_BYTES
PASSPHRASE_SALT_BYTES: Final = 16

Seal = Callable[[bytes, bytes, bytes], bytes]
"""(12-byte nonce, plaintext, associated data) -> ciphertext and MAC, under one key. Another nonce size: ValueError."""

Open = Callable[[bytes, bytes, bytes], bytes]
"""(12-byte nonce, ciphertext and MAC, associated data) -> plaintext, under one key. Another nonce size: ValueError."""

Random = Callable[[int], bytes]
"""So many bytes that nobody can predict; `os.urandom` outside of tests."""


class CipherError(Exception):
    """Something sealed does not open: another key, another context, or damaged bytes."""


class Opening(NamedTuple):
    """How what was sealed under one key is opened. `open` raises `refused` if it is not authentic, or cut off.

    Each cipher has an error of its own: to turn it into another, a record at a time, costs a fortieth of opening it.
    """

    open: Open
    refused: type[Exception]


class Secret:
    """Key material. It never prints, pickles or copies itself; `reveal` is the one way to the bytes."""

    __slots__ = ("_bytes",)
    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, material: bytes) -> None:
        self._bytes = bytes(material)

    def reveal(self) -> bytes:
        """The bytes themselves. Do not keep them in a local variable of a function that can fail."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._bytes, other._bytes)

    def __repr__(self) -> str:
        return f"<Secret {len(self._bytes)} B>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled or copied; hand on the Secret itself")


class Purpose(Enum):
    """What a derived key or hash is for: the BLAKE2b personalisation (at most 16 bytes)."""

    SIGNING_SEED = b"sw device sign 1"
    BOX_SEED = b"sw device box 1"
    HEDGE_KEY = b"sw device hedge1"
    STREAM_ID = b"sw stream id 1"
    TAG = b"sw tag 1"
    RECORD_KEY = b"sw record key 1"
    NONCE_KEY = b"sw nonce key 1"
    NONCE = b"sw nonce 1"
    SALT = b"sw salt 1"
    METADATA_KEY = b"sw metadata 1"
    TAG_COMMITMENT = b"sw tag commit 1"
    EPOCH_COMMITMENT = b"sw epoch commit1"
    BOX_EPHEMERAL = b"sw box once 1"
    PRIVATE_NONCE = b"sw private nonc1"
    MAILBOX_ID = b"sw mailbox id 1"
    MAILBOX_REQUEST = b"sw mailbox req 1"
    MAILBOX_ANSWER = b"sw mailbox ans 1"
    INVITE_CHECKSUM = b"sw invite sum 1"
    CODE_COMMITMENT = b"sw code commit 1"
    SHORT_CODE = b"sw short code 1"
    HEAD_WORDS = b"sw head words 1"
    RECOVERY_SEED = b"sw recovery sd 1"
    EPOCH_ONCE = b"sw epoch once 1"
    EPOCH_SHARE = b"sw epoch share 1"
    EPOCH_WRAP = b"sw epoch wrap 1"
    SUM = b"sw sum 1"


def keyed_state(key: Secret, purpose: Purpose, size: int, data: bytes = b"") -> "hashlib.blake2b":
    """A BLAKE2b state under a key, after `data`; copying it is cheaper than making it again."""
    return hashlib.blake2b(data, digest_size=size, key=key.reveal(), person=purpose.value)


def keyed_hash(key: Secret, purpose: Purpose, data: bytes, size: int = KEY_BYTES) -> bytes:
    """`size` bytes of BLAKE2b over `data`, under a key and for one purpose."""
    return keyed_state(key, purpose, size, data).digest()


def plain_hash(purpose: Purpose, data: bytes, size: int) -> bytes:
    """`size` bytes of BLAKE2b over `data` for one purpose, without a key: anyone can compute it."""
    return hashlib.blake2b(data, digest_size=size, person=purpose.value).digest()


def derive(key: Secret, purpose: Purpose, data: bytes = b"") -> Secret:
    """A 32-byte key of its own for one purpose."""
    return Secret(keyed_hash(key, purpose, data))


# Records: three ways to the same bytes, tried in this order. `cryptography`, where the extra `fast` is installed: it
# does not let go of the interpreter for every record, and is quicker with large ones. Else the binding's inner library,
# called directly if it has the shape that we know, with one output buffer per object: the binding's wrapper costs
# more than the cipher. Else the wrapper. What these give serves one thread at a time.

_SEALER_SHAPE: Final = (
    "int(*)(unsigned char *, unsigned long long *, unsigned char *, unsigned long long, unsigned char *,"
    " unsigned long long, unsigned char *, unsigned char *, unsigned char *)"
)
_OPENER_SHAPE: Final = (
    "int(*)(unsigned char *, unsigned long long *, unsigned char *, unsigned char *, unsigned long long,"
    " unsigned char *, unsigned long long, unsigned char *, unsigned char *)"
)
_ROOM_BYTES: Final = 1_024
"""The output buffer to begin with: holds nearly all records. It grows for larger ones."""


def _native() -> tuple[Any, Any] | None:
    """The binding's inner library and its foreign-function interface, if they have the shape that we know."""
    try:
        inner: Any = importlib.import_module("nacl._sodium")
        ffi, lib = inner.ffi, inner.lib
        sealer = ffi.typeof(lib.crypto_aead_chacha20poly1305_ietf_encrypt).cname
        opener = ffi.typeof(lib.crypto_aead_chacha20poly1305_ietf_decrypt).cname
    except (ImportError, AttributeError, TypeError):
        return None
    return (ffi, lib) if (sealer, opener) == (_SEALER_SHAPE, _OPENER_SHAPE) else None


def _fast() -> tuple[Any, type[Exception]] | None:
    """`cryptography`'s cipher and its error for what is not authentic, if it is there and its OpenSSL can do it."""
    try:
        # Not when this module is loaded: it takes some 30 ms, and most commands open no record.
        aead: Any = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
        errors: Any = importlib.import_module("cryptography.exceptions")
    except ImportError:
        return None
    try:
        aead.ChaCha20Poly1305(bytes(KEY_BYTES))
    except errors.UnsupportedAlgorithm:
        return None
    return aead.ChaCha20Poly1305, errors.InvalidTag


def record_seal(key: Secret) -> Seal:
    """A function that seals records under `key`. It serves one thread at a time."""
    _check_key(key)
    if (fast := _fast()) is not None:
        return _fast_seal(key, *fast)
    native = _native()
    return _plain_seal(key) if native is None else _native_seal(key, *native)


def record_open(key: Secret) -> Opening:
    """How records sealed under `key` are opened. It serves one thread at a time."""
    _check_key(key)
    if (fast := _fast()) is not None:
        return _fast_open(key, *fast)
    native = _native()
    return _plain_open(key) if native is None else _native_open(key, *native)


def _check_key(key: Secret) -> None:
    if len(key) != KEY_BYTES:
        raise CipherError(f"a key has {KEY_BYTES} bytes, not {len(key)}")


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")


def _fast_seal(key: Secret, aead: Any, _: type[Exception]) -> Seal:
    seal: Seal = aead(key.reveal()).encrypt
    return seal


def _fast_open(key: Secret, aead: Any, not_authentic: type[Exception]) -> Opening:
    return Opening(aead(key.reveal()).decrypt, not_authentic)


def _plain_seal(key: Secret) -> Seal:
    encrypt = bindings.crypto_aead_chacha20poly1305_ietf_encrypt

    def seal(nonce: bytes, plaintext: bytes, context: bytes) -> bytes:
        _check_nonce(nonce)
        return encrypt(plaintext, context, nonce, key.reveal())

    return seal


def _plain_open(key: Secret) -> Opening:
    decrypt = bindings.crypto_aead_chacha20poly1305_ietf_decrypt

    def open_(nonce: bytes, sealed: bytes, context: bytes) -> bytes:
        _check_nonce(nonce)
        if len(sealed) >= MAC_BYTES:
            try:
                return decrypt(sealed, context, nonce, key.reveal())
            except CryptoError:
                pass  # a frame of the wrapper's hangs on it, which holds the key
        raise CryptoError("a record is not authentic")

    return Opening(open_, CryptoError)


def _native_seal(key: Secret, ffi: Any, lib: Any) -> Seal:
    encrypt, null = lib.crypto_aead_chacha20poly1305_ietf_encrypt, ffi.NULL
    held = ffi.new("unsigned char[]", key.reveal())
    room = _ROOM_BYTES
    out = ffi.new("unsigned char[]", room)
    view = ffi.buffer(out)

    def seal(nonce: bytes, plaintext: bytes, context: bytes) -> bytes:
        nonlocal room, out, view
        size = len(plaintext)
        if size + MAC_BYTES > room:
            room = size + MAC_BYTES
            out = ffi.new("unsigned char[]", room)
            view = ffi.buffer(out)
        if len(nonce) != NONCE_BYTES:
            _check_nonce(nonce)
        encrypt(out, null, plaintext, size, context, len(context), null, nonce, held)
        sealed: bytes = view[: size + MAC_BYTES]
        return sealed

    return seal


def _native_open(key: Secret, ffi: Any, lib: Any) -> Opening:
    decrypt, null = lib.crypto_aead_chacha20poly1305_ietf_decrypt, ffi.NULL
    held = ffi.new("unsigned char[]", key.reveal())
    room = _ROOM_BYTES
    out = ffi.new("unsigned char[]", room)
    view = ffi.buffer(out)

    def open_(nonce: bytes, sealed: bytes, context: bytes) -> bytes:
        nonlocal room, out, view
        size = len(sealed)
        if size > room:
            room = size
            out = ffi.new("unsigned char[]", room)
            view = ffi.buffer(out)
        if len(nonce) != NONCE_BYTES:
            _check_nonce(nonce)
        if size < MAC_BYTES or decrypt(out, null, null, sealed, size, context, len(context), nonce, held):
            raise CryptoError("a record is not authentic")
        plaintext: bytes = view[: size - MAC_BYTES]
        return plaintext

    return Opening(open_, CryptoError)


# Small things whose nonce travels with them: names, mailboxes, the keystore.


def private_seal(key: Secret, plaintext: bytes, context: bytes, random: bytes) -> bytes:
    """Nonce, ciphertext and MAC under XChaCha20-Poly1305.

    The nonce is a hash of 32 bytes of `random`, the context and the plaintext, so that a broken random
    generator alone never leads to one nonce for two contents.
    """
    material = Secret(random)
    nonce = keyed_hash(material, Purpose.PRIVATE_NONCE, _framed(context) + plaintext, PRIVATE_NONCE_BYTES)
    sealed = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, context, nonce, key.reveal())
    return nonce + sealed


def private_open(key: Secret, sealed: bytes, context: bytes) -> bytes:
    """The plaintext of `private_seal`. Raises CipherError if key, context or bytes are not the same."""
    if len(sealed) < PRIVATE_OVERHEAD_BYTES:
        raise CipherError("something sealed is cut off")
    nonce, rest = sealed[:PRIVATE_NONCE_BYTES], sealed[PRIVATE_NONCE_BYTES:]
    try:
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(rest, context, nonce, key.reveal())
    except CryptoError:
        raise CipherError("something sealed does not open with this key") from None


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


# Devices.


def signing_pair(seed: Secret) -> tuple[bytes, Secret]:
    """(Ed25519 public key, secret key) from a 32-byte seed."""
    public, private = bindings.crypto_sign_seed_keypair(seed.reveal())
    return public, Secret(private)


def sign(private: Secret, message: bytes) -> bytes:
    """The 64-byte Ed25519 signature of a message. Deterministic."""
    return bindings.crypto_sign(message, private.reveal())[:SIGNATURE_BYTES]


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """True iff `signature` is the signature of `message` by the holder of the Ed25519 public `key`."""
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, key)
    except CryptoError:
        return False
    return True


def box_pair(seed: Secret) -> tuple[bytes, Secret]:
    """(X25519 public key, secret key) from a 32-byte seed."""
    public, private = bindings.crypto_box_seed_keypair(seed.reveal())
    return public, Secret(private)


def box_seal(message: bytes, box_key: bytes, random: bytes) -> bytes:
    """A sealed box as libsodium makes it, for the holder of `box_key` alone.

    The one-time key comes from 32 bytes of `random`, hashed with the receiver and the message: given these the
    bytes are the same, and a broken random generator alone never uses one key for two messages.
    """
    if len(box_key) != KEY_BYTES:
        raise CipherError(f"a box key has {KEY_BYTES} bytes, not {len(box_key)}")
    seed = derive(Secret(random), Purpose.BOX_EPHEMERAL, box_key + message)
    public, private = box_pair(seed)
    nonce = hashlib.blake2b(public + box_key, digest_size=PRIVATE_NONCE_BYTES).digest()
    try:
        return public + bindings.crypto_box(message, nonce, box_key, private.reveal())
    except CryptoError:
        raise CipherError("a box key is not a valid key") from None


def box_open(sealed: bytes, box_key: bytes, private: Secret) -> bytes:
    """The message of a sealed box. Raises CipherError if it was made for another key, or damaged."""
    try:
        return bindings.crypto_box_seal_open(sealed, box_key, private.reveal())
    except (CryptoError, ValueError, TypeError):
        raise CipherError("a sealed box does not open with this device's key") from None


def agreed(private: Secret, box_key: bytes, purpose: Purpose, context: bytes) -> Secret:
    """32 bytes that the holders of two box keys alone can compute, each from the own secret key and the other's public
    one. Raises CipherError for a key with which anybody could."""
    if len(box_key) != KEY_BYTES:
        raise CipherError(f"a box key has {KEY_BYTES} bytes, not {len(box_key)}")
    try:
        shared = Secret(bindings.crypto_scalarmult(private.reveal(), box_key))
    except (CryptoError, RuntimeError):
        raise CipherError("a box key is not a valid key") from None
    return derive(shared, purpose, context)


# Passphrases.


class Effort(NamedTuple):
    """What one guess of a passphrase costs: Argon2id's passes, and its memory in bytes."""

    passes: int
    memory_bytes: int


INTERACTIVE: Final = Effort(2, 64 * 1024 * 1024)
MODERATE: Final = Effort(3, 256 * 1024 * 1024)
SENSITIVE: Final = Effort(4, 1024 * 1024 * 1024)
"""libsodium's own three steps, whose numbers are the same in every version of it that has Argon2id."""


def stretch(passphrase: str, salt: bytes, effort: Effort) -> Secret:
    """A 32-byte key from a passphrase by Argon2id. Slow on purpose. The text is normalised (NFKC) first."""
    text = unicodedata.normalize("NFKC", passphrase).encode()
    return Secret(
        bindings.crypto_pwhash_alg(
            KEY_BYTES, text, salt, effort.passes, effort.memory_bytes, bindings.crypto_pwhash_ALG_ARGON2ID13
        )
    )
