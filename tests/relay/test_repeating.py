"""A job that is done again and again, whatever became of it the last time."""

import logging

import pytest

from sealwire_relay.repeating import Repeating
from sealwire_relay.store.interface import StoreDownError
from tests.support.aio import asyncio_test
from tests.support.relay import turns_until


@asyncio_test
async def test_it_is_done_again_and_a_trouble_is_told_once_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    done = 0

    async def job() -> None:
        nonlocal done
        done += 1
        if done < 3:
            raise StoreDownError("no answer")
        if done == 4:
            raise RuntimeError("a mistake")

    repeating = Repeating(job, 0, logging.getLogger("sealwire.test"), failed="it could not be done", well="it is done")
    repeating.start()
    await turns_until(lambda: done >= 5)
    assert await repeating.stop() and not await repeating.stop()
    trouble, over, mistake = caplog.messages
    assert trouble == "it could not be done: no answer" and over.startswith("it is done, after ")
    assert mistake == "it could not be done; it is tried again"
