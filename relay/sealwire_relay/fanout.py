"""Who listens to which stream. Offers committed frames to the live ones; pumps the lagging from storage.

One rule keeps live delivery and catching up in agreement: a listener is live only when it has been sent all up to
the greatest head known here, and both happen on one event loop.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Container, Iterable
from typing import Final

from sealwire_protocol import codec
from sealwire_protocol.events import LinksReplaced, PageRead
from sealwire_protocol.ids import MEMBERSHIP, DeviceKey, Position, StreamId, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Deliver
from sealwire_protocol.relay_session import Listener, RelayState
from sealwire_relay.frames import binary_frame
from sealwire_relay.lasting import Lasting
from sealwire_relay.metrics import Metrics
from sealwire_relay.peer import Peer
from sealwire_relay.store.interface import Page, Store, StoreDownError, StoreError
from sealwire_relay.store.segments import StoredSegment

PAGE_BYTES_MAX: Final = 1_048_576
"""Segment bytes of one catch-up read: large enough that the query's cost vanishes, small enough to take turns."""

NEVER: Final = -1
"""No listener stands there, so that a frame from there is never sent: it only makes known that there is more."""

RETRY_SECONDS: Final = 1.0
"""Pause before a catch-up read is tried again after the database failed it."""

REST_SECONDS_MAX: Final = 300.0
"""Longest pause before a stream is read again that the database refuses to read: a damaged page is mended by people,
and whoever mended it does not wait longer for the devices."""

RESTING_SKIPPED_MAX: Final = 16
"""Resting streams of one connection that are passed over to find another: each costs a look at all that lag."""

_log = logging.getLogger("sealwire.fanout")

Name = tuple[VaultId, StreamId]


def deliver_frames(vault: VaultId, stream: StreamId, page: Page) -> tuple[tuple[int, bytes], ...]:
    """A page as encoded DELIVERs, as (last, payload). Small neighbouring segments that the cleaner has not
    touched (so that they skip nothing) are sent as one."""
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


