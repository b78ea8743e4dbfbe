"""Who listens to which stream. Offers committed frames to the live ones; lets the others catch up.

One rule keeps live delivery and catching up in agreement: a listener is live only when it has been sent all up to
the greatest head known here, and both happen on one event loop.
"""

from collections.abc import Container, Iterable
from typing import Final

from sealwire_protocol import codec
from sealwire_protocol.events import LinksReplaced
from sealwire_protocol.ids import MEMBERSHIP, DeviceKey, Position, StreamId, VaultId
from sealwire_protocol.messages import Deliver, StreamKind, StreamState
from sealwire_protocol.relay_session import Listener
from sealwire_relay.catchup import CatchUp
from sealwire_relay.frames import binary_frame
from sealwire_relay.metrics import Metrics
from sealwire_relay.peer import Peer
from sealwire_relay.recent import Heading, Name, Recent
from sealwire_relay.store.interface import Store

NEVER: Final = -1
"""No listener stands there, so that a frame from there is never sent: it only makes known that there is more."""


class Fanout:
    """Listeners by stream, and heads as committed here."""

    def __init__(self, store: Store, metrics: Metrics, readers: int, recent: Recent) -> None:
        self._metrics, self._recent = metrics, recent
        self._listeners: dict[Name, dict[Listener, Peer]] = {}
        self._by_peer: dict[Peer, dict[Name, Listener]] = {}
        self._heads: dict[Name, int] = {}
        self._logs: dict[VaultId, Position] = {}
        self.replacements = 0
        """How often the end of a membership log was replaced: what was read of it before may be of the former one."""
        self._catchup = CatchUp(store, metrics, readers, recent, self._heads, self._listening, self.emptied)

    def start(self) -> None:
        """Start the readers; their number bounds the catch-up reads under way."""
        self._catchup.start()

    async def stop(self) -> None:
        """Stop the readers. Connections keep their cursors."""
        await self._catchup.stop()

    def pump(self, peer: Peer) -> None:
        """The peer lags: serve it when its turn comes. Cheap when it has no room."""
        self._catchup.pump(peer)

    # --- listeners

    def sync(self, peer: Peer, vault: VaultId, streams: Iterable[StreamId]) -> None:
        """Take in the peer's present listeners to these streams."""
        own = self._by_peer.setdefault(peer, {})
        for name in [(vault, stream) for stream in streams]:
            listener = peer.session.listeners.get(name)
            if listener is None or own.get(name) is listener:
                continue
            self._leave(own, name)
            own[listener.name] = listener
            self._listeners.setdefault(listener.name, {})[listener] = peer

    def forget(self, peer: Peer) -> None:
        """The connection is gone: forget all its listeners."""
        own = self._by_peer.pop(peer, {})
        for name in list(own):
            self._leave(own, name)
        self._catchup.forget(peer)

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
            self._catchup.unheard(name)
            if name[1] == MEMBERSHIP:
                self._logs.pop(name[0], None)

    def lagging(self) -> int:
        """Subscriptions to existing streams that are behind the head."""
        return sum(1 for peers in self._listeners.values() for x in peers if x.exists and not x.live)

    def _listening(self, name: Name) -> Iterable[Peer]:
        return self._listeners.get(name, {}).values()

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
        self._recent.offered(name, message)
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

    def told(self, vault: VaultId, state: StreamState, before: int | None) -> None:
        """The database has said what a stream's state is, when of its seqs up to `before` it was known that they are
        committed, by `committed`. It is not asked again for what is recent of it."""
        name = (vault, state.stream)
        if before is not None and state.head < before:
            self._recent.forget(vault)
        if state.kind is not StreamKind.ABSENT:
            self._recent.told(name, Heading.of_state(state))
            self.moved(*name, state.head)

    def committed(self, names: Iterable[Name]) -> list[int | None]:
        """What is recent of each of these streams goes up to here, to go into `told`."""
        return [self._recent.last(name) for name in names]

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
        self._recent.forget(vault)
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

    def other_history(self) -> None:
        """The database may not be the one it was: nothing that was read of it before is given to anybody."""
        self._recent.clear()
