"""Words that people can read out, type and compare: the English list of BIP-39, 2,048 words told apart by four letters.

head words = the first 88 bits of BLAKE2b over vault 16, number of links u64, hash of the last link 32,
             eleven bits a word, the first bits first
"""

from functools import cache
from typing import Final

from mnemonic import Mnemonic

from sealwire_client.cipher import Purpose, plain_hash
from sealwire_protocol.ids import VaultId

HEAD_WORDS: Final = 8
"""88 bits: nobody makes another log with the same words, and eight are read out in a breath."""

_WORD_BITS: Final = 11


@cache
def english() -> Mnemonic:
    """The list, and its encoding of 16 to 32 bytes."""
    return Mnemonic("english")


def head_words(vault: VaultId, links: int, last_hash: bytes) -> str:
    """Eight words for all that a membership log of so many links says: who sees the same ones has the same log."""
    said = vault + links.to_bytes(8, "big") + last_hash
    bits = int.from_bytes(plain_hash(Purpose.HEAD_WORDS, said, HEAD_WORDS * _WORD_BITS // 8), "big")
    words = english().wordlist
    return " ".join(words[bits >> _WORD_BITS * place & (1 << _WORD_BITS) - 1] for place in reversed(range(HEAD_WORDS)))
