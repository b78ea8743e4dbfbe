"""One connection while it lives: one task reads, one writes, one applies, one watches the clock and one asks whether
the other side is there. All decisions are `ClientSession`'s.
"""

import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

from sealwire_client.identity import DeviceIdentity
from sealwire_client.nursery import open_nursery
from sealwire_client.transport import Transport, TransportError
from sealwire_protocol.client_session import ClientSession, ClientState
from sealwire_protocol.errors import CloseCode, RemoteFault, may_come_back
from sealwire_protocol.events import (
    Applied,
    Apply,
    Arrived,
    ClientEvent,
    Close,
    HistoryLost,
    Lost,
    Opened,
    Received,
    Send,
    Sign,
    Signed,
    Stop,
    Ticked,
)
from sealwire_protocol.ids import NONCE_BYTES, Position, StreamId, VaultId
from sealwire_protocol.limits import ACK_DELAY_SECONDS
from sealwire_protocol.messages import Deliver, Fault, Message, Pushed, Subscribed

ANSWER_SECONDS_MAX: Final = 3.0
"""After a `network_changed` a connection that does not answer within this is dead: several times what a slow phone's
answer takes, and a small part of the forty seconds in which the pings of a quiet connection would find it."""

APPLY_TOGETHER_MAX: Final = 64
"""Deliveries that are applied in one transaction of the replica; each is at most one segment."""

LAST_WORDS_SECONDS_MAX: Final = 0.5
"""A device that ends takes no longer to say what it holds: who stops a program does not want to wait for a network."""

AGENT: Final = "sealwire-client/0.1.0"


class Follower(Protocol):
    """What a vault's sync gives the link. All called on the link's trio loop."""

    def online(self) -> None:
        """Logged in: subscribe."""

    def offline(self) -> None:
        """The connection is gone."""

    def subscribed(self, message: Subscribed) -> None:
        """The relay has told the state of streams."""

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        """Apply deliveries durably, in order; returns the position reached in each stream."""

    def pushed(self, message: Pushed) -> None:
        """A verdict on a batch."""

    def fault(self, message: Fault) -> None:
        """Something about this vault was refused."""

    def history_lost(self, stream: StreamId, reason: str) -> None:
        """The relay does not know the history that this replica stands in, or has forgotten a part of it: nothing more
        of the stream is applied before it is listened to again."""


class Owner(Protocol):
    """Whose connection it is: what a `Conversation` tells it."""

    def arrived(self, message: Message) -> None:
        """Route a message to whom it concerns."""

    def follower(self, vault: VaultId) -> Follower | None:
        """Who follows a vault."""

    def dial_anew(self, why: str) -> None:
        """End this connection, and make another one at once."""


