import sqlite3
import threading
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, NewType

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_client import plain
from sealwire_client.encoding import EncodingError, Schema, numbered, schema_of
from sealwire_client.scalars import INTEGER_MAX

UserId = NewType("UserId", int)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Todo:
    title: str
    done: bool = False
    weight: float = 0.0


@dataclass
class Place:
    street: str
    number: int | None = None
    photo: bytes = b""


@dataclass(frozen=True)
class Spot:
    x: int = 0
    y: float = 0.0


@dataclass
class Node:
    name: str
    children: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Everything:
    text: str
    whole: int
    real: float
    yes: bool
    raw: bytes
    maybe: str | None
    color: Color
    level: Level
    when: datetime
    day: date
    price: Decimal
    user: UserId
    noted: Annotated[str, "a note"]
    tags: list[str]
    points: tuple[float, ...]
    counts: dict[str, int]
    place: Place
    places: list[Place]
    by_name: dict[str, Place | None]
    anything: Any
    maybe_place: Place | None = None
    things: dict = field(default_factory=dict)  # type: ignore[type-arg]
    blobs: list[bytes] = field(default_factory=list)
    labels: frozenset[str] = frozenset()
    spots: frozenset[Spot] = frozenset()
    days: frozenset[date] | None = None


LISTED, EVERYTHING = schema_of(Todo), schema_of(Everything)

INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PLACES = st.builds(Place, TEXTS, st.none() | INTEGERS, st.binary(max_size=20))
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
EVERYTHINGS = st.builds(
    Everything,
    text=TEXTS,
    whole=INTEGERS,
    real=FLOATS,
    yes=st.booleans(),
    raw=st.binary(max_size=20),
    maybe=st.none() | TEXTS,
    color=st.sampled_from(Color),
    level=st.sampled_from(Level),
    when=st.datetimes(timezones=st.none() | st.just(UTC)),
    day=st.dates(),
    price=st.decimals(allow_nan=False),
    user=INTEGERS.map(UserId),
    noted=TEXTS,
    tags=st.lists(TEXTS, max_size=3),
    points=st.lists(FLOATS, max_size=3).map(tuple),
    counts=st.dictionaries(TEXTS, INTEGERS, max_size=3),
    place=PLACES,
    places=st.lists(PLACES, max_size=2),
    by_name=st.dictionaries(TEXTS, st.none() | PLACES, max_size=2),
    anything=JSON,
    maybe_place=st.none() | PLACES,
    things=st.dictionaries(TEXTS, JSON, max_size=2),
    blobs=st.lists(st.binary(max_size=9), max_size=2),
    labels=st.frozensets(TEXTS, max_size=3),
    spots=st.frozensets(st.builds(Spot, INTEGERS, FLOATS), max_size=3),
    days=st.none() | st.frozensets(st.dates(), max_size=2),
)


def through_sqlite(schema: Schema[Any], row: tuple[Any, ...]) -> tuple[Any, ...]:
    database = sqlite3.connect(":memory:")
    try:
        columns = ", ".join(f'"{c.name}" {c.type}' for c in schema.columns)
        database.execute(f"CREATE TABLE t ({columns})")
        database.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", row)
        found: tuple[Any, ...] = database.execute("SELECT * FROM t").fetchone()
        return found
    finally:
        database.close()


@settings(max_examples=60)
@given(EVERYTHINGS)
def test_a_value_comes_back_from_bytes_and_from_columns(value: Everything) -> None:
    raw = EVERYTHING.encode(value)
    assert EVERYTHING.decode(raw) == value
    row = EVERYTHING.to_row(value)
    assert EVERYTHING.row_from_cbor(raw) == (row, len(row))
    kept = through_sqlite(EVERYTHING, row)
    assert EVERYTHING.from_row(kept) == value
    assert EVERYTHING.cbor_from_row(kept) == raw


@given(st.builds(Todo, TEXTS, st.booleans(), FLOATS))
def test_small_values_take_the_fast_path_to_the_same_end(value: Todo) -> None:
    raw = LISTED.encode(value)
    row, exact = LISTED.row_from_cbor(raw)
    assert exact
    assert row == LISTED.to_row(value)
    assert list(map(type, row)) == list(map(type, LISTED.to_row(value)))
    assert LISTED.from_row(through_sqlite(LISTED, row)) == value
    assert LISTED.cbor_from_row(through_sqlite(LISTED, row)) == raw


