"""Fields that get other names, go and come back: what was put is read by its numbers, by any class on any device."""

import dataclasses
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_client.declaring import indexed, searchable
from sealwire_client.encoding import numbered, schema_of
from sealwire_client.replica import ColumnsChangedError, repair
from tests.client.replica.apps import Opened, opened


@dataclass
class Task:
    title: str = ""
    effort: int = 0
    due: str = "never"


@dataclass
class Renamed:
    """`title` and `due` have changed places, `effort` is called `hours`, and there is one field more."""

    due: str = numbered(0, default="")
    hours: int = numbered(1, default=0)
    title: str = numbered(2, default="never")
    done: bool = False


@dataclass
class Dropped:
    """`effort` has gone, and `due` has its name."""

    title: str = ""
    effort: str = numbered(2, default="never")


@dataclass
class Retyped:
    title: str = ""
    effort: str = "none"


def touched(replica: Opened) -> None:
    """Let no row be changed from now on."""
    for stored in replica.cards.table.stored:
        replica.replica.database.connection.execute(
            f"CREATE TRIGGER never_{stored} BEFORE UPDATE ON {stored} BEGIN SELECT raise(ABORT, 'touched'); END"
        )


def test_another_name_is_the_same_field_and_no_row_is_touched(tmp_path: Path) -> None:
    @dataclass
    class Other:
        due: str = numbered(0, default="")
        hours: int = numbered(1, default=0)
        title: str = numbered(2, default="never")

    with opened(tmp_path, Task) as replica:
        replica.put("k", Task("paint", 3, "today"))
        replica.deliver("k", schema_of(Task).encode(Task("theirs", 4)))
        touched(replica)
        replica.open(Other)
        assert replica.get("k") == Other("paint", 3, "today")
        assert replica.reader.select("SELECT due, hours, title FROM cards").rows == [("paint", 3, "today")]
        assert replica.value("k") == schema_of(Task).encode(Task("paint", 3, "today"))


def test_names_change_together_with_a_new_field(tmp_path: Path) -> None:
    with opened(tmp_path, Task) as replica:
        replica.put("k", Task("paint", 3, "today"))
        replica.open(Renamed)
        assert replica.get("k") == Renamed("paint", 3, "today", False)
        replica.put("l", Renamed("sand", 1, "later", True))
        replica.open(Task)
        assert replica.get("l") == Task("sand", 1, "later")
        replica.put("l", Task("sand more", 2))
        replica.open(Renamed)
        assert replica.get("l") == Renamed("sand more", 2, "never", True)


def test_a_field_that_has_gone_is_kept_and_comes_back(tmp_path: Path) -> None:
    with opened(tmp_path, Task) as replica:
        replica.put("k", Task("paint", 3, "today"))
        replica.open(Dropped)
        assert replica.get("k") == Dropped("paint", "today")
        assert replica.reader.select("SELECT * FROM cards").columns == ("key", "title", "effort")
        replica.put("k", Dropped("paint it", "tomorrow"))
        replica.put("new", Dropped("sand", "soon"))
        replica.open(Task)
        assert replica.get("k") == Task("paint it", 3, "tomorrow")
        assert replica.get("new") == Task("sand", 0, "soon")


def test_who_looks_from_outside_sees_the_fields_of_the_app_that_was_here_last(tmp_path: Path) -> None:
    with opened(tmp_path, Task) as replica:
        replica.open(Dropped)
        (seen,) = replica.replica.census.collections(1)
        assert [column.name for column in seen.columns] == ["title", "effort"]
        assert seen.table.width == 3


def test_a_number_that_had_another_type_is_refused_and_nothing_has_changed(tmp_path: Path) -> None:
    with opened(tmp_path, Task) as replica:
        replica.put("k", Task("paint", 3, "today"))
        for before in (Task, Dropped):
            replica.open(before)
            with pytest.raises(ColumnsChangedError, match="a number that no field has had"):
                replica.open(Retyped)
        replica.open(Task)
        assert replica.get("k") == Task("paint", 3, "today")


def test_a_field_that_has_moved_without_its_number_is_refused(tmp_path: Path) -> None:
    @dataclass
    class Moved:
        due: str = ""

    with opened(tmp_path, Task) as replica, pytest.raises(ColumnsChangedError, match=r"say `numbered\(0\)`"):
        replica.open(Moved)


def test_a_file_that_knows_no_forms_gets_them(tmp_path: Path) -> None:
    """As collections were once kept."""
    with opened(tmp_path, Task) as replica:
        replica.put("k", Task("paint", 3, "today"))
        old = json.dumps([column[:2] for column in replica.cards.columns])
        replica.replica.database.connection.execute("UPDATE _collection SET columns = ?", (old,))
    with opened(tmp_path, Task) as replica:
        replica.open(Renamed)
        assert replica.get("k") == Renamed("paint", 3, "today", False)


