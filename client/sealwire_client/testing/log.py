"""What a relay keeps and decides, in memory: vaults, streams, terms, outcomes of batches, mailboxes. Nothing waits.

It follows the rules of the real relay's log (PROTOCOL.md), and may be told to break them, for tests of attacks.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sealwire_client import cipher
from sealwire_client.testing.comparing import ranges, records
from sealwire_protocol import codec
from sealwire_protocol.conditions import Current, Judged, judge, read_writes, refusals, with_winners
from sealwire_protocol.errors import Action, DecodeError, FaultCode, Outcome
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.ids import (
    MEMBERSHIP,
    NO_TERM,
    TERM_ID_BYTES,
    Author,
    DeviceKey,
    MailboxId,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import MAILBOX_SECONDS_MAX, VERSION_STEP_MAX
from sealwire_protocol.membership import Genesis, LinkError, Membership, Role, decode_link, encode_links, vault_id_of
from sealwire_protocol.messages import (
    ATOMIC,
    NO_VAULT,
    REFILL,
    AnswerJoin,
    Appended,
    AppendLink,
    CreateStream,
    CreateVault,
    Deliver,
    Done,
    Fetch,
    Group,
    Join,
    OpenMailbox,
    Push,
    Pushed,
    Reconcile,
    StreamKind,
    StreamState,
    Subscribe,
    Subscribed,
)
from sealwire_protocol.refills import is_outdated, judge_returned, read_returned, survey_refill
from sealwire_protocol.relay_session import term_changed
from sealwire_protocol.segment import TOMBSTONE, Placed, Survey, encode_record, read_segment, survey

OUTCOMES_KEPT: Final = 64
"""Outcomes kept for each device of a vault, as by the real relay."""


@dataclass(slots=True)
class Stream:
    """One stream's log: segments as (prev, last, bytes); `guards`: what a guarded one holds of each tag.

    Deletions up to `floor` were left out when `floor_head` was the head; `purged` is their greatest version."""

    kind: StreamKind
    head: int = 0
    top: int = 0
    terms: list[TermStart] = field(default_factory=list)
    segments: list[tuple[int, int, bytes]] = field(default_factory=list)
    guards: dict[Tag, Current] = field(default_factory=dict)
    floor: int = 0
    floor_head: int = 0
    purged: int = 0

    @property
    def term(self) -> Term:
        """The newest term written in it."""
        return self.terms[-1].term if self.terms else NO_TERM

    def state(self, stream: StreamId) -> StreamState:
        """As SUBSCRIBED tells it."""
        floors = self.floor, self.floor_head, self.purged, self.floor_head
        return StreamState(stream, self.kind, self.head, self.top, *floors, tuple(self.terms))

    def append(self, term: Term, records: int, top: int, body: bytes) -> int:
        """Add a segment at the end. Returns the head before it."""
        prev = self.head
        if self.term != term:
            self.terms.append(TermStart(term, prev))
        self.head, self.top = prev + records, max(self.top, top)
        self.segments.append((prev, self.head, body))
        return prev

    def after(self, cursor: int) -> list[tuple[int, int, bytes]]:
        """The segments that hold something after a seq."""
        return self.segments[bisect_right(self.segments, cursor, key=lambda segment: segment[1]) :]

    def purge(self) -> None:
        """Leave out all that was superseded, and all deletions, as a cleaner does when they are old (R11)."""
        best: dict[Tag, Placed] = {}
        for placed in self.records():
            held = best.get(placed.record.tag)
            if held is None or placed.record.rank >= held.record.rank:
                best[placed.record.tag] = placed
        dropped = [placed for placed in best.values() if placed.record.flags & TOMBSTONE]
        if not dropped:
            return
        stays = {placed.seq for placed in best.values()} - {placed.seq for placed in dropped}
        segments = []
        for prev, last, body in self.segments:
            seq, kept = prev, []
            for placed in read_segment(body, prev):
                if placed.seq in stays:
                    kept.append(encode_record(placed.record, placed.seq - seq - 1))
                    seq = placed.seq
            segments.append((prev, last, b"".join(kept)))
        self.segments = segments
        self.guards = {tag: held for tag, held in self.guards.items() if not held.tombstone}
        self.floor, self.floor_head = max(placed.seq for placed in dropped), self.head
        self.purged = max(self.purged, *(placed.record.version for placed in dropped))

    def records(self) -> Iterator[Placed]:
        """Every record, in order."""
        for prev, _, body in self.segments:
            yield from read_segment(body, prev)


@dataclass(slots=True)
class Pusher:
    """A device's batches in a vault: the last one, the term that it came under, and verdicts by number."""

    last: int = 0
    term: int = 0
    outcomes: dict[int, tuple[bytes, Pushed]] = field(default_factory=dict)


