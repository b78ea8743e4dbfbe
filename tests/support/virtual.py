"""trio tests under a clock that jumps ahead whenever all tasks wait: an hour of retries takes a moment, and each run
is like the last one, keys and nonces among it. `SEALWIRE_TEST_SEED=n` is another run."""

import functools
import os
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import trio
import trio.testing

from tests.support.chance import seeded

P = ParamSpec("P")

SECONDS_MAX = 86_400.0
"""Only what waits for ever waits longer: the test fails then, at once by the real clock."""

SEED = int(os.environ.get("SEALWIRE_TEST_SEED", "7"))


async def pass_time(seconds: float) -> None:
    """Let so much virtual time pass: for what tests have in common. Fails under a real clock."""
    assert isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock), "a test would wait for real"
    await trio.sleep(seconds)


def virtual(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a coroutine function as a test, with fixtures as arguments. Nothing in it may use threads."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def body() -> None:
            with trio.fail_after(SECONDS_MAX):
                await test(*args, **kwargs)

        with seeded(functools.reduce(lambda x, y: x * 31 + y, test.__name__.encode(), SEED)):
            trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))

    return run
