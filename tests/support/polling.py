"""Waiting for what another process brings about and does not announce. What this process brings about has an event."""

import asyncio
import time
from collections.abc import Awaitable, Callable

POLL_S = 0.02


def looked_until(holds: Callable[[], bool], limit_s: float) -> bool:
    """Look again and again until something holds. False: it did not within the limit."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)
    return True


async def asked_until(holds: Callable[[], Awaitable[bool]], limit_s: float) -> None:
    """Ask again and again until something holds, on asyncio. Raises TimeoutError if it does not within the limit."""
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(POLL_S)
