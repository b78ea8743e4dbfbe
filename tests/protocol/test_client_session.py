"""The device's end: every (state, event), every (state, message), deliveries, credit, faults."""

from collections.abc import Callable

import pytest

from sealwire_protocol import codec
from sealwire_protocol.client_session import CLIENT_EVENTS, CLIENT_MESSAGES, ClientSession, ClientState
from sealwire_protocol.errors import Action, CloseCode, FaultCode, LocalMisuse, Outcome
from sealwire_protocol.events import (
    Applied,
    Apply,
    Arrived,
    ClientEffect,
    ClientEvent,
    Close,
    Doubt,
    HistoryLost,
    Listen,
    Lost,
    Opened,
    Received,
    Request,
    Send,
    Sign,
    Signed,
    Stop,
    Submit,
    Ticked,
)
from sealwire_protocol.ids import NO_TERM, Position, TermStart, VaultId
from sealwire_protocol.limits import (
    ACK_DELAY_SECONDS,
    CREDIT_BYTES_DEFAULT,
    CREDIT_BYTES_MIN,
    DELIVER_HEAD_BYTES_MAX,
    FRAME_BYTES_MIN,
    LOGIN_SECONDS_MAX,
    RESUBSCRIBE_SECONDS_MIN,
    RESUBSCRIBES_AT_ONCE_MAX,
    SEGMENT_BYTES_MAX,
    SUBSCRIBE_STREAMS_MAX,
    VERSION_TOP_MAX,
    Limits,
)
from sealwire_protocol.messages import (
    BY_TYPE,
    NO_REQUEST,
    NO_VAULT,
    REFILL,
    Ack,
    Challenge,
    CreateVault,
    Deliver,
    Done,
    Fault,
    Group,
    Message,
    Push,
    Pushed,
    StreamKind,
    Subscribe,
    Subscribed,
    Welcome,
)
from tests.protocol.examples import OTHER, STREAM, T1, T2, client_in, listening, records, stream_state, subscribed
from tests.protocol.examples import wanted as wants
from tests.protocol.vectors import full_message
from tests.support.link import VAULT

S = ClientState
WRITTEN = (TermStart(T1, 0),)

EVENTS: tuple[ClientEvent, ...] = (
    Opened(0.0),
    Ticked(0.0),
    Lost(),
    Stop(CloseCode.GOING_AWAY, "bye"),
    Signed(bytes(64)),
    Request(CreateVault(1, b"")),
    Listen(VAULT, (wants(),)),
    Doubt(VAULT, STREAM, "why"),
    Submit(Push(VAULT, T1, 1, 0, ())),
    Applied(VAULT, STREAM, Position(T1, 0), 0, 0.0),
)
LATE = (Ticked, Lost, Stop, Applied, Signed)
"""Echoes of what a driver was doing when the connection ended."""


def deliver(prev: int, last: int, term: object = T1, cleaned_to: int = 0, vault: VaultId = VAULT) -> Deliver:
    body = records(prev + 1, last - prev) if last > prev else b""
    return Deliver(vault, STREAM, term, 0, 0, 0, cleaned_to, prev, last, body)  # type: ignore[arg-type]


def receive(session: ClientSession, message: Message, now: float = 0.0) -> list[ClientEffect]:
    return session.handle(Received(codec.encode(message), now))


def sent(effects: list[ClientEffect]) -> list[Message]:
    """The messages among effects."""
    found = [codec.decode(effect.data) for effect in effects if isinstance(effect, Send)]
    return [message for message in found if message is not None]


def fault(code: FaultCode, action: Action, retry_ms: int = 0, vault: VaultId = VAULT, request: int = 0) -> Fault:
    return Fault(request, vault, code, action, retry_ms, "why")


def deadline(session: ClientSession) -> float | None:
    return session.deadline


def pushing(*batches: int) -> ClientSession:
    session = listening(stream_state())
    for number in batches:
        session.handle(Submit(Push(VAULT, T1, number, 0, ())))
    return session


