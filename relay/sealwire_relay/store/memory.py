"""The store in memory: deterministic, for simulations and for relays inside a test. Durable as long as the process."""

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import (
    MEMBERSHIP,
    NO_TERM,
    TERM_ID_BYTES,
    Author,
    DeviceKey,
    MailboxId,
    Position,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import TERMS_TOLD_MAX
from sealwire_protocol.membership import Role, decode_links, encode_links
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_relay.store.interface import (
    OUTCOMES_KEPT,
    PAGE_SEGMENTS_MAX,
    AckedPosition,
    Dirty,
    GuardName,
    KeptOutcome,
    Mailbox,
    MailboxVerdict,
    Mark,
    MemberState,
    NewLink,
    Page,
    Purge,
    PusherState,
    Reader,
    Room,
    Store,
    StoreDownError,
    StoredSegment,
    Subscription,
    Tombstones,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.rows import check_acks, check_swap, check_writes, signed, stream_of


@dataclass(slots=True)
class _Stream:
    kind: StreamKind
    head: int = 0
    top: int = 0
    floor: int = 0
    floor_head: int = 0
    purged: int = 0
    cleaned_to: int = 0
    compacted: int = 0
    tombstones: int = 0
    oldest_tombstone: int = 0
    marks: tuple[Mark, ...] = ()
    terms: list[TermStart] = field(default_factory=list)
    segments: list[StoredSegment] = field(default_factory=list)
    lasts: list[int] = field(default_factory=list)
    guards: dict[Tag, Current] = field(default_factory=dict)
    acks: dict[Author, tuple[Position, float]] = field(default_factory=dict)

    @property
    def term(self) -> Term:
        return self.terms[-1].term if self.terms else NO_TERM

    def state(self, stream: StreamId) -> StreamState:
        told = tuple(self.terms[-TERMS_TOLD_MAX:])
        floors = self.floor, self.floor_head, self.purged, self.cleaned_to
        return StreamState(stream, self.kind, self.head, self.top, *floors, told)

    def takes(self, term: Term) -> bool:
        """A stream's terms ascend."""
        return self.term == term or self.term.number < term.number

    def append(self, term: Term, segments: Sequence[StoredSegment]) -> None:
        if self.term != term:
            self.terms.append(TermStart(term, self.head))
        self.segments.extend(segments)
        self.lasts.extend(segment.last for segment in segments)
        self.head = self.lasts[-1]

    def swap(self, old: Sequence[StoredSegment], new: StoredSegment) -> bool:
        """Replace segments that are as they were read, judged as a database does."""
        first = bisect_right(self.lasts, old[0].prev)
        there = slice(first, first + len(old))
        if [_measured(segment) for segment in self.segments[there]] != [_measured(segment) for segment in old]:
            return False
        self.segments[there] = [new]
        self.lasts[there] = [new.last]
        return True

    def purge(self, purge: Purge) -> None:
        """Tombstones have gone."""
        self.floor, self.floor_head = max(self.floor, purge.floor), purge.head
        self.purged = max(self.purged, purge.purged)
        self.tombstones = max(self.tombstones - len(purge.dropped), 0)
        self.oldest_tombstone = max(self.oldest_tombstone, purge.floor + 1)
        for tag, seq in purge.dropped if purge.guarded else ():
            held = self.guards.get(tag)
            if held is not None and held.seq == seq and held.tombstone:
                del self.guards[tag]

    def dirty(self, vault: VaultId, stream: StreamId) -> Dirty:
        sizes = [len(segment.body) for segment in self.segments]
        tail = sum(sizes[bisect_right(self.lasts, self.compacted) :])
        return Dirty(vault, stream, self.head, self.compacted, sum(sizes), tail, len(sizes), self.term)


def _measured(segment: StoredSegment) -> tuple[int, int, int]:
    return segment.prev, segment.last, len(segment.body)


@dataclass(slots=True)
class _Member:
    state: MemberState
    last_batch: int = 0
    last_term: int = 0
    outcomes: dict[int, KeptOutcome] = field(default_factory=dict)


@dataclass(slots=True)
class _Vault:
    state: VaultState
    streams: dict[StreamId, _Stream]
    members: dict[Author, _Member]

    def by_device(self, device: DeviceKey) -> _Member | None:
        return next((m for m in self.members.values() if m.state.device == device), None)


@dataclass(slots=True)
class _Box:
    expires: float
    content: Mailbox


@dataclass(slots=True)
class MemoryDatabase:
    """What a MemoryStore keeps. Several stores may share one, as relay processes share a database."""

    term: Term = NO_TERM
    vaults: dict[VaultId, _Vault] = field(default_factory=dict)
    mailboxes: dict[MailboxId, _Box] = field(default_factory=dict)

    def copy(self) -> "MemoryDatabase":
        """A backup, as it were: nothing that happens to the one shows in the other."""
        return deepcopy(self)


class MemoryStore(Store):
    """A store in memory. `random_bytes` gives term ids, `clock` (seconds) lets mailboxes expire.

    No method ever waits, so each is atomic, and a run is determined by its calls and these two.
    """

    def __init__(
        self,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.time,
        database: MemoryDatabase | None = None,
    ) -> None:
        self.database = MemoryDatabase() if database is None else database
        self._random_bytes, self._clock = random_bytes, clock
        self._open = False

    async def open(self) -> None:
        """Nothing can fail here."""
        self._open = True

    async def close(self) -> None:
        """What was stored stays in `database`."""
        self._open = False

    async def ping(self) -> None:
        """Raises StoreDownError when closed."""
        self._data()

    def _data(self) -> MemoryDatabase:
        if not self._open:
            raise StoreDownError("The store is closed; nothing was done: open it first.")
        return self.database

    # --- terms

    async def open_term(self) -> Term:
        """Begin the next term."""
        data = self._data()
        data.term = Term(data.term.number + 1, self._random_bytes(TERM_ID_BYTES))
        return data.term

    async def current_term(self) -> Term:
        """The present term."""
        return self._data().term

    # --- vaults and streams

    async def create_vault(self, vault: VaultId, state: VaultState, link: NewLink, term: Term) -> bool:
        """Register a vault."""
        data = self._data()
        if vault in data.vaults or term != data.term:
            return False
        data.vaults[vault] = _Vault(state, {MEMBERSHIP: _Stream(StreamKind.MEMBERSHIP)}, {})
        self._add_link(data.vaults[vault], link, term)
        return True

    async def append_link(self, vault: VaultId, link: NewLink, term: Term) -> bool:
        """Append a link."""
        data = self._data()
        kept = data.vaults.get(vault)
        if kept is None or term != data.term:
            return False
        log = kept.streams[MEMBERSHIP]
        if log.head != link.seq - 1 or not log.takes(term):
            return False
        self._add_link(kept, link, term)
        return True

    @staticmethod
    def _add_link(kept: _Vault, link: NewLink, term: Term) -> None:
        segment = StoredSegment(link.seq - 1, link.seq, encode_links([link.raw]))
        kept.streams[MEMBERSHIP].append(term, [segment])
        if link.member is not None:
            kept.members[link.member.author] = _Member(link.member)
        if link.replaced is not None:
            member = kept.members[link.replaced]
            member.state = member.state._replace(role=Role.REPLACED)

    async def links(self, vault: VaultId) -> tuple[bytes, ...]:
        """The membership log."""
        kept = self._data().vaults.get(vault)
        segments = kept.streams[MEMBERSHIP].segments if kept else []
        return tuple(raw for segment in segments for raw in decode_links(segment.body))

    async def create_stream(self, vault: VaultId, stream: StreamId, kind: StreamKind) -> StreamKind:
        """Create a stream."""
        kept = self._data().vaults.get(vault)
        if kept is None:
            return StreamKind.ABSENT
        return kept.streams.setdefault(stream, _Stream(kind)).kind

    # --- reading

    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """States of streams."""
        data = self._data()
        kept = data.vaults.get(vault)
        member = kept.by_device(device) if kept else None
        if kept is None or member is None:
            return None
        absent = _Stream(StreamKind.ABSENT)
        states = tuple(kept.streams.get(stream, absent).state(stream) for stream in streams)
        return Subscription(data.term, kept.state, member.state, member.last_batch, states)

    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """One page."""
        log = self._log(vault, stream)
        if log is None:
            return None
        first = bisect_right(log.lasts, after)
        page: list[StoredSegment] = []
        size = 0
        for segment in log.segments[first : first + PAGE_SEGMENTS_MAX]:
            size += len(segment.body)
            if page and size > bytes_max:
                break
            page.append(segment)
        return Page(log.term, log.head, log.floor, log.floor_head, log.purged, log.cleaned_to, tuple(page))

    async def heads(self, names: Sequence[tuple[VaultId, StreamId]]) -> dict[tuple[VaultId, StreamId], int]:
        """The heads of streams."""
        logs = {(vault, stream): self._log(vault, stream) for vault, stream in names}
        return {name: log.head for name, log in logs.items() if log is not None}

    async def pusher(self, vault: VaultId, device: DeviceKey) -> PusherState | None:
        """A device's batches."""
        kept = self._data().vaults.get(vault)
        member = kept.by_device(device) if kept else None
        if member is None:
            return None
        outcomes = tuple(sorted(member.outcomes.values()))
        return PusherState(member.state, member.last_batch, member.last_term, outcomes)

    async def guards(self, wanted: Sequence[GuardName]) -> dict[GuardName, Current]:
        """What guarded streams hold."""
        found = {}
        for vault, stream, tag in wanted:
            log = self._log(vault, stream)
            if log is not None and tag in log.guards:
                found[vault, stream, tag] = log.guards[tag]
        return found

    # --- writing

    async def append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        """Vault by vault."""
        check_writes(writes)
        data = self._data()
        done = []
        for write in writes:
            holds = self._holds(data, write)
            if holds:
                self._write(data.vaults[write.vault], write)
            done.append(holds)
        return done

    @staticmethod
    def _holds(data: MemoryDatabase, write: VaultWrite) -> bool:
        kept = data.vaults.get(write.vault)
        if kept is None or write.term != data.term or write.epoch != kept.state.epoch:
            return False
        for stream in write.streams:
            log = kept.streams.get(stream.stream)
            if log is None or not log.takes(write.term):
                return False
            if (log.head, log.floor) != (stream.expected_head, stream.floor):
                return False
        expected: dict[Author, int] = {}
        for batch in write.batches:
            expected.setdefault(batch.author, batch.expected_last)
        pushers = [(kept.members.get(author), last) for author, last in expected.items()]
        return all(
            member is not None and member.last_batch == last and member.state.role is not Role.REPLACED
            for member, last in pushers
        )

    @staticmethod
    def _write(kept: _Vault, write: VaultWrite) -> None:
        for stream in write.streams:
            if stream.segments:
                log = kept.streams[stream.stream]
                log.append(write.term, stream.segments)
                log.top = max(log.top, stream.new_top)
                log.guards.update(stream.guards)
        for batch in write.batches:
            member = kept.members[batch.author]
            member.last_batch, member.last_term = batch.outcome.batch, write.term.number
            member.outcomes[batch.outcome.batch % OUTCOMES_KEPT] = batch.outcome

    # --- cleaning

    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """The next streams to be compacted."""
        logs = ((name, log) for name, log in self._logs_after(after) if log.head - log.compacted >= tail_min)
        return [log.dirty(*name) for name, log in islice(logs, streams_max)]

    def _logs_after(self, after: tuple[VaultId, StreamId] | None) -> Iterator[tuple[tuple[VaultId, StreamId], _Stream]]:
        """Streams of records, in the order of the columns that streams are found by."""
        names = ((vault, signed(stream)) for vault, kept in self._data().vaults.items() for stream in kept.streams)
        place = None if after is None else (after[0], signed(after[1]))
        for vault, column in sorted(name for name in names if place is None or name > place):
            stream = stream_of(column)
            log = self._log(vault, stream)
            if stream != MEMBERSHIP and log is not None:
                yield (vault, stream), log

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
        """Replace segments."""
        check_swap(stream, old, new, cleaned_to, purge)
        log = self._log(vault, stream)
        if log is None or log.term != term or not (cleaned_to <= log.head == (purge.head if purge else log.head)):
            return False
        if not log.swap(old, new):
            return False
        log.cleaned_to = max(log.cleaned_to, cleaned_to)
        if purge is not None:
            log.purge(purge)
        return True

    async def compacted(
        self, vault: VaultId, stream: StreamId, upto: int, term: Term, tombstones: int, oldest: int
    ) -> bool:
        """Note how far no loser is left."""
        log = self._log(vault, stream)
        if log is None or log.head < upto or log.term != term:
            return False
        if upto >= log.compacted:
            log.compacted, log.tombstones, log.oldest_tombstone = upto, tombstones, oldest
        return True

    async def tombstones(self, after: tuple[VaultId, StreamId] | None, streams_max: int) -> list[Tombstones]:
        """The next streams with tombstones."""
        logs = ((name, log) for name, log in self._logs_after(after) if log.tombstones)
        return [self._tombstones(*name, log) for name, log in islice(logs, streams_max)]

    def _tombstones(self, vault: VaultId, stream: StreamId, log: _Stream) -> Tombstones:
        members = self._data().vaults[vault].members
        readers = [
            Reader(author, members[author].state.device, members[author].state.role, position, seen)
            for author, (position, seen) in sorted(log.acks.items())
        ]
        numbers = log.head, log.compacted, log.floor, log.tombstones, log.oldest_tombstone
        return Tombstones(vault, stream, log.kind, *numbers, log.marks, tuple(log.terms), tuple(readers), self._clock())

    async def aged(self, vault: VaultId, stream: StreamId, marks: Sequence[Mark], oldest: int, term: Term) -> bool:
        """Note ages."""
        log = self._log(vault, stream)
        if log is None or log.term != term:
            return False
        log.marks, log.oldest_tombstone = tuple(marks), max(log.oldest_tombstone, oldest)
        if log.oldest_tombstone > log.compacted:
            log.tombstones = 0
        return True

    async def acked(self, acks: Sequence[AckedPosition]) -> None:
        """Note positions."""
        check_acks(acks)
        for vault, stream, device, position in acks:
            log, kept = self._log(vault, stream), self._data().vaults.get(vault)
            member = kept.by_device(device) if kept else None
            if log is not None and member is not None:
                log.acks[member.state.author] = position, self._clock()

    async def reclaim(self) -> Room:
        """There is nothing to be done: memory is given back when its last user has let go of it."""
        return Room(0, 0)

    def _log(self, vault: VaultId, stream: StreamId) -> _Stream | None:
        kept = self._data().vaults.get(vault)
        return kept.streams.get(stream) if kept else None

    # --- mailboxes

    async def open_mailbox(
        self, mailbox: MailboxId, vault: VaultId, inviter: DeviceKey, seconds: int
    ) -> MailboxVerdict:
        """Open a mailbox."""
        data = self._data()
        now = self._clock()
        data.mailboxes = {name: box for name, box in data.mailboxes.items() if box.expires > now}
        kept = data.vaults.get(vault)
        member = kept.by_device(inviter) if kept else None
        if member is None or member.state.role < Role.ADMIN:
            return MailboxVerdict.ABSENT
        fresh = _Box(now + seconds, Mailbox(vault, inviter, None, b"", b""))
        found = data.mailboxes.setdefault(mailbox, fresh).content
        own = (found.vault, found.inviter) == (vault, inviter)
        return MailboxVerdict.DONE if own else MailboxVerdict.ABSENT

    async def deposit(self, mailbox: MailboxId, joiner: DeviceKey, request: bytes) -> MailboxVerdict:
        """Leave a request."""
        box = self._box(mailbox)
        if box is None:
            return MailboxVerdict.ABSENT
        if box.content.joiner not in (None, joiner):
            return MailboxVerdict.USED
        if not box.content.answer:
            box.content = box.content._replace(joiner=joiner, request=request)
        return MailboxVerdict.DONE

    async def answer(self, mailbox: MailboxId, inviter: DeviceKey, answer: bytes) -> MailboxVerdict:
        """Leave the answer."""
        box = self._box(mailbox)
        if box is None or box.content.inviter != inviter or box.content.joiner is None:
            return MailboxVerdict.ABSENT
        box.content = box.content._replace(answer=answer)
        return MailboxVerdict.DONE

    async def mailbox(self, mailbox: MailboxId) -> Mailbox | None:
        """What lies in it."""
        box = self._box(mailbox)
        return box.content if box else None

    def _box(self, mailbox: MailboxId) -> _Box | None:
        box = self._data().mailboxes.get(mailbox)
        return box if box is not None and box.expires > self._clock() else None
