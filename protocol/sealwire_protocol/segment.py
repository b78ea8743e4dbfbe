"""Records and segments: the bytes that are stored, and sent as they are stored.

A segment is a run of records of one stream. Each is preceded by a varint that says how many seqs before it have
no record any more (0 in fresh segments). A record comes in two widths; the compact one is used iff all of
its numbers fit, so that one record has exactly one encoding and a replica can reproduce it:

    kind u8 = format<<4 | wide<<3 | flags      flags: 1 tombstone, 2 signed
    compact:  tag 16  version u32  author u8   epoch u8   key_id 4  salt 8  units u8
    wide:     tag 16  version u64  author u32  epoch u16  key_id 4  salt 8  units u16
    body:     units x 16 bytes of ciphertext, then 16 bytes of MAC

53 bytes a record beside the padded plaintext, its skip count included.
"""

from collections.abc import Generator, Iterable, Iterator
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple, TypeVar

from sealwire_protocol.errors import CloseCode, DecodeError, LocalMisuse
from sealwire_protocol.ids import KEY_ID_BYTES, TAG_BYTES, Author, KeyId, Tag
from sealwire_protocol.limits import PLAINTEXT_BYTES_MAX, VERSION_LAST

FORMAT: Final = 1
"""The format of the seal itself: cipher, nonce, context. Bound into every seal."""

TOMBSTONE: Final = 1
SIGNED: Final = 2
FLAGS_KNOWN: Final = TOMBSTONE | SIGNED

PROOF_BYTES: Final = 65
"""What a signed record has before its value: a kind, and its author's signature."""

PROOF_BYTES_MAX: Final = PROOF_BYTES + 68
"""The same with the signature of a member who vouches for it, and that member's author index."""

SALT_BYTES: Final = 8
MAC_BYTES: Final = 16
UNIT_BYTES: Final = 16
"""Padded plaintexts are multiples of this, up to 256 in single steps, then by Padmé, which keeps to it."""

_WIDE: Final = 8
_COMPACT_HEADER: Final = Struct(f">B{TAG_BYTES}sIBB{KEY_ID_BYTES}s{SALT_BYTES}sB")
_WIDE_HEADER: Final = Struct(f">B{TAG_BYTES}sQIH{KEY_ID_BYTES}s{SALT_BYTES}sH")
_RANK: Final = Struct(f">QHI{SALT_BYTES}s")
_KIND_COMPACT: Final = FORMAT << 4
_VARINT_BYTES_MAX: Final = 9
_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(0x80))

WALK_RECORDS: Final = 256
"""Of a pushed group between two pauses: a quarter of a millisecond."""

T = TypeVar("T")

SEQ_LAST: Final = (1 << 63) - 1
"""The greatest position that a varint, and a database's integer, can hold."""

RANK_BYTES: Final = _RANK.size
HEADER_BYTES_MIN: Final = _COMPACT_HEADER.size
OVERHEAD_BYTES_MIN: Final = 1 + HEADER_BYTES_MIN + MAC_BYTES


class Rank(NamedTuple):
    """The one order between two records of a tag (R1). Tuples of it compare as ranks do."""

    version: int
    epoch: int
    author: int
    salt: bytes

    def pack(self) -> bytes:
        """22 bytes that compare, byte by byte, as ranks do."""
        return _RANK.pack(*self)

    @classmethod
    def unpack(cls, packed: bytes) -> "Rank":
        """The inverse of `pack`."""
        return cls(*_RANK.unpack(packed))


class Record(NamedTuple):
    """One sealed version of one entry. `body` is ciphertext and MAC, as the cipher gives them."""

    tag: Tag
    version: int
    author: Author
    epoch: int
    key_id: KeyId
    flags: int
    salt: bytes
    body: bytes

    @property
    def rank(self) -> Rank:
        """Which record of this tag wins: the one of greatest rank."""
        return Rank(self.version, self.epoch, self.author, self.salt)

    def __repr__(self) -> str:
        return f"<Record v{self.version} author={self.author} epoch={self.epoch} {len(self.body)} B>"


