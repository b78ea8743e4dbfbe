"""A replica that is brought together with a relay that has lost, superseded or forgotten what it holds (R10 to R14)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sealwire_client.replica import (
    SET_ASIDE,
    Delivery,
    Differing,
    Incoming,
    Pinned,
    Room,
    Unopened,
)
from sealwire_protocol.errors import Outcome, RemoteFault
from sealwire_protocol.ids import START, Position, Term, TermStart
from sealwire_protocol.messages import REFILL, StreamKind
from sealwire_protocol.segment import Rank
from tests.client.replica.lost import (
    BOTH,
    ROOM,
    T3,
    T4,
    Relay,
    batches,
    lines_of,
    reseal,
    set_aside,
    superseded,
    tag_of,
    tombstone,
)
from tests.client.replica.support import T1, T2, Todos, apply, opened, record


@pytest.fixture(params=[StreamKind.OPEN, StreamKind.GUARDED], ids=["open", "guarded"])
def a(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, request.param) as todos:
        yield todos


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, StreamKind.GUARDED) as todos:
        yield todos


# --- what becomes of entries


def test_what_both_have_stays_as_it_is(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    relay = Relay(Position(T1, 2), BOTH[:1], record(1, "x", "one", 1), record(2, "y", "two", 2))
    assert relay.differing(a) == []
    assert relay.settle(a) == (0, 0, 0, ())
    assert a.shown() == {"x": "one", "y": "two"}
    assert a.replica.positions.standing(a.todos.number)[:2] == (Position(T1, 2), Position(T1, 2))


def test_an_entry_that_the_relay_has_lost_is_given_back_and_shown_all_the_while(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "lost", 2))
    relay = Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1))
    assert relay.settle(a)[:3] == (1, 0, 0)
    assert a.shown() == {"x": "one", "y": "lost"}
    assert batches(a) == [(REFILL, b"<y>", [Position(T1, 2)])]
    assert a.places() == (0, 1, 0, 0)
    assert a.confirmed("y") is None
    a.answer(1, first=2, count=1, term=T2)
    assert a.places() == (0, 0, 1, 0)
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 1)), 0)
    a.deliver(1, record(2, "y", "lost", 2), term=T2)
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"x": "one", "y": "lost"}
    assert a.confirmed("y") == 2
    assert Relay(Position(T2, 2), BOTH[:1], record(1, "x", "one", 1), record(2, "y", "lost", 2)).differing(a) == []


def test_positions_of_an_unknown_term_are_lost_too(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), term=T3)
    assert Relay(Position(T1, 5), BOTH[:1]).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(T3, 1)])]


def test_a_refill_tells_how_terms_came_about_that_the_relay_does_not_know(a: Todos) -> None:
    """The relay has used the numbers of lost terms again: they do not tell where the loss began."""
    again = TermStart(Term(3, b"another3"), 5)
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 8), TermStart(T3, 9)), 0)
    a.deliver(0, record(4, "kept", "one", 1))
    a.deliver(4, record(6, "w", "lost", 2))
    a.deliver(6, record(9, "x", "lost", 3), term=T2)
    a.deliver(9, record(11, "y", "lost", 4), record(12, "z", "lost", 5), term=T3)
    kept = record(4, "kept", "one", 1)
    assert Relay(Position(again.term, 9), (TermStart(T1, 0), again), kept).settle(a).refills == 4
    before = Position(T2, 9), Position(T1, 8)
    assert lines_of(a) == [
        [(Position(T1, 6),), before, (Position(T3, 11), *before), (Position(T3, 12), *before)],
    ]


def test_a_refill_tells_where_it_left_a_term_that_has_grown_since(a: Todos) -> None:
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 2)), 0)
    a.deliver(0, record(3, "x", "lost", 1), term=T2)
    assert Relay(Position(T1, 7), BOTH[:1], record(7, "y", "new", 2)).settle(a).refills == 1
    assert lines_of(a) == [[(Position(T2, 3), Position(T1, 2))]]


def test_a_refill_that_is_lost_on_its_way_still_tells_how_its_history_came_about(a: Todos) -> None:
    """The relay was set back twice, and tells other terms by now."""
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 2)), 0)
    a.deliver(0, record(3, "x", "lost", 1), term=T2)
    assert Relay(Position(T3, 3), (TermStart(T1, 0), TermStart(T3, 1))).settle(a).refills == 1
    first = lines_of(a)
    a.answer(1, outcome=Outcome.STALE_NUMBER)
    assert Relay(Position(T4, 3), (TermStart(T1, 0), TermStart(T4, 1))).settle(a).refills == 1
    assert lines_of(a) == first == [[(Position(T2, 3), Position(T1, 2))]]
    a.answer(2, first=4, count=1, term=T4)
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T4, 1)), 0)
    a.deliver(3, record(4, "x", "lost", 1), term=T4)
    assert Relay(Position(T3, 9), (TermStart(T1, 0), TermStart(T3, 1))).settle(a).refills == 1
    assert a.replica.positions.lost_terms(a.todos.number, ()).keys() >= {T4}


def test_a_lost_tombstone_is_given_back_and_stays_hidden(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), tombstone(2, "x", 2))
    relay = Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1))
    assert relay.settle(a).refills == 1
    assert a.shown() == {}
    assert a.confirmed("x") == 1
    assert a.answer(1, refused=[superseded(0)]) is not None
    assert a.shown() == {"x": "one"}


def test_what_was_superseded_or_deleted_meanwhile_is_dropped(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    relay = Relay(Position(T1, 9), BOTH[:1], record(2, "y", "two", 2))
    assert relay.settle(a)[:3] == (0, 1, 0)
    assert a.shown() == {"y": "two"}
    assert batches(a) == []


def test_what_the_relay_has_is_taken_also_where_its_rank_is_lesser(a: Todos) -> None:
    a.deliver(0, record(1, "x", "greater", 8), record(2, "y", "lesser", 2))
    relay = Relay(
        Position(T1, 9), BOTH[:1], record(7, "x", "theirs", 3), record(8, "y", "newer", 4), record(9, "z", "new", 5)
    )
    assert relay.settle(a)[:3] == (0, 0, 3)
    assert a.shown() == {"x": "theirs", "y": "newer", "z": "new"}
    assert (a.confirmed("x"), a.confirmed("y"), a.confirmed("z")) == (3, 4, 5)
    assert relay.differing(a) == []


def test_a_lost_entry_gives_way_to_a_greater_one_in_an_open_stream(tmp_path: Path) -> None:
    with opened(tmp_path) as a:
        a.deliver(0, record(6, "x", "lost", 1))
        assert Relay(Position(T2, 6), BOTH, record(6, "x", "theirs", 2)).settle(a)[:3] == (0, 0, 1)
        assert a.shown() == {"x": "theirs"}


def test_of_a_lost_entry_in_a_guarded_stream_the_relay_decides_whatever_it_has(guarded: Todos) -> None:
    a = guarded
    a.deliver(0, record(6, "x", "lost", 1))
    assert Relay(Position(T2, 6), BOTH, record(6, "x", "theirs", 2)).settle(a)[:3] == (1, 0, 1)
    assert a.shown() == {"x": "lost"}
    assert a.confirmed("x") == 2


def test_entries_that_agree_move_to_the_pin_only_from_positions_that_are_lost(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(8, "y", "two", 2))
    relay = Relay(Position(T2, 7), BOTH, record(1, "x", "one", 1), record(6, "y", "two", 2))
    assert relay.settle(a)[:3] == (0, 0, 0)
    rows = a.replica.database.connection.execute(
        f"SELECT key, number, _seq FROM {a.todos.table.name} JOIN _term ON id = _term ORDER BY key"
    ).fetchall()
    assert rows == [("x", 1, 1), ("y", 2, 7)]


def test_records_beyond_the_pin_in_a_history_that_is_known_take_no_part(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(4, "y", "beyond", 2))
    pinned = Pinned(Position(T1, 2), BOTH[:1], 9, 0, 0, 0)
    assert a.replica.reconciling.reaches_beyond(a.todos, pinned)
    items = a.replica.reconciling.gather(a.todos, -1, 9, tag_of, pinned).items
    assert [item[:16] for item in items] == [tag_of("x")]
    assert not a.replica.reconciling.reaches_beyond(a.todos, pinned._replace(pin=Position(T1, 4)))


def test_an_empty_relay_gets_everything_back_in_batches_that_it_takes(a: Todos) -> None:
    a.deliver(0, *[record(seq, f"k{seq}", f"t{seq}", seq) for seq in range(1, 8)])
    assert Relay(START, ()).settle(a, room=Room(3, 100_000)).refills == 7
    assert [found[1].count(b"<") for found in batches(a)] == [3, 3, 1]
    assert a.replica.positions.standing(a.todos.number)[:3] == (START, START, START)
    assert len(a.shown()) == 7


def test_bytes_bound_a_batch_as_well(a: Todos) -> None:
    a.deliver(0, *[record(seq, f"k{seq}", f"t{seq}", seq) for seq in range(1, 8)])
    Relay(START, ()).settle(a, room=Room(100, 40))
    assert [found[1].count(b"<") for found in batches(a)] == [2, 2, 2, 1]


def test_a_replica_that_has_moved_since_it_was_gathered_is_left_alone(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    pinned = Pinned(START, (), 0, 0, 0, 0)
    rank = Rank(1, 0, 9, b"saltsalt").pack()
    settle = a.replica.reconciling.settle
    assert settle(a.todos, Position(T1, 7), pinned, [Differing(1, rank, None)], [], reseal, ROOM) is None
    assert settle(a.todos, Position(T1, 1), pinned, [Differing(1, rank[::-1], None)], [], reseal, ROOM) is None
    assert settle(a.todos, Position(T1, 1), pinned, [Differing(2, rank, None)], [], reseal, ROOM) is None
    assert batches(a) == []
    assert a.cursor() == 1


def test_a_reconcile_that_fails_in_its_midst_has_done_nothing(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    relay = Relay(Position(T1, 1), BOTH[:1])
    differing = relay.differing(a)

    def broken() -> Iterator[tuple[Sequence[Incoming], Sequence[Unopened]]]:
        yield [record(1, "z", "new", 1)], []
        raise RemoteFault("what came then is no record")

    with pytest.raises(RemoteFault):
        a.replica.reconciling.settle(a.todos, Position(T1, 2), relay.pinned, differing, broken(), reseal, ROOM)
    assert batches(a) == []
    assert a.shown() == {"x": "one", "y": "two"}
    assert a.cursor() == 2
    assert relay.settle(a)[:2] == (1, 1)


def test_versions_that_the_relay_knows_are_passed_from_then_on(a: Todos) -> None:
    relay = Relay(Position(T1, 3), BOTH[:1], record(3, "x", "one", 8))
    relay.pinned = relay.pinned._replace(top=20)
    relay.settle(a)
    a.edit("y", "mine")
    taken = a.take()
    assert taken is not None
    assert taken.groups[0].first_version == 21


def test_what_came_under_a_lost_term_but_was_written_before_the_loss_is_not_lost(a: Todos) -> None:
    """A delivery is of the newest term, whenever its records were written: all of a newcomer's come under that."""
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 5)), 0)
    old = record(1, "agrees", "one", 1), record(2, "changed", "old", 2), record(3, "deleted", "old", 3)
    a.deliver(0, *old, record(4, "lost", "lost", 4), record(6, "newer", "lost", 5), term=T2)
    relay = Relay(
        Position(T3, 6),
        (TermStart(T1, 0), TermStart(T3, 3)),
        old[0],
        record(4, "changed", "new", 9),
        record(5, "newer", "new", 10),
    )
    guarded = a.todos.kind is StreamKind.GUARDED
    assert relay.settle(a)[:3] == (2 if guarded else 1, 1, 2)
    assert batches(a)[0][1] == (b"<lost><newer>" if guarded else b"<lost>")
    assert lines_of(a)[0][0] == (Position(T1, 4),)
    assert (a.confirmed("changed"), a.confirmed("agrees")) == (9, 1)
    assert "deleted" not in a.shown()


