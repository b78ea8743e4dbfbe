"""Comparing what two sides hold of a stream without sending it (R13): sums of fingerprints over ranges of tags.

Each side gathers one **item** for every tag it has a record of, tombstones too, of the record that wins there:

    tag 16  packed rank 22  place u64  flags u8           place: the seq at a relay; whatever a device finds it by

The fingerprint of an item covers its tag and rank, and so says whether both hold the same record, wherever it stands.
A `Tree` tells count and sum of every range of tags with a common beginning. A device asks for the root's sixteen parts
and goes on into those that differ, until what is left are single records: `Comparison`. PROTOCOL.md has the rules.
"""

import heapq
import mmap
import tempfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import accumulate, pairwise
from struct import Struct
from struct import error as StructError
from typing import BinaryIO, Final, NamedTuple

from sealwire_protocol.errors import DecodeError, LocalMisuse, RemoteFault
from sealwire_protocol.ids import KEY_ID_BYTES, TAG_BYTES, Tag
from sealwire_protocol.limits import BRANCH_ITEMS_MAX, RECONCILE_PREFIXES_MAX
from sealwire_protocol.messages import Branch, Item, Prefix, Summary
from sealwire_protocol.segment import (
    FLAGS_KNOWN,
    FORMAT,
    MAC_BYTES,
    RANK_BYTES,
    SALT_BYTES,
    beyond,
    read_record,
)

SPILL_BYTES: Final = 64 * 1_048_576
"""Memory that a gathering's items take before they go to a file: 1.4 million records fit."""

MERGED_AT_ONCE: Final = 4_096
"""Items that are read from a file, or taken in, in one go: some 400 KiB of memory."""

NIBBLES_MAX: Final = 2 * TAG_BYTES
"""Half-bytes of a tag: the longest prefix is of one tag alone."""

CHILDREN: Final = 16
"""Parts of a range: one for each next half-byte."""

ROOT: Final = Prefix(0, bytes(TAG_BYTES))
"""All tags."""

_ITEM: Final = Struct(f">{TAG_BYTES}sQHI{SALT_BYTES}sQB")
_UNPACKED: Final = Struct(f">{TAG_BYTES}s{RANK_BYTES}sQB")
ITEM_BYTES: Final = _ITEM.size
_ONE: Final = Struct(f"{ITEM_BYTES}s")
_NAMED: Final = TAG_BYTES + RANK_BYTES
_MODULUS: Final = 1 << 128
_EMPTY_SUM: Final = bytes(16)
_FINGERPRINT: Final = blake2b(digest_size=16, person=b"sealwire.range")

SMALL_ITEMS: Final = 4_096
"""Up to so many items a tree keeps no sums: to make its 65,536 leaves would take ten times as long, and 2 MiB."""

_LEAF_NIBBLES: Final = 4
_LEAVES: Final = CHILDREN**_LEAF_NIBBLES
_BUCKETS: Final = 256
_DEEP_ITEMS: Final = 1_024
"""Items from which a range below the leaves is summed up once only: who chose tags that begin alike cannot have them
summed up again and again. At most a thousandth as many ranges as items are kept."""

_COMPACT: Final = frozenset(range(FORMAT << 4, (FORMAT << 4 | FLAGS_KNOWN) + 1))
_HEADER: Final = Struct(f">BB{TAG_BYTES}sIBB{KEY_ID_BYTES}x{SALT_BYTES}sB")
"""A narrow record, which nearly all are, and its skip count of one byte."""


def fingerprint(named: bytes) -> int:
    """The fingerprint of a record: 128 bits, by its tag and packed rank."""
    hashed = _FINGERPRINT.copy()
    hashed.update(named)
    return int.from_bytes(hashed.digest(), "big")


def pack_item(tag: Tag, rank: bytes, place: int, flags: int) -> bytes:
    """An item's bytes. `rank` is packed."""
    return _UNPACKED.pack(tag, rank, place, flags)


def unpack_item(item: bytes) -> Item:
    """The inverse of `pack_item`; the place stands in `seq`."""
    tag, rank, place, flags = _UNPACKED.unpack(item)
    return Item(tag, rank, place, flags)


def summary_of(items: Iterable[bytes]) -> Summary:
    """Count and sum of items."""
    prints = [fingerprint(item[:_NAMED]) for item in items]
    return _summary(len(prints), sum(prints))


def check_prefix(prefix: Prefix) -> None:
    """Raises DecodeError if a prefix names no range: too long, or with something behind its end."""
    if prefix.nibbles > NIBBLES_MAX or int.from_bytes(prefix.path, "big") & _below(prefix.nibbles):
        raise DecodeError("a prefix is longer than a tag, or goes on behind its end")