@given(st.lists(st.builds(Todo, TEXTS, st.booleans(), FLOATS), max_size=40))
def test_many_values_become_rows_as_one_does(values: list[Todo]) -> None:
    raws = [LISTED.encode(value) for value in values]
    alone = [LISTED.row_from_cbor(raw)[0] for raw in raws]
    many = LISTED.usual_rows(raws)
    assert many == alone
    assert many is not None
    assert [list(map(type, row)) for row in many] == [list(map(type, row or ())) for row in alone]


@dataclass
class Plain:
    text: str
    number: int | None
    size: float | None
    color: Color | None = None


USUAL = cbor2.dumps(["a", 1, 1.5, "red"])


@pytest.mark.parametrize(
    "unusual",
    [
        cbor2.dumps(["a", 1, 1.5]),
        cbor2.dumps(["a", 1, 1.5, "red", "newer"]),
        cbor2.dumps(["a", 2**63, 1.5, "red"]),
        cbor2.dumps(["a", -(2**63) - 1, 1.5, "red"]),
        cbor2.dumps(["a", 1, float("nan"), "red"]),
        cbor2.dumps(["a", 1, -0.0, "red"]),
        cbor2.dumps(["a", 1, 2, "red"]),
        cbor2.dumps(["a", True, 1.5, "red"]),
        cbor2.dumps(["a", 1, 1.5, "mauve"]),
        cbor2.dumps(["a", 1, 1.5, cbor2.undefined]),
        cbor2.dumps(["a", 1, 1.5, ["red"]]),
        cbor2.dumps({"a": 1}),
        cbor2.dumps(5),
        b"",
        bytes.fromhex("84616101f93e0063726564"),  # a float of 16 bits
        bytes.fromhex("846161180163726564"),  # an integer that is not in its shortest form
        bytes.fromhex("9f616101fb3ff800000000000063726564ff"),  # of no length told before
        bytes.fromhex("84c0616101fb3ff800000000000063726564"),  # a tag
        USUAL + b"\x00",
        USUAL[:-1],
        USUAL + USUAL,
        bytes.fromhex("84616101fb3ff8000000000000786f"),  # would read on into what follows
        b"\x84\x61",
    ],
)
def test_one_unusual_value_among_many_is_left_to_be_looked_at(unusual: bytes) -> None:
    schema = schema_of(Plain)
    assert schema.usual_rows([USUAL] * 3) == [("a", 1, 1.5, "red")] * 3
    for place in range(4):
        assert schema.usual_rows([*[USUAL] * place, unusual, *[USUAL] * (3 - place)]) is None
    assert schema.usual_rows([USUAL] * 3) == [("a", 1, 1.5, "red")] * 3


def test_values_that_only_together_are_whole_are_none() -> None:
    """The second one begins with what the first one lacks."""
    schema, raw = schema_of(Old), cbor2.dumps(["a" * 40, 7])
    for cut in range(1, len(raw)):
        assert schema.usual_rows([raw[:cut], raw[cut:] + raw]) is None
        assert schema.usual_rows([raw + raw[:cut], raw[cut:]]) is None


def test_however_many_values_are_read_at_once_they_are_all_read() -> None:
    schema, raw = schema_of(Old), cbor2.dumps(["a", 7])
    assert schema.usual_rows([]) == []
    for count in (7, 8, 85, 86, 21_845, 21_846):
        assert schema.usual_rows([raw] * count) == [("a", 7)] * count


@given(st.dictionaries(TEXTS, JSON, max_size=4))
def test_dicts_need_no_schema(value: dict[str, Any]) -> None:
    schema = schema_of(dict)
    raw = schema.encode(value)
    assert schema.decode(raw) == value
    row, exact = schema.row_from_cbor(raw)
    assert exact
    assert row is not None
    kept = through_sqlite(schema, row)
    assert schema.from_row(kept) == value
    assert schema.cbor_from_row(kept) == raw
    assert schema.encode(dict(reversed(value.items()))) == raw


def test_the_bytes_are_positional_cbor() -> None:
    assert LISTED.encode(Todo("buy milk", True, 0.5)).hex() == "83686275" + b"y milk".hex() + "f5fb3fe0000000000000"
    assert cbor2.loads(EVERYTHING.encode(EXAMPLE))[:5] == ["t", 1, 2.0, True, b"r"]


EXAMPLE = Everything(
    "t",
    1,
    2,
    True,
    b"r",
    None,
    Color.RED,
    Level.HIGH,
    datetime(2024, 2, 29, 12, tzinfo=UTC),
    date(2024, 2, 29),
    Decimal("1.10"),
    UserId(7),
    "n",
    ["x"],
    (1.0, float("inf")),
    {"b": 1, "a": 2},
    Place("Main", 5, b"\xff"),
    [],
    {},
    {"deep": [1, None]},
)


