"""WebSocket frames (RFC 6455) as the relay uses them: parsing by `websockets`, encoding once for many sockets."""

from collections.abc import Generator, Iterator
from typing import Final

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from sealwire_protocol.errors import CloseCode, RemoteFault

try:
    from websockets.speedups import apply_mask
except ImportError:  # not every wheel has it
    from websockets.utils import apply_mask

_BINARY: Final = 0x82
_CLOSE: Final = 0x88
_PING: Final = 0x89
_PONG: Final = 0x8A
_MASKED: Final = 0x80
_REASON_BYTES_MAX: Final = 123
"""RFC 6455 5.5: a control frame's payload is at most 125 bytes, two of which are the code."""


def binary_header(size: int) -> bytes:
    """What stands before the payload of a whole unmasked binary message of so many bytes."""
    if size < 126:
        return bytes((_BINARY, size))
    if size < 65_536:
        return b"\x82\x7e" + size.to_bytes(2, "big")
    return b"\x82\x7f" + size.to_bytes(8, "big")


def binary_frame(payload: bytes) -> bytes:
    """One whole unmasked binary message, header included."""
    return binary_header(len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; the reason is cut to what fits, at a character."""
    text = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()
    return bytes((_CLOSE, 2 + len(text))) + code.to_bytes(2, "big") + text


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping."""
    return bytes((_PONG, len(payload))) + payload


PING_FRAME: Final = bytes((_PING, 0))


class FrameReader:
    """Bytes in, whole messages and control frames out. Holds memory only while a message is incomplete.

    `bytes_max` is the largest message taken; it may be raised at any time, and counts from the next frame on.
    """

    __slots__ = ("_fragments", "_parser", "_reader", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._reader: StreamReader | None = None
        self._parser: Generator[None, None, Frame] | None = None
        self._fragments: bytearray | None = None

    @property
    def incomplete(self) -> bool:
        """True while the beginning of a message or frame is held, and its end is waited for."""
        return self._parser is not None or self._fragments is not None

    def feed(self, data: bytes) -> Iterator[tuple[Opcode, bytes]]:
        """(BINARY, message), (PING | PONG | CLOSE, payload) in order. Raises RemoteFault on what RFC 6455 or the
        size limit forbids; the length is checked before the payload is waited for."""
        if self._parser is None:
            at = 0
            while (found := self._simple(data, at)) is not None:
                payload, at = found
                yield Opcode.BINARY, payload
            if at == len(data):
                return
            data = data[at:]
        reader = self._reader or StreamReader()
        reader.feed_data(data)
        parser = self._parser
        while True:
            if parser is None:
                if not reader.buffer:
                    self._reader = self._parser = None
                    return
                parser = Frame.parse(reader.read_exact, mask=True, max_size=self.bytes_max)
            try:
                next(parser)
            except StopIteration as done:
                parser = None
                whole = self._whole(done.value)
                if whole is not None:
                    yield whole
                continue
            except PayloadTooBig as error:
                raise self._too_large() from error
            except ProtocolError as error:
                raise RemoteFault(f"not WebSocket: {error}") from error
            self._reader, self._parser = reader, parser
            return

    def _simple(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """The shape that nearly all frames have, whole and unfragmented, at a quarter of the cost: its payload and
        its end. None: anything else, which is the library's to understand or to refuse."""
        if self._fragments is not None or len(data) - at < 6 or data[at] != _BINARY:
            return None
        size, begin = data[at + 1] - _MASKED, at + 2
        if size == 126:
            size, begin = int.from_bytes(data[begin : begin + 2], "big"), begin + 2
        elif not 0 <= size < 126:
            return None
        end = begin + 4 + size
        if end > len(data) or size > self.bytes_max:
            return None
        return apply_mask(data[begin + 4 : end], data[begin : begin + 4]), end

    def _whole(self, frame: Frame) -> tuple[Opcode, bytes] | None:
        data = bytes(frame.data)
        if frame.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            return frame.opcode, data
        if frame.opcode is Opcode.TEXT:
            raise RemoteFault("text messages are not part of this protocol")
        if (frame.opcode is Opcode.CONT) != (self._fragments is not None):
            raise RemoteFault("a fragment is out of place")
        if self._fragments is None and frame.fin:
            return Opcode.BINARY, data
        fragments = self._fragments if self._fragments is not None else bytearray()
        if len(fragments) + len(data) > self.bytes_max:
            raise self._too_large()
        fragments += data
        self._fragments = None if frame.fin else fragments
        return (Opcode.BINARY, bytes(fragments)) if frame.fin else None

    def _too_large(self) -> RemoteFault:
        return RemoteFault(f"a message is over {self.bytes_max} bytes", CloseCode.TOO_LARGE)
