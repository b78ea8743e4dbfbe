"""The connection to one relay, kept up for as long as the device is open: dial, log in, converse, come back.

While a connection lives, a `Conversation` moves its messages; what they mean for a vault is its follower's.
"""

import logging
import math
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from enum import Enum
from typing import Final

import trio

from sealwire_client.conversation import Conversation, Follower
from sealwire_client.identity import DeviceIdentity
from sealwire_client.nursery import open_nursery
from sealwire_client.transport import Transport, TransportError, dial
from sealwire_protocol.client_session import ClientSession
from sealwire_protocol.errors import Action
from sealwire_protocol.events import (
    ClientEvent,
    Request,
)
from sealwire_protocol.ids import VaultId
from sealwire_protocol.login import normal_origin
from sealwire_protocol.messages import (
    NO_REQUEST,
    NO_VAULT,
    AnswerJoin,
    AppendLink,
    CreateStream,
    CreateVault,
    Done,
    Fault,
    Fetch,
    Join,
    Joined,
    Joining,
    Message,
    OfferLinks,
    OpenMailbox,
    Pushed,
    Ranges,
    Reconcile,
    Records,
    Subscribed,
    Welcome,
)

FIRST_RETRY_SECONDS_MAX: Final = 5.0
"""A retry is uniform in 0 to this, while the device has been away for less: a relay that restarts meets its devices
spread out."""

RETRY_SECONDS_MAX: Final = 30.0
"""The longest pause between two attempts: an always-on device is back within half a minute. In between a pause is at
most as long as the device has been away, so that none stays away for more than twice as long as the relay did."""

REQUEST_RETRY_SECONDS_MIN: Final = 0.2
"""A request is not repeated sooner, whatever the relay says: it could keep a device busy for nothing."""

STABLE_SECONDS: Final = 10.0
"""A device that loses a connection that was logged in for so long is away from then on; others do not count."""

HINT_SECONDS_MAX: Final = 600.0
"""The longest pause that a relay can ask for: a device must not be silenced for a day by one message."""

WAKE_SECONDS_MIN: Final = 1.0
"""An attempt or a connection younger than this is not given up for a `wake`: a storm of them must not keep it from
coming about."""

_log = logging.getLogger("sealwire.link")

Dialler = Callable[[str], AbstractAsyncContextManager[Transport]]
AnyRequest = CreateVault | CreateStream | AppendLink | OfferLinks | OpenMailbox | Join | AnswerJoin | Reconcile | Fetch
AnyAnswer = Done | Ranges | Records


class LinkState(Enum):
    """What the connection is doing."""

    OFFLINE = "offline"
    CONNECTING = "connecting"
    ONLINE = "online"
    REFUSED = "refused"


