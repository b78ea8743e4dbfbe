"""What one vault sends, in order: what has no verdict yet, then strict writes, then edits; each exactly once.

Used by the vault's task alone, so that batches leave in the order of their numbers.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from sealwire_client.batching import (
    TOO_LARGE_FOR_RELAY,
    Batcher,
    DisputedError,
    OvertakenError,
    Sealed,
    StrictWrite,
    StuckError,
    exceeds,
)
from sealwire_client.creating import Creating
from sealwire_client.link import Link
from sealwire_client.replica import (
    CONFLICT,
    GIVEN_BACK_LATE,
    Answered,
    Change,
    Collection,
    HeldVault,
    NeedsNewerAppError,
    Replica,
    ReplicaError,
    Runner,
    StoredBatch,
    sealed_bytes,
)
from sealwire_client.resealing import Resealing
from sealwire_client.sealing import ValueTooLargeError
from sealwire_client.stream import StreamSync
from sealwire_protocol.client_session import ClientSession
from sealwire_protocol.errors import Outcome
from sealwire_protocol.events import Submit
from sealwire_protocol.ids import StreamId
from sealwire_protocol.limits import PUSH_WINDOW, Limits
from sealwire_protocol.messages import Push, Pushed, push_since

STRICT_ATTEMPTS_MAX: Final = 3
"""Times that a strict write is sent because what it replaces was only sealed anew meanwhile, which comes once in an
epoch. A relay that says so again and again is not asked for ever."""

_log = logging.getLogger("sealwire.sending")


DISPUTED: Final = (
    "the relay shows its devices different histories, or has dropped a record: see `status().disputed`, then dismiss it"
)


class StrictError(Exception):
    """A strict write was not made. It was not kept either: look again, and write anew."""


class OfflineError(StrictError):
    """There is no relay now to say whether the write may be made. Nothing was written."""


class ConflictError(StrictError):
    """Another write came first: what this one was based on has changed. Nothing was written."""


class StrictRequest:
    """Strict writes on their way, and their verdict."""

    def __init__(self, writes: Sequence[StrictWrite]) -> None:
        self.writes = writes
        self.attempts = 0
        self.abandoned = False
        """Nobody waits for the verdict any more."""
        self.error: Exception | None = None
        self.reached: dict[StreamId, int] = {}
        """Seqs that the cursors must pass before the writes, or those that came first, can be read here."""
        self.done = trio.Event()

    def end(self, error: Exception | None = None) -> None:
        """The verdict is there."""
        self.error = error
        self.done.set()

    @property
    def names(self) -> str:
        """What is written, for people."""
        return ", ".join(f"{write.key!a} in {write.collection.name}" for write in self.writes)


class Sending:
    """The outgoing side of one vault's sync. `tell` learns what merging changed."""

    def __init__(
        self,
        held: HeldVault,
        streams: Mapping[StreamId, StreamSync],
        batcher: Batcher,
        creating: Creating,
        resealing: Resealing,
        writer: Runner[Replica],
        link: Link,
        tell: Callable[[Collection, Sequence[Change]], None],
    ) -> None:
        self._held, self._streams, self._batcher = held, streams, batcher
        self._creating, self._resealing = creating, resealing
        self._writer, self._link, self._tell = writer, link, tell
        self._backlog: deque[StoredBatch] = deque()
        self._resend = True
        self._stored_after: int | None = None
        self._requests: list[StrictRequest] = []
        self._strict: dict[int, StrictRequest] = {}
        self._connections = 0
        self.missing: set[StreamId] = set()
        """Streams that must be there before the next batch can be sent again."""
        self._edited, self._none_at = 1, 0
        """How often edits have come, and how often they had when none was left."""

    def move(self, link: Link) -> None:
        """Send through another connection from now on."""
        self._link = link
        self.edits_wait()

    def edits_wait(self) -> None:
        """There may be edits again."""
        self._edited += 1

    def void(self) -> None:
        """What was sent on this connection and has no verdict may not count: send it again."""
        self._resend = True

    def online(self) -> None:
        """A new connection: it knows of nothing sent before."""
        self._resend = True
        self._backlog.clear()

    def offline(self) -> None:
        """Strict writes that were not sent are not made; those that were are sent again, and have a verdict then."""
        for request in self._requests:
            request.end(_offline(request))
        self._requests.clear()
        self._connections += 1

    def ask(self, request: StrictRequest) -> None:
        """Send strict writes as soon as it is their turn."""
        self._requests.append(request)

    def withdraw(self, request: StrictRequest) -> None:
        """Nobody waits for these any more: do not send them, unless it has begun."""
        request.abandoned = True
        if request in self._requests:
            self._requests.remove(request)

    @property
    def strict_waiting(self) -> int:
        """Strict writes that wait to be sealed."""
        return sum(len(request.writes) for request in self._requests)

    @property
    def wanted(self) -> set[StreamId]:
        """Streams to which strict writes wait to be sent."""
        return {write.collection.stream for request in self._requests for write in request.writes}

    def give_up(self, why: Mapping[str, str]) -> None:
        """Strict writes to collections that cannot be written now are not made; `why`, by the collection's name."""
        for request in list(self._requests):
            name = next((write.collection.name for write in request.writes if write.collection.name in why), None)
            if name is not None:
                self._requests.remove(request)
                request.end(StrictError(f"{request.names} was not written, because {name} cannot be: {why[name]}"))

    async def send(self, busy: Callable[[], bool], again: Callable[[], None], *, finishes: bool = False) -> None:
        """Send what has no verdict, in order, then seal and send what is new, as far as the window allows.

        `busy`: verdicts wait to be taken in. They go first, so that what is sealed and not known to be answered stays
        within the window. `again` is called when there is room, if other vaults have taken all that the connection has.
        `finishes`: nothing new is sealed, and what has no verdict is only asked about.
        """
        await self._send(busy, finishes)
        if self._link.session is not None and self._link.session.full:
            self._link.when_room(again)

    async def _send(self, busy: Callable[[], bool], finishes: bool) -> None:
        session, vault = self._link.session, self._held.id
        self.missing = set()
        while session is not None and session is self._link.session and session.may_push(vault):
            if self._resend:
                self._resend, self._stored_after = False, 0
                self._backlog.clear()
            if self._backlog:
                if session.version < push_since(self._backlog[0].flags):
                    return  # the relay is too old to take it; what comes after it keeps its place
                self.missing = self._creating.missing(group.stream for group in self._backlog[0].groups)
                if self.missing and not finishes:
                    return  # a relay that has lost them would take this for a mistake
                self._submit(session, self._backlog.popleft())
                continue
            if self._stored_after is not None:
                await self._read_backlog(session, self._stored_after)
                continue
            if finishes or busy() or len(session.outstanding(vault)) >= PUSH_WINDOW:
                return
            tops = {x.collection.number: x.top for x in self._streams.values() if x.writable}
            batch = await self._next(session, tops) if tops else None
            if batch is None and not self._resend:
                batch = await self._resealing.next(session)
            if batch is None or self._resend:
                return
            self._submit(session, batch)

    async def _read_backlog(self, session: ClientSession, after: int) -> None:
        done = session.outstanding(self._held.id)
        stored = await self._writer.run(_unanswered, self._held.number, after)
        self._backlog = deque(batch for batch in stored if batch.number not in done)
        self._stored_after = stored[-1].number if len(stored) == PUSH_WINDOW else None

    async def _next(self, session: ClientSession, tops: dict[int, int]) -> StoredBatch | None:
        limits = session.limits
        batch = await self._next_strict(tops, limits)
        if batch is not None or self._none_at == self._edited:
            return batch  # no edits have come since there were none
        looked_at = self._edited
        with trio.CancelScope(shield=True):  # whoever watches learns of what was merged
            sealed: Sealed = await self._writer.run(self._batcher.next, tops, limits.push_records, limits.segment_bytes)
            for collection, changes in sealed.changes:
                self._tell(collection, changes)
        if sealed.none_wait:
            self._none_at = looked_at
        return sealed.batch

    async def _next_strict(self, tops: dict[int, int], limits: Limits) -> StoredBatch | None:
        for request in list(self._requests):
            if not all(write.collection.number in tops for write in request.writes):
                continue
            sizes = [sealed_bytes(write.key, write.value, write.collection.signed) for write in request.writes]
            if exceeds(sizes, limits.push_records, limits.segment_bytes):
                self._requests.remove(request)
                request.end(StrictError(f"{request.names} was not written: {TOO_LARGE_FOR_RELAY}; make several"))
                continue
            with trio.CancelScope(shield=True):  # what is stored is sent, so its verdict must find the request
                batch = await self._store_strict(request, tops)
            if batch is not None:
                return batch
        return None

    async def _store_strict(self, request: StrictRequest, tops: dict[int, int]) -> StoredBatch | None:
        """Store a request's batch if it may be made. None: it has ended, or edits of its keys go first."""
        at, connections = self._requests.index(request), self._connections
        self._requests.remove(request)
        try:
            batch = await self._writer.run(self._batcher.strict, request.writes, tops)
        except OvertakenError:
            request.end(_conflict(request))
        except DisputedError:
            request.end(StrictError(f"{request.names} was not written: {DISPUTED}"))
        except StuckError as error:
            request.end(StrictError(f"{request.names} was not written: {error}"))
        except (NeedsNewerAppError, ValueTooLargeError) as error:
            request.end(error)
        except ReplicaError as error:
            request.end(error)  # the disk is full, or cannot be read
            raise
        else:
            if batch is not None:
                request.attempts += 1
                self._strict[batch.number] = request
                return batch
            if connections != self._connections:
                request.end(_offline(request))
            elif not request.abandoned:
                self._requests.insert(at, request)
        return None

    def _submit(self, session: ClientSession, batch: StoredBatch) -> None:
        vault = self._held.id
        term = session.term_of(vault)
        if term is None or not session.may_push(vault) or batch.number in session.outstanding(vault):
            self._resend = True
            return
        self._link.handle(Submit(Push(vault, term, batch.number, batch.flags, batch.groups)))

    async def answered(self, message: Pushed) -> Answered | None:
        """Take in a verdict, durably. Not to be cancelled: who waits for it must learn it.

        Raises RemoteFault if it does not fit the batch."""
        vault = self._held.number
        answered = await self._writer.run(
            lambda replica: replica.outbox.answer(
                vault, message.batch, message.outcome, message.appended, message.refused
            )
        )
        if answered is None:
            return None
        if answered.again or answered.resealed:
            self.edits_wait()
        if answered.resealed:
            self._resealing.answered(message)
        for stream, seq in answered.winners:
            known = self._streams.get(stream)  # none: a write of an earlier run, whose collection is not open yet
            if known is not None:
                known.won = max(known.won, seq)
                known.head = max(known.head, seq)
        request = self._strict.pop(message.batch, None)
        if request is not None:
            await self._end(request, message, answered)
        return answered

    async def end_all(self, outcome: Outcome, why: str) -> None:
        """What has no verdict will not have one: it is treated as if this were it. After SEAL_AGAIN edits wait to be
        sealed again, after STALE_NUMBER they may be in the log. Of strict writes nobody knows; `why` is told to whoever
        waits for them."""
        while batches := await self._writer.run(_unanswered, self._held.number, 0):
            with trio.CancelScope(shield=True):
                for number in [batch.number for batch in batches]:
                    request = self._strict.pop(number, None)
                    await self.answered(Pushed(self._held.id, number, outcome, (), ()))
                    if request is not None:
                        await self._forget(request)
                        request.end(StrictError(f"{why}: read whether {request.names} was written"))

    async def _end(self, request: StrictRequest, message: Pushed, answered: Answered) -> None:
        if message.outcome is Outcome.DONE and not answered.refused:
            request.reached = {group.stream: group.first + group.records - 1 for group in message.appended}
            request.end()
            return

        error, again, connections = _restored(request), False, self._connections
        if message.outcome is Outcome.DONE:
            error, again = _conflict(request), all(seq for _, seq in answered.winners)
            for stream, seq in answered.winners:
                request.reached[stream] = max(request.reached.get(stream, 0), seq)
        elif message.outcome is not Outcome.STALE_NUMBER:
            why = message.outcome.name.lower().replace("_", " ")
            error = StrictError(f"the relay refused {request.names} ({why}): it was not written")
        try:
            await self._forget(request)
        finally:
            # When what came first is here, it is seen whether that was a write, or a write of before, sealed anew.
            if again and request.attempts < STRICT_ATTEMPTS_MAX and not request.abandoned:
                if connections == self._connections:
                    self._requests.append(request)
                else:
                    request.end(_offline(request))
            else:
                request.end(error)

    async def _forget(self, request: StrictRequest) -> None:
        """Whoever waits for it learns what became of it: it need not be shown as set aside."""

        def told(replica: Replica) -> None:
            for write in request.writes:
                replica.outbox.aside.forget_strict(write.collection, write.key)

        await self._writer.run(told)


