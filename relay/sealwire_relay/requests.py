"""What devices ask for besides pushing: subscriptions, vaults, streams, links and invites' mailboxes.

Each request is answered by DONE, by what it asks for, or by FAULT; one that is repeated after its answer was lost is
answered alike.
"""

import logging
from typing import Final

from sealwire_protocol.errors import Action, CloseCode, FaultCode
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.ids import MEMBERSHIP, Author, DeviceKey, MailboxId
from sealwire_protocol.limits import MAILBOX_SECONDS_MAX
from sealwire_protocol.membership import (
    Genesis,
    Link,
    LinkError,
    Membership,
    ReplaceDevice,
    Role,
    Verify,
    decode_link,
    encode_links,
    vault_id_of,
)
from sealwire_protocol.messages import (
    NO_VAULT,
    AnswerJoin,
    AppendLink,
    CreateStream,
    CreateVault,
    Deliver,
    Done,
    Fetch,
    Join,
    Joined,
    Joining,
    Message,
    OpenMailbox,
    Reconcile,
    StreamKind,
    Subscribe,
    Subscribed,
)
from sealwire_protocol.relay_session import RelayState
from sealwire_relay.acks import Acks
from sealwire_relay.fanout import Fanout
from sealwire_relay.ingest import Ingest
from sealwire_relay.losses import Losses
from sealwire_relay.peer import Peer
from sealwire_relay.reconciler import Reconciler
from sealwire_relay.store.interface import MailboxVerdict, MemberState, NewLink, Store, StoreError, VaultState
from sealwire_relay.terms import Terms
from sealwire_relay.view import no_such_vault

ATTEMPTS_MAX: Final = 5
"""Times that a link, or a vault's creation, is tried again because log or term changed meanwhile."""

MAILBOXES_PER_PEER_MAX: Final = 64
"""Mailboxes at which one connection is told what comes: more invites at once are no one's use."""

RETRY_MS: Final = 1_000
"""When a device may ask again after the database failed it."""

_log = logging.getLogger("sealwire.requests")


