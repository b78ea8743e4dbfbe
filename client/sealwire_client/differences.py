"""What became of a query's result: from the rows of one moment and those of a later one to what differs. Pure.

Whatever looks at rows that did not change is one call to sets, dicts or iterators of the interpreter; loops of this
module go over what differs alone. Only where rows that did not change themselves stand in another order, one goes
over all rows between the first and the last that do.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import compress, count, filterfalse
from operator import itemgetter, ne
from typing import Final, NamedTuple

from sealwire_client.replica import QueryError, Row

Key = Hashable
"""A row's name in its result: the value of its key column, the tuple of several, or the row as a whole."""

KEY: Final = "key"
"""The column that names rows if the app does not say which one does."""


class Inserted(NamedTuple):
    """A row that was not there before. `at`: where it stands among the present rows."""

    key: Key
    row: Row
    at: int


class Updated(NamedTuple):
    """A row that is another than before under the same key. `columns`: the names of those that differ."""

    key: Key
    row: Row
    at: int
    columns: tuple[str, ...]


class Deleted(NamedTuple):
    """A row that is there no more, as it was. `was_at`: where it stood among the former rows."""

    key: Key
    row: Row
    was_at: int


class Moved(NamedTuple):
    """A row that stands elsewhere among those that stayed. `was_at`: where it stood among the former rows; `at`:
    where it stands among the present ones."""

    key: Key
    was_at: int
    at: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of a query's result since its reader was given the last one; of the first one, everything is
    inserted. `rows` is the whole present result, `columns` the names.

    Take the former rows, without those at the `was_at` of `deleted` and `moved`; put the rows of `inserted`
    and `moved` in, by rising `at`; replace those of `updated`: these are the present rows.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    inserted: tuple[Inserted, ...] = ()
    updated: tuple[Updated, ...] = ()
    deleted: tuple[Deleted, ...] = ()
    moved: tuple[Moved, ...] = ()


class Result:
    """The rows of one moment, each under its key."""

    __slots__ = ("by_key", "columns", "keys", "rows", "whole")

    def __init__(self, columns: tuple[str, ...], rows: Sequence[Row], key: Sequence[str] | None = None) -> None:
        """`key`: the columns that name a row; None: the one called `key`, or else all of them, where equal rows are
        told apart by how many there are. Raises QueryError for no such column, and for two rows of one key."""
        places = _places(columns, key)
        self.columns, self.rows, self.whole = columns, tuple(rows), not places
        self.keys: list[Key] = list(map(itemgetter(*places), rows)) if places else _numbered(self.rows)
        self.by_key: dict[Key, Row] = dict(zip(self.keys, self.rows, strict=True))
        if len(self.by_key) != len(self.keys):
            twice = next(each for each, times in Counter(self.keys).items() if times > 1)
            raise QueryError(
                f"Two rows of the result have the key {twice!r}: name the columns that say which row is which, as in"
                f" key=('key', '{columns[-1]}')."
            )

    def in_order_of(self, former: "Result") -> "Result":
        """The same rows: those of a former result in its order, then the others."""
        kept = filter(self.by_key.__contains__, former.keys)
        keys = [*kept, *filterfalse(former.by_key.__contains__, self.keys)]
        again = object.__new__(Result)
        again.columns, again.whole, again.keys, again.by_key = self.columns, self.whole, keys, self.by_key
        again.rows = tuple(map(self.by_key.__getitem__, keys))
        return again

    def name(self, key: Key) -> Key:
        """What a reader is told of a key."""
        return self.by_key[key] if self.whole else key


def _places(columns: tuple[str, ...], key: Sequence[str] | None) -> list[int]:
    if key is None:
        return [columns.index(KEY)] if columns.count(KEY) == 1 else []
    for name in key:
        if columns.count(name) != 1:
            many = "more than one column" if name in columns else "no column"
            raise QueryError(f"The result has {many} called {name!r}; its columns: {', '.join(columns)}.")
    if not key:
        raise QueryError(f"key= names no column; the result has: {', '.join(columns)}.")
    return [columns.index(name) for name in key]


