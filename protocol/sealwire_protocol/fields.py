"""How each kind of field is laid out. Integers are big-endian; a varint is unsigned LEB128 below 2^63."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.ids import TERM_ID_BYTES, Position, Term, TermStart
from sealwire_protocol.limits import TERMS_TOLD_MAX, TEXT_BYTES_MAX
from sealwire_protocol.segment import RANK_BYTES, decode_varint, encode_varint


class Field:
    """Writes one value to the end of a buffer, and reads one from a place in it."""

    name = "field"

    def write(self, out: bytearray, value: Any) -> None:
        """Append `value`. Raises LocalMisuse if it does not fit."""
        raise LocalMisuse(f"{type(self).__name__} cannot be written")

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """(value, where the next field begins). Raises DecodeError."""
        raise LocalMisuse(f"{type(self).__name__} cannot be read")


class Unsigned(Field):
    """An unsigned integer of a fixed number of bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"u{size * 8}"

    def write(self, out: bytearray, value: int) -> None:
        try:
            out += value.to_bytes(self.size, "big")
        except OverflowError as error:
            raise LocalMisuse(f"{value} does not fit into a {self.name}") from error

    def read(self, data: bytes, at: int) -> tuple[int, int]:
        end = at + self.size
        if end > len(data):
            raise DecodeError(f"a {self.name} is cut off")
        return int.from_bytes(data[at:end], "big"), end


class Varint(Field):
    """An unsigned LEB128 number below 2^63, in its shortest form."""

    name = "varint"

    def write(self, out: bytearray, value: int) -> None:
        out += encode_varint(value)

    def read(self, data: bytes, at: int) -> tuple[int, int]:
        return decode_varint(data, at)


