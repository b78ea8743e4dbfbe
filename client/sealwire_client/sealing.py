"""Sealing and opening records: from an entry's key and value to the bytes that a relay sees, and back.

    plaintext = varint key length, key (UTF-8), value      (a tombstone has no value)
    padded    = plaintext, 0x80, zeros up to `padded_bytes`
    context   = format u8, vault 16, stream 8, epoch u16, key_id 4, flags u8, author u32, version u64, tag 16
    salt      = BLAKE2b-64(hedge key of the device, 16 random bytes ‖ context ‖ padded)
    nonce     = BLAKE2b-96(nonce key, context ‖ salt)
    body      = ChaCha20-Poly1305(record key, nonce, padded, associated data = context)

The context is bound to the seal as associated data, so a record moved to another vault, stream, entry, version,
author or epoch does not open. The tag is computed again from the key inside. Given context, salt and plaintext
the bytes are determined: whoever holds an opened record can make them again (RULES: R17).

`_open_plain` is the hottest loop of the client, and is written for speed: what a record has in common with its
neighbours is prepared once, and a record costs one tuple.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import repeat
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from sealwire_client.cipher import (
    NONCE_BYTES,
    CipherError,
    Open,
    Purpose,
    Random,
    Seal,
    Secret,
    derive,
    keyed_hash,
    keyed_state,
    record_open,
    record_seal,
)
from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.ids import SUM_BYTES, TAG_BYTES, Author, KeyId, StreamId, Tag, VaultId
from sealwire_protocol.limits import PLAINTEXT_BYTES_MAX
from sealwire_protocol.segment import (
    FORMAT,
    MAC_BYTES,
    PROOF_BYTES_MAX,
    SALT_BYTES,
    SEQ_LAST,
    SIGNED,
    TOMBSTONE,
    UNIT_BYTES,
    Record,
    beyond,
    decode_varint,
    encode_record,
    encode_varint,
    padded_bytes,
    read_record,
)

CONTEXT_COMMON: Final = Struct(">B16s8sH4s")
CONTEXT_OWN: Final = Struct(">BIQ16s")
"""What the records of one stream and key share, and what each has for itself. Together they are the context."""

RANDOM_BYTES: Final = 16
"""Fresh randomness that goes into one salt."""

_HEADER: Final = Struct(">BB16sIBB4s8sB")
"""A one-byte skip count and a compact record header, which is nearly every record."""

_RANK: Final = Struct(">QHI8s")

_RAW_HEADER: Final = Struct(">H16s4ss5s8sB")
_RAW_OWN: Final = Struct(">B3xs4x4s16s")
_RAW_RANK: Final = Struct(">4x4sxs3xs8s")
"""As `_HEADER`, `CONTEXT_OWN` and `_RANK` for a compact record whose version, author and epoch stay the bytes that they
are: to make numbers of them and bytes again costs a tenth of the loop's own work. Skip count and kind are one number,
epoch and key id one piece."""

_KIND: Final = FORMAT << 4
_WRITABLE: Final = {skip << 8 | _KIND | flags: (flags, skip + 1) for skip in range(0x80) for flags in (0, TOMBSTONE)}
"""The flags of a record, and how far from the one before, by its skip count and kind, if that is a byte and a write."""

_END_MARK: Final = 0x80
_BAD_FLAGS: Final = "a write is sealed with no flags, as a tombstone, which has no value, or signed, which has a proof"
_SINGLE_STEPS: Final = 16
"""Up to so many units a plaintext is padded to the next unit; beyond, `padded_bytes` says to what."""


PART_RECORDS_MAX: Final = 512
"""Records that are opened, decoded and stored before the next ones: what they take stays within a core's cache, which
made the whole a third faster than segments of 2,600 did."""


class ValueTooLargeError(ValueError):
    """An entry that does not fit into one record."""


class StreamKeys(NamedTuple):
    """What opens and seals the records of one stream in one epoch."""

    epoch: int
    key_id: KeyId
    record_key: Secret
    nonce_key: Secret


class Stream(NamedTuple):
    """Which stream, and the key of its tags, which lives as long as the vault."""

    vault: VaultId
    id: StreamId
    tag_key: Secret


class Draft(NamedTuple):
    """A write that is to be sealed now. `author` None: the sealer's own; what is sealed anew keeps another's."""

    key: str
    value: bytes
    version: int
    flags: int = 0
    author: Author | None = None


class SealedRecord(NamedTuple):
    """A record that is ready to be sent, once it is on disk. `encoded` is as it stands in a fresh segment."""

    tag: Tag
    rank: bytes
    encoded: bytes


class Opened(NamedTuple):
    """A record that is authentic. `rank` is 22 bytes that compare as ranks do (version, epoch, author, salt)."""

    seq: int
    tag: Tag
    rank: bytes
    flags: int
    key: str
    value: bytes
    key_id: bytes


class Reason(Enum):
    """Why a record did not open."""

    NO_KEY = "it was sealed under a key that this device does not have"
    NOT_AUTHENTIC = "its seal is broken: it was changed, moved, or made with another key"
    WRONG_TAG = "the key inside is not the entry that it claims to be"
    MALFORMED = "what is inside is not laid out as an entry"
    UNKNOWN_KIND = "it is of a kind that needs a newer version of this program"
    NOT_SIGNED = "it is not signed by its author, as all entries of this collection are"
    SIGNED_HERE = "it is signed by an author, and belongs to no collection that is signed"
    UNKNOWN_AUTHOR = "it is signed by a member of whom this device has not heard yet"
    BAD_SIGNATURE = "its signature is not that of the member by whom it claims to be"
    NOT_A_WRITER = "it is by a member that may only read"
    AUTHOR_REMOVED = "its author was removed before this device saw it, and nobody who is a member now vouches for it"


MADE_BY_MEMBERS: Final = frozenset(Reason) - {Reason.NO_KEY, Reason.NOT_AUTHENTIC}
"""Reasons that are found inside the seal: what stands outside of it is a member's word, and no relay's."""

UNREAD_BY_ALL: Final = frozenset(Reason) - {
    Reason.NO_KEY,
    Reason.UNKNOWN_KIND,
    Reason.NOT_SIGNED,
    Reason.SIGNED_HERE,
    Reason.UNKNOWN_AUTHOR,
    Reason.AUTHOR_REMOVED,
}
"""Reasons for which no other device can read the record either, whatever keys and programs it has, whenever it first
saw it, and however its app opens the collection."""


class Unopened(NamedTuple):
    """A record that did not open, set aside as it came; it stops no other."""

    seq: int
    tag: Tag
    rank: bytes
    reason: Reason
    encoded: bytes


Judge = Callable[[Record, bytes, bytes], Reason | None]
"""(record, key, proof and value) -> why a record of a signed collection is not taken in; None: it is."""


class OpenedSegment(NamedTuple):
    """All records of one segment, in the order of their seqs."""

    opened: list[Opened]
    unopened: list[Unopened]


def stream_keys(epoch_key: Secret, epoch: int, key_id: KeyId, vault: VaultId, stream: StreamId) -> StreamKeys:
    """The keys of one stream, derived from the key of an epoch."""
    data = vault + stream
    record_key, nonce_key = derive(epoch_key, Purpose.RECORD_KEY, data), derive(epoch_key, Purpose.NONCE_KEY, data)
    return StreamKeys(epoch, key_id, record_key, nonce_key)


def tag_of(stream: Stream, key: str) -> Tag:
    """The tag under which the relay knows an entry."""
    return Tag(keyed_hash(stream.tag_key, Purpose.TAG, stream.id + key.encode(), TAG_BYTES))


def tagger(stream: Stream) -> Callable[[str], bytes]:
    """As `tag_of`, for many entries of one stream, in a third of the time."""
    copy = keyed_state(stream.tag_key, Purpose.TAG, TAG_BYTES, stream.id).copy

    def tag(key: str) -> bytes:
        state = copy()
        state.update(key.encode())
        return state.digest()

    return tag


def summer(stream: Stream) -> Callable[[Iterable[tuple[str, bytes]]], int]:
    """What entries add to the sum of their stream, each by its key and packed rank: the sum of numbers of 256 bits that
    nobody outside of the vault can tell, under a key that lives as long as the vault."""
    copy, as_number = keyed_state(stream.tag_key, Purpose.SUM, SUM_BYTES, stream.id).copy, int.from_bytes

    def summed(entries: Iterable[tuple[str, bytes]]) -> int:
        total = 0
        for key, rank in entries:
            state = copy()
            state.update(rank + key.encode())
            total += as_number(state.digest(), "big")
        return total

    return summed


def check_fits(key: str, value: bytes, signed: bool = False) -> None:
    """Raises ValueTooLargeError if an entry is too large for one record, so that a write can fail at once.

    `signed`: its collection is, and its record must have room for whoever may come to vouch for it."""
    pad(key.encode(), bytes(PROOF_BYTES_MAX) + value if signed else value)


def pad(key: bytes, value: bytes) -> bytes:
    """The plaintext of an entry, padded. Raises ValueTooLargeError."""
    size = len(key)
    if size < 0x80:
        plain = b"%c%b%b" % (size, key, value)
    else:
        plain = b"%b%b%b" % (encode_varint(size), key, value)
    used = len(plain)
    if used < UNIT_BYTES * _SINGLE_STEPS:
        return (plain + b"\x80").ljust(used + UNIT_BYTES & -UNIT_BYTES, b"\0")
    if used >= PLAINTEXT_BYTES_MAX:
        raise ValueTooLargeError(
            f"an entry of {used:,} bytes (key {size:,}, value {len(value):,}) does not fit into one record of"
            f" {PLAINTEXT_BYTES_MAX - 1:,} bytes; split it into several entries"
        )
    return (plain + b"\x80").ljust(padded_bytes(used), b"\0")


def unpad(padded: bytes) -> tuple[bytes, bytes] | None:
    """(key, value) of a padded plaintext, or None unless it is exactly what `pad` would make of them."""
    used = len(padded.rstrip(b"\0")) - 1
    if used < 1 or padded[used] != _END_MARK or padded_bytes(used) != len(padded):
        return None
    try:
        size, at = decode_varint(padded[:used], 0)
    except DecodeError:
        return None
    return (padded[at : at + size], padded[at + size : used]) if at + size <= used else None


def _fits(flags: int, value: bytes) -> bool:
    """True if a write with any flags may have this value."""
    return not value if flags == TOMBSTONE else bool(value) and flags & ~TOMBSTONE == SIGNED


def _common(stream: Stream, keys: StreamKeys) -> bytes:
    return CONTEXT_COMMON.pack(FORMAT, stream.vault, stream.id, keys.epoch, keys.key_id)


class _Ready(NamedTuple):
    """The keys of one epoch, with all that its records have in common worked in."""

    common: bytes
    nonce_state: "hashlib.blake2b"
    open: Open
    refused: type[Exception]


class Opener:
    """Opens the segments of one stream with the keys of all epochs that the device knows.

    With a `judge` the stream is of a signed collection: all that is in it must be signed, and found right; its values
    have their proofs before them. It holds buffers, so it serves one thread at a time.
    """

    __slots__ = ("_judge", "_keys", "_ready", "_stream", "_tag_state", "_writable")

    def __init__(self, stream: Stream, keys: Iterable[StreamKeys], judge: Judge | None = None) -> None:
        self._stream, self._judge = stream, judge
        self._writable = _WRITABLE if judge is None else {}
        self._tag_state = keyed_state(stream.tag_key, Purpose.TAG, TAG_BYTES, stream.id)
        self._keys = {(k.epoch, bytes(k.key_id)): k for k in keys}
        self._ready: dict[tuple[int, bytes], _Ready] = {}

    def open_segment(self, data: bytes, prev: int, last: int = SEQ_LAST) -> OpenedSegment:
        """Open every record of a segment that covers the seqs `(prev, last]`.

        A record that does not open is returned with its reason, and stops no other. Raises DecodeError, and
        returns nothing, if the bytes are not a segment.
        """
        return next(self.open_parts(data, prev, last, len(data)), OpenedSegment([], []))

    def open_parts(
        self, data: bytes, prev: int, last: int = SEQ_LAST, records_max: int = PART_RECORDS_MAX
    ) -> Iterator[OpenedSegment]:
        """As `open_segment`, in parts of so many opened records and the last of fewer. May raise after some parts."""
        at, seq, size = 0, prev, len(data)
        while at < size:
            opened: list[Opened] = []
            unopened: list[Unopened] = []
            while at < size and len(opened) < records_max:
                at, seq = self._open_plain(data, at, seq, opened, records_max)
                if at < size and len(opened) < records_max:
                    one, at = self.open_record(data, at, seq)
                    seq = one.seq
                    if isinstance(one, Opened):
                        opened.append(one)
                    else:
                        unopened.append(one)
            if seq > last:
                raise beyond(seq, last)
            yield OpenedSegment(opened, unopened)

    def _open_plain(self, data: bytes, at: int, seq: int, opened: list[Opened], records_max: int) -> tuple[int, int]:
        """Open records at `at` into `opened` while they are compact, authentic and well laid out: nearly all are.

        Ends before the first that is anything else, or when `opened` holds `records_max`. Returns where, and the seq
        before it. `open_record` would open them just the same.
        """
        unpack, pack_own, pack_rank, new = _RAW_HEADER.unpack_from, _RAW_OWN.pack, _RAW_RANK.pack, tuple.__new__
        copy_tag, add, header, zero = self._tag_state.copy, opened.append, _RAW_HEADER.size, b"\0"
        beside, size, key_now, writable = header + MAC_BYTES, len(data), b"", self._writable
        refused: type[Exception] = CipherError
        try:
            for _ in repeat(None, records_max - len(opened)):
                head, tag, version, author, key_id, salt, units = unpack(data, at)
                flags, step = writable[head]
                if key_id != key_now:
                    common, nonce_state, open_, refused = self._prepare(key_id[0], key_id[1:])
                    copy_nonce, key_now, epoch, name = nonce_state.copy, key_id, key_id[:1], key_id[1:]
                end = at + beside + (units << 4)
                own = pack_own(flags, author, version, tag)
                state = copy_nonce()
                state.update(own + salt)
                body = data[at + header : end]
                padded = open_(state.digest(), body, common + own)
                used = len(padded.rstrip(zero)) - 1
                key_end = padded[0] + 1
                if (used + 16 >> 4 if used < 256 else padded_bytes(used) >> 4) != units or padded[used] != _END_MARK:
                    break
                if end > size or key_end > used or key_end > 0x80 or (flags and key_end != used):
                    break
                key = padded[1:key_end]
                state = copy_tag()
                state.update(key)
                if state.digest() != tag:
                    break
                rank, text = pack_rank(version, epoch, author, salt), key.decode()
                seq += step
                add(new(Opened, (seq, tag, rank, flags, text, padded[key_end:used], name)))
                at = end
        except (StructError, LookupError, UnicodeDecodeError, refused):
            pass  # whoever looks at that record next finds out what it is
        return at, seq

    def open_record(self, data: bytes, at: int, seq: int) -> tuple[Opened | Unopened, int]:
        """One record of any kind, `seq` being the seq before it, and where the next begins. Raises DecodeError."""
        return self._open_record(data, at, seq, self._judge)

    def open_set_aside(self, unopened: Unopened) -> Opened | Unopened:
        """A record of which the judge was the only one to find fault, as if it had not."""
        return self._open_record(unopened.encoded, 0, unopened.seq - 1, None)[0]

    def _open_record(self, data: bytes, at: int, seq: int, judge: Judge | None) -> tuple[Opened | Unopened, int]:
        skip, record, end = read_record(data, at)
        seq += skip + 1
        rank = _RANK.pack(record.version, record.epoch, record.author, record.salt)
        inside = self._look_inside(record, judge)
        if isinstance(inside, Reason):
            return Unopened(seq, record.tag, rank, inside, encode_record(record)), end
        key, value = inside
        return Opened(seq, record.tag, rank, record.flags, key, value, record.key_id), end

    def _prepare(self, epoch: int, key_id: bytes) -> _Ready:
        ready = self._ready.get((epoch, key_id))
        if ready is None:
            keys = self._keys[epoch, key_id]
            common = _common(self._stream, keys)
            state = keyed_state(keys.nonce_key, Purpose.NONCE, NONCE_BYTES, common)
            ready = self._ready[epoch, key_id] = _Ready(common, state, *record_open(keys.record_key))
        return ready

    def _look_inside(self, record: Record, judge: Judge | None) -> tuple[str, bytes] | Reason:
        tag, version, author, epoch, key_id, flags, salt, body = record
        try:
            common, nonce_state, open_, refused = self._prepare(epoch, key_id)
        except LookupError:
            return Reason.NO_KEY
        own = CONTEXT_OWN.pack(flags, author, version, tag)
        state = nonce_state.copy()
        state.update(own + salt)
        try:
            padded = open_(state.digest(), body, common + own)
        except refused:
            return Reason.NOT_AUTHENTIC
        signed = bool(flags & SIGNED)
        if signed is not (self._judge is not None):
            return Reason.SIGNED_HERE if signed else Reason.NOT_SIGNED
        inside = unpad(padded)
        if inside is None or (flags == TOMBSTONE and inside[1]):
            return Reason.MALFORMED
        state = self._tag_state.copy()
        state.update(inside[0])
        if state.digest() != tag:
            return Reason.WRONG_TAG
        try:
            key = inside[0].decode()
        except UnicodeDecodeError:
            return Reason.MALFORMED
        return (judge is not None and judge(record, *inside)) or (key, inside[1])


class Sealer:
    """Seals records of one stream, in one epoch, in the name of one device.

    It holds buffers, so it serves one thread at a time.
    """

    __slots__ = ("_author", "_common", "_keys", "_nonce_state", "_random", "_salt_state", "_seal", "_tag_state")

    def __init__(
        self, stream: Stream, keys: StreamKeys, author: Author, hedge_key: Secret, random: Random = os.urandom
    ) -> None:
        self._keys, self._author, self._random = keys, author, random
        self._common = _common(stream, keys)
        self._tag_state = keyed_state(stream.tag_key, Purpose.TAG, TAG_BYTES, stream.id)
        self._nonce_state = keyed_state(keys.nonce_key, Purpose.NONCE, NONCE_BYTES, self._common)
        self._salt_state = keyed_state(hedge_key, Purpose.SALT, SALT_BYTES)
        self._seal: Seal = record_seal(keys.record_key)

    def seal_many(self, drafts: Sequence[Draft]) -> list[SealedRecord]:
        """Seal writes, in their order, each with a salt of its own.

        The same bytes must be sent until there is a verdict, so they belong on disk before the first is sent.
        Raises ValueTooLargeError, and seals none, if one is too large.
        """
        pack_own, pack_rank, new, common = CONTEXT_OWN.pack, _RANK.pack, tuple.__new__, self._common
        copy_tag, copy_salt, finish = self._tag_state.copy, self._salt_state.copy, self._finish
        own_author, epoch = self._author, self._keys.epoch
        randomness = self._random(RANDOM_BYTES * len(drafts))
        sealed: list[SealedRecord] = []
        at = 0
        for key, value, version, flags, author in drafts:
            if author is None:
                author = own_author
            if flags and not _fits(flags, value):
                raise LocalMisuse(_BAD_FLAGS)
            raw_key = key.encode()
            padded = pad(raw_key, value)
            state = copy_tag()
            state.update(raw_key)
            tag = state.digest()
            own = pack_own(flags, author, version, tag)
            context = common + own
            state = copy_salt()
            state.update(randomness[at : at + RANDOM_BYTES] + context + padded)
            salt = state.digest()
            at += RANDOM_BYTES
            encoded = finish(own, context, flags, tag, version, author, salt, padded)
            sealed.append(new(SealedRecord, (tag, pack_rank(version, epoch, author, salt), encoded)))
        return sealed

    def seal_with_salt(self, draft: Draft, author: Author, salt: bytes) -> SealedRecord:
        """The very bytes that `author` once made of this entry with this salt, in this sealer's epoch."""
        key, value, version, flags, _ = draft
        if flags and not _fits(flags, value):
            raise LocalMisuse(_BAD_FLAGS)
        raw_key = key.encode()
        state = self._tag_state.copy()
        state.update(raw_key)
        tag = Tag(state.digest())
        own = CONTEXT_OWN.pack(flags, author, version, tag)
        encoded = self._finish(own, self._common + own, flags, tag, version, author, salt, pad(raw_key, value))
        return SealedRecord(tag, _RANK.pack(version, self._keys.epoch, author, salt), encoded)

    def _finish(
        self, own: bytes, context: bytes, flags: int, tag: bytes, version: int, author: int, salt: bytes, padded: bytes
    ) -> bytes:
        state = self._nonce_state.copy()
        state.update(own + salt)
        body = self._seal(state.digest(), padded, context)
        epoch, key_id = self._keys.epoch, self._keys.key_id
        units = len(padded) >> 4
        if version < 1 << 32 and author < 256 and epoch < 256 and units < 256:
            return _HEADER.pack(0, _KIND | flags, tag, version, author, epoch, key_id, salt, units) + body
        return encode_record(Record(Tag(tag), version, Author(author), epoch, key_id, flags, salt, body))
