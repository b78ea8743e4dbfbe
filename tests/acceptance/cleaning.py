"""The real cleaner as a process of its own, watched from outside, and pushes at a fixed pace beside it."""

import asyncio
import json
import math
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.acceptance.filling import Log
from tests.acceptance.leftovers import MARK

PUSHES_PER_S: Final = 100
"""Single records of one device that edits without pause."""

SAMPLE_S: Final = 0.02
"""How often a process is asked for the most memory it ever held: only what it takes in its last moment is missed."""

ENDING_S_MAX: Final = 60.0


@dataclass(frozen=True)
class Ran:
    """One run of the cleaner: what it told, its seconds, the most memory that it held."""

    told: dict[str, Any]
    seconds: float
    memory_bytes: int


async def clean_all(database: str, records_max: int) -> Ran:
    """`sealwire-relay clean --all`, as somebody starts it by hand. Raises RuntimeError if it fails."""
    arguments = ["clean", "--all", "--clean-records-max", str(records_max)]
    return await _run(database, arguments, lambda told: True)


async def clean_beside(database: str, records_max: int) -> Ran:
    """`sealwire-relay clean --watch`, as a relay runs it beside itself, until it has cleaned something."""
    arguments = ["clean", "--watch", "--clean-seconds", "1", "--clean-records-max", str(records_max)]
    return await _run(database, arguments, lambda told: told["streams"] > 0)


async def compact(database: str) -> Ran:
    """`sealwire-relay compact`, while nobody else is connected. Raises RuntimeError if it fails."""
    return await _run(database, ["compact"], lambda told: True)


async def _run(database: str, arguments: list[str], enough: Callable[[dict[str, Any]], bool]) -> Ran:
    clock = asyncio.get_running_loop().time
    began = clock()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sealwire_relay", *arguments, "--json", "--log-level", "warning"),
        env=_environment(database),
        stdout=PIPE,
    )
    most = [0]
    watching = asyncio.create_task(_watch(process, most))
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            told = json.loads(line)
            if enough(told):
                seconds = clock() - began
                break
        else:
            raise RuntimeError(f"`{arguments[0]}` ended with exit code {await process.wait()} and told nothing")
        if "--watch" in arguments:
            process.send_signal(signal.SIGTERM)
        if code := await asyncio.wait_for(process.wait(), ENDING_S_MAX):
            raise RuntimeError(f"`{arguments[0]}` ended with exit code {code}")
    finally:
        watching.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(told, seconds, most[0])


async def _watch(process: Process, most: list[int]) -> None:
    while True:
        most[0] = max(most[0], peak_memory(process.pid))
        await asyncio.sleep(SAMPLE_S)


def peak_memory(pid: int) -> int:
    """The most bytes of memory that a process has held so far; 0 if it has ended."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) * 1_024
    return 0


def _environment(database: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALWIRE_") or name == MARK}
    return kept | {"SEALWIRE_DATABASE_URL": database}


class Pushes:
    """A device that pushes one record after the other, PUSHES_PER_S, and how long each took in ms.

    A push's time begins when it is due, so that what waits behind a slow one counts as slow too.
    """

    def __init__(self, log: Log) -> None:
        self._log = log

    async def during(self, work: "asyncio.Task[Any]") -> list[float]:
        """Push until the work has ended, in whatever way; the times."""
        clock = asyncio.get_running_loop().time
        began, taken = clock(), list[float]()
        while not work.done():
            due = began + len(taken) / PUSHES_PER_S
            if (ahead := due - clock()) > 0:
                await asyncio.sleep(ahead)
            await self._log.add(1)
            taken.append(1_000 * (clock() - due))
        return taken


def at_share(taken: list[float], share: float) -> float:
    """The time that so many of all pushes did not exceed."""
    return sorted(taken)[math.ceil(share * len(taken)) - 1]