class Fanout:
    """Listeners by stream, heads as committed here, and the readers that pump lagging connections."""

    def __init__(self, store: Store, metrics: Metrics, readers: int) -> None:
        self._store, self._metrics, self._readers_max = store, metrics, readers
        self._listeners: dict[Name, dict[Listener, Peer]] = {}
        self._by_peer: dict[Peer, dict[Name, Listener]] = {}
        self._heads: dict[Name, int] = {}
        self._logs: dict[VaultId, Position] = {}
        self.replacements = 0
        """How often the end of a membership log was replaced: what was read of it before may be of the former one."""
        self._rests: dict[Name, float] = {}
        self._resting: set[Name] = set()
        self._queue: deque[Peer] = deque()
        self._queued: set[Peer] = set()
        self._wake = asyncio.Event()
        self._trouble = Lasting(_log, time.monotonic)
        self._readers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the readers; their number bounds the catch-up reads under way."""
        self._readers = [asyncio.create_task(self._read_pages()) for _ in range(self._readers_max)]

    async def stop(self) -> None:
        """Stop the readers. Connections keep their cursors."""
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._readers = []

    # --- listeners

    def sync(self, peer: Peer, vault: VaultId, streams: Iterable[StreamId]) -> None:
        """Take in the peer's present listeners to these streams."""
        own = self._by_peer.setdefault(peer, {})
        for name in [(vault, stream) for stream in streams]:
            listener = peer.session.listeners.get(name)
            if listener is None or own.get(name) is listener:
                continue
            self._leave(own, name)
            own[name] = listener
            self._listeners.setdefault(name, {})[listener] = peer

    def forget(self, peer: Peer) -> None:
        """The connection is gone: forget all its listeners."""
        own = self._by_peer.pop(peer, {})
        for name in list(own):
            self._leave(own, name)
        self._queued.discard(peer)

    def leave(self, peer: Peer, vault: VaultId) -> None:
        """Forget the peer's listeners to this vault."""
        own = self._by_peer.get(peer, {})
        for name in [name for name in own if name[0] == vault]:
            self._leave(own, name)

    def _leave(self, own: dict[Name, Listener], name: Name) -> None:
        """Forget one listener; a stream without any is forgotten too."""
        listener = own.pop(name, None)
        others = self._listeners.get(name)
        if listener is None or others is None:
            return
        others.pop(listener, None)
        if not others:
            del self._listeners[name]
            self._heads.pop(name, None)
            self._rests.pop(name, None)
            if name[1] == MEMBERSHIP:
                self._logs.pop(name[0], None)

    def lagging(self) -> int:
        """Subscriptions to existing streams that are behind the head."""
        return sum(1 for peers in self._listeners.values() for x in peers if x.exists and not x.live)

    def listened(self) -> list[Name]:
        """The streams that anybody here listens to."""
        return list(self._listeners)

    def connections(self, vaults: Container[VaultId]) -> dict[VaultId, dict[Peer, bool]]:
        """Who listens to something of these vaults, and whether every SUBSCRIBE for that has been answered."""
        found: dict[VaultId, dict[Peer, bool]] = {}
        for (vault, _), listeners in self._listeners.items():
            if vault in vaults:
                here = found.setdefault(vault, {})
                for listener, peer in listeners.items():
                    here[peer] = here.get(peer, True) and not listener.awaiting
        return found

    # --- live

    def devices(self, vaults: Container[VaultId]) -> dict[VaultId, set[DeviceKey]]:
        """Who listens to something of these vaults, here and now."""
        found: dict[VaultId, set[DeviceKey]] = {}
        for (vault, _), listeners in self._listeners.items():
            if vault in vaults:
                here = found.setdefault(vault, set())
                here.update(peer.device for peer in listeners.values() if peer.device is not None)
        return found

    def offer(self, vault: VaultId, stream: StreamId, message: Deliver) -> None:
        """A segment is committed: send it to whoever is live and has credit. Everyone else lags from here."""
        name = (vault, stream)
        listeners = self._listeners.get(name)
        if not listeners:
            return
        self._heads[name] = max(message.last, self._heads.get(name, 0))
        if stream == MEMBERSHIP:
            self._logs[vault] = Position(message.term, message.last)
        payload = codec.encode(message)
        frame, size, sent = binary_frame(payload), len(payload), 0
        prev, last = message.prev, message.last
        for listener, peer in listeners.items():
            if listener.offer(prev, last, size):
                peer.send_frame(frame)
                sent += 1
            elif peer.session.has_room:
                self.pump(peer)
        self._metrics.deliveries.inc(sent)
        self._metrics.delivered_bytes.inc(sent * size)

    def moved(self, vault: VaultId, stream: StreamId, head: int) -> None:
        """A stream was found to have grown to `head`, by a write that was not offered here: whoever is behind lags."""
        name = (vault, stream)
        listeners = self._listeners.get(name)
        if not listeners or head <= self._heads.get(name, -1):
            return
        self._heads[name] = head
        for listener, peer in listeners.items():
            listener.offer(NEVER, head, 0)
            if not listener.live:
                self.pump(peer)

    def heads(self, names: Iterable[Name]) -> dict[Name, int]:
        """The heads of those of these streams of which they are known here, to go into `looked`."""
        return {name: self._heads[name] for name in names if name in self._heads}

    def looked(self, name: Name, before: int | None, there: Position) -> None:
        """The database was asked for a stream's head, and its newest term, when that was known here as `before`."""
        if before is None or there.seq >= before:
            self.moved(*name, there.seq)
            if name[1] == MEMBERSHIP and name in self._listeners and self._heads.get(name) in (None, before):
                self.log_stands(name[0], there)
        elif self._heads.get(name) == before:
            self.emptied(name[0])

    def log_stands(self, vault: VaultId, there: Position) -> None:
        """A membership log was found with this head and this term. If it had the same head under another term, its end
        was replaced by one of equal length."""
        known = self._logs.get(vault)
        self._logs[vault] = there
        if known is not None and known.seq == there.seq and known.term != there.term:
            self.replaced(vault)

    def replaced(self, vault: VaultId) -> None:
        """Other links stand at the end of a vault's membership log: whoever listens to it here subscribes again."""
        name = vault, MEMBERSHIP
        self.replacements += 1
        self._heads.pop(name, None)
        self._logs.pop(vault, None)
        for peer in list(self._listeners.get(name, {}).values()):
            peer.handle(LinksReplaced(vault))
            if name not in peer.session.listeners:
                self._leave(self._by_peer.get(peer, {}), name)

    def emptied(self, vault: VaultId) -> None:
        """Heads that were known have gone: the vault has come back to this relay, its log has another end, or the
        database was set back. Whoever listens to it here subscribes again."""
        for name in [name for name in self._heads if name[0] == vault]:
            del self._heads[name]
        self.replaced(vault)

    # --- catching up

    def pump(self, peer: Peer) -> None:
        """The peer lags: serve it from storage when its turn comes. Cheap when it has no credit."""
        if peer in self._queued:
            return
        self._queued.add(peer)
        self._queue.append(peer)
        self._wake.set()

    async def _read_pages(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            peer = self._queue.popleft()
            try:
                await self._serve(peer)
                await asyncio.sleep(0)  # who is at the head already costs no read, and many of them no pause
            except StoreError as error:
                self._trouble.failed(error, "catch-up reads fail, and are tried again")
                self._metrics.store_errors.inc()
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._again, peer)
            except Exception:
                _log.exception("serving a lagging peer failed; it is closed")
                peer.abort()

    def _again(self, peer: Peer) -> None:
        self._queued.discard(peer)
        if peer.session.state is RelayState.READY:
            self.pump(peer)

    def _next(self, peer: Peer) -> Listener | None:
        """The stream that is read next; those that rest are passed over. None: none, or none before they are rested."""
        if peer.session.state is not RelayState.READY:
            return None
        for _ in range(RESTING_SKIPPED_MAX):
            listener = peer.session.lagging()
            if listener is None or (listener.vault, listener.stream) not in self._resting:
                return listener
        return None

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
        for peer in self._listeners.get(name, {}).values():
            self.pump(peer)

    async def _serve(self, peer: Peer) -> None:
        session, listener = peer.session, self._next(peer)
        if listener is None:
            self._queued.discard(peer)
            return
        vault, stream = name = (listener.vault, listener.stream)
        after, known = listener.cursor, self._heads.get(name)
        if known is not None and after >= known:
            self._queued.discard(peer)
            peer.handle(PageRead(vault, stream, (), known))
            return
        try:
            page = await self._store.read(vault, stream, after, min(PAGE_BYTES_MAX, session.credit))
        except StoreDownError:
            raise
        except StoreError as error:
            self._queued.discard(peer)
            if name in self._listeners and name not in self._resting:
                self._rest(name, after, error)
            self.pump(peer)
            return
        self._trouble.went_well("catch-up reads are served again")
        self._rests.pop(name, None)
        self._queued.discard(peer)
        if page is not None and known is not None and page.head < known == self._heads.get(name):
            self.emptied(name[0])
        if session.listeners.get(name) is not listener or listener.cursor != after or listener.live:
            # It subscribed again meanwhile, or left: this page is not what it waits for.
            self.pump(peer)
            return
        if page is None:
            listener.exists = False
            self.pump(peer)
            return
        frames = deliver_frames(vault, stream, page)
        head = max(page.head, self._heads.get(name, 0))
        before = session.credit
        peer.handle(PageRead(vault, stream, frames, head))
        self._metrics.pages.inc()
        self._metrics.delivered_bytes.inc(before - session.credit)
        self._metrics.deliveries.inc(sum(1 for last, _ in frames if after < last <= listener.cursor))
