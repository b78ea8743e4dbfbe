"""The connection that is kept up: when it is tried again, what it says of itself, and what it carries."""

import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import (
    FIRST_RETRY_SECONDS_MAX,
    HINT_SECONDS_MAX,
    RETRY_SECONDS_MAX,
    STABLE_SECONDS,
    Dialler,
    Link,
    LinkState,
    RelayRefusedError,
)
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.relay import ORIGIN
from sealwire_client.transport import Transport, TransportError
from sealwire_protocol.errors import Action, CloseCode, FaultCode
from sealwire_protocol.events import Listen
from sealwire_protocol.ids import START, KeyId, MailboxId, Position, StreamId, Term, TermStart, VaultId
from sealwire_protocol.limits import LOGIN_SECONDS_MAX
from sealwire_protocol.messages import (
    NO_REQUEST,
    NO_VAULT,
    Challenge,
    CreateVault,
    Deliver,
    Fault,
    Join,
    Message,
    Pushed,
    StreamKind,
    StreamState,
    Subscribed,
    Wanted,
    Welcome,
)
from tests.support.virtual import pass_time, virtual

VAULT = VaultId(b"the vault's name")
STREAM = StreamId(b"a stream")
TERM = Term(1, b"the term")


class Diary:
    """A dialler that notes when it was used."""

    def __init__(self, dial: Dialler) -> None:
        self.times: list[float] = []
        self._dial = dial

    @asynccontextmanager
    async def dial(self, origin: str) -> AsyncIterator[Transport]:
        self.times.append(trio.current_time())
        async with self._dial(origin) as transport:
            yield transport

    @property
    def gaps(self) -> list[float]:
        """Seconds from each attempt to the next one."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def begin(nursery: trio.Nursery, dial: Dialler, origin: str = ORIGIN) -> Link:
    """A link that keeps itself up as long as the nursery."""
    link = Link(origin, DeviceIdentity.generate(), dial)
    nursery.start_soon(link.run)
    await link.until(lambda link: link.state is not LinkState.OFFLINE)
    return link


async def online(link: Link) -> None:
    await link.until(lambda link: link.state is LinkState.ONLINE)


async def refused(link: Link) -> None:
    await link.until(lambda link: link.state is LinkState.REFUSED)


def failing(seconds: float = 0.0, retry_seconds: float = 0.0) -> Dialler:
    """A dialler that finds nobody, after a while."""

    def fail(origin: str) -> Transport:
        raise TransportError(f"nobody is at {origin}", retry_seconds=retry_seconds)

    @asynccontextmanager
    async def dial(origin: str) -> AsyncIterator[Transport]:
        await pass_time(seconds)
        yield fail(origin)

    return dial


# --- when it is tried again


@virtual
async def test_attempts_are_spread_further_and_further_up_to_half_a_minute() -> None:
    diaries = [Diary(failing()) for _ in range(100)]
    async with trio.open_nursery() as nursery:
        for diary in diaries:
            await begin(nursery, diary.dial)
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    for diary in diaries:
        away = 0.0
        for gap in diary.gaps:
            assert 0 <= gap <= min(max(FIRST_RETRY_SECONDS_MAX, away), RETRY_SECONDS_MAX)
            away += gap
    for place, most in ((0, FIRST_RETRY_SECONDS_MAX), (-1, RETRY_SECONDS_MAX)):
        waited = [diary.gaps[place] for diary in diaries]
        assert 0 <= min(waited) < most * 0.1
        assert most * 0.9 < max(waited) <= most
        assert abs(statistics.mean(waited) - most / 2) < most * 0.15


@virtual
async def test_nobody_returns_much_later_than_a_relay_that_was_away_for_a_moment(memory_relay: MemoryRelay) -> None:
    down = 3.0
    async with trio.open_nursery() as nursery:
        links = [await begin(nursery, memory_relay.dial) for _ in range(200)]
        for link in links:
            await online(link)
        await trio.sleep(STABLE_SECONDS)
        memory_relay.stop()
        await trio.sleep(down)
        memory_relay.start()
        back = trio.current_time()
        for link in links:
            await online(link)
        assert trio.current_time() - back <= FIRST_RETRY_SECONDS_MAX
        nursery.cancel_scope.cancel()


@virtual
async def test_a_connection_that_lasted_begins_the_pauses_anew(memory_relay: MemoryRelay) -> None:
    diary = Diary(memory_relay.dial)
    memory_relay.stop()
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, diary.dial)
        await trio.sleep(200)
        memory_relay.start()
        for _ in range(20):
            await online(link)
            await trio.sleep(STABLE_SECONDS + 1)
            memory_relay.cut()
            await link.until(lambda link: link.state is not LinkState.ONLINE)
            lost = trio.current_time()
            await online(link)
            assert trio.current_time() - lost <= FIRST_RETRY_SECONDS_MAX
        nursery.cancel_scope.cancel()


@virtual
async def test_connections_that_break_at_once_do_not_begin_the_pauses_anew(memory_relay: MemoryRelay) -> None:
    diary = Diary(memory_relay.dial)
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, diary.dial)
        for _ in range(60):
            await online(link)
            memory_relay.cut()
            await link.until(lambda link: link.state is not LinkState.ONLINE)
        nursery.cancel_scope.cancel()
    assert max(diary.gaps) > 20


@virtual
async def test_attempts_that_take_long_and_fail_do_not_begin_the_pauses_anew() -> None:
    diary = Diary(failing(seconds=STABLE_SECONDS + 1))
    async with trio.open_nursery() as nursery:
        await begin(nursery, diary.dial)
        await trio.sleep(1_000)
        nursery.cancel_scope.cancel()
    assert max(diary.gaps) - STABLE_SECONDS - 1 > 20


@virtual
async def test_waking_tries_at_once() -> None:
    diary = Diary(failing())
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, diary.dial)
        await trio.sleep(300)
        before = len(diary.times)
        link.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert diary.times[before:] == [trio.current_time()]
        await trio.sleep(FIRST_RETRY_SECONDS_MAX)
        assert len(diary.times) >= before + 2, "the pauses begin anew"
        nursery.cancel_scope.cancel()


@virtual
async def test_waking_gives_up_a_connection_that_may_be_dead(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        await trio.sleep(3600)
        link.wake()
        await link.until(lambda link: link.state is not LinkState.ONLINE)
        now = trio.current_time()
        await online(link)
        assert (trio.current_time(), memory_relay.dialled, memory_relay.connections) == (now, 2, 1)
        nursery.cancel_scope.cancel()


@virtual
async def test_a_connection_made_anew_for_a_devices_own_reasons_comes_at_once_and_is_no_failure(
    memory_relay: MemoryRelay,
) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        link.dial_anew("there are other keys")
        await link.until(lambda link: link.state is not LinkState.ONLINE)
        assert (link.state, link.last_error) == (LinkState.CONNECTING, None)
        await online(link)
        assert (trio.current_time(), memory_relay.dialled, memory_relay.connections) == (0, 2, 1)
        nursery.cancel_scope.cancel()


@virtual
async def test_waking_again_and_again_does_not_keep_it_from_connecting(memory_relay: MemoryRelay) -> None:
    memory_relay.delay = 0.1
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        for _ in range(10):
            await trio.sleep(0.05)
            link.wake()
        await online(link)
        assert memory_relay.dialled == 1
        nursery.cancel_scope.cancel()


@virtual
async def test_a_pause_is_not_shortened_by_a_wake_of_before(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        link.wake()
        memory_relay.stop()
        await link.until(lambda link: link.state is LinkState.OFFLINE)
        await trio.testing.wait_all_tasks_blocked()
        assert memory_relay.dialled == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("asked", "waited"), [(60.0, 60.0), (1e6, HINT_SECONDS_MAX)])
def test_the_relay_may_ask_for_a_longer_pause(memory_relay: MemoryRelay, asked: float, waited: float) -> None:
    def tell(message: Message) -> Sequence[Message]:
        if not isinstance(message, Welcome):
            return [message]
        why = "come back later"
        return [message, Fault(NO_REQUEST, NO_VAULT, FaultCode.OVERLOADED, Action.RETRY, int(asked * 1000), why)]

    @virtual
    async def test() -> None:
        memory_relay.alter = tell
        async with trio.open_nursery() as nursery:
            link = await begin(nursery, memory_relay.dial)
            await online(link)
            await trio.testing.wait_all_tasks_blocked()
            assert link.last_error == "come back later"
            memory_relay.cut()
            await link.until(lambda link: link.state is LinkState.OFFLINE)
            lost = trio.current_time()
            await link.until(lambda link: link.state is LinkState.CONNECTING)
            assert waited <= trio.current_time() - lost <= waited + FIRST_RETRY_SECONDS_MAX
            nursery.cancel_scope.cancel()

    test()


@virtual
async def test_what_a_dialler_was_asked_to_wait_is_waited() -> None:
    diary = Diary(failing(retry_seconds=100))
    async with trio.open_nursery() as nursery:
        await begin(nursery, diary.dial)
        await trio.sleep(1000)
        nursery.cancel_scope.cancel()
    assert min(diary.gaps) >= 100


# --- being refused


@virtual
async def test_who_is_told_not_to_come_back_says_why_and_tries_rarely(memory_relay: MemoryRelay) -> None:
    diary = Diary(memory_relay.dial)
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, diary.dial)
        await online(link)
        memory_relay.disconnect(CloseCode.REMOVED, "this device was removed")
        await refused(link)
        assert "this device was removed" in (link.last_error or "")
        await online(link)
        assert diary.gaps == [RETRY_SECONDS_MAX]
        assert not link.last_error
        nursery.cancel_scope.cancel()


@virtual
async def test_who_was_refused_tries_at_once_when_woken(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        memory_relay.disconnect(CloseCode.REMOVED, "this device was removed")
        await refused(link)
        now = trio.current_time()
        link.wake()
        await online(link)
        assert trio.current_time() == now
        nursery.cancel_scope.cancel()


@virtual
async def test_an_orderly_end_is_followed_by_an_ordinary_retry(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        memory_relay.disconnect(CloseCode.RESTARTING, "the relay is stopping; come back")
        await link.until(lambda link: link.state is LinkState.OFFLINE)
        assert "come back" in (link.last_error or "")
        await online(link)
        nursery.cancel_scope.cancel()


@virtual
async def test_a_relay_of_another_version_refuses(memory_relay: MemoryRelay) -> None:
    memory_relay.alter = lambda message: [replace(message, version=99) if isinstance(message, Challenge) else message]
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await refused(link)
        assert "version 99" in (link.last_error or "")
        nursery.cancel_scope.cancel()


@virtual
async def test_a_relay_that_goes_by_another_name_refuses(memory_relay: MemoryRelay) -> None:
    @asynccontextmanager
    async def elsewhere(origin: str) -> AsyncIterator[Transport]:
        async with memory_relay.dial(memory_relay.origin) as transport:
            yield transport

    async with trio.open_nursery() as nursery:
        link = await begin(nursery, elsewhere, "wss://other.test")
        await refused(link)
        assert "not a name of this relay" in (link.last_error or "")
        nursery.cancel_scope.cancel()


@virtual
async def test_a_login_that_does_not_end_is_given_up_and_tried_again(memory_relay: MemoryRelay) -> None:
    memory_relay.alter = lambda message: [] if isinstance(message, Challenge) else [message]
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        began = trio.current_time()
        await link.until(lambda link: link.state is LinkState.OFFLINE)
        assert trio.current_time() - began == LOGIN_SECONDS_MAX
        # The relay waits as long, and may be the first to say so.
        assert link.last_error in (
            "the relay did not finish the login in time",
            "the relay ended the connection: the login was not finished in time (4001)",
        )
        memory_relay.alter = None
        await online(link)
        nursery.cancel_scope.cancel()


# --- what a relay must not send


def too_much(message: Message) -> Sequence[Message]:
    """Far more deliveries than there is credit for."""
    if not isinstance(message, Subscribed):
        return [message]
    segment = bytes(200_000)
    delivers = [Deliver(VAULT, STREAM, TERM, 0, 0, 0, 0, n, n + 1, segment) for n in range(100)]
    return [message, *delivers]


class Silent:
    """A follower that never gets done with what it is to apply."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.taken = 0

    def online(self) -> None:
        self._link.handle(Listen(VAULT, (Wanted(STREAM, START, START),)))

    def offline(self) -> None:
        """The link keeps itself up."""

    def subscribed(self, message: Subscribed) -> None:
        """As expected."""

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        self.taken += len(delivers)
        return await trio.sleep_forever()

    def pushed(self, message: Pushed) -> None:
        """Nothing was pushed."""

    def fault(self, message: Fault) -> None:
        """Not a member."""

    def history_lost(self, stream: StreamId, reason: str) -> None:
        """There is none."""