def _offline(request: StrictRequest) -> OfflineError:
    return OfflineError(f"the connection to the relay was lost: {request.names} was not written")


def _restored(request: StrictRequest) -> StrictError:
    return StrictError(f"this device's folder was restored: read whether {request.names} was written")


def _conflict(request: StrictRequest) -> ConflictError:
    return ConflictError(
        f"another write came first: {request.names} was not written; read what is there now, and decide anew"
    )


def explained(reason: str) -> str:
    """Why a write was set aside, in a sentence."""
    told = {outcome.name.lower(): why for outcome, why in WHY_REFUSED.items()}
    told |= {CONFLICT: _LATE_CONFLICT, GIVEN_BACK_LATE: _LATE_RETURN}
    return told.get(reason, f"a write was set aside: {reason}")


def _unanswered(replica: Replica, vault: int, after: int) -> list[StoredBatch]:
    return replica.outbox.sent.unanswered(vault, after)


_LATE_CONFLICT: Final = "another device's write came before a strict one, whose app had ended meanwhile"

_LATE_RETURN: Final = (
    "the relay had lost it, and another device's write came before it was given back; look at the entry, write anew if"
    " it is still wanted, then discard this"
)

WHY_REFUSED: Final = {
    Outcome.EPOCH_STALE: "the vault's keys have changed; what was sent is sealed again",
    Outcome.SEAL_AGAIN: "what was sent was too old for the relay's log; it is sealed again",
    Outcome.NOT_A_WRITER: "this device may not write to the vault; its writes are set aside: ask an admin of the vault"
    " to remove it and to invite it again as a writer",
    Outcome.CLONED: "another device uses this one's identity (a copied folder?); what was sent is sealed again",
    Outcome.STALE_NUMBER: "the relay no longer knows an old batch (a restored folder?); what is missing is sent anew",
    Outcome.MALFORMED: "the relay found a batch malformed; its writes are set aside; is this program up to date?",
    Outcome.MOVED: "the vault was moved to another relay; what was sent is sealed again there",
    Outcome.QUOTA: "the vault is full at this relay; writes are set aside: delete entries, or ask whoever runs the"
    " relay for more room, and retry them then",
}
