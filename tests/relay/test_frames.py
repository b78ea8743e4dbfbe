"""WebSocket frames: what comes in cut anywhere is whole, what goes out is understood by others, lies are refused."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from sealwire_protocol.errors import CloseCode, RemoteFault
from sealwire_relay.frames import PING_FRAME, FrameReader, binary_frame, close_frame, pong_frame
from tests.support.stranger import BINARY, CLOSE, CONT, PING, PONG, TEXT, frame

MAX = 100_000


def read_by_client(data: bytes) -> list[Frame]:
    """What a client of another make sees."""
    client = ClientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None)
    client.receive_data(data)
    return [event for event in client.events_received() if isinstance(event, Frame)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
def test_what_goes_out_is_understood(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    (seen,) = read_by_client(binary_frame(payload))
    assert (seen.opcode, bytes(seen.data), seen.fin) == (Opcode.BINARY, payload, True)


def test_control_frames_are_understood() -> None:
    assert [f.opcode for f in read_by_client(PING_FRAME + pong_frame(b"x"))] == [Opcode.PING, Opcode.PONG]
    (seen,) = read_by_client(close_frame(CloseCode.TOO_SLOW, "too slow"))
    assert Close.parse(seen.data) == Close(4001, "too slow")


def test_a_long_reason_is_cut_at_a_character() -> None:
    (seen,) = read_by_client(close_frame(4100, "ü" * 100))
    assert Close.parse(seen.data) == Close(4100, "ü" * 61)


@given(
    st.lists(st.tuples(st.sampled_from([BINARY, PING, PONG]), st.binary(max_size=120)), max_size=8),
    st.lists(st.integers(0, 1500), max_size=12),
)
def test_however_the_bytes_are_cut_the_messages_are_the_same(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(opcode, payload) for opcode, payload in sent)
    reader = FrameReader(MAX)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    seen = [found for a, b in itertools.pairwise(places) for found in reader.feed(data[a:b])]
    assert seen == sent
    assert not reader.incomplete


@pytest.mark.parametrize("size", [126, 65_535, 65_536, MAX])
def test_large_messages_come_through_in_pieces(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    data = frame(BINARY, payload) + frame(PING)
    reader = FrameReader(MAX)
    seen = [found for at in range(0, len(data), 4096) for found in reader.feed(data[at : at + 4096])]
    assert seen == [(BINARY, payload), (PING, b"")]


def test_fragments_are_joined_and_control_frames_may_come_between() -> None:
    reader = FrameReader(MAX)
    assert list(reader.feed(frame(BINARY, b"ab", fin=False) + frame(PING, b"?"))) == [(PING, b"?")]
    assert reader.incomplete
    assert list(reader.feed(frame(CONT, b"c", fin=False) + frame(CONT, b"d"))) == [(BINARY, b"abcd")]
    assert not reader.incomplete


def test_nothing_is_held_between_messages() -> None:
    reader = FrameReader(MAX)
    list(reader.feed(frame(BINARY, bytes(1000))))
    assert (reader._reader, reader._parser, reader._fragments) == (None, None, None)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"x"), CloseCode.PROTOCOL_ERROR),
        (frame(BINARY, b"x", masked=False), CloseCode.PROTOCOL_ERROR),
        (frame(BINARY, b"x", rsv=1), CloseCode.PROTOCOL_ERROR),
        (frame(11, b"x"), CloseCode.PROTOCOL_ERROR),
        (frame(CLOSE, fin=False), CloseCode.PROTOCOL_ERROR),
        (frame(CONT), CloseCode.PROTOCOL_ERROR),
        (frame(BINARY, fin=False) + frame(BINARY), CloseCode.PROTOCOL_ERROR),
        (frame(BINARY, length=MAX + 1)[:14], CloseCode.TOO_LARGE),
        (frame(BINARY, length=2**63 - 1)[:14], CloseCode.TOO_LARGE),
        (frame(PING, length=2**63 - 1)[:14], CloseCode.TOO_LARGE),
        (frame(BINARY, bytes(MAX), fin=False) + frame(CONT, b"x"), CloseCode.TOO_LARGE),
    ],
)
def test_what_is_forbidden_is_refused_at_once(sent: bytes, code: CloseCode) -> None:
    with pytest.raises(RemoteFault) as caught:
        list(FrameReader(MAX).feed(sent))
    assert caught.value.code is code


def test_the_limit_may_be_raised_between_two_frames() -> None:
    reader = FrameReader(10)
    seen = []
    for opcode, payload in reader.feed(frame(BINARY, bytes(10)) + frame(BINARY, bytes(20))):
        seen.append((opcode, len(payload)))
        reader.bytes_max = 20
    assert seen == [(BINARY, 10), (BINARY, 20)]


@given(st.binary(max_size=300))
def test_s19_rubbish_is_refused_or_waited_on_and_nothing_else(data: bytes) -> None:
    try:
        for opcode, payload in FrameReader(MAX).feed(data):
            assert opcode in (BINARY, PING, PONG, CLOSE)
            assert len(payload) <= len(data)
    except RemoteFault:
        pass