@dataclass(slots=True)
class Vault:
    """One vault: its members as its log names them, and its streams."""

    membership: Membership = field(default_factory=Membership)
    links: list[bytes] = field(default_factory=list)
    streams: dict[StreamId, Stream] = field(default_factory=dict)
    pushers: dict[Author, Pusher] = field(default_factory=dict)


@dataclass(slots=True)
class Mailbox:
    """The mailbox of an invite, until it expires (by trio's clock)."""

    vault: VaultId
    inviter: DeviceKey
    expires: float
    joiner: DeviceKey | None = None
    request: bytes = b""
    answer: bytes = b""


class Verdict(NamedTuple):
    """What a device is told, and what everyone who listens is to be sent then."""

    told: Answer | Refuse
    delivers: tuple[Deliver, ...] = ()


@dataclass(slots=True)
class MemoryLog:
    """All that a relay keeps. A deep copy of it is a backup."""

    term: Term = NO_TERM
    vaults: dict[VaultId, Vault] = field(default_factory=dict)
    mailboxes: dict[MailboxId, Mailbox] = field(default_factory=dict)

    def open_term(self, at_least: int = 0) -> Term:
        """Begin another term (R7)."""
        self.term = Term(max(self.term.number, at_least) + 1, os.urandom(TERM_ID_BYTES))
        return self.term

    def stream(self, vault: VaultId, stream: StreamId) -> Stream | None:
        """A stream, if there is one."""
        kept = self.vaults.get(vault)
        return kept.streams.get(stream) if kept else None

    def deliver(self, vault: VaultId, stream: StreamId, prev: int, last: int, body: bytes) -> Deliver:
        """A segment as it is sent."""
        kept = self.vaults[vault].streams[stream]
        floors = kept.floor, kept.floor_head, kept.purged, kept.floor_head
        return Deliver(vault, stream, kept.term, *floors, prev, last, body)

    def forge(self, vault: VaultId, stream: StreamId, body: bytes, records: int = 1, top: int = 0) -> Deliver:
        """Append bytes that no honest relay would have taken in. Returns what to send to those who listen."""
        prev = self.vaults[vault].streams[stream].append(self.term, records, top, body)
        return self.deliver(vault, stream, prev, prev + records, body)

    # --- requests

    def subscribe(self, device: DeviceKey, message: Subscribe) -> Verdict:
        """SUBSCRIBE: the state of each stream asked for."""
        kept = self._of_member(message.vault, device)
        if kept is None:
            return Verdict(_no_such_vault(message.vault))
        absent = Stream(StreamKind.ABSENT)
        states = [kept.streams.get(wanted.stream, absent).state(wanted.stream) for wanted in message.streams]
        pusher = self._pusher(kept, device)
        epoch, key_id = kept.membership.epoch, kept.membership.key_id
        return Verdict(Answer(Subscribed(message.vault, self.term, epoch, key_id, pusher.last, tuple(states))))

    def create_vault(self, message: CreateVault) -> Verdict:
        """CREATE_VAULT, by whoever has the genesis link. Raises LinkError."""
        vault, membership = vault_id_of(message.link), Membership()
        link = membership.apply(message.link, cipher.verify)
        if not isinstance(link.body, Genesis):
            raise LinkError("a vault is created by its genesis link")
        if vault not in self.vaults:
            kept = self.vaults[vault] = Vault(membership, [message.link])
            log = kept.streams[MEMBERSHIP] = Stream(StreamKind.MEMBERSHIP)
            log.append(self.term, 1, 0, encode_links([message.link]))
        return Verdict(Answer(Done(message.request)))

    def create_stream(self, device: DeviceKey, message: CreateStream) -> Verdict:
        """CREATE_STREAM."""
        kept = self._of_member(message.vault, device)
        if kept is None:
            return Verdict(_no_such_vault(message.vault, message.request))
        member = kept.membership.by_device(device)
        if member is None or member.role < Role.WRITER:
            why = "a reader of this vault may not create collections in it"
            return Verdict(Refuse(FaultCode.NOT_ALLOWED, Action.STOP, why, message.request, message.vault))
        if message.kind not in (StreamKind.OPEN, StreamKind.GUARDED) or message.stream == MEMBERSHIP:
            why = "a stream can be made open or guarded, and stream 0 is the vault's own; nothing was made"
            return Verdict(Refuse(FaultCode.UNSUPPORTED, Action.STOP, why, message.request, message.vault))
        kind = kept.streams.setdefault(message.stream, Stream(message.kind)).kind
        if kind is not message.kind:
            why = f"the stream exists already and is {kind.name.lower()}"
            return Verdict(Refuse(FaultCode.STREAM_KIND, Action.STOP, why, message.request, message.vault))
        return Verdict(Answer(Done(message.request)))

    def append_link(self, device: DeviceKey, message: AppendLink) -> Verdict:
        """LINK, by whoever has one that follows (R15). Raises LinkError."""
        strange = Verdict(_no_such_vault(message.vault, message.request))
        kept = self.vaults.get(message.vault)
        if kept is None:
            return strange
        is_member = self._of_member(message.vault, device) is not None
        try:
            place = decode_link(message.link).seq
            if 0 < place <= len(kept.links):
                if kept.links[place - 1] == message.link:
                    return Verdict(Answer(Done(message.request)))
                why = "another link was appended meanwhile; read the membership log and sign anew"
                conflict = Refuse(FaultCode.LINK_CONFLICT, Action.RETRY, why, message.request, message.vault)
                return Verdict(conflict) if is_member else strange
            kept.membership.apply(message.link, cipher.verify)
        except LinkError:
            if is_member:
                raise
            return strange
        kept.links.append(message.link)
        body = encode_links([message.link])
        prev = kept.streams[MEMBERSHIP].append(self.term, 1, 0, body)
        deliver = self.deliver(message.vault, MEMBERSHIP, prev, prev + 1, body)
        return Verdict(Answer(Done(message.request)), (deliver,))

    # --- comparing

    def reconcile(self, device: DeviceKey, message: Reconcile) -> Verdict:
        """RECONCILE."""
        found = self._compared(device, message)
        if isinstance(found, Refuse):
            return Verdict(found)
        stream = found or Stream(StreamKind.ABSENT)
        return Verdict(ranges(message, stream.state(message.stream), stream.records()))

    def fetch(self, device: DeviceKey, message: Fetch) -> Verdict:
        """FETCH."""
        found = self._compared(device, message)
        if isinstance(found, Refuse):
            return Verdict(found)
        stream = found or Stream(StreamKind.ABSENT)
        return Verdict(records(message, stream.state(message.stream), stream.records()))

    def _compared(self, device: DeviceKey, message: Reconcile | Fetch) -> Stream | Refuse | None:
        kept = self._of_member(message.vault, device)
        return _no_such_vault(message.vault, message.request) if kept is None else kept.streams.get(message.stream)

    def _of_member(self, vault: VaultId, device: DeviceKey) -> Vault | None:
        kept = self.vaults.get(vault)
        return kept if kept is not None and kept.membership.by_device(device) is not None else None

    @staticmethod
    def _pusher(kept: Vault, device: DeviceKey) -> Pusher:
        member = kept.membership.by_device(device)
        assert member is not None
        return kept.pushers.setdefault(member.author, Pusher())

    @staticmethod
    def _role(kept: Vault, device: DeviceKey) -> Role | None:
        member = kept.membership.by_device(device)
        return member.role if member is not None else None

    # --- pushes

    def push(self, device: DeviceKey, push: Push) -> Verdict:
        """PUSH: the verdict, the same again for a repeat. Raises DecodeError for bytes that are no records."""
        walk = survey_refill if push.flags & REFILL else survey
        surveys = [walk(group.records) for group in push.groups]
        kept = self._of_member(push.vault, device)
        if kept is None:
            return Verdict(_no_such_vault(push.vault, batch=push.batch))
        pusher = self._pusher(kept, device)
        digest = hashlib.blake2b(codec.encode(Push(push.vault, NO_TERM, 0, push.flags, push.groups))).digest()
        if push.batch in pusher.outcomes:
            known, answer = pusher.outcomes[push.batch]
            cloned = Pushed(push.vault, push.batch, Outcome.CLONED, (), ())
            return Verdict(Answer(answer if known == digest else cloned))
        if push.batch <= pusher.last:
            return Verdict(Answer(Pushed(push.vault, push.batch, Outcome.STALE_NUMBER, (), ())))
        if self._role(kept, device) is Role.REPLACED:
            return Verdict(Answer(Pushed(push.vault, push.batch, Outcome.CLONED, (), ())))
        if push.term != self.term:
            return Verdict(term_changed(push.vault, push.batch))
        if push.batch != pusher.last + 1 and pusher.term == self.term.number:
            why = f"batch {push.batch} does not follow batch {pusher.last}; subscribe again and send what is unanswered"
            return Verdict(Refuse(FaultCode.BATCH_GAP, Action.RESUBSCRIBE, why, vault=push.vault, batch=push.batch))
        outcome, judged = self._judge(kept, device, push, surveys)
        refused = refusals([found.records for found in surveys], judged, bool(push.flags & ATOMIC))
        conflict = any(found.refused for found in judged.values())
        nothing = outcome is not Outcome.DONE or (conflict and push.flags & ATOMIC)
        delivers = () if nothing else self._append(kept, push, surveys, judged)
        appended = tuple(Appended(sent.stream, self.term, sent.prev + 1, sent.last - sent.prev) for sent in delivers)
        answer = Pushed(push.vault, push.batch, outcome, appended, refused)
        pusher.last, pusher.term = push.batch, self.term.number
        pusher.outcomes[push.batch] = digest, answer
        pusher.outcomes.pop(push.batch - OUTCOMES_KEPT, None)
        return Verdict(Answer(_with_winners(kept, push, answer)), delivers)

    @staticmethod
    def _judge(kept: Vault, device: DeviceKey, push: Push, surveys: list[Survey]) -> tuple[Outcome, dict[int, Judged]]:
        """The verdict on the whole, and if that is DONE, what becomes of each group that is judged record by record."""
        judged: dict[int, Judged] = {}
        member = kept.membership.by_device(device)
        if member is None or member.role < Role.WRITER:
            return Outcome.NOT_A_WRITER, {}
        for index, (group, found) in enumerate(zip(push.groups, surveys, strict=True)):
            stream = kept.streams.get(group.stream)
            if stream is None or stream.kind is StreamKind.MEMBERSHIP:
                return Outcome.MALFORMED, {}
            if found.top > stream.top + VERSION_STEP_MAX:
                return Outcome.MALFORMED, {}
            if push.flags & REFILL:
                returned = _returned(kept, stream, group, found)
                if returned is None:
                    return Outcome.MALFORMED, {}
                if is_outdated(group.conditions, stream.state(group.stream)):
                    return Outcome.SEAL_AGAIN, {}
                judged[index] = returned
                continue
            if (stream.kind is StreamKind.GUARDED) is not bool(group.conditions) or found.author != member.author:
                return Outcome.MALFORMED, {}
            if group.conditions:
                try:
                    writes = read_writes(group.conditions, group.records, found.records)
                except DecodeError:
                    return Outcome.MALFORMED, {}
                judged[index] = judge(writes, group.records, stream.head, stream.guards.get)
            if (found.epoch, found.key_id) != (kept.membership.epoch, kept.membership.key_id):
                return Outcome.EPOCH_STALE, {}
            if found.lowest <= stream.purged:
                return Outcome.SEAL_AGAIN, {}
        return Outcome.DONE, judged

    def _append(self, kept: Vault, push: Push, surveys: list[Survey], judged: dict[int, Judged]) -> tuple[Deliver, ...]:
        """Append what is accepted of a push. Returns what to send to those who listen."""
        delivers = []
        for index, (group, found) in enumerate(zip(push.groups, surveys, strict=True)):
            stream, records, top, body = kept.streams[group.stream], found.records, found.top, group.records
            if index in judged:
                records, top, body, holds, _, _ = judged[index]
                stream.guards.update(holds)
            if records:
                prev = stream.append(self.term, records, top, body)
                delivers.append(self.deliver(push.vault, group.stream, prev, prev + records, body))
        return tuple(delivers)

    # --- mailboxes

    def open_mailbox(self, device: DeviceKey, message: OpenMailbox, now: float) -> Verdict:
        """INVITE."""
        kept = self._of_member(message.vault, device)
        member = kept.membership.by_device(device) if kept else None
        if member is None or member.role < Role.ADMIN:
            return Verdict(_no_such_mailbox(message.request))
        fresh = Mailbox(message.vault, device, now + min(message.seconds, MAILBOX_SECONDS_MAX))
        if self.mailbox(message.mailbox, now) is None:
            self.mailboxes[message.mailbox] = fresh
        box = self.mailboxes[message.mailbox]
        own = (box.vault, box.inviter) == (message.vault, device)
        return Verdict(Answer(Done(message.request)) if own else _no_such_mailbox(message.request))

    def join(self, device: DeviceKey, message: Join, now: float) -> Verdict:
        """JOIN: the first joiner takes the mailbox, and may replace its request until it is answered."""
        box = self.mailbox(message.mailbox, now)
        if box is None:
            return Verdict(_no_such_mailbox(message.request))
        if box.joiner not in (None, device):
            why = "this invite has been used by another device; ask for a new one"
            return Verdict(Refuse(FaultCode.MAILBOX_USED, Action.STOP, why, message.request, NO_VAULT))
        if not box.answer:
            box.joiner, box.request = device, message.sealed
        return Verdict(Answer(Done(message.request)))

    def answer_join(self, device: DeviceKey, message: AnswerJoin, now: float) -> Verdict:
        """The inviter's answer."""
        box = self.mailbox(message.mailbox, now)
        if box is None or box.inviter != device or box.joiner is None:
            return Verdict(_no_such_mailbox(message.request))
        box.answer = message.sealed
        return Verdict(Answer(Done(message.request)))

    def mailbox(self, mailbox: MailboxId, now: float) -> Mailbox | None:
        """A mailbox that has not expired."""
        box = self.mailboxes.get(mailbox)
        return box if box is not None and box.expires > now else None


