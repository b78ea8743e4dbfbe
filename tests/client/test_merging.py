from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_client import plain
from sealwire_client.encoding import schema_of
from sealwire_client.merging import Merge, MergeError, Resolve, fields, last, union
from sealwire_client.policies import latest, merge, strict
from sealwire_protocol.messages import StreamKind


@dataclass
class Place:
    street: str = ""
    number: int = 0


@dataclass
class Card:
    title: str = ""
    done: bool = False
    labels: frozenset[str] = frozenset()
    place: Place = field(default_factory=Place)
    notes: dict[str, Place] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    extra: dict = field(default_factory=dict)  # type: ignore[type-arg]
    home: Place | None = None


@dataclass
class NewerPlace(Place):
    zip: str = ""


@dataclass
class NewerCard:
    """What the same card is to a newer app: one field more, and one more within its places."""

    title: str = ""
    done: bool = False
    labels: frozenset[str] = frozenset()
    place: NewerPlace = field(default_factory=NewerPlace)
    notes: dict[str, NewerPlace] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    extra: dict = field(default_factory=dict)  # type: ignore[type-arg]
    home: NewerPlace | None = None
    due: str = ""


CARDS, NEWER = schema_of(Card), schema_of(NewerCard)
MERGES: list[Merge] = [fields, last, union, lambda base, mine, theirs: mine]

TEXTS = st.sampled_from(["", "a", "b", "c", "long text"])
PLACES = st.builds(NewerPlace, TEXTS, st.integers(0, 3), TEXTS)
NEWER_CARDS = st.builds(
    NewerCard,
    TEXTS,
    st.booleans(),
    st.frozensets(TEXTS),
    PLACES,
    st.dictionaries(TEXTS, PLACES, max_size=3),
    st.lists(TEXTS, max_size=3),
    st.dictionaries(TEXTS, st.integers(0, 2) | st.dictionaries(TEXTS, st.booleans(), max_size=2), max_size=2),
    st.none() | PLACES,
    TEXTS,
)
VALUES = st.none() | NEWER_CARDS.map(NEWER.encode)


def made(fn: Merge, schema: Any = CARDS) -> Resolve:
    resolve = merge(fn).resolver(schema)
    assert resolve is not None
    return resolve


def merged(base: Card | None, mine: Card | None, theirs: Card | None, fn: Merge = fields) -> Card | None:
    given = (None if card is None else CARDS.encode(card) for card in (base, mine, theirs))
    raw = made(fn)(*given)
    return None if raw is None else CARDS.decode(raw)


def test_only_policies_that_bring_edits_together_have_a_resolver() -> None:
    assert latest().kind is StreamKind.OPEN
    assert merge().kind is strict().kind is StreamKind.GUARDED
    assert latest().resolver(CARDS) is None
    assert strict().resolver(CARDS) is None
    assert merge() == merge(fields) != merge(union)


@settings(max_examples=60)
@given(VALUES, VALUES, st.sampled_from(MERGES))
def test_who_changed_nothing_takes_the_others_bytes(base: bytes | None, changed: bytes | None, fn: Merge) -> None:
    assert made(fn)(base, base, changed) == changed
    assert made(fn)(base, changed, base) == changed
    assert made(fn)(base, changed, changed) == changed


@settings(max_examples=60)
@given(VALUES, VALUES, VALUES, st.sampled_from(MERGES))
def test_merging_is_deterministic_and_gives_a_value(
    base: bytes | None, mine: bytes | None, theirs: bytes | None, fn: Merge
) -> None:
    found = made(fn)(base, mine, theirs)
    assert found == made(fn)(base, mine, theirs)
    if found is not None:
        assert plain.dump(plain.load(found)) == found
        NEWER.decode(found)
        CARDS.decode(found)


@settings(max_examples=60)
@given(NEWER_CARDS, NEWER_CARDS, st.sets(st.sampled_from(["title", "done", "place", "steps", "home"])))
def test_edits_of_different_fields_both_survive(base: NewerCard, other: NewerCard, mine: set[str]) -> None:
    all_fields = {"title", "done", "place", "steps", "home"}
    changed = {name: getattr(other, name) for name in all_fields}
    here = replace(base, **{name: changed[name] for name in mine})
    there = replace(base, **{name: changed[name] for name in all_fields - mine})
    both = replace(base, **changed)
    for fn in (fields, union):
        assert made(fn, NEWER)(NEWER.encode(base), NEWER.encode(here), NEWER.encode(there)) == NEWER.encode(both)


@settings(max_examples=60)
@given(NEWER_CARDS, NEWER_CARDS, NEWER_CARDS, st.sampled_from(MERGES))
def test_what_this_app_does_not_know_stays_as_those_who_know_it_left_it(
    base: NewerCard, edited: NewerCard, theirs: NewerCard, fn: Merge
) -> None:
    """The older app edits what it knows; the newer one has changed something of its own meanwhile."""
    old, before = CARDS, NEWER.encode(base)
    mine = old.carry(old.encode(old.decode(NEWER.encode(edited))), before)
    theirs = replace(base, due=theirs.due, place=replace(base.place, zip=theirs.place.zip))
    found = made(fn)(before, mine, NEWER.encode(theirs))
    assert found is not None
    value = NEWER.decode(found)
    assert (value.due, value.place.zip) == (theirs.due, theirs.place.zip)
    if old.decode(mine) != old.decode(before):
        assert old.decode(found) == old.decode(mine)