def test_columns_are_what_sql_expects() -> None:
    types = {column.name: column.type for column in EVERYTHING.columns}
    assert [types[n] for n in ("text", "whole", "real", "yes", "raw")] == ["TEXT", "INTEGER", "REAL", "BOOLEAN", "BLOB"]
    assert [types[n] for n in ("maybe", "color", "level", "place", "user")] == [
        "TEXT",
        "TEXT",
        "INTEGER",
        "TEXT",
        "INTEGER",
    ]
    row = dict(zip(types, EVERYTHING.to_row(EXAMPLE), strict=True))
    assert row["counts"] == '{"a":2,"b":1}'
    assert row["place"] == '{"street":"Main","number":5,"photo":"/w=="}'
    assert row["points"] == '[1.0,"inf"]'
    assert (row["real"], row["maybe"], row["price"], row["when"]) == (2.0, None, "1.10", "2024-02-29T12:00:00+00:00")


def test_equal_values_give_equal_bytes() -> None:
    assert LISTED.encode(Todo("x", weight=1)) == LISTED.encode(Todo("x", weight=1.0))
    assert LISTED.encode(Todo("x", weight=-0.0)) == LISTED.encode(Todo("x", weight=0.0))


@dataclass
class Old:
    name: str
    size: int = 1


@dataclass
class New:
    name: str
    size: int = 1
    color: str = "red"
    notes: list[str] = field(default_factory=lambda: ["none"])
    needed: str = numbered(7, default="?")


def test_an_older_apps_value_takes_the_defaults() -> None:
    raw = schema_of(Old).encode(Old("a", 2))
    assert schema_of(New).decode(raw) == New("a", 2, "red", ["none"], "?")
    row, count = schema_of(New).row_from_cbor(raw)
    assert row == ("a", 2, "red", '["none"]', "?") == schema_of(New).to_row(New("a", 2))
    assert count == 2
    assert schema_of(New).cbor_from_row(row, count) == raw


def test_a_field_without_a_default_is_none_in_an_older_apps_value() -> None:
    wider = make_dataclass("wider", [("name", str), ("size", int), ("extra", str)])
    value: Any = schema_of(wider).decode(schema_of(Old).encode(Old("a")))
    assert value.extra is None


def test_what_a_newer_app_added_is_kept_and_written_back() -> None:
    raw = schema_of(New).encode(New("a", 2, "blue", ["x"], "y"))
    old = schema_of(Old)
    assert old.decode(raw) == Old("a", 2)
    assert old.row_from_cbor(raw) == (("a", 2), 0)
    assert old.cbor_from_row(("a", 2), raw) == raw
    edited = old.carry(old.encode(Old("b", 3)), raw)
    assert schema_of(New).decode(edited) == New("b", 3, "blue", ["x"], "y")
    assert old.carry(old.encode(old.decode(raw)), raw) == raw


def test_a_field_taken_away_leaves_a_gap_and_what_stood_there_is_kept() -> None:
    @dataclass
    class Later:
        size: int = numbered(1, default=0)

    assert schema_of(Later).encode(Later(5)).hex() == "82f705"
    raw = schema_of(Old).encode(Old("kept", 2))
    later = schema_of(Later)
    assert later.decode(raw) == Later(2)
    assert later.carry(later.encode(Later(2)), raw) == raw
    assert schema_of(Old).decode(later.encode(Later(5))).name is None


def test_none_is_written_and_is_not_the_default() -> None:
    @dataclass
    class Maybe:
        name: str | None = "unnamed"

    schema = schema_of(Maybe)
    assert schema.decode(schema.encode(Maybe(None))) == Maybe(None)


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (["x", True, 3], ("x", True, 3.0)),
        (["x", True, -0.0], ("x", True, 0.0)),
        (["x", None, None], ("x", None, None)),
        (["x"], ("x", False, 0.0)),
        (["x", True, 1.0, "more"], ("x", True, 1.0)),
        ([cbor2.undefined, True, 1.0], (None, True, 1.0)),
    ],
)
def test_other_writers_are_understood_and_their_bytes_are_told_apart(values: list[Any], row: tuple[Any, ...]) -> None:
    raw = cbor2.dumps(values)
    found, count = LISTED.row_from_cbor(raw)
    assert found == row
    assert str(found) == str(row)
    assert LISTED.decode(raw) == LISTED.from_row(found)
    held = through_sqlite(LISTED, found)
    if count:
        assert LISTED.cbor_from_row(held, count) == raw
    else:
        assert all(LISTED.cbor_from_row(held, n) != raw for n in (1, 2, 3))


