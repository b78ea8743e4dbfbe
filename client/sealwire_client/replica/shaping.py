"""Which stored column is which field's, as apps come and go: a column belongs to a number, and has the name that the
field has now. One whose field has gone stays, for its type, and lets a present field have its name.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from sealwire_client.replica.declared import Declared
from sealwire_client.replica.errors import ColumnsChangedError
from sealwire_client.replica.tables import Column


class Arranged(NamedTuple):
    """What is to become of a collection's columns."""

    columns: tuple[Column, ...]
    """All of them, those of the app first."""
    renamed: tuple[tuple[str, str], ...]
    """Names and what is to take their place, one after the other."""
    added: tuple[Column, ...]
    held: tuple[str, ...]
    """The columns that there were, in their order, by the names that they have then."""


def arrange(name: str, held: Sequence[Column], given: Sequence[Column], declared: Declared) -> Arranged:
    """Find the stored column of each field. `held`: the columns that there are; `given`: those of the app.

    Raises ColumnsChangedError for a field of another type than its number's column has, and for one with a name that is
    new to its number if it does not say that: it may as well have moved there by mistake.
    """
    places = {number: place for place, number in enumerate(_numbers(held, given))}
    now, added = dict[int, Column](), list[Column]()
    for at, column in enumerate(given):
        number = at if column.number is None else column.number
        if number in places:
            place = places[number]
            _check(name, held[place], column, number, declared)
            now[place] = _named(held[place], column.name)._replace(form=column.form)
        else:
            added.append(column)
    spare = _spare_names([*held, *given])
    wanted = {column.name.lower() for column in given}
    gone = [place for place in range(len(held)) if place not in now]
    for place in gone:
        column = held[place]
        now[place] = _named(column, next(spare)) if column.name.lower() in wanted else column
    names = tuple(now[place].name for place in range(len(held)))
    renamed = _in_turn([(column.name, after) for column, after in zip(held, names, strict=True)], spare)
    known = {column.name: column for column in now.values()}
    columns = [known.get(column.name, column) for column in given]
    return Arranged((*columns, *[now[place] for place in gone]), renamed, tuple(added), names)


def _named(column: Column, name: str) -> Column:
    """A column with another name, which remembers those that it had."""
    former = dict.fromkeys([*column.former, column.name])
    former.pop(name, None)
    return column._replace(name=name, former=tuple(former))


def _numbers(held: Sequence[Column], given: Sequence[Column]) -> Iterator[int]:
    """The number of each stored column. One without a form has that of the app's column in its place."""
    for place, column in enumerate(held):
        other = given[place].number if place < len(given) else None
        number = other if column.number is None else column.number
        yield place if number is None else number


def _check(name: str, held: Column, given: Column, number: int, declared: Declared) -> None:
    other_shape = held.shape != given.shape and "untyped" not in (held.shape, given.shape)
    if held.type != given.type or (held.form and given.form and other_shape):
        raise ColumnsChangedError(
            f"Field {given.name} of collection {name} has the number {number}, under which there are values of another"
            f" type ({_told(held)}, not {_told(given)}): give it a number that no field has had, and let the class keep"
            f" the old field, or leave number {number} out."
        )
    is_meant = (given.name in declared.numbered and held.form) or given.name in held.former
    if held.name != given.name and not is_meant:
        raise ColumnsChangedError(
            f"Field {given.name} of collection {name} has the number {number} by its place in the class, and that is"
            f" the number of {held.name}: if it is the same field by another name, say `numbered({number})`; if not,"
            " give each field the number that it had, and new ones numbers that no field has had."
        )


def _told(column: Column) -> str:
    return f"{column.type} holding a {column.shape}" if column.shape else column.type


def _spare_names(columns: Sequence[Column]) -> Iterator[str]:
    """Names that no field can have, and no column has."""
    taken = {column.name for column in columns}
    return (name for name in (f"_{n}" for n in count()) if name not in taken)


def _in_turn(names: Sequence[tuple[str, str]], spare: Iterator[str]) -> tuple[tuple[str, str], ...]:
    """Names and what is to take their place, in an order in which no name is ever there twice."""
    present = {name.lower() for name, _ in names}
    first, then, last = list[tuple[str, str]](), list[tuple[str, str]](), list[tuple[str, str]]()
    for name, after in names:
        if name == after:
            continue
        if after.lower() in present:
            between = next(spare)
            first.append((name, between))
            last.append((between, after))
        else:
            then.append((name, after))
    return (*first, *then, *last)