def test_where_both_made_the_entry_a_field_that_one_left_at_its_default_is_as_the_other_set_it() -> None:
    here, there = Card("here"), Card(done=True, steps=["there"], place=Place("x"))
    both = Card("here", done=True, steps=["there"], place=Place("x"))
    assert merged(None, here, there) == merged(None, there, here) == both
    assert merged(None, Card("mine"), Card("theirs")) == Card("mine")


def test_sets_take_what_either_put_in_and_lose_what_either_took_out() -> None:
    base, mine, theirs = (Card(labels=frozenset(x)) for x in ("ab", "bc", "abd"))
    assert merged(base, mine, theirs) == Card(labels=frozenset("bcd"))
    assert merged(None, mine, theirs) == Card(labels=frozenset("abcd"))


def test_nested_values_and_dicts_are_merged_within() -> None:
    base = Card(place=Place("a", 1), notes={"x": Place("x", 1), "y": Place("y", 1)}, extra={"k": {"m": 1, "n": 1}})
    mine = replace(base, place=Place("b", 1), notes={"x": Place("x", 2), "y": Place("y", 1)}, extra={"k": {"m": 2}})
    theirs = replace(
        base, place=Place("a", 2), notes={"x": Place("z", 1), "n": Place()}, extra={"k": {"m": 1, "n": 1, "o": 1}}
    )
    assert merged(base, mine, theirs) == Card(
        place=Place("b", 2), notes={"x": Place("z", 2), "n": Place()}, extra={"k": {"m": 2, "o": 1}}
    )


def test_an_edit_of_a_dicts_key_outlives_its_delete() -> None:
    base, without = Card(extra={"k": 1, "l": 1}), Card(extra={"l": 1})
    edited = Card(extra={"k": 2, "l": 1})
    assert merged(base, without, edited) == merged(base, edited, without) == edited


def test_lists_are_kept_whole_unless_united() -> None:
    base, mine, theirs = Card(steps=["a", "b"]), Card(steps=["b", "c", "c"]), Card(steps=["d", "b", "a"])
    assert merged(base, mine, theirs) == mine
    assert merged(base, mine, theirs, union) == Card(steps=["d", "b", "c"])
    assert merged(base, theirs, mine, union) == Card(steps=["b", "c", "c", "d"])


def test_one_is_not_true() -> None:
    base, mine, theirs = Card(extra={"k": 1}), Card(title="t", extra={"k": 1}), Card(extra={"k": True})
    found = merged(base, mine, theirs)
    assert found is not None
    assert found.extra["k"] is True


@pytest.mark.parametrize(
    ("fn", "mine_deleted", "theirs_deleted"),
    [(fields, "theirs", "mine"), (union, "theirs", "mine"), (last, None, "mine")],
)
def test_edit_against_delete(fn: Merge, mine_deleted: str | None, theirs_deleted: str | None) -> None:
    base = Card("base")
    theirs, mine = (None if name is None else Card(name) for name in (mine_deleted, theirs_deleted))
    assert merged(base, None, Card("theirs"), fn) == theirs
    assert merged(base, Card("mine"), None, fn) == mine
    assert merged(base, None, None, fn) is None


def test_a_place_that_an_older_app_did_not_write_counts_as_the_default() -> None:
    """Mine was made by a newer app, which wrote the default where the base, an older app's, had nothing."""
    base, theirs = Card("a"), replace(NewerCard("a"), due="today")
    mine = NEWER.encode(NewerCard("b"))
    found = made(fields, NEWER)(CARDS.encode(base), mine, NEWER.encode(theirs))
    assert found == NEWER.encode(NewerCard("b", due="today"))


def test_a_function_of_the_app_sees_values() -> None:
    seen: list[Any] = []

    def longest(base: Card | None, mine: Card | None, theirs: Card | None) -> Card | None:
        seen.append((base, mine, theirs))
        both = fields(base, mine, theirs)
        return None if both is None else replace(both, title="longest")

    assert merged(Card("a"), Card("b"), Card("a", done=True), longest) == Card("longest", done=True)
    assert seen == [(Card("a"), Card("b"), Card("a", done=True))]
    assert merged(Card("a"), None, Card("b"), lambda base, mine, theirs: None) is None


def boom(base: Any, mine: Any, theirs: Any) -> Any:
    raise KeyError("nowhere")


def test_a_function_that_fails_is_a_merge_error() -> None:
    not_a_card: Callable[..., Any] = lambda base, mine, theirs: "text"  # noqa: E731
    with pytest.raises(MergeError, match=r"boom failed \(KeyError: 'nowhere'\).*set aside"):
        merged(Card("a"), Card("b"), Card("c"), boom)
    with pytest.raises(MergeError, match=r"returned what cannot be kept.*a str was given where a Card belongs"):
        merged(Card("a"), Card("b"), Card("c"), not_a_card)
    with pytest.raises(MergeError, match="cannot be read here"):
        made(fields)(CARDS.encode(Card("a")), CARDS.encode(Card("b")), b"\xff")


def test_dicts_without_a_type_are_merged_key_by_key() -> None:
    schema = schema_of(dict)
    base: dict[str, Any] = {"a": 1, "b": {"c": [1]}, "d": 1}
    mine, theirs = {"a": 2, "b": {"c": [1, 2]}, "d": 1}, {"a": 1, "b": {"c": [3, 1], "e": None}}
    raws = [schema.encode(one) for one in (base, mine, theirs)]
    for fn, steps in ((fields, [1, 2]), (union, [3, 1, 2])):
        found = made(fn, schema)(*raws)
        assert found == schema.encode({"a": 2, "b": {"c": steps, "e": None}})
