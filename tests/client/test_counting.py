import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_client.counting import (
    COUNT_MAX,
    SUBTOTAL_MAX,
    CounterSchema,
    Part,
    added,
    join,
    moved,
    of_author,
    total,
)
from sealwire_client.encoding import EncodingError, schema_of
from sealwire_client.plain import dump
from sealwire_client.policies import counter, latest, merge, strict

AUTHORS = st.integers(0, 3)
AMOUNTS = st.integers(-5, 5)


class Device:
    """A device that adds, knows its own part by itself, and has some value of the counter."""

    def __init__(self, author: int) -> None:
        self.author, self.count, self.subtotal = author, 0, 0
        self.value: bytes | None = None

    def add(self, amount: int) -> bytes:
        self.count, self.subtotal = self.count + 1, self.subtotal + amount
        self.value = added(self.value, self.author, self.count, self.subtotal)
        return self.value


@given(st.lists(st.tuples(AUTHORS, AMOUNTS), max_size=20), st.data())
def test_whatever_way_values_are_passed_on_each_addition_counts_once(
    additions: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Also where a device takes an older value than it has sent: the relay was restored."""
    devices = [Device(n) for n in range(4)]
    sent: list[bytes | None] = [None]
    for author, amount in additions:
        devices[author].value = data.draw(st.sampled_from([devices[author].value, *sent]))
        sent.append(devices[author].add(amount))
    shuffled = data.draw(st.permutations(sent))
    found = None
    for value in [*shuffled, *sent[-1:]]:
        found = join(found, value)
    assert total(found) == sum(amount for _, amount in additions)
    for device in devices:
        assert of_author(found, device.author) == Part(device.count, device.subtotal)


VALUES = st.dictionaries(AUTHORS, st.tuples(st.integers(0, 3), AMOUNTS)).map(
    lambda parts: dump([[author, *part] for author, part in sorted(parts.items())])
)


@given(VALUES, VALUES, VALUES)
def test_joining_needs_no_order_and_does_no_harm_again(a: bytes, b: bytes, c: bytes) -> None:
    found = {join(join(x, y), z) for x, y, z in itertools.permutations((a, b, c))}
    (one,) = found
    assert join(one, a) == one


def test_a_counter_that_was_never_added_to_is_zero() -> None:
    assert total(None) == 0
    assert of_author(None, 7) == Part(0, 0)
    assert total(added(None, 7, 2, 5)) == 5


def test_of_one_author_the_greater_count_is_the_later() -> None:
    assert of_author(added(added(None, 7, 3, 10), 7, 2, 50), 7) == Part(3, 10)


def test_a_device_that_is_another_author_now_adds_on_top_of_what_it_saw() -> None:
    base = added(added(None, 1, 4, 40), 2, 1, 5)
    mine = added(added(base, 1, 6, 43), 3, 1, 100)
    found = moved(base, mine, before=1, now=8, part=Part(2, 20))
    assert of_author(found, 1) == Part(4, 40)
    assert of_author(found, 8) == Part(4, 23)
    assert total(found) == 40 + 5 + 100 + 23
    assert total(moved(None, added(None, 1, 1, 3), 1, 8)) == 3
    assert moved(base, base, 1, 8) == base


def test_there_are_limits() -> None:
    assert total(added(None, 1, COUNT_MAX, -SUBTOTAL_MAX)) == -SUBTOTAL_MAX
    for count, subtotal in ((COUNT_MAX + 1, 0), (1, SUBTOTAL_MAX + 1), (1, -SUBTOTAL_MAX - 1)):
        with pytest.raises(EncodingError, match="at most"):
            added(None, 1, count, subtotal)


@pytest.mark.parametrize(
    "wrong",
    [5, {}, [1], [[1, 2]], [[1, 2, "3"]], [[1, True, 3]], [[1, 1, 1], [1, 2, 2]], [[2, 1, 1], [1, 1, 1]], [[-1, 1, 1]]],
)
def test_other_bytes_are_no_counter(wrong: Any) -> None:
    with pytest.raises(EncodingError, match="no counter"):
        total(dump(wrong))
    assert CounterSchema().row_from_cbor(dump(wrong)) == (None, 0)


def test_as_values_counters_show_their_total_and_keep_their_bytes() -> None:
    schema, value = CounterSchema(), added(added(None, 1, 1, 40), 2, 1, 2)
    assert [column[:2] for column in schema.columns] == [("value", "INTEGER")]
    assert schema.row_from_cbor(value) == ((42,), 0)
    assert schema.from_row((42,)) == schema.decode(value) == 42
    assert schema.cbor_from_row((42,), value) == value
    with pytest.raises(EncodingError, match="add to it"):
        schema.encode(42)
    with pytest.raises(EncodingError):
        schema.cbor_from_row((42,))


def test_two_additions_are_joined_and_an_addition_outlives_a_delete() -> None:
    resolve = counter().resolver(CounterSchema())
    assert resolve is not None
    base = added(None, 1, 1, 1)
    mine, theirs = added(base, 1, 2, 3), added(base, 2, 1, 10)
    found = resolve(base, mine, theirs)
    assert found is not None
    assert total(found) == 13
    assert resolve(base, mine, None) == mine
    assert resolve(None, mine, theirs) == found


def test_counters_have_their_own_policy() -> None:
    for policy in (latest(), merge(), strict()):
        with pytest.raises(EncodingError, match="counters"):
            policy.resolver(CounterSchema())
    with pytest.raises(EncodingError, match="counters"):
        counter().resolver(schema_of(dict))
