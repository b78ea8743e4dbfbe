"""One replica, opened by apps of several ages: what is shown, what is kept, and the bytes of every value (R17)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_client.encoding import numbered, schema_of
from sealwire_client.replica import Delivery, Kind, NeedsNewerAppError, Unopened
from tests.client.ages import Color, MoreColors, Place, PlaceWithZip
from tests.client.replica.apps import Opened, opened
from tests.client.replica.support import T1, apply


@dataclass
class First:
    """The first of four versions of one app's type."""

    title: str = ""
    color: Color = Color.RED
    place: Place = field(default=Place())
    places: list[Place] = field(default_factory=list)


@dataclass
class Second:
    """Places have grown."""

    title: str = ""
    color: Color = Color.RED
    place: PlaceWithZip = field(default=PlaceWithZip())
    places: list[PlaceWithZip] = field(default_factory=list)


@dataclass
class Third:
    """There are more colors, and two more fields, of which one leaves a number out."""

    title: str = ""
    color: MoreColors = MoreColors.RED
    place: PlaceWithZip = field(default=PlaceWithZip())
    places: list[PlaceWithZip] = field(default_factory=list)
    weight: float = 1.5
    marks: frozenset[bytes] = numbered(7, default=frozenset((b"new",)))


@dataclass
class Fourth(Third):
    """One more field, which may be absent."""

    day: date | None = None
    sizes: dict[str, float] = field(default_factory=lambda: {"s": 1.0})


VERSIONS: list[type] = [First, Second, Third, Fourth]


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Opened]:
    with opened(tmp_path, First) as replica:
        yield replica


def encoded(value: Any) -> bytes:
    return schema_of(type(value)).encode(value)


def test_rows_made_before_show_the_defaults_and_give_their_old_bytes(first: Opened) -> None:
    theirs, mine = encoded(First("theirs", places=[Place("a")])), First("mine")
    first.deliver("k", theirs)
    first.deliver("l", theirs)
    first.put("l", mine)
    first.open(Third)
    assert first.get("k") == Third("theirs", places=[PlaceWithZip("a")])
    assert first.get("l") == Third("mine")
    rows = first.reader.select("SELECT title, weight, marks FROM cards WHERE key = 'k'").rows
    assert rows == [("theirs", 1.5, '["bmV3"]')]
    assert (first.value("k"), first.said("l"), first.value("l")) == (theirs, theirs, encoded(mine))
    assert first.kept() == [4, 4]


def test_records_of_an_older_app_are_kept_without_their_bytes(first: Opened) -> None:
    first.open(Third)
    value = encoded(First("old", place=Place("a")))
    first.deliver("k", value)
    assert first.get("k") == Third("old", place=PlaceWithZip("a"))
    assert first.value("k") == value
    assert first.kept() == [4]


def test_an_older_app_keeps_what_it_does_not_know_through_its_edits(first: Opened) -> None:
    first.open(Third)
    newer = Third("a", place=PlaceWithZip("b", "123"), places=[PlaceWithZip("c", "456")], weight=7.0)
    first.put("k", newer)
    first.deliver("l", encoded(newer))
    first.open(First)
    assert first.get("k") == First("a", place=Place("b"), places=[Place("c")])
    assert first.value("k") == first.value("l") == encoded(newer)
    for key in "kl":
        first.put(key, First("edited", place=Place("b"), places=[Place("c"), Place("d")]))
    first.open(Third)
    places = [PlaceWithZip("c", "456"), PlaceWithZip("d")]
    assert (
        first.get("k") == first.get("l") == Third("edited", place=PlaceWithZip("b", "123"), places=places, weight=7.0)
    )


