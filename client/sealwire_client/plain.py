"""Plain values and their one encoding: the part of CBOR (RFC 8949) that values use, read strictly.

Plain are None, booleans, integers of 64 bits, floats, text, bytes, lists and maps with text keys, and `undefined`
for a place that belongs to no field. Integers are written in their shortest form, floats in 64 bits; maps keep
the order in which they are given, so whoever makes one sorts it by `map_order`. Tags and indefinite lengths
are refused before anything is decoded: some tags make a decoder compile, share or compute without bound.
"""

import io
import os
import re
import threading
from collections.abc import Sequence
from typing import Any, Final

import cbor2

UNDEFINED: Final[Any] = cbor2.undefined
"""Stands where there is no value; so such a place is also written."""

_MAYBE_TAGGED: Final = re.compile(rb"[\xc0-\xdb]")
_FAR: Final = 24

_MARK: Final = b"\x50" + os.urandom(8).hex().encode()
"""Stands after each of several encodings that are read at once: 16 bytes, encoded, which look like no tag. Who wrote
the others could not know them."""

DEPTH_MAX: Final = 64
"""Lists and maps within each other: far more than an entity has, far fewer than a stack holds."""


class EncodingError(ValueError):
    """A value that cannot be kept, or bytes that are no value of the schema at hand."""


class _Coder:
    """A reader and a writer that are used again and again: making them costs more than using them."""

    __slots__ = ("_buffer", "_encode", "read")

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._encode = cbor2.CBOREncoder(self._buffer).encode
        self.read = cbor2.CBORDecoder(io.BytesIO(b""), max_depth=DEPTH_MAX).decode_from_bytes

    def write(self, value: object) -> bytes:
        buffer = self._buffer
        buffer.seek(0)
        buffer.truncate()
        self._encode(value)
        return buffer.getvalue()


_local = threading.local()


def _coder() -> _Coder:
    try:
        coder: _Coder = _local.coder
    except AttributeError:
        coder = _local.coder = _Coder()
    return coder


def dump(plain: object) -> bytes:
    """The encoding of a plain value. Raises EncodingError for what is not plain."""
    try:
        return _coder().write(plain)
    except (cbor2.CBOREncodeError, UnicodeError, RecursionError) as error:
        del _local.coder
        raise EncodingError(f"a value cannot be encoded ({error})") from None


def load(raw: bytes) -> Any:
    """A plain value from its encoding. Raises EncodingError, and nothing else, for any other bytes."""
    if _MAYBE_TAGGED.search(raw):
        check_layout(raw)
    try:
        return _coder().read(raw)
    except Exception:  # bytes can make the library raise what it does not promise; none of it is ours to fix
        del _local.coder
    raise EncodingError("a value's bytes are damaged, or were written by something else than this program")


def load_columns(raws: Sequence[bytes], width: int) -> list[list[Any]] | None:
    """What stands at each place of arrays of so many plain values, from their encodings, in a third of the time. None
    unless each is whole, with nothing behind it, and just as `dump` writes it. Raises nothing."""
    head, count, step = _array(width), len(raws), width + 1
    bodies = [raw.removeprefix(head) for raw in raws]
    if sum(map(len, bodies)) + count * len(head) != sum(map(len, raws)):
        return None
    try:
        # All are read as one array. One that is cut off reads on into a mark, one that goes on stands before it.
        joined = _MARK.join([*bodies, b""])
        if not joined.isascii():
            for raw in filter(_MAYBE_TAGGED.search, raws):
                check_layout(raw)
        joined = _array(count * step) + joined
        found: Any = _coder().read(joined)
        if found[width::step] == [_MARK[1:]] * count and _coder().write(found) == joined:
            return [found[place::step] for place in range(width)]
    except EncodingError:
        pass
    except Exception:  # as in `load`
        del _local.coder
    return None


def _array(count: int) -> bytes:
    """What an array of so many items begins with, in its shortest form."""
    if count < _FAR:
        return bytes((0x80 | count,))
    wide = (count.bit_length() - 1) // 8
    return bytes((0x98 + wide.bit_length(),)) + count.to_bytes(1 << wide.bit_length(), "big")


def check_layout(raw: bytes) -> None:
    """Walk over one encoded value without decoding it. Raises EncodingError unless it is whole, and plain."""
    at, left, end = 0, 1, len(raw)
    while left and at < end:
        head = raw[at]
        at, left = at + 1, left - 1
        count = head & 0x1F
        if count >= _FAR:
            wide = 1 << count - _FAR
            if count > _FAR + 3 or at + wide > end:
                break
            count = int.from_bytes(raw[at : at + wide], "big")
            at += wide
        if head < 0x40:
            continue
        if head < 0x80:
            at += count
        elif head < 0xA0:
            left += count
        elif head < 0xC0:
            left += 2 * count
        elif head < 0xE0:
            break
    else:
        if not left and at == end:
            return
    raise EncodingError("a value's bytes are cut off, or hold something that is not a plain value")


def map_order(item: tuple[str, object]) -> tuple[int, bytes]:
    """The sorting key of a map's items: RFC 8949's order of encoded keys."""
    raw = item[0].encode()
    return len(raw), raw
