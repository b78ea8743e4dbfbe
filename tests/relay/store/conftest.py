"""The places of the store's tests: memory, the machine's Postgres, and the embedded one in both shapes of append."""

import asyncio
from collections.abc import Iterator

import pytest

from sealwire_relay.store.migrate import Phase, migrate
from tests.relay.store.places import MemoryPlace, Place, PostgresPlace
from tests.support.postgres import Server, binaries_of
from tests.support.postgres import server as running_server

MIGRATED = "migrated"
"""A database that has the schema and nothing else: the template of all others."""

SHARED = "shared"
"""The database of tests that do not mind each other's vaults: making one for each test takes long."""

POSTGRES = [
    pytest.param(("machine", False), id="machine", marks=pytest.mark.postgres),
    pytest.param(("embedded", False), id="embedded", marks=pytest.mark.embedded),
    pytest.param(("embedded", True), id="embedded-one-vault", marks=pytest.mark.embedded),
]


def _ready(kind: str) -> Iterator[Server]:
    with running_server(binaries_of(kind)) as made:

        async def prepare() -> None:
            await made.run(f"CREATE DATABASE {MIGRATED}")
            await migrate(made.dsn(MIGRATED), lambda line: None, Phase.PRE)
            await made.run(f"CREATE DATABASE {SHARED} TEMPLATE {MIGRATED}")

        asyncio.run(prepare())
        yield made


@pytest.fixture(scope="session")
def machine() -> Iterator[Server]:
    yield from _ready("machine")


@pytest.fixture(scope="session")
def embedded() -> Iterator[Server]:
    yield from _ready("embedded")


def _postgres(request: pytest.FixtureRequest, database: str) -> PostgresPlace:
    kind, one_vault_per_statement = request.param
    made: Server = request.getfixturevalue(kind)
    if database != SHARED:
        database = asyncio.run(made.database(MIGRATED))
    return PostgresPlace(made, database, one_vault_per_statement)


@pytest.fixture(params=["memory", *POSTGRES])
def place(request: pytest.FixtureRequest) -> Place:
    """A database of every kind, in which other tests may have left vaults and terms of their own."""
    return MemoryPlace() if request.param == "memory" else _postgres(request, SHARED)


@pytest.fixture(params=["memory", *POSTGRES[:2]])
def fresh(request: pytest.FixtureRequest) -> Place:
    """An empty database of every kind."""
    return MemoryPlace() if request.param == "memory" else _postgres(request, MIGRATED)


@pytest.fixture(params=POSTGRES)
def postgres(request: pytest.FixtureRequest) -> PostgresPlace:
    """As `place`, for what only Postgres can show."""
    return _postgres(request, SHARED)


@pytest.fixture(
    params=[
        pytest.param("machine", marks=pytest.mark.postgres),
        pytest.param("embedded", marks=pytest.mark.embedded),
    ]
)
def server(request: pytest.FixtureRequest) -> Server:
    """Both kinds of Postgres, one after the other."""
    made: Server = request.getfixturevalue(request.param)
    return made
