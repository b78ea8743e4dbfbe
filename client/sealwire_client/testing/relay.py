"""A relay in memory, in the test's own process and event loop: no sockets, no database, no other thread.

It is built on the same `RelaySession` as the real relay, and its log follows the same rules. What networks and
relays do to a device in bad moments it does on request.
"""

import math
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Final

import trio

from sealwire_client import cipher
from sealwire_client.nursery import open_nursery
from sealwire_client.testing.log import MemoryLog, Verdict
from sealwire_client.testing.wire import Wire
from sealwire_client.transport import Transport, TransportError
from sealwire_protocol import codec
from sealwire_protocol.errors import Action, CloseCode, DecodeError, FaultCode
from sealwire_protocol.events import (
    Answer,
    Close,
    Do,
    LinksReplaced,
    Lost,
    Opened,
    PageRead,
    Pump,
    Received,
    Refuse,
    RelayEvent,
    Send,
    Stop,
    TermChanged,
    Ticked,
)
from sealwire_protocol.ids import MEMBERSHIP, NONCE_BYTES, DeviceKey, MailboxId, Term, VaultId
from sealwire_protocol.limits import Limits
from sealwire_protocol.links import LinkError
from sealwire_protocol.login import normal_origin
from sealwire_protocol.messages import (
    AnswerJoin,
    AppendLink,
    CreateStream,
    CreateVault,
    Deliver,
    Done,
    Fetch,
    Join,
    Joined,
    Joining,
    Message,
    OfferLinks,
    OpenMailbox,
    Push,
    Pushed,
    Reconcile,
    Subscribe,
)
from sealwire_protocol.relay_session import RelaySession, RelayState

ORIGIN: Final = "wss://relay.test"
"""Where it is found, if it is given no other name."""

Alter = Callable[[Message], Iterable[Message]]
"""What takes the place of a message."""


