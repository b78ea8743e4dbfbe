"""The device's end: what it checks of its history at SUBSCRIBED and at every DELIVER (R9, R10, R12)."""

import pytest

from sealwire_protocol import codec
from sealwire_protocol.client_session import ClientSession, ClientState
from sealwire_protocol.errors import Action, CloseCode, FaultCode, LocalMisuse, Outcome
from sealwire_protocol.events import (
    Apply,
    Arrived,
    Beside,
    ClientEffect,
    Close,
    HistoryLost,
    Listen,
    Received,
    Send,
    Ticked,
)
from sealwire_protocol.ids import START, Position, Term, TermStart
from sealwire_protocol.limits import ACK_DELAY_SECONDS, TERMS_TOLD_MAX
from sealwire_protocol.messages import Ack, Appended, Deliver, Fault, Message, Pushed, Subscribe
from tests.protocol.examples import (
    OTHER,
    STREAM,
    T1,
    T2,
    client_in,
    listening,
    records,
    stream_state,
    subscribed,
    wanted,
)
from tests.support.link import VAULT

WRITTEN = (TermStart(T1, 0),)
TWICE = (TermStart(T1, 0), TermStart(T2, 30))


def receive(session: ClientSession, message: Message, now: float = 0.0) -> list[ClientEffect]:
    return session.handle(Received(codec.encode(message), now))


def deliver(prev: int, last: int, floor: int = 0, term: Term = T1) -> Deliver:
    return Deliver(VAULT, STREAM, term, floor, 0, 0, 0, prev, last, records(prev + 1, last - prev))


def pushed(batch: int, first: int, count: int = 1, term: Term = T1) -> Pushed:
    return Pushed(VAULT, batch, Outcome.DONE, (Appended(STREAM, term, first, count),), ())


def again(session: ClientSession) -> None:
    """The relay makes the device subscribe again."""
    why = Fault(0, VAULT, FaultCode.TERM_CHANGED, Action.RESUBSCRIBE, 0, "a new term")
    assert any(not isinstance(effect, Arrived) for effect in receive(session, why))


def lost(effects: list[ClientEffect]) -> str | None:
    """Why history is lost, if it is said to be; the subscription has ended then."""
    return next((effect.reason for effect in effects if isinstance(effect, HistoryLost)), None)


def resubscribed(session: ClientSession, head: int, terms: tuple[TermStart, ...], floor: int = 0) -> str | None:
    again(session)
    return lost(receive(session, subscribed(stream_state(head=head, terms=terms, floor=floor), term=T2)))


# --- completeness (R10)


@pytest.mark.parametrize(
    ("cursor", "whole", "floor", "complete"),
    [
        (Position(T1, 5), START, 5, True),
        (Position(T1, 5), START, 6, False),
        (Position(T1, 5), Position(T1, 6), 6, True),
        (Position(T1, 5), Position(T2, 6), 6, False),
        (START, START, 9, True),
    ],
)
def test_a_floor_above_what_it_has_seen_is_noticed_when_it_subscribes(
    cursor: Position, whole: Position, floor: int, complete: bool
) -> None:
    session = client_in(ClientState.READY)
    session.handle(Listen(VAULT, (wanted(cursor=cursor),), (Beside(whole_from=whole),)))
    why = lost(receive(session, subscribed(stream_state(head=20, terms=WRITTEN, floor=floor))))
    assert (why is None) == complete
    assert ("forgotten deletions" in (why or "")) != complete


def test_a_floor_that_rises_above_it_while_it_catches_up_is_noticed_before_anything_is_applied() -> None:
    session = listening(stream_state(head=20, terms=WRITTEN), cursor=Position(T1, 5))
    assert [type(e) for e in receive(session, deliver(5, 8, floor=5))] == [Apply]
    assert [type(e) for e in receive(session, deliver(8, 9, floor=8))] == [Apply]
    last = deliver(9, 20, floor=10)
    [effect] = receive(session, last)
    assert isinstance(effect, HistoryLost) and "up to 10" in effect.reason and "stands at 9" in effect.reason
    assert receive(session, deliver(20, 21)) == []
    acks = [
        codec.decode(effect.data) for effect in session.handle(Ticked(ACK_DELAY_SECONDS)) if hasattr(effect, "data")
    ]
    assert acks == [Ack(len(codec.encode(last)) + len(codec.encode(deliver(20, 21))), ())], "its credit goes back"


def test_what_it_has_seen_at_a_floor_or_above_it_is_complete_again_at_the_next_page() -> None:
    session = listening(stream_state(head=20, terms=WRITTEN), cursor=Position(T1, 5))
    for prev, last, floor in ((5, 10, 5), (10, 15, 10), (15, 20, 12)):
        assert [type(e) for e in receive(session, deliver(prev, last, floor))] == [Apply]


