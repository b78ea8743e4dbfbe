from pathlib import Path

import pytest

from sealwire_client.replica import Delivery, QueryError, Reader
from sealwire_client.replica.reading import PAGE_ENTRIES
from tests.client.replica.support import COLUMNS, T1, Todos, apply, edit, open_todos, opened, record


def test_get_items_and_count(a: Todos) -> None:
    for key in ("a1", "a2", "b1"):
        a.edit(key, f"title {key}")
    a.edit("a2", None)
    assert a.reader.get(a.todos, "a1") == ("title a1", 0)
    assert a.reader.get(a.todos, "a2") is None
    assert a.reader.count(a.todos) == 2
    assert [key for key, _ in a.reader.items(a.todos)] == ["a1", "b1"]
    assert [key for key, _ in a.reader.items(a.todos, "a")] == ["a1"]


@pytest.mark.parametrize("prefix", ["", "a", "\ud7ff", "z\U0010ffff", "\U0010ffff"])
def test_a_prefix_finds_all_that_begins_with_it(a: Todos, prefix: str) -> None:
    keys = [prefix + end for end in ("", "a", "\ue000", "\U0010ffff", "\U0010ffff\U0010ffff") if prefix + end]
    a.replica.edit(a.todos, [edit(key, "x") for key in [*keys, "`", "b", "y", "{", "\ue001"]])
    assert [k for k, _ in a.reader.items(a.todos, prefix) if k in keys] == keys
    assert all(k.startswith(prefix) for k, _ in a.reader.items(a.todos, prefix))


def test_items_of_several_pages_come_once_each_while_others_are_written(a: Todos) -> None:
    keys = [f"{n:05}" for n in range(2 * PAGE_ENTRIES + 1)]
    a.replica.edit(a.todos, [edit(key, "x") for key in keys])
    seen = []
    for key, _ in a.reader.items(a.todos):
        if key == keys[0]:
            a.edit("99999", "late")
        seen.append(key)
    assert seen == [*keys, "99999"]


def test_any_select_runs_on_plain_names(a: Todos) -> None:
    a.deliver(0, record(1, "k", "milk", 1), record(2, "l", "milk", 2), record(3, "m", None, 3))
    rows = a.reader.select("SELECT title, count(*) AS n FROM todos WHERE done = ? GROUP BY title", (0,))
    assert rows.columns == ("title", "n")
    assert rows.rows == [("milk", 2)]


def test_two_vaults_do_not_meet(a: Todos) -> None:
    other = open_todos(a.replica, vault=2)
    a.edit("k", "in the first")
    a.replica.edit(other, [edit("k", "in the second")])
    reader = Reader(a.folder)
    reader.show(other)
    assert reader.select("SELECT title FROM todos").rows == [("in the second",)]
    assert a.reader.select("SELECT title FROM todos").rows == [("in the first",)]
    reader.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT nothing FROM todos",
        "SELEC",
        "SELECT 1; SELECT 2",
        "DELETE FROM _edit",
        "UPDATE todos SET title = 'x'",
        "CREATE TABLE t (x)",
        "CREATE TEMP TABLE t (x)",
        "BEGIN IMMEDIATE",
    ],
)
def test_sql_that_is_wrong_or_writes_is_refused(a: Todos, sql: str) -> None:
    with pytest.raises(QueryError, match="may only read"):
        a.reader.select(sql)
    a.edit("k", "milk")
    assert a.shown() == {"k": "milk"}


def test_a_reader_cannot_be_talked_into_writing(a: Todos) -> None:
    a.reader.select("PRAGMA query_only = OFF")
    with pytest.raises(QueryError, match="readonly"):
        a.reader.select("DELETE FROM _collection")


def test_a_reader_leaves_no_transaction_open(a: Todos) -> None:
    a.reader.select("BEGIN")
    a.edit("k", "milk")
    assert a.shown() == {"k": "milk"}
    next(a.reader.items(a.todos))
    busy = a.replica.database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    assert busy == 0


def test_appended_columns_are_shown_when_opened(a: Todos) -> None:
    a.deliver(0, record(1, "k", "milk", 1))
    from sealwire_client.replica import Column

    wider = open_todos(a.replica, (*COLUMNS, Column("order", "INTEGER")))
    a.reader.show(wider)
    assert a.reader.select('SELECT key, "order" FROM todos').rows == [("k", "no note")]


def test_a_path_with_strange_characters(tmp_path: Path) -> None:
    with opened(tmp_path / "50% of #1? äö") as a:
        apply(a.replica, a.todos, Delivery(T1, 0, 1), [record(1, "k", "milk", 1)])
        assert a.shown() == {"k": "milk"}
