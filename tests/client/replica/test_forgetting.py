"""Tombstones that the relay has purged go here too, where it says so (R11)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica import Delivery
from sealwire_protocol.ids import TermStart
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import TOMBSTONE
from tests.client.replica.lost import set_aside, tombstone
from tests.client.replica.support import T1, T2, Todos, apply, opened, record


@pytest.fixture(params=[StreamKind.OPEN, StreamKind.GUARDED], ids=["open", "guarded"])
def a(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, request.param) as todos:
        yield todos


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, StreamKind.GUARDED) as todos:
        yield todos


def said(a: Todos) -> set[str]:
    """The keys of which the log says something."""
    found = a.replica.database.connection.execute(f"SELECT key FROM {a.todos.table.name} WHERE _rank IS NOT NULL")
    return {key for (key,) in found}


def test_tombstones_go_as_far_as_the_relay_has_purged_them(a: Todos) -> None:
    a.deliver(0, tombstone(1, "x", 1), tombstone(2, "y", 2), record(3, "z", "here", 3))
    apply(a.replica, a.todos, Delivery(T1, 3, 5), [record(5, "w", "w", 4)])
    assert said(a) == {"w", "x", "y", "z"}
    apply(a.replica, a.todos, Delivery(T1, 5, 7, floor=1), [record(7, "v", "v", 5)])
    assert said(a) == {"v", "w", "y", "z"}
    assert a.shown() == {"v": "v", "w": "w", "z": "here"}


def test_tombstones_go_before_what_comes_with_the_word_that_they_were_purged(a: Todos) -> None:
    """What a refill brings back is older than the tombstone, and nobody is left who could say so. When the
    relay purged last, it does not matter: it may have purged others after that."""
    a.deliver(0, tombstone(1, "x", 9))
    applied = apply(
        a.replica, a.todos, Delivery(T1, 1, 4, floor=1), [record(3, "x", "wins", 2), record(4, "y", "other", 3)]
    )
    assert applied.changes is not None
    assert [change.key for change in applied.changes] == ["x", "y"]
    assert a.shown() == {"x": "wins", "y": "other"}
    assert a.cursor() == 4


def test_an_edit_over_a_tombstone_stays_and_is_made_upon_nothing(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), tombstone(2, "x", 2))
    a.edit("x", "mine")
    a.deliver(2, record(3, "y", "y", 3))
    a.replica.forget(a.todos, 2, 3)
    assert a.shown() == {"x": "mine", "y": "y"}
    assert a.replica.claims.said(a.todos, "x").rank is None


def test_tombstones_of_a_history_that_the_relay_does_not_know_stay(a: Todos) -> None:
    a.deliver(0, tombstone(1, "x", 1))
    a.deliver(1, record(2, "y", "y", 2), term=T2)
    a.replica.positions.told(a.todos.number, [TermStart(T2, 0)], 0)
    a.replica.forget(a.todos, 2, 2)
    assert said(a) == {"x", "y"}


def test_what_is_told_when_subscribing_counts_once_the_cursor_is_past_the_purge(a: Todos) -> None:
    a.deliver(0, tombstone(1, "x", 1), record(2, "y", "y", 2))
    a.replica.forget(a.todos, 1, 3)
    assert said(a) == {"x", "y"}
    a.replica.forget(a.todos, 1, 2)
    assert said(a) == {"y"}


def test_purged_tombstones_that_do_not_open_go_too(a: Todos) -> None:
    apply(a.replica, a.todos, Delivery(T1, 0, 2), [], [set_aside(1, "x", 1, flags=TOMBSTONE), set_aside(2, "y", 2)])
    a.replica.forget(a.todos, 2, 2)
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 1
