"""A trio nursery whose one failure comes out as itself, so that callers can catch it by its type."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """As `trio.open_nursery`. If exactly one task failed, or only the body, its exception is raised as it was, also
    if that is a group of the caller's own; several failures come as a group; cancellation goes through as cancellation.
    """
    own: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                own = error
                raise
    except BaseExceptionGroup as group:
        failures = [error for error in group.exceptions if not _is_cancelled(error)]
        if len(failures) == 1 and own is not None and not holds_cancelled(own):
            raise own from own.__cause__  # trio has taken it apart if it is a group
        if len(failures) == 1:
            raise failures[0] from failures[0].__cause__
        if not failures:
            raise _first(group) from None
        raise


def _is_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_cancelled(inner) for inner in error.exceptions)
    return isinstance(error, trio.Cancelled)


def holds_cancelled(error: BaseException) -> bool:
    """True if it is a cancellation, or a group in which one is."""
    if isinstance(error, BaseExceptionGroup):
        return any(holds_cancelled(inner) for inner in error.exceptions)
    return isinstance(error, trio.Cancelled)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
