"""Segments that were committed or read lately, so that catching up after a short absence costs the database nothing.

Pure. What is given is a page that the store could have given since the stream was last told of: rows of its log as they
are, under the heading that was told then. Where anything else is told of a stream, all that contradicts it is dropped,
and where the log is not known to go on without a gap, nothing is given.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Final, NamedTuple

from sealwire_protocol.history import newest_term
from sealwire_protocol.ids import StreamId, Term, VaultId
from sealwire_protocol.messages import Deliver, StreamState
from sealwire_relay.store.interface import PAGE_SEGMENTS_MAX, Page
from sealwire_relay.store.segments import StoredSegment

STREAM_SHARE: Final = 4
"""One stream is given at most this part of all, so that one which is read from its beginning leaves room to others."""

BLOCK_BYTES: Final = 65_536
"""Segments that follow each other are kept and dropped together up to this size: so that a look finds them quickly."""

SEGMENT_OVERHEAD_BYTES: Final = 200
"""What Python needs for a segment beside its bytes."""

STREAM_OVERHEAD_BYTES: Final = 600
"""What it needs for a stream of which nothing but the heading is kept."""

Name = tuple[VaultId, StreamId]


class Heading(NamedTuple):
    """What a page says of its stream, beside its segments (R8, R11)."""

    term: Term
    floor: int
    floor_head: int
    purged: int
    cleaned_to: int

    @classmethod
    def of(cls, said: "Deliver | Page") -> "Heading":
        """That of a frame or a page."""
        return cls(said.term, said.floor, said.floor_head, said.purged, said.cleaned_to)

    @classmethod
    def of_state(cls, state: StreamState) -> "Heading":
        """That which the pages of a stream in this state have."""
        return cls(newest_term(state), state.floor, state.floor_head, state.purged, state.cleaned_to)

    def goes_with(self, other: "Heading") -> bool:
        """True if the two differ at most in how far the log is cleaned."""
        return self[:-1] == other[:-1]


class _Block:
    """Segments that tile `(prev, last]`. `used`: when they were last of use, in looks."""

    __slots__ = ("lasts", "prev", "segments", "size", "used")

    def __init__(self, first: StoredSegment, used: int) -> None:
        self.prev, self.used, self.size = first.prev, used, 0
        self.lasts: list[int] = []
        self.segments: list[StoredSegment] = []
        self.add(first)

    @property
    def last(self) -> int:
        return self.lasts[-1]

    def add(self, segment: StoredSegment) -> None:
        self.lasts.append(segment.last)
        self.segments.append(segment)
        self.size += len(segment.body) + SEGMENT_OVERHEAD_BYTES


class _Stream:
    """What is kept of one stream: blocks in the order of the log, which do not overlap and may leave gaps."""

    __slots__ = ("blocks", "heading", "size", "stamp")

    def __init__(self, heading: Heading, stamp: int) -> None:
        self.heading, self.stamp, self.size = heading, stamp, STREAM_OVERHEAD_BYTES
        self.blocks: list[_Block] = []

    def place(self, after: int) -> int:
        """The place of the last block that begins at or before this."""
        return bisect_right(self.blocks, after, key=_begin) - 1

    def drop(self, block: _Block) -> None:
        self.size -= block.size
        self.blocks.remove(block)


def _begin(block: _Block) -> int:
    return block.prev


class Recent:
    """Bounded by `bytes_max` in all, and by a part of it for each stream; what was not used for longest goes first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._stream_bytes_max = bytes_max, bytes_max // STREAM_SHARE
        self._streams: OrderedDict[Name, _Stream] = OrderedDict()
        self._stamps, self._looks = count(1), count(1)
        self.size = 0
        """Bytes that are held, with what Python needs for them."""

    # --- what is told

    def told(self, name: Name, heading: Heading) -> None:
        """A stream has this heading, or had it a moment ago; with equal floors it is the one that is cleaned less."""
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = _Stream(heading, next(self._stamps))
            self.size += stream.size
        elif not heading.goes_with(stream.heading):
            self._cut(stream, stream.blocks)
            stream.heading, stream.stamp = heading, next(self._stamps)
        elif heading.cleaned_to > stream.heading.cleaned_to:
            self._cut(stream, [block for block in stream.blocks if block.prev < heading.cleaned_to])
            stream.heading, stream.stamp = heading, next(self._stamps)
        self._streams.move_to_end(name)
        self._shrink(name)

    def offered(self, name: Name, message: Deliver) -> None:
        """A segment was committed just now."""
        self.told(name, Heading.of(message))
        stream = self._streams.get(name)
        if stream is not None and message.prev >= stream.heading.cleaned_to:
            self._put(name, (StoredSegment(message.prev, message.last, message.segment),))

    def read(self, name: Name, stamp: int | None, page: Page) -> None:
        """A page was read from the store, asked for when the stream had this stamp."""
        if stamp is not None and stamp == self.stamp(name):
            self.told(name, Heading.of(page))
            self._put(name, page.segments)

    def forget(self, vault: VaultId) -> None:
        """The logs of this vault are not what they were."""
        for name in [name for name in self._streams if name[0] == vault]:
            self.size -= self._streams.pop(name).size

    def clear(self) -> None:
        """The database is not what it was."""
        self._streams.clear()
        self.size = 0

    # --- what is asked

    def stamp(self, name: Name) -> int | None:
        """Another one whenever what was told of the stream before is true no more; None: nothing is known of it."""
        stream = self._streams.get(name)
        return None if stream is None else stream.stamp

    def last(self, name: Name) -> int | None:
        """The greatest seq that is known to have been committed; None: none is."""
        stream = self._streams.get(name)
        return None if stream is None or not stream.blocks else stream.blocks[-1].last

    def page(self, name: Name, after: int, bytes_max: int) -> Page | None:
        """As `Store.read`, with `head` the page's end; None: the store must be asked."""
        stream = self._streams.get(name)
        at = -1 if stream is None else stream.place(after)
        if stream is None or at < 0 or stream.blocks[at].last <= after:
            return None
        segments: list[StoredSegment] = []
        size, end, look = 0, None, next(self._looks)
        for block in stream.blocks[at:]:
            if end not in (None, block.prev):
                break
            for segment in block.segments[bisect_right(block.lasts, after) :]:
                size += len(segment.body)
                if segments and (size > bytes_max or len(segments) == PAGE_SEGMENTS_MAX):
                    break
                segments.append(segment)
                block.used = look
            end = block.last
            if segments[-1].last != end:
                break
        self._streams.move_to_end(name)
        return _page(stream.heading, segments)

    # --- what is kept

    def _put(self, name: Name, segments: Sequence[StoredSegment]) -> None:
        stream, look = self._streams.get(name), next(self._looks)
        if stream is None:
            return
        for segment in segments:
            at = stream.place(segment.prev)
            before = stream.blocks[at] if at >= 0 else None
            behind = stream.blocks[at + 1] if at + 1 < len(stream.blocks) else None
            if before is not None and before.last > segment.prev:
                continue  # it is here already
            if behind is not None and behind.prev < segment.last:
                continue
            added = len(segment.body) + SEGMENT_OVERHEAD_BYTES
            if before is not None and before.last == segment.prev and before.size + added <= BLOCK_BYTES:
                before.add(segment)
                before.used = look
            else:
                stream.blocks.insert(at + 1, _Block(segment, look))
            stream.size += added
            self.size += added
        self._shrink(name)

    def _cut(self, stream: _Stream, blocks: Iterable[_Block]) -> None:
        for block in list(blocks):
            stream.drop(block)
            self.size -= block.size

    def _shrink(self, name: Name) -> None:
        """Drop what was not used for longest: of this stream, if it has too much, then of the one so."""
        stream = self._streams.get(name)
        while stream is not None and stream.size > self._stream_bytes_max and stream.blocks:
            self._cut(stream, [min(stream.blocks, key=_used)])
        while self.size > self._bytes_max:
            oldest = next(iter(self._streams))
            if self._streams[oldest].blocks:
                self._cut(self._streams[oldest], [min(self._streams[oldest].blocks, key=_used)])
            else:
                self.size -= self._streams.pop(oldest).size


def _used(block: _Block) -> int:
    return block.used


def _page(heading: Heading, segments: list[StoredSegment]) -> Page:
    term, floor, floor_head, purged, cleaned_to = heading
    return Page(term, segments[-1].last, floor, floor_head, purged, cleaned_to, tuple(segments))