@pytest.mark.parametrize("raw", ["8361781818f5", "9f6178f5fb0000000000000000ff", "836178f5fa40400000", "83617801f5"])
def test_bytes_that_are_not_as_we_write_them_are_never_called_exact(raw: str) -> None:
    row, count = LISTED.row_from_cbor(bytes.fromhex(raw))
    assert not count
    assert row is None or LISTED.cbor_from_row(row) != bytes.fromhex(raw)


@given(st.binary(max_size=60))
def test_s19_rubbish_is_an_encoding_error(raw: bytes) -> None:
    for schema in (LISTED, EVERYTHING, schema_of(dict), schema_of(Node)):
        row, _ = schema.row_from_cbor(raw)
        try:
            value = schema.decode(raw)
        except EncodingError:
            assert row is None
        else:
            assert row is not None
            assert schema.from_row(row) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x81" * 60_000,
        b"\x82\x61x" * 20_000,
        bytes.fromhex("9bffffffffffffffff"),
        bytes.fromhex("9b00ffffffffffffff"),
        bytes.fromhex("5b7fffffffffffffff"),
        bytes.fromhex("bb00ffffffffffffff"),
        bytes.fromhex("81c5821b7fffffffffffffff01"),
        bytes.fromhex("81d81c81d81d00"),
        bytes.fromhex("83617880"),
        b"\x81\xd8\x23\x78\x20" + b"(" * 32,
        b"\x81\xc2\x59\xff\xff" + b"\xff" * 65535,
        bytes.fromhex("8361ff0000"),
        b"\xff",
        b"\xf6",
        b"\xa0",
    ],
)
def test_s19_hostile_bytes_are_an_encoding_error(raw: bytes) -> None:
    for schema in (LISTED, EVERYTHING, schema_of(Node)):
        with pytest.raises(EncodingError):
            schema.decode(raw)
        assert schema.row_from_cbor(raw) == (None, 0)
    assert LISTED.decode(LISTED.encode(Todo("still works"))) == Todo("still works")


def test_no_tag_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_coder", lambda: pytest.fail("decoded"))
    for tag in range(0xC0, 0xDC):
        with pytest.raises(EncodingError):
            plain.load(bytes([0x81, tag]) + bytes(20))


@given(JSON)
def test_the_walk_over_bytes_knows_whole_values_from_cut_ones(value: object) -> None:
    raw = cbor2.dumps(value)
    plain.check_layout(raw)
    for end in range(len(raw)):
        with pytest.raises(EncodingError):
            plain.check_layout(raw[:end])
    with pytest.raises(EncodingError):
        plain.check_layout(raw + b"\0")


def nested(depth: int) -> Node:
    node = Node("leaf")
    for _ in range(depth):
        node = Node("inner", [node])
    return node


def test_a_type_may_contain_itself_but_not_without_end() -> None:
    schema = schema_of(Node)
    value = nested(20)
    assert schema.decode(schema.encode(value)) == value
    assert schema.from_row(schema.to_row(value)) == value
    for depth in (60, 300, 2000):
        with pytest.raises(EncodingError):
            schema.encode(nested(depth))
    looped: list[Any] = []
    looped.append(looped)
    with pytest.raises(EncodingError, match="within each other"):
        schema_of(dict).encode({"a": looped})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("text", 5, "field 'text' of Everything cannot be of type int"),
        ("text", None, "cannot be of type NoneType"),
        ("whole", 2**63, "more than 64 bits"),
        ("whole", True, "cannot be of type bool"),
        ("real", float("nan"), "NaN"),
        ("real", "1", "cannot be of type str"),
        ("yes", 1, "cannot be of type int"),
        ("color", "red", "takes a Color"),
        ("when", date(2024, 1, 1), "takes a datetime"),
        ("day", datetime(2024, 1, 1, tzinfo=UTC), "takes a date"),
        ("tags", "abc", "takes a list"),
        ("tags", [1], "cannot be of type int"),
        ("counts", {1: 1}, "key that is not text"),
        ("place", "x", "where a Place belongs"),
        ("anything", b"x", "holds a bytes"),
        ("anything", {1, 2}, "holds a set"),
        ("anything", float("inf"), "not finite"),
        ("text", "\ud800", "cannot be encoded"),
    ],
)
def test_a_value_that_cannot_be_kept_is_told_by_its_field(name: str, value: object, said: str) -> None:
    wrong = Everything(**{**EXAMPLE.__dict__, name: value})
    with pytest.raises(EncodingError, match=said):
        EVERYTHING.encode(wrong)


