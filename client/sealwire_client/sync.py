"""What travels between one vault's replica and the relay: deliveries in, sealed batches out, each exactly once.

One task per vault works while the link is online; bytes are opened, sealed and stored in the writer's thread. The
order is always: tell the relay where the replica stands, send again what has no verdict, then seal what is new, and
only in collections that have caught up (R2).
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final

import trio

from sealwire_client import keyring
from sealwire_client.agreeing import Agreeing
from sealwire_client.batching import Batcher, StrictWrite
from sealwire_client.creating import Creating
from sealwire_client.disputing import Disputing
from sealwire_client.enrolment import Enrolment
from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import Link
from sealwire_client.listening import Listening
from sealwire_client.memberlog import MemberLog
from sealwire_client.merging import Resolve
from sealwire_client.nursery import open_nursery
from sealwire_client.progress import Progress
from sealwire_client.receiving import Receiving, Watcher
from sealwire_client.reconcile import Reconciler, next_ready
from sealwire_client.rekeying import REMOVED, SHUT_OUT, Rekeying
from sealwire_client.relocating import Relocating
from sealwire_client.replica import (
    Change,
    Collection,
    HeldVault,
    Replica,
    ReplicaFullError,
    ReplicaMisuse,
    ReplicaUnreadableError,
    Runner,
    Settled,
    VaultGoneError,
    Waiting,
)
from sealwire_client.resealing import Resealing
from sealwire_client.sending import WHY_REFUSED, OfflineError, Sending, StrictRequest
from sealwire_client.setaside import SetAside
from sealwire_client.stream import StreamSync
from sealwire_client.streammaking import StreamMaker
from sealwire_client.transport import TransportError
from sealwire_protocol.errors import Action, FaultCode, Outcome, RemoteFault, may_come_back
from sealwire_protocol.events import Doubt
from sealwire_protocol.ids import MEMBERSHIP, Position, StreamId
from sealwire_protocol.membership import Membership
from sealwire_protocol.messages import Deliver, Fault, Pushed, Subscribed

_log = logging.getLogger("sealwire.sync")

REFUSED_SECONDS_MIN: Final = 60.0
REFUSED_SECONDS_MAX: Final = 3_600.0
"""How long after it refused this device a relay is asked again, on one connection: each time twice as long."""

INBOX_MESSAGES_MAX: Final = 64
"""Verdicts, faults and states of streams that wait for a vault's task. A relay owes at most a window of verdicts and
an answer to each SUBSCRIBE; what sends more is no honest relay."""


class VaultSync:
    """Keeps one vault's replica and the relay in step. A `Follower` of the link."""

    def __init__(
        self,
        held: HeldVault,
        membership: Membership,
        identity: DeviceIdentity,
        writer: Runner[Replica],
        link: Link,
        changed: Watcher,
        watched: Callable[[Collection], bool],
        renew: Callable[[], None],
        move: Callable[[HeldVault, DeviceIdentity], None],
        another_relay: Callable[[str], AbstractContextManager[Link]],
    ) -> None:
        self.held, self.members = held, MemberLog(held.number, membership, writer)
        self.keys = keyring.keys_held(identity, membership, held.author)
        self.keys.keep(keyring.unwrapped_beside(self.keys, held.other_keys))
        self.progress = Progress()
        self.identity, self.link, self._writer = identity, link, writer
        self._tell = changed
        self._streams: dict[StreamId, StreamSync] = {}
        self.maker = StreamMaker(held, identity, self.keys, self.members)
        self._online, self._wake, self._moved = trio.Event(), trio.Event(), trio.Event()
        self._scope: trio.CancelScope | None = None
        self._inbox: deque[Subscribed | Pushed | Fault] = deque()
        batcher = Batcher(held.number, self._streams, self.keys)
        self._creating = Creating(held, self._streams, writer, self.progress)
        self._resealing = Resealing(held, self._streams, self.members, self.keys, writer, self._ask_again)
        self._sending = Sending(held, self._streams, batcher, self._creating, self._resealing, writer, link, changed)
        self._listening = Listening(held, self._streams, self.members, writer, self.progress.lasting)
        self._agreeing = Agreeing(
            held, identity, self.members, self.keys, self._sending, writer, self.progress, self._listen_again, move
        )
        self._rekeying = Rekeying(
            held, identity, self.members, self.keys, self._streams, writer, self.progress, self.maker.make, self._opened
        )
        self.relocating = Relocating(held, identity, self.members, self._streams, writer, self.progress, move)
        self.another_relay = another_relay
        take = self._rekeying.take_keys
        self._receiving = Receiving(
            held, self._streams, self.members, writer, self.progress, changed, watched, take, self._ask, self._received
        )
        self._disputing = Disputing(held, identity, self.members, self.keys, self._streams, writer, self)
        self.refused, self._refused_seconds = False, REFUSED_SECONDS_MIN
        self.aside = SetAside(held.number, writer, changed, self.edited, self._stir)
        self._doubtful, self._enrols = True, False
        self._applying = trio.Lock()
        self.gone, self.is_strange = False, False
        """Whether the vault is on this device no more; whether its relay knows no such vault for this device."""
        self.enrolment = Enrolment(held, identity, writer, renew, move)
        if held.doubt is not None:
            self.enrolment.notice(held.doubt)

    # --- for the parts above

    def add(self, collection: Collection, resolve: Resolve | None, waits_for_links: bool = False) -> None:
        """Sync a collection from now on; `resolve` merges edits. `waits_for_links`: see StreamSync."""
        known = self._streams.get(collection.stream)
        if known is not None:
            known.collection, known.resolve = collection, resolve
            return
        stream = self._streams[collection.stream] = self.maker.make(collection, resolve)
        stream.waits_for_links = waits_for_links
        self._ask_again([collection.stream])

    def enrol(self, identity: DeviceIdentity) -> None:
        """Go over to these keys, if they are not the ones in use. They are durable already."""
        self.enrolment.offer(identity)
        self._wake.set()

    def keep_keys(self, why: str) -> None:
        """There are no other keys to be had now."""
        self.enrolment.refuse(why)
        self._wake.set()

    def become(self, held: HeldVault, identity: DeviceIdentity, link: Link) -> None:
        """Be another member, or at another relay, which the replica knows already, on a connection of its own."""
        self.offline()
        self.held, self.identity, self.link = held, identity, link
        self.enrolment.become(held)
        self._doubtful = True
        self._agreeing.become(held, identity)
        self._rekeying.become(held, identity)
        self.relocating.become(held, identity)
        self._resealing.become(held)
        self._disputing.become(held, identity)
        self._sending.move(link)
        self.maker.become(held, identity, self._streams.values())

    def edited(self) -> None:
        """There are new edits in the outbox."""
        self._sending.edits_wait()
        self._wake.set()
        self._stir()

    async def until(self, reached: Callable[["VaultSync"], bool]) -> None:
        """Wait until a condition holds; it is looked at after everything that happens. Raises VaultGoneError."""
        while not reached(self):
            self.check_here()
            await self._moved.wait()

    @property
    def moved(self) -> trio.Event:
        """Set when something has happened next; another one then takes its place."""
        return self._moved

    def is_synced(self, waiting: Waiting) -> bool:
        """The relay knows the vault and it is to stay there, everything is sent and confirmed, everything known of is
        applied. `waiting`: what was counted just now."""
        return (
            (self.knows_members and self.relocating.to is None)
            and all(stream.caught_up for stream in self.streams)
            and not (waiting.edits or waiting.unanswered or waiting.answered)
        )

    async def waiting(self) -> Waiting:
        """What of the vault is not part of the log, counted."""
        return await self._writer.run(lambda replica: replica.outbox.waiting(self.held.number))

    async def strict(self, writes: Sequence[StrictWrite]) -> None:
        """Make strict writes, all or none, and wait until they can be read here.

        Raises OfflineError at once if there is no connection to the relay, ConflictError if another write came
        first (by then it can be read), NeedsNewerAppError, ValueTooLargeError (with what a newer app wrote beside it),
        or StrictError if it cannot be made otherwise. Cancelled, it leaves open whether they are made.
        """
        request = StrictRequest(writes)
        if not self._online.is_set():
            raise OfflineError(f"there is no connection to the relay: {request.names} was not written")
        self._sending.ask(request)
        self._wake.set()
        try:
            await request.done.wait()
        finally:
            self._sending.withdraw(request)
        for stream, seq in request.reached.items():
            await self.until(lambda sync, stream=stream, seq=seq: sync.reached(stream, seq))  # type: ignore[misc]
        if request.error is not None:
            raise request.error

    def reached(self, stream: StreamId, seq: int) -> bool:
        """True if everything up to this place of a stream was applied here, or will not be."""
        known = self._streams[stream]
        return known.cursor >= seq or known.lost is not None

    @property
    def membership(self) -> Membership:
        """The members, as far as their log is here."""
        return self.members.membership

    @property
    def over(self) -> str | None:
        """Why the vault is none for this device any more, in a sentence; None: it is."""
        return self._rekeying.over

    @property
    def strict_under_way(self) -> int:
        """Strict writes that are not even sealed yet."""
        return self._sending.strict_waiting

    async def stop(self) -> None:
        """Apply nothing any more, and let nobody wait: its task is cancelled, and the link has forgotten the vault."""
        self.gone = True
        async with self._applying:
            self.offline()

    def check_here(self) -> None:
        """Raises VaultGoneError if the vault is on this device no more."""
        if self.gone:
            raise VaultGoneError

    @property
    def knows_members(self) -> bool:
        """True if the whole membership log that the relay has told of is here."""
        return self.link.session is not None and self.members.complete

    @property
    def is_refused(self) -> bool:
        """True if the relay says that this device is no member, or the membership log does."""
        return self.refused or self._rekeying.is_removed

    @property
    def may_sign(self) -> bool:
        """True if this device and the relay know the same members, and it is on its way neither to another relay nor to
        new keys; or cannot get any."""
        own = self.membership.members.get(self.held.author)
        in_place = self.enrolment.why is None and own is not None and own.is_present
        known = self.knows_members and not self.members.is_longer and self.relocating.to is None
        return known and (in_place or self.enrolment.refused is not None)

    def doubt_log(self) -> None:
        """The relay is to tell how long its log is: it seems to be another one than it has told."""
        self.members.doubt()
        self._listen_again()

    def ask_again(self) -> None:
        """Ask the relay at once, if it has refused this device: it may have been added meanwhile."""
        if self.is_refused:
            self._listening.anew()
            self._wake.set()

    @property
    def streams(self) -> Sequence[StreamSync]:
        """The collections of apps that are synced."""
        return [stream for stream in self._streams.values() if not stream.collection.is_internal]

    @property
    def behind(self) -> int:
        """Seqs that the relay is known to have and that are not applied here."""
        return sum(max(0, stream.head - stream.cursor) for stream in self.streams)

    # --- Follower

    def online(self) -> None:
        """The link is logged in."""
        self._sending.online()
        self._creating.anew()
        self._inbox.clear()
        self._listening.online()
        self.refused, self._refused_seconds = False, REFUSED_SECONDS_MIN
        self.is_strange = False
        self._agreeing.online()
        self._rekeying.online()
        self._resealing.online()
        self.relocating.online()
        self.progress.lasting.clear()
        self.enrolment.online()
        for stream in self._streams.values():
            stream.told, stream.lost, stream.refused, stream.misfit, stream.won = False, None, False, "", 0
        self._online.set()

    def offline(self) -> None:
        """The link is down; what has no verdict is sent again on the next connection."""
        if self._online.is_set():
            self._online = trio.Event()
        self.members.told = None
        self._sending.offline()
        for stream in self._streams.values():
            stream.told = False
        if self._scope is not None:
            self._scope.cancel()
        self._stir()

    def subscribed(self, message: Subscribed) -> None:
        """Queue for the vault's task. From here on batches may be voided: all without a verdict are sent again."""
        self._sending.void()
        self._creating.anew()
        self._queue(message)

    def pushed(self, message: Pushed) -> None:
        """Queue for the vault's task."""
        self._queue(message)

    def fault(self, message: Fault) -> None:
        """Queue for the vault's task."""
        self._queue(message)

    def _queue(self, message: Subscribed | Pushed | Fault) -> None:
        if len(self._inbox) >= INBOX_MESSAGES_MAX:
            why = "the relay tells more than anybody asked; the connection to it was given up"
            self.link.give_up(TransportError(why))
            return
        self._inbox.append(message)
        self._wake.set()

    def history_lost(self, stream: StreamId, reason: str) -> None:
        """Stop this stream until it is reconciled; nothing that is here is given up."""
        if stream == MEMBERSHIP:
            self.members.read_anew()
            self._listen_again()
            return
        known = self._streams.get(stream)
        if known is not None and self.over is None:
            known.lost, known.losses = reason, known.losses + 1
            why = f"{known.collection.name}: {reason}; it is compared with the relay's, and nothing here is given up"
            self.progress.lasting[known.collection.name] = why
            _log.warning("%s", why)
            self._wake.set()
            self._stir()

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        """Apply deliveries durably, in order."""
        async with self._applying:
            return [] if self.gone else await self._receiving.apply(delivers)

    # --- the vault's task

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._online.wait()
            if not self._online.is_set():
                continue  # offline again before this task had its turn
            with trio.CancelScope() as self._scope:
                try:
                    await self._work()
                except (ReplicaFullError, ReplicaUnreadableError, RemoteFault) as error:
                    come_back = not isinstance(error, RemoteFault) or may_come_back(error.code)
                    self.link.give_up(TransportError(str(error), come_back))
                    await trio.sleep_forever()
            self._scope = None

    async def _work(self) -> None:
        """Work until the connection is gone."""
        async with open_nursery() as nursery:
            reconciler = Reconciler(self.held, self.keys, self.identity, self._writer, self.link)
            nursery.start_soon(reconciler.run, self._next_lost, self._reconciled, self.progress.lasting)
            nursery.start_soon(self._disputing.run, lambda: self._moved)
            await self._converse()

    async def _converse(self) -> None:
        while True:
            self._wake = trio.Event()
            await self._listening.listen(self.link)
            await self._read_inbox()
            await self._listening.listen(self.link)  # to what waited for the log to be told
            self.refused = self.refused or self.over is not None
            if await self._agreeing.go_on(self.link) or not await self._rekeying.take_keys():
                self._sending.give_up(self._unwritable())
                self._stir()
                await self._wait()
                continue
            await self._rekeying.look_again()
            await self._settle_doubtful()
            if (elsewhere := self.relocating.to) is not None:
                await self._finish(elsewhere)
                continue
            self._enrols = await self._enrol()
            missing = self._sending.missing
            if missing or not self._enrols:
                own = self.membership.by_device(self.identity.device_key)
                wanted = self._sending.wanted | missing
                await self._creating.create(self.link, wanted, missing, None if own is None else own.role)
            self._sending.give_up(self._unwritable())
            await self._sending.send(lambda: self._enrols or bool(self._inbox), self.edited)
            self._stir()
            if self._sending.missing - self._streams.keys():
                continue  # to make them; of the others the relay has yet to tell
            await self._wait()

    async def _finish(self, elsewhere: str) -> None:
        """Go over to another relay, once all that is under way at this one has come to its end."""
        why = f"the vault is moving to {elsewhere}: write again when it is there"
        self._sending.give_up({stream.collection.name: why for stream in self._streams.values()})
        await self._sending.send(lambda: bool(self._inbox), self.edited, finishes=True)
        await self.relocating.go_on(elsewhere)
        self._stir()
        await self._wait()

    async def _wait(self) -> None:
        """Wait until there is something to do. A relay that refuses this device is asked again, since it may be added
        any time."""
        asks_at = trio.current_time() + self._refused_seconds if self.refused else math.inf
        with trio.move_on_at(min(asks_at, self._resealing.wakes_at)) as asleep:
            await self._wake.wait()
        if asleep.cancelled_caught and trio.current_time() >= asks_at:
            self._refused_seconds = min(2 * self._refused_seconds, REFUSED_SECONDS_MAX)
            self._listening.anew()

    def _unwritable(self) -> dict[str, str]:
        """Why collections cannot be written now, by name, of those that cannot be."""
        why = self.progress.passing or "the relay refuses this device"
        refused = {stream.collection.name: why for stream in self._streams.values()} if self.refused else {}
        return {**refused, **self.progress.lasting}

    async def _enrol(self) -> bool:
        """Go on to new keys, if they are needed. True: nothing may be sealed under the old ones."""
        settled = not self._doubtful or all(x.caught_up or x.lost is not None for x in self._streams.values())
        ready = self.knows_members and settled
        enrols = await self.enrolment.go_on(self.membership, self.keys, self.link, ready)
        if enrols:
            self.progress.passing = self.enrolment.refused or self.enrolment.why
        return enrols

    async def _settle_doubtful(self) -> None:
        """Decide what became of writes whose verdict the relay has forgotten, where all that it has is applied."""
        numbers = [stream.collection.number for stream in self._streams.values() if stream.caught_up]
        if self._doubtful and numbers:
            vault = self.held.number
            self._show(await self._writer.run(lambda replica: replica.outbox.settle_doubtful(vault, numbers)))
            self._doubtful = await self._writer.run(lambda replica: replica.outbox.sent.has_doubtful(vault))
            self._sending.edits_wait()

    async def _read_inbox(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, Subscribed):
                await self._take_told(message)
            elif isinstance(message, Pushed):
                await self._take_verdict(message)
            else:
                await self._take_fault(message)

    async def _take_told(self, message: Subscribed) -> None:
        if not await self._listening.told(message):
            self.enrolment.notice("the relay has batches of this device that it did not send: its folder was restored")
        self.progress.passing, self.refused, self.is_strange = None, False, False

    def check_fits(self, collection: Collection) -> None:
        """Raises ReplicaMisuse for a collection that the relay has as another kind of stream, and VaultGoneError."""
        self.check_here()
        stream = self._streams.get(collection.stream)
        if stream is not None and stream.misfit:
            raise ReplicaMisuse(f"{stream.misfit}; nothing was written")

    async def _take_verdict(self, message: Pushed) -> None:
        with trio.CancelScope(shield=True):
            answered = await self._sending.answered(message)
        given_back = message.outcome is Outcome.NOT_A_WRITER and answered and not answered.stuck
        if message.outcome is not Outcome.DONE and not (answered and answered.resealed) and not given_back:
            self.progress.passing = WHY_REFUSED[message.outcome]
            _log.warning("batch %d was refused: %s", message.batch, self.progress.passing)
        if message.outcome is Outcome.EPOCH_STALE:
            self._rekeying.refused(self.link)
            self._listen_again()
        elif message.outcome is Outcome.MOVED and self.relocating.to is None:
            self.relocating.refused(self.link)
            self._listen_again()
        elif message.outcome is Outcome.DONE:
            self._rekeying.accepted()
        if message.outcome in (Outcome.CLONED, Outcome.STALE_NUMBER):
            self.enrolment.notice("another device uses this one's identity: its folder was copied, or restored")
        if message.outcome is Outcome.STALE_NUMBER:
            self._doubtful = True
            self._ask_again(self._streams)  # for the present heads: what was sent may be anywhere up to them
        if answered is not None:
            self._show(answered.changes)
            # The relay holds nothing of what was to be replaced: it may have lost history, which it tells when asked.
            gone = [stream for stream, seq in answered.winners if not seq and stream in self._streams]
            # What is not given back yet is found again when it is asked where that was confirmed.
            lost = () if message.outcome is Outcome.MOVED else answered.lost  # it is given back where the vault is
            if gone or lost:
                self._ask_again([*gone, *(stream for stream in lost if stream in self._streams)])

    def _ask_again(self, streams: Iterable[StreamId]) -> None:
        """Ask how these streams stand now."""
        self._listening.add(streams)
        self._wake.set()

    def _show(self, changes: Sequence[tuple[int, Change]]) -> None:
        collections = {stream.collection.number: stream.collection for stream in self._streams.values()}
        for number, change in changes:
            if number in collections:
                self._tell(collections[number], [change])

    async def _take_fault(self, message: Fault) -> None:
        for stream in self._streams.values():
            stream.void()
        why = REMOVED if self._rekeying.is_removed else message.message
        if message.code is FaultCode.NOT_SUBSCRIBED and not self._rekeying.is_removed:
            why = self.progress.passing or why  # a push that was on its way when the relay said what is the matter
        if message.code is FaultCode.NO_SUCH_VAULT and not self._rekeying.is_removed:
            late = self._listening.refused()
            if late or await self._agreeing.give_back(self.link, 0):  # it is not refused for as long as that may help
                if not late:
                    self._listening.given_back()
                self._listening.anew()
                self._wake.set()
                return
            self.is_strange = self._agreeing.not_taken_in is None
            why = self._agreeing.not_taken_in or SHUT_OUT
        self.progress.passing, self.refused = why, message.action is Action.STOP

    def _ask(self, doubt: Doubt) -> None:
        self.link.handle(doubt)

    def _received(self) -> None:
        self._wake.set()
        self._stir()

    def _opened(self, collection: Collection, changes: Sequence[Change]) -> None:
        self._tell(collection, changes)
        self.edited()

    def _listen_again(self) -> None:
        """Ask for the membership log from where it is to be read."""
        self._ask_again([MEMBERSHIP])

    # --- reconciling

    async def _next_lost(self, put_off: Container[StreamId]) -> StreamSync:
        """Wait for a collection whose history is not the relay's. A device on its way to new keys goes there first."""

        def lost() -> list[StreamSync]:
            ready = not self._enrols and self.over is None
            return [x for name, x in self._streams.items() if ready and x.is_lost and name not in put_off]

        return await next_ready(lost, lambda: self._moved, self._writer)

    def _reconciled(self, stream: StreamSync, settled: Settled) -> None:
        """Listen to it again, and give back what the relay has lost of it."""
        stream.lost = None
        self.progress.lasting.pop(stream.collection.name, None)
        self._listening.add([stream.collection.stream])
        self._sending.void()  # refills are read from where they are stored
        self._tell(stream.collection, settled.changes)
        self.edited()

    def _stir(self) -> None:
        """Let everyone look again who waits for something to happen."""
        self._moved.set()
        self._moved = trio.Event()
