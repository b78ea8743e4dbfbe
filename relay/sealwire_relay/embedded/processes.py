"""Child processes that die with the relay, and waiting that a cancellation cannot cut short."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

from sealwire_relay.embedded import launch
from sealwire_relay.embedded.account import Account

T = TypeVar("T")

FAST_STOP_S_MAX = 60  # SIGINT: sessions are ended and a checkpoint is written, which a slow disk makes long
IMMEDIATE_STOP_S_MAX = 10  # SIGQUIT: no checkpoint; the next start recovers, nothing is lost
KILL_S_MAX = 10  # SIGKILL: only the kernel can be slow


def _command(account: Account, program: list[str]) -> list[str]:
    uid = account.uid if account.dropped else -1
    return [
        sys.executable,
        "-I",
        "-S",
        launch.__file__,
        str(os.getpid()),
        str(uid),
        str(account.gid),
        *program,
    ]


def _environment() -> dict[str, str]:
    # None of the relay's: PG* variables would change settings, and secrets have no business in there.
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", **kept}


async def spawn(program: list[str], *, account: Account, folder: Path, log: int, lock: int) -> Process:
    """Start a program as that user, in that folder, writing to the log and sharing the lock.

    It has a session of its own, so that Ctrl-C in the terminal reaches the relay alone, which then ends it in
    order; and it gets SIGINT when the thread that called this ends, however it ends.
    """
    return await asyncio.create_subprocess_exec(
        *_command(account, program),
        cwd=folder,
        env=_environment(),
        stdin=DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(lock,),
        start_new_session=True,
    )


async def reaches(account: Account, path: Path) -> bool:
    """Whether that user can get to a folder and into it, or to a program and run it."""
    if not account.dropped:
        return True
    process = await asyncio.create_subprocess_exec(
        *_command(account, ["--reach", str(path)]),
        cwd="/",
        env=_environment(),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    return await process.wait() == 0


async def output_of(program: list[str], *, account: Account) -> str:
    """What a short program prints as that user, errors included."""
    process = await asyncio.create_subprocess_exec(
        *_command(account, program),
        cwd="/",
        env=_environment(),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return printed.decode(errors="replace")


async def end(process: Process, report: Callable[[str], None]) -> None:
    """End Postgres: fast shutdown, then immediate shutdown, then by force, each with its limit.

    On return the process is gone and reaped. Takes FAST_STOP_S_MAX + IMMEDIATE_STOP_S_MAX + KILL_S_MAX at most.
    """
    steps = (
        (signal.SIGINT, FAST_STOP_S_MAX),
        (signal.SIGQUIT, IMMEDIATE_STOP_S_MAX),
        (signal.SIGKILL, KILL_S_MAX),
    )
    for number, limit_s in steps:
        if process.returncode is None:
            try:
                process.send_signal(number)
            except ProcessLookupError:
                pass  # it has just ended by itself
        try:
            async with asyncio.timeout(limit_s):
                await process.wait()
            return
        except TimeoutError:
            report(f"Postgres did not end within {limit_s} s of {number.name}.")


async def kill_group(process: Process) -> None:
    """End a helper program (initdb) and everything it started, at once."""
    if process.returncode is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own, so is its group
    except ProcessLookupError:
        pass
    await process.wait()


async def finish(work: Coroutine[object, object, T]) -> T:
    """Await something that must run to its end; a cancellation is delivered after that."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if not task.cancelled():
                cancelled = error
        except Exception:
            break  # told by result(), or, if cancelled, given up for the cancellation
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen: no warning about it
        raise cancelled
    return task.result()
