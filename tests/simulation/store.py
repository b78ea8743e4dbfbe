"""The database as processes see it: calls take time, fail, and sometimes do not say whether they were carried out.

What is committed is entered into `Whole` as well, from which nothing ever goes.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Final, Protocol

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import DeviceKey, StreamId, Term, VaultId
from sealwire_relay.store.interface import (
    Dirty,
    GuardName,
    OutcomeUnknownError,
    Page,
    StoreDownError,
    StoredSegment,
    Subscription,
    VaultWrite,
)
from sealwire_relay.store.memory import MemoryDatabase, MemoryStore
from tests.simulation import faults
from tests.simulation.agenda import GRAIN_SECONDS, Agenda
from tests.simulation.faults import Faults

COMMIT_GRAINS_MAX: Final = 6
"""How long a call of the database takes, there and back; half of them take no time."""
AWAY_SECONDS_MAX: Final = 5.0

Whole = defaultdict[tuple[VaultId, StreamId], list[StoredSegment]]
"""All segments that were ever appended, by stream: the log as it would be if nobody cleaned it."""


class Process(Protocol):
    """A process that uses the database."""

    agenda: Agenda
    faults: Faults
    random: Random
    dead: bool

    def crash(self) -> None:
        """It is gone."""


class FaultyStore(MemoryStore):
    """A store whose calls take time, fail, and sometimes do not say whether they were carried out."""

    def __init__(self, process: Process, database: MemoryDatabase, whole: Whole) -> None:
        super().__init__(random_bytes=process.random.randbytes, clock=process.agenda.current_time, database=database)
        self._process, self._random, self._armed = process, process.random, process.faults
        self._whole = whole
        self._away_until = 0.0

    async def _travel(self) -> None:
        grains = self._random.randint(-COMMIT_GRAINS_MAX, COMMIT_GRAINS_MAX)
        if grains > 0:
            await asyncio.sleep(grains * GRAIN_SECONDS)

    async def _wait(self) -> None:
        await self._travel()
        if self._armed.strikes("relays", faults.STORE_DOWN):
            self._away_until = self._process.agenda.current_time() + self._random.uniform(0, AWAY_SECONDS_MAX)
        if self._process.dead or self._process.agenda.current_time() < self._away_until:
            raise StoreDownError("the database is away")

    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """As the store's; takes time on the way back, so that what it tells can be old."""
        await self._wait()
        told = await super().subscription(vault, device, streams)
        await self._travel()
        return told

    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """As the store's; takes time on the way back."""
        await self._wait()
        page = await super().read(vault, stream, after, bytes_max)
        await self._travel()
        return page

    async def guards(self, wanted: Sequence[GuardName]) -> dict[GuardName, Current]:
        """As the store's; takes time on the way back."""
        await self._wait()
        held = await super().guards(wanted)
        await self._travel()
        return held

    async def append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        """As the store's, with what can go wrong before and after the commit."""
        await self._wait()
        if self._armed.strikes("relays", faults.RELAY_CRASH_BEFORE):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("relays", faults.UNKNOWN_NOT_DONE):
            raise OutcomeUnknownError("the connection was lost before the commit")
        done = await super().append(writes)
        for write, made in zip(writes, done, strict=True):
            for stream in write.streams if made else ():
                self._whole[write.vault, stream.stream] += stream.segments
        if self._armed.strikes("relays", faults.RELAY_CRASH_AFTER):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("relays", faults.UNKNOWN_DONE):
            raise OutcomeUnknownError("the connection was lost after the commit")
        await self._travel()
        return done

    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """As the store's; takes time on the way back."""
        await self._wait()
        found = await super().dirty(after, tail_min, streams_max)
        await self._travel()
        return found

    async def swap(
        self,
        vault: VaultId,
        stream: StreamId,
        old: Sequence[StoredSegment],
        new: Sequence[StoredSegment],
        cleaned_to: int,
        term: Term,
    ) -> bool:
        """As the store's, with what can go wrong before and after the commit."""
        await self._wait()
        if self._armed.strikes("cleaners", faults.CLEANER_CRASH_BEFORE):
            self._process.crash()
            raise StoreDownError("the process is dead")
        done = await super().swap(vault, stream, old, new, cleaned_to, term)
        if self._armed.strikes("cleaners", faults.CLEANER_CRASH_AFTER):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("cleaners", faults.SWAP_UNKNOWN):
            raise OutcomeUnknownError("the connection was lost after the commit")
        await self._travel()
        return done

    async def compacted(self, vault: VaultId, stream: StreamId, upto: int, term: Term) -> bool:
        """As the store's."""
        await self._wait()
        return await super().compacted(vault, stream, upto, term)
