import itertools
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_client.replica import (
    Column,
    ColumnsChangedError,
    Delivery,
    GapError,
    Incoming,
    Kind,
    Replica,
    ReplicaMisuse,
    Unopened,
)
from sealwire_protocol.ids import StreamId
from sealwire_protocol.limits import VERSION_LAST
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import TOMBSTONE, Rank
from tests.client.replica.support import (
    COLUMNS,
    T1,
    T2,
    JsonValues,
    Todos,
    apply,
    edit,
    encode,
    open_todos,
    opened,
    record,
)


def test_a_delivery_moves_data_and_cursor_together(a: Todos) -> None:
    applied = a.deliver(0, record(1, "k", "milk", 1), record(3, "l", "bread", 2), last=4)
    assert applied.moved
    assert applied.changes is not None
    assert [(change.key, change.kind) for change in applied.changes] == [("k", Kind.INSERTED), ("l", Kind.INSERTED)]
    assert a.shown() == {"k": "milk", "l": "bread"}
    assert a.cursor() == 4
    assert a.replica.positions.standing(a.todos.number).version_seen == 2


def test_a_delivery_without_records_moves_the_cursor(a: Todos) -> None:
    assert a.deliver(0, last=9).moved
    assert a.cursor() == 9


def test_a_repeat_does_nothing_and_an_overlap_is_skipped(a: Todos) -> None:
    a.deliver(0, record(1, "k", "milk", 1), record(2, "l", "bread", 2))
    again = a.deliver(0, record(1, "k", "milk", 1), record(2, "l", "bread", 2))
    assert not again.moved
    more = a.deliver(1, record(2, "l", "bread", 2), record(3, "m", "salt", 3))
    assert more.changes is not None
    assert [change.key for change in more.changes] == ["m"]
    assert a.cursor() == 3


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", StreamKind)
def test_many_records_at_once_end_as_one_by_one(tmp_path: Path, kind: StreamKind, seed: int) -> None:
    """New keys and known ones, deletions, several of one key, values with something kept beside them, and edits that
    wait: rows, fallen records, changes and sum are the same."""
    chance = random.Random(seed)
    keys = [f"{n:03}" for n in range(chance.choice((40, 300, 3_000)))]
    records = [
        record(seq, chance.choice(keys), f"title {seq}", chance.randrange(1, 400), salt=b"%08d" % seq)
        for seq in range(1, 400)
    ]
    for place in chance.sample(range(399), chance.choice((0, 1, 60))):
        records[place] = chance.choice(
            (
                records[place]._replace(row=None, flags=TOMBSTONE),
                records[place]._replace(kept=encode(("kept", 1, "more"))),
                records[place]._replace(row=None, kept=encode(("newer",))),
                records[place]._replace(key_id=b"key2"),
            )
        )
    edited = chance.sample(keys, chance.choice((0, 5)))
    cuts = sorted({0, *chance.sample(range(1, 398), 3), 399})
    with opened(tmp_path / "a", kind) as many, opened(tmp_path / "b", kind) as single:
        for each in (many, single):
            for key in edited:
                each.edit(key, "mine")
        fallen = sum(many.deliver(at, *records[at:end]).fallen for at, end in itertools.pairwise(cuts))
        assert fallen == sum(single.deliver(at, records[at]).fallen for at in range(399))
        assert bool(fallen) == (kind is StreamKind.GUARDED)
        for stored in many.todos.table.stored:
            found = [
                each.replica.database.connection.execute(f"SELECT * FROM {stored} ORDER BY key").fetchall()
                for each in (many, single)
            ]
            assert found[0] == found[1]
        number = many.todos.number
        assert many.replica.sums.of(number) == single.replica.sums.of(number)


def test_a_gap_is_refused_and_changes_nothing(a: Todos) -> None:
    a.deliver(0, record(1, "k", "milk", 1))
    with pytest.raises(GapError, match="subscribe again"):
        a.deliver(2, record(3, "m", "salt", 3))
    assert a.cursor() == 1
    assert a.shown() == {"k": "milk"}


