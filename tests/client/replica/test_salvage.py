"""A damaged replica: what only this device has is saved row by row, whatever was damaged, whenever it is ended."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealwire_client.replica import ReplicaCorruptError, ReplicaFullError, Salvaged, holds_a_replica, repair
from sealwire_client.replica import salvage as salvage_module
from sealwire_client.replica.database import FILE_NAME, OWN_TABLES, REPAIRING
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import START, Position
from sealwire_protocol.messages import StreamKind
from tests.client.replica.lost import Relay
from tests.client.replica.noise import PAGE, overwrite, pages_of
from tests.client.replica.support import ME, OTHER, T1, edit, opened, record

EDITS = 1_000
ENTRIES = 1_500


def fill(folder: Path, kind: StreamKind = StreamKind.OPEN) -> None:
    """Entries from elsewhere, and something of the device's own in every place."""
    with opened(folder, kind) as a:
        for first in range(1, ENTRIES, 500):
            a.deliver(first - 1, *[record(n, f"key {n:05}", "x" * 100, n) for n in range(first, first + 500)])
        a.edit("refused", "too large")
        a.answer(a.send(), outcome=Outcome.MALFORMED)
        for number in range(2, 6):
            a.replica.edit(a.todos, [edit(f"sent {number} {n}", "y" * 200) for n in range(100)])
            a.send()
        for first in range(0, EDITS, 100):
            a.replica.edit(a.todos, [edit(f"edit {n:05}", f"title {n} " * 5) for n in range(first, first + 100)])
        a.edit("key 00001", None)
        execute = a.replica.database.connection.execute
        execute("UPDATE _group SET records = randomblob(30000)")
        for n in range(500):
            execute("INSERT INTO _counted VALUES (1, ?, ?, ?, ?)", (f"counter {n:04}", ME, n + 1, n * 10))
        links = [bytes([n]) * 400 for n in range(1, 30)]
        a.replica.vaults.add_links(a.todos.vault, 1, links)


def own(folder: Path) -> dict[str, set[tuple[Any, ...]]]:
    """What only this device has, by table; without positions, which begin anew."""
    connection = sqlite3.connect(folder / FILE_NAME)
    found = {}
    for table in OWN_TABLES:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        kept = [c for c in columns if not c.startswith(("cursor_", "served_", "floor_")) and c != "doubt"]
        found[table] = set(connection.execute(f"SELECT {', '.join(kept)} FROM {table}"))
    connection.close()
    return found


def doubt(folder: Path) -> str | None:
    connection = sqlite3.connect(folder / FILE_NAME)
    found = connection.execute("SELECT doubt FROM _vault").fetchall()
    connection.close()
    return found[0][0] if found else None


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be copied."""
    folder = tmp_path_factory.mktemp("filled")
    fill(folder)
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    """A folder of one's own to damage."""
    shutil.copytree(filled, tmp_path / "a")
    return tmp_path / "a"


def sound(folder: Path) -> None:
    connection = sqlite3.connect(folder / FILE_NAME)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_what_is_sound_is_carried_over_whole_and_shown_again(folder: Path) -> None:
    before = own(folder)
    salvaged = repair(folder)
    assert own(folder) == before
    assert salvaged.unread == () and salvaged.doubted == () and doubt(folder) is None
    assert (salvaged.kept / FILE_NAME).exists() and not (folder / REPAIRING).exists()
    sound(folder)
    with opened(folder) as a:
        shown = a.shown()
        assert len(shown) == EDITS + 400 + 1 and shown["edit 00007"] == "title 7 " * 5
        assert shown["refused"] == "too large" and "key 00001" not in shown
        a.deliver(0, record(1, "key 00001", "x", 1), record(2, "key 00002", "x", 2))
        assert "key 00001" not in a.shown() and a.shown()["key 00002"] == "x"
        assert [batch.number for batch in a.replica.outbox.sent.unanswered(a.todos.vault)] == [2, 3, 4, 5]
        assert a.replica.outbox.edits.next_batch(a.todos.vault) == 6
        mark = a.edit("new", "new")
        assert mark.n > max(row[0] for row in before["_edit"])


