"""`where`: entries by what their fields are."""

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum

import pytest

from sealwire_client.encoding import EncodingError
from sealwire_client.policies import latest
from sealwire_client.replica import QueryError
from sealwire_client.replica.tables import VARIABLES_MAX
from sealwire_client.testing.fixtures import OpenDevice
from tests.client.party import founded
from tests.support.virtual import virtual


class Shop(Enum):
    ALDI = "aldi"
    SPAR = "spar"


@dataclass
class Item:
    name: str
    done: bool = False
    shop: Shop | None = None
    due: date | None = None
    price: Decimal = Decimal(0)
    tags: list[str] = field(default_factory=list)


ITEMS = {
    "a": Item("bread", shop=Shop.ALDI, due=date(2024, 5, 2), price=Decimal("1.50")),
    "b": Item("milk", done=True, shop=Shop.SPAR, due=date(2024, 5, 1)),
    "c": Item("o'clock", tags=["x", "y"]),
    "d": Item("milk", shop=Shop.ALDI, due=date(2024, 5, 1)),
}


@virtual
async def test_entries_are_found_by_what_their_fields_are(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        items = await (await founded(device)).vault.collection("items", Item, policy=latest())
        await items.put_many(ITEMS)

        def found(**asked: object) -> str:
            return "".join(key for key, _ in items.where(**asked))  # type: ignore[arg-type]

        assert dict(items.where()) == ITEMS
        assert dict(items.where(done=True)) == {"b": ITEMS["b"]}
        assert found(done=False, shop=Shop.ALDI) == "ad"
        assert found(shop=None) == found(due=None) == "c"
        assert found(shop=[Shop.SPAR, None]) == "bc"
        assert found(shop=(Shop.SPAR, Shop.ALDI)) == "abd"
        assert found(name={"milk", "o'clock"}) == "bcd"
        assert found(name=frozenset()) == ""
        assert found(due=date(2024, 5, 1), price=Decimal(0)) == "bd"
        assert found(price=Decimal("1.50")) == "a"
        assert found(tags=[["x", "y"]]) == "c"
        assert found(key=["a", "c", "z"]) == "ac"
        assert found(order_by="due") == "cbda"
        assert found(order_by="-due") == "abdc"
        assert found(order_by="-key", limit=2) == "dc"
        assert found(name="milk", limit=1) == "b"
        assert found(limit=0) == ""


@virtual
async def test_it_is_one_read_made_when_it_is_called(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        items = await (await founded(device)).vault.collection("items", Item, policy=latest())
        await items.put_many(ITEMS)
        found = items.where(name="milk")
        await items.delete("b")
        assert [key for key, _ in found] == ["b", "d"]


@virtual
async def test_what_is_no_field_or_no_value_of_one_is_refused(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        vault = (await founded(device)).vault
        items = await vault.collection("items", Item, policy=latest())
        with pytest.raises(QueryError, match="no field 'colour'; it has: key, name, done, shop, due, price, tags"):
            items.where(colour="red")
        with pytest.raises(QueryError, match="no field 'x\" DESC --'"):
            items.where(order_by='x" DESC --')
        for wrong in ({"done": "yes"}, {"due": "2024-05-01"}, {"shop": [Shop.ALDI, "aldi"]}, {"key": 5}):
            with pytest.raises(EncodingError):
                items.where(**wrong)
        for limit in (-1, True, 1.5):
            with pytest.raises(QueryError, match="limit= takes"):
                items.where(limit=limit)  # type: ignore[arg-type]
        with pytest.raises(QueryError, match=f"there may be {VARIABLES_MAX}"):
            items.where(name=[str(n) for n in range(VARIABLES_MAX + 1)])


@virtual
async def test_values_without_fields_have_keys_alone(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        untyped = await (await founded(device)).vault.collection("untyped", dict, policy=latest())
        await untyped.put_many({"a": {"x": 1}, "b": {"x": 2}})
        with pytest.raises(QueryError, match="no field 'x', as its values have no declared fields"):
            untyped.where(x=1)
        assert list(untyped.where(order_by="-key", limit=1)) == [("b", {"x": 2})]
