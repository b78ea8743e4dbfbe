"""Finds and ends the processes that a proof left behind (Linux: reads /proc).

A process belongs to a proof when it is of the proof's session or process group, carries the proof's mark in its
environment, works in the proof's own folder, or descends from one that does: servers change their session,
Postgres overwrites its environment.
"""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.support.polling import looked_until

MARK = "SEALWIRE_PROOF"
"""The environment variable that every process of a proof inherits."""

ENDING_S = 10.0
"""How long processes that are already ending may take: the children of one that has just been killed."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What a proof's processes are known by: the leader of their session, their mark, their folder."""

    leader: int
    mark: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Process:
    """A living process: its id, its parent's, its group, its session, its command line."""

    pid: int
    parent: int
    group: int
    session: int
    command: str


def left_behind(owner: Owner, ending_s: float = ENDING_S) -> list[Process]:
    """The processes of a proof that live still when those that were ending have had so long to do so."""
    looked_until(lambda: not processes_of(owner), ending_s)
    return processes_of(owner)


def end_all(owner: Owner) -> None:
    """Kill every process of a proof, until a look finds none."""

    def killed() -> bool:
        found = processes_of(owner)
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        return not found

    looked_until(killed, ENDING_S)


def processes_of(owner: Owner) -> list[Process]:
    """Every living process of a proof, now."""
    living = {process.pid: process for process in _all()}
    ours = {pid for pid, process in living.items() if _belongs(process, owner)}
    grown = True
    while grown:
        more = {pid for pid, process in living.items() if process.parent in ours} - ours
        ours |= more
        grown = bool(more)
    ours.discard(os.getpid())
    return [living[pid] for pid in sorted(ours)]


def _belongs(process: Process, owner: Owner) -> bool:
    if owner.leader in (process.session, process.group):
        return True
    home = Path("/proc") / str(process.pid)
    with contextlib.suppress(OSError):
        if f"{MARK}={owner.mark}".encode() in (home / "environ").read_bytes().split(b"\0"):
            return True
    with contextlib.suppress(OSError):
        works_in = Path(str((home / "cwd").readlink()).removesuffix(" (deleted)"))
        return works_in.is_relative_to(owner.folder)
    return False


def _all() -> list[Process]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append(_read(entry))
    return [process for process in found if process is not None]


def _read(entry: Path) -> Process | None:
    # The name stands in parentheses and may hold anything, so fields count from the last one.
    name, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
    state, parent, group, session, *_ = rest.split()
    if state in "ZX":
        return None
    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(int(entry.name), int(parent), int(group), int(session), command or name.partition("(")[2])