class Conversation:
    """One connection: moves bytes between a transport and a `ClientSession` and carries out the session's effects."""

    def __init__(self, transport: Transport, identity: DeviceIdentity, origin: str, owner: Owner) -> None:
        self._transport, self._identity, self._owner = transport, identity, owner
        self.session = ClientSession(identity.device_key, origin, os.urandom(NONCE_BYTES), AGENT)
        self._out: deque[bytes] = deque()
        self._midway = False
        self._applies: deque[Apply] = deque()
        self._out_ready, self._apply_ready, self._clock_moved = trio.Event(), trio.Event(), trio.Event()
        self._doubted = trio.Event()
        self._watched = math.inf
        self._failure: TransportError | None = None
        self._applies_bytes = 0
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Converse until the connection ends. Raises TransportError. Cancelled: acknowledges what is applied, within
        half a second, and says goodbye."""
        self.handle(Opened(trio.current_time()))
        try:
            with self._scope:
                async with open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._apply)
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._prove)
        except trio.Cancelled:
            await self._say_last()
            raise
        finally:
            if self.session.state is not ClientState.CLOSED:
                self.session.handle(Lost())
            code, reason = CloseCode.GOING_AWAY, ""
            if self._failure is not None and self._failure.code is not None:
                code, reason = CloseCode(self._failure.code), str(self._failure)
            await self._transport.close(code, reason)
        if self._failure is not None:
            raise self._failure

    async def _say_last(self) -> None:
        """Send the ACK that is due soon: without it the relay takes a device that is open for a moment at a time, as a
        command is, for one that never gets what it was sent. It is bounded, and not cut short by cancellation.

        Nothing follows a message that was cut short: a batch may be lost, and those after it must not be taken."""
        if self.session.state is not ClientState.READY or self._midway:
            return
        self.handle(Ticked(trio.current_time() + ACK_DELAY_SECONDS))
        with trio.move_on_after(LAST_WORDS_SECONDS_MAX, shield=True), suppress(TransportError):
            while self._out:
                await self._transport.send(self._out.popleft())

    def fail(self, why: TransportError) -> None:
        """End the conversation."""
        self._failure = self._failure or why
        self._scope.cancel()

    def doubt(self) -> None:
        """The connection may be dead: see that it answers."""
        self._doubted.set()

    def handle(self, event: ClientEvent) -> None:
        """Give an event to the session and carry out its effects."""
        if self.session.state is ClientState.CLOSED:
            return
        for effect in self.session.handle(event):
            match effect:
                case Send(data):
                    self._out.append(data)
                    self._out_ready.set()
                case Apply():
                    self._queue(effect)
                case Arrived(message):
                    self._owner.arrived(message)
                case Sign(payload):
                    self.handle(Signed(self._identity.sign(payload)))
                case HistoryLost(vault, stream, reason):
                    self._leave(vault, stream)
                    follower = self._owner.follower(vault)
                    if follower is not None:
                        follower.history_lost(stream, reason)
                case Close(code, reason):
                    self.fail(TransportError(reason, may_come_back(code), code))
        deadline = self.session.deadline
        if deadline is not None and deadline < self._watched:
            self._clock_moved.set()

    def _queue(self, apply: Apply) -> None:
        self._applies.append(apply)
        self._applies_bytes += apply.frame_bytes
        self._apply_ready.set()
        if self._applies_bytes > self.session.limits.credit_bytes:
            self.handle(Stop(CloseCode.PROTOCOL_ERROR, "the relay sent more than this device gave it credit for"))

    def _leave(self, vault: VaultId, stream: StreamId) -> None:
        """Apply nothing more of a stream that came before its history was lost: it is another one from now on."""
        left = [apply for apply in self._applies if (apply.deliver.vault, apply.deliver.stream) == (vault, stream)]
        for apply in left:
            self._applies.remove(apply)
            self._applied(apply, Position(apply.deliver.term, apply.deliver.prev))

    async def _read(self) -> None:
        while True:
            data = await self._transport.receive()
            self.handle(Received(data, trio.current_time()))

    async def _write(self) -> None:
        while True:
            while self._out:
                self._midway = True
                await self._transport.send(self._out.popleft())
                self._midway = False
            self._out_ready = trio.Event()
            await self._out_ready.wait()

    async def _apply(self) -> None:
        while True:
            while self._applies:
                await self._apply_some()
            self._apply_ready = trio.Event()
            await self._apply_ready.wait()

    async def _apply_some(self) -> None:
        """Apply what has gathered for one vault in one transaction, and acknowledge it."""
        vault = self._applies[0].deliver.vault
        taken = [self._applies.popleft()]
        while self._applies and self._applies[0].deliver.vault == vault and len(taken) < APPLY_TOGETHER_MAX:
            taken.append(self._applies.popleft())
        follower = self._owner.follower(vault)
        reached: dict[StreamId, Position] = {}
        if follower is not None:
            try:
                reached = dict(await follower.apply([apply.deliver for apply in taken]))
            except RemoteFault as fault:
                self.handle(Stop(fault.code, str(fault)))
                return
        for apply in taken:
            deliver = apply.deliver
            self._applied(apply, reached.get(deliver.stream) or Position(deliver.term, deliver.prev))

    def _applied(self, apply: Apply, position: Position) -> None:
        """Acknowledge a delivery, and give back its credit."""
        self._applies_bytes -= apply.frame_bytes
        deliver, now = apply.deliver, trio.current_time()
        self.handle(Applied(deliver.vault, deliver.stream, position, apply.frame_bytes, now))

    async def _watch(self) -> None:
        while True:
            self._clock_moved = trio.Event()
            deadline = self.session.deadline
            self._watched = math.inf if deadline is None else deadline
            with trio.move_on_at(self._watched):
                await self._clock_moved.wait()
            # A deadline that has moved away meanwhile woke nobody.
            deadline = self.session.deadline
            if deadline is not None and trio.current_time() >= deadline:
                self.handle(Ticked(trio.current_time()))

    async def _prove(self) -> None:
        while True:
            await self._doubted.wait()
            self._doubted = trio.Event()
            with trio.move_on_after(ANSWER_SECONDS_MAX) as asking:
                await self._transport.ping()
            if asking.cancelled_caught:
                self._owner.dial_anew("the relay does not answer on this connection since the network changed")