class MemoryRelay:
    """A relay for tests. Open devices with `dialler=relay.dial` and `relay=relay.origin`.

    Everything that it was given stays in `log` for as long as the object lives, whatever happens to connections.
    """

    def __init__(self, origin: str = ORIGIN, limits: Limits | None = None) -> None:
        self.origin = normal_origin(origin)
        self.limits = limits or Limits()
        self.log = MemoryLog(origin=self.origin)
        self.log.open_term()
        self.delay = 0.0
        """Seconds that a message takes, each way; dialling takes as long."""
        self.carried = 0
        """Messages that have reached the other side, both ways together, logins included."""
        self.dialled = 0
        """Attempts to connect, refused ones included."""
        self.alter: Alter | None = None
        """If set: called with every message to a device; what it returns is sent instead."""
        self.mishear: Alter | None = None
        """If set: called with everything that a device asks; what it returns is carried out instead, one by one, so
        that a generator goes on when what it gave has been carried out."""
        self._running = True
        self._cut_after: int | None = None
        self._answers_to_lose = 0
        self._connections: dict[_Connection, None] = {}
        self._inviters: dict[MailboxId, _Connection] = {}
        self._joiners: dict[MailboxId, _Connection] = {}

    # --- what goes wrong

    def cut(self) -> None:
        """Break every connection now; what is on its way is lost."""
        for connection in list(self._connections):
            connection.wire.cut()

    def cut_after(self, messages: int) -> None:
        """Break every connection, once, when so many more messages have reached the other side."""
        self._cut_after = messages
        self._cut_if_due()

    def lose_answers(self, pushes: int) -> None:
        """Commit the next so many pushes, and each time break the connection before the device hears of it."""
        self._answers_to_lose = pushes

    def stop(self) -> None:
        """Break every connection, and let nobody dial until `start`."""
        self._running = False
        self.cut()

    def start(self) -> None:
        """Answer again after a `stop`."""
        self._running = True

    def restart(self) -> Term:
        """Break every connection and begin a new term, as a relay does that was started again."""
        self.cut()
        self._running = True
        return self.log.open_term()

    def new_term(self) -> Term:
        """Begin a new term while connections live on, as a relay does whose database was restarted beneath it."""
        term = self.log.open_term()
        for connection in list(self._connections):
            if connection.session.state is RelayState.READY:
                connection.handle(TermChanged(term))
        return term

    def backup(self) -> MemoryLog:
        """A copy of everything, for `restore`."""
        return deepcopy(self.log)

    def restore(self, backup: MemoryLog) -> Term:
        """Go back to a copy made before, and begin a new term: what came after it is lost here."""
        self.cut()
        self.log = deepcopy(backup)
        self.log.origin = self.origin
        return self.log.open_term()

    def purge(self) -> None:
        """Leave out of all logs what was superseded or deleted, as if it were old enough. A device that has not been
        told of a deletion until now notices that, and compares what it holds with what is left."""
        for vault in self.log.vaults.values():
            for name, stream in vault.streams.items():
                if name != MEMBERSHIP:
                    stream.purge()

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End every connection in good order with this code."""
        for connection in list(self._connections):
            connection.handle(Stop(code, reason))

    # --- what a device needs

    @asynccontextmanager
    async def dial(self, origin: str) -> AsyncIterator[Transport]:
        """A connection for the length of the block. Raises TransportError if no relay runs there."""
        self.dialled += 1
        await trio.sleep(self.delay)
        if not self._running or normal_origin(origin) != self.origin:
            raise TransportError(f"no relay answers at {origin}; see that it is running, and the address is right")
        connection = _Connection(self)
        async with open_nursery() as nursery:
            self._connections[connection] = None
            nursery.start_soon(connection.serve)
            try:
                yield connection.wire
            finally:
                connection.lost()
                nursery.cancel_scope.cancel()

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._connections)

    @property
    def devices(self) -> list[DeviceKey]:
        """The devices that are logged in now, the first one first."""
        return [connection.session.device for connection in self._connections if connection.session.device is not None]

    # --- inside

    def count(self) -> None:
        """A message has reached the other side."""
        self.carried += 1
        if self._cut_after is not None:
            self._cut_after -= 1
            self._cut_if_due()

    def _cut_if_due(self) -> None:
        if self._cut_after is not None and self._cut_after <= 0:
            self._cut_after = None
            self.cut()

    def forget(self, connection: "_Connection") -> None:
        """A connection is gone."""
        self._connections.pop(connection, None)
        for waiting in (self._inviters, self._joiners):
            for mailbox in [mailbox for mailbox, who in waiting.items() if who is connection]:
                del waiting[mailbox]

    def do(self, connection: "_Connection", device: DeviceKey, message: Message) -> None:
        """Carry out what a device asks, tell it, and offer what was committed to whoever listens."""
        try:
            verdict = self._judge(device, message)
        except LinkError as error:
            verdict = Verdict(Refuse(FaultCode.BAD_LINK, Action.STOP, str(error), getattr(message, "request", 0)))
        except DecodeError as error:
            connection.handle(Stop(error.code, str(error)))
            return
        told = verdict.told.message if isinstance(verdict.told, Answer) else None
        if isinstance(told, Pushed) and self._answers_to_lose:
            self._answers_to_lose -= 1
            connection.wire.cut()
        else:
            connection.handle(verdict.told)
        for deliver in verdict.delivers:
            self.offer(deliver)
        if verdict.replaced and isinstance(message, AppendLink | OfferLinks):
            for listening in list(self._connections):
                if listening.session.state is RelayState.READY:
                    listening.handle(LinksReplaced(message.vault))
        if isinstance(told, Done) and isinstance(message, AppendLink | OfferLinks):
            self._dismiss(message.vault)
        if isinstance(told, Done) and isinstance(message, OpenMailbox | Join | AnswerJoin):
            self._tell(connection, message)

    def _dismiss(self, vault: VaultId) -> None:
        """Who listens to a vault and was removed is told so, and hangs up if it listens to nothing else."""
        for connection in list(self._connections):
            session = connection.session
            if session.device is None or all(named != vault for named, _ in session.listeners):
                continue
            refused = self.log.dismissal(vault, session.device)
            if refused is not None:
                connection.handle(refused)
                if not session.listeners:
                    connection.handle(Stop(CloseCode.REMOVED, "this device was removed from the vault"))

    def _judge(self, device: DeviceKey, message: Message) -> Verdict:
        log, now = self.log, trio.current_time()
        match message:
            case Subscribe():
                return log.subscribe(device, message)
            case CreateVault():
                return log.create_vault(message)
            case CreateStream():
                return log.create_stream(device, message)
            case AppendLink():
                return log.append_link(device, message)
            case OfferLinks():
                return log.offer_links(device, message)
            case Reconcile():
                return log.reconcile(device, message)
            case Fetch():
                return log.fetch(device, message)
            case Push():
                return log.push(device, message)
            case OpenMailbox():
                return log.open_mailbox(device, message, now)
            case Join():
                return log.join(device, message, now)
            case AnswerJoin():
                return log.answer_join(device, message, now)
            case _:
                return Verdict(Refuse(FaultCode.UNSUPPORTED, Action.STOP, "this relay does not know how to do that"))

    def offer(self, deliver: Deliver) -> None:
        """Send a committed segment to whoever listens; who has no credit gets it later."""
        payload = codec.encode(deliver)
        for connection in list(self._connections):
            listener = connection.session.listeners.get((deliver.vault, deliver.stream))
            if listener is None:
                continue
            if listener.offer(deliver.prev, deliver.last, len(payload)):
                connection.send(payload)
            else:
                connection.pump()

    def _tell(self, connection: "_Connection", message: OpenMailbox | Join | AnswerJoin) -> None:
        name = message.mailbox
        if isinstance(message, OpenMailbox):
            self._inviters[name] = connection
        elif isinstance(message, Join):
            self._joiners[name] = connection
        box = self.log.mailbox(name, trio.current_time())
        if box is None:
            return
        inviter, joiner = self._inviters.get(name), self._joiners.get(name)
        if inviter is not None and box.request and not box.answer and not isinstance(message, AnswerJoin):
            inviter.handle(Answer(Joining(name, box.request)))
        if joiner is not None and box.answer and joiner.session.device == box.joiner:
            joiner.handle(Answer(Joined(name, box.answer)))


class _Connection:
    """The relay's end of one connection: carries out a session's effects."""

    def __init__(self, relay: MemoryRelay) -> None:
        self._relay = relay
        self.wire = Wire(relay.origin, lambda: relay.delay, relay.count)
        origins = frozenset((relay.origin,))
        self.session = RelaySession(origins, os.urandom(NONCE_BYTES), cipher.verify, relay.limits)
        self._pumping = False

    async def serve(self) -> None:
        """Take in what the device sends, until the connection ends."""
        self.handle(Opened(trio.current_time()))
        while self.session.state is not RelayState.CLOSED:
            deadline = self.session.deadline
            with trio.move_on_at(math.inf if deadline is None else deadline) as scope:
                try:
                    data = await self.wire.to_relay.get()
                except TransportError:
                    self.lost()
                    return
            now = trio.current_time()
            self.handle(Ticked(now) if scope.cancelled_caught else Received(data, now))

    def lost(self) -> None:
        """The connection is gone."""
        self.session.handle(Lost())
        self._relay.forget(self)

    def handle(self, event: RelayEvent) -> None:
        """Give an event to the session and carry out its effects."""
        for effect in self.session.handle(event):
            if isinstance(effect, Send):
                self.send(effect.data)
            elif isinstance(effect, Do) and self.session.device is not None:
                mishear = self._relay.mishear
                for message in (effect.message,) if mishear is None else mishear(effect.message):
                    self._relay.do(self, self.session.device, message)
            elif isinstance(effect, Pump):
                self.pump()
            elif isinstance(effect, Close):
                self.wire.end(effect.code, effect.reason)

    def send(self, payload: bytes) -> None:
        """Send an encoded message, or what a lying relay makes of it."""
        alter = self._relay.alter
        message = None if alter is None else codec.decode(payload)
        if alter is None or message is None:
            self.wire.to_device.put(payload)
            return
        for altered in alter(message):
            self.wire.to_device.put(codec.encode(altered))

    def pump(self) -> None:
        """Send lagging streams what the log holds, as far as the credit goes."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while (listener := self.session.lagging()) is not None:
                stream = self._relay.log.stream(*listener.name)
                if stream is None:
                    listener.exists = False
                    continue
                frames, size = [], 0
                for prev, last, body in stream.after(listener.cursor):
                    deliver = self._relay.log.deliver(*listener.name, prev, last, body)
                    frames.append((last, codec.encode(deliver)))
                    size += len(frames[-1][1])
                    if size > self.session.credit:
                        break
                self.handle(PageRead(*listener.name, tuple(frames), stream.head))
        finally:
            self._pumping = False
