"""The cleaner's process, beside the relay's: started, counted and ended by it, never in its way."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import Final

from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import CLEANING, LOGGING, Settings
from sealwire_relay.sources import environment

COMMAND: Final = (sys.executable, "-m", "sealwire_relay", "clean", "--watch", "--beside")

END_SECONDS_MAX: Final = 5.0
"""For it to end when it is asked to: it only gives up a transaction. Then it is ended by force, which does no harm."""

CALM_SECONDS: Final = 60.0
"""A cleaner that lived this long ended for a new reason, and is started again after the usual pause."""

RESTART_SECONDS_MIN: Final = 1.0
RESTART_SECONDS_MAX: Final = 600.0
"""Pauses before it is started again, doubling: a start costs half a second of a processor."""

_log = logging.getLogger("sealwire.beside")


class CleanerProcess:
    """`sealwire-relay clean --watch` as a child of this process, from `start` to `stop`.

    The first one is started after one pause, so that a relay's start, and one that lives for a minute, pay nothing.
    It ends when its stdin does, which the kernel closes with this process. What it did is counted in `metrics`.
    """

    def __init__(self, settings: Settings, address: str, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        url = {"SEALWIRE_DATABASE_URL": address}
        self._environment = environment(os.environ, settings, {*CLEANING, *LOGGING} - {"database_url"}) | url
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name="cleaner")

    async def stop(self) -> None:
        """End it; on return no process is left. Safe twice, and without a start."""
        self._stopping.set()
        self._let_go()
        task, self._task = self._task, None
        if task is None:
            return
        _, late = await asyncio.wait({task}, timeout=END_SECONDS_MAX)
        if late:
            _log.warning("The cleaner did not end within %g s and is ended by force.", END_SECONDS_MAX)
            self._kill()
        await task

    def _let_go(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def _run(self) -> None:
        clock, usual = asyncio.get_running_loop().time, self._settings.clean_seconds
        wait = usual
        while not await self._stopped_within(wait):
            began = clock()
            try:
                why = f"with exit status {await self._live()}"
            except Exception as error:  # nothing that becomes of it is to end the relay
                why = f"as something went wrong: {error!r}"
            if self._stopping.is_set():
                return
            self._metrics.cleaner_ends.inc()
            wait = usual if clock() - began >= CALM_SECONDS else _longer(wait)
            _log.warning(
                "The cleaner has ended %s; it is started again in %g s, devices are served as ever.", why, wait
            )

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _live(self) -> int:
        """One process from its start to its end; returns its exit status. Raises OSError if there is none."""
        self._process = process = await asyncio.create_subprocess_exec(
            *COMMAND,
            env=self._environment,
            stdin=PIPE,
            stdout=PIPE,
            # Ctrl-C in the terminal reaches the relay alone, which then ends it in order.
            start_new_session=True,
        )
        try:
            if self._stopping.is_set():
                self._let_go()
            assert process.stdout is not None
            async for line in process.stdout:
                self._count(line)
            return await process.wait()
        finally:
            self._let_go()
            self._kill()
            await process.wait()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _count(self, line: bytes) -> None:
        """Take in what it says: an object a line, for each step and for each look."""
        metrics, told = self._metrics, json.loads(line)
        if (step := told.get("step")) is not None:
            metrics.cleaned_records.inc(step["records"])
            metrics.cleaned_bytes.inc(step["bytes"])
            metrics.cleaned_segments.inc(step["segments"])
            metrics.cleaner_steps.labels("complete" if step["complete"] else "cut short").inc()
        else:
            metrics.cleaned_streams.inc(told["streams"])
            metrics.dirty_streams.set(told["waiting_streams"])
            metrics.dirty_bytes.set(told["waiting_bytes"])
            metrics.purged_tombstones.inc(told["purged_tombstones"])
            metrics.kept_tombstones.set(told["kept_tombstones"])


def _longer(wait: float) -> float:
    return min(max(2 * wait, RESTART_SECONDS_MIN), RESTART_SECONDS_MAX)