def test_what_was_written_before_the_loss_stays_so_in_the_next_one(a: Todos) -> None:
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 5)), 0)
    kept = record(1, "x", "one", 1)
    a.deliver(0, kept, term=T2)
    assert Relay(Position(T3, 6), (TermStart(T1, 0), TermStart(T3, 3)), kept).settle(a)[:3] == (0, 0, 0)
    assert Relay(Position(T4, 6), (TermStart(T1, 0), TermStart(T4, 3))).settle(a)[:3] == (0, 1, 0)


def test_histories_part_where_the_newest_term_of_both_ends_in_either(a: Todos) -> None:
    """Here two terms were told after it, and the relay went on under it."""
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 2), TermStart(T3, 4)), 0)
    a.deliver(0, record(2, "kept", "one", 1), record(3, "lost", "two", 2), term=T3)
    assert Relay(Position(T1, 8), BOTH[:1]).settle(a)[:2] == (1, 1)
    assert lines_of(a) == [[(Position(T2, 3), Position(T1, 2))]]


# --- edits, and writes on their way


def test_unsent_edits_stay_and_are_shown(a: Todos) -> None:
    a.deliver(0, record(1, "gone", "old", 1), record(2, "kept", "old", 2), record(3, "lost", "old", 3))
    for key in ("gone", "kept", "lost"):
        a.edit(key, "mine")
    relay = Relay(Position(T2, 9), (TermStart(T1, 0), TermStart(T2, 2)), record(9, "kept", "theirs", 9))
    assert relay.settle(a)[:3] == (1, 0, 1)
    assert a.shown() == {"gone": "mine", "kept": "mine", "lost": "mine"}
    assert [key for key, _, _ in a.waiting()] == ["gone", "kept", "lost"]
    assert (a.confirmed("gone"), a.confirmed("kept"), a.confirmed("lost")) == (None, 9, None)