def _summary(records: int, total: int) -> Summary:
    return Summary(records, (total % _MODULUS).to_bytes(16, "big"))


def _below(nibbles: int) -> int:
    """The bits of a path behind so many half-bytes."""
    return (1 << 4 * (NIBBLES_MAX - nibbles)) - 1


def _child(prefix: Prefix, number: int) -> Prefix:
    """One of the sixteen parts of a range."""
    nibbles = prefix.nibbles + 1
    path = int.from_bytes(prefix.path, "big") | number << 4 * (NIBBLES_MAX - nibbles)
    return Prefix(nibbles, path.to_bytes(TAG_BYTES, "big"))


def _winners(items: Iterable[bytes]) -> list[bytes]:
    """Of sorted items the last one of each tag: that of the greatest rank, of equal ranks the latest."""
    return list({item[:TAG_BYTES]: item for item in items}.values())


class Gathering:
    """Takes in items in any order, as many as there are, in bounded memory; then `build` makes the tree.

    Some `spill_bytes` of items are held, the others wait in a file from `file`. For moments twice as much is used.
    After an error it is of no use but to be closed. Not for use by two threads at once.
    """

    def __init__(self, spill_bytes: int = SPILL_BYTES, file: Callable[[], BinaryIO] = tempfile.TemporaryFile) -> None:
        self._spill_bytes, self._file = spill_bytes, file
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._held = 0
        self._spilled: BinaryIO | None = None
        self._runs: list[list[tuple[int, int]]] = [[] for _ in range(_BUCKETS)]

    def add_segment(self, body: bytes, prev: int, last: int) -> None:
        """Take in a segment that covers `(prev, last]`; the places are seqs. Raises DecodeError."""
        buckets, unpack, pack, header, compact = self._buckets, _HEADER.unpack_from, _ITEM.pack, _HEADER.size, _COMPACT
        at, seq, size, records = 0, prev, len(body), 0
        while at < size:
            try:
                skip, kind, tag, version, author, epoch, salt, units = unpack(body, at)
            except StructError:
                kind = 0
            if kind in compact and skip < 0x80 and units and (end := at + header + (units << 4) + MAC_BYTES) <= size:
                at = end
            else:
                skip, record, at = read_record(body, at)
                tag, (version, epoch, author, salt), kind = record.tag, record.rank, record.flags
            seq += skip + 1
            buckets[tag[0]] += pack(tag, version, epoch, author, salt, seq, kind & FLAGS_KNOWN)
            records += 1
        if seq > last:
            raise beyond(seq, last)
        self._hold(records)

    def add(self, items: Iterable[bytes]) -> None:
        """Take in items that are ready, from `pack_item`."""
        buckets, records = self._buckets, 0
        for item in items:
            if len(item) != ITEM_BYTES:
                raise LocalMisuse(f"an item has {ITEM_BYTES} bytes, not {len(item)}")
            buckets[item[0]] += item
            records += 1
            if records == MERGED_AT_ONCE:
                self._hold(records)
                records = 0
        self._hold(records)

    def _hold(self, records: int) -> None:
        self._held += records * ITEM_BYTES
        if self._held <= self._spill_bytes:
            return
        self._held = 0
        for number, bucket in enumerate(self._buckets):
            self._buckets[number] = bytearray(b"".join(_winners(sorted(_items(bucket)))))
            self._held += len(self._buckets[number])
        if self._held * 2 > self._spill_bytes:
            self._spill()

    def _spill(self) -> None:
        """Put what is held into the file, each bucket as a sorted run."""
        if self._spilled is None:
            self._spilled = self._file()
        at = self._spilled.seek(0, 2)
        for number, bucket in enumerate(self._buckets):
            run = b"".join(_winners(sorted(_items(bucket))))
            if run:
                self._spilled.write(run)
                self._runs[number].append((at, len(run)))
                at += len(run)
            self._buckets[number] = bytearray()
        self._held = 0

    def build(self) -> "Tree":
        """The tree of all that was taken in: of each tag the item of the greatest rank, and of those the last place.

        Takes most of the time that gathering takes, about two microseconds an item. The gathering is used up by it.
        """
        if self._spilled is not None:
            self._spill()
        elif self._held <= SMALL_ITEMS * ITEM_BYTES:
            items = [item for bucket in self._buckets for item in _winners(sorted(_items(bucket)))]
            self.close()
            return Tree(None, b"", b"".join(items))
        counts, sums = array("Q", bytes(8 * _LEAVES)), bytearray(16 * _LEAVES)
        parts: list[bytes] = []
        out = self._file() if self._spilled is not None else None
        try:
            for number in range(_BUCKETS):
                totals = [0] * _BUCKETS
                for piece in self._sorted(number):
                    _sum_up(piece, number, counts, totals)
                    if out is None:
                        parts.append(b"".join(piece))
                    else:
                        out.write(b"".join(piece))
                sums[number * 4_096 : number * 4_096 + 4_096] = b"".join(
                    [(total % _MODULUS).to_bytes(16, "big") for total in totals]
                )
            return Tree(counts, bytes(sums), b"".join(parts) if out is None else out)
        except BaseException:
            if out is not None:
                out.close()
            raise
        finally:
            self.close()

    def _sorted(self, number: int) -> Iterator[list[bytes]]:
        """The winning items of a bucket in order, in one piece, or, if they are very many, in several."""
        runs, bucket = self._runs[number], self._buckets[number]
        self._buckets[number] = bytearray()
        if not runs:
            yield _winners(sorted(_items(bucket)))
        elif sum(size for _, size in runs) * 4 <= self._spill_bytes:
            yield _winners(sorted(item for at, size in runs for item in self._read(at, size)))
        else:
            piece: list[bytes] = []
            for item in heapq.merge(*(self._read(at, size) for at, size in runs)):
                if piece and piece[-1][:TAG_BYTES] == item[:TAG_BYTES]:
                    piece[-1] = item
                elif len(piece) == MERGED_AT_ONCE:
                    yield piece
                    piece = [item]
                else:
                    piece.append(item)
            yield piece

    def _read(self, at: int, size: int) -> Iterator[bytes]:
        """The items of a run, in order."""
        if self._spilled is None:
            raise LocalMisuse("a gathering that is closed cannot be built")
        for begin in range(at, at + size, MERGED_AT_ONCE * ITEM_BYTES):
            self._spilled.seek(begin)
            yield from _items(self._spilled.read(min(MERGED_AT_ONCE * ITEM_BYTES, at + size - begin)))

    def close(self) -> None:
        """Give everything back. May be called at any time, again too."""
        for bucket in self._buckets:
            bucket.clear()
        if self._spilled is not None:
            self._spilled.close()
            self._spilled = None


