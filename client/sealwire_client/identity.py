"""A device's own keys, all from one 32-byte seed that never leaves it.

The Ed25519 key that signs, the X25519 key to which vault keys are sealed and the key that hedges salts are
derived independently, by keyed BLAKE2b; no key is converted from one curve to the other.
"""

import os
from typing import NoReturn

from sealwire_client import cipher
from sealwire_client.cipher import KEY_BYTES, Purpose, Random, Secret
from sealwire_protocol.ids import DeviceKey

SEED_BYTES = KEY_BYTES


class DeviceIdentity:
    """Who this device is: public names to give away, and what only their owner can do.

    `device_key` is the Ed25519 public key under which it logs in and signs, `box_key` the X25519 public key to
    which vault keys are sealed, `hedge_key` is mixed into the salt of every record it seals.
    """

    __slots__ = ("_box_secret", "_seed", "_signing_secret", "box_key", "device_key", "hedge_key")

    def __init__(self, seed: Secret) -> None:
        if len(seed) != SEED_BYTES:
            raise cipher.CipherError(f"a device's seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._seed = seed
        signing_key, self._signing_secret = cipher.signing_pair(cipher.derive(seed, Purpose.SIGNING_SEED))
        self.device_key = DeviceKey(signing_key)
        self.box_key, self._box_secret = cipher.box_pair(cipher.derive(seed, Purpose.BOX_SEED))
        self.hedge_key = cipher.derive(seed, Purpose.HEDGE_KEY)

    @classmethod
    def generate(cls, random: Random = os.urandom) -> "DeviceIdentity":
        """A new device."""
        return cls(Secret(random(SEED_BYTES)))

    @property
    def seed(self) -> Secret:
        """Everything that must be kept to be this device again."""
        return self._seed

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of a message. What is signed must begin with a context of its own."""
        return cipher.sign(self._signing_secret, message)

    def open_sealed(self, sealed: bytes) -> bytes:
        """The message of a box sealed to `box_key`. Raises CipherError if it was not, or is damaged."""
        return cipher.box_open(sealed, self.box_key, self._box_secret)

    def agreed(self, box_key: bytes, purpose: Purpose, context: bytes) -> Secret:
        """See `cipher.agreed`, with this device's X25519 key. Raises CipherError."""
        return cipher.agreed(self._box_secret, box_key, purpose, context)

    def __repr__(self) -> str:
        return f"<DeviceIdentity {self.device_key[:4].hex()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a device's identity is not pickled or copied; keep it in a keystore")
