"""What comes out of a nursery when its tasks or its body fail."""

from contextlib import AbstractAsyncContextManager

import pytest
import trio

from sealwire_client.nursery import open_nursery

pytestmark = pytest.mark.trio


async def fail(error: BaseException) -> None:
    raise error


async def outcome(
    block: AbstractAsyncContextManager[trio.Nursery], *tasks: BaseException, own: BaseException | None = None
) -> object:
    """What a nursery raises whose body and tasks raise these."""
    try:
        async with block as nursery:
            for error in tasks:
                nursery.start_soon(fail, error)
            if own is not None:
                raise own
            await trio.sleep_forever()
    except BaseException as error:
        return error


async def test_the_bodys_error_comes_out_as_it_is() -> None:
    error = ValueError("mine")
    assert await outcome(open_nursery(), own=error) is error


async def test_the_bodys_own_group_comes_out_as_it_is() -> None:
    error = ExceptionGroup("mine", [ValueError("one"), KeyError("two")])
    assert await outcome(open_nursery(), own=error) is error
    error = ExceptionGroup("mine", [ValueError("one")])
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await outcome(open_nursery(), own=error) is error


async def test_a_tasks_error_comes_out_as_it_is() -> None:
    error = ValueError("mine")
    assert await outcome(open_nursery(), error) is error


async def test_several_errors_come_as_a_group() -> None:
    first, second = ValueError("first"), KeyError("second")
    found = await outcome(open_nursery(), second, own=first)
    assert isinstance(found, ExceptionGroup)
    assert set(found.exceptions) == {first, second}


async def test_cancellation_goes_through_nurseries_as_cancellation() -> None:
    with trio.CancelScope() as scope:
        async with open_nursery() as outer, open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_interrupt_comes_out_as_it_is() -> None:
    error = KeyboardInterrupt()
    assert await outcome(open_nursery(), own=error) is error
