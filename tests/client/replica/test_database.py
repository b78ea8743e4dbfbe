import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sealwire_client.replica import (
    NotAReplicaError,
    Replica,
    ReplicaCorruptError,
    ReplicaError,
    ReplicaFullError,
    ReplicaInUseError,
    ReplicaTooNewError,
)
from sealwire_client.replica import database as database_module
from sealwire_client.replica.database import Database
from sealwire_client.replica.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from sealwire_protocol.ids import Author, VaultId
from tests.client.replica.support import Todos, edit, open_todos, opened, record

HOLD = """
import sys
from pathlib import Path
from sealwire_client.replica import Replica
replica = Replica(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_the_file_is_this_users_alone_and_says_whose_it_is(a: Todos) -> None:
    path = a.replica.database.path
    a.edit("k", "milk")
    for file in (path, path.with_name("replica.db-wal")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    run = a.replica.database.connection.execute
    assert run("PRAGMA journal_mode").fetchone() == ("wal",)
    assert run("PRAGMA synchronous").fetchone() == (2,)
    assert run("PRAGMA foreign_keys").fetchone() == (1,)
    assert run("PRAGMA foreign_key_check").fetchall() == []
    assert run("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_second_process_is_told_who_has_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(ReplicaInUseError, match=f"process {process.pid}") as raised:
            Replica(tmp_path)
        assert raised.value.pid == process.pid
        process.kill()
        process.wait()
    Replica(tmp_path).close()


def test_twice_in_one_process_is_refused_too(a: Todos) -> None:
    with pytest.raises(ReplicaInUseError, match=str(os.getpid())):
        Replica(a.folder)


@pytest.mark.parametrize("content", [b"not a database at all\n", b"x", b"SQLite format 3\0", bytes(range(256)) * 32])
def test_what_is_not_sqlite_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "replica.db"
    path.write_bytes(content)
    with pytest.raises(NotAReplicaError, match="left as it is"):
        Replica(tmp_path)
    assert path.read_bytes() == content
    path.unlink()
    Replica(tmp_path).close()


def test_another_applications_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "replica.db"
    other = sqlite3.connect(path)
    other.executescript("CREATE TABLE photos (id); INSERT INTO photos VALUES (1)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(NotAReplicaError, match="another application"):
        Replica(tmp_path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_left_as_it_is(tmp_path: Path) -> None:
    Replica(tmp_path).close()
    path = tmp_path / "replica.db"
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(ReplicaTooNewError, match="update this program"):
        Replica(tmp_path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_replica(tmp_path: Path) -> None:
    (tmp_path / "replica.db").touch()
    with opened(tmp_path) as a:
        a.edit("k", "milk")


def test_an_older_schema_is_migrated_and_a_failed_migration_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as a:
        a.edit("k", "milk")
    more = (*MIGRATIONS, "CREATE TABLE _new (x) STRICT")
    monkeypatch.setattr(database_module, "MIGRATIONS", more)
    monkeypatch.setattr(database_module, "SCHEMA_VERSION", len(more))
    with pytest.raises(sqlite3.OperationalError):
        Database(tmp_path)
    good = (*more[:-1], "CREATE TABLE _new (x INTEGER) STRICT")
    monkeypatch.setattr(database_module, "MIGRATIONS", good)
    with opened(tmp_path) as a:
        assert a.replica.database.connection.execute("PRAGMA user_version").fetchone() == (len(good),)
        assert a.replica.database.connection.execute("SELECT count(*) FROM _new").fetchone() == (0,)
        assert a.shown() == {"k": "milk"}


def test_creation_cut_short_after_its_first_page_goes_on(tmp_path: Path) -> None:
    half = sqlite3.connect(tmp_path / "replica.db")
    half.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    half.close()
    with opened(tmp_path) as a:
        a.edit("k", "milk")
        assert a.shown() == {"k": "milk"}


def fill(folder: Path) -> Path:
    with opened(folder) as a:
        a.deliver(0, *[record(n, f"key {n}", "x" * 200, n) for n in range(1, 500)])
    return folder / "replica.db"


def test_damage_is_found_after_an_unclean_end_and_nothing_is_deleted(tmp_path: Path) -> None:
    path = fill(tmp_path)
    damaged = bytearray(path.read_bytes())
    for page in range(len(damaged) // 8192, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(damaged)
    path.with_name("replica.db-wal").touch()
    with pytest.raises(ReplicaCorruptError, match="damaged") as raised:
        Replica(tmp_path)
    assert "nothing was deleted" in str(raised.value)
    assert path.read_bytes() == damaged


def test_damage_is_found_when_it_is_met(tmp_path: Path) -> None:
    path = fill(tmp_path)
    damaged = bytearray(path.read_bytes())
    for page in range(len(damaged) * 2 // 3 // 4096, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(damaged)
    with opened(tmp_path) as a:
        with pytest.raises(ReplicaCorruptError):
            a.replica.edit(a.todos, [edit(f"key {n}", "y") for n in range(500)])
        with pytest.raises(ReplicaCorruptError):
            a.replica.database.check()
        with pytest.raises(ReplicaCorruptError):
            list(a.reader.items(a.todos))


def test_a_file_cut_short_is_corrupt(tmp_path: Path) -> None:
    path = fill(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ReplicaCorruptError):
        Replica(tmp_path).database.check()


def test_a_full_disk_undoes_one_change_and_the_replica_goes_on(a: Todos) -> None:
    a.edit("k", "milk")
    run = a.replica.database.connection.execute
    pages = run("PRAGMA page_count").fetchone()[0]
    run(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(ReplicaFullError, match="make room and try again"):
        a.replica.edit(a.todos, [edit(f"key {n}", "x" * 500) for n in range(100)])
    with pytest.raises(ReplicaFullError):
        a.deliver(0, *[record(n, f"key {n}", "x" * 500, n) for n in range(1, 100)])
    assert a.shown() == {"k": "milk"}
    assert (a.cursor(), a.places()) == (0, (1, 0, 0, 0))
    run(f"PRAGMA max_page_count = {pages + 1000}")
    a.deliver(0, *[record(n, f"key {n}", "x" * 500, n) for n in range(1, 100)])
    assert a.cursor() == 99


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReplicaError, match="choose another one"):
        Replica(tmp_path / "file" / "folder")


def test_vaults_and_their_links_are_held(tmp_path: Path) -> None:
    with opened(tmp_path) as a:
        vaults = a.replica.vaults
        vaults.add_links(1, 1, [b"genesis", b"second"])
        vaults.add_links(1, 2, [b"second", b"third"])
        for first, links in ((5, [b"fifth"]), (3, [b"another third"])):
            with pytest.raises(ReplicaError):
                vaults.add_links(1, first, links)
        with pytest.raises(ReplicaError):
            vaults.add(VaultId(b"\1" * 16), "home", "wss://elsewhere.example.org", Author(7))
    with opened(tmp_path) as a:
        assert a.replica.vaults.links(1) == [b"genesis", b"second", b"third"]
        assert [held.name for held in a.replica.vaults.all()] == ["vault 1"]
        assert open_todos(a.replica) == a.todos