@settings(max_examples=40)
@given(st.data())
def test_whatever_apps_open_it_the_bytes_stay(data: st.DataObject) -> None:
    """Rows written by, and delivered from, apps of any version, under apps of any version."""
    texts = st.sampled_from(["", "a", "b"])
    values: dict[str, bytes] = {}
    with TemporaryDirectory() as folder, opened(Path(folder), First) as replica:
        for n in range(data.draw(st.integers(1, 5))):
            here = data.draw(st.sampled_from(VERSIONS))
            replica.open(here)
            assert {key: replica.value(key) for key in values} == values
            there = data.draw(st.sampled_from(VERSIONS))
            value = (
                there(
                    data.draw(texts),
                    places=[data.draw(st.sampled_from([PlaceWithZip("a", "z"), PlaceWithZip()]))],
                    place=PlaceWithZip(data.draw(texts), data.draw(texts)),
                )
                if there is not First
                else First(data.draw(texts), place=Place(data.draw(texts)))
            )
            values[f"delivered {n}"] = encoded(value)
            replica.deliver(f"delivered {n}", encoded(value))
            mine = here(data.draw(texts))
            values[f"mine {n}"] = encoded(mine)
            replica.put(f"mine {n}", mine)
        assert {key: replica.value(key) for key in values} == values
        replica.open(Fourth)
        assert {key: replica.get(key) for key in values} == {
            key: schema_of(Fourth).decode(value) for key, value in values.items()
        }


def test_a_value_that_needs_a_newer_app_is_kept_and_named_and_shown_nowhere(first: Opened) -> None:
    green = encoded(Third("green", MoreColors.GREEN))
    first.deliver("j", encoded(First("red")))
    first.deliver("k", green)
    assert first.changes == [Kind.INSERTED]
    with pytest.raises(NeedsNewerAppError, match="'k' in cards was written by a newer app") as raised:
        first.reader.get(first.cards, "k")
    assert (raised.value.key, raised.value.collection) == ("k", "cards")
    assert [key for key, _ in first.reader.items(first.cards)] == ["j"]
    assert first.reader.count(first.cards) == 1
    assert first.reader.select("SELECT key FROM cards").rows == [("j",)]
    assert first.reader.newer(first.cards) == ["k"]
    assert first.replica.claims.said(first.cards, "k")[1:3] == (green, True)
    assert first.replica.outbox.waiting(1).quarantined == 0
    assert first.replica.entries.newer(first.cards.table, ["j", "k"]) == ["k"]
    first.replica.entries.refuse_newer(first.cards, ["j", "m"])
    with pytest.raises(NeedsNewerAppError):
        first.replica.entries.refuse_newer(first.cards, ["j", "k"])


def test_it_is_read_again_by_a_newer_app_and_lost_again_by_an_older_one(first: Opened) -> None:
    green = Third("green", MoreColors.GREEN)
    first.deliver("k", encoded(green))
    first.open(Second)
    assert first.reader.newer(first.cards) == ["k"]
    first.open(Third)
    assert first.get("k") == green
    assert first.kept() == [None]
    first.put("mine", green)
    first.open(First)
    assert first.reader.newer(first.cards) == ["k", "mine"]
    assert first.value("k") == first.value("mine") == encoded(green)


def test_later_records_replace_it(first: Opened) -> None:
    green = encoded(Third("green", MoreColors.GREEN))
    first.deliver("k", green)
    first.deliver("l", green)
    first.deliver("k", encoded(First("red")))
    assert first.changes == [Kind.UPDATED]
    first.deliver("l", None)
    assert first.changes == [Kind.DELETED]
    assert first.get("k") == First("red")
    assert first.get("l") is None
    assert first.reader.newer(first.cards) == []


def test_an_edit_stays_shown_above_a_value_that_came_later_and_needs_a_newer_app(first: Opened) -> None:
    green = encoded(Third("green", MoreColors.GREEN))
    first.put("k", First("mine"))
    first.deliver("k", green)
    assert first.get("k") == First("mine")
    assert first.replica.claims.said(first.cards, "k")[1:3] == (green, True)
    first.open(Third)
    assert first.replica.claims.said(first.cards, "k")[1:3] == (green, False)


def test_looking_for_values_that_need_a_newer_app_uses_the_index(first: Opened) -> None:
    for table in first.cards.table.stored:
        plan = first.replica.database.connection.execute(
            f"EXPLAIN QUERY PLAN SELECT EXISTS (SELECT 1 FROM {table} WHERE _live = 2)"
        ).fetchall()
        assert any(f"{table}_newer" in row[3] for row in plan)


def test_unopened_records_are_still_set_aside(first: Opened) -> None:
    apply(first.replica, first.cards, Delivery(T1, 0, 1), [], [Unopened(1, b"r", b"bytes", "no key")])
    assert first.replica.outbox.waiting(1).quarantined == 1
