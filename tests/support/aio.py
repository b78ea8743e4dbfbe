"""asyncio tests: a decorator, so that a test says for itself which event loop it runs on."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import ParamSpec

P = ParamSpec("P")


def asyncio_test(test: Callable[P, Coroutine[object, object, None]]) -> Callable[P, None]:
    """Run a coroutine function as a test, on an event loop of its own, with fixtures as arguments.

    The loop is in debug mode, so that a coroutine that is never awaited or a slow callback is told, and is
    closed afterwards. Tasks left behind by the test are cancelled and make it fail.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def body() -> None:
            await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"the test left tasks behind: {left}"

        asyncio.run(body(), debug=True)

    return run
