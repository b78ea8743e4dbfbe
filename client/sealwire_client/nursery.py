"""A trio nursery whose one failure comes out as itself, so that callers can catch it by its type."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """As `trio.open_nursery`. If exactly one task failed, or only the body, its exception is raised as it was, also
    if that is a group of the caller's own; several failures come as a group; cancellation goes through as cancellation.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        failures = [error for error in group.exceptions if not _is_cancelled(error)]
        if len(failures) == 1:
            raise failures[0] from failures[0].__cause__
        if not failures:
            raise _first(group) from None
        raise


def _is_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_cancelled(inner) for inner in error.exceptions)
    return isinstance(error, trio.Cancelled)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
