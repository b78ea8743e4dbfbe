"""What a column looked like to another app: enough to make the bytes of its rows again, and to see what has changed."""

from dataclasses import dataclass, field, make_dataclass
from datetime import date
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings

from sealwire_client.encoding import EncodingError, schema_of
from sealwire_client.forms import encoder
from tests.client.test_encoding import EVERYTHING, EVERYTHINGS, Everything, Node, through_sqlite


def forms(cls: type) -> list[str]:
    return [column.form for column in schema_of(cls).columns]


@settings(max_examples=60)
@given(EVERYTHINGS)
def test_the_bytes_of_a_row_need_no_more_than_the_forms(value: Everything) -> None:
    row = through_sqlite(EVERYTHING, EVERYTHING.to_row(value))
    assert encoder(forms(Everything))(row) == EVERYTHING.encode(value)
    assert EVERYTHING.fits(forms(Everything))


def test_a_type_within_itself_has_a_form_too() -> None:
    schema, value = schema_of(Node), Node("a", [Node("b", [Node("c")]), Node("d")])
    assert encoder(forms(Node))(schema.to_row(value)) == schema.encode(value)
    assert schema.fits(forms(Node))


class Color(Enum):
    RED = "red"


class MoreColors(Enum):
    RED = "red"
    GREEN = "green"


@dataclass
class Place:
    street: str = ""


@dataclass
class LargerPlace:
    street: str = ""
    size: int = 0


def of_type(declared: Any) -> type:
    return make_dataclass("made", [("held", declared)])


@pytest.mark.parametrize(
    ("later", "earlier"),
    [
        (str, str),
        (str | None, str),
        (str | None, str | None),
        (MoreColors, Color),
        (list[MoreColors], list[Color]),
        (LargerPlace, Place),
        (dict[str, LargerPlace | None], dict[str, Place]),
    ],
)
def test_what_has_only_grown_fits_one_way(later: Any, earlier: Any) -> None:
    assert schema_of(of_type(later)).fits(forms(of_type(earlier)))
    assert schema_of(of_type(earlier)).fits(forms(of_type(later))) == (later == earlier)


@pytest.mark.parametrize(
    ("later", "earlier"),
    [
        (date, str),
        (Color, str),
        (list[str], frozenset[str]),
        (list[int], list[float]),
        (list[bytes], list[str]),
        (dict[str, int], Place),
        (Place, make_dataclass("place", [("road", str)])),
        (Place, make_dataclass("place", [("first", int), ("street", str)])),
    ],
)
def test_what_has_changed_does_not_fit(later: Any, earlier: Any) -> None:
    assert not schema_of(of_type(later)).fits(forms(of_type(earlier)))


def test_more_columns_than_there_are_do_not_fit() -> None:
    wider = make_dataclass("wider", [("held", str), ("more", int, field(default=1))])
    assert not schema_of(of_type(str)).fits(forms(wider))
    assert schema_of(wider).fits(forms(of_type(str)))


@pytest.mark.parametrize("held", ["{", "5", "[5]", '{"street": [1]'])
def test_a_row_that_is_not_of_its_form_is_told(held: str) -> None:
    with pytest.raises(EncodingError, match="does not hold"):
        encoder(forms(of_type(list[Place])))((held,))
