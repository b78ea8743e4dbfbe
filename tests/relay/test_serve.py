"""One relay process in this one: how its parts start, are watched and end together."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest

from sealwire_relay import ending, serve
from sealwire_relay.database import Changed, GivenDatabase
from sealwire_relay.embedded import AlreadyRunningError, EmbeddedPostgres, EmbeddedPostgresError
from sealwire_relay.ending import ExitCode, RelayError
from sealwire_relay.serve import Ready, Relay, run
from sealwire_relay.settings import Secret, Settings
from sealwire_relay.store.interface import SchemaError, Store, StoreDownError
from sealwire_relay.store.memory import MemoryStore
from tests.support.aio import asyncio_test

ANY_PORT = Settings(port=0, control_port=0, drain_seconds=1)


class FlakyStore(MemoryStore):
    """A store that can be put out of reach, and tells when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.closed = False
        self.asked = asyncio.Event()

    async def ping(self) -> None:
        """Fails while the store is down."""
        self.asked.set()
        if self.down:
            raise StoreDownError("postgresql://relay:hunter2@db is down; try again later.")

    async def close(self) -> None:
        """Notes that it was closed."""
        self.closed = True
        await super().close()


class FakeDatabase:
    """A database that does what a test says."""

    def __init__(self) -> None:
        self.store = FlakyStore()
        self.seen: Exception | None = None
        self.failure: Exception | None = None
        self.lost = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.on_start: Callable[[], None] = lambda: None
        self.stopped = 0
        self.changed: Changed | None = None
        self.trouble: str | None = None
        self.address = ""

    def look(self) -> None:
        """As a test says."""
        if self.seen is not None:
            raise self.seen

    async def start(self, changed: Changed) -> Store:
        """When the test lets it."""
        self.changed = changed
        self.on_start()
        await self.may_start.wait()
        if self.failure is not None:
            raise self.failure
        return self.store

    async def watch(self) -> None:
        """Until the test loses it."""
        await self.lost.wait()
        raise EmbeddedPostgresError("Postgres is gone for good; start the relay again.")

    async def stop(self) -> None:
        """Counted."""
        self.stopped += 1


@contextlib.asynccontextmanager
async def running(database: FakeDatabase, settings: Settings = ANY_PORT) -> AsyncIterator[tuple[Relay, Ready]]:
    """A relay from its start to its end."""
    relay = Relay(settings, database)
    try:
        yield relay, await relay.start()
    finally:
        await relay.stop()


