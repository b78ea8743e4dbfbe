"""The receiver in C counts what comes, and answers as a device does."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness import load
from bench.harness.load import NO_COMPILER, Opened, Receiver, Speech, built, compiler, receiving
from bench.harness.processes import Missing, places
from sealwire_protocol import codec
from sealwire_protocol.ids import Position, StreamId, Term, VaultId
from sealwire_protocol.messages import Ack, Acked, Deliver
from sealwire_relay.frames import FrameReader, binary_frame

VAULT, STREAM, TERM = VaultId(b"v" * 16), StreamId(b"s" * 8), Term(300, b"t" * 8)
WAIT_S = 60.0

pytestmark = pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)


def deliver(prev: int, last: int, size: int = 40) -> bytes:
    return codec.encode(Deliver(VAULT, STREAM, TERM, 0, 0, 0, 0, prev, last, bytes(size)))


@contextlib.contextmanager
def reading(
    folder: Path, speech: Speech = "sealwire", rest: bytes = b"", **options: int
) -> Iterator[tuple[socket.socket, Receiver]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(WAIT_S)
    with ours:
        with receiving([Opened(theirs, rest)], speech, places().load, folder / "log", **options) as receiver:
            yield ours, receiver


def answer(ours: socket.socket) -> tuple[int, bytes]:
    """The next frame that it sends, as a relay reads it."""
    reader, frames = FrameReader(1_000), list[tuple[int, bytes]]()
    while not frames:
        frames = [(int(opcode), payload) for opcode, payload in reader.feed(ours.recv(1_000))]
    return frames[0]


def sent(ours: socket.socket, *frames: bytes) -> None:
    """Send these, and return when they have been counted: a ping behind them is answered then."""
    ours.sendall(b"".join(frames) + b"\x89\x01!")
    while answer(ours) != (10, b"!"):
        pass


def test_records_are_counted_by_their_seqs_and_credit_is_given_back_with_the_position(tmp_path: Path) -> None:
    one, two = deliver(0, 1), deliver(1, 500, size=70_000)
    with reading(tmp_path, ack_bytes=len(one) + len(two)) as (ours, receiver):
        sent(ours, binary_frame(one))
        ours.sendall(binary_frame(two))
        opcode, payload = answer(ours)
        assert opcode == 2
        assert codec.decode(payload) == Ack(len(one) + len(two), (Acked(VAULT, STREAM, Position(TERM, 500)),))
        counts = receiver.look()
        assert (counts.frames, counts.records, counts.bytes) == (2, 500, len(one) + len(two))
        assert (counts.acks, counts.least, counts.most) == (1, 500, 500)
        receiver.zero()
        assert receiver.look().records == 0


def test_credit_is_given_back_after_a_second_too(tmp_path: Path) -> None:
    with reading(tmp_path) as (ours, _):
        ours.sendall(binary_frame(deliver(0, 1)))
        assert answer(ours)[0] == 2


def test_frames_may_come_in_any_pieces(tmp_path: Path) -> None:
    stream = b"".join(binary_frame(deliver(seq, seq + 2, size=10 + 90 * seq)) for seq in range(0, 40, 2))
    with reading(tmp_path, rest=stream[:1]) as (ours, receiver):
        for at in range(1, len(stream), 7):
            ours.sendall(stream[at : at + 7])
        sent(ours)
        counts = receiver.look()
        assert (counts.frames, counts.records) == (20, 40)


def test_a_stamp_tells_how_long_a_frame_took(tmp_path: Path) -> None:
    with reading(tmp_path, "plain", stamp_at=8) as (ours, receiver):
        sent(ours, binary_frame(b"words" + (0).to_bytes(8, "big")))
        counts = receiver.look()
        assert counts.stamped == 1
        assert counts.p50_ms == counts.max_ms > 0


def test_socketio_is_a_text_that_begins_with_42_or_a_binary_frame_and_is_kept_alive(tmp_path: Path) -> None:
    with reading(tmp_path, "socketio") as (ours, receiver):
        sent(ours, b'\x81\x0842["r,1"', b'\x81\x0a451-["r",{', binary_frame(b"binary"))
        ours.sendall(b"\x81\x012")
        assert ours.recv(7) == b"\x81\x81\0\0\0\x003"
        assert receiver.look().records == 2


def test_that_a_server_hangs_up_is_told(tmp_path: Path) -> None:
    with reading(tmp_path, "plain") as (ours, receiver):
        sent(ours, b"\x88\x00")
        with pytest.raises(RuntimeError, match="1 of 1 connections were closed"):
            receiver.look()


def test_without_a_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Missing, match="receive: there is no C compiler here: install gcc or clang"):
        built("receive")


def test_what_does_not_compile_is_missing_for_what_the_compiler_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho no stdio.h >&2; exit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(load, "BUILD", tmp_path / "build")
    with pytest.raises(Missing, match=r"cc says: no stdio\.h"):
        built("receive")