class Requests:
    """Carries out requests against the store, and tells those whom it concerns."""

    def __init__(
        self,
        store: Store,
        fanout: Fanout,
        ingest: Ingest,
        terms: Terms,
        reconciler: Reconciler,
        acks: Acks,
        losses: Losses,
        verify: Verify,
    ) -> None:
        self._store, self._fanout, self._ingest, self._terms, self._verify = store, fanout, ingest, terms, verify
        self._reconciler, self._acks, self._losses = reconciler, acks, losses
        self._inviters = Waiters()
        self._joiners = Waiters()

    def left(self, peer: Peer) -> None:
        """Forget a connection that has ended."""
        self._inviters.forget(peer)
        self._joiners.forget(peer)

    async def carry_out(self, peer: Peer, device: DeviceKey, message: Message) -> None:
        """Do what the message asks and answer it. Never raises on what a device sent."""
        request = getattr(message, "request", 0)
        try:
            answer = await self._dispatch(peer, device, message)
        except LinkError as error:
            answer = Refuse(FaultCode.BAD_LINK, Action.STOP, str(error), request)
        except StoreError as error:
            _log.warning("%s could not be carried out: %s", type(message).__name__, error)
            if isinstance(message, Subscribe):
                peer.close(CloseCode.RELAY_FAULT, "the relay's database is not available; come back")
                return
            why = "the relay's database is not available now; try again"
            answer = Refuse(FaultCode.OVERLOADED, Action.RETRY, why, request, retry_ms=RETRY_MS)
        except Exception:
            _log.exception("%s failed; the device is told to come back", type(message).__name__)
            peer.close(CloseCode.RELAY_FAULT, "the relay failed; come back")
            return
        peer.handle(answer)
        if isinstance(answer, Answer) and isinstance(answer.message, Done):
            await self._tell(peer, message)

    async def _dispatch(self, peer: Peer, device: DeviceKey, message: Message) -> Answer | Refuse:
        match message:
            case Subscribe():
                return await self._subscribe(peer, device, message)
            case CreateVault():
                return await self._create_vault(message)
            case CreateStream():
                return await self._create_stream(device, message)
            case AppendLink():
                return await self._append_link(device, message)
            case Reconcile():
                return await self._reconciler.ranges(device, message)
            case Fetch():
                return await self._reconciler.records(device, message)
            case OpenMailbox():
                return await self._open_mailbox(peer, device, message)
            case Join():
                verdict = await self._store.deposit(message.mailbox, device, message.sealed)
                if verdict is MailboxVerdict.DONE:
                    self._joiners.add(message.mailbox, peer)
                return _mailbox_answer(verdict, message.request)
            case AnswerJoin():
                verdict = await self._store.answer(message.mailbox, device, message.sealed)
                return _mailbox_answer(verdict, message.request)
            case _:
                return Refuse(FaultCode.UNSUPPORTED, Action.STOP, "this relay does not know how to do that")

    # --- vaults and streams

    async def _subscribe(self, peer: Peer, device: DeviceKey, message: Subscribe) -> Answer | Refuse:
        told = await self._store.subscription(message.vault, device, [w.stream for w in message.streams])
        if told is None:
            return no_such_vault(message.vault)
        if told.term != self._terms.present:
            await self._terms.refresh()
        self._losses.heard(device, message.vault, message.streams, told.streams)
        for state in told.streams:
            if state.kind is not StreamKind.ABSENT:
                self._fanout.moved(message.vault, state.stream, state.head)
        for wanted in message.streams:
            self._acks.note(device, message.vault, wanted.stream, wanted.cursor)
        vault = told.vault
        return Answer(Subscribed(message.vault, told.term, vault.epoch, vault.key_id, told.last_batch, told.streams))

    async def _create_vault(self, message: CreateVault) -> Answer | Refuse:
        """Whoever has the genesis link may present it: a relay that has lost the vault gets it back from any member."""
        membership = Membership()
        link = membership.apply(message.link, self._verify)
        if not isinstance(link.body, Genesis):
            raise LinkError("a vault is created by its genesis link")
        vault = vault_id_of(message.link)
        member = MemberState(link.signer, link.body.device, Role.ADMIN)
        state = VaultState(membership.epoch, membership.key_id)
        new = NewLink(link.seq, link.raw, member)
        for _ in range(ATTEMPTS_MAX):
            if await self._store.create_vault(vault, state, new, await self._terms.now()):
                return Answer(Done(message.request))
            if (await self._store.links(vault))[:1] == (message.link,):
                return Answer(Done(message.request))
            await self._terms.refresh()
        why = "the relay's history changes too fast just now; try again"
        return Refuse(FaultCode.OVERLOADED, Action.RETRY, why, message.request, retry_ms=RETRY_MS)

    async def _create_stream(self, device: DeviceKey, message: CreateStream) -> Answer | Refuse:
        told = await self._store.subscription(message.vault, device, [])
        if told is None:
            return no_such_vault(message.vault, request=message.request)
        if told.member.role < Role.WRITER:
            why = "a reader of this vault may not create collections in it"
            return Refuse(FaultCode.NOT_ALLOWED, Action.STOP, why, message.request, message.vault)
        if message.kind not in (StreamKind.OPEN, StreamKind.GUARDED) or message.stream == MEMBERSHIP:
            why = "a stream can be made open or guarded, and stream 0 is the vault's own; nothing was made"
            return Refuse(FaultCode.UNSUPPORTED, Action.STOP, why, message.request, message.vault)
        kind = await self._store.create_stream(message.vault, message.stream, message.kind)
        if kind is not message.kind:
            why = f"the stream exists already and is {kind.name.lower()}"
            return Refuse(FaultCode.STREAM_KIND, Action.STOP, why, message.request, message.vault)
        self._ingest.forget(message.vault)
        return Answer(Done(message.request))

    async def _append_link(self, device: DeviceKey, message: AppendLink) -> Answer | Refuse:
        """Any device may present links (R15): the one that added it may be among those that the relay has lost. One
        that is no member is told of a link only that it stands, else nothing. After a loss several present the same."""
        for _ in range(ATTEMPTS_MAX):
            answer = await self._try_link(device, message)
            if answer is not None:
                return answer
            await self._terms.refresh()
        return _link_conflict(message)

    async def _try_link(self, device: DeviceKey, message: AppendLink) -> Answer | Refuse | None:
        """None: the log or the relay's term has changed meanwhile; look again."""
        strange = no_such_vault(message.vault, request=message.request)
        is_member = await self._store.subscription(message.vault, device, []) is not None
        log = await self._store.links(message.vault)
        if not log:
            return strange
        try:
            place = decode_link(message.link).seq
            if 0 < place <= len(log):
                if log[place - 1] == message.link:
                    return Answer(Done(message.request))
                return _link_conflict(message) if is_member else strange
            membership = Membership()
            for raw in log:
                membership.apply(raw, _verified_before)
            link = membership.apply(message.link, self._verify)
        except LinkError:
            if is_member:
                raise
            return strange
        return await self._append(message, _new_link(membership, link))

    async def _append(self, message: AppendLink, new: NewLink) -> Answer | None:
        """Append a verified link, and send it to those who listen. None: a condition did not hold."""
        term = await self._terms.now()
        if not await self._store.append_link(message.vault, new, term):
            return None
        self._ingest.forget(message.vault)
        body = encode_links([new.raw])
        self._fanout.offer(
            message.vault,
            MEMBERSHIP,
            Deliver(message.vault, MEMBERSHIP, term, 0, 0, 0, 0, new.seq - 1, new.seq, body),
        )
        return Answer(Done(message.request))

    # --- mailboxes

    async def _open_mailbox(self, peer: Peer, device: DeviceKey, message: OpenMailbox) -> Answer | Refuse:
        seconds = min(message.seconds, MAILBOX_SECONDS_MAX)
        verdict = await self._store.open_mailbox(message.mailbox, message.vault, device, seconds)
        if verdict is MailboxVerdict.DONE:
            self._inviters.add(message.mailbox, peer)
        return _mailbox_answer(verdict, message.request)

    async def _tell(self, peer: Peer, message: Message) -> None:
        """After a mailbox changed, tell its two sides what lies in it, as far as they are connected here."""
        if not isinstance(message, OpenMailbox | Join | AnswerJoin):
            return
        try:
            box = await self._store.mailbox(message.mailbox)
        except StoreError:
            return  # both sides ask again when they do not hear
        if box is None:
            return
        inviter, joiner = self._inviters.get(message.mailbox), self._joiners.get(message.mailbox)
        if box.request and not box.answer and inviter is not None and not isinstance(message, AnswerJoin):
            inviter.handle(Answer(Joining(message.mailbox, box.request)))
        if box.answer and joiner is not None and joiner.device == box.joiner:
            joiner.handle(Answer(Joined(message.mailbox, box.answer)))


