"""Child processes are waited for by the kernel's word, and none outlives its parent's killing."""

import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from demo.processes import StoryError, ended, go_on, kill_all, kill_tree, stop_all
from demo.relay import Relay

WAIT_S_MAX = 60.0

FAMILY = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
    " print(child.pid, flush=True); child.wait()"
)
"""A program with a child, both of which wait for ever."""


def waiting(code: str = "input()") -> "subprocess.Popen[bytes]":
    """A program that ends when its stdin does."""
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_tree_is_dead_when_it_was_killed() -> None:
    with waiting(FAMILY) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert kill_tree(process) == [process.pid, child]
        assert not runs(child)
        assert kill_tree(process) == []


def test_who_has_ended_before_is_no_error() -> None:
    with waiting(FAMILY) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        kill_all(child)
        process.wait(WAIT_S_MAX)
        assert kill_all(child) == [child]
        go_on([child])


def test_what_was_stopped_goes_on() -> None:
    with waiting(FAMILY.replace("child.wait()", "print(input(), flush=True); child.kill()")) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        child = int(process.stdout.readline())
        assert stop_all(process.pid) == [process.pid, child]
        go_on([process.pid, child])
        process.stdin.write(b"still there\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"still there\n"


@pytest.mark.trio
async def test_the_end_of_a_process_is_told() -> None:
    with waiting("raise SystemExit(len(input()))") as process:
        with trio.fail_after(WAIT_S_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ended, process)
                nursery.start_soon(ended, process)
                await trio.testing.wait_all_tasks_blocked()
                assert process.returncode is None
                assert process.stdin is not None
                process.stdin.write(b"123\n")
                process.stdin.flush()
            await ended(process)
        assert process.returncode == 3


@pytest.mark.trio
async def test_a_relay_that_ends_by_itself_is_noticed_and_one_that_is_killed_is_not(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    told = pytest.RaisesExc(StoryError, match=r"by itself \(status 1\)")
    with pytest.RaisesGroup(told), trio.fail_after(WAIT_S_MAX):
        async with trio.open_nursery() as nursery:
            relay._process = waiting()
            nursery.start_soon(relay.watch)
            await trio.testing.wait_all_tasks_blocked()
            relay.kill()
            relay._begun(waiting())
            await trio.testing.wait_all_tasks_blocked()
            assert relay._process.stdin is not None
            relay._process.stdin.close()
    relay.kill()