def test_changes_say_what_a_watcher_sees(a: Todos) -> None:
    a.deliver(0, record(1, "k", "milk", 1), record(2, "l", "bread", 2), record(3, "same", "as before", 3))
    applied = a.deliver(
        3,
        record(4, "k", "oat milk", 4),
        record(5, "l", None, 5),
        record(6, "same", "as before", 6),
        record(7, "m", None, 7),
    )
    assert applied.changes is not None
    assert [(change.key, change.kind) for change in applied.changes] == [("k", Kind.UPDATED), ("l", Kind.DELETED)]
    many = apply(
        a.replica, a.todos, Delivery(T1, 7, 9), [record(8, "n", "x", 8), record(9, "o", "y", 9)], changes_max=1
    )
    assert many.changes is None


def test_a_tombstone_stays_as_a_row_and_wins_by_rank(a: Todos) -> None:
    a.deliver(0, record(1, "k", None, 5), record(2, "k", "late", 4))
    assert a.shown() == {}
    assert a.confirmed("k") == 5
    a.deliver(2, record(3, "k", "again", 6))
    assert a.shown() == {"k": "again"}


def test_an_equal_rank_moves_the_position_only(a: Todos) -> None:
    a.deliver(0, record(1, "k", "milk", 1))
    a.deliver(1, record(2, "k", "milk", 1), term=T2)
    term, seq = a.replica.database.connection.execute(f"SELECT _term, _seq FROM {a.todos.table.name}").fetchone()
    assert (term, seq) == (a.replica.positions.term_id(T2), 2)


KEYS = ("a", "b", "c")
VERSIONS = st.tuples(st.sampled_from(KEYS), st.integers(1, 6), st.integers(1, 3), st.booleans())


@settings(max_examples=60)
@given(st.lists(VERSIONS, min_size=1, max_size=12, unique_by=lambda v: v[:3]), st.data())
def test_the_greatest_rank_wins_whatever_the_order(
    versions: list[tuple[str, int, int, bool]], data: st.DataObject
) -> None:
    """Any order and any repetition of the same records ends in the same rows, with edits under way or not."""
    order = data.draw(st.permutations(versions + data.draw(st.lists(st.sampled_from(versions), max_size=6))))
    cuts = data.draw(st.lists(st.integers(0, len(order)), max_size=3))
    edited = data.draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True))
    edges = sorted({0, *cuts, len(order)})
    with TemporaryDirectory() as folder, opened(Path(folder)) as a:
        for key in edited:
            a.edit(key, "mine")
        for start, end in itertools.pairwise(edges):
            part = [
                record(seq, key, f"v{version} by {author}" if live else None, version, author)
                for seq, (key, version, author, live) in enumerate(order[start:end], start + 1)
            ]
            a.deliver(start, *part)
        greatest = {key: max(v for v in versions if v[0] == key) for key in KEYS if any(v[0] == key for v in versions)}
        said = {key: f"v{v} by {author}" for key, (_, v, author, live) in greatest.items() if live}
        assert a.shown() == said | dict.fromkeys(edited, "mine")
        for key in edited:
            a.put_aside(key, "given up")
            a.replica.outbox.aside.discard(a.todos, key)
        assert a.shown() == said
        assert {key: a.confirmed(key) for key in greatest} == {key: v[1] for key, v in greatest.items()}


def test_an_edit_stays_visible_while_deliveries_pass(a: Todos) -> None:
    a.deliver(0, record(1, "k", "milk", 1))
    a.edit("k", "oat milk")
    applied = a.deliver(1, record(2, "k", "soy milk", 2), record(3, "l", "bread", 3))
    assert applied.changes is not None
    assert [change.key for change in applied.changes] == ["l"]
    assert a.shown() == {"k": "oat milk", "l": "bread"}
    assert a.confirmed("k") == 2


@pytest.mark.parametrize("sealed", (True, False))
def test_unopened_records_are_kept_and_move_the_cursor(a: Todos, sealed: bool) -> None:
    unopened = Unopened(2, Rank(9, 0, 3, b"saltsalt").pack(), b"sealed bytes", "what was wrong with it", sealed)
    apply(a.replica, a.todos, Delivery(T1, 0, 2), [record(1, "k", "milk", 1)], [unopened])
    assert a.cursor() == 2
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 1
    assert a.replica.positions.standing(a.todos.number).version_seen == (9 if sealed else 1)


