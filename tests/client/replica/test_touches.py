"""What a commit touched is told once it can be read, to whoever waits for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sealwire_client.replica import Column, Replica
from sealwire_client.replica.touches import Touches
from tests.client.replica.support import COLUMNS, Todos, edit, open_todos, record


def noted(touches: Touches, number: int) -> tuple[list[int], Callable[[], None]]:
    """Note whenever a collection is told of. Gives the notes, and what ends them."""
    notes = list[int]()

    def note() -> None:
        notes.append(number)

    touches.register(number, note)
    return notes, lambda: touches.unregister(number, note)


def test_who_waits_is_woken_once_a_commit_and_nobody_else() -> None:
    touches = Touches()
    (one, _), (same, end), (other, _) = noted(touches, 1), noted(touches, 1), noted(touches, 2)
    touches.touch(1)
    touches.touch(1)
    assert one == []
    touches.committed()
    touches.committed()
    assert (one, same, other) == ([1], [1], [])
    end()
    touches.touch(1)
    touches.committed()
    assert (one, same, len(touches)) == ([1, 1], [1], 2)


def test_it_can_be_read_when_it_is_told(a: Todos) -> None:
    seen = list[int]()
    a.replica.database.touches.register(a.todos.number, lambda: seen.append(a.reader.count(a.todos)))
    a.edit("k", "milk")
    a.deliver(0, record(1, "l", "bread", 1), record(2, "m", "tea", 1))
    assert seen == [1, 3]


def test_what_calls_make_together_is_told_at_their_end(a: Todos) -> None:
    notes, _ = noted(a.replica.database.touches, a.todos.number)
    with a.replica.transaction():
        a.edit("k", "milk")
        a.edit("l", "bread")
        assert notes == []
    assert len(notes) == 1


def test_what_came_to_nothing_is_not_told_by_itself(a: Todos) -> None:
    notes, _ = noted(a.replica.database.touches, a.todos.number)

    def fails() -> None:
        with a.replica.transaction():
            a.edit("k", "milk")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert notes == []


def test_a_delivery_without_records_touches_nothing(a: Todos) -> None:
    notes, _ = noted(a.replica.database.touches, a.todos.number)
    a.deliver(0, last=5)
    assert notes == []


def test_rows_that_get_another_form_are_told(tmp_path: Path) -> None:
    replica = Replica(tmp_path)
    todos = open_todos(replica)
    replica.edit(todos, [edit("k", "milk")])
    notes, _ = noted(replica.database.touches, todos.number)
    open_todos(replica, [*COLUMNS, Column("note", "TEXT")])
    assert notes == [todos.number]
    replica.close()


def test_the_tables_of_a_query_are_named_whatever_its_plan(a: Todos) -> None:
    table = a.todos.table.name
    for sql in (
        "SELECT count(*) FROM todos",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM todos)",
        "SELECT 1 FROM todos WHERE 0",
        "WITH t AS (SELECT * FROM todos) SELECT 1 FROM t AS one JOIN t AS other",
    ):
        for _ in range(2):  # also if it was prepared before
            assert a.reader.tables_of(sql) == {table}
    assert a.reader.tables_of("SELECT ?", ["x"]) == frozenset()
