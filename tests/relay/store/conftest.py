"""The places of the store's tests: memory, the machine's Postgres and the embedded one, each in both shapes."""

import asyncio
from collections.abc import Iterator

import pytest

from sealwire_relay.store.migrate import Phase, migrate
from tests.relay.store.places import MemoryPlace, Place, PostgresPlace
from tests.support.postgres import Server, binaries_of, server

MIGRATED = "migrated"
"""A database that has the schema and nothing else: the template of all others."""

POSTGRES = [
    pytest.param(("machine", False), id="machine", marks=pytest.mark.postgres),
    pytest.param(("machine", True), id="machine-one-vault", marks=pytest.mark.postgres),
    pytest.param(("embedded", False), id="embedded", marks=pytest.mark.embedded),
    pytest.param(("embedded", True), id="embedded-one-vault", marks=pytest.mark.embedded),
]


def _ready(kind: str) -> Iterator[Server]:
    with server(binaries_of(kind)) as made:

        async def prepare() -> None:
            await made.run(f"CREATE DATABASE {MIGRATED}")
            await migrate(made.dsn(MIGRATED), lambda line: None, Phase.PRE)

        asyncio.run(prepare())
        yield made


@pytest.fixture(scope="session")
def machine() -> Iterator[Server]:
    yield from _ready("machine")


@pytest.fixture(scope="session")
def embedded() -> Iterator[Server]:
    yield from _ready("embedded")


def _postgres(request: pytest.FixtureRequest, kind: str, one_vault_per_statement: bool) -> PostgresPlace:
    made: Server = request.getfixturevalue(kind)
    return PostgresPlace(made, asyncio.run(made.database(MIGRATED)), one_vault_per_statement)


@pytest.fixture(params=["memory", *POSTGRES])
def place(request: pytest.FixtureRequest) -> Place:
    """A fresh database of every kind."""
    return MemoryPlace() if request.param == "memory" else _postgres(request, *request.param)


@pytest.fixture(params=POSTGRES)
def postgres(request: pytest.FixtureRequest) -> PostgresPlace:
    """A fresh database on Postgres, for what only it can show."""
    return _postgres(request, *request.param)
