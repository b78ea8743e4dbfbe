"""What a class declares, as an app uses it: names are checked, searches find, devices differ in what they declare."""

from dataclasses import dataclass

import pytest

from sealwire_client import NoSearchError, ReplicaMisuse, indexed, latest, searchable
from sealwire_client.declaring import INDEXES_MAX
from sealwire_client.encoding import EncodingError, numbered, schema_of
from sealwire_client.findings import Verdict
from sealwire_client.replica import declared
from sealwire_client.testing.fixtures import OpenDevice
from tests.client.party import all_synced, founded, party
from tests.support.virtual import virtual


@indexed("shop", ("due", "shop"))
@searchable("title")
@dataclass(frozen=True)
class Item:
    title: str
    shop: str = ""
    due: int = 0


@dataclass(frozen=True)
class Renamed:
    """`title` is called `what`, and `shop` has gone."""

    what: str = numbered(0)
    due: int = numbered(2, default=0)


def test_what_is_declared_is_known_of_the_class_and_of_those_that_inherit() -> None:
    @indexed("place")
    @searchable("notes", "title")
    @dataclass(frozen=True)
    class More(Item):
        place: str = numbered(5, default="")
        notes: str | None = None

    found = schema_of(More).declared
    assert found.indexed == (("shop",), ("due", "shop"), ("place",))
    assert found.searched == ("title", "notes")
    assert found.numbered == {"place"}
    assert schema_of(dict).declared == declared.NOTHING_DECLARED


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (indexed("shop", "colour"), "no field 'colour' to be indexed or searched; it has title, shop, due"),
        (searchable("colour"), "no field 'colour' to be indexed or searched; it has title, shop, due"),
        (indexed(()), "an index of .* is of one field or several"),
        (indexed(("shop", "shop")), "an index of .* is of one field or several"),
        (searchable("due"), "field 'due' of .* is no text"),
        (indexed(*[("title", "shop", "due")[: n % 3 + 1] for n in range(3)]), ""),
    ],
)
def test_what_cannot_be_declared_is_told(declare: object, message: str) -> None:
    @dataclass
    class Fresh:
        title: str
        shop: str = ""
        due: int = 0

    assert callable(declare)
    schema = schema_of(declare(Fresh))
    if message:
        with pytest.raises(EncodingError, match=message):
            _ = schema.declared
    else:
        assert len(schema.declared.indexed) == 3


def test_there_may_not_be_more_indexes_than_pay() -> None:
    names = [f"f{n}" for n in range(INDEXES_MAX + 1)]
    many: type = dataclass(type("Many", (), {"__annotations__": dict.fromkeys(names, int)}))
    with pytest.raises(EncodingError, match=f"at most {INDEXES_MAX}"):
        _ = schema_of(indexed(*names)(many)).declared


def test_a_searched_field_cannot_have_the_name_of_the_order() -> None:
    @searchable("rank")
    @dataclass
    class Ranked:
        rank: str

    with pytest.raises(EncodingError, match="cannot be called 'rank'"):
        _ = schema_of(Ranked).declared


@virtual
async def test_what_other_devices_write_is_found_here_under_the_names_of_here(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        vaults = [a.vault, b.vault]
        items = await a.vault.collection("items", Item, policy=latest())
        renamed = await b.vault.collection("items", Renamed, policy=latest())
        await items.put_many({"a": Item("fresh milk", "corner"), "b": Item("milk, and milk", due=2030)})
        await all_synced(vaults)
        assert renamed.get("a") == Renamed("fresh milk")
        await renamed.put("a", Renamed("fresh bread", 2031))
        await all_synced(vaults)
        assert items.get("a") == Item("fresh bread", "corner", 2031)
        assert items.search("fre") == [("a", Item("fresh bread", "corner", 2031))]
        assert [key for key, _ in items.search("milk", limit=1)] == ["b"]
        assert items.search("fresh milk") == items.search("corner") == []
        rows = a.vault.select("SELECT key FROM items_search WHERE items_search MATCH 'title: bread'").rows
        assert rows == [("a",)]
        with pytest.raises(ReplicaMisuse, match="put @searchable"):
            renamed.search("milk")
        for guest in guests:
            assert (await guest.device.examine()).verdict is Verdict.IN_SYNC


@virtual
async def test_a_live_query_is_told_of_what_is_found(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        vault = (await founded(device)).vault
        items = await vault.collection("items", Item, policy=latest())
        others = await vault.collection("others", Item, policy=latest())
        search = "SELECT key, rank < 0 FROM items_search WHERE items_search MATCH 'milk'"
        async with vault.live(search) as live:
            assert (await anext(live)).rows == ()
            await others.put("x", Item("milk"))
            await items.put("a", Item("milk"))
            assert (await anext(live)).rows == (("a", 1),)
            await items.put("a", Item("bread"))
            assert (await anext(live)).rows == ()
            assert live.runs == 3


@virtual
async def test_a_device_opens_what_it_held_under_other_names(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        vault = (await founded(device)).vault
        items = await vault.collection("items", Item, policy=latest())
        await items.put("a", Item("milk", "corner"))
    async with open_device("a") as device:
        renamed = await device.vaults[0].collection("items", Renamed, policy=latest())
        assert renamed.get("a") == Renamed("milk")
        await renamed.put("a", Renamed("bread"))
    async with open_device("a") as device:
        items = await device.vaults[0].collection("items", Item, policy=latest())
        assert items.search("bread") == [("a", Item("bread", "corner"))]


@virtual
async def test_where_nothing_can_be_searched_opening_says_so(
    open_device: OpenDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "MODULE", "fts5_of_another_python")
    async with open_device("a") as device:
        vault = (await founded(device)).vault
        with pytest.raises(NoSearchError, match="items has fields that are searched"):
            await vault.collection("items", Item, policy=latest())
        assert (await vault.collection("items", Renamed, policy=latest())).get("a") is None
