"""Registration tokens: their bytes, their text, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.limits import REGISTRATION_BYTES_MAX
from sealwire_protocol.registration import (
    EXPIRES_MAX,
    HOLDER_BYTES_MAX,
    QUOTA_MAX,
    TOKEN_PREFIX,
    TOKEN_VAULTS_MAX,
    Token,
    decode_token,
    encode_token,
    key_id_of,
    signed_part,
    token_bytes,
    token_text,
)

SIGNATURE = bytes(range(64))
TOKEN = Token(key_id_of(bytes(32)), bytes(range(16)), 1_800_000_000, 3, 5 << 30, "Zoë")
RAW = encode_token(TOKEN) + SIGNATURE


def test_a_token_is_laid_out_as_the_specification_says() -> None:
    fields = ["01", "3620a526402f5a5b", TOKEN.serial.hex(), "000000006b49d200", "00000003"]
    fields += ["0000000140000000", "04", "5a6fc3ab"]
    assert RAW.hex() == "".join(fields) + SIGNATURE.hex()
    assert signed_part(RAW) == b"sealwire registration token v1\0" + RAW[:-64]


@given(
    st.builds(
        Token,
        st.binary(min_size=8, max_size=8),
        st.binary(min_size=16, max_size=16),
        st.integers(0, EXPIRES_MAX),
        st.integers(1, TOKEN_VAULTS_MAX),
        st.integers(0, QUOTA_MAX),
        st.text(st.characters(codec="utf-8"), max_size=16),
    )
)
def test_what_is_encoded_is_decoded_to_the_same(token: Token) -> None:
    raw = encode_token(token) + SIGNATURE
    assert decode_token(raw) == (token, SIGNATURE)
    assert token_bytes(f" {token_text(raw)}\n") == raw


def test_the_longest_token_fits_into_its_field() -> None:
    assert len(encode_token(TOKEN._replace(holder="x" * HOLDER_BYTES_MAX)) + SIGNATURE) <= REGISTRATION_BYTES_MAX


@pytest.mark.parametrize(
    "change",
    [
        {"vaults": 0},
        {"vaults": TOKEN_VAULTS_MAX + 1},
        {"expires": -1},
        {"expires": EXPIRES_MAX + 1},
        {"quota": -1},
        {"quota": QUOTA_MAX + 1},
        {"serial": b"short"},
        {"key_id": b"short"},
        {"holder": "ü" * HOLDER_BYTES_MAX},
    ],
)
def test_what_does_not_fit_is_not_encoded(change: dict[str, object]) -> None:
    with pytest.raises(LocalMisuse):
        encode_token(TOKEN._replace(**change))  # type: ignore[arg-type]


@given(st.binary(max_size=300))
def test_s19_rubbish_is_a_typed_error(rubbish: bytes) -> None:
    for raw in (rubbish, b"\1" + rubbish, RAW[:30] + rubbish):
        try:
            decode_token(raw)
        except DecodeError:
            continue


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\2" + RAW[1:],
        RAW[:-1],
        RAW + b"\0",
        RAW[:33] + bytes(4) + RAW[37:],
        RAW[:33] + b"\xff" * 4 + RAW[37:],
        RAW[:25] + b"\xff" * 8 + RAW[33:],
        RAW[:37] + b"\xff" * 8 + RAW[45:],
        RAW[:45] + b"\xff" + RAW[46:],
        RAW[:46] + b"\xff" + RAW[47:],
    ],
    ids=["empty", "format", "cut", "long", "no-vaults", "vaults", "expires", "quota", "length", "utf-8"],
)
def test_a_damaged_token_is_none(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_token(raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TOKEN_PREFIX,
        token_text(RAW)[:-1],
        token_text(RAW) + "=",
        token_text(RAW).removeprefix(TOKEN_PREFIX),
        "sealwire:" + token_text(RAW).removeprefix(TOKEN_PREFIX),
        TOKEN_PREFIX + "ü",
        TOKEN_PREFIX + "A" * 10_000,
    ],
)
def test_a_text_that_is_no_token_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(LocalMisuse, match="copy the whole text"):
        token_bytes(text)


@pytest.mark.parametrize(
    "text", [token_text(RAW) + "A", token_text(RAW) + "AAAA", token_text(RAW)[:-1], f"{TOKEN_PREFIX}ü"]
)
def test_a_token_that_was_changed_is_told_from_a_text_that_is_none(text: str) -> None:
    with pytest.raises(LocalMisuse, match="was changed on its way, or cut off"):
        token_bytes(text)
    with pytest.raises(LocalMisuse, match="begins with 'sealwire-token:'"):
        token_bytes(text.removeprefix(TOKEN_PREFIX))
