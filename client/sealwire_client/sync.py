"""What travels between one vault's replica and the relay: deliveries in, sealed batches out, each exactly once.

One task per vault works while the link is online; bytes are opened, sealed and stored in the writer's thread. The
order is always: tell the relay where the replica stands, send again what has no verdict, then seal what is new, and
only in collections that have caught up (R2).
"""

import logging
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Final

import trio

from sealwire_client import keyring, sealing, tallies
from sealwire_client.batching import Batcher, StrictWrite
from sealwire_client.creating import Creating
from sealwire_client.enrolment import Enrolment
from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import Link, RelayRefusedError
from sealwire_client.listening import Listening
from sealwire_client.memberlog import MemberLog
from sealwire_client.merging import Resolve
from sealwire_client.nursery import open_nursery
from sealwire_client.progress import Progress
from sealwire_client.reconcile import Reconciler
from sealwire_client.replica import (
    Change,
    Collection,
    EditStanding,
    GapError,
    HeldVault,
    Mark,
    Place,
    Replica,
    ReplicaFullError,
    ReplicaMisuse,
    ReplicaUnreadableError,
    Runner,
    Settled,
    Waiting,
)
from sealwire_client.sending import WHY_REFUSED, OfflineError, Sending, StrictRequest, explained
from sealwire_client.stream import Garbled, StreamSync
from sealwire_client.transport import TransportError
from sealwire_protocol.errors import Action, DecodeError, FaultCode, Outcome, RemoteFault, may_come_back
from sealwire_protocol.events import Doubt
from sealwire_protocol.ids import MEMBERSHIP, START, Position, StreamId
from sealwire_protocol.membership import Membership, Role
from sealwire_protocol.messages import (
    Deliver,
    Fault,
    Pushed,
    Subscribed,
)

_log = logging.getLogger("sealwire.sync")

INBOX_MESSAGES_MAX: Final = 64
"""Verdicts, faults and states of streams that wait for a vault's task. A relay owes at most a window of verdicts and
an answer to each SUBSCRIBE; what sends more is no honest relay."""

