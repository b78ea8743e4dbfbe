import copy
import importlib
import pickle
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_client import cipher
from sealwire_client.cipher import CipherError, Effort, Purpose, Secret

KEY = Secret(bytes(range(32)))
OTHER = Secret(bytes(32))
NONCE = bytes(range(12))
CHEAP = Effort(1, 8192)


@given(st.binary(max_size=3000), st.binary(max_size=100), st.binary(min_size=12, max_size=12))
def test_both_ways_to_the_cipher_give_the_same_bytes(plaintext: bytes, context: bytes, nonce: bytes) -> None:
    native = cipher._native()
    assert native is not None
    sealed = cipher._plain_seal(KEY)(plaintext, context, nonce)
    assert cipher._native_seal(KEY, *native)(plaintext, context, nonce) == sealed
    assert cipher._native_open(KEY, *native)(sealed, context, nonce) == plaintext
    assert cipher._plain_open(KEY)(sealed, context, nonce) == plaintext


def test_another_shape_of_the_binding_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = cipher.record_seal(KEY)(b"same", b"context", NONCE)
    for inner in (SimpleNamespace(), SimpleNamespace(ffi=SimpleNamespace(typeof=str), lib=SimpleNamespace())):
        monkeypatch.setattr(importlib, "import_module", lambda _, inner=inner: inner)
        assert cipher._native() is None
        assert cipher.record_seal(KEY)(b"same", b"context", NONCE) == fast
        assert cipher.record_open(KEY)(fast, b"context", NONCE) == b"same"


@pytest.mark.parametrize("native", [True, False])
def test_what_was_changed_does_not_open(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(cipher, "_native", lambda: None)
    sealed, open_ = cipher.record_seal(KEY)(b"x" * 40, b"context", NONCE), cipher.record_open(KEY)
    assert open_(sealed, b"context", NONCE) == b"x" * 40
    assert open_(sealed, b"contexu", NONCE) is None
    assert open_(sealed, b"context", bytes(12)) is None
    assert open_(bytes([sealed[0] ^ 1]) + sealed[1:], b"context", NONCE) is None
    assert open_(sealed[:15], b"context", NONCE) is None
    assert cipher.record_open(OTHER)(sealed, b"context", NONCE) is None


def test_keys_and_nonces_of_another_size_are_refused_before_native_code_sees_them() -> None:
    for make in (cipher.record_seal, cipher.record_open):
        with pytest.raises(CipherError):
            make(Secret(b"short"))
        with pytest.raises(CipherError):
            make(KEY)(bytes(16), b"", b"short")


def test_purposes_are_distinct_and_fit() -> None:
    values = [purpose.value for purpose in Purpose]
    assert len(set(values)) == len(values) == len(Purpose.__members__)
    assert all(len(value) <= 16 for value in values)
    assert len({cipher.keyed_hash(KEY, purpose, b"data") for purpose in Purpose}) == len(values)


def test_a_private_seal_binds_key_and_context() -> None:
    sealed = cipher.private_seal(KEY, b"name", b"context", bytes(32))
    assert len(sealed) == 4 + cipher.PRIVATE_OVERHEAD_BYTES
    assert cipher.private_open(KEY, sealed, b"context") == b"name"
    for key, data, context in ((OTHER, sealed, b"context"), (KEY, sealed, b"other"), (KEY, sealed[:39], b"context")):
        with pytest.raises(CipherError):
            cipher.private_open(key, data, context)


def test_frozen_randomness_still_gives_every_content_a_nonce_of_its_own() -> None:
    frozen = bytes(32)
    private = {cipher.private_seal(KEY, text, context, frozen)[:24] for text in (b"", b"a") for context in (b"", b"a")}
    assert len(private) == 4
    box_key, _ = cipher.box_pair(KEY)
    other_key, _ = cipher.box_pair(OTHER)
    assert len({cipher.box_seal(text, to, frozen)[:32] for text in (b"a", b"b") for to in (box_key, other_key)}) == 4


def test_a_sealed_box_opens_for_its_receiver_alone() -> None:
    box_key, private = cipher.box_pair(KEY)
    sealed = cipher.box_seal(b"keys", box_key, bytes(32))
    assert len(sealed) == 4 + cipher.BOX_OVERHEAD_BYTES
    assert cipher.box_open(sealed, box_key, private) == b"keys"
    stranger_key, stranger = cipher.box_pair(OTHER)
    with pytest.raises(CipherError):
        cipher.box_open(sealed, stranger_key, stranger)
    for rubbish in (b"", sealed[:-1], bytes(60)):
        with pytest.raises(CipherError):
            cipher.box_open(rubbish, box_key, private)


@pytest.mark.parametrize("box_key", [b"", bytes(32), bytes([1]) + bytes(31)])
def test_nothing_is_sealed_to_a_key_that_anyone_could_open(box_key: bytes) -> None:
    with pytest.raises(CipherError):
        cipher.box_seal(b"keys", box_key, bytes(32))


def test_signatures() -> None:
    public, private = cipher.signing_pair(KEY)
    signature = cipher.sign(private, b"message")
    assert cipher.verify(public, b"message", signature)
    assert not cipher.verify(public, b"massage", signature)
    assert not cipher.verify(public, b"message", signature[:-1])
    assert not cipher.verify(public[:-1], b"message", signature)
    assert not cipher.verify(bytes(32), b"message", bytes(64))


def test_a_passphrase_is_the_same_however_it_was_typed() -> None:
    salt = bytes(16)
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert cipher.stretch(composed, salt, CHEAP) == cipher.stretch(decomposed, salt, CHEAP)
    assert cipher.stretch(composed, salt, CHEAP) != cipher.stretch("cafe", salt, CHEAP)
    assert cipher.stretch(composed, salt, CHEAP) != cipher.stretch(composed, b"\1" * 16, CHEAP)


def test_a_secret_does_not_show_copy_or_hash_itself() -> None:
    secret = Secret(b"canary canary canary canary!")
    for shown in (repr(secret), str(secret), f"{secret}", repr([secret]), repr({"k": secret})):
        assert "canary" not in shown
        assert b"canary".hex() not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            leak(secret)
    assert secret == Secret(secret.reveal())
    assert secret != secret.reveal()
    assert len(secret) == 28
