"""trio tests under a clock that jumps ahead whenever all tasks wait: an hour of retries takes a moment, and each run
is like the last one."""

import functools
import random
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

import trio
import trio.testing
from trio._core import _run

P = ParamSpec("P")

SECONDS_MAX = 86_400.0
"""Only what waits for ever waits longer: the test fails then, at once by the real clock."""


def virtual(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a coroutine function as a test, with fixtures as arguments. Nothing in it may use threads."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def body() -> None:
            with trio.fail_after(SECONDS_MAX):
                await test(*args, **kwargs)

        seed(functools.reduce(lambda x, y: x * 31 + y, test.__name__.encode(), 7))
        trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


def seed(number: int) -> None:
    """Fix what Python and trio's scheduler take from chance."""
    random.seed(number)
    scheduler: Any = _run
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(number)
