"""What a relay does again and again beside everything else, whatever became of it the last time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sealwire_relay.lasting import Lasting
from sealwire_relay.store.interface import StoreError


class Repeating:
    """Does a job every so many seconds, from `start` to `stop`. `failed` says in `log` that the store did not let it be
    done, and `well` that it did again."""

    def __init__(
        self, job: Callable[[], Awaitable[None]], seconds: float, log: logging.Logger, *, failed: str, well: str
    ) -> None:
        self._job, self._seconds, self._log = job, seconds, log
        self._failed, self._well = failed, well
        self._trouble = Lasting(log, time.monotonic)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with a pause."""
        self._task = asyncio.create_task(self._run(), name=self._log.name)

    async def stop(self) -> bool:
        """End; what is under way is cancelled. False: it was not running. Safe twice, and without a start."""
        task, self._task = self._task, None
        if task is None:
            return False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self._job()
                self._trouble.went_well(self._well)
            except StoreError as error:
                self._trouble.failed(error, self._failed)
            except Exception:
                self._log.exception("%s; it is tried again", self._failed)