def _numbered(rows: tuple[Row, ...]) -> list[Key]:
    """Rows as their own keys: of equal ones, each after the first with how many came before it."""
    keys: list[Key] = list(rows)
    if len(set(rows)) < len(rows):
        repeated = {row for row, times in Counter(rows).items() if times > 1}
        seen: Counter[Row] = Counter()
        for place in compress(range(len(rows)), map(repeated.__contains__, rows)):
            row = rows[place]
            if seen[row]:
                keys[place] = (row, seen[row])
            seen[row] += 1
    return keys


def first(present: Result) -> Difference:
    """The difference to nothing."""
    inserted = zip(map(present.name, present.keys), present.rows, range(len(present.rows)), strict=True)
    return Difference(present.columns, present.rows, inserted=tuple(map(Inserted._make, inserted)))


def difference(former: Result, present: Result) -> Difference | None:
    """What differs; None: nothing does, order included."""
    if former.rows == present.rows:
        return None
    gone = former.by_key.keys() - present.by_key.keys()
    stood = compress(count(), map(gone.__contains__, former.keys)) if gone else ()
    deleted = [Deleted(former.name(former.keys[n]), former.rows[n], n) for n in stood]
    inserted, updated, columns = list[Inserted](), list[Updated](), present.columns
    changed: set[Key] = set()
    for n in compress(count(), map(ne, present.rows, map(former.by_key.get, present.keys))):
        key, row = present.keys[n], present.rows[n]
        before = former.by_key.get(key)
        if before is None:
            inserted.append(Inserted(present.name(key), row, n))
        else:
            updated.append(Updated(present.name(key), row, n, tuple(compress(columns, map(ne, row, before)))))
            changed.add(key)
    was = list(filterfalse(gone.__contains__, former.keys)) if gone else former.keys
    now = list(filter(former.by_key.__contains__, present.keys)) if inserted else present.keys
    moved = list[Moved]()
    if was != now:
        away = _moved(was, now, changed)
        at_first, at_last = (
            dict(zip(former.keys, count(), strict=False)),
            dict(zip(present.keys, count(), strict=False)),
        )
        moved = sorted((Moved(present.name(key), at_first[key], at_last[key]) for key in away), key=itemgetter(2))
    return Difference(columns, present.rows, tuple(inserted), tuple(updated), tuple(deleted), tuple(moved))


def _moved(was: list[Key], now: list[Key], changed: Collection[Key]) -> set[Key]:
    """As few of these keys, the same in two orders, as have moved: all others stand in one order in both."""
    changed = set(changed)
    if list(filterfalse(changed.__contains__, was)) != list(filterfalse(changed.__contains__, now)):
        head = next(compress(count(), map(ne, was, now)))
        tail = next(compress(count(), map(ne, reversed(was), reversed(now))))
        was, now = was[head : len(was) - tail], now[head : len(now) - tail]
        changed = set(was)
    at_last = dict(zip(now, count(), strict=False))
    before = _unchanged_before(changed, dict(zip(was, count(), strict=False)))
    after = _unchanged_before(changed, at_last)
    # In the order of old; who has passed one of the unchanged has moved anyway.
    staying = [key for key in before if before[key] == after[key]]
    return changed.difference(_longest_rising(staying, at_last))


def _unchanged_before(changed: Collection[Key], places: dict[Key, int]) -> dict[Key, int]:
    """Of each changed key, in the order of their places, how many unchanged ones stand before it."""
    found = sorted(changed, key=places.__getitem__)
    return {key: places[key] - n for n, key in enumerate(found)}


def _longest_rising(keys: Sequence[Key], places: dict[Key, int]) -> list[Key]:
    """The longest part of a sequence whose places rise (Schensted 1961): of all parts of one length the one that ends
    at the least place is kept, and of each key which one came before it there."""
    least, ends, before = list[int](), list[int](), list[int]()
    for n, key in enumerate(keys):
        length = bisect_left(least, places[key])
        before.append(ends[length - 1] if length else -1)
        least[length : length + 1] = [places[key]]
        ends[length : length + 1] = [n]
    found, n = list[Key](), ends[-1] if ends else -1
    while n >= 0:
        found.append(keys[n])
        n = before[n]
    return found
