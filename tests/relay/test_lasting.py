"""A trouble that lasts is told when it begins, once a minute, and when it ends: no log is filled by a full disk."""

import logging

import pytest

from sealwire_relay import writer
from sealwire_relay.lasting import TOLD_SECONDS, Lasting
from sealwire_relay.store.interface import DiskFullError, StoreDownError
from tests.relay.test_ingest import ANNA, TODOS, new_vault, push_until_answered
from tests.support.aio import asyncio_test
from tests.support.device import Device, group, record
from tests.support.relay import Mishap, TroubledStore, memory_store, running

FULL = DiskFullError("The database has no room left.")


def test_it_is_told_once_a_minute_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    trouble = Lasting(logging.getLogger("sealwire.test"), lambda: now)
    with caplog.at_level("INFO", "sealwire.test"):
        trouble.went_well("nothing was wrong")
        for second in range(150):
            now = float(second)
            trouble.failed(FULL, "pushes to %d vaults were not committed", 3)
        first = "pushes to 3 vaults were not committed: The database has no room left."
        later = f"{first} (and 59 times more since this was said last)"
        assert caplog.messages == [first, later, later]
        trouble.failed(StoreDownError("It is down."), "something else")
        assert caplog.messages[-1] == "something else: It is down. (and 29 times more since this was said last)"
        trouble.went_well("pushes are committed again")
        trouble.went_well("pushes are committed again")
        assert caplog.messages[-1] == "pushes are committed again, after 149 s"
        assert len(caplog.messages) == 5
        trouble.failed(FULL, "again")
        assert caplog.messages[-1] == "again: The database has no room left."
    assert TOLD_SECONDS == 60.0


@asyncio_test
async def test_a_relay_with_a_full_disk_says_so_once_and_when_there_is_room(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_MS", 1)
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        store.expect("append", *[Mishap(FULL)] * 5)
        with caplog.at_level("INFO", "sealwire.ingest"):
            await push_until_answered(anna, vault, 1, group(TODOS, record()))
        said = [r.getMessage() for r in caplog.records if r.name == "sealwire.ingest"]
        assert not store.pending()
        assert said[0] == "pushes to 1 vaults were not committed: The database has no room left."
        assert len(said) == 2 and said[1].startswith("pushes are committed again, after ")
