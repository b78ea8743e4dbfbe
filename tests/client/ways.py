"""The ways to the cipher of records, each to be had by name: `client/sealwire_client/cipher.py` chooses by itself."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from sealwire_client import cipher
from sealwire_client.cipher import Opening, Seal, Secret


class Way(NamedTuple):
    """One of the ways to the cipher of records."""

    seal: Callable[[Secret], Seal]
    open: Callable[[Secret], Opening]


def ways() -> dict[str, Way]:
    """All of them; the tests' environment has what each needs."""
    fast, native = cipher._fast(), cipher._native()
    assert fast is not None and native is not None
    return {
        "cryptography": Way(lambda key: cipher._fast_seal(key, *fast), lambda key: cipher._fast_open(key, *fast)),
        "libsodium": Way(lambda key: cipher._native_seal(key, *native), lambda key: cipher._native_open(key, *native)),
        "PyNaCl": Way(cipher._plain_seal, cipher._plain_open),
    }


WAYS = ways()


def without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the extra is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
