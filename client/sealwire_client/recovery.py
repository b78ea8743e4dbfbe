"""A device on paper: 24 words from which its keys, and which vault it belongs to, can be made again. Pure functions.

    words = BIP-39, English, of: secret 16, vault 16
    seed  = BLAKE2b-256(secret, "sw recovery sd 1" ‖ vault)

The words are a member of the vault like any other: its keys come from the seed as every device's do, an admin adds
it, and an admin can remove it. They name the vault because a relay tells nobody who is a member of what. Of the 256
bits 128 are secret, as many as it takes to forge any signature or to open any box of a device.
"""

import os
import re
import unicodedata
from typing import Final, NoReturn

from sealwire_client import cipher
from sealwire_client.cipher import Purpose, Random, Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.wordlist import english
from sealwire_protocol.ids import VAULT_ID_BYTES, VaultId

WORDS: Final = 24
SECRET_BYTES: Final = 16
NAME: Final = "recovery words"
"""What the vault's members see this device named."""

_LETTERS: Final = re.compile(r"[^\W\d_]+")


class RecoveryError(ValueError):
    """Words from which no device can be made, or that belong to no vault of this relay."""


class RecoveryWords:
    """The words of one paper. They never print themselves: `reveal` is the one way to them."""

    __slots__ = ("_secret", "identity", "vault")

    def __init__(self, vault: VaultId, secret: Secret) -> None:
        self.vault, self._secret = vault, secret
        self.identity = DeviceIdentity(cipher.derive(secret, Purpose.RECOVERY_SEED, vault))

    def reveal(self) -> str:
        """The 24 words, with a space between them. Show them to their owner, once, and keep them nowhere."""
        return english().to_mnemonic(self._secret.reveal() + self.vault)

    def __repr__(self) -> str:
        return f"<RecoveryWords of vault {self.vault[:4].hex()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("recovery words are not pickled or copied; they belong on paper")


def new_words(vault: VaultId, random: Random = os.urandom) -> RecoveryWords:
    """Fresh words for a vault. No member of it yet."""
    return RecoveryWords(vault, Secret(random(SECRET_BYTES)))


def parse(text: str) -> RecoveryWords:
    """The words of a paper, as somebody has typed them: case, spaces, line breaks, numbers and commas do not matter.

    Raises RecoveryError, which says which word is wrong, if that can be told.
    """
    words = _LETTERS.findall(unicodedata.normalize("NFKD", text).lower())
    known = set(english().wordlist)
    for number, word in enumerate(words, 1):
        if word not in known:
            raise RecoveryError(
                f"word {number} ({word[:16]}) is none of the words that are used for this; look at the paper again"
            )
    if len(words) != WORDS:
        raise RecoveryError(f"there must be {WORDS} words, and these are {len(words)}; look at the paper again")
    try:
        raw = bytes(english().to_entropy(words))
    except ValueError:
        raise RecoveryError(
            "these words do not belong together: one is not that of the paper, or two have changed places; compare"
            " them one by one"
        ) from None
    return RecoveryWords(VaultId(raw[-VAULT_ID_BYTES:]), Secret(raw[:SECRET_BYTES]))