def _items(data: bytes | bytearray | mmap.mmap) -> list[bytes]:
    return [item for (item,) in _ONE.iter_unpack(data)]


def _sum_up(piece: list[bytes], number: int, counts: "array[int]", totals: list[int]) -> None:
    """Add sorted items of one bucket to the counts and totals of its leaves."""
    copy, digests = _FINGERPRINT.copy, list[bytes]()
    for item in piece:
        hashed = copy()
        hashed.update(item[:_NAMED])
        digests.append(hashed.digest())
    begin = 0
    while begin < len(piece):
        leaf = piece[begin][1]
        end = len(piece) if leaf == 255 else bisect_left(piece, bytes((number, leaf + 1)), begin)
        counts[number << 8 | leaf] += end - begin
        totals[leaf] += sum([int.from_bytes(digest, "big") for digest in digests[begin:end]])
        begin = end


class Tree:
    """Counts and sums of all ranges of tags of what was gathered, and the items themselves, in order.

    Sums of up to 4 half-bytes are kept, about 2 MiB; those of longer prefixes are made from the items when they are
    asked for. A small tree is made without `counts` and `sums`: all of them are made then. It does not change, and may
    be asked by several threads at once until it is closed.
    """

    def __init__(self, counts: "array[int] | None", sums: bytes, items: bytes | BinaryIO) -> None:
        self._file = None if isinstance(items, bytes) else items
        self._begins = None if counts is None else array("Q", accumulate(counts, initial=0))
        self._sums = [sums]
        while len(self._sums[0]) > 16:
            self._sums.insert(0, _sums_of_parents(self._sums[0]))
        self._deep: dict[Prefix, tuple[Summary, ...]] = {}
        self._items: bytes | mmap.mmap = b""
        if isinstance(items, bytes):
            self._items = items
        self.total = Summary(self._begins[-1], self._sums[0]) if self._begins else summary_of(_items(self._items))
        if self._file is not None and self.count:
            self._file.flush()
            self._items = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def count(self) -> int:
        """How many records there are."""
        return self.total.records

    @property
    def held_bytes(self) -> int:
        """Memory that it takes, without what lies in its file."""
        held = len(self._items) if self._file is None else 0
        return held + 8 * len(self._begins or ()) + sum(map(len, self._sums)) + 2_048 * len(self._deep)

    def children(self, prefix: Prefix) -> tuple[Summary, ...]:
        """The sixteen parts of a range. Raises DecodeError if the prefix names none, or one tag alone."""
        check_prefix(prefix)
        if prefix.nibbles == NIBBLES_MAX:
            raise DecodeError("a range of one tag has no parts")
        if self._begins is None or prefix.nibbles >= _LEAF_NIBBLES:
            return self._summed(prefix)
        first = _index(prefix) * CHILDREN
        sums, width = self._sums[prefix.nibbles + 1], CHILDREN ** (_LEAF_NIBBLES - prefix.nibbles - 1)
        return tuple(
            Summary(self._begins[(at + 1) * width] - self._begins[at * width], sums[16 * at : 16 * at + 16])
            for at in range(first, first + CHILDREN)
        )

    def items(self, prefix: Prefix) -> list[bytes]:
        """The items of a range by ascending tag. Raises DecodeError if the prefix names none."""
        return self._between(*self._range(prefix))

    def branch(self, prefix: Prefix) -> Branch:
        """A range as RANGES tells it: its parts, or, if they are few, its records. Raises DecodeError as above."""
        begin, end = self._range(prefix)
        if end - begin > BRANCH_ITEMS_MAX:
            return Branch(self.children(prefix), ())
        return Branch((), tuple(map(unpack_item, self.items(prefix))))

    def close(self) -> None:
        """Give memory and file back; it must not be asked any more. May be called again."""
        if isinstance(self._items, mmap.mmap):
            self._items.close()
        if self._file is not None:
            self._file.close()
        self._items = b""

    def _range(self, prefix: Prefix) -> tuple[int, int]:
        """The places in the order of tags, [begin, end), of the items of a range."""
        check_prefix(prefix)
        begin, end = 0, self.count
        if self._begins is not None:
            index, width = _index(prefix), CHILDREN ** max(0, _LEAF_NIBBLES - prefix.nibbles)
            begin, end = self._begins[index * width], self._begins[(index + 1) * width]
            if prefix.nibbles <= _LEAF_NIBBLES:
                return begin, end
        last = (int.from_bytes(prefix.path, "big") | _below(prefix.nibbles)).to_bytes(TAG_BYTES, "big")
        places = range(self.count)
        begin = bisect_left(places, prefix.path, begin, end, key=self._tag)
        return begin, bisect_right(places, last, begin, end, key=self._tag)

    def _between(self, begin: int, end: int) -> list[bytes]:
        return _items(self._items[begin * ITEM_BYTES : end * ITEM_BYTES])

    def _tag(self, place: int) -> bytes:
        at = place * ITEM_BYTES
        return self._items[at : at + TAG_BYTES]

    def _summed(self, prefix: Prefix) -> tuple[Summary, ...]:
        """The parts of a range whose sums are not kept, from its items."""
        known = self._deep.get(prefix)
        if known is not None:
            return known
        begin, end = self._range(prefix)
        counts, totals = [0] * CHILDREN, [0] * CHILDREN
        place, low = divmod(prefix.nibbles, 2)
        for at in range(begin, end, MERGED_AT_ONCE):
            for item in self._between(at, min(at + MERGED_AT_ONCE, end)):
                number = item[place] & 15 if low else item[place] >> 4
                counts[number] += 1
                totals[number] += fingerprint(item[:_NAMED])
        found = tuple(map(_summary, counts, totals))
        if end - begin >= _DEEP_ITEMS:
            self._deep[prefix] = found
        return found