def test_an_edit_over_a_lost_entry_waits_for_it_and_outlives_it(a: Todos) -> None:
    a.deliver(0, record(1, "x", "lost", 1))
    a.edit("x", "mine")
    assert Relay(START, ()).settle(a).refills == 1
    assert a.take() is None
    a.answer(1, refused=[superseded(0)])
    assert a.shown() == {"x": "mine"}
    taken = a.take()
    assert taken is not None


def test_an_answered_write_whose_position_is_lost_is_given_back(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    a.edit("x", "mine")
    number = a.send()
    a.answer(number, first=3, count=1)
    assert a.places() == (0, 0, 1, 0)
    assert a.replica.outbox.sent.answered_at(a.todos.number) == (Position(T1, 3),)
    assert Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1)).settle(a).refills == 1
    assert a.places() == (0, 1, 0, 0)
    assert a.shown() == {"x": "mine"}
    assert batches(a) == [(REFILL, b"<x>", [Position(T1, 3)])]


def test_an_answered_write_that_the_relay_still_has_is_no_refill(a: Todos) -> None:
    a.edit("x", "mine")
    number = a.send()
    a.answer(number, first=3, count=1)
    own = a.own(2, "x", "mine", 1)
    assert Relay(Position(T2, 2), (*BOTH[:1], TermStart(T2, 1)), own).settle(a)[:3] == (0, 0, 1)
    assert a.places() == (0, 0, 0, 0)
    assert a.confirmed("x") == 1