@pytest.mark.parametrize("seed", range(6))
def test_damage_among_what_can_be_fetched_again_costs_nothing(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    before, pages = own(folder), [*pages_of(folder, "_c1", "_s1", "_quarantine", "sqlite_autoindex__c1_1")]
    overwrite(folder / FILE_NAME, chance.sample(pages, chance.randint(1, len(pages))), chance)
    salvaged = repair(folder)
    assert own(folder) == before
    assert salvaged.unread == () and doubt(folder) is None
    sound(folder)


@pytest.mark.parametrize("seed", range(6))
def test_of_damaged_pages_only_their_own_rows_are_lost(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    before, pages = own(folder), pages_of(folder, "_edit")
    leaves = [page for page, (kind, _) in pages.items() if kind == "leaf"]
    hit = chance.sample(leaves, min(len(leaves), chance.choice([1, 2, 5, 10])))
    with (folder / FILE_NAME).open("r+b") as file:
        for page in hit:
            file.seek((page - 1) * PAGE)
            file.write(chance.choice([bytes(PAGE), b"\xff" * PAGE]))
    salvaged = repair(folder)
    after = own(folder)
    assert after["_edit"] < before["_edit"]
    assert len(before["_edit"]) - len(after["_edit"]) == sum(pages[page][1] for page in hit)
    assert {table: rows for table, rows in after.items() if table != "_edit"} == {
        table: rows for table, rows in before.items() if table != "_edit"
    }
    assert salvaged.unread == ("_edit",) and doubt(folder) is None
    assert "edits that were not sent" in str(salvaged)


@pytest.mark.parametrize("table", ["_batch", "_group", "_sent", "_counted", "_collection"])
def test_where_numbers_may_be_missing_the_numbering_is_doubted(folder: Path, table: str) -> None:
    chance = random.Random(table)
    before, pages = own(folder), [page for page, (kind, _) in pages_of(folder, table).items() if kind == "leaf"]
    overwrite(folder / FILE_NAME, [chance.choice(pages)], chance)
    salvaged = repair(folder)
    assert table in salvaged.unread and salvaged.doubted == ("vault 1",)
    assert "damaged" in str(doubt(folder)) and "new keys" in str(salvaged)
    sound(folder)
    connection = sqlite3.connect(folder / FILE_NAME)
    numbers = [row[0] for row in connection.execute("SELECT number FROM _batch ORDER BY number")]
    assert numbers == list(range(2, 2 + len(numbers)))
    kept = set(connection.execute("SELECT * FROM _group"))
    assert {row[1] for row in kept} == set(numbers)
    assert kept <= before["_group"]  # the very bytes
    connection.close()
    with opened(folder) as a:
        assert a.replica.vaults.all()[0].doubt is not None
        for batch in a.replica.outbox.sent.unanswered(a.todos.vault):
            a.replica.outbox.answer(a.todos.vault, batch.number, Outcome.CLONED, (), ())
        assert a.replica.vaults.enrol(a.todos.vault, OTHER) is not None
        assert a.replica.vaults.all()[0].doubt is None


def never_invents(folder: Path, before: dict[str, set[tuple[Any, ...]]]) -> Salvaged:
    """Repair, and see that every row saved is one that was there."""
    salvaged = repair(folder)
    sound(folder)
    after = own(folder)
    for table in ("_vault", "_link", "_edit", "_batch", "_group", "_stuck", "_counted", "_collection"):
        assert after[table] <= before[table], table
    assert {row[:8] for row in after["_sent"]} <= {row[:8] for row in before["_sent"]}
    lost = [table for table in OWN_TABLES if after[table] < before[table] and table not in ("_group", "_batch")]
    assert set(lost) <= set(salvaged.unread)
    with opened(folder) as a:
        a.edit("after", "the repair")
        assert a.shown()["after"] == "the repair"
    return salvaged


@pytest.mark.parametrize("seed", range(20))
def test_pages_overwritten_anywhere(folder: Path, seed: int) -> None:
    chance, path, before = random.Random(seed), folder / FILE_NAME, own(folder)
    pages = range(2, path.stat().st_size // PAGE + 1)
    overwrite(path, chance.sample(pages, chance.choice([1, 3, 10, 50, 200])), chance)
    first = never_invents(folder, before)
    again = own(folder)
    second = repair(folder)
    assert own(folder) == again and first.kept != second.kept


@pytest.mark.parametrize("part", [0.02, 0.1, 0.3, 0.5, 0.8, 0.99])
def test_a_file_cut_short(folder: Path, part: float) -> None:
    path, before = folder / FILE_NAME, own(folder)
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(ReplicaCorruptError):
        opened(folder).__enter__()
    never_invents(folder, before)


@pytest.mark.parametrize("noise", [bytes(100), b"\xff" * 100, random.Random(1).randbytes(100), b"SQLite format 3\0"])
def test_behind_a_header_of_noise_everything_is_found(folder: Path, noise: bytes) -> None:
    before = own(folder)
    with (folder / FILE_NAME).open("r+b") as file:
        file.write(noise.ljust(100, b"\0"))
    salvaged = repair(folder)
    assert own(folder) == before and salvaged.unread == () and doubt(folder) is None


def test_where_nothing_can_be_read_it_says_what_to_do(folder: Path) -> None:
    size = (folder / FILE_NAME).stat().st_size
    (folder / FILE_NAME).write_bytes(random.Random(2).randbytes(size))
    salvaged = repair(folder)
    assert "ask another device of each for an invite" in str(salvaged)
    assert (salvaged.kept / FILE_NAME).read_bytes() == random.Random(2).randbytes(size)
    with opened(folder) as a:
        assert a.shown() == {}


@pytest.fixture(scope="module")
def left(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose process was killed, with many transactions in the log."""
    folder = tmp_path_factory.mktemp("left")
    shutil.copytree(filled, folder / "running")
    with opened(folder / "running") as a:
        for n in range(60):
            a.edit(f"late {n}", f"title {n}")
        shutil.copytree(folder / "running", folder / "left")
    return folder / "left"


@pytest.mark.parametrize("at", [0, 32 + 24, 32 + 5 * 4120 + 200, 32 + 40 * 4120 + 3, 32 + 60 * 4120])
def test_transactions_behind_a_damaged_place_of_the_log_are_found(left: Path, tmp_path: Path, at: int) -> None:
    folder = tmp_path / "a"
    shutil.copytree(left, folder)
    log = folder / f"{FILE_NAME}-wal"
    content = bytearray(log.read_bytes())
    content[at : at + 8] = b"\xa5" * 8
    log.write_bytes(content)
    with pytest.raises(ReplicaCorruptError, match="last transactions"):
        opened(folder).__enter__()
    assert log.read_bytes() == content  # it is as it was
    salvaged = repair(folder)
    assert salvaged.doubted == ("vault 1",)
    assert {"late 0", "late 59"} & {row[3] for row in own(folder)["_edit"]}
    sound(folder)


def test_a_log_whose_last_transaction_is_torn_is_no_damage(left: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(left, folder)
    log = folder / f"{FILE_NAME}-wal"
    with log.open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"torn")
    with opened(folder) as a:
        shown = a.shown()
    assert "late 58" in shown and "late 59" not in shown


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("name", ["rename", "replace", "fsync", "unlink"])
@pytest.mark.parametrize("call", range(1, 7))
def test_a_repair_that_is_ended_goes_on(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(left, folder)
    expected = sqlite3.connect(folder / FILE_NAME)
    edits = set(expected.execute("SELECT * FROM _edit"))
    expected.close()
    shutil.rmtree(folder)
    shutil.copytree(left, folder)
    calls = iter(range(1, 1_000))
    real: Callable[..., Any] = getattr(os, name)

    def ended(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, name, ended)
        try:
            repair(folder)
        except Killed:
            with pytest.raises(ReplicaCorruptError, match="begun"):
                opened(folder).__enter__()
    repair(folder)
    assert own(folder)["_edit"] == edits
    sound(folder)
    assert len(list(folder.glob("damaged-*"))) in (1, 2)


def test_damage_that_was_met_is_looked_for_at_the_next_opening(folder: Path) -> None:
    path = folder / FILE_NAME
    leaves = [page for page, (kind, _) in pages_of(folder, "_c1").items() if kind == "leaf"]
    with path.open("r+b") as file:
        for page in leaves:
            file.seek((page - 1) * PAGE)
            file.write(b"\xff" * PAGE)
    with opened(folder) as a:  # its own tables are sound
        with pytest.raises(ReplicaCorruptError):
            a.replica.edit(a.todos, [edit("key 01000", "y")])
        with pytest.raises(ReplicaCorruptError):  # nothing more is written
            a.edit("another", "z")
    with pytest.raises(ReplicaCorruptError):
        opened(folder).__enter__()
    repair(folder)
    with opened(folder) as a:
        assert "edit 00001" in a.shown()


def test_a_sign_without_damage_is_taken_away(folder: Path) -> None:
    (folder / "replica.damaged").write_text("a reader met something\n")
    with opened(folder):
        assert not (folder / "replica.damaged").exists()


def test_room_that_is_missing_leaves_everything_to_be_repaired_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = own(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(salvage_module, "_carry_over", full)
        with pytest.raises(ReplicaFullError, match="nothing is lost"):
            repair(folder)
    repair(folder)
    assert own(folder) == before


def test_another_file_of_that_name_is_no_damaged_replica(folder: Path) -> None:
    assert holds_a_replica(folder)
    with (folder / FILE_NAME).open("r+b") as file:
        file.write(b"\xa5" * 100)
    assert holds_a_replica(folder)
    (folder / FILE_NAME).write_bytes(b"my own notes" * 1_000)
    assert not holds_a_replica(folder)
    (folder / FILE_NAME).unlink()
    other = sqlite3.connect(folder / FILE_NAME)
    other.executescript("CREATE TABLE photos (id); INSERT INTO photos VALUES (1)")
    other.close()
    assert not holds_a_replica(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["replica.db", "replica.lock", "replica.reserve"]


def test_refills_whose_batches_could_not_be_read_are_compared_and_given_back_again(tmp_path: Path) -> None:
    with opened(tmp_path) as a:
        a.deliver(0, *[record(n, f"key {n}", "lost", n) for n in range(1, 4)])
        assert Relay(START, ()).settle(a).refills == 3
    overwrite(tmp_path / FILE_NAME, pages_of(tmp_path, "_batch"), random.Random(1))
    repair(tmp_path)
    with opened(tmp_path) as a:
        assert not a.replica.outbox.sent.has_doubtful(a.todos.vault)
        assert a.replica.outbox.sent.answered_at(a.todos.number) == (Position(T1, 3),)
        assert a.shown() == {f"key {n}": "lost" for n in range(1, 4)}
        assert Relay(START, ()).settle(a).refills == 3
        assert a.places() == (0, 3, 0, 0)


def test_what_was_saved_is_said_as_one_or_as_several() -> None:
    salvaged = Salvaged(Path("damaged"), {"_vault": 1, "_edit": 1, "_batch": 2, "_sent": 0}, ("_edit",), ())
    assert "saved: 1 vault, 1 edit that was not sent, 2 batches without a verdict; not all" in str(salvaged)
    assert "could be read of: edits that were not sent;" in str(salvaged)