def _index(prefix: Prefix) -> int:
    """The number of a range among those of its length, or of the leaf that it lies in."""
    return int.from_bytes(prefix.path[:2], "big") >> 4 * max(0, _LEAF_NIBBLES - prefix.nibbles)


def _sums_of_parents(sums: bytes) -> bytes:
    """The sums of one level from those below it."""
    numbers = [int.from_bytes(sums[at : at + 16], "big") for at in range(0, len(sums), 16)]
    return b"".join(
        [(sum(numbers[at : at + CHILDREN]) % _MODULUS).to_bytes(16, "big") for at in range(0, len(numbers), CHILDREN)]
    )


class Difference(NamedTuple):
    """A tag of which the two sides do not hold the same record. `mine` is an item's bytes; None: nothing is held."""

    tag: Tag
    mine: bytes | None
    theirs: Item | None


class Range(NamedTuple):
    """A range of tags that was compared record by record, and how many of them each side holds in it."""

    prefix: Prefix
    mine: int
    theirs: int


class Comparison:
    """A device's descent through the ranges of a relay in which it holds something else.

    Send what `ask` returns, give the answer to `take`, until `ask` returns nothing. Several asks may be on their way at
    once. What was found different gathers in `differing`; it may be taken out between two answers. `ranges`: in which
    it was found. Nothing is believed that contradicts what the relay has told before, so that no descent is deeper than
    a tag is long.
    """

    def __init__(self, tree: Tree) -> None:
        self.differing: list[Difference] = []
        self.ranges: list[Range] = []
        self._tree = tree
        self._waiting: list[tuple[Prefix, Summary | None]] = [(ROOT, None)]
        self._asked: dict[Prefix, Summary | None] = {}

    @property
    def done(self) -> bool:
        """True when every answer is there and nothing is left to ask."""
        return not self._waiting and not self._asked

    def ask(self) -> tuple[Prefix, ...]:
        """The next ranges to ask for, at most RECONCILE_PREFIXES_MAX. Empty: none for now, or, if `done`, none ever."""
        asked = self._waiting[-RECONCILE_PREFIXES_MAX:][::-1]
        del self._waiting[-RECONCILE_PREFIXES_MAX:]
        self._asked.update(asked)
        return tuple(prefix for prefix, _ in asked)

    def take(self, prefixes: tuple[Prefix, ...], branches: tuple[Branch, ...]) -> None:
        """Take in the answer to one `ask`. Raises RemoteFault if it contradicts itself or an earlier one."""
        if len(branches) != len(prefixes):
            raise RemoteFault("the relay told of other ranges than those asked for")
        further: list[tuple[Prefix, Summary | None]] = []
        for prefix, branch in zip(prefixes, branches, strict=True):
            if prefix not in self._asked:
                raise LocalMisuse("an answer is about a range that was not asked for")
            told = self._asked.pop(prefix)
            if told not in (None, _told(prefix, branch)):
                raise RemoteFault("what the relay tells of a range does not add up to what it told before")
            if branch.children:
                further += self._differing_parts(prefix, branch.children)
            else:
                self._compare(prefix, branch.items)
        self._waiting += reversed(further)

    def _differing_parts(self, prefix: Prefix, theirs: tuple[Summary, ...]) -> Iterator[tuple[Prefix, Summary | None]]:
        for number, (mine, told) in enumerate(zip(self._tree.children(prefix), theirs, strict=True)):
            if mine == told:
                continue
            if told.records:
                yield _child(prefix, number), told
            else:
                self._compare(_child(prefix, number), ())

    def _compare(self, prefix: Prefix, theirs: tuple[Item, ...]) -> None:
        """Note how the records of a range differ, all of which are known now."""
        told, before = {item.tag: item for item in theirs}, len(self.differing)
        held = self._tree.items(prefix)
        for mine in held:
            tag = Tag(mine[:TAG_BYTES])
            item = told.pop(tag, None)
            if item is None or item.rank != mine[TAG_BYTES:_NAMED]:
                self.differing.append(Difference(tag, mine, item))
        self.differing += [Difference(tag, None, item) for tag, item in told.items()]
        if len(self.differing) > before:
            self.ranges.append(Range(prefix, len(held), len(theirs)))