class Fixed(Field):
    """Exactly so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"bytes[{size}]"

    def write(self, out: bytearray, value: bytes) -> None:
        if len(value) != self.size:
            raise LocalMisuse(f"a field of {self.size} bytes was given {len(value)}")
        out += value

    def read(self, data: bytes, at: int) -> tuple[bytes, int]:
        end = at + self.size
        if end > len(data):
            raise DecodeError(f"a field of {self.size} bytes is cut off")
        return data[at:end], end


class Sized(Field):
    """Bytes after their length, with a limit that is checked before anything is copied."""

    def __init__(self, prefix: int, most: int) -> None:
        self.prefix, self.most = prefix, most
        self.name = f"bytes(u{prefix * 8} length, ≤ {most})"

    def write(self, out: bytearray, value: bytes) -> None:
        if len(value) > self.most:
            raise LocalMisuse(f"a field of at most {self.most} bytes was given {len(value)}")
        out += len(value).to_bytes(self.prefix, "big")
        out += value

    def read(self, data: bytes, at: int) -> tuple[bytes, int]:
        begin = at + self.prefix
        size = int.from_bytes(data[at:begin], "big")
        end = begin + size
        if begin > len(data) or end > len(data):
            raise DecodeError("a length points past the end of the message")
        if size > self.most:
            raise DecodeError(f"a field of {size} bytes is over its limit of {self.most}")
        return data[begin:end], end


class Bytes16(Sized):
    """Bytes after a u16 length."""

    def __init__(self, most: int) -> None:
        super().__init__(2, most)


class Bytes32(Sized):
    """Bytes after a u32 length."""

    def __init__(self, most: int) -> None:
        super().__init__(4, most)


class Text(Field):
    """UTF-8 after a u16 length in bytes."""

    def __init__(self, most: int = TEXT_BYTES_MAX) -> None:
        self.sized = Sized(2, most)
        self.name = f"text(u16 length, ≤ {most})"

    def write(self, out: bytearray, value: str) -> None:
        try:
            raw = value.encode()
        except UnicodeEncodeError as error:
            raise LocalMisuse("a text cannot be written as UTF-8") from error
        self.sized.write(out, raw)

    def read(self, data: bytes, at: int) -> tuple[str, int]:
        raw, at = self.sized.read(data, at)
        try:
            return raw.decode(), at
        except UnicodeDecodeError as error:
            raise DecodeError("a text is not UTF-8") from error


class Enumerated(Field):
    """A member of a closed set. An unknown number reads as `other`, or is refused where there is none."""

    def __init__(self, size: int, kind: type[IntEnum], other: IntEnum | None = None) -> None:
        self.number, self.kind, self.other = Unsigned(size), kind, other
        self.name = f"u{size * 8} {kind.__name__}"

    def write(self, out: bytearray, value: IntEnum) -> None:
        self.number.write(out, int(value))

    def read(self, data: bytes, at: int) -> tuple[IntEnum, int]:
        number, at = self.number.read(data, at)
        try:
            return self.kind(number), at
        except ValueError as error:
            if self.other is not None:
                return self.other, at
            raise DecodeError(f"{number} is no {self.kind.__name__}") from error


class TermField(Field):
    """A term: varint number, 8-byte id."""

    name = "term"

    def write(self, out: bytearray, value: Term) -> None:
        if len(value.id) != TERM_ID_BYTES:
            raise LocalMisuse(f"a term's id has {TERM_ID_BYTES} bytes, not {len(value.id)}")
        out += encode_varint(value.number)
        out += value.id

    def read(self, data: bytes, at: int) -> tuple[Term, int]:
        number, at = decode_varint(data, at)
        end = at + TERM_ID_BYTES
        if end > len(data):
            raise DecodeError("a term is cut off")
        return Term(number, data[at:end]), end


class Row(Field):
    """Several fields in a row, read into a NamedTuple."""

    def __init__(self, name: str, kind: type[Any], fields: Sequence[Field]) -> None:
        self.name, self.kind, self.fields = name, kind, tuple(fields)

    def write(self, out: bytearray, value: Sequence[Any]) -> None:
        for field, part in zip(self.fields, value, strict=True):
            field.write(out, part)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        parts = []
        for field in self.fields:
            part, at = field.read(data, at)
            parts.append(part)
        return self.kind(*parts), at


class Later(Field):
    """A field that was appended within a version: an older writer leaves it out, which means `absent`."""

    def __init__(self, field: Field, absent: Any) -> None:
        self.field, self.absent, self.name = field, absent, field.name

    def write(self, out: bytearray, value: Any) -> None:
        self.field.write(out, value)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        return self.field.read(data, at) if at < len(data) else (self.absent, at)


class ListOf(Field):
    """A u16 count and that many items; read into a tuple. Every item takes at least one byte."""

    def __init__(self, item: Field, most: int) -> None:
        self.item, self.most = item, most
        self.name = f"list(u16 count, ≤ {most}) of {item.name}"

    def write(self, out: bytearray, value: Sequence[Any]) -> None:
        if len(value) > self.most:
            raise LocalMisuse(f"a list of at most {self.most} was given {len(value)}")
        out += len(value).to_bytes(2, "big")
        for part in value:
            self.item.write(out, part)

    def read(self, data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        count = int.from_bytes(data[at : at + 2], "big")
        at += 2
        if at > len(data) or count > len(data) - at:
            raise DecodeError("a count promises more than the message holds")
        if count > self.most:
            raise DecodeError(f"a list of {count} is over its limit of {self.most}")
        parts = []
        for _ in range(count):
            part, at = self.item.read(data, at)
            parts.append(part)
        return tuple(parts), at


U8: Final = Unsigned(1)
U16: Final = Unsigned(2)
U32: Final = Unsigned(4)
VARINT: Final = Varint()
FIXED4: Final = Fixed(4)
FIXED8: Final = Fixed(8)
FIXED16: Final = Fixed(16)
RANK: Final = Fixed(RANK_BYTES)
FIXED32: Final = Fixed(32)
FIXED64: Final = Fixed(64)
TERM: Final = TermField()
POSITION: Final = Row("position", Position, (TERM, VARINT))
TERM_START: Final = Row("term start", TermStart, (TERM, VARINT))
TERM_STARTS: Final = ListOf(TERM_START, TERMS_TOLD_MAX)
