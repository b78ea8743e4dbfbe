"""The relay's end: every (state, event), every (state, message), admission, subscriptions, credit, terms."""

from dataclasses import replace

import pytest

from sealwire_protocol import codec
from sealwire_protocol.errors import Action, CloseCode, FaultCode, LocalMisuse
from sealwire_protocol.events import (
    Answer,
    Close,
    Do,
    LinksReplaced,
    Lost,
    Noted,
    Opened,
    PageRead,
    Pump,
    Refuse,
    RelayEffect,
    RelayEvent,
    Resumed,
    Send,
    Signed,
    Stalled,
    Stop,
    TermChanged,
    Ticked,
)
from sealwire_protocol.ids import MEMBERSHIP, Position, StreamId, Term, TermStart, VaultId
from sealwire_protocol.limits import (
    CREDIT_BYTES_MIN,
    DELIVER_HEAD_BYTES_MAX,
    FRAME_BYTES_MAX,
    REQUEST_BYTES_WAITING_MAX,
    REQUESTS_MAX,
    SEGMENT_BYTES_MAX,
    STREAMS_PER_SESSION_MAX,
    SUBSCRIBE_STREAMS_MAX,
    TERMS_TOLD_MAX,
    Limits,
)
from sealwire_protocol.login import login_payload
from sealwire_protocol.messages import (
    ATOMIC,
    BY_TYPE,
    NO_REQUEST,
    REFILL,
    RESEAL,
    Ack,
    Acked,
    CreateVault,
    Deliver,
    Done,
    Fault,
    Fetch,
    Hello,
    Message,
    Prefix,
    Prove,
    Ranges,
    Reconcile,
    Records,
    StreamKind,
    Subscribe,
    Subscribed,
)
from sealwire_protocol.relay_session import (
    RELAY_EVENTS,
    RELAY_MESSAGES,
    RelaySession,
    RelayState,
)
from tests.protocol.examples import (
    DEVICE,
    OTHER,
    RELAY_NONCE,
    SIGNER,
    STREAM,
    T1,
    T2,
    relay_in,
    stream_state,
    subscribed,
    wanted,
)
from tests.protocol.sessions import closed, listener, page, push, ready, receive, sent, subscribe
from tests.protocol.vectors import full_message
from tests.support.link import ORIGIN, VAULT, verify

S = RelayState
ELSEWHERE = VaultId(b"W" * 16)
HELLO = Hello(1, 2, DEVICE, b"c" * 32, "")

EVENTS: tuple[RelayEvent, ...] = (
    Opened(0.0),
    Ticked(0.0),
    Lost(),
    Stop(CloseCode.RESTARTING, "bye"),
    Answer(Done(1)),
    Refuse(FaultCode.INTERNAL, Action.RETRY, "why", request=1),
    PageRead(VAULT, STREAM, (), 0),
    TermChanged(T2),
    LinksReplaced(VAULT),
    Stalled(),
    Resumed(),
)


# --- the tables


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", S)
def test_every_event_in_every_state(state: RelayState, event: RelayEvent) -> None:
    session = relay_in(state)
    if (state, type(event)) in RELAY_EVENTS:
        session.handle(event)
        assert (session.state is S.CLOSED) == isinstance(event, Lost | Stop)
    elif state is S.CLOSED:
        assert session.handle(event) == []
    else:
        with pytest.raises(LocalMisuse, match=state.name):
            session.handle(event)
        assert session.state is state


