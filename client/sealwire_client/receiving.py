"""What the relay delivers of one vault: links into the membership log, records into the replica, each durably."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from sealwire_client.memberlog import MemberLog
from sealwire_client.progress import Progress
from sealwire_client.replica import (
    Change,
    Collection,
    GapError,
    HeldVault,
    Replica,
    ReplicaFullError,
    ReplicaUnreadableError,
    Runner,
)
from sealwire_client.stream import Garbled, StreamSync
from sealwire_client.transport import TransportError
from sealwire_protocol.errors import DecodeError
from sealwire_protocol.events import Doubt
from sealwire_protocol.ids import MEMBERSHIP, Position, StreamId
from sealwire_protocol.links import LinkError
from sealwire_protocol.messages import Deliver

_log = logging.getLogger("sealwire.sync")

Watcher = Callable[[Collection, Sequence[Change] | None], None]
"""Told what changed in a collection; None: more than was to be named."""


class Receiving:
    """Applies one vault's deliveries. `taken` is awaited when links were, `doubt` called where a stream has to be asked
    for again, `stir` when something was applied."""

    def __init__(
        self,
        held: HeldVault,
        streams: Mapping[StreamId, StreamSync],
        members: MemberLog,
        writer: Runner[Replica],
        progress: Progress,
        changed: Watcher,
        watched: Callable[[Collection], bool],
        taken: Callable[[], Awaitable[object]],
        doubt: Callable[[Doubt], None],
        stir: Callable[[], None],
    ) -> None:
        self._held, self._streams, self._members, self._writer = held, streams, members, writer
        self._progress, self._tell, self._watched = progress, changed, watched
        self._taken, self._doubt, self._stir = taken, doubt, stir

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        """Apply deliveries durably, in order. Not cut short by cancellation: whoever watches learns of all of it.

        Raises TransportError if the replica cannot take them.
        """
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
                reached[MEMBERSHIP] = await self._take_links(deliver)
            else:
                records.append(deliver)
        # What was admitted before its stream's history was found lost is of that history.
        records = [deliver for deliver in records if self._streams[deliver.stream].losses == losses[deliver.stream]]
        if records:
            changes, garbled = await self._writer.run(self._apply_records, records)
            for deliver in records:
                stream = self._streams[deliver.stream]
                if stream.fell_back:
                    self._progress.lasting[stream.collection.name] = stream.fell_back
                if deliver.stream in garbled:
                    reached[deliver.stream] = Position(deliver.term, garbled[deliver.stream].cursor)
                    continue
                stream.cursor = max(stream.cursor, deliver.last)
                stream.head, stream.told_head = max(stream.head, deliver.last), max(stream.told_head, deliver.last)
                reached[deliver.stream] = Position(deliver.term, deliver.last)
            for name, why in garbled.items():
                self._doubt(Doubt(self._held.id, name, why.reason))
            for collection, named in changes:
                self._tell(collection, named)
            self._stir()
        return list(reached.items())

    def _apply_records(
        self, replica: Replica, delivers: Sequence[Deliver]
    ) -> tuple[list[tuple[Collection, Sequence[Change] | None]], dict[StreamId, Garbled]]:
        """In the writer's thread. What changed, and the streams of which something could not be read: applied up to
        there, and no further."""
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

    async def _take_links(self, deliver: Deliver) -> Position:
        """Take links in, as far as they verify. Returns up to where."""
        try:
            reached = await self._members.take(deliver)
        except LinkError as error:
            reached = Position(deliver.term, min(deliver.last, self._members.membership.head))
            self._progress.lasting[""] = f"the relay's membership log was not accepted: {error}"
            _log.error("%s", self._progress.lasting[""])
        await self._taken()
        self._stir()
        return reached