def test_an_empty_replica_is_whole_from_the_floor_that_it_starts_with() -> None:
    session = listening(stream_state(head=20, terms=WRITTEN, floor=12))
    assert [type(e) for e in receive(session, deliver(0, 5, floor=12))] == [Apply]
    assert [type(e) for e in receive(session, deliver(5, 8, floor=12))] == [Apply]
    assert resubscribed(session, 20, WRITTEN, floor=12) is None
    assert "up to 13" in (resubscribed(session, 20, WRITTEN, floor=13) or "")


def test_a_newcomer_is_whole_from_the_floor_of_its_first_page_and_not_from_a_later_one() -> None:
    """The relay's floor may rise while it is on its way."""
    session = listening(stream_state(head=20, terms=WRITTEN, floor=2))
    assert [type(e) for e in receive(session, deliver(0, 5, floor=9))] == [Apply]
    assert [type(e) for e in receive(session, deliver(5, 8, floor=9))] == [Apply]
    assert "up to 10" in (lost(receive(session, deliver(8, 12, floor=10))) or "")


def test_what_is_not_applied_says_nothing_about_completeness() -> None:
    session = listening(stream_state(head=20, terms=WRITTEN), cursor=Position(T1, 5))
    for effects in (receive(session, deliver(2, 5, floor=9)), receive(session, deliver(7, 9, floor=9))):
        assert lost(effects) is None


def test_the_floor_it_was_whole_from_is_void_when_that_history_is_lost() -> None:
    session = listening(stream_state(head=20, terms=WRITTEN, floor=12), beside=Beside(Position(T1, 12)))
    receive(session, deliver(0, 5, floor=12))
    terms = (TermStart(T1, 0), TermStart(T2, 11))
    assert "forgotten deletions up to 13" in (resubscribed(session, 20, terms, floor=13) or "")


def test_a_floor_that_is_lower_than_one_that_was_told_is_noticed() -> None:
    for floor, noticed in ((12, False), (11, True)):
        session = listening(stream_state(head=20, terms=WRITTEN, floor=12), beside=Beside(Position(T1, 12)))
        receive(session, deliver(0, 5, floor=12))
        assert ("knows deletions again" in (resubscribed(session, 20, WRITTEN, floor=floor) or "")) is noticed
    for floor, noticed in ((3, False), (2, True)):
        session = listening(stream_state(head=20, terms=WRITTEN), beside=Beside())
        receive(session, deliver(0, 5, floor=3))
        assert ("knows deletions again" in (resubscribed(session, 20, WRITTEN, floor=floor) or "")) is noticed
    session = client_in(ClientState.READY)
    session.handle(Listen(VAULT, (wanted(cursor=Position(T1, 5)),), (Beside(dropped=4),)))
    why = lost(receive(session, subscribed(stream_state(head=20, terms=WRITTEN, floor=3))))
    assert "up to 4" in (why or "")


# --- answered writes (R12)


def test_an_answered_write_that_the_relay_does_not_know_is_noticed_when_it_subscribes() -> None:
    for at, known in ((Position(T1, 30), True), (Position(T1, 31), False), (Position(Term(1, b"x" * 8), 1), False)):
        session = client_in(ClientState.READY)
        session.handle(Listen(VAULT, (wanted(cursor=Position(T1, 5)),), (Beside(answered=(at,)),)))
        why = lost(receive(session, subscribed(stream_state(head=40, terms=TWICE))))
        assert (why is None) == known and ("had a write confirmed" in (why or "")) != known


def test_a_write_that_was_answered_on_this_connection_is_checked_at_the_next_subscribed() -> None:
    """Answered at 9, never delivered, and the relay was restored to 8 since."""
    for last, known in ((9, False), (8, True)):
        session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
        receive(session, pushed(1, last - 1, count=2))
        terms = (TermStart(T1, 0), TermStart(T2, 8))
        assert (resubscribed(session, 20, terms) is None) == known


def test_an_answered_write_that_was_delivered_is_covered_by_the_cursor() -> None:
    """It is an entry now: that a later term knows nothing beyond its own cursor is no loss."""
    session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
    receive(session, pushed(1, 6))
    receive(session, deliver(5, 6))
    receive(session, pushed(2, 7))
    assert "confirmed at 7" in (resubscribed(session, 6, WRITTEN) or "")
    session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
    receive(session, pushed(1, 6))
    receive(session, deliver(5, 6))
    assert resubscribed(session, 6, WRITTEN) is None


def test_a_write_that_is_answered_while_subscribed_is_on_its_way_may_be_newer_than_that() -> None:
    session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
    again(session)
    receive(session, pushed(1, 6))
    assert lost(receive(session, subscribed(stream_state(head=5, terms=WRITTEN)))) is None
    assert lost(receive(session, deliver(5, 6))) is None
    receive(session, pushed(2, 8))
    assert "confirmed at 8" in (resubscribed(session, 7, WRITTEN) or "")