@pytest.mark.parametrize("kind", BY_TYPE.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", S)
def test_every_message_in_every_state(state: RelayState, kind: type[Message]) -> None:
    session = relay_in(state)
    message = full_message(kind)
    if isinstance(message, Prove):
        assert (state, kind) not in RELAY_MESSAGES or state is S.AWAITING_PROOF
        if state is S.AWAITING_PROOF:
            return  # a login of its own below
    if isinstance(message, Ack):
        message = replace(message, credit_bytes=0)
    effects = receive(session, message)
    if state is S.CLOSED:
        assert effects == []
    elif (state, kind) in RELAY_MESSAGES:
        assert session.state is not S.CLOSED, effects
    else:
        assert closed(effects) is CloseCode.PROTOCOL_ERROR
        assert session.state is S.CLOSED


def test_the_tables_name_messages_of_devices_only() -> None:
    assert {kind for _, kind in RELAY_MESSAGES} == {kind for kind in BY_TYPE.values() if 0x80 <= kind.TYPE < 0xC0}


def test_the_client_events_are_not_the_relays() -> None:
    with pytest.raises(LocalMisuse):
        relay_in(S.READY).handle(Signed(bytes(64)))  # type: ignore[arg-type]


# --- login


@pytest.mark.parametrize(("low", "high"), [(3, 4), (0, 0), (2, 1)])
def test_versions_that_do_not_meet_are_refused_for_good(low: int, high: int) -> None:
    assert closed(receive(relay_in(S.AWAITING_HELLO), replace(HELLO, version_min=low, version_max=high))) is (
        CloseCode.VERSION_UNSUPPORTED
    )


def test_a_newer_device_is_answered_in_the_version_of_the_relay() -> None:
    effects = receive(relay_in(S.AWAITING_HELLO), replace(HELLO, version_max=9))
    assert [effect.data[:3] for effect in effects if isinstance(effect, Send)] == [b"\xc0\x00\x02"]


def test_an_older_device_is_answered_in_its_own_version() -> None:
    session = relay_in(S.AWAITING_HELLO)
    effects = receive(session, replace(HELLO, version_max=1))
    assert [effect.data[:3] for effect in effects if isinstance(effect, Send)] == [b"\xc0\x00\x01"]
    assert session.version == 1


@pytest.mark.parametrize("kind", [kind for kind in BY_TYPE.values() if kind.SINCE > 1 and kind.TYPE < 0xC0])
def test_what_a_later_version_brought_ends_a_conversation_of_an_older_one(kind: type[Message]) -> None:
    assert receive(relay_in(S.READY), full_message(kind)) == [Do(full_message(kind))]
    assert closed(receive(relay_in(S.READY, version=1), full_message(kind))) is CloseCode.PROTOCOL_ERROR


def test_ranges_that_are_none_and_those_of_the_membership_log_end_the_connection() -> None:
    reconcile, fetch = full_message(Reconcile), full_message(Fetch)
    for message in (
        replace(reconcile, prefixes=(*reconcile.prefixes, Prefix(33, bytes(16)))),
        replace(reconcile, prefixes=(Prefix(1, b"\xab" + bytes(15)),)),
        replace(reconcile, stream=MEMBERSHIP),
        replace(fetch, stream=MEMBERSHIP),
    ):
        assert closed(receive(relay_in(S.READY), message)) is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("flags", [REFILL, RESEAL])
def test_a_refill_or_reseal_ends_a_conversation_of_a_version_that_has_none(flags: int) -> None:
    for version, refused in ((1, True), (2, False)):
        session = relay_in(S.READY, version=version)
        subscribe(session, stream_state())
        effects = receive(session, replace(push(1), flags=flags))
        assert isinstance(effects[0], Close) == refused


@pytest.mark.parametrize("flags", [RESEAL | ATOMIC, RESEAL | REFILL, 8])
def test_flags_of_a_push_that_mean_nothing_together_end_the_conversation(flags: int) -> None:
    session = relay_in(S.READY)
    subscribe(session, stream_state())
    assert closed(receive(session, replace(push(1), flags=flags))) is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("answer", (full_message(Ranges), full_message(Records)))
def test_ranges_and_records_make_room_for_the_next_request(answer: Message) -> None:
    session = relay_in(S.READY)
    for number in range(1, REQUESTS_MAX + 2):
        effects = receive(session, replace(full_message(Reconcile), request=number))
    assert effects == []
    assert [type(effect) for effect in session.handle(Answer(answer))] == [Send, Do]


@pytest.mark.parametrize("state", (S.AWAITING_HELLO, S.AWAITING_PROOF))
def test_a_login_that_takes_too_long_is_ended(state: RelayState) -> None:
    session = relay_in(state, now=5.0)
    assert session.deadline == 15.0 and session.handle(Ticked(14.9)) == []
    assert closed(session.handle(Ticked(15.0))) is CloseCode.TOO_SLOW


# --- subscriptions


def test_a_stream_is_pumped_from_its_cursor_and_then_live() -> None:
    session = relay_in(S.READY)
    assert subscribe(session, stream_state(head=30), cursor=10)[-1] == Pump()
    assert session.lagging() is listener(session) and listener(session).cursor == 10
    assert page(session, 20, 30, head=30) == [Send(bytes(100)), Send(bytes(100))]
    assert session.lagging() is None and listener(session).offer(30, 31, 50)
    assert not listener(session).offer(32, 33, 50)
    assert session.lagging() is listener(session)


def test_a_commit_between_the_read_and_its_arrival_is_not_missed() -> None:
    session = ready(stream_state(head=30))
    assert not listener(session).offer(30, 31, 50)
    assert page(session, 30, head=31)[-1] == Pump()
    assert session.lagging() is listener(session)


def test_a_page_read_twice_is_sent_once() -> None:
    session = ready(stream_state(head=30))
    assert page(session, 10, 20, head=30)[:-1] == [Send(bytes(100))] * 2
    assert page(session, 10, 20, 30, head=30) == [Send(bytes(100))]
    assert session.credit == session.limits.credit_bytes - 300


def test_nothing_is_delivered_while_a_subscription_is_unanswered() -> None:
    session = ready(stream_state())
    page(session, head=0)
    message = Subscribe(VAULT, (wanted(),))
    receive(session, message)
    receive(session, message)
    assert not listener(session).offer(0, 1, 50) and page(session, 1, head=1) == []
    session.handle(Answer(subscribed(stream_state(head=1))))
    assert session.lagging() is None
    assert Pump() in session.handle(Answer(subscribed(stream_state(head=1))))
    assert session.lagging() is listener(session)


def test_a_stream_created_while_the_store_was_asked_is_not_forgotten() -> None:
    session = relay_in(S.READY)
    receive(session, Subscribe(VAULT, (wanted(),)))
    assert not listener(session).offer(0, 3, 50)
    effects = session.handle(Answer(subscribed(stream_state()._replace(kind=StreamKind.ABSENT))))
    assert effects[-1] == Pump() and session.lagging() is listener(session)


def test_an_absent_stream_is_not_pumped_until_its_first_record() -> None:
    session = relay_in(S.READY)
    effects = subscribe(session, stream_state()._replace(kind=StreamKind.ABSENT))
    assert Pump() not in effects and session.lagging() is None
    assert not listener(session).offer(0, 3, 50) and session.lagging() is listener(session)


def test_two_lagging_streams_take_turns() -> None:
    session = ready(stream_state(head=1_000), stream_state(OTHER, head=1_000))
    served = []
    for turn in range(1, 7):
        behind = session.lagging()
        assert behind is not None
        served.append(behind.name[1])
        assert page(session, turn, head=1_000, stream=behind.name[1])[-1] == Pump()
    assert served.count(STREAM) == served.count(OTHER) == 3


def test_the_membership_log_goes_first() -> None:
    membership = StreamId(bytes(8))
    session = ready(stream_state(head=9), stream_state(membership, head=9), stream_state(OTHER, head=9))
    first = [session.lagging() for _ in range(4)]
    assert all(behind is listener(session, membership) for behind in first)


def test_a_subscription_that_names_a_stream_twice_is_refused() -> None:
    session = relay_in(S.READY)
    assert closed(receive(session, Subscribe(VAULT, (wanted(), wanted())))) is CloseCode.PROTOCOL_ERROR


def test_a_refused_subscription_may_be_repeated() -> None:
    """Else the stream waits for an answer for ever, and what was asked again is never delivered."""
    session = relay_in(S.READY)
    receive(session, Subscribe(VAULT, (wanted(),)))
    effects = session.handle(Refuse(FaultCode.OVERLOADED, Action.RETRY, "later", vault=VAULT))
    assert [fault.code for fault in sent(effects, Fault)] == [FaultCode.OVERLOADED]
    assert session.listeners == {}
    assert Pump() in subscribe(session, stream_state(head=5)) and session.lagging() is listener(session)


def test_a_refusal_leaves_a_later_subscription_to_the_same_stream_alone() -> None:
    session = relay_in(S.READY)
    receive(session, Subscribe(VAULT, (wanted(),)))
    receive(session, Subscribe(VAULT, (wanted(),)))
    session.handle(Refuse(FaultCode.OVERLOADED, Action.RETRY, "later", vault=VAULT))
    assert Pump() in session.handle(Answer(subscribed(stream_state(head=5))))


def test_a_vault_that_is_gone_is_not_delivered_even_by_who_still_holds_the_listener() -> None:
    session = ready(stream_state())
    page(session, head=0)
    held = listener(session)
    assert held.live
    receive(session, push(1))
    session.handle(Refuse(FaultCode.NO_SUCH_VAULT, Action.STOP, "removed", vault=VAULT, batch=1))
    assert not held.offer(0, 1, 50) and not held.offer(1, 2, 50)
    assert session.listeners == {} and session.lagging() is None


def test_an_ended_connection_takes_no_frame() -> None:
    session = ready(stream_state())
    page(session, head=0)
    held = listener(session)
    session.handle(Lost())
    assert not held.offer(0, 1, 50)


def test_streams_of_one_connection_are_limited() -> None:
    session = relay_in(S.READY)
    names = [StreamId(n.to_bytes(8, "big")) for n in range(STREAMS_PER_SESSION_MAX + 1)]
    step = SUBSCRIBE_STREAMS_MAX
    for at in range(0, STREAMS_PER_SESSION_MAX, step):
        receive(session, Subscribe(VAULT, tuple(wanted(name) for name in names[at : at + step])))
    assert session.state is S.READY
    assert closed(receive(session, Subscribe(VAULT, (wanted(names[-1]),)))) is CloseCode.PROTOCOL_ERROR


def test_an_answer_too_long_for_one_frame_comes_in_parts() -> None:
    terms = tuple(TermStart(Term(1 << 40 | n, bytes(8)), 1 << 40 | n) for n in range(TERMS_TOLD_MAX))
    states = tuple(stream_state(StreamId(bytes([n]) * 8), head=1 << 41, terms=terms) for n in range(20))
    session = relay_in(S.READY)
    effects = subscribe(session, *states)
    parts = [effect.data for effect in effects if isinstance(effect, Send)]
    assert len(parts) > 1 and all(len(part) <= FRAME_BYTES_MAX for part in parts)
    assert [state for part in sent(effects, Subscribed) for state in part.streams] == list(states)
    assert len(session.listeners) == 20 and session.lagging() is not None


# --- credit


def test_frames_beyond_the_credit_are_not_kept() -> None:
    granted = Limits(credit_bytes=CREDIT_BYTES_MIN)
    session = ready(stream_state(), granted=granted)
    page(session, head=0)
    half = CREDIT_BYTES_MIN // 2
    held = listener(session)
    assert held.offer(0, 1, half) and held.offer(1, 2, half) and not held.offer(2, 3, 1)
    assert session.credit == 0 and session.lagging() is None
    assert receive(session, Ack(1_000, ())) == []
    assert receive(session, Ack(CREDIT_BYTES_MIN - 1_000, ())) == [Pump()]
    assert session.lagging() is held


def test_a_segment_that_fits_with_its_head_is_what_pumping_waits_for() -> None:
    """Else a page whose first frame does not fit asks for the next page at once, again and again."""
    session = ready(stream_state(head=10))
    session.credit = SEGMENT_BYTES_MAX + DELIVER_HEAD_BYTES_MAX - 1
    assert session.lagging() is None
    assert page(session, 1, head=10, size=SEGMENT_BYTES_MAX + DELIVER_HEAD_BYTES_MAX) == []
    session.credit += 1
    assert session.lagging() is not None


def test_a_device_that_does_not_read_is_sent_nothing_more_until_it_does() -> None:
    session = ready(stream_state(head=1))
    page(session, 1, head=1)
    held = listener(session)
    assert held.offer(1, 2, 50)
    assert session.handle(Stalled()) == []
    assert not held.offer(2, 3, 50) and not session.has_room and session.lagging() is None
    assert page(session, 3, head=3) == []
    assert receive(session, Ack(50, ())) == []
    assert session.handle(Resumed()) == [Pump()]
    assert session.lagging() is held
    page(session, 3, head=3)
    assert held.live and held.offer(3, 4, 50)


def test_a_device_that_reads_again_and_lacks_nothing_is_not_pumped() -> None:
    session = relay_in(S.READY)
    session.handle(Stalled())
    assert session.handle(Resumed()) == []


def test_the_head_of_a_deliver_is_never_longer_than_its_limit() -> None:
    most = (1 << 63) - 1
    widest = Deliver(VAULT, STREAM, Term(most, bytes(8)), most, most, most, most, most, most, b"")
    assert len(codec.encode(widest)) == DELIVER_HEAD_BYTES_MAX


def test_more_credit_than_was_used_ends_the_connection() -> None:
    session = ready(stream_state())
    page(session, head=0)
    listener(session).offer(0, 1, 50)
    assert receive(session, Ack(50, ())) == []
    assert closed(receive(session, Ack(1, ()))) is CloseCode.PROTOCOL_ERROR


def test_acknowledged_positions_are_noted() -> None:
    acked = Acked(VAULT, STREAM, Position(T1, 5))
    assert Noted((acked,)) in receive(ready(stream_state()), Ack(0, (acked,)))


# --- terms


def test_a_new_term_is_told_once_for_each_vault() -> None:
    session = ready(stream_state())
    [fault] = sent(session.handle(TermChanged(T2)), Fault)
    assert (fault.code, fault.action, fault.vault) == (FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, VAULT)
    assert session.handle(TermChanged(T2)) == []
    subscribe(session, stream_state(), term=T2)
    assert session.handle(TermChanged(T2)) == []


def test_an_answer_read_before_the_term_changed_is_followed_by_the_fault() -> None:
    session = relay_in(S.READY)
    receive(session, Subscribe(VAULT, (wanted(),)))
    assert session.handle(TermChanged(T2)) == []
    effects = session.handle(Answer(subscribed(stream_state(), term=T1)))
    assert [f.code for f in sent(effects, Fault)] == [FaultCode.TERM_CHANGED]
    assert [f.code for f in sent(receive(session, push(1)), Fault)] == [FaultCode.NOT_SUBSCRIBED]


# --- the end of a membership log is replaced (R15)


def test_r15_who_listens_to_a_membership_log_whose_end_was_replaced_subscribes_again() -> None:
    session = ready(stream_state(MEMBERSHIP))
    assert session.handle(LinksReplaced(ELSEWHERE)) == []
    [fault] = sent(session.handle(LinksReplaced(VAULT)), Fault)
    assert (fault.code, fault.action, fault.vault) == (FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, VAULT)
    assert (VAULT, MEMBERSHIP) not in session.listeners, "nothing is sent from where it stands in the former log"
    assert session.handle(LinksReplaced(VAULT)) == [], "it has been told"


def test_r15_a_subscribe_that_waits_is_answered_from_the_log_that_stands_since() -> None:
    session = relay_in(S.READY)
    receive(session, Subscribe(VAULT, (wanted(MEMBERSHIP),)))
    assert session.handle(LinksReplaced(VAULT)) == []
    assert (VAULT, MEMBERSHIP) in session.listeners


# --- requests


def test_requests_beyond_those_under_way_wait_in_order() -> None:
    session = relay_in(S.READY)
    asked = [CreateVault(number, b"") for number in range(1, REQUESTS_MAX + 4)]
    done = [effect for message in asked for effect in receive(session, message)]
    assert done == [Do(message) for message in asked[:REQUESTS_MAX]]
    assert session.handle(Answer(Done(1)))[1:] == [Do(asked[REQUESTS_MAX])]
    refuse = Refuse(FaultCode.QUOTA, Action.STOP, "full", request=2)
    assert session.handle(refuse)[1:] == [Do(asked[REQUESTS_MAX + 1])]


def test_a_device_of_many_vaults_may_subscribe_to_all_of_them_at_once() -> None:
    session = relay_in(S.READY)
    vaults = [VaultId(number.to_bytes(16, "big")) for number in range(1, 200)]
    for vault in vaults:
        receive(session, Subscribe(vault, (wanted(),)))
    for vault in vaults:
        session.handle(Answer(replace(subscribed(stream_state(head=3)), vault=vault)))
    assert session.state is S.READY and len(session.listeners) == len(vaults)
    assert all(x.exists and not x.awaiting for x in session.listeners.values())


def test_what_waits_is_bounded_and_what_was_answered_does_not_count() -> None:
    session = relay_in(S.READY)
    message, most = CreateVault(1, bytes(8_000)), REQUESTS_MAX + REQUEST_BYTES_WAITING_MAX // 8_007
    for _ in range(2):
        for _ in range(most):
            session.handle(Answer(Done(1)))
        for _ in range(most):
            receive(session, message)
        assert session.state is S.READY
    assert closed(receive(session, message)) is CloseCode.OVERLOADED


def test_a_request_without_a_number_ends_the_connection() -> None:
    assert closed(receive(relay_in(S.READY), CreateVault(NO_REQUEST, b""))) is CloseCode.PROTOCOL_ERROR


def test_a_fault_says_what_fits() -> None:
    session = relay_in(S.READY)
    refuse = Refuse(FaultCode.INTERNAL, Action.STOP, "ü" * 2_000 + "\ud800", request=1)
    [fault] = sent(session.handle(refuse), Fault)
    assert fault.message == "ü" * 512


# --- attacks


def login(
    payload_of: RelaySession, origin: str = ORIGIN, now: float = 0.0, nonce: bytes = RELAY_NONCE
) -> list[RelayEffect]:
    """Prove to a session that awaits it, with a signature made for `nonce` and the relay's own name."""
    payload = login_payload((1, 2, 2), ORIGIN, DEVICE, HELLO.nonce, nonce)
    return receive(payload_of, Prove(origin, SIGNER.sign(payload).signature), now)


def test_s14_a_captured_login_is_refused_elsewhere_and_later() -> None:
    assert len(login(relay_in(S.AWAITING_PROOF))) == 2
    assert closed(login(relay_in(S.AWAITING_PROOF), nonce=b"q" * 32)) is CloseCode.LOGIN_REFUSED
    assert closed(login(relay_in(S.AWAITING_PROOF), origin="wss://evil.example.org")) is CloseCode.WRONG_ORIGIN
    assert closed(login(relay_in(S.AWAITING_PROOF), now=10.0)) is CloseCode.TOO_SLOW
    session = relay_in(S.AWAITING_PROOF)
    login(session)
    assert closed(login(session)) is CloseCode.PROTOCOL_ERROR


def test_s14_a_signature_for_another_name_of_the_relay_is_refused() -> None:
    session = RelaySession(frozenset({ORIGIN, "wss://other.example.org"}), RELAY_NONCE, verify)
    session.handle(Opened(0.0))
    receive(session, HELLO)
    assert closed(login(session, origin="wss://other.example.org")) is CloseCode.LOGIN_REFUSED


def test_what_is_refused_to_a_request_says_nothing_of_the_subscriptions_and_leaves_them() -> None:
    """Nor does the answer to a push that nobody waits for any more, and that is not told. Whoever is removed is told so
    about the vault as long as it is known to listen; else it would wait for ever."""
    session = ready(stream_state(head=3))
    receive(session, Reconcile(1, VAULT, STREAM, Position(T1, 3), (Prefix(0, bytes(16)),)))
    refused = session.handle(Refuse(FaultCode.NO_SUCH_VAULT, Action.STOP, "removed", request=1, vault=VAULT))
    assert [fault.request for fault in sent(refused, Fault)] == [1]
    assert session.handle(Refuse(FaultCode.NO_SUCH_VAULT, Action.STOP, "removed", vault=VAULT, batch=1)) == []
    assert list(session.listeners) == [(VAULT, STREAM)]
    told = session.handle(Refuse(FaultCode.NO_SUCH_VAULT, Action.STOP, "removed", vault=VAULT))
    assert [fault.request for fault in sent(told, Fault)] == [NO_REQUEST]
    assert session.listeners == {}


def test_s15_a_vault_of_others_is_answered_as_one_that_does_not_exist() -> None:
    """The session adds nothing to what the driver says: the same refusal gives the same bytes, whatever the vault."""
    answers = []
    for vault in (VAULT, ELSEWHERE):
        session = relay_in(S.READY)
        receive(session, Subscribe(vault, (wanted(),)))
        refused = session.handle(Refuse(FaultCode.NO_SUCH_VAULT, Action.STOP, "no such vault", vault=vault))
        pushes = receive(session, push(1, vault=vault))
        answers.append([replace(f, vault=VAULT) for f in sent(refused + pushes, Fault)])
        assert session.listeners == {} and session.lagging() is None
    assert answers[0] == answers[1] and len(answers[0]) == 2
