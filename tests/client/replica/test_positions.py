import pytest

from sealwire_client.replica import Standing, Verdict
from sealwire_client.replica.positions import is_known, judge
from sealwire_protocol.ids import START, Position, Term, TermStart
from tests.client.replica.support import T1, T2, Todos, record

TERMS = (TermStart(T1, 0), TermStart(T2, 10))


@pytest.mark.parametrize(
    ("position", "known"),
    [
        (START, True),
        (Position(T1, 10), True),
        (Position(T1, 11), False),
        (Position(T2, 11), True),
        (Position(T2, 20), True),
        (Position(T2, 21), False),
        (Position(Term(2, b"another!"), 5), False),
    ],
)
def test_a_position_is_known_within_its_terms_end(position: Position, known: bool) -> None:
    assert is_known(position, TERMS, head=20) is known


@pytest.mark.parametrize(
    ("standing", "floor", "verdict"),
    [
        (Standing(Position(T2, 15), START, START, 0), 15, Verdict.CONTINUE),
        (Standing(Position(T2, 15), START, START, 0), 16, Verdict.INCOMPLETE),
        (Standing(Position(T2, 15), START, Position(T2, 16), 0), 16, Verdict.CONTINUE),
        (Standing(Position(T2, 15), START, Position(T1, 16), 0), 16, Verdict.INCOMPLETE),
        (Standing(Position(T1, 11), START, START, 0), 0, Verdict.LOST),
        (Standing(Position(T1, 5), Position(T1, 12), START, 0), 0, Verdict.LOST),
        (Standing(START, START, START, 0), 1, Verdict.INCOMPLETE),
    ],
)
def test_what_the_relay_tells_is_judged(standing: Standing, floor: int, verdict: Verdict) -> None:
    assert judge(standing, TERMS, 20, floor) is verdict


def test_an_empty_replica_is_whole_from_the_floor_on(a: Todos) -> None:
    positions, number = a.replica.positions, a.todos.number
    assert positions.told(number, TERMS, head=20, floor=12) is Verdict.CONTINUE
    a.deliver(0, record(3, "k", "milk", 1), term=T2)
    assert positions.told(number, TERMS, head=20, floor=12) is Verdict.CONTINUE
    assert positions.told(number, TERMS, head=20, floor=13) is Verdict.INCOMPLETE
    a.deliver(3, last=13, term=T2)
    assert positions.told(number, TERMS, head=20, floor=13) is Verdict.CONTINUE


def test_the_greatest_cleaned_to_is_remembered(a: Todos) -> None:
    from sealwire_client.replica import Delivery

    number = a.todos.number
    for term, prev, cleaned_to in ((T1, 0, 4), (T1, 1, 3), (T2, 2, 2)):
        a.replica.apply(a.todos, Delivery(term, prev, prev + 1, cleaned_to), [])
        served = a.replica.positions.standing(number).served
        assert served == (Position(T1, 4) if term == T1 else Position(T2, 2))
    assert a.replica.positions.standing(number).cursor == Position(T2, 3)
