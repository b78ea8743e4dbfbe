import asyncio

import pytest

from tests.support.aio import asyncio_test


@asyncio_test
async def test_runs_on_a_loop_with_fixtures(tmp_path: object) -> None:
    assert asyncio.get_running_loop().get_debug()
    assert tmp_path is not None


def test_failures_come_through() -> None:
    @asyncio_test
    async def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()


def test_a_task_left_behind_fails() -> None:
    @asyncio_test
    async def leaves() -> None:
        leaves_a_task.append(asyncio.create_task(asyncio.Event().wait()))

    leaves_a_task: list[asyncio.Task[bool]] = []
    with pytest.raises(AssertionError, match="left tasks behind"):
        leaves()
    assert leaves_a_task[0].cancelled()
