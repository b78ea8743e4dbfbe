"""What is laid out by hand is what the codec makes of the fields one by one, and never anything else."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_protocol.codec import decode, decode_fields, encode, encode_fields
from sealwire_protocol.errors import DecodeError, LocalMisuse, Outcome
from sealwire_protocol.ids import Position, StreamId, Term, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Ack, Acked, Appended, Group, Message, Push, Pushed
from sealwire_protocol.plain import lay_pushed, read_ack, read_push
from tests.protocol.strategies import messages_of

often = settings(max_examples=200)

VAULT, STREAM, TERM = VaultId(b"v" * 16), StreamId(b"s" * 8), Term(300, b"t" * 8)
PUSH = Push(VAULT, TERM, 70_000, 0, (Group(STREAM, b"", b"records"),))
PUSHED = Pushed(VAULT, 70_000, Outcome.DONE, (Appended(STREAM, TERM, 1 << 40, 3),), ())
ACK = Ack(70_000, (Acked(VAULT, STREAM, Position(TERM, 1 << 40)),))

REFUSED = "refused"


def read(decoder: Callable[[bytes], Message | None], data: bytes) -> object:
    """What comes of it."""
    try:
        return decoder(data)
    except DecodeError:
        return REFUSED


@often
@given(messages_of(Push), st.binary(max_size=3))
def test_a_push_is_read_alike(push: Message, more: bytes) -> None:
    data = encode(push) + more
    assert read_push(data) in (None, push)
    assert decode(data) == push


@often
@given(messages_of(Ack), st.binary(max_size=3))
def test_an_ack_is_read_alike(ack: Message, more: bytes) -> None:
    data = encode(ack) + more
    assert read_ack(data) in (None, ack)
    assert decode(data) == ack


@pytest.mark.parametrize("whole", [PUSH, ACK], ids=["push", "ack"])
@often
@given(data=st.data())
def test_what_is_damaged_is_read_or_refused_alike(whole: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(whole))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(1, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(raw[: data.draw(st.integers(1, len(raw)))])
    assert read(decode, damaged) == read(decode_fields, damaged)


@often
@given(messages_of(Pushed))
def test_a_verdict_is_laid_alike(pushed: Message) -> None:
    assert isinstance(pushed, Pushed)
    assert lay_pushed(pushed) in (None, encode_fields(pushed))
    assert encode(pushed) == encode_fields(pushed)


def test_plain_ones_are_laid_out_by_hand() -> None:
    assert read_push(encode(PUSH)) == PUSH
    assert read_ack(encode(ACK)) == ACK
    assert lay_pushed(PUSHED) == encode_fields(PUSHED)


def test_a_group_over_its_limit_is_refused() -> None:
    large = bytearray(encode(replace(PUSH, groups=(Group(STREAM, b"", bytes(SEGMENT_BYTES_MAX)),))))
    assert decode(bytes(large)) is not None
    size_at = len(large) - SEGMENT_BYTES_MAX - 4
    large[size_at : size_at + 4] = (SEGMENT_BYTES_MAX + 1).to_bytes(4, "big")
    with pytest.raises(DecodeError, match="over its limit"):
        decode(bytes(large) + b"\0")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(PUSHED, vault=VaultId(b"short")),
        replace(PUSHED, batch=-1),
        replace(PUSHED, appended=(Appended(StreamId(b"short"), TERM, 1, 1),)),
        replace(PUSHED, appended=(Appended(STREAM, Term(1, b"short"), 1, 1),)),
    ],
)
def test_a_verdict_that_fits_no_layout_is_our_mistake(wrong: Pushed) -> None:
    with pytest.raises(LocalMisuse):
        encode(wrong)