class RelayRefusedError(Exception):
    """The relay will not do what was asked. The message says why and what to do."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class _Waiting:
    """A request that is not answered yet; it is sent again on every new connection."""

    def __init__(self, message: AnyRequest) -> None:
        self.message = message
        self.done = trio.Event()
        self.answer: AnyAnswer | Fault | None = None


def retry_pause(away_seconds: float) -> float:
    """How long to wait, by chance, before the next attempt of a device that has been away for so long."""
    return random.uniform(0, min(max(FIRST_RETRY_SECONDS_MAX, away_seconds), RETRY_SECONDS_MAX))


class Link:
    """One relay. `run` keeps the connection up until it is cancelled; everything else may be called at any time."""

    def __init__(self, origin: str, identity: DeviceIdentity, dialler: Dialler = dial) -> None:
        self.origin = normal_origin(origin)
        self._identity, self._dial = identity, dialler
        self._followers: dict[VaultId, Follower] = {}
        self._requests: dict[int, _Waiting] = {}
        self._last_request = NO_REQUEST
        self._mail: dict[bytes, Callable[[Joining | Joined], None]] = {}
        self._want_room: dict[Callable[[], None], None] = {}
        self._changed = trio.Event()
        self._conversation: Conversation | None = None
        self._away_since = 0.0
        self._attempt = self._pausing = trio.CancelScope()
        self._began = 0.0
        self._online_since = math.inf
        self._not_before = 0.0
        self._woken = False
        self._running = trio.CancelScope()
        self._resumed = trio.Event()
        self._resumed.set()
        self.state = LinkState.OFFLINE
        self.last_error: str | None = None

    # --- for the parts above

    @property
    def session(self) -> ClientSession | None:
        """The session of the present connection once it is logged in."""
        return self._conversation.session if self._conversation and self.state is LinkState.ONLINE else None

    def handle(self, event: ClientEvent) -> None:
        """Give an event to the present session, if one is logged in."""
        if self._conversation is not None and self.state is LinkState.ONLINE:
            self._conversation.handle(event)

    def when_room(self, call: Callable[[], None]) -> None:
        """The connection takes no more pushes (`ClientSession.full`): call this once when it does again."""
        self._want_room[call] = None

    def give_up(self, why: TransportError) -> None:
        """End the present connection, if there is one; the next one comes when and if `why` says so."""
        if self._conversation is not None:
            self._conversation.fail(why)

    def dial_anew(self, why: str) -> None:
        """End the present connection, if there is one, for a reason of this device's own, and make the next one at
        once: nothing has gone wrong, so no error is told."""
        if self._conversation is not None:
            self._woken = True
            self.give_up(TransportError(why))

    def follow(self, vault: VaultId, follower: Follower) -> None:
        """From now on this vault's messages go to the follower."""
        self._followers[vault] = follower
        if self.state is LinkState.ONLINE:
            follower.online()

    def unfollow(self, vault: VaultId) -> None:
        """Messages of this vault are of no interest any more."""
        self._followers.pop(vault, None)

    @property
    def idle(self) -> bool:
        """True if nobody follows a vault, waits for an answer or expects mail here."""
        return not (self._followers or self._requests or self._mail)

    def stop(self) -> None:
        """End `run`, and the connection with it, for good."""
        self._running.cancel()

    def expect_mail(self, mailbox: bytes, receive: Callable[[Joining | Joined], None] | None) -> None:
        """Call `receive` with what lies in a mailbox; None: no more."""
        if receive is None:
            self._mail.pop(mailbox, None)
        else:
            self._mail[mailbox] = receive

    async def request(self, message: AnyRequest) -> AnyAnswer:
        """Send a request, on this connection or the next ones, until it is answered. Returns the answer.

        Its `request` number is chosen here. Raises RelayRefusedError. Cancelled: it may or may not have been done.
        """
        self._last_request += 1
        number = self._last_request
        waiting = _Waiting(replace(message, request=number))
        self._requests[number] = waiting
        try:
            while True:
                self.handle(Request(waiting.message))
                await waiting.done.wait()
                answer = waiting.answer
                assert answer is not None
                if not isinstance(answer, Fault):
                    return answer
                if answer.action is not Action.RETRY or answer.retry_ms == 0:
                    raise RelayRefusedError(answer)
                waiting.done, waiting.answer = trio.Event(), None
                await trio.sleep(min(max(answer.retry_ms / 1000, REQUEST_RETRY_SECONDS_MIN), RETRY_SECONDS_MAX))
        finally:
            del self._requests[number]

    def wake(self) -> None:
        """Connect afresh at once: the app came to the front, or the network changed.

        A connection that stands is given up: after a suspension it can look alive for minutes and not be. While the
        device is suspended this does nothing.
        """
        if self._resumed.is_set():
            self._try_now()

    def network_changed(self) -> None:
        """A connection that stands must answer within ANSWER_SECONDS_MAX, or is made anew; else as `wake`."""
        if self._conversation is None:
            self.wake()
        else:
            self._conversation.doubt()

    def suspend(self) -> None:
        """End the present connection in good order, and make none until `resume`."""
        if self._resumed.is_set():
            self._resumed = trio.Event()
            self._attempt.cancel()
            self._pausing.cancel()

    async def suspended(self) -> None:
        """Wait until the connection has ended that stood when it was suspended, or it is resumed."""
        await self.until(lambda link: link._resumed.is_set() or link.state in {LinkState.OFFLINE, LinkState.REFUSED})

    def resume(self) -> None:
        """Connect at once if it was suspended; else do nothing."""
        if not self._resumed.is_set():
            self._resumed.set()
            self._stir()
            self._away_since, self._not_before = trio.current_time(), 0.0

    def _try_now(self) -> None:
        self._away_since, self._not_before = trio.current_time(), 0.0
        self._pausing.cancel()
        if trio.current_time() - self._began >= WAKE_SECONDS_MIN:
            self._woken = True
            self._attempt.cancel()

    async def until(self, reached: Callable[["Link"], bool]) -> None:
        """Wait until the link's state satisfies a condition."""
        while not reached(self):
            await self._changed.wait()

    async def wait_while_online(self, event: trio.Event) -> None:
        """Wait for an event; return early if the connection is lost meanwhile, once it is back."""
        async with open_nursery() as nursery:

            async def lost() -> None:
                await self.until(lambda link: link.state is not LinkState.ONLINE)
                nursery.cancel_scope.cancel()

            nursery.start_soon(lost)
            await event.wait()
            nursery.cancel_scope.cancel()
        if not event.is_set():
            await self.until(lambda link: link.state is LinkState.ONLINE)

    # --- keeping it up

    async def run(self) -> None:
        """Keep the connection up until cancelled, or stopped."""
        with self._running:
            await self._keep_up()

    async def _keep_up(self) -> None:
        self._away_since = trio.current_time()
        while True:
            if not self._resumed.is_set():
                await self._rest()
            self._set(LinkState.CONNECTING)
            self._began, self._online_since, self._woken = trio.current_time(), math.inf, False
            come_back = True
            try:
                with trio.CancelScope() as self._attempt:
                    async with self._dial(self.origin) as transport:
                        await self._converse(transport)
            except TransportError as error:
                come_back = error.come_back
                if not self._woken:
                    self.last_error = str(error)
                self._take_hint(error.retry_seconds)
                _log.info("%s", error)
            finally:
                self._offline(LinkState.OFFLINE if come_back else LinkState.REFUSED)
            if trio.current_time() - self._online_since >= STABLE_SECONDS:
                self._away_since = trio.current_time()
            if not self._woken and self._resumed.is_set():
                await self._pause(come_back)

    async def _rest(self) -> None:
        self._set(LinkState.OFFLINE)
        self.last_error = "the device is suspended: it connects again when the app resumes it"
        await self._resumed.wait()
        self.last_error = None

    async def _pause(self, come_back: bool) -> None:
        pause = retry_pause(trio.current_time() - self._away_since) if come_back else RETRY_SECONDS_MAX
        with trio.CancelScope() as self._pausing:
            await trio.sleep_until(max(self._not_before, trio.current_time()) + pause)

    def _take_hint(self, seconds: float) -> None:
        """The relay asks not to be dialled before so many seconds have passed."""
        self._not_before = max(self._not_before, trio.current_time() + min(seconds, HINT_SECONDS_MAX))

    async def _converse(self, transport: Transport) -> None:
        conversation = Conversation(transport, self._identity, self.origin, self)
        self._conversation = conversation
        try:
            await conversation.run()
        finally:
            self._conversation = None

    def _offline(self, state: LinkState) -> None:
        was_online = self.state is LinkState.ONLINE
        self._want_room.clear()
        self._set(state)
        if was_online:
            for follower in list(self._followers.values()):
                follower.offline()

    def _set(self, state: LinkState) -> None:
        if state is not self.state:
            self.state = state
            self._stir()

    def _stir(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- what a conversation brings

    def arrived(self, message: Message) -> None:
        """Route a message to whom it concerns."""
        match message:
            case Welcome():
                self.last_error, self._online_since = None, trio.current_time()
                self._set(LinkState.ONLINE)
                for waiting in list(self._requests.values()):
                    self.handle(Request(waiting.message))
                for follower in list(self._followers.values()):
                    follower.online()
            case Done() | Ranges() | Records():
                self._answer(message.request, message)
            case Fault() if message.request != NO_REQUEST:
                self._answer(message.request, message)
            case Fault() if message.vault == NO_VAULT:
                self.last_error = message.message
                if message.action is Action.RETRY:
                    self._take_hint(message.retry_ms / 1000)
            case Joining() | Joined():
                receive = self._mail.get(message.mailbox)
                if receive is not None:
                    receive(message)
            case Subscribed() | Pushed() | Fault():
                to = self._followers.get(message.vault)
                if to is not None:
                    _pass_on(to, message)
                self._tell_room()
            case _:
                _log.warning("a %s arrived that nobody waits for", type(message).__name__)

    def _tell_room(self) -> None:
        if self._want_room and self.session is not None and not self.session.full:
            calls, self._want_room = self._want_room, {}
            for call in calls:
                call()

    def follower(self, vault: VaultId) -> Follower | None:
        """Who follows a vault."""
        return self._followers.get(vault)

    def _answer(self, request: int, answer: AnyAnswer | Fault) -> None:
        waiting = self._requests.get(request)
        if waiting is not None:
            waiting.answer = answer
            waiting.done.set()


def _pass_on(follower: Follower, message: Subscribed | Pushed | Fault) -> None:
    if isinstance(message, Subscribed):
        follower.subscribed(message)
    elif isinstance(message, Pushed):
        follower.pushed(message)
    else:
        follower.fault(message)
