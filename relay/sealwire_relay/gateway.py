"""Accepts sockets, keeps the limits on them, and hands what devices ask to the part that does it."""

import asyncio
import contextlib
import logging
import math
import socket
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

from sealwire_protocol.errors import Action, CloseCode, FaultCode, RemoteFault
from sealwire_protocol.events import Refuse, Stop, TermChanged
from sealwire_protocol.ids import DeviceKey, Term, VaultId
from sealwire_protocol.limits import Limits
from sealwire_protocol.membership import Verify
from sealwire_protocol.messages import Acked, Message, Push, Subscribe
from sealwire_protocol.relay_session import RelayState
from sealwire_relay.acks import Acks
from sealwire_relay.auditing import Audit
from sealwire_relay.buckets import PushLimits, Rate
from sealwire_relay.connection import CLOSE_SECONDS, STOPPING, Connection
from sealwire_relay.fanout import Fanout
from sealwire_relay.handshakes import Handshakes
from sealwire_relay.ingest import Ingest
from sealwire_relay.metrics import Metrics
from sealwire_relay.peer import Peer
from sealwire_relay.requests import Requests
from sealwire_relay.settings import Settings
from sealwire_relay.sites import Sites, site_of
from sealwire_relay.tls import LOOK_SECONDS, Certificate
from sealwire_relay.view import admit_single, admitting, size_of
from sealwire_relay.waves import WAVE_SECONDS, plan, return_ms
from sealwire_relay.wheel import Wheel

_log = logging.getLogger("sealwire.gateway")