class Placed(NamedTuple):
    """A record and its sequence id."""

    seq: int
    record: Record


def encode_varint(value: int) -> bytes:
    """Unsigned LEB128, shortest form, below 2^63."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    if 0 <= value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if 0 <= value < 0x200000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if not 0 <= value < 1 << 63:
        raise LocalMisuse(f"a varint holds 0 to 2^63-1, not {value}")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next field begins. Refuses what is not the shortest form."""
    try:
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        value, shift = byte & 0x7F, 7
        for place in range(at + 1, at + _VARINT_BYTES_MAX):
            byte = data[place]
            if byte < 0x80:
                if not byte:
                    raise DecodeError("a number is not in its shortest form")
                return value | byte << shift, place + 1
            value |= (byte & 0x7F) << shift
            shift += 7
    except IndexError as error:
        raise DecodeError("a number is cut off") from error
    raise DecodeError("a number is longer than 63 bits")


def encode_record(record: Record, skip: int = 0) -> bytes:
    """The one encoding of a record, preceded by its skip count."""
    tag, version, author, epoch, key_id, flags, salt, body = record
    units, rest = divmod(len(body) - MAC_BYTES, UNIT_BYTES)
    if rest or units < 1 or units * UNIT_BYTES > PLAINTEXT_BYTES_MAX:
        raise LocalMisuse(f"a body of {len(body)} bytes is not padded, or too large")
    if version > VERSION_LAST:
        raise LocalMisuse(f"version {version} is above {VERSION_LAST}, the last that there is")
    if (len(tag), len(key_id), len(salt)) != (TAG_BYTES, KEY_ID_BYTES, SALT_BYTES) or flags & ~FLAGS_KNOWN:
        raise LocalMisuse("a record's tag, key id or salt has another size, or its flags are not known")
    kind = _KIND_COMPACT | flags
    head = encode_varint(skip)
    if 0 <= version < 1 << 32 and 0 <= author < 256 and 0 <= epoch < 256 and units < 256:
        return head + _COMPACT_HEADER.pack(kind, tag, version, author, epoch, key_id, salt, units) + body
    try:
        return head + _WIDE_HEADER.pack(kind | _WIDE, tag, version, author, epoch, key_id, salt, units) + body
    except StructError as error:
        raise LocalMisuse(f"a record's numbers do not fit: {record!r}") from error


def encode_segment(records: Iterable[Record]) -> bytes:
    """A fresh segment: consecutive records, nothing skipped."""
    return b"".join([encode_record(record) for record in records])


def read_record(data: bytes, at: int) -> tuple[int, Record, int]:
    """(skip, record, where the next begins). Raises DecodeError on anything but canonical bytes."""
    try:
        skip = data[at]
        if skip < 0x80:
            at += 1
        else:
            skip, at = decode_varint(data, at)
        kind = data[at]
        if kind & _WIDE:
            fields = _WIDE_HEADER.unpack_from(data, at)
            at += _WIDE_HEADER.size
        else:
            fields = _COMPACT_HEADER.unpack_from(data, at)
            at += _COMPACT_HEADER.size
    except (IndexError, StructError) as error:
        raise DecodeError("a record is cut off") from error
    _, tag, version, author, epoch, key_id, salt, units = fields
    end = at + units * UNIT_BYTES + MAC_BYTES
    if kind & ~(_WIDE | FLAGS_KNOWN) != _KIND_COMPACT:
        raise DecodeError(f"record kind {kind:#04x} is not known; it may need a newer version")
    if kind & _WIDE and version < 1 << 32 and author < 256 and epoch < 256 and units < 256:
        raise DecodeError("a record is wider than its numbers need")
    if version > VERSION_LAST:
        raise DecodeError("a record's version is above the last that there is")
    if not units or units * UNIT_BYTES > PLAINTEXT_BYTES_MAX:
        raise DecodeError("a record's size is not allowed", CloseCode.TOO_LARGE)
    if end > len(data):
        raise DecodeError("a record is cut off")
    record = Record(tag, version, author, epoch, key_id, kind & FLAGS_KNOWN, salt, data[at:end])
    return skip, record, end


