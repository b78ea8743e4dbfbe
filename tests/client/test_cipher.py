import copy
import pickle
import sys
import traceback
from types import SimpleNamespace
from typing import NoReturn

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import aead
from hypothesis import given
from hypothesis import strategies as st

from sealwire_client import cipher
from sealwire_client.cipher import CipherError, Effort, Opening, Purpose, Secret
from tests.client.ways import WAYS, without_cryptography

KEY = Secret(bytes(range(32)))
OTHER = Secret(bytes(32))
NONCE = bytes(range(12))
CHEAP = Effort(1, 8192)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`record_seal` and `record_open` go this way, because nothing better is there."""
    name: str = request.param
    if name != "cryptography":
        without_cryptography(monkeypatch)
    if name == "PyNaCl":
        monkeypatch.setitem(sys.modules, "nacl._sodium", SimpleNamespace())
    for made, forced in (
        (cipher.record_seal(KEY), WAYS[name].seal(KEY)),
        (cipher.record_open(KEY).open, WAYS[name].open(KEY).open),
    ):
        assert made.__qualname__ == forced.__qualname__
    assert len({way.open(KEY).open.__qualname__ for way in WAYS.values()}) == len(WAYS)
    return name


def opens(opening: Opening, sealed: bytes, context: bytes = b"context", nonce: bytes = NONCE) -> bytes | None:
    """The plaintext, or None if it is refused."""
    try:
        return opening.open(nonce, sealed, context)
    except opening.refused:
        return None


@given(st.binary(max_size=3000), st.binary(max_size=100), st.binary(min_size=12, max_size=12))
def test_all_ways_to_the_cipher_give_the_same_bytes(plaintext: bytes, context: bytes, nonce: bytes) -> None:
    (sealed,) = {way.seal(KEY)(nonce, plaintext, context) for way in WAYS.values()}
    assert len(sealed) == len(plaintext) + cipher.MAC_BYTES
    for way in WAYS.values():
        assert opens(way.open(KEY), sealed, context, nonce) == plaintext
        assert opens(way.open(OTHER), sealed, context, nonce) is None


@given(st.binary(max_size=200), st.data())
def test_all_ways_refuse_the_same(plaintext: bytes, data: st.DataObject) -> None:
    sealed = WAYS["PyNaCl"].seal(KEY)(NONCE, plaintext, b"context")
    at = data.draw(st.integers(0, len(sealed) - 1))
    changed = sealed[:at] + bytes([sealed[at] ^ data.draw(st.integers(1, 255))]) + sealed[at + 1 :]
    for way in WAYS.values():
        opening = way.open(KEY)
        assert opens(opening, changed) is None
        assert opens(opening, sealed[:at]) is None
        assert opens(opening, sealed + b"\0") is None
        assert opens(opening, sealed) == plaintext


def test_an_object_serves_many_records_of_any_size(way: str) -> None:
    seal, opening = cipher.record_seal(KEY), cipher.record_open(KEY)
    for size in (40, 5_000, 0, 70_000, 1_008, 1_009, 16):
        plaintext = bytes([size % 251]) * size
        assert opens(opening, seal(NONCE, plaintext, b"context")) == plaintext


def test_a_cipher_that_openssl_was_built_without_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes) -> NoReturn:
        raise UnsupportedAlgorithm("not in this OpenSSL")

    monkeypatch.setattr(aead, "ChaCha20Poly1305", refuse)
    assert cipher._fast() is None
    assert opens(cipher.record_open(KEY), cipher.record_seal(KEY)(NONCE, b"same", b"context")) == b"same"


def test_another_shape_of_the_binding_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cryptography(monkeypatch)
    sealed = cipher.record_seal(KEY)(NONCE, b"same", b"context")
    for inner in (SimpleNamespace(), SimpleNamespace(ffi=SimpleNamespace(typeof=str), lib=SimpleNamespace())):
        monkeypatch.setitem(sys.modules, "nacl._sodium", inner)
        assert cipher._native() is None
        assert cipher.record_seal(KEY)(NONCE, b"same", b"context") == sealed
        assert opens(cipher.record_open(KEY), sealed) == b"same"


def test_what_was_changed_does_not_open(way: str) -> None:
    sealed, opening = cipher.record_seal(KEY)(NONCE, b"x" * 40, b"context"), cipher.record_open(KEY)
    assert opens(opening, sealed) == b"x" * 40
    assert opens(opening, sealed, b"contexu") is None
    assert opens(opening, sealed, b"") is None
    assert opens(opening, sealed, nonce=bytes(12)) is None
    assert opens(opening, bytes([sealed[0] ^ 1]) + sealed[1:]) is None
    assert opens(opening, sealed[:15]) is None
    assert opens(opening, b"") is None
    assert opens(cipher.record_open(OTHER), sealed) is None


def test_keys_and_nonces_of_another_size_are_refused_before_native_code_sees_them(way: str) -> None:
    for key in (Secret(b"short"), Secret(bytes(33))):
        with pytest.raises(CipherError):
            cipher.record_seal(key)
        with pytest.raises(CipherError):
            cipher.record_open(key)
    for nonce in (b"", b"short", bytes(13)):
        with pytest.raises(ValueError, match=r"(?i)nonce"):
            cipher.record_seal(KEY)(nonce, bytes(16), b"")
        with pytest.raises(ValueError, match=r"(?i)nonce"):
            cipher.record_open(KEY).open(nonce, bytes(16), b"")


@pytest.mark.parametrize("name", WAYS)
def test_s22_no_way_to_the_cipher_shows_its_key(name: str) -> None:
    secret = Secret(b"canary canary canary canary can!")
    seal, opening = WAYS[name].seal(secret), WAYS[name].open(secret)
    with pytest.raises(opening.refused) as caught:
        opening.open(NONCE, bytes(40), b"context")
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    text += repr(seal) + repr(opening)
    assert "canary" not in text
    assert b"canary".hex() not in text


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
