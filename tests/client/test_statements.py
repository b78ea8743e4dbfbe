"""The bytes of statements, and of what they sum up, as the protocol specifies them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_client.cipher import Secret
from sealwire_client.identity import DeviceIdentity
from sealwire_client.sealing import Stream, summer
from sealwire_client.statements import STATEMENT_CONTEXT, Statement, entry_of, is_signed_by, read, signed
from sealwire_protocol.ids import Author, Position, StreamId, Term, VaultId
from sealwire_protocol.segment import Rank

VAULT, STREAM = VaultId(b"v" * 16), StreamId(b"stream_8")
SAID = Statement(VAULT, STREAM, Author(7), Position(Term(3, b"term____"), 258), b"s" * 32)
DEVICE = DeviceIdentity(Secret(b"d" * 32))


def test_a_statement_is_laid_out_as_specified() -> None:
    raw = signed(DEVICE, SAID)
    laid_out = (
        b"\1" + VAULT + STREAM + bytes((0, 0, 0, 7)) + bytes(7) + b"\3" + b"term____" + bytes(6) + b"\1\2" + b"s" * 32
    )
    assert raw[:-64] == laid_out
    assert raw[-64:] == DEVICE.sign(STATEMENT_CONTEXT + laid_out)
    assert STATEMENT_CONTEXT == b"sealwire statement v1\0"
    assert read(raw) == SAID
    assert is_signed_by(raw, DEVICE.device_key)
    assert entry_of(Author(7), STREAM) == "7." + STREAM.hex()


def test_whoever_changes_a_statement_or_did_not_make_it_has_not_signed_it() -> None:
    raw = signed(DEVICE, SAID)
    for at in range(len(raw)):
        changed = raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]
        assert not is_signed_by(changed, DEVICE.device_key)
    assert not is_signed_by(raw, DeviceIdentity(Secret(b"e" * 32)).device_key)


@given(st.binary(max_size=200))
def test_s19_rubbish_is_no_statement(raw: bytes) -> None:
    said = read(raw)
    assert said is None or len(raw) == len(signed(DEVICE, SAID))
    assert not is_signed_by(raw, DEVICE.device_key)


def test_only_an_earlier_position_of_the_same_term_is_before() -> None:
    at = SAID.at
    assert SAID._replace(at=Position(at.term, 257)).is_before(SAID)
    assert not SAID.is_before(SAID)
    assert not SAID._replace(at=Position(Term(3, b"another_"), 257)).is_before(SAID)


@pytest.mark.parametrize(
    ("number", "name", "further", "may"),
    [
        (0, b"", 1, True),
        (0, b"", 0, False),
        (0, b"", -1, False),
        (0, b"another_", -1, True),
        (1, b"another_", -1, True),
        (-1, b"another_", 1, False),
    ],
)
def test_a_device_states_nothing_before_what_it_has_stated_nor_in_an_earlier_term(
    number: int, name: bytes, further: int, may: bool
) -> None:
    term, seq = SAID.at
    at = Position(Term(term.number + number, name or term.id), seq + further)
    assert SAID._replace(at=at).may_follow(SAID) is may


def test_what_an_entry_adds_to_a_sum_is_as_specified() -> None:
    rank = Rank(5, 2, Author(9), b"salt____").pack()
    key, person = b"k" * 32, b"sw sum 1"
    hashed = hashlib.blake2b(STREAM + rank + "käse".encode(), digest_size=32, key=key, person=person)
    assert summer(Stream(VAULT, STREAM, Secret(key)))([("käse", rank)]) == int.from_bytes(hashed.digest(), "big")