def read_segment(data: bytes, prev: int, last: int = SEQ_LAST) -> Iterator[Placed]:
    """The records of a segment that covers the seqs `(prev, last]`, each with its seq. Raises DecodeError."""
    at, seq, end = 0, prev, len(data)
    while at < end:
        skip, record, at = read_record(data, at)
        seq += skip + 1
        if seq > last:
            raise beyond(seq, last)
        yield Placed(seq, record)


def beyond(seq: int, last: int) -> DecodeError:
    """What a segment that holds a record past its end is told to be."""
    return DecodeError(f"a segment that covers seqs up to {last} holds a record at {seq}")


class Survey(NamedTuple):
    """What the relay must know of a pushed group before it may append it. `flags` are those that all records have."""

    records: int
    top: int
    lowest: int
    author: int
    epoch: int
    key_id: bytes
    flags: int


def finished(walk: Generator[None, None, T]) -> T:
    """Go a walk to its end without a pause; what it has found."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            found: T = end.value
            return found


def survey_single(data: bytes) -> Survey | None:
    """What any survey finds in a group that is one fresh, compact record, as most are. None: it is another one, or to
    be refused."""
    if len(data) <= OVERHEAD_BYTES_MIN or data[0] or data[1] & ~FLAGS_KNOWN != _KIND_COMPACT:
        return None
    kind, _, version, author, epoch, key_id, _, units = _COMPACT_HEADER.unpack_from(data, 1)
    if not author or not units or OVERHEAD_BYTES_MIN + units * UNIT_BYTES != len(data):
        return None
    return Survey(1, version, version, author, epoch, key_id, kind & FLAGS_KNOWN)


def surveying(data: bytes, any_author: bool = False) -> Generator[None, None, Survey]:
    """Walk a pushed group: all records fresh (no skips), of one author (unless any will do) and one key. Raises
    DecodeError.

    `top` and `lowest` are the greatest and smallest version in it, `author` is the first one's. It pauses after every
    WALK_RECORDS, so that other work need not wait for all of them.
    """
    at, count, top, lowest, flags, end = 0, 0, 0, 1 << 64, FLAGS_KNOWN, len(data)
    unpack, ends = _COMPACT_HEADER.unpack_from, OVERHEAD_BYTES_MIN
    of = key = None
    while at < end:
        # What nearly all are, whole and compact, is read here; the rest is understood, or refused, by `read_record`.
        if not data[at] and at + ends < end and data[at + 1] & ~FLAGS_KNOWN == _KIND_COMPACT:
            kind, _, version, author, epoch, key_id, _, units = unpack(data, at + 1)
            after = at + ends + units * UNIT_BYTES
        else:
            units = 0
        if not units or after > end:
            skip, record, after = read_record(data, at)
            if skip:
                raise DecodeError("a pushed record skips a place")
            _, version, author, epoch, key_id, kind, _, _ = record
        at = after
        if not author:
            raise DecodeError("a record names no author")
        if of is None:
            of, key = author, (epoch, key_id)
        elif author != of and not any_author:
            raise DecodeError("the records of one group name different authors")
        elif key != (epoch, key_id):
            raise DecodeError("the records of one group name different keys")
        count += 1
        if not count % WALK_RECORDS:
            yield
        top = max(top, version)
        lowest = min(lowest, version)
        flags &= kind
    if of is None or key is None:
        raise DecodeError("a pushed group is empty")
    return Survey(count, top, lowest, of, *key, flags)


def padded_bytes(length: int) -> int:
    """The size to which `length` bytes and their one-byte end mark are padded: steps of 16 to 256, then Padmé.

    Padmé (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs",
    2019) lets at most 12% be wasted and leaks O(log log) of the length.
    """
    needed = max(length + 1, UNIT_BYTES)
    if needed <= 256:
        return -(-needed // UNIT_BYTES) * UNIT_BYTES
    exponent = needed.bit_length() - 1
    step = 1 << (exponent - exponent.bit_length())
    return -(-needed // step) * step
