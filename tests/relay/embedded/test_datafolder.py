"""Folders that are refused, untouched."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealwire_relay.embedded import DataFolderError, EmbeddedPostgres, EmbeddedPostgresError
from sealwire_relay.embedded.datafolder import DataFolder
from tests.relay.embedded.support import contents
from tests.support.aio import asyncio_test

pytestmark = pytest.mark.embedded


async def refuses(folder: Path, words: str) -> None:
    before = contents(folder)
    with pytest.raises(DataFolderError, match=words) as caught:
        await EmbeddedPostgres(folder).start()
    assert contents(folder) == before
    assert str(caught.value).count("\n") == 0


@asyncio_test
async def test_a_folder_with_something_else(open_folder: Path) -> None:
    (open_folder / "thesis.txt").write_text("years of work")
    await refuses(open_folder, "holds something else")


@asyncio_test
async def test_a_database_that_lacks_the_layout_is_not_to_be_emptied(data_folder: Path) -> None:
    (data_folder / "layout").unlink()
    await refuses(data_folder, r"has database files and no file `layout`.*; put that back")


@asyncio_test
async def test_a_database_that_lacks_files_is_damaged(data_folder: Path) -> None:
    shutil.rmtree(data_folder / "postgres" / "base")
    with pytest.raises(
        EmbeddedPostgresError, match=r"cannot be used \(database \S+ does not exist\).*restore"
    ) as caught:
        await EmbeddedPostgres(data_folder).start()
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(("at", "garbage"), [(0, b"\xff" * 8), (40, b"\xff" * 8)])
@asyncio_test
async def test_a_control_file_with_garbage_is_damaged(data_folder: Path, at: int, garbage: bytes) -> None:
    with (data_folder / "postgres" / "global" / "pg_control").open("r+b") as file:
        file.seek(at)
        file.write(garbage)
    with pytest.raises(DataFolderError, match=r"damaged.*restore a backup into another data folder"):
        await EmbeddedPostgres(data_folder).start()


@asyncio_test
async def test_another_layout_version(data_folder: Path) -> None:
    (data_folder / "layout").write_text("sealwire-relay data folder\nlayout 2\npostgres 18\n")
    await refuses(data_folder, "layout version 2 and this relay knows version 1")


@asyncio_test
async def test_a_layout_that_is_not_ours(data_folder: Path) -> None:
    (data_folder / "layout").write_text("qwerty")
    await refuses(data_folder, "not a relay's")


@asyncio_test
async def test_another_postgres(data_folder: Path) -> None:
    (data_folder / "postgres" / "PG_VERSION").write_text("17\n")
    (data_folder / "layout").write_text("sealwire-relay data folder\nlayout 1\npostgres 17\n")
    before = contents(data_folder / "postgres")
    with pytest.raises(DataFolderError, match="made by Postgres 17 and this relay brings Postgres 18"):
        await EmbeddedPostgres(data_folder).start()
    assert contents(data_folder / "postgres") == before


@asyncio_test
async def test_a_version_file_that_was_changed(data_folder: Path) -> None:
    (data_folder / "postgres" / "PG_VERSION").write_text("17\n")
    await refuses(data_folder, "PG_VERSION` says 17")


@asyncio_test
async def test_database_files_that_have_gone_are_not_replaced_by_empty_ones(data_folder: Path) -> None:
    (data_folder / "postgres").rename(data_folder.parent / "elsewhere")
    await refuses(data_folder, "lost its database files")


@asyncio_test
async def test_a_file_in_place_of_a_folder(open_folder: Path) -> None:
    (open_folder / "data").write_text("")
    await refuses(open_folder / "data", "is a file")


@asyncio_test
async def test_a_folder_that_cannot_be_made(open_folder: Path) -> None:
    (open_folder / "file").write_text("")
    with pytest.raises(DataFolderError, match="cannot be used"):
        await EmbeddedPostgres(open_folder / "file" / "data").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
@asyncio_test
async def test_a_folder_of_another_user(data_folder: Path) -> None:
    os.chown(data_folder, 1, 1)
    await refuses(data_folder, "belongs to user daemon while the relay runs as root")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving database files to root needs root")
@asyncio_test
async def test_database_files_of_root(data_folder: Path) -> None:
    os.chown(data_folder / "postgres", 0, 0)
    before = contents(data_folder / "postgres")
    with pytest.raises(DataFolderError, match="belong to root"):
        await EmbeddedPostgres(data_folder).start()
    assert contents(data_folder / "postgres") == before


@pytest.fixture
def left_behind(tmp_path: Path) -> Callable[[int], bool]:
    """Whether the pid file with a number is still there after stale ones were removed."""
    folder = DataFolder(tmp_path / "data")
    folder.cluster.mkdir(parents=True)
    pid_file = folder.cluster / "postmaster.pid"

    def tell(pid: int) -> bool:
        pid_file.write_text(f"{pid}\n/proc/self/cwd\n1\n5432\n../socket\n\n 1 1\nready   \n")
        folder.remove_stale_pid_file()
        return pid_file.exists()

    return tell


def named_postgres(tmp_path: Path, program: str) -> Path:
    """A copy of a program whose process is called postgres."""
    found = shutil.which(program)
    assert found is not None
    return Path(shutil.copy(found, tmp_path / "postgres"))


def test_the_pid_of_a_dead_postgres_that_nobody_has_reaped_yet_is_stale(
    tmp_path: Path, left_behind: Callable[[int], bool]
) -> None:
    with subprocess.Popen([named_postgres(tmp_path, "true")], cwd=tmp_path / "data" / "postgres") as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        assert not left_behind(dead.pid)


def test_the_pid_of_a_postgres_is_stale_unless_it_works_in_this_folder(
    tmp_path: Path, left_behind: Callable[[int], bool]
) -> None:
    program = named_postgres(tmp_path, "cat")
    for where, stays in ((tmp_path / "data" / "postgres", True), (tmp_path, False)):
        with subprocess.Popen([program], cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
            assert living.stdin is not None and living.stdout is not None
            living.stdin.write(b"executed?\n")
            living.stdin.flush()
            assert living.stdout.readline() == b"executed?\n"
            assert left_behind(living.pid) is stays
