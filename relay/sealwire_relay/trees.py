"""Trees of fingerprints (R13) of streams as they stood at a position: made in slices off the event loop, kept a while.

A tree is shared by all devices that ask for its stream meanwhile, which is what makes it cheap that all of them ask at
once, as they do after a loss. It is of use as long as its position is known and nothing was purged in the stream since:
after a purge it would name tombstones that cannot be had any more, or, worse, entries whose tombstones it never saw.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from sealwire_protocol.errors import DecodeError
from sealwire_protocol.history import is_lost
from sealwire_protocol.ids import START, Position, StreamId, VaultId
from sealwire_protocol.messages import StreamState
from sealwire_protocol.reconcile import Gathering, Tree
from sealwire_relay.metrics import Metrics
from sealwire_relay.store.interface import Page, Store
from sealwire_relay.store.segments import StoredSegment

PAGE_BYTES: Final = 1_048_576
"""Read from the database at a time, and worked on in one slice: some 20,000 small records, 50 ms."""

SCANS_MAX: Final = 2
"""Streams that are scanned at once: more would only share the same processors and disk."""

WAITING_MAX: Final = 256
"""Scans that wait their turn. Devices that come beyond it are told to come back: they all come at once after a loss."""

ATTEMPTS_MAX: Final = 5
"""Times that a stream is scanned in a row because its history changed, or something was purged, under the scan."""

STALE_SCANS_MAX: Final = 10
"""So many times as long as it took to make, a tree serves devices that ask for the present head, though that has moved:
what came since they are sent in any case. So scans take at most a tenth of the time, however many devices come home one
after the other; what each gives back that another one has given back just before stands in the log twice until it is
cleaned, which is rare where scans are short."""

IDLE_SECONDS: Final = 60.0
"""A tree that nobody has asked for so long is given up: a device asks again within a round trip."""

REST_SECONDS: Final = 5.0
"""A tree that nobody has asked for so long is given up if there is no room for another one."""

TREES_MAX: Final = 1_024
"""Trees kept: bounds the files that they may have open."""

TREES_BYTES_MAX: Final = 268_435_456
"""Memory of all trees together, beyond which no scan begins. A scan may add 66 MiB; what is more lies in a file."""

Name = tuple[VaultId, StreamId]
T = TypeVar("T")

_log = logging.getLogger("sealwire.reconcile")


class BusyError(Exception):
    """No tree can be made now; a device may come back for one soon."""


class UnreadableError(Exception):
    """What is stored of a stream cannot be read, and trying again would not help. The log says more."""


class StalePinError(Exception):
    """There is no tree of a stream at this position any more."""


@dataclass(slots=True, eq=False)
class Kept:
    """A tree, where it was made, and what the stream told there. `users` are asking it just now."""

    tree: Tree
    pin: Position
    floor: int
    floor_head: int
    purged: int
    cleaned_to: int
    began: float
    made: float
    used: float
    users: int = 0

    @property
    def fresh_until(self) -> float:
        """When it serves only those who ask for its very position, or while the head is still there."""
        return self.made + STALE_SCANS_MAX * (self.made - self.began)

    def fits(self, state: StreamState) -> bool:
        """Whether it is of use, now that the stream is like this."""
        unpurged = (self.floor, self.floor_head, self.purged) == (state.floor, state.floor_head, state.purged)
        return unpurged and not is_lost(self.pin, state)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


class Trees:
    """Makes and keeps the trees of one relay process. `clock` gives steady seconds; it is the event loop's."""

    def __init__(self, store: Store, metrics: Metrics, clock: Callable[[], float] = _loop_time) -> None:
        self._store, self._metrics, self._clock = store, metrics, clock
        self._kept: dict[Name, list[Kept]] = {}
        self._scans: dict[Name, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(SCANS_MAX)
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        metrics.trees.set_function(lambda: len(self._all()))
        metrics.tree_bytes.set_function(self._bytes)

    async def at(
        self, name: Name, pin: Position, state: Callable[[], Awaitable[StreamState]]
    ) -> tuple[StreamState, Kept]:
        """A tree at this position, or, at START, at about the present head; and the stream's state by which it fits.

        `state` reads the state of the stream, which has records. Raises StalePinError, BusyError, UnreadableError,
        StoreError.
        """
        for _ in range(ATTEMPTS_MAX):
            present = await state()
            found = self._find(name, pin, present)
            if found is not None:
                found.used = self._clock()
                return present, found
            if pin != START:
                raise StalePinError
            await self._scanned(name)
        raise BusyError

    @contextmanager
    def using(self, kept: Kept) -> Iterator[Tree]:
        """For as long as the block lasts the tree is not given up."""
        kept.users += 1
        try:
            yield kept.tree
        finally:
            kept.users -= 1
            kept.used = self._clock()
            if self._stopped and not kept.users:
                kept.tree.close()

    async def stop(self) -> None:
        """End scans, begin no more, and give up all trees and their files, those in use as soon as they are not."""
        self._stopped = True
        for scan in self._scans.values():
            scan.cancel()
        await asyncio.gather(*self._scans.values(), return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kept in self._all():
            if not kept.users:
                kept.tree.close()
        self._kept.clear()

    # --- what is kept

    def _find(self, name: Name, pin: Position, state: StreamState) -> Kept | None:
        """The latest tree that will do. Those that are of no use any more are given up."""
        for kept in self._kept.get(name, [])[:]:
            if not kept.fits(state) and not kept.users:
                self._give_up(name, kept)
        fitting = [kept for kept in self._kept.get(name, []) if kept.fits(state)]
        if pin != START:
            return next((kept for kept in fitting if kept.pin == pin), None)
        now = self._clock()
        return next((k for k in reversed(fitting) if k.pin.seq == state.head or k.fresh_until > now), None)

    def _all(self) -> list[Kept]:
        return [kept for trees in self._kept.values() for kept in trees]

    def _bytes(self) -> int:
        return sum(kept.tree.held_bytes for kept in self._all())

    def _give_up(self, name: Name, kept: Kept) -> None:
        self._kept[name].remove(kept)
        if not self._kept[name]:
            del self._kept[name]
        kept.tree.close()

    def tidy(self) -> None:
        """Give up what nobody has asked for long."""
        self._give_up_idle(IDLE_SECONDS, lambda: True)

    def _make_room(self) -> bool:
        """Give up trees, the least recently used one first, until there is room for another. False: there is none."""

        def full() -> bool:
            return len(self._all()) >= TREES_MAX or self._bytes() >= TREES_BYTES_MAX

        self._give_up_idle(REST_SECONDS, full)
        return not full()

    def _give_up_idle(self, seconds: float, needed: Callable[[], bool]) -> None:
        before = self._clock() - seconds
        idle = [(k.used, n, k) for n, trees in self._kept.items() for k in trees if not k.users and k.used <= before]
        for _, name, kept in sorted(idle, key=lambda entry: entry[0]):
            if not needed():
                return
            self._give_up(name, kept)

    def _tidy_later(self) -> None:
        def tidy() -> None:
            self._timer = None
            self.tidy()
            if self._kept:
                self._tidy_later()

        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS / 4, tidy)

    # --- scanning

    async def _scanned(self, name: Name) -> None:
        """Wait for a scan of the stream, the one under way if there is one. Cancelled, it goes on for the others."""
        scan = self._scans.get(name)
        if scan is None:
            if self._stopped or len(self._scans) >= SCANS_MAX + WAITING_MAX or not self._make_room():
                raise BusyError
            scan = self._scans[name] = asyncio.create_task(self._scan(name))
            scan.add_done_callback(partial(self._ended, name))
        await asyncio.wait({scan})
        if scan.cancelled():
            raise BusyError
        scan.result()

    def _ended(self, name: Name, scan: asyncio.Task[None]) -> None:
        del self._scans[name]
        if not scan.cancelled():
            scan.exception()  # looked at here, in case that nobody waits any more

    async def _scan(self, name: Name) -> None:
        async with self._places:
            for _ in range(ATTEMPTS_MAX):
                began = self._clock()
                kept = await self._gather(name)
                if kept is not None:
                    self._kept.setdefault(name, []).append(kept)
                    self._tidy_later()
                    self._metrics.scans.inc()
                    self._metrics.scan_seconds.observe(self._clock() - began)
                    return
        raise BusyError

    async def _gather(self, name: Name) -> Kept | None:
        """A tree of the stream as it is when its end has been read; None: it changed too much meanwhile.

        All was read that the cleaner may have looked at: of a record that it left out the one that won is there.
        """
        gathering, began = Gathering(), self._clock()
        try:
            first = page = await self._page(name, 0)
            last = 0
            while last < first.head or last < page.cleaned_to:
                segments = page.segments
                if not segments:
                    return None
                await off_loop(partial(_add, gathering, segments))
                last = segments[-1].last
                page = await self._page(name, last)
                if (page.term, page.floor, page.floor_head) != (first.term, first.floor, first.floor_head):
                    return None
            tree = await off_loop(gathering.build)
        except DecodeError as error:
            raise unreadable(name, error) from error
        finally:
            gathering.close()
        now = self._clock()
        pin = Position(page.term, last)
        return Kept(tree, pin, page.floor, page.floor_head, page.purged, page.cleaned_to, began, now, now)

    async def _page(self, name: Name, after: int) -> Page:
        page = await self._store.read(*name, after, PAGE_BYTES)
        if page is None:
            raise BusyError
        return page


def unreadable(name: Name, error: DecodeError) -> UnreadableError:
    """Tells the log of it."""
    _log.error("stream %s of vault %s cannot be compared with devices: %s", name[1].hex(), name[0].hex(), error)
    return UnreadableError()


def _add(gathering: Gathering, segments: Sequence[StoredSegment]) -> None:
    for segment in segments:
        try:
            gathering.add_segment(segment.body, segment.prev, segment.last)
        except DecodeError as error:
            raise segment.damaged(error) from error


async def off_loop(work: Callable[[], T]) -> T:
    """Do this in a thread. Cancelled, it waits until the thread has let go of what it works on."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait({thread})
        raise
