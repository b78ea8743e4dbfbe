from sealwire_client.replica import Delivery
from sealwire_protocol.history import why_history_is_lost
from sealwire_protocol.ids import Position, TermStart
from tests.client.replica.support import T1, T2, Todos, apply, record
from tests.protocol.examples import stream_state

TERMS = (TermStart(T1, 0), TermStart(T2, 10))


def test_an_empty_replica_is_whole_from_the_floor_on(a: Todos) -> None:
    positions, number = a.replica.positions, a.todos.number

    def is_whole(floor: int) -> bool:
        positions.told(number, TERMS, floor)
        cursor, served, whole, _ = positions.standing(number)
        state = stream_state(head=20, terms=TERMS, floor=floor)
        return why_history_is_lost(state, cursor, served, whole) is None

    assert is_whole(12)
    a.deliver(0, record(3, "k", "milk", 1), term=T2)
    assert positions.standing(number).whole_from == Position(T2, 12)
    assert is_whole(12)
    assert not is_whole(13)
    a.deliver(3, last=13, term=T2)
    assert is_whole(13)


def test_the_greatest_cleaned_to_is_remembered(a: Todos) -> None:
    number = a.todos.number
    for term, prev, cleaned_to in ((T1, 0, 4), (T1, 1, 3), (T2, 2, 2)):
        apply(a.replica, a.todos, Delivery(term, prev, prev + 1, cleaned_to), [])
        served = a.replica.positions.standing(number).served
        assert served == (Position(T1, 4) if term == T1 else Position(T2, 2))
    assert a.replica.positions.standing(number).cursor == Position(T2, 3)