# --- the tables


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", S)
def test_every_event_in_every_state(state: ClientState, event: ClientEvent) -> None:
    session = client_in(state)
    if isinstance(event, Submit) and state is S.READY:
        session = listening(stream_state())
    if (state, type(event)) in CLIENT_EVENTS:
        session.handle(event)
        assert (session.state is S.CLOSED) == isinstance(event, Lost | Stop)
    elif state is S.CLOSED and isinstance(event, LATE):
        assert session.handle(event) == []
    else:
        with pytest.raises(LocalMisuse, match=state.name):
            session.handle(event)
        assert session.state is state


@pytest.mark.parametrize("kind", BY_TYPE.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", S)
def test_every_message_in_every_state(state: ClientState, kind: type[Message]) -> None:
    session = client_in(state)
    message = full_message(kind)
    if isinstance(message, Welcome):
        message = Welcome(*Limits())
    if isinstance(message, Challenge):
        message = Challenge(1, bytes(32))
    effects = receive(session, message)
    if state is S.CLOSED:
        assert effects == []
    elif (state, kind) in CLIENT_MESSAGES:
        assert session.state is not S.CLOSED, effects
    else:
        [close] = effects
        assert isinstance(close, Close) and close.code is CloseCode.PROTOCOL_ERROR and not close.come_back
        assert kind.__name__ in close.reason and state.name in close.reason
        assert session.state is S.CLOSED


def test_the_tables_name_messages_of_relays_only() -> None:
    assert all(kind.TYPE >= 0xC0 for _, kind in CLIENT_MESSAGES)
    assert {kind for _, kind in CLIENT_MESSAGES} == {kind for kind in BY_TYPE.values() if kind.TYPE >= 0xC0}


def test_an_unknown_ancillary_message_is_ignored_and_an_unknown_critical_one_ends_the_connection() -> None:
    session = client_in(S.READY)
    assert session.handle(Received(b"\x7fnews", 0.0)) == []
    [close] = session.handle(Received(b"\xfenews", 0.0))
    assert isinstance(close, Close) and "newer version" in close.reason


def test_rubbish_closes_and_never_raises() -> None:
    for data in (b"", b"\xc4", b"\xc4" * 40):
        [close] = client_in(S.READY).handle(Received(data, 0.0))
        assert isinstance(close, Close) and close.code is CloseCode.PROTOCOL_ERROR


# --- login


def test_login_goes_through_its_states() -> None:
    session = client_in(S.IDLE)
    assert deadline(session) is None
    assert len(sent(session.handle(Opened(5.0)))) == 1
    assert deadline(session) == 5.0 + LOGIN_SECONDS_MAX
    ready = client_in(S.READY, now=5.0)
    assert deadline(ready) is None and ready.limits == Limits()


@pytest.mark.parametrize("state", (S.GREETED, S.SIGNING, S.PROVED))
def test_a_login_that_takes_too_long_is_given_up_and_may_be_tried_again(state: ClientState) -> None:
    session = client_in(state, now=5.0)
    assert session.handle(Ticked(5.0 + LOGIN_SECONDS_MAX - 0.1)) == []
    [close] = session.handle(Ticked(5.0 + LOGIN_SECONDS_MAX))
    assert isinstance(close, Close) and close.code is CloseCode.TOO_SLOW and close.come_back


@pytest.mark.parametrize("kind", [kind for kind in BY_TYPE.values() if kind.SINCE > 1])
def test_what_a_later_version_brought_is_neither_taken_nor_sent_under_an_older_one(kind: type[Message]) -> None:
    message, session = full_message(kind), client_in(S.READY, version=1)
    assert session.version == 1 and client_in(S.READY).version == 2
    if kind.TYPE < 0xC0:
        assert sent(client_in(S.READY).handle(Request(message))) == [message]
        with pytest.raises(LocalMisuse, match="version 1"):
            session.handle(Request(message))
    else:
        assert receive(client_in(S.READY), message) == [Arrived(message)]
        [close] = receive(session, message)
        assert isinstance(close, Close) and close.code is CloseCode.PROTOCOL_ERROR and "version 1" in close.reason


def test_a_refill_is_not_sent_under_a_version_that_has_none() -> None:
    session = client_in(S.READY, version=1)
    receive(session, subscribed())
    with pytest.raises(LocalMisuse, match="version 1"):
        session.handle(Submit(Push(VAULT, T1, 1, REFILL, ())))
    assert session.outstanding(VAULT) == frozenset()
    session = client_in(S.READY)
    receive(session, subscribed())
    assert len(session.handle(Submit(Push(VAULT, T1, 1, REFILL, ())))) == 1


def test_a_welcome_after_the_deadline_comes_too_late_even_if_no_tick_came_first() -> None:
    session = client_in(S.PROVED, now=5.0)
    [close] = receive(session, Welcome(*Limits()), now=5.0 + LOGIN_SECONDS_MAX)
    assert isinstance(close, Close) and close.code is CloseCode.TOO_SLOW


def test_another_version_is_refused_for_good() -> None:
    session = client_in(S.GREETED)
    [close] = session.handle(Received(b"\xc0\x00\x09" + bytes(32), 0.0))
    assert isinstance(close, Close) and close.code is CloseCode.VERSION_UNSUPPORTED and not close.come_back


@pytest.mark.parametrize(
    "limits",
    (Limits(credit_bytes=CREDIT_BYTES_MIN - 1), Limits(push_window=0), Limits(frame_bytes=FRAME_BYTES_MIN - 1)),
)
def test_a_relay_whose_limits_let_nothing_through_is_refused(limits: Limits) -> None:
    [close] = receive(client_in(S.PROVED), Welcome(*limits))
    assert isinstance(close, Close) and close.code is CloseCode.PROTOCOL_ERROR


def test_a_fault_before_login_reaches_the_parts_above() -> None:
    for state in (S.GREETED, S.SIGNING, S.PROVED):
        session = client_in(state)
        message = fault(FaultCode.OVERLOADED, Action.RETRY)
        assert receive(session, message) == [Arrived(message)]
        assert [type(e) for e in session.handle(Ticked(9.0))] == []


# --- subscriptions and deliveries


def test_a_delivery_is_applied_iff_it_joins_the_cursor() -> None:
    session = listening(stream_state(head=10, terms=WRITTEN), cursor=Position(T1, 4))
    data = codec.encode(deliver(2, 6))
    assert session.handle(Received(data, 0.0)) == [Apply(deliver(2, 6), len(data))]
    assert [type(e) for e in receive(session, deliver(6, 7))] == [Apply]


def test_a_duplicate_is_not_applied_and_its_credit_goes_back() -> None:
    session = listening(stream_state(head=10, terms=WRITTEN))
    receive(session, deliver(0, 6))
    size = len(codec.encode(deliver(0, 6)))
    assert receive(session, deliver(0, 6)) == [] and receive(session, deliver(0, 3)) == []
    [ack] = sent(session.handle(Ticked(ACK_DELAY_SECONDS)))
    assert ack == Ack(size + len(codec.encode(deliver(0, 3))), ())


def test_a_gap_makes_it_subscribe_again_at_its_cursor_and_ignore_what_is_on_its_way() -> None:
    session = listening(stream_state(head=10, terms=WRITTEN))
    receive(session, deliver(0, 3))
    [again] = sent(receive(session, deliver(5, 7)))
    assert isinstance(again, Subscribe)
    assert again == Subscribe(VAULT, (wants(cursor=Position(T1, 3), served=again.streams[0].served),))
    assert receive(session, deliver(3, 5)) == [] and receive(session, deliver(7, 9)) == []
    receive(session, subscribed(stream_state(head=10, terms=WRITTEN)))
    assert [type(e) for e in receive(session, deliver(3, 5))] == [Apply]


def test_another_term_makes_it_subscribe_again_even_below_its_cursor() -> None:
    """Else a replica at 100 keeps silent about a relay that was restored to 90 until that one has passed 100."""
    for frame in (deliver(0, 3, T2), deliver(3, 5, T2)):
        session = listening(stream_state(head=10, terms=WRITTEN), cursor=Position(T1, 3))
        [again] = sent(receive(session, frame))
        assert isinstance(again, Subscribe) and again.streams[0].cursor == Position(T1, 3)


def test_a_delivery_that_covers_nothing_ends_the_connection() -> None:
    for prev, last in ((3, 3), (9, 4), (5, 2)):
        session = listening(stream_state(head=10, terms=WRITTEN), cursor=Position(T1, 3))
        [close] = receive(session, deliver(prev, last))
        assert isinstance(close, Close) and close.code is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("wrong", (deliver(5, 7), deliver(0, 3, T2)), ids=("a gap", "another term"))
def test_a_delivery_that_never_joins_makes_it_subscribe_again_but_not_without_pause(wrong: Deliver) -> None:
    session = listening(stream_state(head=10, terms=WRITTEN))
    for _ in range(RESUBSCRIBES_AT_ONCE_MAX):
        assert [type(m) for m in sent(receive(session, wrong))] == [Subscribe]
        receive(session, subscribed(stream_state(head=10, terms=WRITTEN)))
    for now in range(10, 20):
        assert sent(receive(session, wrong, now)) == []
        assert Subscribe not in [type(m) for m in sent(session.handle(Ticked(now + 0.9)))]
        assert Subscribe in [type(m) for m in sent(session.handle(Ticked(now + RESUBSCRIBE_SECONDS_MIN)))]
        receive(session, subscribed(stream_state(head=10, terms=WRITTEN)), now + 1)
    assert Apply in [type(effect) for effect in receive(session, deliver(0, 3), 30)]
    assert [type(m) for m in sent(receive(session, wrong, 30))] == [Subscribe], "it has helped: at once again"


def test_what_is_delivered_before_subscribed_or_without_a_subscription_is_given_back() -> None:
    session = client_in(S.READY)
    session.handle(Listen(VAULT, (wants(),)))
    assert receive(session, deliver(0, 3)) == []
    assert receive(session, deliver(0, 3, vault=VaultId(b"W" * 16))) == []
    [ack] = sent(session.handle(Ticked(ACK_DELAY_SECONDS)))
    assert ack == Ack(2 * len(codec.encode(deliver(0, 3))), ())


def test_a_stream_that_was_absent_is_subscribed_again_when_its_first_record_comes() -> None:
    session = client_in(S.READY)
    session.handle(Listen(VAULT, (wants(),)))
    absent = stream_state()._replace(kind=StreamKind.ABSENT)
    receive(session, subscribed(absent))
    assert [type(m) for m in sent(receive(session, deliver(0, 3)))] == [Subscribe]
    receive(session, subscribed(stream_state(head=3, terms=WRITTEN)))
    assert [type(e) for e in receive(session, deliver(0, 3))] == [Apply]


def test_lost_history_ends_the_subscription_of_that_stream_alone() -> None:
    session = client_in(S.READY)
    at = Position(T2, 5)
    session.handle(Listen(VAULT, (wants(cursor=at), wants(OTHER))))
    effects = receive(session, subscribed(stream_state(head=9, terms=WRITTEN), stream_state(OTHER)))
    assert [type(e) for e in effects] == [Arrived, HistoryLost]
    assert receive(session, deliver(5, 6)) == []
    assert session.may_push(VAULT)


def test_a_device_that_doubts_what_it_holds_ends_the_subscription_as_if_history_were_lost() -> None:
    session = listening(stream_state())
    assert session.handle(Doubt(VAULT, OTHER, "why")) == [], "nothing is held of that one"
    assert session.handle(Doubt(VAULT, STREAM, "why")) == [HistoryLost(VAULT, STREAM, "why")]
    assert receive(session, deliver(0, 3)) == []
    session.handle(Listen(VAULT, (wants(),)))
    receive(session, subscribed(stream_state(head=3, terms=WRITTEN)))
    assert [type(e) for e in receive(session, deliver(0, 3))] == [Apply]


def test_it_tells_the_greatest_cleaned_to_that_it_was_served() -> None:
    session = listening(stream_state(head=10, terms=WRITTEN))
    receive(session, deliver(0, 3, cleaned_to=2))
    receive(session, deliver(3, 4, cleaned_to=1))
    [again] = sent(receive(session, deliver(9, 10)))
    assert isinstance(again, Subscribe) and again.streams[0].served == Position(T1, 2)


def test_a_listen_that_cannot_be_sent_changes_nothing() -> None:
    session = client_in(S.READY)
    streams = tuple(wants(STREAM.__class__(n.to_bytes(8, "big"))) for n in range(SUBSCRIBE_STREAMS_MAX + 1))
    for listen in (Listen(VAULT, streams), Listen(VAULT, (wants(), wants()))):
        with pytest.raises(LocalMisuse):
            session.handle(listen)
    receive(session, subscribed())
    assert sent(receive(session, fault(FaultCode.TERM_CHANGED, Action.RESUBSCRIBE))) == [Subscribe(VAULT, ())]


# --- credit


def test_credit_goes_back_at_half_a_window() -> None:
    session = listening(stream_state(head=10**6, terms=WRITTEN))
    session.limits = Limits(credit_bytes=2_000, segment_bytes=500)
    [first] = receive(session, deliver(0, 5))
    assert isinstance(first, Apply)
    assert session.handle(Applied(VAULT, STREAM, Position(T1, 5), first.frame_bytes, 0.0)) == []
    [second] = receive(session, deliver(5, 12))
    assert isinstance(second, Apply) and first.frame_bytes + second.frame_bytes >= 1_000
    [ack] = sent(session.handle(Applied(VAULT, STREAM, Position(T1, 12), second.frame_bytes, 0.0)))
    assert isinstance(ack, Ack) and ack.credit_bytes == first.frame_bytes + second.frame_bytes
    assert [acked.position for acked in ack.positions] == [Position(T1, 12)]


@pytest.mark.parametrize("granted", [CREDIT_BYTES_MIN, CREDIT_BYTES_MIN + 500, CREDIT_BYTES_DEFAULT])
def test_credit_that_is_kept_back_leaves_room_for_a_segment(granted: int) -> None:
    """The relay would not send the next one before the ACK that time brings."""
    session = listening(stream_state(head=10**6, terms=WRITTEN))
    session.limits = Limits(credit_bytes=granted)
    kept_back = seq = one = 0
    while kept_back < granted:
        [apply] = receive(session, deliver(seq, seq + 1))
        assert isinstance(apply, Apply)
        seq, one = seq + 1, apply.frame_bytes
        kept_back += one
        if sent(session.handle(Applied(VAULT, STREAM, Position(T1, seq), apply.frame_bytes, 0.0))):
            break
        assert granted - kept_back >= SEGMENT_BYTES_MAX + DELIVER_HEAD_BYTES_MAX
    assert kept_back <= granted // 2 + one


def test_credit_goes_back_after_a_while() -> None:
    session = listening(stream_state(head=10, terms=WRITTEN))
    [apply] = receive(session, deliver(0, 3), now=7.0)
    assert isinstance(apply, Apply) and deadline(session) is None
    session.handle(Applied(VAULT, STREAM, Position(T1, 3), apply.frame_bytes, 7.0))
    assert deadline(session) == 7.0 + ACK_DELAY_SECONDS and session.handle(Ticked(6.9 + ACK_DELAY_SECONDS)) == []
    assert len(sent(session.handle(Ticked(7.0 + ACK_DELAY_SECONDS)))) == 1 and deadline(session) is None


def test_more_than_was_delivered_cannot_be_given_back() -> None:
    session = listening(stream_state(head=10, terms=WRITTEN))
    [apply] = receive(session, deliver(0, 3))
    assert isinstance(apply, Apply)
    applied = Applied(VAULT, STREAM, Position(T1, 3), apply.frame_bytes, 0.0)
    session.handle(applied)
    with pytest.raises(LocalMisuse, match="another connection"):
        session.handle(applied)


# --- pushes


def test_a_push_needs_a_subscription_and_an_open_window() -> None:
    session = client_in(S.READY)
    with pytest.raises(LocalMisuse):
        session.handle(Submit(Push(VAULT, T1, 1, 0, ())))
    session = pushing(*range(1, 9))
    assert not session.may_push(VAULT) and session.outstanding(VAULT) == frozenset(range(1, 9))
    with pytest.raises(LocalMisuse):
        session.handle(Submit(Push(VAULT, T1, 9, 0, ())))
    receive(session, Pushed(VAULT, 1, Outcome.DONE, (), ()))
    assert session.may_push(VAULT)


def test_a_batch_is_not_sent_twice_while_it_is_unanswered() -> None:
    session = pushing(1)
    with pytest.raises(LocalMisuse, match="not answered"):
        session.handle(Submit(Push(VAULT, T1, 1, 0, ())))


def test_a_push_over_a_limit_is_our_mistake_and_leaves_the_window_as_it_was() -> None:
    session = pushing()
    segment = bytes(262_144)
    groups = tuple(Group(type(STREAM)(bytes([n]) * 8), b"", segment) for n in range(4))
    for push in (Push(VAULT, T1, 1, 0, groups), Push(VAULT, T1, 1 << 63, 0, ())):
        with pytest.raises(LocalMisuse):
            session.handle(Submit(push))
    assert session.outstanding(VAULT) == frozenset()


def test_a_request_without_a_number_is_our_mistake() -> None:
    with pytest.raises(LocalMisuse, match="number"):
        client_in(S.READY).handle(Request(CreateVault(NO_REQUEST, b"")))


# --- faults


@pytest.mark.parametrize("code", (FaultCode.TERM_CHANGED, FaultCode.BATCH_GAP, FaultCode.OVERLOADED))
def test_a_fault_that_says_resubscribe_voids_pushes_and_subscribes_once(code: FaultCode) -> None:
    session = pushing(1, 2)
    receive(session, deliver(0, 1, NO_TERM))
    message = fault(code, Action.RESUBSCRIBE)
    effects = receive(session, message)
    assert effects[0] == Arrived(message) and [type(m) for m in sent(effects)] == [Subscribe]
    assert not session.may_push(VAULT) and session.outstanding(VAULT) == frozenset()
    assert sent(receive(session, message)) == []
    receive(session, subscribed(stream_state(), term=T2))
    assert session.may_push(VAULT) and session.term_of(VAULT) == T2 and deadline(session) is None


def test_a_relay_that_never_stops_saying_resubscribe_is_not_obeyed_without_pause() -> None:
    session = pushing()
    message = fault(FaultCode.TERM_CHANGED, Action.RESUBSCRIBE)
    for _ in range(RESUBSCRIBES_AT_ONCE_MAX):
        assert [type(m) for m in sent(receive(session, message))] == [Subscribe]
        receive(session, subscribed(stream_state()))
    assert sent(receive(session, message, 10.0)) == [] and session.deadline == 10.0 + RESUBSCRIBE_SECONDS_MIN
    assert [type(m) for m in sent(session.handle(Ticked(11.0)))] == [Subscribe]
    receive(session, subscribed(stream_state()))
    receive(session, Pushed(VAULT, 1, Outcome.DONE, (), ()))
    assert [type(m) for m in sent(receive(session, message))] == [Subscribe], "a verdict came: at once again"


def test_a_relay_that_tells_of_a_version_that_leaves_no_room_is_refused() -> None:
    for top, ends in ((VERSION_TOP_MAX, False), (VERSION_TOP_MAX + 1, True)):
        session = client_in(S.READY)
        session.handle(Listen(VAULT, (wants(),)))
        effects = receive(session, subscribed(stream_state()._replace(top=top)))
        assert [type(effect) for effect in effects] == [Close if ends else Arrived]


def test_a_fault_that_says_retry_subscribes_again_when_its_time_has_come() -> None:
    """A refused push is not named in the FAULT: without this its place in the window would never come back."""
    session = pushing(*range(1, 9))
    effects = receive(session, fault(FaultCode.OVERLOADED, Action.RETRY, retry_ms=4_000), now=10.0)
    assert sent(effects) == [] and session.outstanding(VAULT) == frozenset() and not session.may_push(VAULT)
    assert deadline(session) == 14.0 and session.handle(Ticked(13.9)) == []
    assert [type(m) for m in sent(session.handle(Ticked(14.0)))] == [Subscribe]
    receive(session, subscribed(stream_state()))
    assert session.may_push(VAULT) and deadline(session) is None


def test_what_else_was_on_its_way_and_is_refused_too_does_not_make_it_come_back_sooner() -> None:
    session = pushing(1, 2)
    receive(session, fault(FaultCode.OVERLOADED, Action.RETRY, retry_ms=4_000), now=10.0)
    for action in (Action.RESUBSCRIBE, Action.RETRY):
        assert sent(receive(session, fault(FaultCode.NOT_SUBSCRIBED, action), now=10.1)) == []
        assert deadline(session) == 14.0


def test_a_refused_subscription_is_repeated_but_never_at_once() -> None:
    for action in (Action.RETRY, Action.RESUBSCRIBE):
        session = client_in(S.READY)
        session.handle(Listen(VAULT, (wants(),)))
        assert sent(receive(session, fault(FaultCode.OVERLOADED, action), now=10.0)) == []
        assert deadline(session) == 11.0
        assert sent(session.handle(Ticked(11.0))) == [Subscribe(VAULT, (wants(),))]


def test_a_new_subscription_does_not_call_off_that_a_voided_one_is_to_be_repeated() -> None:
    """One that was reconciled meanwhile is listened to again while the others wait for their time."""
    session = client_in(S.READY)
    session.handle(Listen(VAULT, (wants(STREAM),)))
    receive(session, subscribed(stream_state()))
    for code in (FaultCode.OVERLOADED, FaultCode.TERM_CHANGED):
        receive(session, fault(code, Action.RETRY), now=10.0)
        session.handle(Listen(VAULT, (wants(OTHER),)))
        receive(session, subscribed(stream_state(OTHER)))
        assert deadline(session) == 11.0
        assert sent(session.handle(Ticked(11.0))) == [Subscribe(VAULT, (wants(STREAM), wants(OTHER)))]
        receive(session, subscribed(stream_state(STREAM), stream_state(OTHER)))
        assert deadline(session) is None


def test_the_answer_for_one_stream_does_not_call_off_the_repeat_for_another() -> None:
    session = client_in(S.READY)
    session.handle(Listen(VAULT, (wants(STREAM),)))
    session.handle(Listen(VAULT, (wants(OTHER),)))
    receive(session, fault(FaultCode.OVERLOADED, Action.RETRY))
    receive(session, subscribed(stream_state(OTHER)))
    assert deadline(session) == 1.0
    receive(session, subscribed(stream_state(STREAM)))
    assert deadline(session) is None


def test_a_fault_that_says_stop_ends_pushing_and_a_vault_that_is_gone_is_forgotten() -> None:
    session = pushing(1)
    assert sent(receive(session, fault(FaultCode.NOT_ALLOWED, Action.STOP))) == []
    assert not session.may_push(VAULT) and deadline(session) is None
    session = listening(stream_state(head=3, terms=WRITTEN))
    receive(session, fault(FaultCode.NO_SUCH_VAULT, Action.STOP))
    assert receive(session, deliver(0, 3)) == []


def test_a_fault_about_a_request_touches_no_subscription() -> None:
    session = pushing(1)
    for message in (
        fault(FaultCode.NO_SUCH_VAULT, Action.STOP, request=7),
        fault(FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, request=7),
        fault(FaultCode.OVERLOADED, Action.RESUBSCRIBE, vault=NO_VAULT),
    ):
        assert receive(session, message) == [Arrived(message)]
    assert session.outstanding(VAULT) == {1}


def test_stop_and_lost_forget_every_deadline() -> None:
    ends: tuple[Callable[[], ClientEvent], ...] = (Lost, lambda: Stop(CloseCode.GOING_AWAY, "bye"))
    for end in ends:
        session = pushing(1)
        receive(session, fault(FaultCode.OVERLOADED, Action.RETRY))
        assert deadline(session) is not None
        session.handle(end())
        assert deadline(session) is None and not session.may_push(VAULT)
        assert receive(session, Done(1)) == []


def test_a_subscribed_in_another_term_voids_what_was_pushed_before() -> None:
    session = pushing(1)
    receive(session, subscribed(stream_state(), term=T1))
    assert session.outstanding(VAULT) == {1}
    receive(session, subscribed(stream_state(), term=T2))
    assert session.outstanding(VAULT) == frozenset()


def test_signing_is_asked_for_once() -> None:
    session = client_in(S.GREETED)
    effects = session.handle(Received(b"\xc0\x00\x01" + bytes(32), 0.0))
    assert [type(e) for e in effects] == [Sign]


def test_a_subscribed_that_nobody_asked_for_is_passed_on_only() -> None:
    session = client_in(S.READY)
    message: Subscribed = subscribed(stream_state())
    assert receive(session, message) == [Arrived(message)]
