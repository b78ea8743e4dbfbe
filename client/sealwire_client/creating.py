"""Streams of a vault that the relay does not have, or no longer: they are made before anything is sent to them."""

import logging
from collections.abc import Container, Iterable, Mapping

from sealwire_client.link import Link, RelayRefusedError
from sealwire_client.progress import Progress
from sealwire_client.replica import HeldVault, Replica, Runner
from sealwire_client.stream import StreamSync
from sealwire_protocol.ids import StreamId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import NO_REQUEST, CreateStream, StreamKind

_log = logging.getLogger("sealwire.sync")


class Creating:
    """Makes the streams of one vault. What it knows of the relay it forgets with the connection."""

    def __init__(
        self, held: HeldVault, streams: Mapping[StreamId, StreamSync], writer: Runner[Replica], progress: Progress
    ) -> None:
        self._held, self._streams, self._writer, self._progress = held, streams, writer, progress
        self._asked_for: set[StreamId] = set()

    def anew(self) -> None:
        """The relay's state is to be told again: it may have lost streams."""
        self._asked_for.clear()

    def missing(self, streams: Iterable[StreamId]) -> set[StreamId]:
        """Those to which nothing may be sent yet, because it is not known that they are there."""
        return {stream for stream in streams if not self._may_be_written(stream)}

    def _may_be_written(self, name: StreamId) -> bool:
        stream = self._streams.get(name)
        if stream is None:
            return name in self._asked_for
        return stream.told and (stream.exists or stream.refused)

    async def create(
        self, link: Link, wanted: Container[StreamId], unopened: Iterable[StreamId], role: Role | None
    ) -> None:
        """Create those of collections that have edits, are to be given back or are `wanted`, and that the relay does
        not have; and those of collections that are not open, of which it tells nothing, in case it has lost them. Who
        has no role that may write gives nothing back."""
        for stream in list(self._streams.values()):
            stream.reads_only = role is None or role < Role.WRITER
            if not stream.told or stream.exists or stream.refused:
                continue
            number, name = stream.collection.number, stream.collection.stream
            needed = (stream.lost is not None and not stream.reads_only) or name in wanted
            if not needed and not await self._writer.run(_has_claims, number):
                continue
            stream.exists = await self._ask(link, name, stream.collection.kind)
            if not stream.exists:
                stream.refused = True  # the others go on
                self._progress.lasting[stream.collection.name] = f"{stream.collection.name}: {self._progress.passing}"
        for name in sorted(set(unopened) - self._streams.keys() - self._asked_for):
            kind = await self._writer.run(_kind_of, self._held.number, name)
            await self._ask(link, name, kind)  # if it is refused, then so is what is sent to it: that verdict counts
            self._asked_for.add(name)

    async def _ask(self, link: Link, name: StreamId, kind: StreamKind) -> bool:
        try:
            await link.request(CreateStream(NO_REQUEST, self._held.id, name, kind))
        except RelayRefusedError as error:
            self._progress.passing = str(error)
            _log.warning("CreateStream was refused: %s", error)
            return False
        return True


def _has_claims(replica: Replica, collection: int) -> bool:
    return replica.outbox.has_claims(collection)


def _kind_of(replica: Replica, vault: int, stream: StreamId) -> StreamKind:
    return replica.vaults.kind_of(vault, stream)
