"""Serves connections that lag: from what is recent, else from the database, which reads a page once for all who wait
for the same one.

The readers take lagging connections in turn; their number bounds the reads under way. Who waits for a read that is
under way already keeps no reader from the others.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from sealwire_protocol import codec
from sealwire_protocol.events import PageRead
from sealwire_protocol.ids import StreamId, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Deliver
from sealwire_protocol.relay_session import Listener, RelayState
from sealwire_relay.lasting import Lasting
from sealwire_relay.metrics import Metrics
from sealwire_relay.peer import Peer
from sealwire_relay.recent import Name, Recent
from sealwire_relay.store.interface import Page, Store, StoreDownError, StoreError
from sealwire_relay.store.segments import StoredSegment

PAGE_BYTES_MAX: Final = 1_048_576
"""Segment bytes of one catch-up read: large enough that the query's cost vanishes, small enough to take turns."""

ENCODED_PAGES_MAX: Final = 4
"""Pages that are kept as encoded last: devices that come back together are sent the same bytes, which then are in
memory once, however many sockets they wait in. Some 4 MiB."""

TURN_PEERS: Final = 32
"""Connections that are sent a page before others have their turn: some 2 ms."""

RETRY_SECONDS: Final = 1.0
"""Pause before a catch-up read is tried again after the database failed it."""

REST_SECONDS_MAX: Final = 300.0
"""Longest pause before a stream is read again that the database refuses to read: a damaged page is mended by people,
and whoever mended it does not wait longer for the devices."""

RESTING_SKIPPED_MAX: Final = 16
"""Resting streams of one connection that are passed over to find another: each costs a look at all that lag."""

_log = logging.getLogger("sealwire.catchup")

Frames = tuple[tuple[int, bytes], ...]
"""A page as encoded DELIVERs, as (last, payload)."""


class Wanted(NamedTuple):
    """What decides where a page begins: those who want equal ones are given the same. `stamp`: see `Recent.stamp`."""

    name: Name
    after: int
    stamp: int | None


def deliver_frames(vault: VaultId, stream: StreamId, page: Page) -> Frames:
    """Encode a page. Small neighbouring segments that the cleaner has not touched (so that they skip nothing) are
    sent as one."""
    frames = []
    for prev, last, body in _joined(page):
        message = Deliver(
            vault, stream, page.term, page.floor, page.floor_head, page.purged, page.cleaned_to, prev, last, body
        )
        frames.append((last, codec.encode(message)))
    return tuple(frames)


def _joined(page: Page) -> list[StoredSegment]:
    joined: list[StoredSegment] = []
    parts: list[bytes] = []
    prev = last = size = 0
    for segment in page.segments:
        fresh = segment.prev >= page.cleaned_to
        if parts and fresh and prev >= page.cleaned_to and size + len(segment.body) <= SEGMENT_BYTES_MAX:
            parts.append(segment.body)
        else:
            if parts:
                joined.append(StoredSegment(prev, last, b"".join(parts)))
            parts, prev, size = [segment.body], segment.prev, 0
        last, size = segment.last, size + len(segment.body)
    if parts:
        joined.append(StoredSegment(prev, last, b"".join(parts)))
    return joined