def _told(prefix: Prefix, branch: Branch) -> Summary:
    """What a branch says of its range as a whole. Raises RemoteFault if no range can be like that."""
    children, items = branch
    if not children:
        tags = [item.tag for item in items]
        if len(items) > BRANCH_ITEMS_MAX or any(one >= after for one, after in pairwise(tags)):
            raise RemoteFault("the relay told the records of a range out of order")
        beyond_end = _below(prefix.nibbles)
        if any(int.from_bytes(tag, "big") & ~beyond_end != int.from_bytes(prefix.path, "big") for tag in tags):
            raise RemoteFault("the relay told a record that does not lie in the range asked for")
        return _summary(len(items), sum(fingerprint(item.tag + item.rank) for item in items))
    records = sum(child.records for child in children)
    if items or len(children) != CHILDREN or records <= BRANCH_ITEMS_MAX:
        raise RemoteFault("the relay told a range neither by its parts nor by its records")
    if any(child.sum != _EMPTY_SUM for child in children if not child.records):
        raise RemoteFault("the relay told a sum of nothing")
    if prefix.nibbles + 1 >= NIBBLES_MAX and any(child.records > 1 for child in children):
        raise RemoteFault("the relay told two records of one tag")
    return _summary(records, sum(int.from_bytes(child.sum, "big") for child in children))