def test_a_write_answered_while_both_were_compared_is_not_lost(a: Todos) -> None:
    """What others have made of it since would be merged with it as if they had not known it."""
    a.edit("x", "mine")
    a.answer(a.send(), first=2, count=1, term=T2)
    relay = Relay(Position(T1, 1), BOTH[:1], record(1, "y", "one", 1))
    relay.pinned = relay.pinned._replace(present=T2)
    assert relay.settle(a).refills == 0
    assert a.places() == (0, 0, 1, 0)
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 1)), 0)
    a.deliver(1, a.own(2, "x", "mine", 1), record(3, "x", "theirs", 2), term=T2)
    assert a.shown() == {"x": "theirs", "y": "one"}


def test_a_present_term_that_has_ended_meanwhile_is_judged_by_its_end(a: Todos) -> None:
    a.edit("x", "mine")
    a.answer(a.send(), first=2, count=1, term=T1)
    relay = Relay(Position(T2, 2), (TermStart(T1, 0), TermStart(T2, 1)), record(2, "y", "one", 1))
    relay.pinned = relay.pinned._replace(present=T1)
    assert relay.settle(a).refills == 1


def test_of_an_entry_and_a_write_over_it_the_greater_is_given_back(a: Todos) -> None:
    a.deliver(0, record(2, "x", "one", 1))
    a.edit("x", "mine")
    a.answer(a.send(), first=3, count=1)
    assert Relay(START, ()).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(T1, 3)])]


