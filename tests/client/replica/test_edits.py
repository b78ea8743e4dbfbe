"""Edits that wait: which one takes the place of which, in what order they are taken, and what each is based on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica import Place
from sealwire_client.replica.edits import sealed_bytes
from sealwire_protocol.conditions import NOTHING, encode_condition
from sealwire_protocol.errors import Refusal
from sealwire_protocol.messages import ATOMIC, Refused, StreamKind
from tests.client.replica.support import Todos, encode, opened, record, title


@pytest.fixture
def g(tmp_path: Path) -> Iterator[Todos]:
    """A replica with a guarded collection."""
    with opened(tmp_path / "guarded", StreamKind.GUARDED) as todos:
        yield todos


def taken(a: Todos, **limits: int) -> list[tuple[str, str | None]]:
    """What is to be sealed next: keys and titles."""
    found = a.take(**limits)
    return [(edit.key, title(edit.value)) for group in found.groups for edit in group.edits] if found else []


def refused(a: Todos, number: int, *places: int) -> None:
    """The relay takes in a batch without the records at these places."""
    count = sum(row[0] for row in a.replica.database.connection.execute("SELECT count FROM _group"))
    a.answer(number, 50, count - len(places), refused=[Refused(0, at, Refusal.CONFLICT, 9, b"") for at in places])


# --- what an edit is based on


def test_an_edit_is_based_on_what_was_shown_before_the_first_that_waits(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    g.edit("k", "one")
    g.deliver(1, record(2, "k", "theirs, later", 2))
    g.edit("k", "two")
    g.edit("new", "first")
    g.edit("new", None)
    assert g.waiting() == [("k", "two", "theirs"), ("new", None, None)]


def test_an_edit_made_while_another_is_sent_is_based_on_that(g: Todos) -> None:
    g.edit("k", "one")
    g.send()
    g.edit("k", "two")
    assert g.waiting() == [("k", "two", "one")]


def test_edits_of_open_collections_are_based_on_nothing(a: Todos) -> None:
    a.deliver(0, record(1, "k", "theirs", 1))
    a.edit("k", "mine")
    assert a.waiting() == [("k", "mine", None)]


def test_an_edit_in_the_place_of_a_stuck_one_is_based_on_what_that_was(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    first = g.edit("k", "one")
    assert g.put_aside("k", "quota")
    assert g.standing(first) is Place.REFUSED
    g.edit("k", "two")
    assert (g.waiting(), g.stuck()) == ([("k", "two", "theirs")], [])
    assert g.standing(first) is Place.DEVICE, "replaced by one that is still to be sent"


# --- the order of edits of one key


def test_a_guarded_key_waits_until_the_one_before_is_delivered(g: Todos) -> None:
    g.edit("k", "one")
    number = g.send()
    g.edit("k", "two")
    g.edit("l", "other")
    assert taken(g) == [("l", "other")]
    g.answer(number, 1, 1)
    assert taken(g) == [("l", "other")], "an answer does not say what stands there"
    g.deliver(0, g.own(1, "k", "one", 1))
    assert taken(g) == [("k", "two"), ("l", "other")]


def test_an_edit_after_a_transaction_does_not_take_the_place_of_one_before_it(g: Todos) -> None:
    before = g.edit("k", "one")
    g.edit_together(k="two", l="two")
    after = g.edit("k", "three")
    assert g.waiting() == [("k", "one", None), ("k", "two", "one"), ("l", "two", None), ("k", "three", "two")]
    assert taken(g) == [("k", "one")]
    again = g.edit("k", "four")
    assert g.waiting()[-1] == ("k", "four", "two")
    g.answer(g.send(), 1, 1)
    g.deliver(0, g.own(1, "k", "one", 1))
    assert [g.standing(mark) for mark in (before, after, again)] == [Place.RELAY, Place.DEVICE, Place.DEVICE]
    assert taken(g) == [("k", "two"), ("l", "two")]


def test_an_edit_that_comes_back_does_not_pass_a_transaction(g: Todos) -> None:
    first = g.edit("k", "one")
    number = g.send()
    g.edit_together(k="two", l="two")
    g.edit("k", "three")
    refused(g, number, 0)
    assert g.waiting() == [("k", "one", None), ("k", "two", "one"), ("l", "two", None), ("k", "three", "two")]
    g.edit("k", "four")
    assert [row for row in g.waiting() if row[0] == "k"] == [
        ("k", "one", None),
        ("k", "two", "one"),
        ("k", "four", "two"),
    ]
    assert g.standing(first) is Place.DEVICE


def test_an_edit_that_comes_back_gives_way_to_a_newer_one_that_then_stands_for_both(g: Todos) -> None:
    g.deliver(0, record(1, "k", "theirs", 1))
    first = g.edit("k", "one")
    number = g.send()
    g.edit("k", "two")
    refused(g, number, 0)
    assert g.waiting() == [("k", "two", "theirs")]
    assert g.standing(first) is Place.DEVICE


def test_a_transaction_that_comes_back_stays_before_what_came_later(g: Todos) -> None:
    g.edit_together(k="one", l="one")
    number = g.send()
    g.edit("k", "two")
    g.answer(number, refused=[Refused(0, 0, Refusal.CONFLICT, 9, b""), Refused(0, 1, Refusal.ATOMIC, 0, b"")])
    assert g.waiting() == [("k", "one", None), ("l", "one", None), ("k", "two", "one")]
    assert taken(g) == [("k", "one"), ("l", "one")]


# --- transactions


def test_a_transaction_is_taken_alone_and_whole(g: Todos) -> None:
    g.edit("a", "alone")
    g.edit_together(b="together", c="together")
    g.edit("d", "alone")
    g.edit_together(e="together", f="together")
    assert taken(g) == [("a", "alone"), ("d", "alone")]
    g.send()
    found = g.take()
    assert found is not None
    assert found.flags & ATOMIC
    assert taken(g) == [("b", "together"), ("c", "together")]
    assert taken(g, records_max=1, bytes_max=1) == [("b", "together"), ("c", "together")]


def test_a_transaction_waits_for_each_of_its_keys_and_holds_up_nothing_else(g: Todos) -> None:
    g.edit("k", "one")
    number = g.send()
    g.edit_together(k="two", l="two")
    g.edit("m", "alone")
    g.edit_together(n="free", o="free")
    assert taken(g) == [("m", "alone")]
    g.send()
    assert taken(g) == [("n", "free"), ("o", "free")]
    g.answer(number, 1, 1)
    g.deliver(0, g.own(1, "k", "one", 1))
    assert taken(g) == [("k", "two"), ("l", "two")]


def test_transactions_that_share_a_key_keep_their_order(g: Todos) -> None:
    g.edit_together(k="one", l="one")
    g.edit_together(l="two", m="two")
    assert taken(g) == [("k", "one"), ("l", "one")]
    number = g.send()
    assert taken(g) == []
    g.answer(number, 1, 2)
    g.deliver(0, g.own(1, "k", "one", 1), g.own(2, "l", "one", 2))
    assert taken(g) == [("l", "two"), ("m", "two")]


def test_many_transactions_that_wait_do_not_hide_an_edit_behind_them(g: Todos) -> None:
    g.edit("k", "one")
    g.send()
    for number in range(5):
        g.edit_together(**{"k": "later", f"x{number}": "later"})
    g.edit("z", "alone")
    assert taken(g, records_max=3) == [("z", "alone")]


# --- limits


def test_edits_that_stand_alone_are_taken_up_to_the_limits(g: Todos) -> None:
    for key in "abcd":
        g.edit(key, "x" * 100)
    assert taken(g, records_max=3) == [(key, "x" * 100) for key in "abc"]
    size = sealed_bytes("a", encode(("x" * 100, 0)))
    assert len(taken(g, bytes_max=2 * size)) == 2
    assert len(taken(g, bytes_max=2 * size - 1)) == 1


def test_a_refused_edit_remembers_on_what_condition(g: Todos) -> None:
    g.edit("k", "one")
    refused(g, g.send(), 0)
    found = g.take()
    assert found is not None
    assert found.groups[0].edits[0].refused == encode_condition(NOTHING)
