"""A Postgres of the relay's own that ends is started again, and what is told of it meanwhile is true."""

import asyncio
import logging
from pathlib import Path
from typing import cast

import pytest

from sealwire_relay.database import OwnDatabase
from sealwire_relay.embedded import EmbeddedPostgres, EmbeddedPostgresError
from sealwire_relay.embedded.serverlog import explain
from sealwire_relay.settings import Settings
from tests.support.aio import asyncio_test

FULL = explain("PANIC:  could not write to file: No space left on device", log=Path("postgres.log"), status=-6)


class Dying:
    """A Postgres that has ended, and can be started again once there is room."""

    def __init__(self) -> None:
        self.room, self.tried, self.lives = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait_died(self) -> int:
        if self.room.is_set():
            self.lives.set()
            await asyncio.Event().wait()
        return -6

    def why_died(self) -> EmbeddedPostgresError:
        return FULL

    async def start(self) -> str:
        self.tried.set()
        if not self.room.is_set():
            raise FULL
        return ""


@asyncio_test
async def test_a_full_disk_is_named_and_nobody_is_asked_to_start_what_starts_by_itself(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sealwire_relay.database.RESTART_SECONDS_MIN", 0.0)
    monkeypatch.setattr("sealwire_relay.database.RESTART_SECONDS_MAX", 0.0)
    caplog.set_level(logging.INFO)
    database, postgres = OwnDatabase(Settings(folder=tmp_path)), Dying()
    database._postgres = cast("EmbeddedPostgres", postgres)
    watching = asyncio.create_task(database.watch())
    await postgres.tried.wait()
    said = [database.trouble]
    postgres.room.set()
    await postgres.lives.wait()
    said.append(database.trouble)
    assert said == ["Postgres has ended because its disk is full, and is started again once there is room.", None]
    watching.cancel()
    await asyncio.wait({watching})
    lines = [record.getMessage() for record in caplog.records if record.name == "sealwire.database"]
    assert lines[-1] == "Postgres is back."
    assert all(line.endswith("start the relay again if it has ended.") for line in lines[:-1])
