"""Logs for tests of the cleaner: made of real records, read back, and what must be left of them."""

from collections.abc import Sequence
from random import Random

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import Author, KeyId, StreamId, Tag, Term
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import MAC_BYTES, SALT_BYTES, TOMBSTONE, UNIT_BYTES, Record, encode_segment, read_segment
from sealwire_relay.store.cleaning import Dirty
from sealwire_relay.store.interface import Page, Store, StreamWrite
from sealwire_relay.store.segments import StoredSegment
from tests.relay.store.places import Vault, make_vault, whole, write

KEY_ID = KeyId(b"\x01\x02\x03\x04")


def record(entry: int, version: int, *, salt: int = 0, tombstone: bool = False, units: int = 1) -> Record:
    """One version of one entry."""
    body = bytes([version % 256]) * (units * UNIT_BYTES + MAC_BYTES)
    flags = TOMBSTONE if tombstone else 0
    return Record(
        Tag(entry.to_bytes(16, "big")), version, Author(1), 7, KEY_ID, flags, salt.to_bytes(SALT_BYTES, "big"), body
    )


class Log:
    """A stream of a vault, and all that was ever appended to it: `whole`, by seq."""

    def __init__(self, store: Store, vault: Vault, kind: StreamKind) -> None:
        self.store, self.vault, self.kind = store, vault, kind
        self.whole: dict[int, Record] = {}

    async def append(self, *groups: Sequence[Record], term: Term | None = None) -> None:
        """Each group is a segment."""
        start = at = max(self.whole, default=0)
        segments, guards = [], dict[Tag, Current]()
        for group in groups:
            segments.append(StoredSegment(at, at + len(group), encode_segment(group)))
            for each in group:
                at += 1
                self.whole[at] = each
                if self.kind is StreamKind.GUARDED:
                    guards[each.tag] = Current(each.version, each.salt, bool(each.flags & TOMBSTONE), at)
        floor = (await self.page()).floor
        new = StreamWrite(self.vault.stream, start, at, 0, tuple(segments), tuple(guards.items()), floor)
        term = term or await self.store.current_term()
        assert await self.store.append([write(self.vault, term, [new])]) == [True]

    async def left(self) -> dict[int, Record]:
        """What can be read of it now, by seq."""
        found: dict[int, Record] = {}
        for segment in await self.segments():
            for placed in read_segment(segment.body, segment.prev, segment.last):
                found[placed.seq] = placed.record
        return found

    async def segments(self) -> list[StoredSegment]:
        """All of its segments, which tile."""
        found = await whole(self.store, self.vault, self.vault.stream)
        places = [0, *[segment.last for segment in found]]
        assert [segment.prev for segment in found] == places[:-1]
        assert places[-1] == max(self.whole, default=0)
        return found

    async def dirty(self) -> Dirty:
        """The stream as it is told to a cleaner."""
        found = await self.store.dirty(None, 0, 1_000)
        return next(each for each in found if (each.vault, each.stream) == (self.vault.id, self.vault.stream))

    async def cleaned_to(self) -> int:
        """What is told with each of its pages."""
        return (await self.page()).cleaned_to

    async def page(self) -> Page:
        """Its first page, with all that is told of it."""
        page = await self.store.read(self.vault.id, self.vault.stream, 0, 1)
        assert page is not None
        return page

    def winners(self) -> dict[int, Record]:
        """What is left of it when it is cleaned."""
        best: dict[Tag, tuple[int, Record]] = {}
        for seq, each in self.whole.items():
            held = best.get(each.tag)
            if held is None or each.rank >= held[1].rank:
                best[each.tag] = seq, each
        return dict(sorted(best.values()))

    async def says_the_same(self) -> None:
        """Entries are what the whole log says they are, and where a tombstone is gone nothing else of its tag is."""
        best = dict[Tag, Record]()
        for each in (await self.left()).values():
            if each.tag not in best or each.rank >= best[each.tag].rank:
                best[each.tag] = each
        for each in self.winners().values():
            assert best.pop(each.tag, None) in ((each, None) if each.flags & TOMBSTONE else (each,))
        assert best == {}

    async def is_purged_to_its_floor(self) -> None:
        """No tombstone that wins is left up to there."""
        left, floor = await self.left(), (await self.page()).floor
        winning = {seq for seq, each in self.winners().items() if each.flags & TOMBSTONE}
        assert not [seq for seq in left if seq <= floor and seq in winning]


async def make_log(store: Store, *groups: Sequence[Record], kind: StreamKind = StreamKind.OPEN) -> Log:
    """A stream of a vault of its own, written under a new term."""
    term = await store.open_term()
    vault = await make_vault(store, term)
    vault = vault._replace(stream=StreamId(b"\x01" + vault.stream[1:]))
    assert await store.create_stream(vault.id, vault.stream, kind) is kind
    log = Log(store, vault, kind)
    if groups:
        await log.append(*groups)
    return log


def by_chance(random: Random, entries: int = 12, groups: int = 25) -> list[list[Record]]:
    """Groups of versions of a few entries, which win and lose in any order, and are deleted and come again."""
    return [
        [
            record(
                random.randrange(entries),
                random.randrange(9),
                salt=random.randrange(2),
                tombstone=random.random() < 0.2,
            )
            for _ in range(random.randint(1, 5))
        ]
        for _ in range(groups)
    ]


def deleted_by_chance(random: Random, groups: int = 25, above: int = 0) -> list[list[Record]]:
    """Groups of versions of some entries, greater than one that is given; half of them are tombstones."""
    return [
        [
            record(random.randrange(30), above + random.randint(1, 9), tombstone=random.random() < 0.5)
            for _ in range(random.randint(1, 4))
        ]
        for _ in range(groups)
    ]