def test_another_class_is_refused() -> None:
    with pytest.raises(EncodingError, match="Old was given where a Todo belongs"):
        LISTED.encode(Old("a"))  # type: ignore[arg-type]


@pytest.mark.parametrize("declared", [set[str], complex, "str | int", dict[int, str], tuple[int, str], object, None])
def test_a_field_that_cannot_be_kept_is_told_at_once(declared: Any) -> None:
    declared = str | int if declared == "str | int" else declared
    with pytest.raises(EncodingError, match="field 'x' of Wrong"):
        schema_of(make_dataclass("Wrong", [("x", declared)]))


def test_what_is_no_schema_is_told() -> None:
    class Empty(Enum):
        A = 1
        B = "b"

    for wrong in (int, list, make_dataclass("Nothing", [])):
        with pytest.raises(EncodingError):
            schema_of(wrong)
    with pytest.raises(EncodingError, match="neither all text nor all integers"):
        schema_of(make_dataclass("Wrong", [("x", Empty)]))
    with pytest.raises(EncodingError, match="cannot be found"):
        schema_of(make_dataclass("Wrong", [("x", "Nowhere")]))


@pytest.mark.parametrize("numbers", [(1, 1), (-1, 0), (0, 500), (True, 2)])
def test_numbers_are_checked(numbers: tuple[int, int]) -> None:
    fields = [(f"f{n}", int, numbered(number)) for n, number in enumerate(numbers)]
    with pytest.raises(EncodingError, match="number"):
        schema_of(make_dataclass("Wrong", fields))


def test_numbers_go_on_from_the_field_before() -> None:
    fields: list[Any] = [("a", int, numbered(3)), ("b", int), ("c", int, numbered(0))]
    mixed = make_dataclass("mixed", fields)
    assert cbor2.loads(schema_of(mixed).encode(mixed(1, 2, 3))) == [3, cbor2.undefined, cbor2.undefined, 1, 2]
    assert [c.name for c in schema_of(mixed).columns] == ["c", "a", "b"]


@dataclass
class Colored:
    color: Color
    when: date | None = None


@pytest.mark.parametrize("values", [["green"], ["red", "next week"], [5], ["red", 5], [["red"]], {"color": "red"}])
def test_what_only_a_newer_app_can_have_written_is_not_read(values: Any) -> None:
    schema = schema_of(Colored)
    assert schema.row_from_cbor(cbor2.dumps(["red", "2026-01-02"])) == (("red", "2026-01-02"), 2)
    assert schema.row_from_cbor(cbor2.dumps(values)) == (None, 0)
    with pytest.raises(EncodingError):
        schema.decode(cbor2.dumps(values))


def test_integers_that_sqlite_cannot_hold_do_not_come_in() -> None:
    schema = schema_of(Old)
    for number in (INTEGER_MAX + 1, -INTEGER_MAX - 2, 2**64 - 1):
        with pytest.raises(EncodingError, match="64 bits"):
            schema.decode(cbor2.dumps(["a", number]))
        assert schema.row_from_cbor(cbor2.dumps(["a", number])) == (None, 0)
    assert schema.row_from_cbor(cbor2.dumps(["a", -INTEGER_MAX - 1]))[1]
    with pytest.raises(EncodingError, match="NaN"):
        LISTED.decode(bytes.fromhex("836178f5fb7ff8000000000000"))
    assert LISTED.row_from_cbor(bytes.fromhex("836178f5fb7ff8000000000000")) == (None, 0)


def test_damaged_columns_are_told() -> None:
    row = EVERYTHING.to_row(EXAMPLE)
    place = [c.name for c in EVERYTHING.columns].index("place")
    for wrong in ("{", "[]", "5", '{"street": "x", "photo": "?"}'):
        with pytest.raises(EncodingError):
            EVERYTHING.from_row((*row[:place], wrong, *row[place + 1 :]))
    with pytest.raises(EncodingError):
        EVERYTHING.from_row(row[:-1])


def test_threads_may_share_a_schema() -> None:
    wrong: list[object] = []

    def run(number: int) -> None:
        for n in range(500):
            value = Todo(f"{number} {n}", True, float(n))
            if LISTED.decode(LISTED.encode(value)) != value:
                wrong.append(value)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