Watcher = Callable[[Collection, Sequence[Change] | None], None]
"""Told what changed in a collection; None: more than was to be named."""


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
    ) -> None:
        self.held, self.members = held, MemberLog(held.number, membership, writer)
        self.keys = keyring.keys_from_log(identity, membership)
        self.progress = Progress()
        self.identity, self.link, self._writer = identity, link, writer
        self._tell, self._watched = changed, watched
        self._streams: dict[StreamId, StreamSync] = {}
        self._online, self._wake, self._moved = trio.Event(), trio.Event(), trio.Event()
        self._scope: trio.CancelScope | None = None
        self._inbox: deque[Subscribed | Pushed | Fault] = deque()
        batcher = Batcher(held.number, self._streams, self.keys)
        self._creating = Creating(held, self._streams, writer, self.progress)
        self._sending = Sending(held, self._streams, batcher, self._creating, writer, link, changed)
        self._listening = Listening(held, self._streams, self.members, writer, self.progress.lasting)
        self._presented = self.refused = False
        self._discarded: dict[tuple[int, str], list[tuple[int, int]]] = {}
        self._doubtful, self._enrols = True, False
        self.enrolment = Enrolment(held, identity, writer, renew, move)
        if held.doubt is not None:
            self.enrolment.notice(held.doubt)

    # --- for the parts above

    def add(self, collection: Collection, resolve: Resolve | None) -> None:
        """Sync a collection from now on; `resolve` merges edits."""
        known = self._streams.get(collection.stream)
        if known is not None:
            known.collection, known.resolve = collection, resolve
            return
        self._streams[collection.stream] = self.stream_of(collection, resolve)
        self._listening.add([collection.stream])
        self._wake.set()

    def stream_of(self, collection: Collection, resolve: Resolve | None = None) -> StreamSync:
        """What opens and seals a collection's records. It is not synced by this."""
        stream = self.keys.stream(collection.stream)
        keys = [self.keys.stream_keys(collection.stream, epoch) for epoch in self.keys.epochs]
        return StreamSync(
            collection,
            sealing.Opener(stream, keys),
            self._sealer(collection.stream),
            {number: epoch.key_id for number, epoch in self.keys.epochs.items()},
            resolve,
        )

    def _sealer(self, stream: StreamId) -> sealing.Sealer:
        return self.keys.sealer(stream, self.held.author, self.identity.hedge_key)

    def enrol(self, identity: DeviceIdentity) -> None:
        """Go over to these keys, if they are not the ones in use. They are durable already."""
        self.enrolment.offer(identity)
        self._wake.set()

    def keep_keys(self, why: str) -> None:
        """There are no other keys to be had now."""
        self.enrolment.refuse(why)
        self._wake.set()

    def become(self, held: HeldVault, identity: DeviceIdentity, link: Link) -> None:
        """Be another member from now on, which the replica knows already, on a connection of its own."""
        self.offline()
        self.held, self.identity, self.link = held, identity, link
        self._sending.move(link)
        for name, stream in self._streams.items():
            stream.sealer = self._sealer(name)

    def edited(self) -> None:
        """There are new edits in the outbox."""
        self._sending.edits_wait()
        self._wake.set()
        self._stir()

    async def until(self, reached: Callable[["VaultSync"], bool]) -> None:
        """Wait until a condition on the sync holds; it is looked at after everything that happens."""
        while not reached(self):
            await self._moved.wait()

    @property
    def moved(self) -> trio.Event:
        """Set when something has happened next; another one then takes its place."""
        return self._moved

    async def standing(self, mark: Mark) -> EditStanding:
        """What became of an edit."""
        if any(since <= mark.n <= n for since, n in self._discarded.get((mark.collection, mark.key), ())):
            return EditStanding(Place.REFUSED, "it was refused, and then discarded on this device")
        return await self._writer.run(lambda replica: replica.outbox.standing(mark))

    async def discard(self, collection: Collection, key: str) -> bool:
        """Give up a stuck write for good, with all of its transaction. False if there is none of this key."""
        gone = await self._writer.run(tallies.discard, collection, key)
        for each in gone:
            self._discarded.setdefault((each.collection.number, each.key), []).append((each.since, each.n))
            self._tell(each.collection, each.changes)
        if gone:
            self._stir()
        return bool(gone)

    async def retry(self, collection: Collection, key: str) -> bool:
        """Send a stuck write again, with all of its transaction. False if there is none of this key."""
        found = await self._writer.run(lambda replica: replica.outbox.aside.retry(collection, key))
        self.edited()
        return found

    def is_synced(self, waiting: Waiting) -> bool:
        """The relay knows the vault, everything is sent and confirmed, everything known of is applied. `waiting`: what
        was counted just now."""
        return (
            self.knows_members
            and all(stream.caught_up for stream in self._streams.values())
            and not (waiting.edits or waiting.unanswered or waiting.answered)
        )

    async def waiting(self) -> Waiting:
        """What of the vault is not part of the log, counted."""
        return await self._writer.run(lambda replica: replica.outbox.waiting(self.held.number))

    async def why_stuck(self) -> str | None:
        """Why writes are kept that the relay refused for good, in a sentence; None if there are none."""
        reason = await self._writer.run(lambda replica: replica.outbox.aside.why(self.held.number))
        return None if reason is None else explained(reason)

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

    async def synced(self) -> None:
        """Wait until everything made before this call is sent and confirmed, and everything known is applied."""
        while True:
            moved = self._moved  # before the look: what happens during it must not be missed
            if self.is_synced(await self.waiting()):
                return
            await moved.wait()

    @property
    def membership(self) -> Membership:
        """The members, as far as their log is here."""
        return self.members.membership

    @property
    def knows_members(self) -> bool:
        """True if the whole membership log that the relay has told of is here."""
        return self.link.session is not None and self.members.complete

    @property
    def may_sign(self) -> bool:
        """True if this device knows the members, and is not on its way to new keys; or cannot get any."""
        own = self.membership.members.get(self.held.author)
        in_place = self.enrolment.why is None and own is not None and own.role is not Role.REPLACED
        return self.knows_members and (in_place or self.enrolment.refused is not None)

    async def grown_beyond(self, head: int) -> None:
        """Wait until the membership log here is longer than that."""
        await self.until(lambda sync: sync.membership.head > head)

    @property
    def streams(self) -> Sequence[StreamSync]:
        """The collections that are synced."""
        return list(self._streams.values())

    @property
    def behind(self) -> int:
        """Seqs that the relay is known to have and that are not applied here."""
        return sum(max(0, stream.head - stream.cursor) for stream in self._streams.values())

    # --- Follower

    def online(self) -> None:
        """The link is logged in."""
        self._sending.online()
        self._creating.anew()
        self._inbox.clear()
        self._listening.anew()
        self._presented = self.refused = False
        self.progress.lasting.clear()
        self.enrolment.online()
        for stream in self._streams.values():
            stream.told, stream.lost, stream.refused, stream.misfit, stream.won = False, None, False, "", 0
        self._online.set()

    def offline(self) -> None:
        """The link is down; what has no verdict is sent again on the next connection."""
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
            self.members.at = START
            self._listening.add([MEMBERSHIP])
            self._wake.set()
            return
        known = self._streams.get(stream)
        if known is not None:
            known.lost, known.losses = reason, known.losses + 1
            why = f"{known.collection.name}: {reason}; it is compared with the relay's, and nothing here is given up"
            self.progress.lasting[known.collection.name] = why
            _log.warning("%s", why)
            self._wake.set()
            self._stir()

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        """Apply deliveries durably, in order. Not cut short by cancellation: whoever watches learns of all of it."""
        try:
            with trio.CancelScope(shield=True):
                reached = await self._apply(delivers)
        except (ReplicaFullError, ReplicaUnreadableError, GapError) as error:
            raise TransportError(str(error)) from error
        return reached

    async def _apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        reached: dict[StreamId, Position] = {}
        records: list[Deliver] = []
        losses = {name: stream.losses for name, stream in self._streams.items()}
        for deliver in delivers:
            if deliver.stream == MEMBERSHIP:
                await self._take_links(deliver)
                reached[MEMBERSHIP] = self.members.at
            else:
                records.append(deliver)
        # What was admitted before its stream's history was found lost is of that history.
        records = [deliver for deliver in records if self._streams[deliver.stream].losses == losses[deliver.stream]]
        if records:
            changes, garbled = await self._writer.run(self._apply_records, records)
            for deliver in records:
                stream = self._streams[deliver.stream]
                if deliver.stream in garbled:
                    reached[deliver.stream] = Position(deliver.term, garbled[deliver.stream].cursor)
                    continue
                stream.cursor = max(stream.cursor, deliver.last)
                stream.head, stream.told_head = max(stream.head, deliver.last), max(stream.told_head, deliver.last)
                reached[deliver.stream] = Position(deliver.term, deliver.last)
            for name, why in garbled.items():
                self.link.handle(Doubt(self.held.id, name, why.reason))
            for collection, named in changes:
                self._tell(collection, named)
            self._wake.set()
            self._stir()
        return list(reached.items())

    # --- in the writer's thread

    def _apply_records(
        self, replica: Replica, delivers: Sequence[Deliver]
    ) -> tuple[list[tuple[Collection, Sequence[Change] | None]], dict[StreamId, Garbled]]:
        """What changed, and the streams of which something could not be read: applied up to there, and no further."""
        changes: list[tuple[Collection, Sequence[Change] | None]] = []
        garbled: dict[StreamId, Garbled] = {}
        with replica.transaction():
            for deliver in delivers:
                if deliver.stream in garbled:
                    continue
                stream = self._streams[deliver.stream]
                watched = self._watched(stream.collection)
                try:
                    changes.append((stream.collection, stream.apply(replica, deliver, watched)))
                except DecodeError as error:
                    garbled[deliver.stream] = Garbled.after(deliver.prev, error)
                    changes.append((stream.collection, None))  # the parts of it before that stand
        return changes, garbled

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
            await self._converse()

    async def _converse(self) -> None:
        while True:
            self._wake = trio.Event()
            await self._listening.listen(self.link)
            await self._read_inbox()
            await self._settle_doubtful()
            self._enrols = await self._enrol()
            missing = self._sending.missing
            if missing or not self._enrols:
                await self._creating.create(self.link, self._sending.wanted | missing, missing)
            self._sending.give_up(self._unwritable())
            await self._sending.send(lambda: self._enrols or bool(self._inbox), self.edited)
            self._stir()
            if self._sending.missing - self._streams.keys():
                continue  # to make them; of the others the relay has yet to tell
            await self._wake.wait()

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
        self.progress.passing, self.refused = None, False
        if any(state.stream == MEMBERSHIP for state in message.streams):
            if self.members.is_longer:
                await self._present_links(self.members.told or 0)
            else:
                self._presented = False  # should the relay lose links again

    def check_fits(self, collection: Collection) -> None:
        """Raises ReplicaMisuse for a collection that the relay has as another kind of stream."""
        stream = self._streams.get(collection.stream)
        if stream is not None and stream.misfit:
            raise ReplicaMisuse(f"{stream.misfit}; nothing was written")

    async def _take_verdict(self, message: Pushed) -> None:
        with trio.CancelScope(shield=True):
            answered = await self._sending.answered(message)
        if message.outcome is not Outcome.DONE:
            self.progress.passing = WHY_REFUSED[message.outcome]
            _log.warning("batch %d was refused: %s", message.batch, self.progress.passing)
        if message.outcome in (Outcome.CLONED, Outcome.STALE_NUMBER):
            self.enrolment.notice("another device uses this one's identity: its folder was copied, or restored")
        if message.outcome is Outcome.STALE_NUMBER:
            self._doubt()
        if answered is not None:
            self._show(answered.changes)
            # The relay holds nothing of what was to be replaced: it may have lost history, which it tells when asked.
            gone = [stream for stream, seq in answered.winners if not seq and stream in self._streams]
            # What is not given back yet is found again when it is asked where that was confirmed.
            if gone or answered.lost:
                self._listening.add([*gone, *(stream for stream in answered.lost if stream in self._streams)])
                self._wake.set()

    def _doubt(self) -> None:
        """Ask for the present heads: what was sent may be anywhere up to them."""
        self._doubtful = True
        self._listening.add(self._streams)
        self._wake.set()

    def _show(self, changes: Sequence[tuple[int, Change]]) -> None:
        collections = {stream.collection.number: stream.collection for stream in self._streams.values()}
        for number, change in changes:
            if number in collections:
                self._tell(collections[number], [change])

    async def _take_fault(self, message: Fault) -> None:
        for stream in self._streams.values():
            stream.void()
        self.progress.passing = message.message
        self.refused = message.action is Action.STOP
        if message.code is FaultCode.NO_SUCH_VAULT and not await self._present_links(0):
            self.progress.passing = message.message

    async def _present_links(self, after: int) -> bool:
        """Give the relay the membership links that it never had, or has lost (R15); once, until it tells of all."""
        if self._presented:
            return False
        self._presented = True
        try:
            await self.members.present(self.link, self.held.id, after)
        except RelayRefusedError as error:
            self.progress.passing = str(error)
            _log.warning("the membership log was refused: %s", error)
            if error.fault.action is not Action.STOP:
                self.link.give_up(TransportError(f"the membership log could not be given back yet: {error}"))
            return False
        self.refused = False
        self._listening.anew()
        self._wake.set()
        return True

    async def _take_links(self, deliver: Deliver) -> None:
        """Take links in, as far as they verify."""
        why = await self.members.take(deliver)
        if why is not None:
            self.progress.lasting[""] = f"the relay's membership log was not accepted: {why}"
            _log.error("%s", self.progress.lasting[""])
        self._wake.set()
        self._stir()

    # --- reconciling

    async def _next_lost(self, put_off: Container[StreamId]) -> StreamSync:
        """Wait for a collection whose history is not the relay's. A device on its way to new keys goes there first, and
        one that gives back what stands together hears first what became of that."""

        def lost() -> list[StreamSync]:
            return [x for name, x in self._streams.items() if x.is_lost and name not in put_off and not self._enrols]

        await trio.lowlevel.checkpoint()
        while True:
            moved = self._moved  # before the look: what happens during it must not be missed
            for stream in lost():
                number = stream.collection.number
                if not await self._writer.run(_together_await_verdict, number) and stream.is_lost:
                    return stream
            await moved.wait()

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


def _together_await_verdict(replica: Replica, collection: int) -> bool:
    return replica.outbox.refills.together_await_verdict(collection)
