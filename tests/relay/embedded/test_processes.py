"""More than one process, and processes that are killed."""

import os
import signal
from pathlib import Path

import pytest

from sealwire_relay.embedded import AlreadyRunningError, EmbeddedPostgres
from tests.relay.embedded.support import another_process, assert_gone, query, running
from tests.support.aio import asyncio_test

pytestmark = pytest.mark.embedded


@asyncio_test
async def test_a_killed_relay_takes_its_postgres_along_and_the_folder_is_free(data_folder: Path) -> None:
    with another_process(data_folder) as first:
        pid = first.hears("pid")["pid"]
        assert isinstance(pid, int)
        first.process.kill()
        async with running(data_folder) as postgres:  # at once: it waits for the old one by itself
            assert_gone(pid, within_s=0)
            assert await query(postgres, "SELECT 1") == 1


@asyncio_test
async def test_a_second_process_is_refused_and_the_first_unharmed(data_folder: Path) -> None:
    async with running(data_folder) as postgres:
        pid = postgres.pid
        with another_process(data_folder) as second:
            told = second.hears("error")
        assert told["error"] == "AlreadyRunningError"
        assert str(os.getpid()) in str(told["message"])
        with pytest.raises(AlreadyRunningError) as caught:
            await EmbeddedPostgres(data_folder).start()
        assert caught.value.pid == os.getpid()
        with pytest.raises(AlreadyRunningError, match="in use"):
            EmbeddedPostgres(data_folder).look()
        assert postgres.pid == pid
        assert await query(postgres, "SELECT 1") == 1
    EmbeddedPostgres(data_folder).look()


def test_an_interrupt_in_the_terminal_reaches_the_relay_alone(data_folder: Path) -> None:
    with another_process(data_folder) as relay:
        pid = relay.hears("pid")["pid"]
        assert isinstance(pid, int)
        assert os.getsid(pid) == pid != os.getsid(relay.process.pid)
        relay.process.send_signal(signal.SIGINT)
        assert relay.process.wait() != 0
        assert_gone(pid, within_s=0)
    assert "database system is shut down" in (data_folder / "postgres.log").read_text()


@asyncio_test
async def test_an_initdb_that_was_killed_is_done_again(open_folder: Path) -> None:
    folder = open_folder / "data"
    with another_process(folder) as relay:
        assert "Creating" in str(relay.hears("report")["report"])
        relay.process.kill()
        relay.process.wait()
    half = folder / "postgres.new" / "half"
    half.parent.mkdir(exist_ok=True)
    half.write_text("written before the power went")
    async with running(folder) as postgres:
        assert await query(postgres, "SELECT 1") == 1
        assert not half.parent.exists()


@asyncio_test
async def test_a_stale_pid_file_with_a_strangers_number_is_no_obstacle(data_folder: Path) -> None:
    with another_process(data_folder) as relay:
        pid = relay.hears("pid")["pid"]
        assert isinstance(pid, int)
        relay.process.kill()
        assert_gone(pid)
    stale = data_folder / "postgres" / "postmaster.pid"
    stale.write_text(f"{os.getppid()}\n/proc/self/cwd\n1\n5432\n../socket\n\n 1 1\nready   \n")
    async with running(data_folder) as postgres:
        assert await query(postgres, "SELECT 1") == 1
