"""The store in memory: deterministic, for simulations and for relays inside a test. Durable as long as the process."""

from bisect import bisect_right
from collections.abc import Sequence

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import (
    MEMBERSHIP,
    TERM_ID_BYTES,
    DeviceKey,
    Position,
    StreamId,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import STREAMS_PER_SESSION_MAX
from sealwire_protocol.links import Role, decode_links, encode_links
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.interface import (
    OUTCOMES_KEPT,
    PAGE_SEGMENTS_MAX,
    GuardName,
    LinkLog,
    MemberState,
    NewLink,
    Page,
    PusherState,
    Store,
    Subscription,
    TokenSpentError,
    TokenUse,
    Usage,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.kept import KeptMember, KeptStream, KeptVault, MemoryDatabase
from sealwire_relay.store.memory_administration import MemoryAdministration
from sealwire_relay.store.memory_cleaning import MemoryCleaning
from sealwire_relay.store.memory_mailboxes import MemoryMailboxes
from sealwire_relay.store.rows import check_end, check_writes, link_segments
from sealwire_relay.store.segments import StoredSegment


class MemoryStore(MemoryAdministration, MemoryCleaning, MemoryMailboxes, Store):
    """A store in memory. `random_bytes` gives term ids, `clock` (seconds) lets mailboxes expire.

    No method ever waits, so each is atomic, and a run is determined by its calls and these two.
    """

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

    async def create_vault(
        self, vault: VaultId, state: VaultState, link: NewLink, term: Term, use: TokenUse | None = None, quota: int = 0
    ) -> bool:
        """Register a vault."""
        data = self._data()
        if vault in data.vaults or term != data.term:
            return False
        if use is not None:
            self._count(data, use)
        data.vaults[vault] = KeptVault(state, {MEMBERSHIP: KeptStream(StreamKind.MEMBERSHIP)}, {}, quota)
        self._add_link(data.vaults[vault], link, term)
        return True

    @staticmethod
    def _count(data: MemoryDatabase, use: TokenUse) -> None:
        made = data.tokens.get(use.serial, 0)
        if made >= use.vaults_max:
            raise TokenSpentError
        data.tokens[use.serial] = made + 1

    async def raise_quota(self, vault: VaultId, quota: int, use: TokenUse) -> bool:
        """Give a quota."""
        data = self._data()
        kept = data.vaults.get(vault)
        if kept is None or kept.quota >= quota:
            return False
        self._count(data, use)
        kept.quota = quota
        return True

    async def usage(self, vault: VaultId) -> Usage | None:
        """What a vault stores."""
        kept = self._data().vaults.get(vault)
        return None if kept is None else Usage(kept.bytes, kept.quota)

    async def receipt_key(self) -> bytes:
        """The same in every database, unless it is set."""
        return self._data().receipt_key

    async def append_link(self, vault: VaultId, link: NewLink, term: Term) -> Term | None:
        """Append a link."""
        data = self._data()
        kept = data.vaults.get(vault)
        if kept is None or term != data.term:
            return None
        log = kept.streams[MEMBERSHIP]
        if link.there not in (None, log.term):
            return None
        if log.head != link.seq - 1 or not log.takes(term):
            return None
        self._add_link(kept, link, term if log.term.number < term.number else log.term)
        self._set_state(data, vault, link.state or kept.state, term)
        return log.term

    async def replace_links(
        self,
        vault: VaultId,
        there: LinkLog,
        after: int,
        links: Sequence[bytes],
        members: Sequence[MemberState],
        state: VaultState,
        term: Term,
    ) -> bool:
        """Replace links."""
        check_end(there, after, links)
        data = self._data()
        kept = data.vaults.get(vault)
        if kept is None or term != data.term:
            return False
        log = kept.streams[MEMBERSHIP]
        if (log.head, log.term) != (len(there.links), there.term) or not log.takes(term):
            return False
        parted = Term(term.number, self._random_bytes(TERM_ID_BYTES))
        log.part(parted, after)
        log.append(parted, link_segments(after, links), self._clock())
        self._set_members(kept, members)
        self._set_state(data, vault, state, term)
        return True

    def _set_state(self, data: MemoryDatabase, vault: VaultId, state: VaultState, term: Term) -> None:
        kept = data.vaults[vault]
        if kept.state.moved and not state.moved:
            fresh = TermStart(Term(term.number, self._random_bytes(TERM_ID_BYTES)), 0)
            log = kept.streams[MEMBERSHIP]
            kept.streams = {name: KeptStream(each.kind, terms=[fresh]) for name, each in kept.streams.items()}
            kept.streams[MEMBERSHIP] = log
            for member in kept.members.values():
                member.last_term = 0
        kept.state = state
        if state.ended:
            kept.streams = {MEMBERSHIP: kept.streams[MEMBERSHIP]}
            data.ended.add(vault)

    async def clear(self, rows_max: int) -> bool:
        """What was kept of one vault."""
        data = self._data()
        if not data.ended:
            return False
        vault = data.ended.pop()
        data.mailboxes = {name: box for name, box in data.mailboxes.items() if box.content.vault != vault}
        for member in data.vaults[vault].members.values():
            member.outcomes.clear()
        return True

    @staticmethod
    def _set_members(kept: KeptVault, members: Sequence[MemberState]) -> None:
        before, kept.members = kept.members, {}
        for state in members:
            member = before.pop(state.author, None)
            if member is None or member.state.device != state.device:
                member = KeptMember(state)
                for log in kept.streams.values():
                    log.acks.pop(state.author, None)
            member.state = state
            kept.members[state.author] = member
        for author in before:
            for log in kept.streams.values():
                log.acks.pop(author, None)

    def _add_link(self, kept: KeptVault, link: NewLink, term: Term) -> None:
        segment = StoredSegment(link.seq - 1, link.seq, encode_links([link.raw]))
        kept.streams[MEMBERSHIP].append(term, [segment], self._clock())
        if link.member is not None:
            kept.members[link.member.author] = KeptMember(link.member)
        if link.replaced is not None:
            member = kept.members[link.replaced]
            member.state = member.state._replace(role=Role.REPLACED)
        if link.arrives:
            kept.arrived = self._clock()
        for author in link.removed:
            del kept.members[author]
            for log in kept.streams.values():
                log.acks.pop(author, None)

    async def links(self, vault: VaultId, after: int = 0) -> LinkLog:
        """The membership log."""
        kept = self._data().vaults.get(vault)
        log = kept.streams[MEMBERSHIP] if kept else KeptStream(StreamKind.ABSENT)
        segments = log.segments[bisect_right(log.lasts, after) :]
        return LinkLog(log.term, tuple(raw for segment in segments for raw in decode_links(segment.body)))

    async def members(self, vaults: Sequence[VaultId]) -> dict[VaultId, set[DeviceKey]]:
        """Who belongs to vaults."""
        kept = self._data().vaults
        return {
            vault: {member.state.device for member in kept[vault].members.values()} if vault in kept else set()
            for vault in vaults
        }

    async def create_stream(
        self, vault: VaultId, stream: StreamId, kind: StreamKind, streams_max: int = STREAMS_PER_SESSION_MAX
    ) -> StreamKind:
        """Create a stream."""
        kept = self._data().vaults.get(vault)
        if kept is None or kept.state.ended:
            return StreamKind.ABSENT
        if stream not in kept.streams and len(kept.streams) > streams_max:
            return StreamKind.ABSENT
        return kept.streams.setdefault(stream, KeptStream(kind)).kind

    # --- reading

    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """States of streams."""
        data = self._data()
        kept = data.vaults.get(vault)
        member = kept.by_device(device) if kept else None
        if kept is None or member is None:
            return None
        absent = KeptStream(StreamKind.ABSENT)
        states = tuple(kept.streams.get(stream, absent).state(stream) for stream in streams)
        return Subscription(data.term, kept.state, member.state, member.last_batch, states, data.receipt_key)

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

    async def heads(self, names: Sequence[tuple[VaultId, StreamId]]) -> dict[tuple[VaultId, StreamId], Position]:
        """The heads of streams."""
        logs = {(vault, stream): self._log(vault, stream) for vault, stream in names}
        return {name: Position(log.term, log.head) for name, log in logs.items() if log is not None}

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
        if kept is None or write.term != data.term or write.key != kept.state.key or kept.state.moved:
            return False
        for stream in write.streams:
            log = kept.streams.get(stream.stream)
            if log is None or not log.takes(stream.term or write.term):
                return False
            if (log.head, log.floor) != (stream.expected_head, stream.floor):
                return False
        expected: dict[MemberState, int] = {}
        for batch in write.batches:
            expected.setdefault(batch.member, batch.expected_last)
        pushers = [(kept.members.get(judged.author), judged, last) for judged, last in expected.items()]
        return all(
            member is not None and member.last_batch == last and member.state == judged
            for member, judged, last in pushers
        )

    def _write(self, kept: KeptVault, write: VaultWrite) -> None:
        for stream in write.streams:
            if stream.segments:
                log = kept.streams[stream.stream]
                log.append(stream.term or write.term, stream.segments, self._clock())
                log.top = max(log.top, stream.new_top)
                log.guards.update(stream.guards)
        for batch in write.batches:
            member = kept.members[batch.author]
            member.last_batch, member.last_term = batch.outcome.batch, write.term.number
            member.outcomes[batch.outcome.batch % OUTCOMES_KEPT] = batch.outcome