@virtual
async def test_a_relay_that_sends_beyond_its_credit_is_refused(memory_relay: MemoryRelay) -> None:
    def lie(message: Message) -> Sequence[Message]:
        if isinstance(message, Fault):
            state = StreamState(STREAM, StreamKind.OPEN, 100, 0, 0, 0, 0, 0, (TermStart(TERM, 0),))
            return too_much(Subscribed(VAULT, TERM, 1, KeyId(b"key1"), 0, (state,)))
        return [message]

    memory_relay.alter = lie
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        link.follow(VAULT, Silent(link))
        await refused(link)
        assert "credit" in (link.last_error or "")
        nursery.cancel_scope.cancel()


# --- requests


def join(mailbox: bytes = b"no such mailbox.") -> Join:
    return Join(NO_REQUEST, MailboxId(mailbox), b"sealed")


@virtual
async def test_a_request_waits_for_the_connection_and_raises_what_the_relay_refuses(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        with pytest.raises(RelayRefusedError, match="no such invite") as caught:
            await link.request(join())
        assert caught.value.fault.code is FaultCode.NO_SUCH_MAILBOX
        nursery.cancel_scope.cancel()


def test_a_request_is_repeated_until_it_is_answered_wherever_the_connection_breaks() -> None:
    async def attempt(cut_after: int) -> bool:
        relay = MemoryRelay()
        relay.cut_after(cut_after)
        async with trio.open_nursery() as nursery:
            link = await begin(nursery, relay.dial)
            with pytest.raises(RelayRefusedError, match="no such invite"):
                await link.request(join())
            nursery.cancel_scope.cancel()
        return relay.dialled > 1

    @virtual
    async def test() -> None:
        assert [await attempt(k) for k in range(1, 7)] == [True] * 5 + [False], "login takes four messages"

    test()


@virtual
async def test_a_request_that_is_to_be_tried_later_is_tried_later(memory_relay: MemoryRelay) -> None:
    asked: list[float] = []

    def busy(message: Message) -> Sequence[Message]:
        if isinstance(message, Fault) and len(asked) < 2:
            asked.append(trio.current_time())
            return [replace(message, action=Action.RETRY, retry_ms=3_000)]
        return [message]

    memory_relay.alter = busy
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        with pytest.raises(RelayRefusedError, match="no such invite"):
            await link.request(join())
        assert trio.current_time() - asked[0] == 6
        nursery.cancel_scope.cancel()


@virtual
async def test_a_request_that_nobody_waits_for_any_more_is_not_repeated(memory_relay: MemoryRelay) -> None:
    memory_relay.stop()
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        with trio.move_on_after(60):
            await link.request(CreateVault(NO_REQUEST, b"a link"))
        memory_relay.start()
        await online(link)
        await trio.testing.wait_all_tasks_blocked()
        assert memory_relay.carried == 4, "the login and nothing else"
        nursery.cancel_scope.cancel()


@virtual
async def test_waiting_while_online_ends_with_the_event_or_after_a_lost_connection(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        event = trio.Event()
        await online(link)
        ended: list[bool] = []

        async def wait() -> None:
            await link.wait_while_online(event)
            ended.append(event.is_set())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        memory_relay.cut()
        await link.until(lambda link: link.state is not LinkState.ONLINE)
        assert ended == []
        await online(link)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [False]
        event.set()
        await wait()
        assert ended == [False, True]
        nursery.cancel_scope.cancel()


@virtual
async def test_cancelling_ends_the_connection_and_every_task(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        nursery.cancel_scope.cancel()
    assert memory_relay.connections == 0
    assert link.state is LinkState.OFFLINE
