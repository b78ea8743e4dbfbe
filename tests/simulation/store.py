"""The database as processes see it: calls take time, fail, and sometimes do not say whether they were carried out.

When it is restored to an earlier moment, every connection to it is broken. The next call makes a new one, which finds
another server than the one before; from then on nothing is written under a term until the next one is opened.

What is committed is entered into the `Past` as well.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, Protocol

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import DeviceKey, StreamId, Term, VaultId
from sealwire_relay.store.cleaning import AckedPosition, Dirty, Purge, Tombstones
from sealwire_relay.store.interface import (
    GuardName,
    LinkLog,
    MemberState,
    NewLink,
    OutcomeUnknownError,
    Page,
    StoreDownError,
    Subscription,
    TokenUse,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.memory import MemoryStore
from sealwire_relay.store.segments import StoredSegment
from tests.simulation import faults
from tests.simulation.agenda import GRAIN_SECONDS, Agenda
from tests.simulation.faults import Faults
from tests.simulation.past import Past

COMMIT_GRAINS_MAX: Final = 6
"""How long a call of the database takes, there and back; half of them take no time."""
AWAY_SECONDS_MAX: Final = 5.0

SMALL_PAGE_CHANCE: Final = 0.3
SMALL_PAGE_BYTES: Final = 1_500
"""Some pages hold a few segments only, so that something may happen while a device has half of a log."""

PURGE_SECONDS_MAX: Final = 2.0
"""How long it may take until a swap that purges has the lock that it waits for: meanwhile others write."""


class Process(Protocol):
    """A process that uses the database."""

    agenda: Agenda
    faults: Faults
    random: Random
    dead: bool

    def crash(self) -> None:
        """It is gone."""


class FaultyStore(MemoryStore):
    """A store whose calls take time, fail, and sometimes do not say whether they were carried out.

    `on_other_server` is called when a connection finds the database restored, as PostgresStore calls it.
    """

    def __init__(self, process: Process, past: Past, on_other_server: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            random_bytes=process.random.randbytes, clock=process.agenda.current_time, database=past.database
        )
        self._process, self._random, self._armed = process, process.random, process.faults
        self._past, self._on_other_server = past, on_other_server
        self._away_until = 0.0
        self._era, self._changed = past.era, False
        self._told: dict[tuple[VaultId, StreamId], Tombstones] = {}

    async def open(self) -> None:
        """As the store's: connect."""
        self._era, self._changed = self._past.era, False
        await super().open()

    async def _travel(self) -> None:
        grains = self._random.randint(-COMMIT_GRAINS_MAX, COMMIT_GRAINS_MAX)
        if grains > 0:
            await asyncio.sleep(grains * GRAIN_SECONDS)

    def _connect(self) -> None:
        """Before every call: a connection that was lost is made anew."""
        if self._era != self._past.era:
            self._era, self._changed = self._past.era, True
            self._on_other_server()

    async def _wait(self) -> None:
        self._connect()
        await self._travel()
        if self._armed.strikes("relays", faults.STORE_DOWN):
            self._away_until = self._process.agenda.current_time() + self._random.uniform(0, AWAY_SECONDS_MAX)
        if self._process.dead or self._process.agenda.current_time() < self._away_until:
            raise StoreDownError("the database is away")
        self._still_connected()

    def _still_connected(self) -> None:
        if self._era != self._past.era:
            raise StoreDownError("the connection was lost: the database was restored")

    async def _return(self) -> None:
        """The way back of an answer."""
        await self._travel()
        self._still_connected()

    async def _return_of_commit(self) -> None:
        await self._travel()
        if self._era != self._past.era:
            raise OutcomeUnknownError("the connection was lost: the database was restored")

    async def open_term(self) -> Term:
        """As the store's."""
        self._connect()
        self._changed = False
        return await super().open_term()

    async def current_term(self) -> Term:
        """As the store's."""
        self._connect()
        return await super().current_term()

    async def create_vault(
        self, vault: VaultId, state: VaultState, link: NewLink, term: Term, use: TokenUse | None = None, quota: int = 0
    ) -> bool:
        """As the store's."""
        self._connect()
        done = not self._changed and await super().create_vault(vault, state, link, term, use, quota)
        self._past.links_changed()
        return done

    async def append_link(self, vault: VaultId, link: NewLink, term: Term) -> Term | None:
        """As the store's."""
        self._connect()
        done = None if self._changed else await super().append_link(vault, link, term)
        self._past.links_changed()
        return done

    async def replace_links(
        self,
        vault: VaultId,
        there: LinkLog,
        after: int,
        links: Sequence[bytes],
        members: Sequence[MemberState],
        state: VaultState,
        term: Term,
    ) -> bool:
        """As the store's; the connection may be lost before its answer."""
        await self._wait()
        done = not self._changed and await super().replace_links(vault, there, after, links, members, state, term)
        self._past.links_changed()
        await self._return_of_commit()
        return done

    async def members(self, vaults: Sequence[VaultId]) -> dict[VaultId, set[DeviceKey]]:
        """As the store's; takes time on the way back, so that what it tells can be old."""
        await self._wait()
        told = await super().members(vaults)
        await self._return()
        return told

    async def subscription(self, vault: VaultId, device: DeviceKey, streams: Sequence[StreamId]) -> Subscription | None:
        """As the store's; takes time on the way back, so that what it tells can be old."""
        await self._wait()
        told = await super().subscription(vault, device, streams)
        await self._return()
        return told

    async def read(self, vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        """As the store's; takes time on the way back."""
        if self._random.random() < SMALL_PAGE_CHANCE:
            bytes_max = min(bytes_max, SMALL_PAGE_BYTES)
        await self._wait()
        page = await super().read(vault, stream, after, bytes_max)
        await self._return()
        return page

    async def guards(self, wanted: Sequence[GuardName]) -> dict[GuardName, Current]:
        """As the store's; takes time on the way back."""
        await self._wait()
        held = await super().guards(wanted)
        await self._return()
        return held

    async def append(self, writes: Sequence[VaultWrite]) -> list[bool]:
        """As the store's, with what can go wrong before and after the commit."""
        self._past.begins_to_commit()
        await self._wait()
        if self._armed.strikes("relays", faults.RELAY_CRASH_BEFORE):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("relays", faults.UNKNOWN_NOT_DONE):
            raise OutcomeUnknownError("the connection was lost before the commit")
        if self._changed:
            return [False] * len(writes)
        done = await super().append(writes)
        for write, made in zip(writes, done, strict=True):
            if made:
                self._past.committed(write)
                self._past.members.written(write)
        if self._armed.strikes("relays", faults.RELAY_CRASH_AFTER):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("relays", faults.UNKNOWN_DONE):
            raise OutcomeUnknownError("the connection was lost after the commit")
        await self._return_of_commit()
        return done

    async def dirty(self, after: tuple[VaultId, StreamId] | None, tail_min: int, streams_max: int) -> list[Dirty]:
        """As the store's; takes time on the way back."""
        await self._wait()
        found = await super().dirty(after, tail_min, streams_max)
        await self._return()
        return found

    async def swap(
        self,
        vault: VaultId,
        stream: StreamId,
        old: Sequence[StoredSegment],
        new: StoredSegment,
        cleaned_to: int,
        term: Term,
        purge: Purge | None = None,
    ) -> bool:
        """As the store's, with what can go wrong before and after the commit."""
        await self._wait()
        if purge is not None:
            self._past.begins_to_purge()
            await asyncio.sleep(self._random.choice((0.0, self._random.uniform(0, PURGE_SECONDS_MAX))))
            self._still_connected()
        if self._armed.strikes("cleaners", faults.CLEANER_CRASH_BEFORE):
            self._process.crash()
            raise StoreDownError("the process is dead")
        done = await super().swap(vault, stream, old, new, cleaned_to, term, purge)
        if done and purge is not None:
            self._past.purged((vault, stream), purge, self._told[vault, stream])
        if self._armed.strikes("cleaners", faults.CLEANER_CRASH_AFTER):
            self._process.crash()
            raise StoreDownError("the process is dead")
        if self._armed.strikes("cleaners", faults.SWAP_UNKNOWN):
            raise OutcomeUnknownError("the connection was lost after the commit")
        await self._return_of_commit()
        return done

    async def compacted(self, *args: Any, **named: Any) -> bool:
        """As the store's."""
        await self._wait()
        return await super().compacted(*args, **named)

    async def tombstones(self, after: tuple[VaultId, StreamId] | None, streams_max: int) -> list[Tombstones]:
        """As the store's; takes time on the way back."""
        await self._wait()
        found = await super().tombstones(after, streams_max)
        self._told.update({(told.vault, told.stream): told for told in found})
        await self._return()
        return found

    async def aged(self, *args: Any, **named: Any) -> bool:
        """As the store's."""
        await self._wait()
        return await super().aged(*args, **named)

    async def acked(self, acks: Sequence[AckedPosition]) -> None:
        """As the store's."""
        await self._wait()
        for ack in acks:
            self._past.heard(ack)
        await super().acked(acks)
