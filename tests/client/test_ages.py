"""Two devices in one vault, with apps of different ages, that edit one entry without knowing of each other."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pycrdt import Doc, Text

from sealwire_client.collection import Collection
from sealwire_client.merging import union
from sealwire_client.policies import Policy, document, merge
from sealwire_client.replica import NeedsNewerAppError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from tests.client.ages import Color, MoreColors, Place, PlaceWithZip
from tests.client.party import Guest, appended_twice, cut_off, founded, joined, party, returned
from tests.support.virtual import virtual


@dataclass(frozen=True)
class Card:
    title: str = ""
    done: bool = False
    labels: frozenset[str] = frozenset()
    color: Color = Color.RED
    place: Place = field(default=Place())
    steps: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NewerCard:
    title: str = ""
    done: bool = False
    labels: frozenset[str] = frozenset()
    color: MoreColors = MoreColors.RED
    place: PlaceWithZip = field(default=PlaceWithZip())
    steps: list[str] = field(default_factory=list)
    due: str = "never"


def read(collection: Collection[Any], key: str) -> Any:
    """The value of a key, which is there."""
    return collection.get(key)


Sides = tuple[Guest, Guest, Collection[Any], Collection[Any]]


async def agreed(*guests: Guest) -> None:
    """Wait until both have sent what they made of the other's edits, and have received what the other made."""
    for _ in range(2):
        for guest in guests:
            await guest.vault.synced()


@asynccontextmanager
async def cards(
    open_device: OpenDevice, here: type = Card, there: type = Card, policy: Policy | None = None
) -> AsyncIterator[Sides]:
    """A collection in the hands of two apps."""
    chosen = merge() if policy is None else policy
    async with party(open_device) as (a, b):
        yield (
            a,
            b,
            await a.vault.collection("cards", here, policy=chosen),
            await b.vault.collection("cards", there, policy=chosen),
        )


