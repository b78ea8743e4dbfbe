"""Differences between two results: applied to the former rows they give the present ones, and say no more than that."""

from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sealwire_client.differences import Deleted, Difference, Inserted, Moved, Result, Updated, difference, first
from sealwire_client.replica import QueryError, Row

COLUMNS = ("key", "text")
UNNAMED = ("a", "b")

KEYED = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=10, unique_by=lambda row: row[0])
ANY = st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 1)), max_size=10)


def applied(former: tuple[Row, ...], what: Difference) -> tuple[Row, ...]:
    """What `Difference` says one can make of the former rows."""
    away = {each.was_at for each in what.deleted} | {each.was_at for each in what.moved}
    rows = [row for n, row in enumerate(former) if n not in away]
    come = [(each.at, each.row) for each in what.inserted] + [(each.at, former[each.was_at]) for each in what.moved]
    for at, row in sorted(come, key=lambda one: one[0]):
        rows.insert(at, row)
    for changed in what.updated:
        rows[changed.at] = changed.row
    return tuple(rows)


def keyed(*rows: Row) -> Result:
    return Result(COLUMNS, rows)


def told(former: Result, present: Result) -> Difference:
    found = difference(former, present)
    assert found is not None
    return found


def check(former: Result, present: Result) -> None:
    found = difference(former, present)
    if former.rows == present.rows:
        assert found is None
        return
    assert found is not None
    assert found.rows == present.rows == applied(former.rows, found)
    assert found.inserted or found.updated or found.deleted or found.moved


@given(KEYED, KEYED)
@example([(1, 0), (2, 0), (3, 0)], [(3, 0), (2, 0), (1, 0)])
def test_a_difference_makes_of_the_former_rows_the_present_ones(former: list[Row], present: list[Row]) -> None:
    check(Result(COLUMNS, former), Result(COLUMNS, present))


@given(ANY, ANY)
@example([(1, 1), (1, 1), (2, 1)], [(2, 1), (1, 1), (1, 1), (1, 1)])
def test_so_it_does_where_rows_are_their_own_keys_and_repeat(former: list[Row], present: list[Row]) -> None:
    check(Result(UNNAMED, former), Result(UNNAMED, present))


@given(KEYED, KEYED)
def test_without_an_order_of_its_own_nothing_moves(former: list[Row], present: list[Row]) -> None:
    was, now = Result(COLUMNS, former), Result(COLUMNS, present)
    arranged = now.in_order_of(was)
    assert sorted(arranged.rows) == sorted(now.rows) and list(arranged.by_key) == list(now.by_key)
    found = difference(was, arranged)
    assert (found is None) == (set(former) == set(present))
    assert found is None or not found.moved
    check(was, arranged)


@given(KEYED)
def test_the_first_difference_inserts_everything(rows: list[Row]) -> None:
    found = first(Result(COLUMNS, rows))
    assert [each.row for each in found.inserted] == rows == list(found.rows)
    assert [(each.key, each.at) for each in found.inserted] == [(row[0], n) for n, row in enumerate(rows)]
    assert not (found.updated or found.deleted or found.moved)


@given(st.permutations(range(9)), st.sets(st.integers(0, 8)))
def test_as_few_move_as_can(order: list[int], changed: set[int]) -> None:
    former = keyed(*[(n, 0) for n in range(9)])
    found = difference(former, keyed(*[(n, int(n in changed)) for n in order]))
    moved = 0 if found is None else len(found.moved)
    still = [n for n in range(9) if n not in changed]
    if still == [n for n in order if n not in changed]:  # those that did not change stay
        assert moved == 9 - most_in_order(order, still)
    else:
        assert moved == 9 - most_in_order(order, [])


def most_in_order(order: list[int], fixed: list[int]) -> int:
    """How many keys can stand in rising order if no others are looked at, these among them."""
    free = [n for n in order if n not in fixed]
    most = 0
    for count in range(len(free) + 1):
        for some in combinations(free, count):
            kept = [n for n in order if n in fixed or n in some]
            if kept == sorted(kept):
                most = max(most, len(kept))
    return most


def test_each_kind_tells_the_row_its_key_and_its_place() -> None:
    found = told(keyed(("a", 1), ("b", 2), ("c", 3), ("d", 4)), keyed(("c", 9), ("a", 1), ("e", 5), ("d", 4)))
    assert found.deleted == (Deleted("b", ("b", 2), 1),)
    assert found.inserted == (Inserted("e", ("e", 5), 2),)
    assert found.updated == (Updated("c", ("c", 9), 0, ("text",)),)
    assert found.moved == (Moved("c", 2, 0),)
    assert found.columns == COLUMNS


def test_one_row_that_went_from_the_end_to_the_front_is_one_move() -> None:
    rows = [(n, 0) for n in range(1_000)]
    assert told(keyed(*rows), keyed(rows[-1], *rows[:-1])).moved == (Moved(999, 999, 0),)
    assert told(keyed(*rows), keyed((999, 1), *rows[:-1])).moved == (Moved(999, 999, 0),)


def test_a_key_of_several_columns_is_their_tuple() -> None:
    former, present = (Result(UNNAMED, rows, ("b", "a")) for rows in ([(1, 2), (1, 3)], [(1, 3)]))
    assert told(former, present).deleted == (Deleted((2, 1), (1, 2), 0),)


def test_without_a_key_column_a_changed_row_is_another_one() -> None:
    found = told(Result(UNNAMED, [(1, 2)]), Result(UNNAMED, [(1, 3)]))
    assert found.deleted == (Deleted((1, 2), (1, 2), 0),) and found.inserted == (Inserted((1, 3), (1, 3), 0),)


def test_two_columns_called_key_name_no_row() -> None:
    assert Result(("key", "key"), [(1, 2), (1, 3)]).whole


def test_two_rows_of_one_key_are_refused() -> None:
    with pytest.raises(QueryError, match=r"the key 'a': name the columns .* key=\('key', 'text'\)"):
        keyed(("a", 1), ("a", 2))


@pytest.mark.parametrize(("key", "why"), [(("c",), "no column called 'c'; its columns: a, b"), ((), "names no column")])
def test_a_key_that_is_no_column_is_refused(key: tuple[str, ...], why: str) -> None:
    with pytest.raises(QueryError, match=why):
        Result(UNNAMED, [], key)


def test_a_key_that_is_two_columns_is_refused() -> None:
    with pytest.raises(QueryError, match="more than one column called 'a'"):
        Result(("a", "a"), [], ("a",))