def _returned(kept: Vault, stream: Stream, group: Group, found: Survey) -> Judged | None:
    """What becomes of a group of a refill (R14); None: no device can have held that."""
    present = kept.membership.epoch, kept.membership.key_id
    if found.author > kept.membership.head or (found.epoch >= present[0] and (found.epoch, found.key_id) != present):
        return None
    try:
        returned = read_returned(group.conditions, group.records, found.records)
    except DecodeError:
        return None
    return judge_returned(returned, group.records, stream.head, stream.state(group.stream), stream.guards.get)


def _with_winners(kept: Vault, push: Push, answer: Pushed) -> Pushed:
    """The verdict as it is told the first time."""
    found = {}
    for group, seq in {(refused.group, refused.seq) for refused in answer.refused if refused.seq}:
        prev, _, body = kept.streams[push.groups[group].stream].after(seq - 1)[0]
        [found[group, seq]] = [record for at, record in read_segment(body, prev) if at == seq]
    return with_winners(answer, found)


def _no_such_vault(vault: VaultId, request: int = 0, batch: int | None = None) -> Refuse:
    why = "there is no such vault here for this device"
    return Refuse(FaultCode.NO_SUCH_VAULT, Action.STOP, why, request=request, vault=vault, batch=batch)


def _no_such_mailbox(request: int) -> Refuse:
    why = "there is no such invite, or it has expired; ask for a new one"
    return Refuse(FaultCode.NO_SUCH_MAILBOX, Action.STOP, why, request, NO_VAULT)
