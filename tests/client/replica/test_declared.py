"""Indexes and searched words that a class declares: there while they are declared, right whatever is written."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealwire_client.conditions import matching
from sealwire_client.declaring import indexed, searchable
from sealwire_client.encoding import numbered, schema_of
from sealwire_client.replica import NoSearchError, ReplicaMisuse, repair
from sealwire_client.replica import declared as declared_module
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import StreamKind
from tests.client.replica.apps import Opened, opened


@dataclass
class Plain:
    title: str = ""
    shop: str = ""
    rank: int = 0
    notes: str | None = None


@indexed("shop", ("rank", "shop"))
@searchable("title", "notes")
@dataclass
class Item(Plain):
    pass


@indexed("market", ("place", "market"))
@searchable("title", "notes")
@dataclass
class Renamed:
    """An item whose shop is called its market, and its rank its place."""

    title: str = ""
    market: str = numbered(1, default="")
    place: int = numbered(2, default=0)
    notes: str | None = None


@searchable("title")
@dataclass
class TitlesAlone(Plain):
    pass


@pytest.fixture
def items(tmp_path: Path) -> Iterator[Opened]:
    with opened(tmp_path, Item) as replica:
        yield replica


def found(items: Opened, text: str) -> list[str]:
    return [key for key, _ in items.reader.search(items.cards, text, 10)]


def plan(items: Opened, sql: str) -> str:
    return " ".join(row[3] for row in items.reader.connection.execute(f"EXPLAIN QUERY PLAN {sql}"))


def made(items: Opened) -> dict[str, int]:
    """What was made for queries: the first page of each index and table of words."""
    rows = items.replica.database.connection.execute(
        "SELECT name, rootpage FROM sqlite_schema WHERE name GLOB '_c1_by_*' OR name GLOB '_f1*' AND type = 'table'"
    )
    return dict(rows.fetchall())


def test_a_select_uses_the_declared_indexes(items: Opened) -> None:
    assert "USING INDEX _c1_by_1 " in plan(items, "SELECT title FROM cards WHERE shop = 'a'")
    assert "USING INDEX _c1_by_2_1 " in plan(items, "SELECT title FROM cards WHERE rank = 1 AND shop > 'a'")
    assert "USING INDEX _c1_by_2_1" in plan(items, "SELECT title FROM cards ORDER BY rank, shop")


def test_conditions_use_them_as_well(items: Opened) -> None:
    condition, _ = matching("cards", items.schema, {"shop": "a"}, "key", None)
    sql = f"SELECT key FROM main.{items.cards.table.name} WHERE _live = 1 AND {condition}".replace("?", "'a'")
    assert "USING INDEX _c1_by_1 " in plan(items, sql)


def test_what_has_another_name_keeps_its_index_and_what_is_declared_no_more_loses_it(items: Opened) -> None:
    items.put("k", Item("milk", "corner", 3))
    before = made(items)
    items.open(Renamed)
    assert made(items) == before
    assert "USING INDEX _c1_by_1 " in plan(items, "SELECT title FROM cards WHERE market = 'corner'")
    assert items.reader.select("SELECT key FROM cards WHERE market = 'corner'").rows == [("k",)]
    items.open(TitlesAlone)
    assert {name for name in made(items) if "_by_" in name} == set()
    items.open(Plain)
    assert made(items) == {}
    items.put("k", Plain("bread"))
    items.open(Item)
    assert made(items).keys() == before.keys()
    assert found(items, "bread") == ["k"]


def test_words_follow_every_way_of_writing(items: Opened) -> None:
    items.put("mine", Item("fresh milk", notes="from the dairy"))
    items.deliver("theirs", schema_of(Item).encode(Item("sour milk")))
    assert sorted(found(items, "milk")) == ["mine", "theirs"]
    items.deliver("theirs", schema_of(Item).encode(Item("bread")))
    items.deliver("mine", schema_of(Item).encode(Item("cheese")))
    assert (found(items, "sour"), found(items, "bread"), found(items, "cheese")) == ([], ["theirs"], [])
    items.deliver("theirs", None)
    assert found(items, "bread") == []
    items.replica.forget(items.cards, items.cursor, items.cursor)
    items.deliver("theirs", b"not of this app")
    assert items.reader.newer(items.cards) == ["theirs"]
    assert (found(items, "bread"), found(items, "dairy")) == ([], ["mine"])
    items.put("mine", Item("butter", shop="milk"))
    assert (found(items, "milk"), found(items, "dairy"), found(items, "butter")) == ([], [], ["mine"])
    items.open(Plain)
    items.put("mine", Plain("oil"))
    items.open(TitlesAlone)
    assert (found(items, "butter"), found(items, "oil")) == ([], ["mine"])


def test_words_of_many_records_at_once_are_found_and_their_sum_is_right(items: Opened) -> None:
    values = [schema_of(Item).encode(Item(f"thing {n}", notes="some" if n % 2 else None)) for n in range(200)]
    items.deliver_many({f"{n:03}": value for n, value in enumerate(values)})
    assert found(items, "thing 117") == ["117"]
    assert items.reader.select("SELECT count(*) FROM cards_search WHERE cards_search MATCH 'some'").rows == [(100,)]
    assert items.replica.sums.is_right(items.cards.table)


def test_fields_that_change_places_are_searched_under_their_own_names(items: Opened) -> None:
    @searchable("title", "notes")
    @dataclass
    class Swapped:
        notes: str | None = numbered(0, default="")
        title: str | None = numbered(3, default=None)

    items.put("k", Item("milk", notes="fresh"))
    items.open(Swapped)
    search = "SELECT key FROM cards_search WHERE cards_search MATCH ?"
    assert items.reader.select(search, ("title: fresh",)).rows == [("k",)]
    assert items.reader.select(search, ("title: milk",)).rows == []


def test_work_that_takes_long_is_told(
    items: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(declared_module, "_TOLD_MS", -1)
    with caplog.at_level(logging.INFO, "sealwire.replica"):
        items.open(TitlesAlone)
    assert "what cards declares to be indexed or searched was made in" in caplog.text


def test_words_are_made_anew_in_a_replica_that_was_repaired(tmp_path: Path) -> None:
    with opened(tmp_path, Item) as items:
        items.put("k", Item("milk", "corner"))
    repair(tmp_path)
    with opened(tmp_path, Item) as items:
        assert found(items, "milk") == ["k"]
        assert "USING INDEX _c1_by_1 " in plan(items, "SELECT title FROM cards WHERE shop = 'corner'")


def test_a_vault_takes_its_words_along(items: Opened) -> None:
    items.put("k", Item("milk"))
    items.replica.parting.forget(1, discard=True)
    assert made(items) == {}


def test_without_fts5_opening_says_so_and_changes_nothing(items: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    items.put("k", Item("milk"))
    with monkeypatch.context() as without:
        without.setattr(declared_module, "MODULE", "fts5_of_another_python")
        for cls in (TitlesAlone, Plain):
            with pytest.raises(NoSearchError, match="was built without FTS5"):
                items.open(cls)
    assert found(items, "milk") == ["k"]


def test_no_collection_has_the_name_of_anothers_search(items: Opened) -> None:
    schema = schema_of(Item)

    def open_as(name: str) -> None:
        of = 1, name, StreamId(name.encode()[:8].ljust(8)), StreamKind.OPEN, "latest", schema.columns, schema
        items.replica.entries.open(*of, declared=schema.declared)

    with pytest.raises(ReplicaMisuse, match="is what SQL calls the search of collection"):
        open_as("Cards_search")
    open_as("others")
    items.open(Plain)
    of = 1, "cards_search", StreamId(b"other..."), StreamKind.OPEN, "latest", schema.columns, schema
    items.replica.entries.open(*of)
    with pytest.raises(ReplicaMisuse, match="cannot be searched while there is a collection cards_search"):
        items.open(Item)