class CatchUp:
    """The readers, and who waits for them.

    `heads` are those of streams that are listened to, as known here; `listening` tells by whom, and `emptied` is told
    of a vault whose heads the database does not have any more.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        readers: int,
        recent: Recent,
        heads: Mapping[Name, int],
        listening: Callable[[Name], Iterable[Peer]],
        emptied: Callable[[VaultId], None],
    ) -> None:
        self._store, self._metrics, self._readers_max, self._recent = store, metrics, readers, recent
        self._heads, self._listening, self._emptied = heads, listening, emptied
        self._rests: dict[Name, float] = {}
        self._resting: set[Name] = set()
        self._queue: deque[Peer] = deque()
        self._queued: set[Peer] = set()
        self._reads: dict[Wanted, list[tuple[Peer, Listener]]] = {}
        self._encoded: OrderedDict[tuple[Name, int | None, int, int], Frames] = OrderedDict()
        self._wake = asyncio.Event()
        self._trouble = Lasting(_log, time.monotonic)
        self._readers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the readers."""
        self._readers = [asyncio.create_task(self._read_pages()) for _ in range(self._readers_max)]

    async def stop(self) -> None:
        """Stop the readers. Connections keep their cursors."""
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._readers = []

    def pump(self, peer: Peer) -> None:
        """The peer lags: serve it when its turn comes. Cheap when it has no room."""
        if peer in self._queued:
            return
        self._queued.add(peer)
        self._queue.append(peer)
        self._wake.set()

    def forget(self, peer: Peer) -> None:
        """The connection is gone."""
        self._queued.discard(peer)

    def unheard(self, name: Name) -> None:
        """Nobody listens to this stream any more."""
        self._rests.pop(name, None)

    # --- the readers

    async def _read_pages(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            peer = self._queue.popleft()
            try:
                await self._serve(peer)
                await asyncio.sleep(0)  # what is here already costs no read, and many such no pause
            except Exception:
                _log.exception("serving a lagging peer failed; it is closed")
                peer.abort()

    async def _serve(self, peer: Peer) -> None:
        session, listener = peer.session, self._next(peer)
        if listener is None:
            self._queued.discard(peer)
            return
        name, after = listener.name, listener.cursor
        known = self._heads.get(name)
        if known is not None and after >= known:
            self._queued.discard(peer)
            peer.handle(PageRead(*name, (), known))
            return
        wanted, bytes_max = Wanted(name, after, self._recent.stamp(name)), min(PAGE_BYTES_MAX, session.credit)
        page = self._recent.page(name, after, bytes_max)
        if page is not None:
            self._queued.discard(peer)
            self._metrics.recent_pages.inc()
            self._give(peer, listener, wanted, page)
        elif wanted in self._reads:
            self._reads[wanted].append((peer, listener))
        else:
            await self._read(wanted, bytes_max, [(peer, listener)])

    def _next(self, peer: Peer) -> Listener | None:
        """The stream that is read next; those that rest are passed over. None: none, or none before they are rested."""
        if peer.session.state is not RelayState.READY:
            return None
        for _ in range(RESTING_SKIPPED_MAX):
            listener = peer.session.lagging()
            if listener is None or listener.name not in self._resting:
                return listener
        return None

    async def _read(self, wanted: Wanted, bytes_max: int, waiting: list[tuple[Peer, Listener]]) -> None:
        """Read a page, and give it to all who have come to want it meanwhile: each takes what its credit allows."""
        name, after, stamp = wanted
        known = self._heads.get(name)
        if stamp is not None:
            self._reads[wanted] = waiting
        try:
            page = await self._store.read(*name, after, bytes_max)
        except StoreDownError as error:
            self._trouble.failed(error, "catch-up reads fail, and are tried again")
            self._metrics.store_errors.inc()
            for peer, _ in waiting:
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._again, peer)
            return
        except StoreError as error:
            if name not in self._resting and any(True for _ in self._listening(name)):
                self._rest(name, after, error)
            self._pump_again(waiting)
            return
        except Exception:
            _log.exception("reading for lagging peers failed; they are closed")
            for peer, _ in waiting:
                peer.abort()
            return
        finally:
            self._reads.pop(wanted, None)
        self._trouble.went_well("catch-up reads are served again")
        self._rests.pop(name, None)
        self._metrics.pages.inc()
        if page is not None and known is not None and page.head < known == self._heads.get(name):
            self._emptied(name[0])
        if self._recent.stamp(name) != stamp:
            self._pump_again(waiting)  # something else is true of the stream by now
            return
        if page is not None:
            self._recent.read(name, stamp, page)
        for place, (peer, listener) in enumerate(waiting):
            self._queued.discard(peer)
            self._give(peer, listener, wanted, page)
            if place % TURN_PEERS == TURN_PEERS - 1:
                await asyncio.sleep(0)

    def _give(self, peer: Peer, listener: Listener, wanted: Wanted, page: Page | None) -> None:
        session, name = peer.session, wanted.name
        if session.listeners.get(name) is not listener or listener.cursor != wanted.after or listener.live:
            # It subscribed again meanwhile, or left: this page is not what it waits for.
            self.pump(peer)
            return
        if page is None:
            listener.exists = False
            self.pump(peer)
            return
        frames = self._frames(wanted, page)
        before = session.credit
        peer.handle(PageRead(*name, frames, max(page.head, self._heads.get(name, 0))))
        peer.flush()  # so that it is known whether its socket takes more, before another reader gives it the next page
        self._metrics.delivered_bytes.inc(before - session.credit)
        self._metrics.deliveries.inc(sum(1 for last, _ in frames if wanted.after < last <= listener.cursor))

    def _frames(self, wanted: Wanted, page: Page) -> Frames:
        if not page.segments:
            return ()
        key = wanted.name, self._recent.stamp(wanted.name), page.segments[0].prev, page.segments[-1].last
        frames = self._encoded.get(key) if key[1] is not None else None
        if frames is None:
            frames = self._encoded[key] = deliver_frames(*wanted.name, page)
            if len(self._encoded) > ENCODED_PAGES_MAX:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return frames

    # --- what cannot be read

    def _again(self, peer: Peer) -> None:
        self._queued.discard(peer)
        if peer.session.state is RelayState.READY:
            self.pump(peer)

    def _pump_again(self, waiting: Iterable[tuple[Peer, Listener]]) -> None:
        for peer, _ in waiting:
            self._queued.discard(peer)
            self.pump(peer)

    def _rest(self, name: Name, after: int, error: StoreError) -> None:
        """The database refuses to read this stream, and may read others: ask it ever more rarely."""
        pause = min(self._rests.get(name, RETRY_SECONDS / 2) * 2, REST_SECONDS_MAX)
        self._rests[name] = pause
        self._resting.add(name)
        vault, stream = name
        _log.error(
            "Stream %s of vault %s cannot be read after seq %d, so devices that are behind wait; it is tried again "
            "in %g seconds: %s",
            stream.hex(),
            vault.hex(),
            after,
            pause,
            error,
        )
        self._metrics.store_errors.inc()
        asyncio.get_running_loop().call_later(pause, self._rested, name)

    def _rested(self, name: Name) -> None:
        self._resting.discard(name)
        for peer in self._listening(name):
            self.pump(peer)
