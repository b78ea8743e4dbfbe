"""The two versions, and a database for them."""

import asyncio
import zipfile
from collections.abc import Callable, Iterator

import pytest

from sealwire_relay.store.migrate import Phase, migrate
from tests.compatibility.versions import RELEASED, Version
from tests.support.postgres import Server, binaries_of, server


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The version released before."""
    folder = tmp_path_factory.mktemp("released")
    with zipfile.ZipFile(RELEASED) as archive:
        archive.extractall(folder)
    return Version(folder)


@pytest.fixture(scope="session")
def new() -> Version:
    """The present version."""
    return Version()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """A Postgres."""
    with server(binaries_of("embedded")) as made:
        yield made


@pytest.fixture
def dsn(postgres: Server) -> str:
    """The address of a database in which there is nothing yet."""
    return postgres.dsn(asyncio.run(postgres.database()))


@pytest.fixture
def migrated() -> Callable[[str], None]:
    """Brings a database to the present schema."""

    def bring(dsn: str) -> None:
        asyncio.run(migrate(dsn, lambda line: None, Phase.PRE))

    return bring
