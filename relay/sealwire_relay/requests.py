"""What devices ask for besides pushing: subscriptions, vaults, streams, links and invites' mailboxes.

Each request is answered by DONE, by what it asks for, or by FAULT; one that is repeated after its answer was lost is
answered alike.
"""

import logging
import time
from typing import Final

from sealwire_protocol.errors import Action, CloseCode, FaultCode
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.faults import moved_away, no_such_vault, vault_deleted
from sealwire_protocol.ids import MEMBERSHIP, DeviceKey, MailboxId, Position
from sealwire_protocol.limits import MAILBOX_SECONDS_MAX
from sealwire_protocol.links import LinkError, Role
from sealwire_protocol.messages import (
    NO_VAULT,
    AnswerJoin,
    AppendLink,
    CreateStream,
    CreateVault,
    Done,
    Fetch,
    Join,
    Joined,
    Joining,
    Message,
    OfferLinks,
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
from sealwire_relay.lasting import Lasting
from sealwire_relay.links import RETRY_MS, Links
from sealwire_relay.losses import Losses
from sealwire_relay.peer import Peer
from sealwire_relay.reconciler import Reconciler
from sealwire_relay.registration import receipt_of
from sealwire_relay.store.interface import Store, StoreError, Subscription
from sealwire_relay.store.mailboxes import MAILBOXES_PER_VAULT_MAX, MailboxVerdict
from sealwire_relay.terms import Terms

MAILBOXES_PER_PEER_MAX: Final = 64
"""Mailboxes at which one connection is told what comes: more invites at once are no one's use."""

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
        links: Links,
        streams_max: int,
    ) -> None:
        self._store, self._fanout, self._ingest, self._terms, self._links = store, fanout, ingest, terms, links
        self._reconciler, self._acks, self._losses = reconciler, acks, losses
        self._streams_max = streams_max
        self._inviters = Waiters()
        self._joiners = Waiters()
        self._trouble = Lasting(_log, time.monotonic)

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
            self._trouble.failed(error, "%s could not be carried out", type(message).__name__)
            if isinstance(message, Subscribe):
                peer.close(CloseCode.RELAY_FAULT, "the relay's database is not available; come back")
                return
            why = "the relay's database is not available now; try again"
            answer = Refuse(FaultCode.OVERLOADED, Action.RETRY, why, request, retry_ms=RETRY_MS)
        except Exception:
            _log.exception("%s failed; the device is told to come back", type(message).__name__)
            peer.close(CloseCode.RELAY_FAULT, "the relay failed; come back")
            return
        else:
            self._trouble.went_well("requests are carried out again")
        peer.handle(answer)
        if isinstance(message, AppendLink):
            await self._links.answered(message.vault)
        if isinstance(answer, Answer) and isinstance(answer.message, Done):
            await self._tell(peer, message)

    async def _dispatch(self, peer: Peer, device: DeviceKey, message: Message) -> Answer | Refuse:
        match message:
            case Subscribe():
                return await self._subscribe(peer, device, message)
            case CreateVault():
                return await self._links.create(message)
            case CreateStream():
                return await self._create_stream(device, message)
            case AppendLink():
                return await self._links.append(device, message)
            case OfferLinks():
                return await self._links.offer(device, message)
            case Reconcile():
                return await self._reconciler.ranges(device, message)
            case Fetch():
                return await self._reconciler.records(device, message)
            case OpenMailbox():
                return await self._open_mailbox(peer, device, message)
            case Join():
                return await self._join(peer, device, message)
            case AnswerJoin():
                verdict = await self._store.answer(message.mailbox, device, message.sealed)
                return _mailbox_answer(verdict, message.request)
            case _:
                return Refuse(FaultCode.UNSUPPORTED, Action.STOP, "this relay does not know how to do that")

    # --- vaults and streams

    async def _subscribe(self, peer: Peer, device: DeviceKey, message: Subscribe) -> Answer | Refuse:
        told = await self._told(device, message)
        if told is None:
            return no_such_vault(message.vault)
        self._ingest.met(message.vault, told.member)
        if not told.vault.ended:
            self._losses.heard(device, message.vault, message.streams, told.streams)
        for wanted in message.streams:
            self._acks.note(device, message.vault, wanted.stream, wanted.cursor)
        vault = told.vault
        listens = any(wanted.stream == MEMBERSHIP for wanted in message.streams)
        receipt = receipt_of(told.receipt_key, message.vault) if listens else b""
        return Answer(
            Subscribed(message.vault, told.term, vault.epoch, vault.key_id, told.last_batch, told.streams, receipt)
        )

    async def _told(self, device: DeviceKey, message: Subscribe) -> Subscription | None:
        """What the store says, of a log whose end was not replaced while it was asked."""
        streams = [wanted.stream for wanted in message.streams]
        while True:
            replacements = self._fanout.replacements
            before = self._fanout.committed((message.vault, stream) for stream in streams)
            told = await self._store.subscription(message.vault, device, streams)
            if told is not None and told.term != self._terms.present:
                await self._terms.refresh()
            for state in told.streams if told is not None else ():
                if state.stream == MEMBERSHIP and state.terms:
                    self._fanout.log_stands(message.vault, Position(state.terms[-1].term, state.head))
            if replacements == self._fanout.replacements:
                for state, upto in zip(told.streams if told is not None else (), before, strict=False):
                    self._fanout.told(message.vault, state, upto)
                return told

    async def _create_stream(self, device: DeviceKey, message: CreateStream) -> Answer | Refuse:
        told = await self._store.subscription(message.vault, device, [])
        if told is None:
            return no_such_vault(message.vault, request=message.request)
        if told.member.role < Role.WRITER:
            why = "a reader of this vault may not create collections in it"
            return Refuse(FaultCode.NOT_ALLOWED, Action.STOP, why, message.request, message.vault)
        if told.vault.moved:
            return moved_away(message.vault, await self._links.moved_to(message.vault), message.request)
        if message.kind not in (StreamKind.OPEN, StreamKind.GUARDED) or message.stream == MEMBERSHIP:
            why = "a stream can be made open or guarded, and stream 0 is the vault's own; nothing was made"
            return Refuse(FaultCode.UNSUPPORTED, Action.STOP, why, message.request, message.vault)
        kind = await self._store.create_stream(message.vault, message.stream, message.kind, self._streams_max)
        if kind is StreamKind.ABSENT:
            again = await self._store.subscription(message.vault, device, [])
            if again is None or again.vault.ended:
                return vault_deleted(message.vault, request=message.request)
            why = f"a vault has at most {self._streams_max:,} collections at this relay, and this one has as many"
            return Refuse(FaultCode.QUOTA, Action.STOP, why, message.request, message.vault)
        if kind is not message.kind:
            why = f"the stream exists already and is {kind.name.lower()}"
            return Refuse(FaultCode.STREAM_KIND, Action.STOP, why, message.request, message.vault)
        self._ingest.forget(message.vault)
        return Answer(Done(message.request))

    # --- mailboxes

    async def _open_mailbox(self, peer: Peer, device: DeviceKey, message: OpenMailbox) -> Answer | Refuse:
        told = await self._store.subscription(message.vault, device, [])
        if told is not None and told.vault.moved:
            return moved_away(message.vault, await self._links.moved_to(message.vault), message.request)
        seconds = min(message.seconds, MAILBOX_SECONDS_MAX)
        verdict = await self._store.open_mailbox(message.mailbox, message.vault, device, seconds)
        if verdict is MailboxVerdict.DONE:
            self._inviters.add(message.mailbox, peer)
        return _mailbox_answer(verdict, message.request)

    async def _join(self, peer: Peer, device: DeviceKey, message: Join) -> Answer | Refuse:
        box = await self._store.mailbox(message.mailbox)
        relay = None if box is None else await self._links.moved_to(box.vault)
        if relay is not None:
            return moved_away(NO_VAULT, relay, message.request)
        verdict = await self._store.deposit(message.mailbox, device, message.sealed)
        if verdict is MailboxVerdict.DONE:
            self._joiners.add(message.mailbox, peer)
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


def _mailbox_answer(verdict: MailboxVerdict, request: int) -> Answer | Refuse:
    if verdict is MailboxVerdict.DONE:
        return Answer(Done(request))
    if verdict is MailboxVerdict.USED:
        why = "this invite has been used by another device; ask for a new one"
        return Refuse(FaultCode.MAILBOX_USED, Action.STOP, why, request, NO_VAULT)
    if verdict is MailboxVerdict.FULL:
        why = f"the vault has {MAILBOXES_PER_VAULT_MAX} invites that have not expired: wait until some have"
        return Refuse(FaultCode.QUOTA, Action.STOP, why, request, NO_VAULT)
    why = "there is no such invite, or it has expired; ask for a new one"
    return Refuse(FaultCode.NO_SUCH_MAILBOX, Action.STOP, why, request, NO_VAULT)
