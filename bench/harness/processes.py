"""Processes: where they run, what processor time and memory they take, and their end (Linux: reads /proc)."""

import contextlib
import os
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from demo.processes import FOREIGN, ROOT, kill_tree

Cores = frozenset[int]

BUILD: Final = ROOT / "build" / "bench"
"""What is built or fetched for benches, and the results of short runs. Not in the repository."""

_NS: Final = 1e9


class Missing(Exception):
    """Something that a bench compares with cannot run here. The message says what, and why."""


class Places(NamedTuple):
    """Cores by what runs on them: the server that is measured, its database, and all that loads it."""

    server: Cores
    database: Cores
    load: Cores


def places() -> Places:
    """The server always has a core to itself, if there are two."""
    cores = sorted(os.sched_getaffinity(0))
    first, rest = frozenset(cores[:1]), frozenset(cores[1:]) or frozenset(cores)
    if len(cores) < 4:
        return Places(first, rest, rest)
    return Places(first, frozenset(cores[1:2]), frozenset(cores[2:]))


@contextlib.contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """This thread runs on these cores meanwhile, and so does, for good, every process that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pids: Iterable[int], cores: Collection[int]) -> None:
    """Let running processes, with all their threads, and what they will start, run on these cores."""
    for pid in pids:
        for task in _tasks(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)


def environment(**more: str) -> dict[str, str]:
    """This environment without the settings of another relay."""
    return {name: text for name, text in os.environ.items() if not FOREIGN.match(name)} | more


@contextlib.contextmanager
def started(
    command: Sequence[str],
    cores: Collection[int],
    *,
    log: Path,
    fds: Sequence[int] = (),
    folder: Path = ROOT,
    variables: Mapping[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program on these cores, with pipes to and from it and stderr in `log`; it and all that descends from it
    are killed at the end. It inherits the files `fds` under the same numbers."""
    with log.open("ab") as errors, pinned(cores):
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**variables or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=fds,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_tree(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def line_of(process: "subprocess.Popen[bytes]", log: Path) -> bytes:
    """The next line that a program prints. Raises RuntimeError, with the end of its log, if it ends instead."""
    assert process.stdout is not None
    line: bytes = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended: {log.read_text(errors='replace')[-2000:]}")
    return line


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that these processes have used in all threads that they have now, as the scheduler counts it."""
    return sum(_cpu_ns(task) for pid in pids for task in _tasks(pid)) / _NS


def rss_bytes(pid: int) -> int:
    """Memory of a process that is resident now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has ended")


def descendants(pid: int) -> list[int]:
    """All that a process has started, and what these have."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name stands in parentheses and may hold anything, so fields count from the last one.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found[1:]


def program_of(pid: int) -> str:
    """The command line of a process; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _cpu_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (OSError, IndexError):
        return 0
