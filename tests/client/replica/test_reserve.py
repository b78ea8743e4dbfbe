"""A full disk keeps nobody from what was saved: the replica opens and reads with no byte free."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_client.replica import Replica, ReplicaCorruptError, ReplicaFullError, repair
from sealwire_client.replica.reserve import RESERVE_BYTES, RESERVE_NAME, SIZES_BYTES, Reserve
from tests.client.cli.commands import ROOT
from tests.client.replica.support import edit, opened
from tests.support.small_disk import fill, free, make_room, small_disk

WRITE = """
import os, sys
from pathlib import Path
from sealwire_client.replica import ReplicaFullError
from tests.client.replica.support import Todos
todos = Todos(Path(sys.argv[1]))
try:
    for number in range(1_000):
        todos.edit(f"key {number}", "x" * int(sys.argv[3]))
        print(number, flush=True)
except ReplicaFullError:
    print("full", flush=True)
if sys.argv[2] == "closed":
    todos.close()
os._exit(0)
"""


def write(folder: Path, end: str, size: int) -> int:
    """Another process writes until the disk is full, and ends. How many edits were saved."""
    path = [str(ROOT), *(str(ROOT / name) for name in ("protocol", "client"))]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{WRITE}", str(folder), end, str(size)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *saved, last = done.stdout.split()
    assert last == "full"
    return len(saved)


def logged(folder: Path) -> bool:
    """True if a log was left."""
    return (folder / "replica.db-wal").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2) as disk:
        yield disk


@pytest.mark.parametrize("left", [0, 4_096, 16_384, 65_536, 262_144, 1_048_576])
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_what_was_saved_can_be_read_on_a_full_disk(disk: Path, end: str, left: int) -> None:
    folder = disk / "a"
    with opened(folder) as a:
        a.edit("small", "milk")
    fill(disk, left)
    saved = write(folder, end, size=3_000)
    for _ in range(3):
        fill(disk)
        with opened(folder) as a:
            assert a.shown()["small"] == "milk"
            assert len(a.waiting()) == 1 + saved
            with pytest.raises(ReplicaFullError, match="written now was not saved, everything before it was"):
                a.replica.edit(a.todos, [edit(f"much {number}", "x" * 9_000) for number in range(30)])
    make_room(disk)
    with opened(folder) as a:
        assert len(a.waiting()) == 1 + saved
        a.edit("more", "bread")
    assert not logged(folder)
    assert (folder / RESERVE_NAME).stat().st_size == RESERVE_BYTES


def test_a_log_too_long_for_the_reserve_is_read_from_where_it_lies(disk: Path) -> None:
    folder = disk / "a"
    with opened(folder):
        pass
    saved = write(folder, "closed", size=50_000)
    assert logged(folder)
    fill(disk)
    with opened(folder) as a:
        assert len(a.waiting()) == saved


def test_a_log_that_cannot_be_moved_and_is_damaged_is_not_built_upon(disk: Path) -> None:
    folder = disk / "a"
    with opened(folder):
        pass
    write(folder, "killed", size=50_000)
    with (folder / "replica.db-wal").open("r+b") as log:
        log.seek(5 * 4_120)
        log.write(b"\xa5" * 100)
    fill(disk)
    with pytest.raises(ReplicaCorruptError, match="last transactions cannot be read"):
        Replica(folder)


def test_openings_on_a_full_disk_do_not_use_the_reserve_up(disk: Path) -> None:
    folder = disk / "a"
    with opened(folder) as a:
        a.edit("small", "milk")
    for _ in range(4):
        fill(disk)
        with opened(folder) as a:
            assert (folder / RESERVE_NAME).stat().st_size in SIZES_BYTES[1:]
            assert a.shown() == {"small": "milk"}
        assert (folder / RESERVE_NAME).stat().st_size in SIZES_BYTES
        assert not logged(folder)


def test_without_a_reserve_the_opening_says_that_nothing_is_lost(disk: Path) -> None:
    folder = disk / "a"
    with opened(folder) as a:
        a.edit("small", "milk")
    Reserve(folder).give_up()
    fill(disk)
    with pytest.raises(ReplicaFullError, match="could not be opened, and nothing of it is lost; make room"):
        Replica(folder)
    with pytest.raises(ReplicaFullError, match="could not be opened"):
        Replica(disk / "another")
    make_room(disk)
    with opened(folder) as a:
        assert a.shown() == {"small": "milk"}


def test_the_reserve_is_real_and_is_held_once(disk: Path) -> None:
    reserve = Reserve(disk)
    assert not reserve.give_up()
    before = free(disk)
    reserve.make()
    reserve.make()
    assert before - free(disk) == RESERVE_BYTES
    (disk / RESERVE_NAME).unlink()
    with (disk / RESERVE_NAME).open("wb") as file:
        file.truncate(RESERVE_BYTES)  # as a copy that leaves holes
    reserve.make()
    assert before - free(disk) == RESERVE_BYTES
    assert reserve.give_up()
    assert free(disk) == before
    for left in (SIZES_BYTES[-1] - 4_096, SIZES_BYTES[-1], SIZES_BYTES[-2] + 4_096):
        fill(disk, left)
        reserve.make()
        assert left - free(disk) == max((size for size in SIZES_BYTES if size <= left), default=0)
        reserve.give_up()


def test_a_repair_has_the_room_of_the_reserve(disk: Path) -> None:
    folder = disk / "a"
    with opened(folder) as a:
        a.edit("small", "milk")
    with (folder / "replica.db").open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 2_000)
    fill(disk, 200_000)
    salvaged = repair(folder)
    make_room(disk)
    with opened(folder):
        assert (folder / RESERVE_NAME).exists()
    assert not (salvaged.kept / RESERVE_NAME).exists()
