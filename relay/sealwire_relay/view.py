"""What ingest knows of a vault between commits: a cached view, and the decisions made on a copy of it. Pure.

A decision changes only the working copy (`Draft`); the view takes it over when the store has committed it.
"""

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sealwire_protocol import codec
from sealwire_protocol.conditions import Current, Judged, Write, judge, read_writes, refusals
from sealwire_protocol.errors import Action, CloseCode, DecodeError, FaultCode, Outcome, RemoteFault
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.faults import another_member, no_such_vault, term_changed, vault_deleted
from sealwire_protocol.history import newest_term
from sealwire_protocol.ids import NO_TERM, Author, DeviceKey, Position, StreamId, Tag, Term, VaultId
from sealwire_protocol.limits import PUSH_RECORDS_MAX, SEGMENT_BYTES_MAX, VERSION_STEP_MAX
from sealwire_protocol.links import Role
from sealwire_protocol.messages import (
    ATOMIC,
    REFILL,
    RESEAL,
    Appended,
    Deliver,
    Group,
    Push,
    Pushed,
    Refused,
    StreamKind,
    StreamState,
)
from sealwire_protocol.refills import Returned, is_outdated, judge_returned, read_returned
from sealwire_protocol.reseals import Resealed, decode_applied, judge_resealed, read_resealed, surveying_of
from sealwire_protocol.segment import TOMBSTONE, Survey, survey_single
from sealwire_relay.quota import Allowance
from sealwire_relay.store.interface import (
    OUTCOMES_KEPT,
    BatchWrite,
    GuardName,
    KeptOutcome,
    MemberState,
    PusherState,
    StreamWrite,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.segments import StoredSegment

DIGEST_BYTES: Final = 16

LIGHT_BYTES_MAX: Final = 1_024
"""A verdict of more bytes, which only one with many refusals has, is not kept in memory: 64 of them for every device of
10,000 vaults would be tens of gigabytes. The vault's view is forgotten instead, and read afresh when it is wanted."""


@dataclass(slots=True)
class Head:
    """A stream's head as last committed or read."""

    kind: StreamKind
    head: int
    top: int
    floor: int
    floor_head: int
    purged: int
    cleaned_to: int
    term: Term = NO_TERM
    """The newest one written in it."""

    @classmethod
    def of(cls, state: StreamState) -> "Head":
        """From what the store says of the stream."""
        floors = state.floor, state.floor_head, state.purged, state.cleaned_to
        return cls(state.kind, state.head, state.top, *floors, newest_term(state))


@dataclass(slots=True)
class Pusher:
    """A device's batches as last committed or read; `outcomes` by batch number, in ascending order."""

    author: Author
    role: Role
    last_batch: int
    last_term: int
    outcomes: dict[int, KeptOutcome]

    @classmethod
    def of(cls, state: PusherState) -> "Pusher":
        """From what the store says of the device."""
        kept = {outcome.batch: outcome for outcome in sorted(state.outcomes)}
        return cls(state.member.author, state.member.role, state.last_batch, state.last_term, kept)


@dataclass(slots=True)
class VaultView:
    """A vault as last committed or read: valid until a conditional write says otherwise. `heavy`: not to be kept."""

    state: VaultState
    allowance: Allowance
    heads: dict[StreamId, Head] = field(default_factory=dict)
    pushers: dict[DeviceKey, Pusher] = field(default_factory=dict)
    heavy: bool = False

    def add_pusher(self, device: DeviceKey, state: PusherState) -> None:
        """Take in what the store says of a device."""
        self.pushers[device] = Pusher.of(state)
        self.heavy = self.heavy or any(len(outcome.answer) > LIGHT_BYTES_MAX for outcome in state.outcomes)


class Admitted(NamedTuple):
    """A push whose bytes have been walked: what each group holds, a digest to know a repeat by, bytes and records.
    `plain`: it has no conditions, so that nothing is judged one by one."""

    device: DeviceKey
    push: Push
    surveys: tuple[Survey, ...]
    digest: bytes
    size: int
    records: int
    plain: bool


def size_of(push: Push) -> int:
    """The bytes that a push counts for, before anybody looks into it."""
    size = 0
    for _, conditions, body in push.groups:
        size += len(conditions) + len(body)
    return size


def admit_single(device: DeviceKey, push: Push, size: int) -> Admitted | None:
    """A push of a single record, whose bytes, `size` of them, are walked at once. None: it is another one."""
    if len(push.groups) != 1 or (found := survey_single(push.groups[0].records)) is None:
        return None
    return _admitted(device, push, (found,), size)


def admitting(device: DeviceKey, push: Push, size: int) -> Generator[None, None, Admitted]:
    """Walk the `size` bytes of a push, with pauses. Raises RemoteFault: the sender is no honest client."""
    groups = push.groups
    if len({group.stream for group in groups}) < len(groups):
        raise RemoteFault("a push names a stream twice")
    surveys = []
    for group in groups:
        found = yield from surveying_of(push.flags, group.records)
        surveys.append(found)
    if sum(found.records for found in surveys) > PUSH_RECORDS_MAX:
        raise RemoteFault(f"a push has more than {PUSH_RECORDS_MAX} records", CloseCode.TOO_LARGE)
    return _admitted(device, push, tuple(surveys), size)


def _admitted(device: DeviceKey, push: Push, surveys: tuple[Survey, ...], size: int) -> Admitted:
    said, records, plain = [bytes((push.flags,))], 0, True
    for found, (stream, conditions, body) in zip(surveys, push.groups, strict=True):
        records += found.records
        plain = plain and not conditions
        said += (stream, len(conditions).to_bytes(4, "big"), conditions, len(body).to_bytes(4, "big"), body)
    digest = hashlib.blake2b(b"".join(said), digest_size=DIGEST_BYTES).digest()
    return Admitted(device, push, surveys, digest, size, records, plain)


@dataclass(frozen=True, slots=True)
class Walked:
    """What is judged one by one of a push: the writes of its guarded groups, by index, or all that it returns, or
    what was sealed anew of them. `applied`: where the open ones of a reseal say that they stood."""

    guarded: dict[int, list[Write]] = field(default_factory=dict)
    returned: dict[int, list[Returned]] = field(default_factory=dict)
    resealed: dict[int, list[Resealed]] = field(default_factory=dict)
    applied: dict[int, Position] = field(default_factory=dict)


NOTHING_WALKED: Final = Walked()
"""Of most pushes nothing is judged one by one."""


class Standing:
    """Where a draft has come to with the batches of one device: the last one, and the outcomes that it adds."""

    __slots__ = ("last", "member", "outcomes", "pusher")

    def __init__(self, device: DeviceKey, pusher: Pusher) -> None:
        self.pusher, self.last = pusher, pusher.last_batch
        self.member = MemberState(pusher.author, device, pusher.role)
        self.outcomes: dict[int, KeptOutcome] = {}


class Growth:
    """What a draft adds to one stream. `is_condition`: something was decided on its head, which is a condition of the
    write from then on. `term`: what it is written under, the stream's own id of the present number if the vault has
    come back (R18)."""

    __slots__ = ("_room", "guards", "head", "is_condition", "known", "segments", "term", "top")

    def __init__(self, known: Head, term: Term) -> None:
        self.known, self.head, self.top = known, known.head, known.top
        self.term = known.term if known.term.number == term.number else term
        self.is_condition = False
        self.guards: dict[Tag, Current] = {}
        self.segments: list[tuple[int, list[bytes]]] = []
        """Where each begins, and its parts."""
        self._room = 0

    def append(self, records: int, top: int, body: bytes) -> int:
        """Append one group's accepted records. Returns the seq of the first."""
        before, size = self.head, len(body)
        if size > self._room:
            self.segments.append((before, []))
            self._room = SEGMENT_BYTES_MAX
        self.segments[-1][1].append(body)
        self._room -= size
        self.head = before + records
        self.top = max(self.top, top)
        self.is_condition = True
        return before + 1

    def stored(self) -> tuple[StoredSegment, ...]:
        """The segments, which tile what was added."""
        lasts = [*[begin for begin, _ in self.segments[1:]], self.head]
        pairs = zip(self.segments, lasts, strict=False)
        return tuple(StoredSegment(begin, last, b"".join(parts)) for (begin, parts), last in pairs)


class Draft:
    """One vault's part of a group commit: pushes taken in order, then decided in order, and what is to be written.

    `gap`: a push was refused because of what the view says of its device, and no condition of a write will tell if
    the view is old (the device may have pushed through another process): it counts only if the view was read afresh.

    `wanted`: what guarded streams hold of these is to be read, after the view, and given to `decide`. So are the states
    of `histories`, the streams that refills give records back to, and guarded ones in which some are sealed anew.
    `conflicts`: the answers, by index, that tell of winners; `refills`: those that judge a refill for the first time.
    Every stream that was looked at so is a condition of the write, so that a refusal is as exact as what is accepted.
    """

    def __init__(self, vault: VaultId, view: VaultView, term: Term) -> None:
        self.vault, self.view, self.term, self._key = vault, view, term, view.state.key
        self.answers: list[tuple[Admitted, Answer | Refuse]] = []
        self.gap = False
        self.records = 0
        self.wanted: set[GuardName] = set()
        self.histories: dict[StreamId, None] = {}
        self.conflicts: list[int] = []
        self.refills: list[int] = []
        self._taken: list[tuple[Admitted, Walked]] = []
        self._held: Mapping[GuardName, Current] = {}
        self._states: Mapping[StreamId, StreamState] = {}
        self._growths: dict[StreamId, Growth] = {}
        self._added = 0
        self._standings: dict[DeviceKey, Standing] = {}
        self._batches: list[BatchWrite] = []

    def take(self, admitted: Admitted) -> None:
        """The next push of this vault. What is judged one by one is walked, unless it is a repeat or a stranger's."""
        self._taken.append((admitted, NOTHING_WALKED if admitted.plain else self._walked(admitted)))

    def _walked(self, admitted: Admitted) -> Walked:
        pusher = self.view.pushers.get(admitted.device)
        if pusher is None or admitted.push.batch in pusher.outcomes:
            return NOTHING_WALKED
        walked, flags = Walked(), admitted.push.flags
        for index, (group, found) in enumerate(zip(admitted.push.groups, admitted.surveys, strict=True)):
            try:
                tags = self._walk(walked, index, group, found.records, flags)
            except DecodeError:
                continue  # _outcome says so
            if self._kind(group) is StreamKind.GUARDED:
                self.wanted.update((self.vault, group.stream, tag) for tag in tags)
        return walked

    def _walk(self, walked: Walked, index: int, group: Group, records: int, flags: int) -> list[Tag]:
        """Read what is said of each record of a group, if anything is to be. Raises DecodeError."""
        kind = self._kind(group)
        if flags & RESEAL:
            if kind is StreamKind.OPEN:
                walked.applied[index] = decode_applied(group.conditions)
            elif kind is StreamKind.GUARDED:
                walked.resealed[index] = read_resealed(group.conditions, group.records, records)
                self.histories[group.stream] = None
                return [one.tag for one in walked.resealed[index]]
        elif flags & REFILL:
            if kind in (StreamKind.OPEN, StreamKind.GUARDED):
                walked.returned[index] = read_returned(group.conditions, group.records, records)
                self.histories[group.stream] = None
                return [one.tag for one in walked.returned[index]]
        elif group.conditions and kind is StreamKind.GUARDED:
            walked.guarded[index] = read_writes(group.conditions, group.records, records)
            return [write.tag for write in walked.guarded[index]]
        return []

    def _kind(self, group: Group) -> StreamKind:
        head = self.view.heads.get(group.stream)
        return StreamKind.ABSENT if head is None else head.kind

    def decide(self, held: Mapping[GuardName, Current], states: Mapping[StreamId, StreamState]) -> None:
        """Judge the pushes taken since. `held`: what guarded streams hold of what is `wanted`, as the store has it, and
        `states` those of `histories`."""
        self._held, self._states = held, states
        for admitted, walked in self._taken:
            self.answers.append((admitted, self._judge(admitted, walked)))
        self._taken.clear()

    def _standing(self, device: DeviceKey) -> Standing | None:
        """None: the device is no member."""
        standing = self._standings.get(device)
        if standing is None and (pusher := self.view.pushers.get(device)) is not None:
            standing = self._standings[device] = Standing(device, pusher)
        return standing

    def _judge(self, admitted: Admitted, walked: Walked) -> Answer | Refuse:
        push = admitted.push
        standing = self._standing(admitted.device)
        if standing is None:
            return no_such_vault(self.vault, push.batch)
        if self.view.state.ended:
            return vault_deleted(self.vault, push.batch)
        pusher, last = standing.pusher, standing.last
        if not push.flags & (REFILL | RESEAL):
            for found in admitted.surveys:
                if found.author != pusher.author:
                    return another_member(self.vault, push.batch)
        kept = standing.outcomes.get(push.batch) or pusher.outcomes.get(push.batch)
        if kept is not None:
            return self._repeat(admitted, kept)
        if push.batch <= last:
            return Answer(Pushed(self.vault, push.batch, Outcome.STALE_NUMBER, (), ()))
        if pusher.role is Role.REPLACED:  # nothing that is not known is executed for it any more, and nothing kept
            return Answer(Pushed(self.vault, push.batch, Outcome.CLONED, (), ()))
        if push.term != self.term:
            return term_changed(self.vault, push.batch)
        if self.view.state.moved:  # this view is from after that, so it knows all outcomes that there will be
            return Answer(Pushed(self.vault, push.batch, Outcome.MOVED, (), ()))
        in_this_term = pusher.last_term == self.term.number or standing.outcomes
        if push.batch != last + 1 and in_this_term:
            self.gap = True
            why = f"batch {push.batch} does not follow batch {last}; subscribe again and send what is unanswered"
            return Refuse(FaultCode.BATCH_GAP, Action.RESUBSCRIBE, why, vault=self.vault, batch=push.batch)
        outcome = self._outcome(admitted, walked, pusher)
        appended, refused = self._append(admitted, walked) if outcome is Outcome.DONE else ((), ())
        answer = Pushed(self.vault, push.batch, outcome, appended, refused)
        if refused:
            self.conflicts.append(len(self.answers))
        if push.flags & REFILL:
            self.refills.append(len(self.answers))
        encoded = codec.encode(answer)
        kept = KeptOutcome(push.batch, admitted.digest, encoded)
        self._batches.append(BatchWrite(standing.member, last, kept))
        standing.last, standing.outcomes[push.batch] = push.batch, kept
        return Answer(answer, encoded)

    def _repeat(self, admitted: Admitted, kept: KeptOutcome) -> Answer:
        if kept.digest != admitted.digest:
            return Answer(Pushed(self.vault, admitted.push.batch, Outcome.CLONED, (), ()))
        answer = codec.decode(kept.answer)
        assert isinstance(answer, Pushed)
        return Answer(answer, kept.answer)

    def _outcome(self, admitted: Admitted, walked: Walked, pusher: Pusher) -> Outcome:
        if pusher.role < Role.WRITER:
            return Outcome.NOT_A_WRITER
        flags, groups = admitted.push.flags, admitted.push.groups
        for index, found in enumerate(admitted.surveys):
            group = groups[index]
            growth = self._growth(group.stream)
            if growth is None:
                return Outcome.SEAL_AGAIN if flags & RESEAL else Outcome.MALFORMED
            head, above = growth.known, found.top - growth.top
            if above > (0 if flags & RESEAL else VERSION_STEP_MAX):
                # Another process may have raised the top: this is so only as long as the head is the one known here.
                growth.is_condition = True
            if flags & RESEAL:
                outcome = self._of_reseal(walked, index, found, head)
                outcome = Outcome.SEAL_AGAIN if outcome is Outcome.DONE and above > 0 else outcome
            elif above > VERSION_STEP_MAX:
                return Outcome.MALFORMED
            elif flags & REFILL:
                outcome = self._of_refill(walked, index, found, group)
            else:
                said = index in walked.guarded or (head.kind is StreamKind.OPEN and not group.conditions)
                outcome = self._of_push(found, head, said)
            if outcome is not Outcome.DONE:
                return outcome
        return Outcome.DONE if self._fits(admitted) else Outcome.QUOTA

    def _growth(self, stream: StreamId) -> Growth | None:
        """None: there is no such stream."""
        growth = self._growths.get(stream)
        if growth is None and (known := self.view.heads.get(stream)) is not None:
            growth = self._growths[stream] = Growth(known, self.term)
        return growth

    def _fits(self, admitted: Admitted) -> bool:
        """Whether the vault may store all records of a push, should none of them be refused."""
        size = admitted.size if admitted.plain else sum(len(group.records) for group in admitted.push.groups)
        if self.view.allowance.takes(self._added + size, reserve=False):
            return True
        deletes = all(found.flags & TOMBSTONE for found in admitted.surveys)
        reserve = deletes or bool(admitted.push.flags & (REFILL | RESEAL))
        return self.view.allowance.takes(self._added + size, reserve)

    def _of_push(self, found: Survey, head: Head, said: bool) -> Outcome:
        """Whether a group may be in an ordinary push. `said`: of each record, what it replaces, if that must be."""
        if not said:
            return Outcome.MALFORMED
        if (found.epoch, found.key_id) != self._key:
            return Outcome.EPOCH_STALE
        return Outcome.SEAL_AGAIN if found.lowest <= head.purged else Outcome.DONE

    def _of_refill(self, walked: Walked, index: int, found: Survey, group: Group) -> Outcome:
        """Whether a group may be in a refill: of any author, whose link may come back later, and any epoch that there
        was, by a comparison with a history that still stands (R14). What was sealed under another key of the present
        epoch, or of a later one, waits until an epoch has handed that on (R15)."""
        if index not in walked.returned:
            return Outcome.MALFORMED
        state = self.view.state
        known = found.epoch < state.epoch or (found.epoch, found.key_id) == self._key
        if not known or is_outdated(group.conditions, self._states[group.stream]):
            return Outcome.SEAL_AGAIN
        return Outcome.DONE

    def _of_reseal(self, walked: Walked, index: int, found: Survey, head: Head) -> Outcome:
        """Whether a group may be in a reseal: of any author, under the present key. In an open stream nothing would be
        left to beat what was deleted since it was sealed, if that is forgotten."""
        if index not in walked.resealed and index not in walked.applied:
            return Outcome.MALFORMED
        if (found.epoch, found.key_id) != self._key:
            return Outcome.EPOCH_STALE
        if index in walked.resealed:
            return Outcome.DONE
        term, seq = walked.applied[index]
        return Outcome.DONE if term == self.term and seq >= head.floor_head else Outcome.SEAL_AGAIN

    def _append(self, admitted: Admitted, walked: Walked) -> tuple[tuple[Appended, ...], tuple[Refused, ...]]:
        groups = admitted.push.groups
        judged = {} if admitted.plain else self._judge_groups(groups, walked)
        refused: tuple[Refused, ...] = ()
        if judged:
            atomic = bool(admitted.push.flags & ATOMIC)
            refused = refusals([found.records for found in admitted.surveys], judged, atomic)
            if atomic and any(found.refused for found in judged.values()):
                return (), refused
        appended = []
        for index, found in enumerate(admitted.surveys):
            stream, _, body = groups[index]
            records, top, growth = found.records, found.top, self._growths[stream]
            if index in judged:
                records, top, body, holds, _, _ = judged[index]
                growth.guards.update(holds)
                if not records:
                    continue
            first = growth.append(records, top, body)
            self.records += records
            self._added += len(body)
            appended.append(Appended(stream, growth.term, first, records))
        return tuple(appended), refused

    def _judge_groups(self, groups: tuple[Group, ...], walked: Walked) -> dict[int, Judged]:
        """Judge what is judged one by one on top of what this draft has accepted. From now on these heads are
        conditions."""
        judged: dict[int, Judged] = {}
        for index in (*walked.guarded, *walked.returned, *walked.resealed):
            stream, body = groups[index].stream, groups[index].records
            growth = self._growths[stream]
            growth.is_condition = True
            head, held = growth.head, self._held_in(stream, growth.guards)
            if index in walked.returned:
                judged[index] = judge_returned(walked.returned[index], body, head, self._states[stream], held)
            elif index in walked.resealed:
                judged[index] = judge_resealed(walked.resealed[index], body, head, self._states[stream], held)
            else:
                judged[index] = judge(walked.guarded[index], body, head, held)
        return judged

    def _held_in(self, stream: StreamId, guards: dict[Tag, Current]) -> Callable[[Tag], Current | None]:
        return lambda tag: guards.get(tag) or self._held.get((self.vault, stream, tag))

    # --- what to write, and after it is written

    def write(self) -> VaultWrite | None:
        """The conditional write of all decisions; None: nothing to write (repeats and refusals only)."""
        if not self._batches:
            return None
        streams = []
        for stream, growth in self._growths.items():
            if growth.is_condition:
                known, term = growth.known, None if growth.term == self.term else growth.term
                stored, guards = growth.stored(), tuple(growth.guards.items())
                write = StreamWrite(stream, known.head, growth.head, growth.top, stored, guards, known.floor, term)
                streams.append(write)
        return VaultWrite(self.vault, self.term, self._key, tuple(streams), tuple(self._batches))

    def committed(self, write: VaultWrite) -> list[Deliver]:
        """Take the decisions over into the view. Returns the frames to offer, in order within each stream."""
        delivers = []
        self.view.allowance.added += self._added
        for stream in write.streams:
            head, term = self.view.heads[stream.stream], stream.term or self.term
            head.head, head.top = stream.new_head, stream.new_top
            if stream.segments:
                head.term = term
            for segment in stream.segments:
                delivers.append(
                    Deliver(
                        self.vault,
                        stream.stream,
                        term,
                        head.floor,
                        head.floor_head,
                        head.purged,
                        head.cleaned_to,
                        *segment,
                    )
                )
        for standing in self._standings.values():
            if standing.outcomes:
                self._kept(standing)
        return delivers

    def _kept(self, standing: Standing) -> None:
        """Take a device's outcomes over into the view, and forget those that need not be kept any more."""
        pusher, view = standing.pusher, self.view
        pusher.last_batch, pusher.last_term = standing.last, self.term.number
        outcomes = pusher.outcomes
        for batch, outcome in standing.outcomes.items():
            outcomes[batch] = outcome
            view.heavy = view.heavy or len(outcome.answer) > LIGHT_BYTES_MAX
            while (oldest := next(iter(outcomes))) <= batch - OUTCOMES_KEPT:
                del outcomes[oldest]