@virtual
async def test_edits_of_different_fields_made_offline_both_survive(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with cards(open_device) as (a, b, mine, theirs):
        await mine.put("k", Card("milk", labels=frozenset("ab")))
        await agreed(a, b)
        async with cut_off(memory_relay):
            await mine.put("k", Card("oat milk", labels=frozenset("bc")))
            await theirs.put("k", Card("milk", done=True, labels=frozenset("abd")))
        await agreed(a, b)
        assert mine.get("k") == theirs.get("k") == Card("oat milk", True, frozenset("bcd"))
        assert appended_twice(memory_relay) == []


@virtual
async def test_united_lists_have_what_both_put_in(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with cards(open_device, policy=merge(union)) as (a, b, mine, theirs):
        await mine.put("k", Card("milk", steps=["first"]))
        await agreed(a, b)
        async with cut_off(memory_relay):
            await theirs.put("k", Card("milk", steps=["first", "theirs"]))
            await mine.put("k", Card("milk", steps=["first", "mine"]))
        await agreed(b, a)
        assert mine.get("k") == theirs.get("k")
        assert set(read(mine, "k").steps) == {"first", "mine", "theirs"}


@virtual
async def test_an_edit_outlives_a_delete(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with cards(open_device) as (a, b, mine, theirs):
        await mine.put("k", Card("milk"))
        await mine.put("l", Card("bread"))
        await agreed(a, b)
        async with cut_off(memory_relay):
            await mine.delete("k")
            await mine.put("l", Card("rye"))
            await theirs.put("k", Card("milk", done=True))
            await theirs.delete("l")
        await agreed(a, b)
        for side in (mine, theirs):
            assert dict(side.items()) == {"k": Card("milk", done=True), "l": Card("rye")}


@virtual
async def test_an_older_app_and_a_newer_one_edit_one_entry(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with cards(open_device, NewerCard, Card) as (a, b, newer, older):
        first = NewerCard("milk", place=PlaceWithZip("a", "123"), due="today")
        await newer.put("k", first)
        await agreed(a, b)
        assert older.get("k") == Card("milk", place=Place("a"))
        await older.put("k", Card("oat milk", place=Place("a")))
        await agreed(b, a)
        assert newer.get("k") == replace(first, title="oat milk")
        async with cut_off(memory_relay):
            await newer.put("k", replace(first, title="oat milk", due="tomorrow", place=PlaceWithZip("a", "456")))
            await older.put("k", Card("oat milk", done=True, place=Place("b")))
        await agreed(a, b)
        expected = NewerCard("oat milk", True, place=PlaceWithZip("b", "456"), due="tomorrow")
        assert newer.get("k") == expected
        assert older.get("k") == Card("oat milk", True, place=Place("b"))


@virtual
async def test_a_value_that_needs_a_newer_app_is_never_overwritten(open_device: OpenDevice) -> None:
    async with cards(open_device, NewerCard, Card) as (a, b, newer, older):
        green = NewerCard("milk", color=MoreColors.GREEN)
        await newer.put("k", green)
        await newer.put("l", NewerCard("bread"))
        await agreed(a, b)
        assert [key for key, _ in older.items()] == ["l"]
        assert len(older) == 1
        for use in (older.put("k", Card("mine")), older.delete("k"), older.put_many({"m": Card(), "k": Card("mine")})):
            with pytest.raises(NeedsNewerAppError, match="update this app"):
                await use
        with pytest.raises(NeedsNewerAppError):
            older.get("k")
        assert older.get("m") is None
        assert older.newer() == ["k"]
        assert ["k" in older, "l" in older, "m" in older] == [True, True, False]
        assert (await b.vault.status()).unreadable == 0
        await agreed(b, a)
        assert newer.get("k") == green
        await newer.put("k", NewerCard("red again"))
        await agreed(a, b)
        assert older.get("k") == Card("red again")


@virtual
async def test_an_edit_made_before_such_a_value_came_is_set_aside(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as device, AsyncExitStack() as away:
        a = await founded(device)
        newer = await a.vault.collection("cards", NewerCard, policy=merge())
        await newer.put("k", NewerCard("milk"))
        b = await joined(await away.enter_async_context(open_device("b")), a.vault)
        older = await b.vault.collection("cards", Card, policy=merge())
        await agreed(a, b)
        async with cut_off(memory_relay):
            await older.put("k", Card("mine"))
            await older.put("l", Card("goes on"))
            await away.aclose()
        green = NewerCard("milk", color=MoreColors.GREEN)
        await newer.put("k", green)
        await agreed(a)
        async with open_device("b") as again:
            b = await returned(again)
            older = await b.vault.collection("cards", Card, policy=merge())
            await agreed(b, a)
            assert [(stuck.key, stuck.collection) for stuck in await b.vault.stuck()] == [("k", "cards")]
            assert older.get("k") == Card("mine")
            assert dict(newer.items()) == {"k": green, "l": NewerCard("goes on")}
        async with open_device("b") as updated:
            b = await returned(updated)
            both = await b.vault.collection("cards", NewerCard, policy=merge())
            assert await b.vault.retry("cards", "k")
            await agreed(b, a)
            assert both.get("k") == newer.get("k") == NewerCard("mine", color=MoreColors.GREEN)


@virtual
async def test_documents_are_merged_letter_by_letter(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    def typed(doc: Any, at: int, what: str) -> Any:
        doc.get("text", type=Text).insert(at, what)
        return doc

    async with cards(open_device, Doc, Doc, document()) as (a, b, mine, theirs):
        await mine.put("k", typed(Doc(), 0, "milk"))
        await agreed(a, b)
        async with cut_off(memory_relay):
            await mine.put("k", typed(mine.get("k"), 0, "oat "))
            await theirs.put("k", typed(theirs.get("k"), 4, " and bread"))
        await agreed(a, b)
        for side in (mine, theirs):
            assert str(read(side, "k").get("text", type=Text)) == "oat milk and bread"
