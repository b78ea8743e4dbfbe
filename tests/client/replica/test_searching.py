"""Searching: whatever a user types is asked for, and any SELECT can ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sealwire_client.replica import ReplicaMisuse
from sealwire_client.replica.searching import WORDS_MAX, expression
from tests.client.replica.apps import Opened, opened
from tests.client.replica.test_declared import Item, Plain


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("items"), Item) as replica:
        replica.put("once", Item("Café au lait", notes="milk"))
        replica.put("twice", Item("milk and milk", notes="for the café"))
        replica.put("none", Item("bread", shop="milk"))
        yield replica


def found(items: Opened, text: str, limit: int = 10) -> list[str]:
    return [key for key, _ in items.reader.search(items.cards, text, limit)]


def test_all_words_must_be_there_and_the_last_may_be_unfinished(items: Opened) -> None:
    assert found(items, "milk cafe") == found(items, "CAFÉ mil") == ["twice", "once"]
    assert found(items, "caf milk") == []
    assert found(items, "milk bread") == []
    assert found(items, "milk", limit=1) == ["twice"]
    assert found(items, "") == found(items, " \n") == found(items, "-") == []


@pytest.mark.parametrize(
    "text", ['"', "milk OR", "NOT", "title:milk", "mi*lk(", "milk NEAR(", "\0milk", "milk \ud800", "^ +"]
)
def test_nothing_that_is_typed_is_syntax(items: Opened, text: str) -> None:
    found(items, text)


@settings(max_examples=50)
@given(st.text())
@example("a " * 10_000)
def test_no_text_is_wrong(items: Opened, text: str) -> None:
    found(items, text)
    assert expression(text).count('" "') < WORDS_MAX


def test_any_select_may_ask(items: Opened) -> None:
    rows = items.reader.select(
        "SELECT cards.key, title FROM cards_search AS s JOIN cards USING (key) WHERE cards_search MATCH ?"
        " ORDER BY s.rank",
        ("milk",),
    ).rows
    assert rows == [("twice", "milk and milk"), ("once", "Café au lait")]
    inner = "SELECT key FROM cards_search WHERE cards_search MATCH 'notes: milk'"
    assert items.reader.select(f"SELECT key FROM cards WHERE key IN ({inner})").rows == [("once",)]
    marked = "SELECT highlight(cards_search, 0, '<', '>') FROM cards_search WHERE cards_search MATCH 'lait'"
    assert items.reader.select(marked).rows == [("Café au <lait>",)]


def test_what_is_not_searched_says_so(tmp_path: Path) -> None:
    with opened(tmp_path, Plain) as plain, pytest.raises(ReplicaMisuse, match="put @searchable"):
        plain.reader.search(plain.cards, "milk", 1)
