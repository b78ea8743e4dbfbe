"""Pushes in a relay's session: the window, what is voided, and what waits for what."""

from dataclasses import replace

import pytest

from sealwire_protocol.errors import Action, CloseCode, FaultCode
from sealwire_protocol.events import (
    Answer,
    Do,
    Refuse,
    TermChanged,
)
from sealwire_protocol.faults import term_changed
from sealwire_protocol.ids import VaultId
from sealwire_protocol.limits import (
    PUSHES_PER_SESSION_MAX,
)
from sealwire_protocol.messages import (
    Fault,
    Pushed,
    Subscribe,
)
from sealwire_protocol.relay_session import (
    RelayState,
)
from tests.protocol.examples import (
    T2,
    relay_in,
    stream_state,
    subscribed,
    wanted,
)
from tests.protocol.sessions import closed, push, pushed, ready, receive, sent, subscribe
from tests.support.link import VAULT

ELSEWHERE = VaultId(b"W" * 16)


def test_a_push_needs_a_subscription() -> None:
    [fault] = sent(receive(relay_in(RelayState.READY), push(1)), Fault)
    assert (fault.code, fault.action, fault.vault) == (FaultCode.NOT_SUBSCRIBED, Action.RESUBSCRIBE, VAULT)


def test_a_push_under_another_term_voids_the_subscription_for_pushing() -> None:
    session = ready(stream_state())
    assert [f.code for f in sent(receive(session, push(1, T2)), Fault)] == [FaultCode.TERM_CHANGED]
    assert [f.code for f in sent(receive(session, push(2)), Fault)] == [FaultCode.NOT_SUBSCRIBED]


def test_what_follows_a_refused_push_waits_until_that_one_comes_again() -> None:
    """Its SUBSCRIBED may be on its way already; and under a new term a gap is legal (R16)."""
    session = relay_in(RelayState.READY)
    receive(session, Subscribe(VAULT, (wanted(),)))
    assert [f.code for f in sent(receive(session, push(5)), Fault)] == [FaultCode.NOT_SUBSCRIBED]
    session.handle(Answer(subscribed(stream_state())))
    assert [f.code for f in sent(receive(session, push(6)), Fault)] == [FaultCode.NOT_SUBSCRIBED]
    subscribe(session, stream_state())
    for number in (5, 6):
        assert receive(session, push(number)) == [Do(push(number))]


def test_what_follows_a_refused_push_waits_no_longer_once_that_one_is_answered() -> None:
    session = ready(stream_state())
    receive(session, push(5))
    receive(session, push(9, T2))
    receive(session, push(5))
    session.handle(pushed(5))
    subscribe(session, stream_state())
    assert receive(session, push(6)) == [Do(push(6))]


def test_the_window_is_kept_and_opens_with_each_answer() -> None:
    session = ready(stream_state())
    for number in range(1, 9):
        assert receive(session, push(number)) == [Do(push(number))]
    session.handle(pushed(1))
    assert receive(session, push(9)) == [Do(push(9))]
    assert closed(receive(session, push(10))) is CloseCode.PROTOCOL_ERROR


def test_repeating_one_number_does_not_widen_the_window() -> None:
    session = ready(stream_state())
    for _ in range(8):
        receive(session, push(1))
    assert closed(receive(session, push(1))) is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("code", (FaultCode.TERM_CHANGED, FaultCode.BATCH_GAP, FaultCode.OVERLOADED))
def test_after_a_refused_push_the_whole_window_is_free_again(code: FaultCode) -> None:
    """The FAULT voids all that is unanswered, on both sides; else an honest device goes over the window."""
    session = ready(stream_state())
    for number in range(1, 9):
        receive(session, push(number))
    refuse = Refuse(code, Action.RESUBSCRIBE, "why", vault=VAULT, batch=1)
    assert [f.code for f in sent(session.handle(refuse), Fault)] == [code]
    assert [f.code for f in sent(receive(session, push(9)), Fault)] == [FaultCode.NOT_SUBSCRIBED]
    subscribe(session, stream_state())
    for number in range(1, 9):
        assert receive(session, push(number)) == [Do(push(number))]
    assert session.handle(replace(refuse, batch=99)) == []


def test_a_subscription_answered_under_another_term_frees_the_whole_window() -> None:
    """The device voids its pushes when it reads the new term, and may fill the window at once."""
    session = ready(stream_state())
    for number in range(1, 9):
        receive(session, push(number))
    subscribe(session, stream_state(), term=T2)
    for number in range(1, 9):
        assert receive(session, push(number, T2)) == [Do(push(number, T2))]


def test_a_late_refusal_of_a_voided_push_is_not_told_again() -> None:
    session = ready(stream_state())
    receive(session, push(1))
    receive(session, push(2))
    session.handle(TermChanged(T2))
    subscribe(session, stream_state(), term=T2)
    assert session.handle(term_changed(VAULT, 1)) == []
    assert receive(session, push(3, T2)) == [Do(push(3, T2))]


def test_what_is_under_way_is_bounded_over_all_vaults_and_voids() -> None:
    session = ready(stream_state())
    for round_ in range(PUSHES_PER_SESSION_MAX // 8):
        for number in range(8):
            assert receive(session, push(number)) == [Do(push(number))], round_
        receive(session, push(9, T2))
        subscribe(session, stream_state())
    assert closed(receive(session, push(1))) is CloseCode.OVERLOADED


def test_a_verdict_is_passed_on_even_when_the_push_was_voided() -> None:
    session = ready(stream_state())
    receive(session, push(1))
    session.handle(TermChanged(T2))
    assert [m.batch for m in sent(session.handle(pushed(1)), Pushed)] == [1]
