"""What a relay keeps and decides, in memory: vaults, streams, terms, outcomes of batches, mailboxes. Nothing waits.

It follows the rules of the real relay's log (PROTOCOL.md), and may be told to break them, for tests of attacks.
"""

import hashlib
import os
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sealwire_client import cipher
from sealwire_client.testing.comparing import ranges, records
from sealwire_client.testing.stream import Stream
from sealwire_protocol import codec
from sealwire_protocol.conditions import Judged, judge, read_writes, refusals, with_winners
from sealwire_protocol.errors import Action, DecodeError, FaultCode, Outcome
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.faults import another_member, moved_away, no_such_vault, term_changed, vault_deleted
from sealwire_protocol.ids import (
    MEMBERSHIP,
    NO_TERM,
    TERM_ID_BYTES,
    Author,
    DeviceKey,
    KeyId,
    MailboxId,
    StreamId,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import MAILBOX_SECONDS_MAX, VERSION_STEP_MAX
from sealwire_protocol.links import Genesis, LinkError, Role, decode_link, decode_links, encode_links, vault_id_of
from sealwire_protocol.membership import Membership, membership_of, verified_before
from sealwire_protocol.messages import (
    ATOMIC,
    NO_VAULT,
    REFILL,
    RESEAL,
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
    OfferLinks,
    OpenMailbox,
    Push,
    Pushed,
    Reconcile,
    StreamKind,
    Subscribe,
    Subscribed,
)
from sealwire_protocol.refills import is_outdated, judge_returned, read_returned
from sealwire_protocol.reseals import decode_applied, judge_resealed, read_resealed, survey_of
from sealwire_protocol.segment import Survey, read_segment
from sealwire_protocol.suffixes import common_links, suffix_of

OUTCOMES_KEPT: Final = 64
"""Outcomes kept for each device of a vault, as by the real relay."""


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
    moved: bool = False
    """It is at another relay: nothing is taken in but links."""

    def settle(self) -> None:
        """Of who was removed no batches are kept, and of a vault that was deleted nothing but its log."""
        if self.membership.ended:
            self.streams, self.pushers = {MEMBERSHIP: self.streams[MEMBERSHIP]}, {}
        for author, member in self.membership.members.items():
            if member.removed:
                self.pushers.pop(author, None)


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
    """What a device is told, and what everyone who listens is to be sent then.

    `replaced`: the end of the membership log is another one now, or the vault has come back: whoever listens begins
    anew."""

    told: Answer | Refuse
    delivers: tuple[Deliver, ...] = ()
    replaced: bool = False


@dataclass(slots=True)
class MemoryLog:
    """All that a relay keeps. A deep copy of it is a backup."""

    term: Term = NO_TERM
    vaults: dict[VaultId, Vault] = field(default_factory=dict)
    mailboxes: dict[MailboxId, Mailbox] = field(default_factory=dict)
    tokens: dict[bytes, int] | None = None
    """If set: a vault that is not known is taken in with one of these registration tokens, so many with each, or with a
    receipt. Who signed a token is not looked at here."""
    receipt_key: bytes = field(default_factory=lambda: os.urandom(16))
    origin: str = ""
    """The relay's name."""

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
            return Verdict(no_such_vault(message.vault))
        absent = Stream(StreamKind.ABSENT)
        states = [kept.streams.get(wanted.stream, absent).state(wanted.stream) for wanted in message.streams]
        pusher = self._pusher(kept, device)
        ended = kept.membership.ended
        epoch, key_id = (0, KeyId(bytes(4))) if ended else (kept.membership.epoch, kept.membership.key_id)
        listens = any(wanted.stream == MEMBERSHIP for wanted in message.streams)
        receipt = self._receipt(message.vault) if listens else b""
        return Verdict(Answer(Subscribed(message.vault, self.term, epoch, key_id, pusher.last, tuple(states), receipt)))

    def create_vault(self, message: CreateVault) -> Verdict:
        """CREATE_VAULT, by whoever has the genesis link. Raises LinkError."""
        vault, membership = vault_id_of(message.link), Membership()
        link = membership.apply(message.link, cipher.verify)
        if not isinstance(link.body, Genesis):
            raise LinkError("a vault is created by its genesis link")
        if vault not in self.vaults:
            refused = self._register(vault, message)
            if refused is not None:
                return Verdict(refused)
            kept = self.vaults[vault] = Vault(membership, [message.link])
            log = kept.streams[MEMBERSHIP] = Stream(StreamKind.MEMBERSHIP)
            log.append(self.term, 1, 0, encode_links([message.link]))
        return Verdict(Answer(Done(message.request)))

    def _register(self, vault: VaultId, message: CreateVault) -> Refuse | None:
        """Count a vault for the token that it is made with. Returns why it is not taken in, if so."""
        if self.tokens is None or message.receipt == self._receipt(vault):
            return None
        left = self.tokens.get(message.token)
        if left:
            self.tokens[message.token] = left - 1
            return None
        code = FaultCode.NOT_ALLOWED if left is None else FaultCode.QUOTA
        why = "this relay takes in new vaults by registration token only, and this one is not valid, or used up"
        return Refuse(code, Action.STOP, why, message.request)

    def _receipt(self, vault: VaultId) -> bytes:
        return hashlib.blake2b(vault, key=self.receipt_key, digest_size=16).digest()

    def create_stream(self, device: DeviceKey, message: CreateStream) -> Verdict:
        """CREATE_STREAM."""
        kept = self._of_member(message.vault, device)
        if kept is None:
            return Verdict(no_such_vault(message.vault, request=message.request))
        if kept.membership.ended:
            return Verdict(vault_deleted(message.vault, request=message.request))
        member = kept.membership.by_device(device)
        if member is None or member.role < Role.WRITER:
            why = "a reader of this vault may not create collections in it"
            return Verdict(Refuse(FaultCode.NOT_ALLOWED, Action.STOP, why, message.request, message.vault))
        if kept.moved:
            return Verdict(moved_away(message.vault, kept.membership.relay, message.request))
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
        strange = Verdict(no_such_vault(message.vault, request=message.request))
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
        kept.settle()
        body = encode_links([message.link])
        prev = kept.streams[MEMBERSHIP].append(self.term, 1, 0, body)
        if self._comes_back(kept):
            return Verdict(Answer(Done(message.request)), replaced=True)
        deliver = self.deliver(message.vault, MEMBERSHIP, prev, prev + 1, body)
        return Verdict(Answer(Done(message.request)), (deliver,))

    def _comes_back(self, kept: Vault) -> bool:
        """Look in the log whether the vault is here. True: it has come back, so that its streams begin anew."""
        was, kept.moved = kept.moved, kept.membership.relay not in (None, self.origin)
        if kept.moved or not was:
            return False
        fresh = TermStart(Term(self.term.number, os.urandom(TERM_ID_BYTES)), 0)
        for name in kept.streams.keys() - {MEMBERSHIP}:
            kept.streams[name] = Stream(kept.streams[name].kind, terms=[fresh])
        for pusher in kept.pushers.values():
            pusher.term = 0
        return True

    def offer_links(self, device: DeviceKey, message: OfferLinks) -> Verdict:
        """OFFER_LINKS, by whoever has links that outrank those that stand in their place (R15). Raises LinkError."""
        kept = self.vaults.get(message.vault)
        is_member = self._of_member(message.vault, device) is not None
        verdict = None
        try:
            verdict = None if kept is None else self._offered(kept, message)
        except LinkError:
            if is_member:
                raise
        if verdict is not None:
            return verdict
        if not is_member:
            return Verdict(no_such_vault(message.vault, request=message.request))
        why = "the links that stand there outrank these; read the membership log"
        return Verdict(Refuse(FaultCode.LINK_CONFLICT, Action.RETRY, why, message.request, message.vault))

    def _offered(self, kept: Vault, message: OfferLinks) -> Verdict | None:
        """None: those that stand there outrank these. Raises LinkError."""
        offered = decode_links(message.links)
        if not offered or not 0 < message.after <= len(kept.links):
            raise LinkError("no links are offered, or for a place that this log does not have")
        same = common_links(kept.links[message.after :], offered)
        if same == len(offered):
            return Verdict(Answer(Done(message.request)))
        after = message.after + same
        base = membership_of(kept.links[:after], verified_before)
        stands = suffix_of(base, kept.links[after:], verified_before)
        suffix = suffix_of(base, offered[same:], cipher.verify)
        if stands.membership.ended or not suffix.outranks(stands):
            return None
        before, members = kept.membership.members, suffix.membership.members
        stays = {author for author in members if author in before and before[author].device == members[author].device}
        kept.links[after:], kept.membership = offered[same:], suffix.membership
        kept.pushers = {author: pusher for author, pusher in kept.pushers.items() if author in stays}
        kept.settle()
        log = kept.streams[MEMBERSHIP]
        log.part(Term(self.term.number, os.urandom(TERM_ID_BYTES)), after)
        for raw in offered[same:]:
            log.append(log.term, 1, 0, encode_links([raw]))
        self._comes_back(kept)
        return Verdict(Answer(Done(message.request)), replaced=True)

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
        if kept is None:
            return no_such_vault(message.vault, request=message.request)
        ended = kept.membership.ended
        return vault_deleted(message.vault, request=message.request) if ended else kept.streams.get(message.stream)

    def dismissal(self, vault: VaultId, device: DeviceKey) -> Refuse | None:
        """What one is told that listens to a vault and is no member of it any more; None: it is one."""
        return no_such_vault(vault) if self._of_member(vault, device) is None else None

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
        surveys = [survey_of(push.flags, group.records) for group in push.groups]
        kept = self._of_member(push.vault, device)
        if kept is None:
            return Verdict(no_such_vault(push.vault, batch=push.batch))
        if kept.membership.ended:
            return Verdict(vault_deleted(push.vault, batch=push.batch))
        pusher = self._pusher(kept, device)
        member = kept.membership.by_device(device)
        own = not push.flags & (REFILL | RESEAL)
        if own and any(member is None or found.author != member.author for found in surveys):
            return Verdict(another_member(push.vault, push.batch))
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
        if kept.moved:
            return Verdict(Answer(Pushed(push.vault, push.batch, Outcome.MOVED, (), ())))
        if push.batch != pusher.last + 1 and pusher.term == self.term.number:
            why = f"batch {push.batch} does not follow batch {pusher.last}; subscribe again and send what is unanswered"
            return Verdict(Refuse(FaultCode.BATCH_GAP, Action.RESUBSCRIBE, why, vault=push.vault, batch=push.batch))
        outcome, judged = self._judge(kept, device, push, surveys, self.term)
        refused = refusals([found.records for found in surveys], judged, bool(push.flags & ATOMIC))
        conflict = any(found.refused for found in judged.values())
        nothing = outcome is not Outcome.DONE or (conflict and push.flags & ATOMIC)
        delivers = () if nothing else self._append(kept, push, surveys, judged)
        appended = tuple(Appended(sent.stream, sent.term, sent.prev + 1, sent.last - sent.prev) for sent in delivers)
        answer = Pushed(push.vault, push.batch, outcome, appended, refused)
        pusher.last, pusher.term = push.batch, self.term.number
        pusher.outcomes[push.batch] = digest, answer
        pusher.outcomes.pop(push.batch - OUTCOMES_KEPT, None)
        return Verdict(Answer(_with_winners(kept, push, answer)), delivers)

    @staticmethod
    def _judge(
        kept: Vault, device: DeviceKey, push: Push, surveys: list[Survey], term: Term
    ) -> tuple[Outcome, dict[int, Judged]]:
        """The verdict on the whole, and if that is DONE, what becomes of each group that is judged record by record."""
        judged: dict[int, Judged] = {}
        member = kept.membership.by_device(device)
        if member is None or member.role < Role.WRITER:
            return Outcome.NOT_A_WRITER, {}
        for index, (group, found) in enumerate(zip(push.groups, surveys, strict=True)):
            stream = kept.streams.get(group.stream)
            if stream is None or stream.kind is StreamKind.MEMBERSHIP:
                lost = stream is None and push.flags & RESEAL
                return Outcome.SEAL_AGAIN if lost else Outcome.MALFORMED, {}
            if found.top > stream.top + VERSION_STEP_MAX and not push.flags & RESEAL:
                return Outcome.MALFORMED, {}
            if push.flags & RESEAL:
                outcome = _resealed(kept, stream, group, found, term)
                if isinstance(outcome, Outcome):
                    return outcome, {}
                judged |= {} if outcome is None else {index: outcome}
                continue
            if push.flags & REFILL:
                returned = _returned(kept, stream, group, found)
                if isinstance(returned, Outcome):
                    return returned, {}
                judged[index] = returned
                continue
            if (stream.kind is StreamKind.GUARDED) is not bool(group.conditions):
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
        if kept is None or kept.membership.ended or member is None or member.role < Role.ADMIN:
            return Verdict(_no_such_mailbox(message.request))
        if kept.moved:
            return Verdict(moved_away(message.vault, kept.membership.relay, message.request))
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
        kept = self.vaults[box.vault]
        if kept.moved:
            return Verdict(moved_away(NO_VAULT, kept.membership.relay, message.request))
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
        """A mailbox that has not expired, of a vault that was not deleted."""
        box = self.mailboxes.get(mailbox)
        ended = box is not None and self.vaults[box.vault].membership.ended
        return box if box is not None and box.expires > now and not ended else None


def _returned(kept: Vault, stream: Stream, group: Group, found: Survey) -> Outcome | Judged:
    """Why a group of a refill is refused, or what becomes of its records (R14)."""
    try:
        returned = read_returned(group.conditions, group.records, found.records)
    except DecodeError:
        return Outcome.MALFORMED
    present, state = (kept.membership.epoch, kept.membership.key_id), stream.state(group.stream)
    known = found.epoch < present[0] or (found.epoch, found.key_id) == present
    if not known or is_outdated(group.conditions, state):
        return Outcome.SEAL_AGAIN
    return judge_returned(returned, group.records, stream.head, state, stream.guards.get)


def _resealed(kept: Vault, stream: Stream, group: Group, found: Survey, term: Term) -> Outcome | Judged | None:
    """Why a group of a reseal is refused (R5), or what becomes of its records; None: all are appended."""
    current = (found.epoch, found.key_id) == (kept.membership.epoch, kept.membership.key_id)
    try:
        if stream.kind is StreamKind.OPEN:
            applied = decode_applied(group.conditions)
            whole = applied.term == term and applied.seq >= stream.floor_head and found.top <= stream.top
            return Outcome.EPOCH_STALE if not current else None if whole else Outcome.SEAL_AGAIN
        resealed = read_resealed(group.conditions, group.records, found.records)
    except DecodeError:
        return Outcome.MALFORMED
    if not current:
        return Outcome.EPOCH_STALE
    if found.top > stream.top:
        return Outcome.SEAL_AGAIN
    return judge_resealed(resealed, group.records, stream.head, stream.state(group.stream), stream.guards.get)


def _with_winners(kept: Vault, push: Push, answer: Pushed) -> Pushed:
    """The verdict as it is told the first time."""
    found = {}
    for group, seq in {(refused.group, refused.seq) for refused in answer.refused if refused.seq}:
        prev, _, body = kept.streams[push.groups[group].stream].after(seq - 1)[0]
        [found[group, seq]] = [record for at, record in read_segment(body, prev) if at == seq]
    return with_winners(answer, found)


def _no_such_mailbox(request: int) -> Refuse:
    why = "there is no such invite, or it has expired; ask for a new one"
    return Refuse(FaultCode.NO_SUCH_MAILBOX, Action.STOP, why, request, NO_VAULT)
