"""What becomes of records that are given back, by the verdicts on them (R14)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica import Place
from sealwire_protocol.errors import Outcome, Refusal, RemoteFault
from sealwire_protocol.ids import START, Position, TermStart
from sealwire_protocol.messages import ATOMIC, REFILL, Refused, StreamKind
from tests.client.replica.lost import T3, Relay, batches, conflict, superseded
from tests.client.replica.support import T1, T2, Todos, opened, record


@pytest.fixture(params=[StreamKind.OPEN, StreamKind.GUARDED], ids=["open", "guarded"])
def a(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, request.param) as todos:
        yield todos


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, StreamKind.GUARDED) as todos:
        yield todos


def lose(a: Todos, *lost: str) -> None:
    """Entries that the relay has lost, and that are on their way back as batch 1."""
    a.deliver(0, *[record(seq, key, key, seq) for seq, key in enumerate(lost, 1)])
    assert Relay(START, ()).settle(a).refills == len(lost)


def test_a_superseded_refill_shows_what_the_log_says(a: Todos) -> None:
    lose(a, "x", "y")
    answered = a.answer(1, first=1, count=1, term=T2, refused=[superseded(1, 7)])
    assert answered is not None
    assert answered.winners == ((a.todos.stream, 7),)
    assert [(change.key, change.kind.value) for _, change in answered.changes] == [("y", "deleted")]
    assert a.shown() == {"x": "x"}
    assert a.places() == (0, 0, 1, 0)


def test_a_conflict_is_merged_from_nothing(guarded: Todos) -> None:
    a = guarded
    lose(a, "x")
    answered = a.answer(1, refused=[conflict(0, 4)])
    assert answered is not None
    assert (answered.again, answered.stuck) == (1, 0)
    assert a.waiting() == [("x", "x", None)]
    assert a.shown() == {"x": "x"}
    a.deliver(0, record(4, "x", "theirs", 9), term=T2)
    assert a.shown() == {"x": "x"}


def test_an_edit_that_waits_stands_for_a_refill_in_conflict(guarded: Todos) -> None:
    a = guarded
    lose(a, "x")
    a.edit("x", "mine")
    a.answer(1, refused=[conflict(0, 4)])
    assert a.waiting() == [("x", "mine", None)]


def test_an_answered_write_over_a_lost_entry_is_merged_with_all_that_was_lost(guarded: Todos) -> None:
    """What the entry beneath had changed is in no other record."""
    a = guarded
    a.deliver(0, record(2, "x", "one", 1))
    a.edit("x", "one, two")
    a.answer(a.send(), first=3, count=1)
    assert Relay(START, ()).settle(a).refills == 1
    a.answer(2, refused=[conflict(0, 4)])
    assert a.waiting() == [("x", "one, two", None)]


def test_an_answered_write_over_an_entry_that_is_left_is_merged_with_what_it_changed_of_it(guarded: Todos) -> None:
    a = guarded
    a.deliver(0, record(1, "x", "one", 1))
    a.edit("x", "one, two")
    a.answer(a.send(), first=3, count=1)
    assert Relay(Position(T1, 1), (TermStart(T1, 0),), record(1, "x", "one", 1)).settle(a).refills == 1
    a.answer(2, refused=[conflict(0, 4)])
    assert a.waiting() == [("x", "one, two", "one")]


def test_a_conflict_in_a_strict_collection_sets_all_of_it_aside(guarded: Todos) -> None:
    a = guarded
    a.replica.database.connection.execute("UPDATE _collection SET policy = 'strict'")
    lose(a, "x", "y")
    assert batches(a)[0][0] == REFILL | ATOMIC
    answered = a.answer(1, refused=[conflict(0, 4), Refused(0, 1, Refusal.ATOMIC, 0, b"")])
    assert answered is not None
    assert answered.stuck == 2
    assert a.stuck() == [("x", "x"), ("y", "y")]
    assert a.shown() == {}


def test_superseded_records_fail_no_atomic_refill(guarded: Todos) -> None:
    a = guarded
    a.replica.database.connection.execute("UPDATE _collection SET policy = 'strict'")
    lose(a, "x", "y")
    assert a.answer(1, first=1, count=1, term=T2, refused=[superseded(0, 3)]) is not None
    assert a.places() == (0, 0, 1, 0)


def is_hopeless(a: Todos, key: str) -> bool:
    """Whether the edit of a key was refused over what the log says of it now."""
    execute = a.replica.database.connection.execute
    (refused,) = execute("SELECT refused FROM _edit WHERE key = ?", (key,)).fetchone()
    return bool(refused == a.replica.claims.said(a.todos, key).replaced)


def test_a_write_that_is_refused_over_what_the_log_says_is_not_tried_again(guarded: Todos) -> None:
    a = guarded
    a.deliver(0, record(1, "x", "there", 1))
    a.edit("x", "mine")
    a.answer(a.send(), refused=[conflict(0, 2)])
    assert is_hopeless(a, "x")
    a.deliver(1, last=2)
    assert is_hopeless(a, "x")


@pytest.mark.parametrize("delivered", ["before both verdicts", "between them", "after both"])
@pytest.mark.parametrize("by", ["this device", "another"])
def test_a_write_refused_over_a_lost_entry_is_tried_again_when_that_is_back(
    guarded: Todos, delivered: str, by: str
) -> None:
    a, lost = guarded, record(1, "x", "lost", 1)
    a.deliver(0, lost)
    a.edit("x", "mine")
    a.send()
    assert Relay(START, ()).settle(a).refills == 1

    def deliver(when: str) -> None:
        if when == delivered:
            a.deliver(0, lost, term=T2)

    deliver("before both verdicts")
    a.answer(1, refused=[conflict(0, 0)])
    deliver("between them")
    if by == "this device":
        a.answer(2, first=1, count=1, term=T2)
    else:
        a.answer(2, refused=[superseded(0, 1)])
    deliver("after both")
    assert a.shown() == {"x": "mine"}
    assert a.replica.claims.said(a.todos, "x").rank == lost.rank
    assert not is_hopeless(a, "x")


def test_a_write_refused_over_a_lost_entry_is_tried_again_when_another_device_has_given_that_back(
    guarded: Todos,
) -> None:
    a, lost = guarded, record(1, "x", "lost", 1)
    a.deliver(0, lost)
    a.edit("x", "mine")
    a.answer(a.send(), refused=[conflict(0, 0)])
    assert a.replica.database.connection.execute("SELECT refused IS NULL FROM _edit").fetchall() == [(0,)]
    assert Relay(Position(T2, 1), (TermStart(T2, 0),), lost).settle(a).refills == 0
    assert a.replica.database.connection.execute("SELECT refused FROM _edit").fetchall() == [(None,)]


@pytest.mark.parametrize("outcome", [Outcome.CLONED, Outcome.STALE_NUMBER, Outcome.SEAL_AGAIN, Outcome.EPOCH_STALE])
def test_a_verdict_that_says_nothing_of_the_records_lets_them_be_compared_again(a: Todos, outcome: Outcome) -> None:
    lose(a, "x")
    answered = a.answer(1, outcome=outcome)
    assert answered is not None
    assert answered.lost == (a.todos.stream,)
    assert a.replica.outbox.sent.answered_at(a.todos.number) == (Position(T1, 1),)
    assert not a.replica.outbox.sent.has_doubtful(a.todos.vault)
    assert a.shown() == {"x": "x"}
    assert Relay(START, ()).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(T1, 1)])]


def test_a_device_that_may_not_write_gives_nothing_back(a: Todos) -> None:
    lose(a, "x")
    a.answer(1, outcome=Outcome.NOT_A_WRITER)
    assert a.shown() == {}
    assert a.stuck() == []


def test_refills_refused_for_good_are_kept_and_can_be_tried_again(a: Todos) -> None:
    lose(a, "x")
    a.answer(1, outcome=Outcome.QUOTA)
    assert a.stuck() == [("x", "x")]
    assert a.shown() == {"x": "x"}
    assert a.replica.outbox.aside.retry(a.todos, "x")
    assert a.waiting() == [("x", "x", None)]


def test_only_a_refill_can_be_superseded(a: Todos) -> None:
    a.edit("x", "mine")
    number = a.send()
    with pytest.raises(RemoteFault):
        a.answer(number, refused=[superseded(0)])


def test_a_refill_is_not_refused_in_parts_as_if_it_were_whole(a: Todos) -> None:
    lose(a, "x", "y")
    with pytest.raises(RemoteFault):
        a.answer(1, first=1, count=1, refused=[Refused(0, 0, Refusal.ATOMIC, 0, b"")])


def test_what_another_device_gave_back_first_is_recognised(a: Todos) -> None:
    lose(a, "x")
    a.deliver(0, record(1, "x", "x", 1), term=T2)
    assert a.confirmed("x") == 1
    assert a.answer(1, refused=[superseded(0, 1)]) is not None
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"x": "x"}


def test_a_strict_write_that_was_answered_and_is_lost_is_shown_from_then_on(guarded: Todos) -> None:
    a = guarded
    a.edit("x", "mine")
    a.answer(a.send(), first=3, count=1)
    connection = a.replica.database.connection
    connection.execute("UPDATE _sent SET n = -1")
    connection.execute(f"DELETE FROM {a.todos.table.name}")
    assert a.shown() == {}
    assert Relay(START, ()).settle(a).refills == 1
    assert a.shown() == {"x": "mine"}
    a.answer(2, first=1, count=1, term=T2)
    a.deliver(0, a.own(1, "x", "mine", 1), term=T2)
    assert a.shown() == {"x": "mine"}
    assert a.confirmed("x") == 1


def test_a_strict_write_on_its_way_hides_nothing_of_what_comes_back(guarded: Todos) -> None:
    a = guarded
    a.deliver(0, record(1, "x", "x", 1))
    a.edit("x", "mine")
    strict = a.send()
    connection, table = a.replica.database.connection, a.todos.table
    connection.execute("UPDATE _sent SET n = -1")
    connection.execute(f"UPDATE {table.name} SET title = 'x', _local = 0")
    connection.execute(f"DELETE FROM {table.shadow}")
    assert Relay(START, ()).settle(a).refills == 1
    a.answer(2, first=1, count=1, term=T2)
    a.replica.positions.told(a.todos.number, (TermStart(T2, 0),), 0)
    a.deliver(0, record(1, "x", "x", 1), term=T2)
    assert a.confirmed("x") == 1
    a.answer(strict, refused=[conflict(0, 2)])
    a.deliver(1, record(2, "x", "theirs", 9), term=T2)
    assert a.shown() == {"x": "theirs"}


def test_a_lost_entry_that_beat_an_answered_write_is_shown_and_comes_back_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path) as a:
        a.edit("x", "mine")
        number = a.send()
        a.deliver(0, record(1, "x", "theirs", 5))
        a.answer(number, first=2, count=1)
        assert a.shown() == {"x": "mine"}
        assert Relay(START, ()).settle(a).refills == 1
        assert a.shown() == {"x": "theirs"}
        a.answer(number + 1, first=1, count=1, term=T2)
        a.deliver(0, record(1, "x", "theirs", 5), term=T2)
        assert a.shown() == {"x": "theirs"}
        assert a.confirmed("x") == 5


def test_of_two_refills_of_an_entry_the_later_one_is_shown_and_stays(a: Todos) -> None:
    lose(a, "x")
    a.deliver(0, record(1, "x", "later", 7), term=T2)
    assert Relay(START, ()).settle(a).refills == 1
    assert a.shown() == {"x": "later"}
    a.answer(1, first=1, count=1, term=T3)
    a.deliver(0, record(1, "x", "x", 1), term=T3)
    assert a.shown() == {"x": "later"}
    a.answer(2, first=2, count=1, term=T3)
    a.deliver(1, record(2, "x", "later", 7), term=T3)
    assert a.shown() == {"x": "later"}
    assert a.confirmed("x") == 7


def test_a_refill_is_shown_once_the_write_is_gone_that_had_hidden_it(tmp_path: Path) -> None:
    with opened(tmp_path, StreamKind.OPEN) as a:
        first = record(1, "x", "first", 1)
        a.deliver(0, first)
        a.edit("x", "mine")
        mine = a.send()
        a.deliver(1, record(5, "x", "greater", 9))
        assert a.shown() == {"x": "mine"}
        assert Relay(Position(T1, 1), (TermStart(T1, 0),), first).settle(a).refills == 1
        a.answer(mine, first=2, count=1, term=T2)
        a.deliver(1, last=2, term=T2)
        assert a.shown() == {"x": "greater"}
        a.answer(mine + 1, first=3, count=1, term=T2)
        a.deliver(2, last=3, term=T2)
        assert a.shown() == {"x": "greater"}
        assert (a.confirmed("x"), a.places()) == (9, (0, 0, 0, 0))


def test_an_edit_over_a_lost_entry_is_shown_all_the_while(a: Todos) -> None:
    a.deliver(0, record(1, "x", "lost", 5))
    a.edit("x", "mine")
    assert Relay(START, ()).settle(a).refills == 1
    assert a.shown() == {"x": "mine"}


def test_a_refill_refused_for_good_takes_no_place_of_a_stuck_write_over_it(a: Todos) -> None:
    a.deliver(0, record(1, "x", "lost", 5))
    a.edit("x", "mine")
    a.answer(a.send(), outcome=Outcome.QUOTA)
    assert Relay(START, ()).settle(a).refills == 1
    answered = a.answer(2, outcome=Outcome.QUOTA)
    assert answered is not None
    assert a.stuck() == [("x", "mine")]
    assert a.shown() == {"x": "mine"}
    assert a.places() == (0, 0, 0, 1)


def test_a_write_that_the_relay_has_lost_is_on_this_device_alone_until_it_is_taken_back(a: Todos) -> None:
    mark = a.edit("x", "mine")
    a.answer(a.send(), first=1, count=1)
    assert a.standing(mark) is Place.RELAY
    assert Relay(START, ()).settle(a).refills == 1
    assert a.standing(mark) is Place.DEVICE
    a.answer(2, first=1, count=1, term=T2)
    assert a.standing(mark) is Place.RELAY


def test_what_was_taken_back_and_lost_again_and_given_back_by_another_device_waits_for_nothing(a: Todos) -> None:
    lose(a, "x")
    a.answer(1, first=1, count=1, term=T2)
    again = record(4, "x", "x", 1)
    assert Relay(Position(T3, 4), (TermStart(T3, 0),), again).settle(a).refills == 0
    assert a.places() == (0, 0, 0, 0)
    assert (a.shown(), a.confirmed("x")) == ({"x": "x"}, 1)
    assert Relay(Position(T3, 5), (TermStart(T3, 0),), again).settle(a).refills == 0