class Waiters:
    """Which connection waits at a mailbox: the last one that said so. The oldest of too many is forgotten."""

    def __init__(self) -> None:
        self._at: dict[MailboxId, Peer] = {}
        self._of: dict[Peer, dict[MailboxId, None]] = {}

    def add(self, mailbox: MailboxId, peer: Peer) -> None:
        """This connection waits at this mailbox now, unless it has ended."""
        if peer.session.state is not RelayState.READY:
            return
        self._drop(mailbox)
        self._at[mailbox] = peer
        own = self._of.setdefault(peer, {})
        own[mailbox] = None
        if len(own) > MAILBOXES_PER_PEER_MAX:
            self._drop(next(iter(own)))

    def get(self, mailbox: MailboxId) -> Peer | None:
        """Who waits there."""
        return self._at.get(mailbox)

    def forget(self, peer: Peer) -> None:
        """The connection has ended."""
        for mailbox in self._of.pop(peer, {}):
            del self._at[mailbox]

    def _drop(self, mailbox: MailboxId) -> None:
        peer = self._at.pop(mailbox, None)
        if peer is None:
            return
        own = self._of[peer]
        del own[mailbox]
        if not own:
            del self._of[peer]


def _verified_before(key: bytes, message: bytes, signature: bytes) -> bool:
    """Links of the relay's own log were verified when they were appended: 60 µs each, which would add up."""
    return True


def _new_link(membership: Membership, link: Link) -> NewLink:
    """What the last link of a log did to its members."""
    added = membership.members[Author(link.seq)]
    replaced = link.signer if isinstance(link.body, ReplaceDevice) else None
    return NewLink(link.seq, link.raw, MemberState(added.author, added.device, added.role), replaced)


def _link_conflict(message: AppendLink) -> Refuse:
    why = "another link was appended meanwhile; read the membership log and sign anew"
    return Refuse(FaultCode.LINK_CONFLICT, Action.RETRY, why, message.request, message.vault)


def _mailbox_answer(verdict: MailboxVerdict, request: int) -> Answer | Refuse:
    if verdict is MailboxVerdict.DONE:
        return Answer(Done(request))
    if verdict is MailboxVerdict.USED:
        why = "this invite has been used by another device; ask for a new one"
        return Refuse(FaultCode.MAILBOX_USED, Action.STOP, why, request, NO_VAULT)
    why = "there is no such invite, or it has expired; ask for a new one"
    return Refuse(FaultCode.NO_SUCH_MAILBOX, Action.STOP, why, request, NO_VAULT)