def test_an_unanswered_write_is_recognised_among_the_relays_records(a: Todos) -> None:
    a.edit("x", "mine")
    a.send()
    assert Relay(Position(T1, 2), BOTH[:1], a.own(2, "x", "mine", 1)).settle(a)[:3] == (0, 0, 1)
    assert a.confirmed("x") == 1
    assert a.answer(1, first=2, count=1) is not None
    assert a.places() == (0, 0, 0, 0)


def test_a_second_loss_adds_to_the_refills_and_repeats_none(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1)).settle(a)
    assert len(batches(a)) == 1
    assert Relay(START, ()).settle(a).refills == 1
    assert [found[1] for found in batches(a)] == [b"<y>", b"<x>"]
    assert Relay(START, ()).settle(a).refills == 0
    assert a.shown() == {"x": "one", "y": "two"}


def test_a_refill_that_was_answered_and_is_lost_again_is_given_back_again(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    Relay(START, ()).settle(a)
    a.answer(1, first=1, count=1, term=T2)
    assert Relay(START, ()).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(T2, 1)])]


# --- records that do not open


def test_records_set_aside_are_compared_too_and_dropped_when_superseded(a: Todos) -> None:
    apply(a.replica, a.todos, Delivery(T1, 0, 2), [], [set_aside(1, "x", 1), set_aside(2, "y", 2)])
    relay = Relay(Position(T1, 2), BOTH[:1])
    differing = relay.differing(a)
    assert [one.place is not None and one.place >= SET_ASIDE for one in differing] == [True, True]
    relay.settle(a)
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 0


def test_a_record_that_was_opened_since_it_was_gathered_is_compared_again(a: Todos) -> None:
    apply(a.replica, a.todos, Delivery(T1, 0, 2), [], [set_aside(1, "x", 1), set_aside(2, "y", 2)])
    relay = Relay(Position(T1, 2), BOTH[:1], record(2, "y", "two", 2))
    differing = relay.differing(a)
    assert len(differing) == 1, "the relay has deleted x, and forgotten it"
    opened = {1: record(1, "x", "one", 1), 2: record(2, "y", "two", 2)}
    a.replica.reopen(a.todos, "no key", lambda seq, _: ([opened[seq]], []))
    assert a.shown() == {"x": "one", "y": "two"}
    assert a.replica.reconciling.settle(a.todos, Position(T1, 2), relay.pinned, differing, [], reseal, ROOM) is None
    relay.settle(a)
    assert a.shown() == {"y": "two"}


def test_lost_records_set_aside_are_kept_and_take_part_no_more(a: Todos) -> None:
    apply(a.replica, a.todos, Delivery(T1, 0, 2), [], [set_aside(1, "x", 1), set_aside(2, "y", 2)])
    relay = Relay(START, ())
    assert relay.settle(a).refills == 0
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 2
    assert relay.differing(a) == []


def test_a_record_of_the_relays_that_does_not_open_is_set_aside(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    relay = Relay(Position(T1, 2), BOTH[:1], record(2, "x", "?", 5))
    unopened = set_aside(2, "x", 5)
    rank = unopened.rank
    settled = a.replica.reconciling.settle(
        a.todos,
        Position(T1, 1),
        relay.pinned,
        [Differing(1, record(1, "x", "one", 1).rank, rank)],
        [([], [unopened])],
        reseal,
        ROOM,
    )
    assert settled is not None
    assert a.shown() == {"x": "one"}
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 1
    assert relay.differing(a) == []