class Gateway:
    """All connections of a relay process. The `Host` of every connection."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        verify: Verify,
        fanout: Fanout,
        ingest: Ingest,
        requests: Requests,
        acks: Acks,
        audit: Audit,
        certificate: Certificate | None,
    ) -> None:
        self.settings, self.metrics, self.verify = settings, metrics, verify
        self.origins: frozenset[str] = frozenset(settings.origins)
        self.proxies, self.certificate = settings.proxies(), certificate
        self.granted = Limits(
            credit_bytes=settings.credit_bytes,
            frame_bytes=settings.frame_bytes_max,
            push_records=settings.push_records_max,
            ping_seconds=settings.ping_seconds,
        )
        self._fanout, self._ingest, self._requests, self._acks = fanout, ingest, requests, acks
        self._audit = audit
        self._wheel = Wheel()
        self._connections: set[Connection] = set()
        self._sites = Sites(settings.connections_per_address_max, settings.address_connections_per_second_max)
        self._handshakes = Handshakes(settings.handshakes_max, settings.handshakes_per_address_max)
        metrics.handshakes.set_function(self._handshakes.__len__)
        self._push_limits = PushLimits(
            Rate(settings.device_pushes_per_second_max, settings.device_bytes_per_second_max),
            Rate(settings.vault_pushes_per_second_max, settings.vault_bytes_per_second_max),
        )
        self._empty = asyncio.Event()
        self.written: list[Peer] = []
        self._turns: OrderedDict[Peer, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """Sockets open now, logged in or not."""
        return len(self._connections)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError if it is taken."""
        loop = asyncio.get_running_loop()
        self._wheel.start()
        if self.certificate is not None:
            self._wheel.add(self.certificate, loop.time() + LOOK_SECONDS)
        server = self._server = await loop.create_server(
            lambda: Connection(self), host, port, backlog=self.settings.backlog, start_serving=False
        )
        _tune(server.sockets, int(self.settings.idle_seconds * 1000))
        await server.start_serving()
        return int(server.sockets[0].getsockname()[1])

    async def send_away(self) -> None:
        """Stop accepting, and ask devices to leave, in waves. Each connection is closed once its pushes are answered.
        Cancelled: the rest is not asked."""
        if self._server is not None:
            self._server.close()
            self._server = None
        leaving = list(self._connections)
        waves = plan(len(leaving), self.settings.drain_seconds)
        retry_ms = return_ms(waves, self.settings.drain_return_seconds)
        for place in range(0, len(leaving), waves.size):
            if place:
                await asyncio.sleep(WAVE_SECONDS)
            for connection in leaving[place : place + waves.size]:
                connection.leave(retry_ms)

    async def part(self) -> None:
        """Close every connection that is left, and wait for requests under way and for devices to hang up."""
        for connection in list(self._connections):
            connection.close(CloseCode.RESTARTING, STOPPING)
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), CLOSE_SECONDS)

    async def stop(self) -> None:
        """Cut what is left."""
        self._wheel.stop()
        for connection in list(self._connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def new_term(self, term: Term) -> None:
        """Tell every connection that the relay's history has a new term."""
        for connection in list(self._connections):
            if connection.session.state is RelayState.READY:
                connection.handle(TermChanged(term))

    # --- Host

    def accepted(self, peer: Peer) -> None:
        """Admit a socket, or cut it if there are too many."""
        assert isinstance(peer, Connection)
        now = asyncio.get_running_loop().time()
        if not self._admitted(peer, now):
            self.metrics.closes.labels("refused").inc()
            peer.abort()
            return
        self._connections.add(peer)
        self.metrics.connections.set(len(self._connections))
        self._wheel.add(peer, now + self.settings.login_seconds)

    def _admitted(self, peer: Connection, now: float) -> bool:
        if len(self._connections) >= self.settings.connections_max:
            return False
        if self.proxies.header == "proxy-protocol" and not self.proxies.trusts(peer.address):
            return False
        site = self._site(peer.address)
        if not self._sites.enter(site, now):
            return False
        if not self._handshakes.admit(peer, site, now):
            self._sites.leave(site)
            return False
        peer.site = site
        return True

    def _site(self, address: str) -> str:
        """A proxy brings many, and is not counted itself."""
        return "" if self.proxies.trusts(address) else site_of(address)

    def came_from(self, peer: Peer, address: str) -> bool:
        """Count a connection as that of another address, for which a trusted proxy has made it."""
        assert isinstance(peer, Connection)
        site, now = self._site(address), asyncio.get_running_loop().time()
        if self._sites.enter(site, now):
            if self._handshakes.move(peer, site, now):
                self._sites.leave(peer.site)
                peer.site = site
                return True
            self._sites.leave(site)
        self.metrics.closes.labels("refused").inc()
        return False

    def lost(self, peer: Peer) -> None:
        """Forget a socket and all it listened to."""
        assert isinstance(peer, Connection)
        if peer not in self._connections:
            return
        self._connections.discard(peer)
        self._handshakes.forget(peer)
        self._sites.leave(peer.site)
        if not self._connections:
            self._empty.set()
        self._fanout.forget(peer)
        self._requests.left(peer)
        self.metrics.connections.set(len(self._connections))

    def logged_in(self, peer: Peer) -> None:
        """A device is known now."""
        assert isinstance(peer, Connection)
        self._handshakes.forget(peer)
        self.metrics.logins.inc()

    def misused(self, token: bytes, address: str, asked: str) -> None:
        """An admin token was shown where it is worth nothing."""
        self._audit.note(token, address, asked, "refused: it is the data port")

    def do(self, peer: Peer, message: Message) -> Iterator[None] | None:
        """Route what a device asks for."""
        device = peer.device
        if device is None:
            return None
        if isinstance(message, Push):
            return self._push(peer, device, message)
        if isinstance(message, Subscribe):
            self._fanout.sync(peer, message.vault, [wanted.stream for wanted in message.streams])
        self._spawn(self._requests.carry_out(peer, device, message))
        return None

    def _push(self, peer: Peer, device: DeviceKey, push: Push) -> Iterator[None] | None:
        """Admit a push, unless its device or its vault has pushed too much of late. Returns what is left of that work,
        which has pauses."""
        size = size_of(push)
        now = asyncio.get_running_loop().time()
        limited = self._push_limits.take(device, push.vault, push.batch, size, now)
        if limited is not None:
            self.metrics.limited_pushes.labels(limited.by).inc()
            why = f"this {limited.by.partition('_')[0]} pushes more than the relay lets one; it goes on by itself"
            retry_ms = math.ceil(limited.seconds * 1000)
            peer.handle(Refuse(FaultCode.OVERLOADED, Action.RETRY, why, 0, push.vault, push.batch, retry_ms))
            return None
        admitted = admit_single(device, push, size)
        if admitted is not None:
            self._ingest.push(peer, admitted)
            return None
        work = self._admit(peer, device, push, size)
        for _ in work:  # one step at once, which is all of most
            return work
        return None

    def _admit(self, peer: Peer, device: DeviceKey, push: Push, size: int) -> Iterator[None]:
        try:
            admitted = yield from admitting(device, push, size)
        except RemoteFault as fault:
            peer.handle(Stop(fault.code, str(fault)))
            return
        self._ingest.push(peer, admitted)

    def noted(self, peer: Peer, positions: tuple[Acked, ...]) -> None:
        """Positions that a device has durably applied: they say which tombstones may go. Strangers have no say."""
        assert isinstance(peer, Connection)
        for vault, stream, position in positions:
            listener = peer.session.listeners.get((vault, stream))
            if peer.device is not None and listener is not None and listener.exists:
                self._acks.note(peer.device, *listener.name, position)

    def left(self, peer: Peer, vault: VaultId) -> None:
        """There is no such vault for this device: it listens to nothing of it."""
        self._fanout.leave(peer, vault)

    def pump(self, peer: Peer) -> None:
        """Serve a lagging connection when its turn comes."""
        self._fanout.pump(peer)

    def flush_soon(self) -> None:
        """Join what connections write in this turn of the loop into one write each."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        written, self.written = self.written, []
        for peer in written:
            peer.flush()

    def turn_soon(self, peer: Peer) -> None:
        """Have connections that bring much go on in turns, one in each turn of the event loop: so the others, whose
        little is heard at once, wait for one slice, however many bring much."""
        if not self._turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._turns[peer] = None

    def _next_turn(self) -> None:
        peer, _ = self._turns.popitem(last=False)
        if self._turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
        peer.on_turn()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a request failed", exc_info=task.exception())


def _tune(listening: Iterable[Any], user_timeout_ms: int) -> None:
    """Have the kernel give up every socket accepted here whose peer takes no bytes for so long. It is set on those that
    listen, of which the others have it, at no cost for each. That there is no Nagle delay is the event loop's doing.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        for sock in listening:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
