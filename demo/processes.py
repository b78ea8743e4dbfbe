"""Child processes of the demo: started, watched, and killed without mercy or remainder (Linux: reads /proc, and is told
by the kernel of the end of a process)."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

ROOT: Final = Path(__file__).resolve().parents[1]
TIED: Final = Path(__file__).with_name("tied.py")

FOREIGN: Final = re.compile("SEALWIRE_(?!PROOF)")
"""Settings of another relay that this shell may have; the mark of a proof stays, by which it finds its processes."""

DYING_S_MAX: Final = 60.0
"""For what was sent SIGKILL: only the kernel can be slow."""

POLL_S: Final = 0.01
"""Between two looks at what nobody tells of."""

LAST_LINES: Final = 12
"""Lines of a log that are shown when its process died: enough for the cause, few enough to read."""


class StoryError(Exception):
    """The story cannot go on. The message is for people: what happened, and the last that was heard."""


def spawn(module: str, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
    """Run `python -m module` in a session of its own, tied to this process; stderr goes to `log`.

    Its own session, so that Ctrl-C reaches the conductor alone, who ends everything in order.
    """
    command = [sys.executable, "-m", module, *arguments]
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(TIED), str(os.getpid()), *command],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not FOREIGN.match(name)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )


def kill_tree(process: "subprocess.Popen[bytes]") -> list[int]:
    """Kill -9 a process and all that descend from it, at one moment; returns their ids, all dead.

    Raises StoryError if one does not die.
    """
    dead = kill_all(process.pid) if process.poll() is None else []
    process.wait(DYING_S_MAX)
    return dead


def kill_all(root: int) -> list[int]:
    """`kill_tree` for what is not this process' own child."""
    stopped = stop_all(root)
    with contextlib.ExitStack() as stack:
        ends = {pid: stack.enter_context(_end_of(pid)) for pid in stopped}
        for pid in stopped:
            _send(pid, signal.SIGKILL)
        _await_ends(ends)
    return stopped


def stop_all(root: int) -> list[int]:
    """SIGSTOP to a process and all that descend from it, parents before children: nobody can start another one or shut
    down in order. Returns their ids, for `go_on`."""
    stopped: list[int] = []
    while fresh := [pid for pid in _tree(root) if pid not in stopped]:
        stopped += fresh
        for pid in fresh:
            _send(pid, signal.SIGSTOP)
    return stopped


def go_on(stopped: Iterable[int]) -> None:
    """SIGCONT to what was stopped, as far as it lives."""
    for pid in stopped:
        _send(pid, signal.SIGCONT)


async def ended(process: "subprocess.Popen[bytes]") -> None:
    """Wait until a child has ended. Its status is known then. May be cancelled."""
    if process.poll() is None:
        with _end_of(process.pid) as end:
            assert end is not None, "it is our child, and nobody has asked for its status"
            await trio.lowlevel.wait_readable(end)
        process.wait(DYING_S_MAX)


async def until(reached: Callable[[], bool], limit_s: float) -> bool:
    """Wait until something is so that another process brings about and does not tell. False: not within the limit."""
    with trio.move_on_after(limit_s):
        while True:
            if reached():
                return True
            await trio.sleep(POLL_S)
    return reached()


def last_words(log: Path) -> str:
    """The last lines of a log, for a message."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        lines = []
    return "".join(f"\n    {line}" for line in lines) or " It wrote nothing."


@contextlib.contextmanager
def _end_of(pid: int) -> Iterator[int | None]:
    """What can be read once a process has ended, be it reaped or not; None: it is not there any more."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield end
    finally:
        os.close(end)


def _await_ends(ends: Mapping[int, int | None]) -> None:
    """Wait until all these processes, each with its end, have ended. Raises StoryError."""
    deadline = time.monotonic() + DYING_S_MAX
    poll, living = select.poll(), {end: pid for pid, end in ends.items() if end is not None}
    for end in living:
        poll.register(end, select.POLLIN)
    while living:
        told = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not told:
            raise StoryError(f"Processes {[*living.values()]} did not die of SIGKILL within {DYING_S_MAX:.0f} s.")
        for end, _ in told:
            poll.unregister(end)
            del living[end]


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _tree(root: int) -> Sequence[int]:
    """A process and its descendants, parents first."""
    parents, found = _parents(), [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name stands in parentheses and may hold anything, so fields count from the last one.
                _, parent, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found[int(entry.name)] = int(parent)
    return found