@pytest.mark.parametrize("head", [5, 6])
def test_an_earlier_subscribed_may_be_older_than_a_write_that_was_answered_before_the_device_subscribed_anew(
    head: int,
) -> None:
    """Two SUBSCRIBEs are on their way, and the relay may have looked before the write: what it says to either tells
    nothing of a write that was answered after the first was sent."""
    session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
    session.handle(Listen(VAULT, (wanted(cursor=Position(T1, 5)),)))
    receive(session, pushed(1, 6))
    at = Position(T1, 6)
    session.handle(Listen(VAULT, (wanted(cursor=Position(T1, 5)),), (Beside(answered=(at,)),)))
    effects = receive(session, subscribed(stream_state(head=head, terms=WRITTEN)))
    assert lost(effects) is None and not any(isinstance(effect, Send) for effect in effects)
    effects = receive(session, subscribed(stream_state(head=11 - head, terms=WRITTEN)))
    assert lost(effects) is None
    [asked] = [effect.data for effect in effects if isinstance(effect, Send)]
    assert codec.decode(asked) == Subscribe(VAULT, (wanted(cursor=Position(T1, 5)),)), "nobody else would ask"
    assert "confirmed at 6" in (resubscribed(session, 5, WRITTEN) or ""), "it is checked as soon as one can tell"


def test_what_was_answered_before_the_first_of_two_subscribes_is_checked_at_both() -> None:
    listens = Listen(VAULT, (wanted(cursor=Position(T1, 5)),), (Beside(answered=(Position(T1, 6),)),))
    for heads in ((5,), (6, 5)):
        session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
        session.handle(listens)
        session.handle(listens)
        told = [lost(receive(session, subscribed(stream_state(head=head, terms=WRITTEN)))) for head in heads]
        assert "confirmed at 6" in (told.pop() or "") and not any(told)


def test_a_fault_that_may_be_the_answer_to_a_subscribe_lets_the_next_one_be_checked_in_full() -> None:
    session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
    session.handle(Listen(VAULT, (wanted(cursor=Position(T1, 5)),)))
    receive(session, pushed(1, 6))
    assert "confirmed at 6" in (resubscribed(session, 5, WRITTEN) or "")


def test_an_answer_of_nothing_and_one_for_a_stream_that_is_not_listened_to_are_no_positions() -> None:
    session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
    receive(session, pushed(1, 90, count=0))
    receive(session, Pushed(VAULT, 2, Outcome.DONE, (Appended(OTHER, T1, 90, 3),), ()))
    assert resubscribed(session, 5, WRITTEN) is None


def test_of_several_writes_the_greatest_of_each_term_is_kept() -> None:
    session = listening(stream_state(head=40, terms=TWICE), cursor=Position(T2, 35))
    receive(session, pushed(1, 31, term=T1))
    receive(session, pushed(2, 36, term=T2))
    receive(session, pushed(3, 20, term=T1))
    assert "confirmed at 31, but that history ends at 30" in (resubscribed(session, 40, TWICE) or "")


def test_a_relay_that_answers_under_term_after_term_is_left() -> None:
    session = listening(stream_state(head=5, terms=WRITTEN), cursor=Position(T1, 5))
    for number in range(TERMS_TOLD_MAX):
        assert len(receive(session, pushed(1, 6, term=Term(number, b"t" * 8)))) == 1
    [close] = receive(session, pushed(1, 6, term=Term(TERMS_TOLD_MAX, b"t" * 8)))
    assert isinstance(close, Close) and close.code is CloseCode.PROTOCOL_ERROR


# --- after it was reconciled


def test_it_listens_again_at_the_pinned_position() -> None:
    session = listening(stream_state(head=20, terms=WRITTEN), cursor=Position(T1, 5))
    assert lost(receive(session, deliver(5, 9, floor=7))) is not None
    pin = Position(T1, 20)
    effects = session.handle(Listen(VAULT, (wanted(cursor=pin, served=pin),), (Beside(Position(T1, 7)),)))
    assert [type(codec.decode(effect.data)) for effect in effects if hasattr(effect, "data")] == [Subscribe]
    assert lost(receive(session, subscribed(stream_state(head=21, terms=WRITTEN, floor=7)))) is None
    assert [type(e) for e in receive(session, deliver(20, 21, floor=7))] == [Apply]


def test_what_is_known_beside_is_given_for_each_stream_or_for_none() -> None:
    session = client_in(ClientState.READY)
    with pytest.raises(LocalMisuse, match="for each stream"):
        session.handle(Listen(VAULT, (wanted(), wanted(OTHER)), (Beside(),)))
    assert len(session.handle(Listen(VAULT, (wanted(), wanted(OTHER))))) == 1
    assert len(session.handle(Listen(VAULT, (wanted(), wanted(OTHER)), (Beside(), Beside())))) == 1
