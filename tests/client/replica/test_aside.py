"""Writes refused for good: kept, shown, tried again, replaced or given up, a transaction always as a whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica import STRICT, Kind, Place, ReplicaMisuse, Stuck, Taken, TakenEdit
from sealwire_protocol.errors import Outcome, Refusal
from sealwire_protocol.messages import ATOMIC, Refused, StreamKind
from tests.client.replica.support import Todos, edit, opened, record


@pytest.fixture
def g(tmp_path: Path) -> Iterator[Todos]:
    """A replica with a guarded collection."""
    with opened(tmp_path / "guarded", StreamKind.GUARDED) as todos:
        yield todos


def test_a_transaction_that_cannot_be_sealed_is_set_aside_whole(g: Todos) -> None:
    g.edit_together(k="mine", l="mine")
    g.edit("m", "alone")
    with g.replica.transaction():
        n = g.replica.outbox.edits.marks(g.todos.number, ["l"])[0].n
        g.replica.outbox.aside.put_edit(n, "too large")
    assert [(s.key, s.reason, s.together) for s in g.replica.outbox.aside.all(g.todos)] == [
        ("k", "too large", True),
        ("l", "too large", True),
    ]
    assert g.waiting() == [("m", "alone", None)]
    assert g.shown() == {"k": "mine", "l": "mine", "m": "alone"}


def test_a_transaction_is_tried_again_whole(g: Todos) -> None:
    g.edit_together(k="mine", l="mine")
    mark = g.replica.outbox.edits.marks(g.todos.number, ["k"])[0]
    g.answer(g.send(), outcome=Outcome.QUOTA)
    assert g.standing(mark) is Place.REFUSED
    assert g.replica.outbox.aside.retry(g.todos, "l")
    assert (g.stuck(), g.standing(mark)) == ([], Place.DEVICE)
    taken = g.take()
    assert taken is not None
    assert taken.flags & ATOMIC
    assert [edit.key for edit in taken.groups[0].edits] == ["k", "l"]
    g.answer(g.send(), 1, 2)
    assert g.standing(mark) is Place.RELAY


def test_a_transaction_is_given_up_whole(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    g.edit_together(k="mine", l="mine", m=None)
    g.answer(g.send(), outcome=Outcome.QUOTA)
    gone = g.replica.outbox.aside.discard(g.todos, "l")
    assert [(one.collection.name, one.key, [change.kind for change in one.changes]) for one in gone] == [
        ("todos", "k", [Kind.UPDATED]),
        ("todos", "l", [Kind.DELETED]),
        ("todos", "m", []),
    ]
    assert (g.shown(), g.stuck(), g.places()) == ({"k": "theirs"}, [], (0, 0, 0, 0))


def test_what_is_edited_anew_is_no_part_of_the_stuck_transaction_any_more(g: Todos) -> None:
    g.edit_together(k="mine", l="mine")
    g.answer(g.send(), outcome=Outcome.QUOTA)
    g.edit("l", "newer")
    assert g.stuck() == [("k", "mine")]
    assert g.replica.outbox.aside.retry(g.todos, "k")
    assert g.waiting() == [("l", "newer", None), ("k", "mine", None)]


def test_a_newer_edit_stands_for_the_refused_one(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    first = g.edit("k", "one")
    number = g.send()
    g.edit("k", "two")
    g.answer(number, outcome=Outcome.QUOTA)
    assert (g.waiting(), g.stuck()) == ([("k", "two", "theirs")], [])
    assert g.standing(first) is Place.DEVICE


def test_a_strict_write_is_told_but_not_tried_again(g: Todos) -> None:
    g.replica.database.connection.execute(
        "INSERT INTO _stuck (collection, key, value, raw, reason, n) VALUES (?, 'k', x'00', 0, 'conflict', -1)",
        (g.todos.number,),
    )
    assert g.replica.outbox.aside.all(g.todos) == [Stuck("k", b"\0", "conflict")]
    with pytest.raises(ReplicaMisuse, match="was strict"):
        g.replica.outbox.aside.retry(g.todos, "k")
    assert g.shown() == {}
    assert [one.changes for one in g.replica.outbox.aside.discard(g.todos, "k")] == [[]]
    assert g.stuck() == []


def test_an_edit_is_not_based_on_a_strict_write_that_was_refused(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    g.replica.database.connection.execute(
        "INSERT INTO _stuck (collection, key, value, raw, reason, n) VALUES (?, 'k', x'00', 0, 'conflict', -1)",
        (g.todos.number,),
    )
    g.edit("k", "mine")
    assert g.waiting() == [("k", "mine", "theirs")]


# --- strict writes, which show nothing


def strict(g: Todos, key: str, title: str) -> int:
    """Send a strict write. Returns the number of its batch."""
    edits = g.replica.outbox.edits
    told = edit(key, title)
    group = edits.group(g.todos.number, [TakenEdit(STRICT, key, told.value, False)], 0)
    taken = Taken(g.todos.vault, edits.next_batch(g.todos.vault), (group,), ATOMIC)
    assert g.store(taken)
    return taken.number


CONFLICT = Refused(0, 0, Refusal.CONFLICT, 1, b"")


@pytest.mark.parametrize("known", [True, False])
def test_an_edit_made_while_a_strict_write_is_on_its_way_shows_whatever_becomes_of_that(g: Todos, known: bool) -> None:
    """Else its row would show the log's former value for good, under the rank of the edit."""
    g.deliver(0, record(1, "k", "theirs", 1))
    number = strict(g, "k", "strict")
    g.edit("k", "mine")
    g.answer(number, refused=[CONFLICT])
    if known:
        g.replica.outbox.aside.forget_strict(g.todos, "k")
    else:
        assert g.replica.outbox.aside.discard(g.todos, "k")[0].changes == []
    assert (g.shown(), g.stuck()) == ({"k": "mine"}, [])
    g.answer(g.send(), 2, 1)
    g.deliver(1, g.own(2, "k", "mine", 3))
    assert (g.shown(), g.confirmed("k")) == ({"k": "mine"}, 3)


def test_a_strict_write_that_is_refused_takes_no_stuck_edit_s_place(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    g.edit("k", "mine")
    assert g.put_aside("k", "too large")
    g.answer(strict(g, "k", "strict"), refused=[CONFLICT])
    g.replica.outbox.aside.forget_strict(g.todos, "k")
    assert (g.stuck(), g.shown()) == ([("k", "mine")], {"k": "mine"})
    assert g.replica.outbox.aside.retry(g.todos, "k")
    assert g.waiting() == [("k", "mine", "theirs")]


def test_a_strict_write_that_is_stuck_holds_up_nothing_that_others_write(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    number = strict(g, "k", "strict")
    g.edit("k", "mine")
    g.answer(number, refused=[CONFLICT])
    g.answer(g.send(), 2, 1)
    g.deliver(1, g.own(2, "k", "mine", 3))
    g.deliver(2, record(3, "k", "theirs again", 4))
    assert (g.shown(), g.stuck()) == ({"k": "theirs again"}, [("k", "strict")])