def test_a_damaged_replica_is_saved_with_fields_that_have_changed(tmp_path: Path) -> None:
    with opened(tmp_path, Task) as replica:
        replica.put("k", Task("paint", 3, "today"))
        replica.open(Dropped)
        replica.put("l", Dropped("sand", "soon"))
    repair(tmp_path)
    with opened(tmp_path, Dropped) as replica:
        assert (replica.get("k"), replica.get("l")) == (Dropped("paint", "today"), Dropped("sand", "soon"))
        replica.open(Renamed)
        assert replica.get("k") == Renamed("paint", 3, "today", False)


# --- whatever the history

TYPES: list[tuple[type, Any, list[Any]]] = [
    (str, "", ["a", "b c", "B"]),
    (int, 7, [0, 1]),
    (str, "z", ["a", "c"]),
    (list[str], ["x"], [[], ["y"]]),
    (float, 0.5, [1.0]),
]
"""Of the field with each number: the type, the default and other values."""

NAMES = ["ant", "Bee", "cat", "dog", "eel"]
Written = dict[int, Any]


@st.composite
def classes(draw: st.DrawFn) -> type:
    """A class that knows some of the numbers, by any names, and declares some of it to be indexed and searched."""
    names = draw(st.permutations(NAMES))
    numbers = sorted(draw(st.sets(st.integers(0, 4), min_size=1)))
    cls = dataclasses.make_dataclass(
        "Card",
        [(names[n], TYPES[n][0], numbered(n, default_factory=lambda n=n: TYPES[n][1])) for n in numbers],
    )
    texts = [names[n] for n in numbers if TYPES[n][0] is str]
    searched = draw(st.lists(st.sampled_from(texts), unique=True)) if texts else []
    some = st.lists(st.sampled_from([names[n] for n in numbers]), min_size=1, max_size=2, unique=True).map(tuple)
    return indexed(*draw(st.lists(some, max_size=3)))(searchable(*searched)(cls))


def numbers_of(cls: type) -> dict[int, str]:
    return {field.metadata["sealwire"]: field.name for field in dataclasses.fields(cls)}


def read(cls: type, written: Written) -> Any:
    """What a class makes of what was written at each number."""
    return cls(**{name: written.get(number, TYPES[number][1]) for number, name in numbers_of(cls).items()})


def check(replica: Opened, cls: type, model: dict[str, Written]) -> None:
    """What it shows by `get`, by SQL, by its indexes and by its search is what was written."""
    assert {key: replica.get(key) for key in model} == {key: read(cls, written) for key, written in model.items()}
    names, declared = numbers_of(cls), replica.cards.declared
    shown = replica.reader.select(f"SELECT key, {', '.join(names.values())} FROM cards ORDER BY key").rows
    assert shown == [(key, *replica.schema.to_row(read(cls, model[key]))) for key in sorted(model)]
    for index in declared.indexed:
        rows = [replica.schema.to_row(read(cls, written)) for written in model.values()]
        place = list(names.values()).index(index[0])
        sql = f"SELECT count(*) FROM cards WHERE {index[0]} = ?"
        for row in rows:
            assert replica.reader.select(sql, (row[place],)).rows == [(sum(one[place] == row[place] for one in rows),)]
    if declared.searched:
        for word in "abcz":
            values = {key: read(cls, written) for key, written in model.items()}
            has = {
                k for k, v in values.items() if any(word in getattr(v, f).lower().split() for f in declared.searched)
            }
            found = replica.reader.select("SELECT key FROM cards_search WHERE cards_search MATCH ?", (word,)).rows
            assert sorted(found) == sorted((key,) for key in has)
    assert replica.replica.sums.is_right(replica.cards.table)


@settings(max_examples=25)
@given(st.data())
def test_whatever_was_put_under_any_class_is_read_by_its_numbers_here_and_elsewhere(data: st.DataObject) -> None:
    model: dict[str, Written] = {}
    with ExitStack() as stack:
        one, other = data.draw(classes()), data.draw(classes())
        here, there = (
            stack.enter_context(opened(Path(stack.enter_context(TemporaryDirectory())), cls)) for cls in (one, other)
        )
        for version in range(1, data.draw(st.integers(2, 5))):
            one, other = data.draw(classes()), data.draw(classes())
            here.open(one)
            check(here, one, model)
            for key in data.draw(st.lists(st.sampled_from("kl"), unique=True)):
                names = numbers_of(one)
                given = {n: data.draw(st.sampled_from([TYPES[n][1], *TYPES[n][2]])) for n in names}
                here.put(key, read(one, given))
                model[key] = {**model.get(key, {}), **given}
            check(here, one, model)
            there.open(other)
            for key in model:
                there.deliver(key, here.value(key), version * 10)
            check(there, other, model)
            assert {key: there.value(key) for key in model} == {key: here.value(key) for key in model}
