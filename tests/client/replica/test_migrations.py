"""A replica that an older Sealwire left behind, with something in every place, opened by today's."""

import json
import sqlite3
from pathlib import Path

import pytest

from sealwire_client.replica import Delivery, Kept
from sealwire_client.replica.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from sealwire_protocol.ids import VaultId
from sealwire_protocol.messages import Group, StreamKind
from sealwire_protocol.segment import Rank
from tests.client.replica.support import ME, OTHER, STREAM, T1, Todos, apply, encode, opened, record

TABLES = """
    CREATE TABLE _c1 (key TEXT NOT NULL PRIMARY KEY, _live INTEGER NOT NULL, "title" TEXT, "done" INTEGER,
        _local INTEGER NOT NULL,
        _rank BLOB, _key_id BLOB, _flags INTEGER, _term INTEGER, _seq INTEGER, _raw BLOB);
    CREATE TABLE _s1 (key TEXT NOT NULL PRIMARY KEY, _live INTEGER NOT NULL, "title" TEXT, "done" INTEGER, _raw BLOB);
"""
"""The tables of one collection as schema version 1 made them."""

NEWER = json.dumps(["from a newer app", 0, "note"]).encode()


def rank(version: int, author: int = OTHER) -> bytes:
    return Rank(version, 0, author, b"saltsalt").pack()


def fill(connection: sqlite3.Connection) -> None:
    """Entries from elsewhere, an edit over one of them, an unanswered batch, an answered write, a stuck one."""
    run = connection.execute
    run("INSERT INTO _term VALUES (1, ?, ?)", (T1.number, T1.id))
    vault = VaultId(bytes([1]) * 16)
    run("INSERT INTO _vault VALUES (1, ?, 'vault 1', 'wss://relay.example.org', ?, 8)", (vault, ME))
    columns = json.dumps([["title", "TEXT"], ["done", "INTEGER"]])
    run(
        "INSERT INTO _collection (id, vault, name, stream, kind, policy, columns, opened, cursor_term, cursor_seq,"
        " served_term, served_seq, version_seen) VALUES (1, 1, 'todos', ?, ?, 'latest', ?, 2, 1, 5, 1, 5, 9)",
        (STREAM, StreamKind.OPEN, columns),
    )
    log = [
        ("entry", 1, "milk", rank(1), 1, None),
        ("edited", 1, "bread", rank(2), 2, None),
        ("gone", 0, None, rank(3), 3, None),
        ("newer", 1, "from a newer app", rank(4), 4, NEWER),
    ]
    for key, live, title, held, seq, raw in log:
        row = "INSERT INTO _c1 VALUES (?, ?, ?, ?, 0, ?, x'00', 0, 1, ?, ?)"
        run(row, (key, live, title, live and 0, held, seq, raw))
    run("UPDATE _c1 SET _local = 1, title = 'rye' WHERE key = 'edited'")
    run("INSERT INTO _s1 VALUES ('edited', 1, 'bread', 0, NULL)")
    for key in ("sent", "answered", "stuck"):
        run("INSERT INTO _c1 (key, _live, title, done, _local) VALUES (?, 1, ?, 0, 1)", (key, f"{key} title"))
    run(
        "INSERT INTO _edit (n, vault, collection, key, value, raw) VALUES (41, 1, 1, 'edited', ?, 0)",
        (encode(("rye", 0)),),
    )
    run("INSERT INTO _batch VALUES (1, 7, 0)")
    run("INSERT INTO _group VALUES (1, 7, 0, ?, x'', 1, ?)", (STREAM, b"sealed by 7"))
    sent = "INSERT INTO _sent VALUES (1, ?, 0, 0, 1, ?, ?, x'00', 0, ?, 0, ?, ?)"
    run(sent, (7, "sent", rank(8, ME), encode(("sent title", 0)), None, None))
    run(sent, (6, "answered", rank(7, ME), encode(("answered title", 0)), 1, 6))
    run("INSERT INTO _stuck VALUES (1, 'stuck', ?, 0, 'too_large')", (encode(("stuck title", 0)),))
    run("INSERT INTO _quarantine VALUES (1, 5, 1, ?, x'01', 'no key')", (rank(5),))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The folder of a replica of schema version 1."""
    connection = sqlite3.connect(tmp_path / "replica.db", isolation_level=None)
    connection.executescript(MIGRATIONS[0] + TABLES)
    fill(connection)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    return tmp_path


def kept(a: Todos, key: str) -> Kept:
    found = a.replica.database.connection.execute(f"SELECT _raw FROM {a.todos.table.name} WHERE key = ?", (key,))
    raw: Kept = found.fetchone()[0]
    return raw


def test_everything_is_there_after_the_migration(first: Path) -> None:
    with opened(first) as a:
        assert a.replica.database.connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        assert a.shown() == {
            "entry": "milk",
            "edited": "rye",
            "newer": "from a newer app",
            "sent": "sent title",
            "answered": "answered title",
            "stuck": "stuck title",
        }
        assert a.places() == (1, 1, 1, 1)
        assert a.replica.outbox.waiting(1).quarantined == 1
        assert a.cursor() == 5
        assert a.replica.claims.said(a.todos, "edited").value == encode(("bread", 0))
        assert a.replica.claims.said(a.todos, "newer").value == kept(a, "newer") == NEWER
        assert [stuck[:3] for stuck in a.replica.outbox.aside.all(a.todos)] == [
            ("stuck", encode(("stuck title", 0)), "too_large")
        ]
        assert a.reader.newer(a.todos) == []


def test_what_was_on_its_way_goes_on(first: Path) -> None:
    with opened(first) as a:
        (batch,) = a.replica.outbox.sent.unanswered(1)
        assert (batch.number, batch.flags, batch.groups) == (7, 0, (Group(STREAM, b"", b"sealed by 7"),))
        a.deliver(5, a.own(6, "answered", "answered title", 7))
        assert a.confirmed("answered") == 7
        assert a.answer(7, first=7, count=1) is not None
        a.deliver(6, a.own(7, "sent", "sent title", 8))
        assert a.places() == (1, 0, 0, 1)
        taken = a.take()
        assert taken is not None
        assert (taken.number, taken.groups[0].first_version) == (8, 10)
        assert [(edit.n, edit.key, edit.value) for edit in taken.groups[0].edits] == [
            (41, "edited", encode(("rye", 0)))
        ]
        a.edit("more", "x")
        assert a.replica.outbox.edits.marks(a.todos.number, ["more"])[0].n == 42
        assert a.replica.outbox.aside.retry(a.todos, "stuck")
        assert a.places() == (3, 0, 0, 0)


def test_deliveries_and_values_that_need_a_newer_app_work_on_old_tables(first: Path) -> None:
    with opened(first) as a:
        value = encode(("newer", 0))
        apply(a.replica, a.todos, Delivery(T1, 5, 7), [record(6, "entry", "oat milk", 11), record(7, "k", "x", 12)])
        last = record(8, "gone", None, 13)._replace(row=a.todos.read(value)[0], kept=a.todos.read(value)[1])
        a.deliver(7, last)
        assert a.reader.newer(a.todos) == ["gone"]
        assert a.shown()["entry"] == "oat milk"
