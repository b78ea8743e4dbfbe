"""What a cleaner asks of the storage, and acknowledgements, by which it knows how long a tombstone must stay."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import (
    MEMBERSHIP,
    NO_TERM,
    Author,
    DeviceKey,
    Position,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.segments import StoredSegment


class Dirty(NamedTuple):
    """A stream of which the records `(compacted, head]` are not compacted yet, its tail.

    Sizes are of bodies, in bytes: of all of its segments, and of those that end after `compacted`. `term` is the
    newest one written in it: what is read from now on is of this history as long as the stream's term is this one.
    """

    vault: VaultId
    stream: StreamId
    head: int
    compacted: int
    bytes: int
    tail_bytes: int
    segments: int
    term: Term


class Room(NamedTuple):
    """What the large bodies of segments take up on the disk, in bytes, as the database counts or estimates it.

    The difference is room that is used again by what is written next. Zeros where the database says nothing.
    """

    size: int
    used: int


class Purge(NamedTuple):
    """Tombstones that a swap leaves out, on condition that the head is still the one up to which the log was read."""

    floor: int
    """The last of them: up to here no tombstone is left (R11)."""
    head: int
    purged: int
    """The greatest of their versions."""
    dropped: tuple[tuple[Tag, int], ...]
    """Their tags and seqs."""
    guarded: bool
    """Whether the stream is guarded: what it holds of these is forgotten then."""


class AckedPosition(NamedTuple):
    """Up to where a device has applied a stream, by what it says itself."""

    vault: VaultId
    stream: StreamId
    device: DeviceKey
    position: Position


class Mark(NamedTuple):
    """The head at some time, in seconds since 1970: what lies at or below it is at least as old."""

    head: int
    at: int


class Reader(NamedTuple):
    """A device that has subscribed to a stream: what it said last of its position, and when (seconds since 1970)."""

    author: Author
    device: DeviceKey
    role: Role
    position: Position
    seen: float


class Tombstones(NamedTuple):
    """The tombstones in the compacted part of a stream, and all that says how long they must stay.

    There are `number` of them, none before `oldest`; either may be too careful where a cleaner was interrupted. `now`
    is the database's clock, by which the ages in `marks` (the oldest first) and `readers` are to be taken. `terms` are
    all of the stream's, the oldest first.
    """

    vault: VaultId
    stream: StreamId
    kind: StreamKind
    head: int
    compacted: int
    floor: int
    number: int
    oldest: int
    marks: tuple[Mark, ...]
    terms: tuple[TermStart, ...]
    readers: tuple[Reader, ...]
    now: float
    arrived: float = -math.inf
    """When the vault was moved to this relay: devices that have not been seen here since may hold what is deleted."""

    @property
    def term(self) -> Term:
        """The newest one written in the stream."""
        return self.terms[-1].term if self.terms else NO_TERM


class Cleaning(ABC):
    """The part of a store that is about logs that stay small. See Store for what every method promises."""

    @abstractmethod
    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """The next streams with `tail_min` or more seqs to be compacted, on one view of the database.

        At most `streams_max` of them, in the order of their keys, from the beginning or after the one that is named.
        Stream 0 is never among them."""

    @abstractmethod
    async def swap(
        self,
        vault: VaultId,
        stream: StreamId,
        old: Sequence[StoredSegment],
        new: StoredSegment,
        cleaned_to: int,
        term: Term,
        purge: Purge | None = None,
    ) -> bool:
        """Put `new` in the place of `old`, segments as they were read, and raise `cleaned_to` to this, all at once.

        `new` holds records of `old` at their old seqs and no others. `cleaned_to` is the greatest seq whose record
        was looked at to tell which may go: once a reader misses one of them, it is told that this may be why (R9).
        `term` is the stream's from before the first of these records was read. With `purge` the floor and what goes
        with it are raised too, the floor's head is the purge's, and guards are forgotten.

        False: not all of `old` are there as they were read, the head is below `cleaned_to` or not the purge's, or the
        stream's term is another one. Nothing written then. A segment is as it was read if its place and the size of
        its body are the same: within one history bodies only ever lose records. Appends go on meanwhile. Cancelled, it
        was made or not. Raises OutcomeUnknownError as `append` does, and LocalMisuse if `new` does not begin and end
        where `old` does, `cleaned_to` lies before that end, or the purge is of anything else."""

    @abstractmethod
    async def compacted(
        self, vault: VaultId, stream: StreamId, upto: int, term: Term, tombstones: int, oldest: int
    ) -> bool:
        """Note that up to here of no tag more than one record is left, and that so many of them are tombstones, none
        before `oldest`. Never goes back: of a part that is known to be longer, nothing is noted.

        False: the head is below `upto`, or the stream's term is not `term`. Nothing written then."""

    @abstractmethod
    async def tombstones(self, after: tuple[VaultId, StreamId] | None, streams_max: int) -> list[Tombstones]:
        """The next streams that have tombstones, on one view of the database; else as `dirty`."""

    @abstractmethod
    async def aged(self, vault: VaultId, stream: StreamId, marks: Sequence[Mark], oldest: int, term: Term) -> bool:
        """Note how old records are, in the place of what was noted, and that no tombstone lies before `oldest`, which
        never goes back. Beyond the compacted part, it says that none of the counted ones is left.

        False: the stream's term is not `term`. Nothing written then."""

    @abstractmethod
    async def acked(self, acks: Sequence[AckedPosition]) -> None:
        """Note what devices said of their positions, and that they did so now; the last word counts, also where it
        goes back. Of devices that are no members, and of streams that do not exist, nothing is noted. Raises
        LocalMisuse if one device says two things of a stream."""

    @abstractmethod
    async def reclaim(self) -> Room:
        """Let what is written next use the room of segments that were replaced, and give back to the disk what of it
        lies at the end of a file. Says what is taken up then.

        Takes as long as the database likes, at its own pace, and nobody waits for it. Where that is being done
        already, or not allowed, it does nothing. Cancelled, it was done or not."""


def check_swap(
    stream: StreamId, old: Sequence[StoredSegment], new: StoredSegment, cleaned_to: int, purge: Purge | None
) -> None:
    """Raise LocalMisuse unless `old` tiles the part of a log of records that `new` spans, `cleaned_to` reaches its end,
    and what is purged lies in it."""
    if stream == MEMBERSHIP:
        raise LocalMisuse("the links of a membership log are not to be left out")
    if not old or (old[0].prev, old[-1].last) != (new.prev, new.last):
        raise LocalMisuse("the new segment of a swap does not begin and end where the old ones do")
    if any(first.last != second.prev for first, second in pairwise(old)):
        raise LocalMisuse("the segments of a swap do not tile")
    if any(segment.prev >= segment.last for segment in (*old, new)):
        raise LocalMisuse("a segment of a swap is empty")
    if cleaned_to < new.last or (purge is not None and cleaned_to > purge.head):
        raise LocalMisuse("a swap replaces records beyond what it says was cleaned")
    if purge is not None:
        seqs = [seq for _, seq in purge.dropped]
        if not seqs or min(seqs) <= new.prev or max(seqs) != purge.floor or purge.floor > new.last:
            raise LocalMisuse("a swap purges what does not lie in it, or tells another floor than the last of that")


def check_acks(acks: Sequence[AckedPosition]) -> None:
    """Raise LocalMisuse if one device says two things of a stream."""
    if len({(ack.vault, ack.stream, ack.device) for ack in acks}) < len(acks):
        raise LocalMisuse("a device is said to stand at two positions of a stream")
