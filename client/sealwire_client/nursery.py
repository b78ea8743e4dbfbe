"""A trio nursery whose one failure comes out as itself, so that callers can catch it by its type."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """As `trio.open_nursery`. If exactly one task failed, or only the body, its exception is raised bare; several
    different ones come as a group; cancellation goes through as cancellation."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        failures = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
        if len(failures) == 1:
            raise failures[0] from failures[0].__cause__
        if not failures:
            raise leaves[0] from None
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
