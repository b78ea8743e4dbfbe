"""The sum of what a collection holds of the log, and what it was where deliveries ended."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sealwire_client.replica import BOUNDARIES_MAX, Boundary, Delivery, Incoming, Pinned
from sealwire_protocol.ids import SUM_BYTES, Position
from sealwire_protocol.messages import StreamKind
from tests.client.replica.lost import BOTH, ROOM, Relay, reseal, set_aside, tombstone
from tests.client.replica.support import READ_BY_NONE, T1, T2, Todos, apply, opened, record, value_of


@pytest.fixture
def a(tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path / "a") as todos:
        yield todos


@pytest.fixture
def b(tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path / "b") as todos:
        yield todos


def sum_of(*records: Incoming) -> bytes:
    """The sum of entries with these records."""
    return (sum(value_of(each.key, each.rank) for each in records) % (1 << 256)).to_bytes(SUM_BYTES, "big")


def boundary(of: Todos, seq: int, term: object = T1) -> Boundary | None:
    return of.replica.boundaries.at(of.todos.number, Position(T2 if term == T2 else T1, seq))


def held(of: Todos, seq: int) -> bytes | None:
    """The sum that was noted at a seq."""
    found = boundary(of, seq)
    return None if found is None else found.sum


def test_a_sum_is_of_the_live_entries_alone(a: Todos) -> None:
    one, two, three = record(1, "x", "one", 1), record(2, "y", "two", 2), record(3, "x", "three", 3)
    a.deliver(0, one, two)
    a.deliver(2, three)
    a.deliver(3, tombstone(4, "y", 4))
    a.deliver(4, record(5, "z", "late", 1), record(6, "z", "later", 6), tombstone(7, "z", 7))
    assert held(a, 2) == sum_of(one, two)
    assert held(a, 3) == sum_of(three, two)
    assert held(a, 4) == held(a, 7) == sum_of(three)


def test_the_loser_of_two_records_adds_nothing_whatever_came_first(a: Todos, b: Todos) -> None:
    low, high = record(1, "x", "low", 1), record(2, "x", "high", 2)
    a.deliver(0, low, high)
    b.deliver(0, high._replace(seq=1), low._replace(seq=2))
    assert held(a, 2) == held(b, 2) == sum_of(high)


def test_what_only_this_device_knows_is_not_in_it(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    a.edit("x", "mine")
    a.edit("y", "mine, too")
    number = a.send()
    a.deliver(1, record(2, "z", "two", 2))
    assert held(a, 2) == sum_of(record(1, "x", "one", 1), record(2, "z", "two", 2))
    a.answer(number, first=3, count=2)
    a.deliver(2, a.own(3, "x", "mine", 2), a.own(4, "y", "mine, too", 3))
    mine = a.own(3, "x", "mine", 2), a.own(4, "y", "mine, too", 3)
    assert held(a, 4) == sum_of(record(2, "z", "two", 2), *mine)


def test_a_write_that_is_confirmed_and_no_entry_yet_makes_no_boundary(a: Todos) -> None:
    """Its position says that it is in the log up to here, and the rows do not have it."""
    a.edit("x", "mine")
    number = a.send()
    a.answer(number, first=1, count=1, term=T2)
    a.deliver(0, record(1, "y", "other", 1))
    assert held(a, 1) is None


def test_a_sum_lasts_and_is_undone_with_its_transaction(a: Todos, tmp_path: Path) -> None:
    one = record(1, "x", "one", 1)
    a.deliver(0, one)
    with suppress(KeyError), a.replica.transaction():
        a.deliver(1, record(2, "y", "two", 2))
        with suppress(ValueError), a.replica.transaction():
            a.deliver(2, record(3, "z", "three", 3))
            raise ValueError
        assert a.replica.sums.of(a.todos.number) == a.replica.sums.counted(a.todos.table)
        raise KeyError
    assert a.replica.sums.of(a.todos.number) == a.replica.sums.counted(a.todos.table) == value_of("x", one.rank)
    assert held(a, 2) is None
    a.close()
    with opened(tmp_path / "a") as again:
        assert again.replica.sums.of(again.todos.number) == value_of("x", one.rank)
        assert held(again, 1) == sum_of(one)
        again.deliver(1, record(2, "y", "two", 2))
    a.__init__(tmp_path / "a")  # type: ignore[misc]  # for the fixture to close


def test_a_sum_that_was_never_kept_is_made_of_the_rows(a: Todos, tmp_path: Path) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2), tombstone(3, "y", 3))
    a.replica.database.connection.execute("DELETE FROM _sum")
    a.close()
    a.__init__(tmp_path / "a")  # type: ignore[misc]
    assert a.replica.sums.of(a.todos.number) == value_of("x", record(1, "x", "one", 1).rank)


def test_what_is_purged_leaves_the_sum_as_it_is(a: Todos, b: Todos) -> None:
    """Of two devices one still has a deletion, and the other has forgotten it."""
    records = record(1, "x", "one", 1), record(2, "y", "two", 2), tombstone(3, "y", 3)
    a.deliver(0, *records)
    a.deliver(3, record(4, "z", "four", 4))
    b.deliver(0, *records)
    apply(b.replica, b.todos, Delivery(T1, 3, 4, floor=3), [record(4, "z", "four", 4)])
    assert b.confirmed("y") is None
    assert held(a, 4) == held(b, 4) is not None


def test_there_is_a_boundary_where_a_delivery_ends_and_nowhere_within(a: Todos) -> None:
    one, two = record(1, "x", "one", 1), record(2, "y", "two", 2)
    apply(a.replica, a.todos, Delivery(T1, 0, 1, goes_on=True), [one])
    apply(a.replica, a.todos, Delivery(T1, 1, 2), [two])
    assert held(a, 1) is None
    assert held(a, 2) == sum_of(one, two)


def test_below_what_was_cleaned_there_are_no_boundaries(a: Todos) -> None:
    """Up to there the log was served without what was superseded later in it."""
    apply(a.replica, a.todos, Delivery(T1, 0, 4, cleaned_to=6), [record(1, "x", "one", 1)])
    assert held(a, 4) is None
    apply(a.replica, a.todos, Delivery(T1, 4, 6, cleaned_to=6), [record(6, "y", "two", 2)])
    assert held(a, 6) == sum_of(record(1, "x", "one", 1), record(6, "y", "two", 2))


def test_while_a_record_is_set_aside_there_are_no_boundaries_unless_nobody_reads_it(a: Todos) -> None:
    garbled = set_aside(1, "x", 1)._replace(reason=READ_BY_NONE)
    apply(a.replica, a.todos, Delivery(T1, 0, 1), [], [garbled])
    assert held(a, 1) == sum_of()
    apply(a.replica, a.todos, Delivery(T1, 1, 2), [], [set_aside(2, "y", 2)])
    assert held(a, 2) is None
    opened_now = record(2, "y", "two", 2)
    a.replica.reopen(a.todos, "no key", lambda seq, raw: ([opened_now], []))
    assert held(a, 2) == sum_of(opened_now)


def test_after_a_reconcile_the_sum_is_of_what_the_relay_has(a: Todos) -> None:
    lost, kept, new = record(2, "y", "lost", 2), record(1, "x", "one", 1), record(2, "z", "new", 3)
    a.deliver(0, kept, lost)
    relay = Relay(Position(T2, 6), BOTH, kept, new)
    a.deliver(2, record(5, "w", "goes, too", 5))
    relay.settle(a)
    assert held(a, 5) is None
    assert held(a, 2) is None
    assert boundary(a, 6, T2) == Boundary(Position(T2, 6), sum_of(kept, new))


def test_entries_beyond_the_cursor_make_no_boundaries_until_it_has_passed_them(a: Todos) -> None:
    """A comparison may set the cursor back behind what was delivered meanwhile, which takes no part in it."""
    first, second = record(1, "x", "one", 1), record(3, "y", "two", 2)
    a.deliver(0, first, last=2)
    a.deliver(2, second)
    pinned = Pinned(Position(T1, 2), BOTH[:1], 3, 0, 0, 0)
    assert a.replica.reconciling.settle(a.todos, Position(T1, 3), pinned, [], [], reseal, ROOM) is not None
    assert a.cursor() == 2
    assert held(a, 2) is None
    a.deliver(2, second)
    assert held(a, 3) == sum_of(first, second)


def test_the_last_boundaries_are_kept_and_no_more(a: Todos) -> None:
    with a.replica.transaction():
        for seq in range(1, BOUNDARIES_MAX + 3):
            a.deliver(seq - 1, record(seq, f"{seq}", "one", seq))
    assert held(a, 2) is None
    assert held(a, 3) is not None
    assert held(a, BOUNDARIES_MAX + 2) is not None
    count = a.replica.database.connection.execute("SELECT count(*) FROM _boundary").fetchone()[0]
    assert count == BOUNDARIES_MAX


def test_a_guarded_collection_has_a_sum_too(tmp_path: Path) -> None:
    with opened(tmp_path, StreamKind.GUARDED) as todos:
        todos.deliver(0, record(1, "x", "one", 1))
        assert held(todos, 1) == sum_of(record(1, "x", "one", 1))
