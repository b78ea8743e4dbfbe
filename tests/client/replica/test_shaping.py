"""Which stored column is which field's: by its number, whatever it is called."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_client.replica import Column, ColumnsChangedError
from sealwire_client.replica.declared import Declared
from sealwire_client.replica.shaping import Arranged, arrange

NAMES = ["a", "B", "c", "D", "e"]


def column(number: int, name: str, kind: str = "text", stored: str = "TEXT") -> Column:
    return Column(name, stored, json.dumps([number, [kind], {}]))


def arranged(held: Sequence[Column], given: Sequence[Column]) -> Arranged:
    """By a class that says all of its numbers."""
    return arrange("cards", held, given, Declared(frozenset(one.name for one in given)))


@given(st.permutations(NAMES), st.permutations(NAMES), st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)))
def test_columns_get_their_new_names_one_after_the_other(
    old: list[str], new: list[str], before: set[int], after: set[int]
) -> None:
    held = [column(n, old[n].lower()) for n in sorted(before)]
    given = [column(n, new[n]) for n in sorted(after)]
    found = arranged(held, given)
    names = [one.name for one in held]
    for name, other in found.renamed:
        assert other.lower() not in {one.lower() for one in names if one != name}
        names[names.index(name)] = other
    assert names == list(found.held)
    assert {one.number for one in found.added} == after - before
    assert [one[:3] for one in found.columns[: len(given)]] == [one[:3] for one in given]
    assert {one.name for one in found.columns} == {*names, *(one.name for one in found.added)}
    assert {one.number for one in found.columns} == before | after
    for one, name in zip(held, names, strict=True):
        assert one.number not in after or name == new[one.number or 0]


def test_nothing_is_renamed_that_nobody_calls_otherwise() -> None:
    held = [column(0, "a"), column(1, "b")]
    assert arranged(held, held[:1]).renamed == arranged(held, [*held, column(5, "c")]).renamed == ()


@pytest.mark.parametrize(
    "other",
    [
        column(1, "b", "integer", "INTEGER"),
        column(1, "b", "list"),
        column(1, "b", "nested"),
        column(1, "other", "map"),
    ],
)
def test_a_number_keeps_its_type_also_while_no_field_has_it(other: Column) -> None:
    held = [column(0, "a"), column(1, "b")]
    for stored in (held, arranged(held, [column(0, "a")]).columns):
        with pytest.raises(ColumnsChangedError, match=r"has the number 1.*a number that no field has had"):
            arranged(stored, [column(0, "a"), other])


def test_what_is_untyped_may_become_typed_and_a_value_may_become_optional() -> None:
    held = [column(0, "a", "untyped"), column(1, "b", "list")]
    optional = Column("a", "TEXT", json.dumps([0, ["optional", ["list", ["text"]]], {}]))
    assert arranged(held, [optional, column(1, "b", "untyped")]).renamed == ()


def test_another_name_must_say_the_number() -> None:
    held = [column(0, "title"), column(1, "notes")]
    with pytest.raises(ColumnsChangedError, match=r"that is the number of title: .*`numbered\(0\)`"):
        arrange("cards", held, [column(0, "notes")], Declared())
    found = arrange("cards", held, [column(0, "notes")], Declared(frozenset(["notes"]))).columns
    assert [(one.number, one.name, one.former) for one in found] == [(0, "notes", ("title",)), (1, "_0", ("notes",))]


def test_an_app_that_goes_back_knows_the_names_of_its_time() -> None:
    old = [column(0, "title"), column(1, "notes")]
    held = arranged(old, [column(0, "notes"), column(1, "title")]).columns
    found = arrange("cards", held, old, Declared())
    assert [(one.name, one.former) for one in found.columns] == [("title", ("notes",)), ("notes", ("title",))]
    with pytest.raises(ColumnsChangedError, match="that is the number of notes"):
        arrange("cards", held, [column(0, "text")], Declared())