def test_a_version_that_leaves_no_greater_one_steers_nothing(a: Todos) -> None:
    last = Incoming(1, "k", Rank(VERSION_LAST, 0, 9, b"saltsalt").pack(), b"key1", 0, ("milk", 0))
    a.deliver(0, last, record(2, "l", "bread", 5))
    assert a.replica.positions.standing(a.todos.number).version_seen == 5


def test_the_raw_value_is_kept_where_the_row_says_less(a: Todos) -> None:
    raw = json.dumps(["milk", 0, "from a newer app"]).encode()
    a.deliver(
        0, Incoming(1, "k", Rank(1, 0, 9, b"saltsalt").pack(), b"key1", 0, ("milk", 0), raw), record(2, "l", "x", 2)
    )
    a.edit("k", "oat milk")
    a.deliver(2, record(3, "m", "y", 3))
    wider = (*COLUMNS, Column("note", "TEXT"))
    again = open_todos(a.replica, wider)
    a.put_aside("k", "given up")
    a.replica.outbox.aside.discard(again, "k")
    a.reader.show(again)
    assert dict(a.reader.items(again)) == {
        "k": ("milk", 0, "from a newer app"),
        "l": ("x", 0, "no note"),
        "m": ("y", 0, "no note"),
    }
    assert {key: a.replica.claims.said(again, key).value for key in "klm"} == {
        "k": raw,
        "l": encode(("x", 0)),
        "m": encode(("y", 0)),
    }


def test_an_older_app_opens_a_wider_table_and_writes_no_stale_columns(a: Todos) -> None:
    wider = open_todos(a.replica, (*COLUMNS, Column("note", "TEXT")))
    full = Incoming(1, "k", Rank(1, 0, 9, b"saltsalt").pack(), b"key1", 0, ("milk", 0, "fresh"))
    apply(a.replica, wider, Delivery(T1, 0, 1), [full])
    older = open_todos(a.replica)
    assert a.reader.get(older, "k") == ("milk", 0)
    apply(a.replica, older, Delivery(T1, 1, 2), [record(2, "k", "bread", 2)])
    assert a.reader.get(wider, "k") == ("bread", 0, None)


@pytest.mark.parametrize(
    "columns", [(Column("name", "TEXT"),), (Column("title", "INTEGER"), Column("done", "INTEGER"))]
)
def test_changed_columns_are_refused(a: Todos, columns: tuple[Column, ...]) -> None:
    with pytest.raises(ColumnsChangedError, match="has the number 0"):
        open_todos(a.replica, columns)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("__edit", ()),
        ("1st", ()),
        ("sqlite_x", ()),
        ("a b", ()),
        ("ok", (Column("key", "TEXT"),)),
        ("ok", (Column("Rowid", "TEXT"),)),
        ("ok", (Column("_rank", "TEXT"),)),
        ("ok", (Column("a", "TEXT"), Column("A", "TEXT"))),
        ("ok", (Column("a", "TEXT); DROP TABLE _edit; --"),)),
    ],
)
def test_names_that_sql_could_not_say_are_refused(a: Todos, name: str, columns: tuple[Column, ...]) -> None:
    with pytest.raises(ReplicaMisuse):
        a.replica.entries.open(1, name, StreamId(b"another."), StreamKind.OPEN, "latest", columns, JsonValues())


def test_a_collection_cannot_change_its_kind(a: Todos) -> None:
    with pytest.raises(ReplicaMisuse, match="is for another kind"):
        a.replica.entries.open(1, "todos", a.todos.stream, StreamKind.GUARDED, "strict", COLUMNS, JsonValues())


def test_several_calls_can_be_one_transaction(a: Todos) -> None:
    def twice(replica: Replica) -> None:
        with replica.transaction():
            replica.edit(a.todos, [edit("k", "milk")])
            a.deliver(5, record(6, "l", "bread", 1))

    with pytest.raises(GapError):
        twice(a.replica)
    assert a.shown() == {}
    assert a.places() == (0, 0, 0, 0)
