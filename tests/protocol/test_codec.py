"""The one parser of strangers' bytes: round trips, rubbish, lies about lengths (S17), typed errors only (S19)."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_protocol.codec import decode, encode
from sealwire_protocol.errors import Action, CloseCode, DecodeError, FaultCode, LocalMisuse
from sealwire_protocol.ids import Term
from sealwire_protocol.limits import FRAME_BYTES_MAX, LINK_BYTES_MAX, SUBSCRIBE_STREAMS_MAX
from sealwire_protocol.links import decode_link, decode_links
from sealwire_protocol.messages import BY_TYPE, CRITICAL, NO_VAULT, Ack, Done, Fault, Hello, Message, Prove, Push
from sealwire_protocol.segment import finished, read_segment, surveying
from tests.protocol.examples import T1
from tests.protocol.strategies import any_message, messages_of
from tests.protocol.vectors import FULL, full_message

quick = settings(max_examples=25)
thorough = settings(max_examples=150)

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "message": decode,
    "link": decode_link,
    "links": decode_links,
    "segment": lambda data: list(read_segment(data, 0)),
    "survey": lambda data: finished(surveying(data)),
}


@pytest.mark.parametrize("kind", BY_TYPE.values(), ids=lambda kind: kind.__name__)
def test_what_is_encoded_is_decoded_to_the_same(kind: type[Message]) -> None:
    @quick
    @given(messages_of(kind))
    def round_trip(message: Message) -> None:
        data = encode(message)
        assert data[0] == kind.TYPE and decode(data) == message and encode(message) == data

    round_trip()


@thorough
@given(any_message, st.binary(max_size=20))
def test_appended_fields_are_skipped(message: Message, more: bytes) -> None:
    assert decode(encode(message) + more) == message


@pytest.mark.parametrize("name", DECODERS)
def test_s19_rubbish_gives_a_typed_error_or_a_value(name: str) -> None:
    starts = st.sampled_from([bytes([byte]) for byte in BY_TYPE] + [b"", b"\0\x10", b"\1\1"])

    @thorough
    @given(starts, st.binary(max_size=300))
    def feed(start: bytes, rest: bytes) -> None:
        tolerated(DECODERS[name], start + rest)

    feed()


@thorough
@given(any_message, st.data())
def test_s19_a_damaged_message_gives_a_typed_error_or_a_message(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    tolerated(decode, bytes(raw[:cut]))


def tolerated(decoder: Callable[[bytes], Any], data: bytes) -> None:
    """Decode; the one error allowed is DecodeError."""
    try:
        decoder(data)
    except DecodeError:
        return


def test_unknown_types_below_the_mark_are_ignored_and_above_it_refused() -> None:
    for byte in range(256):
        if byte in BY_TYPE:
            continue
        if byte < CRITICAL:
            assert decode(bytes([byte]) + b"anything") is None
        else:
            with pytest.raises(DecodeError, match="newer version"):
                decode(bytes([byte]))


def test_types_say_who_may_send_them() -> None:
    from_device = {byte for byte in BY_TYPE if byte < 0xC0}
    assert all(byte >= CRITICAL for byte in BY_TYPE) and len(from_device) == 14


# --- limits


def test_s17_a_message_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(b"\xc2" + bytes(FRAME_BYTES_MAX))
    assert caught.value.code is CloseCode.TOO_LARGE


LIES = {
    "count of streams": b"\x85" + bytes(16) + b"\xff\xff",
    "count of positions": b"\x86" + bytes(4) + b"\xff\xff" + bytes(100),
    "length of a segment": b"\xc4" + bytes(16 + 8 + 9 + 6) + b"\xff\xff\xff\xff" + bytes(50),
    "length of a link": b"\x82" + bytes(4) + b"\xff\xff" + bytes(50),
    "length of records": b"\x87" + bytes(16 + 9 + 1 + 1) + b"\0\1" + bytes(8 + 4) + b"\x7f\xff\xff\xff",
    "count of refused": b"\xc5" + bytes(16 + 1 + 1) + b"\0\0" + b"\xff\xff" + bytes(60_000),
    "count of terms": b"\xc3" + bytes(16 + 9 + 2 + 4 + 1) + b"\0\1" + bytes(8 + 1 + 6) + b"\xff\xff",
    "length of a text": b"\x81\xff\xff" + bytes(64),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_s17_a_lying_length_or_count_sets_no_memory_aside(lie: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(lie)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(lie)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(lie) * 3 + 20_000


def test_s17_memory_stays_in_proportion_to_the_message() -> None:
    data = (
        b"\xc5" + bytes(16 + 1 + 1) + b"\0\0" + (4_096).to_bytes(2, "big") + bytes([0, 0, 0, 1, 0, 0, 0, 0, 0]) * 4_096
    )
    tracemalloc.start()
    try:
        assert decode(data) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * len(data)


def test_a_list_over_its_limit_is_refused_though_all_of_it_is_there() -> None:
    item = bytes(8 + 10 + 10)
    count = SUBSCRIBE_STREAMS_MAX + 1
    with pytest.raises(DecodeError, match="limit"):
        decode(b"\x85" + bytes(16) + count.to_bytes(2, "big") + item * count)


def test_bytes_over_their_limit_are_refused_though_all_of_them_are_there() -> None:
    for size, limit in ((LINK_BYTES_MAX, True), (LINK_BYTES_MAX + 1, False)):
        data = b"\x82" + bytes(4) + size.to_bytes(2, "big") + bytes(size)
        if limit:
            assert decode(data) is not None
        else:
            with pytest.raises(DecodeError, match="limit"):
                decode(data)


def test_unknown_members_of_closed_sets_are_refused_or_read_as_the_page_says() -> None:
    fault = bytearray(encode(Fault(0, NO_VAULT, FaultCode.QUOTA, Action.STOP, 0, "")))
    fault[21:24] = b"\x7f\xff\x7f"
    assert decode(bytes(fault)) == Fault(0, NO_VAULT, FaultCode.INTERNAL, Action.RETRY, 0, "")
    pushed = bytearray(encode(next(m for m in FULL if m.TYPE == 0xC5)))
    pushed[19] = 99
    with pytest.raises(DecodeError, match="99 is no Outcome"):
        decode(bytes(pushed))


@pytest.mark.parametrize("number", (b"\x80\x00", b"\x81\x80\x00", b"\x80" * 9 + b"\x01", b"\xff" * 10))
def test_a_number_has_one_form_only(number: bytes) -> None:
    with pytest.raises(DecodeError, match="number"):
        decode(b"\x87" + bytes(16) + number + bytes(50))


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DecodeError, match="UTF-8"):
        decode(b"\x81\0\1\xff" + bytes(64))


# --- our own mistakes

MISTAKES: dict[str, Message] = {
    "a number too large": Done(1 << 32),
    "a number below zero": Done(-1),
    "a key too short": replace(full_message(Hello), nonce=bytes(31)),
    "a text too long": Prove("o" * 1_025, bytes(64)),
    "a text that is no text": Prove("\ud800", bytes(64)),
    "a term's id too short": Push(NO_VAULT, Term(1, b""), 1, 0, ()),
    "a varint too large": Push(NO_VAULT, T1, 1 << 63, 0, ()),
    "a list too long": Ack(0, full_message(Ack).positions * 200),
}


@pytest.mark.parametrize("message", MISTAKES.values(), ids=MISTAKES.keys())
def test_what_does_not_fit_its_layout_is_our_mistake(message: Message) -> None:
    with pytest.raises(LocalMisuse):
        encode(message)
