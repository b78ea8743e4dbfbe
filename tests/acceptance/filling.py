"""Logs of many entries, made as fast as the store takes them, and what must be left of them when they are cleaned.

The records are what the relay would have stored: sealed entries with keys of 8 bytes and values of 32. Nobody opens
them here, so what stands for their ciphertext is random.
"""

import os
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from random import Random
from typing import Final

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import TAG_BYTES, Author, DeviceKey, KeyId, StreamId, Tag, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import MAC_BYTES, SALT_BYTES, Record, encode_record, padded_bytes, read_segment
from sealwire_relay.store.interface import (
    BatchWrite,
    KeptOutcome,
    MemberState,
    NewLink,
    StreamWrite,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.segments import StoredSegment

KEY_BYTES: Final = 8
VALUE_BYTES: Final = 32
BODY_BYTES: Final = padded_bytes(1 + KEY_BYTES + VALUE_BYTES) + MAC_BYTES

SEGMENT_RECORDS: Final = 1_000
"""In one push of many edits."""

STALE_PERCENT: Final = 5
"""Overwrites of an open stream that come with an older version than the one that is there, and so lose (R1)."""

PAGE_BYTES: Final = 1_048_576

_STREAM, _EPOCH, _KEY_ID, _AUTHOR = StreamId(b"\x80" * 8), 1, KeyId(b"key1"), Author(1)
_MEMBER = MemberState(_AUTHOR, DeviceKey(b"\x80" * 32), Role.ADMIN)
_STALE, _FIRST = 0, 1


class Log:
    """A stream of a vault of its own, and what is known of all that was ever appended to it."""

    def __init__(self, store: PostgresStore, vault: VaultId, term: Term, kind: StreamKind) -> None:
        self.vault = vault
        self.head = 0
        self._store, self._term, self._kind = store, term, kind
        self._batch = 0
        self._chance = Random(5)
        self._owners = array("I", (0,))
        """The number of the entry that each seq is a version of."""
        self._winners = array("Q")
        """The seq of the greatest version of each entry."""
        self._versions = array("I")

    @classmethod
    async def begin(cls, store: PostgresStore, kind: StreamKind) -> "Log":
        """A new vault with one member and one stream, in the present term."""
        term = await store.current_term()
        vault = VaultId(os.urandom(16))
        link = NewLink(1, b"genesis", _MEMBER)
        await store.create_vault(vault, VaultState(_EPOCH, _KEY_ID), link, term)
        await store.create_stream(vault, _STREAM, kind)
        return cls(store, vault, term, kind)

    @property
    def entries(self) -> int:
        """How many there are; each was written once at least."""
        return len(self._winners)

    async def add(self, entries: int) -> None:
        """New entries, in segments of SEGMENT_RECORDS."""
        first = self.entries
        self._winners.extend(range(self.head + 1, self.head + 1 + entries))
        self._versions.extend([_FIRST] * entries)
        for at in range(first, first + entries, SEGMENT_RECORDS):
            numbers = range(at, min(at + SEGMENT_RECORDS, first + entries))
            await self._append([(number, _FIRST) for number in numbers])

    async def overwrite(self, numbers: list[int], times: int) -> None:
        """So many new versions of each of these entries: one of all of them, in any order, then the next."""
        for _ in range(times):
            self._chance.shuffle(numbers)
            for at in range(0, len(numbers), SEGMENT_RECORDS):
                await self._append(self._newer(numbers[at : at + SEGMENT_RECORDS]))

    def _newer(self, numbers: Iterable[int]) -> list[tuple[int, int]]:
        versions: list[tuple[int, int]] = []
        for seq, number in enumerate(numbers, self.head + 1):
            if self._kind is StreamKind.OPEN and self._chance.randrange(100) < STALE_PERCENT:
                versions.append((number, _STALE))
                continue
            self._versions[number] += 1
            self._winners[number] = seq
            versions.append((number, self._versions[number]))
        return versions

    async def _append(self, versions: list[tuple[int, int]]) -> None:
        start, last = self.head, self.head + len(versions)
        noise = os.urandom((SALT_BYTES + BODY_BYTES) * len(versions))
        body, guards, at = bytearray(), list[tuple[Tag, Current]](), 0
        for seq, (number, version) in enumerate(versions, start + 1):
            tag, salt, end = tag_of(number), noise[at : at + SALT_BYTES], at + SALT_BYTES + BODY_BYTES
            body += encode_record(Record(tag, version, _AUTHOR, _EPOCH, _KEY_ID, 0, salt, noise[at + SALT_BYTES : end]))
            at = end
            if self._kind is StreamKind.GUARDED:
                guards.append((tag, Current(version, salt, False, seq)))
        self._owners.extend([number for number, _ in versions])
        self.head, self._batch = last, self._batch + 1
        stream = StreamWrite(_STREAM, start, last, 0, (StoredSegment(start, last, bytes(body)),), tuple(guards))
        batch = BatchWrite(_MEMBER, self._batch - 1, KeptOutcome(self._batch, os.urandom(32), os.urandom(60)))
        write = VaultWrite(self.vault, self._term, (_EPOCH, _KEY_ID), (stream,), (batch,))
        if await self._store.append([write]) != [True]:
            raise RuntimeError("an append was refused: somebody else writes to this database")

    async def wrong(self) -> int:
        """Read the stored log. Records that should not be there, and entries whose greatest version is not."""
        cursor = right = wrong = 0
        while cursor < self.head:
            page = await self._store.read(self.vault, _STREAM, cursor, PAGE_BYTES)
            if page is None or not page.segments:
                raise RuntimeError("the log ends before its head")
            for segment in page.segments:
                wrong += segment.prev != cursor
                cursor = segment.last
                for seq, record in read_segment(segment.body, segment.prev, segment.last):
                    number = self._owners[seq]
                    if self._winners[number] == seq and record.tag == tag_of(number):
                        right += 1
                    else:
                        wrong += 1
        return wrong + self.entries - right


def tag_of(number: int) -> Tag:
    """The tag of an entry: evenly spread, as real ones are."""
    return Tag(blake2b(number.to_bytes(8, "big"), digest_size=TAG_BYTES).digest())