def send_when_ready(number: signal.Signals, told: list[Ready]) -> Callable[[Ready], None]:
    """What to do when devices are served: note it, and send this process a signal."""

    def announce(ready: Ready) -> None:
        told.append(ready)
        os.kill(os.getpid(), number)

    return announce


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def refuses(port: int) -> bool:
    """Whether nobody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(serve, "_settle_down", lambda settings: None)
    # Whoever runs the tests may have it ignored, as nohup does.
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.DONE), (signal.SIGHUP, ExitCode.DONE)],
)
@asyncio_test
async def test_a_signal_ends_it_in_order(number: signal.Signals, code: ExitCode) -> None:
    database, told = FakeDatabase(), list[Ready]()
    before = [signal.getsignal(each) for each in ending.SIGNALS]
    assert await run(ANY_PORT, database, send_when_ready(number, told)) is code
    assert [signal.getsignal(each) for each in ending.SIGNALS] == before
    assert database.store.closed
    assert database.stopped == 1
    assert refuses(port_of(told[0].data))
    assert refuses(port_of(told[0].control))


@asyncio_test
async def test_a_second_signal_waits_for_nobody() -> None:
    database, told = FakeDatabase(), list[Ready]()

    def twice(ready: Ready) -> None:
        told.append(ready)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    assert await run(replace(ANY_PORT, drain_notice_seconds=600), database, twice) is ExitCode.DONE
    assert database.store.closed
    assert refuses(port_of(told[0].data))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
)
@asyncio_test
async def test_a_signal_during_the_start_ends_it_too(number: signal.Signals, code: ExitCode) -> None:
    database, told = FakeDatabase(), list[Ready]()
    database.may_start.clear()
    database.on_start = lambda: os.kill(os.getpid(), number)
    assert await run(ANY_PORT, database, told.append) is code
    assert told == []
    assert database.stopped == 1


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (AlreadyRunningError("The folder is in use by another relay; stop it."), ExitCode.IN_USE),
        (EmbeddedPostgresError("Postgres does not start; see its log."), ExitCode.DATABASE),
        (SchemaError("A newer relay made the schema; install that."), ExitCode.DATABASE),
        (StoreDownError("No answer from postgresql://relay:hunter2@db; start it."), ExitCode.DATABASE),
    ],
)
@asyncio_test
async def test_a_failed_start_is_one_sentence_and_leaves_nothing(failure: Exception, code: ExitCode) -> None:
    database = FakeDatabase()
    database.failure = failure
    with pytest.raises(RelayError) as caught:
        await run(ANY_PORT, database, lambda ready: None)
    assert caught.value.code is code
    assert "hunter2" not in str(caught.value)
    assert database.stopped == 1


@asyncio_test
async def test_a_port_that_is_taken_is_found_before_the_database_is_touched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for settings in (Settings(port=port, control_port=0), Settings(port=0, control_port=port)):
            database = FakeDatabase()
            with pytest.raises(RelayError, match=f"port {port} on 127.0.0.1 is taken") as caught:
                await run(settings, database, lambda ready: None)
            assert caught.value.code is ExitCode.IN_USE
            assert database.changed is None


@asyncio_test
async def test_a_certificate_that_is_wrong_is_found_before_the_database_is_touched(tmp_path: Path) -> None:
    database = FakeDatabase()
    none = tmp_path / "none.crt"
    settings = dataclasses.replace(ANY_PORT, tls_certificate_path=none, tls_key_path=none)
    with pytest.raises(RelayError, match=r"none\.crt, which TLS needs, cannot be read") as caught:
        await run(settings, database, lambda ready: None)
    assert caught.value.code is ExitCode.USAGE
    assert database.changed is None


@asyncio_test
async def test_a_relay_that_runs_in_the_folder_is_named_before_the_ports_that_it_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        database = FakeDatabase()
        database.seen = AlreadyRunningError("The folder is in use by the relay with process id 7; stop it.", 7)
        with pytest.raises(RelayError, match="process id 7") as caught:
            await run(Settings(port=port, control_port=port), database, lambda ready: None)
        assert caught.value.code is ExitCode.IN_USE
        assert database.changed is None


@asyncio_test
async def test_a_database_that_is_lost_for_good_ends_the_relay() -> None:
    database = FakeDatabase()
    with pytest.raises(RelayError, match="gone for good") as caught:
        await run(ANY_PORT, database, lambda ready: database.lost.set())
    assert caught.value.code is ExitCode.DATABASE
    assert database.store.closed


@asyncio_test
async def test_readiness_follows_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CHECK_SECONDS", 0.0)
    database = FakeDatabase()
    assert Relay(ANY_PORT, database).reasons() == ["The relay is starting."]
    async with running(database) as (relay, _):
        assert relay.reasons() == []
        database.trouble = "Postgres is being started again."
        assert relay.reasons() == ["Postgres is being started again."]
        database.trouble = None
        tending = asyncio.create_task(relay.tend())
        for down, reasons in ((True, ["The database does not answer."]), (False, [])):
            database.store.down = down
            # The second look comes after the first one has been taken in.
            for _ in range(2):
                database.store.asked.clear()
                await database.store.asked.wait()
            assert relay.reasons() == reasons
        tending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tending
    assert relay.reasons() == ["The relay is stopping."]


@asyncio_test
async def test_a_database_that_came_back_changed_gets_a_new_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CHECK_SECONDS", 0.0)
    database = FakeDatabase()
    async with running(database) as (relay, _):
        before = await database.store.current_term()
        assert database.changed is not None
        database.changed()
        assert len(relay.reasons()) == 1
        tending = asyncio.create_task(relay.tend())
        for _ in range(2):
            database.store.asked.clear()
            await database.store.asked.wait()
        assert relay.reasons() == []
        assert (await database.store.current_term()).number == before.number + 1
        tending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tending


@asyncio_test
async def test_it_can_be_stopped_at_any_time_and_twice() -> None:
    relay = Relay(ANY_PORT, FakeDatabase())
    await relay.stop()
    await relay.stop()


@pytest.mark.embedded
@asyncio_test
async def test_serve_runs_on_a_postgres_that_is_there(open_folder: Path) -> None:
    postgres = EmbeddedPostgres(open_folder / "data")
    try:
        url = await postgres.start()
        settings = Settings(port=0, control_port=0, database_url=Secret(url))
        told: list[Ready] = []
        assert await run(settings, GivenDatabase(settings), send_when_ready(signal.SIGTERM, told)) is ExitCode.DONE
        assert len(told) == 1
        connection = await asyncpg.connect(url)
        await connection.execute("UPDATE sealwire.relay SET migrated_pre = 9999, migrated_post = 9999")
        await connection.close()
        with pytest.raises(RelayError, match="newer relay") as caught:
            await run(settings, GivenDatabase(settings), told.append)
        assert caught.value.code is ExitCode.DATABASE
        assert len(told) == 1
    finally:
        await postgres.stop()
