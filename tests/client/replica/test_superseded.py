"""Answered writes that others have superseded, of which the relay has forgotten by what (R11, R12)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica import Delivery
from sealwire_protocol.ids import Position, TermStart
from sealwire_protocol.messages import StreamKind
from tests.client.replica.lost import BOTH, Relay, tombstone
from tests.client.replica.support import T1, Todos, apply, opened, record


@pytest.fixture(params=[StreamKind.OPEN, StreamKind.GUARDED], ids=["open", "guarded"])
def a(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, request.param) as todos:
        yield todos


def wrote(a: Todos, seq: int) -> None:
    """A write of x that was answered, and not delivered yet."""
    a.edit("x", "mine")
    assert a.answer(a.send(), first=seq, count=1) is not None


def test_an_empty_replica_that_takes_over_a_floor_takes_over_what_was_deleted_below_it(a: Todos) -> None:
    wrote(a, 3)
    a.replica.positions.told(a.todos.number, [TermStart(T1, 0)], 6)
    apply(a.replica, a.todos, Delivery(T1, 0, 9, floor=6), [record(9, "y", "y", 9)])
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"y": "y"}


def test_an_answered_write_below_a_floor_that_stands_is_an_entry(a: Todos) -> None:
    wrote(a, 3)
    a.replica.positions.told(a.todos.number, [TermStart(T1, 0)], 6)
    apply(a.replica, a.todos, Delivery(T1, 0, 9, floor=6), [a.own(3, "x", "mine", 1)])
    assert a.places() == (0, 0, 0, 0)
    assert (a.shown(), a.confirmed("x")) == ({"x": "mine"}, 1)


def test_a_purge_between_subscribing_and_the_first_page_is_one_too(a: Todos) -> None:
    wrote(a, 3)
    a.edit("z", "sent")
    number = a.send()
    a.replica.positions.told(a.todos.number, [TermStart(T1, 0)], 0)
    apply(a.replica, a.todos, Delivery(T1, 0, 5, floor=6), [record(5, "y", "y", 9)])
    assert a.replica.positions.standing(a.todos.number).whole_from == Position(T1, 6)
    a.answer(number, first=4, count=1)
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"y": "y"}


def test_an_answer_that_comes_after_the_deletion_was_forgotten_brings_nothing_back(a: Todos) -> None:
    a.edit("x", "mine")
    number = a.send()
    a.deliver(0, tombstone(3, "x", 7))
    apply(a.replica, a.todos, Delivery(T1, 3, 5, floor=3), [record(5, "y", "y", 9)])
    a.answer(number, first=1, count=1)
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"y": "y"}


def test_a_reconcile_lets_go_of_what_the_relay_has_deleted_and_forgotten(a: Todos) -> None:
    a.deliver(0, record(1, "y", "y", 1))
    wrote(a, 3)
    assert Relay(Position(T1, 9), BOTH[:1], record(1, "y", "y", 1), floor=6).settle(a).refills == 0
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"y": "y"}


def test_a_reconcile_leaves_answered_writes_beyond_the_pin(a: Todos) -> None:
    a.deliver(0, record(1, "y", "y", 1))
    wrote(a, 3)
    relay = Relay(Position(T1, 2), BOTH[:1], record(1, "y", "y", 1), floor=2)
    relay.pinned = relay.pinned._replace(head=5)
    relay.settle(a)
    assert a.places() == (0, 0, 1, 0)
    assert a.shown() == {"x": "mine", "y": "y"}
