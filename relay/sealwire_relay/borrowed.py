"""A database for the time of one command: the one that is there, or the Postgres of a folder, started for it."""

import contextlib
import logging
from collections.abc import AsyncIterator
from enum import Enum, auto

from sealwire_relay.database import address_of
from sealwire_relay.embedded import AlreadyRunningError, EmbeddedPostgres
from sealwire_relay.ending import RelayError
from sealwire_relay.settings import Settings
from sealwire_relay.store.interface import Store
from sealwire_relay.store.postgres import PostgresStore

_log = logging.getLogger("sealwire.database")


class Relay(Enum):
    """What is done where a relay runs in the folder."""

    WELCOME = auto()
    """Its Postgres is used."""
    REFUSED = auto()


@contextlib.asynccontextmanager
async def database(settings: Settings, relay: Relay, *, make: bool = False) -> AsyncIterator[str]:
    """The address of the database that the settings name: one that is there, or the one in the folder.

    The Postgres of a folder in which no relay runs is started, and ended afterwards; a folder without one is refused,
    unless it is to be made. Raises RelayError, AlreadyRunningError if a relay runs that is refused, and what starting
    a Postgres raises. A database that is there already is not asked who uses it.
    """
    if settings.database_url is not None:
        yield address_of(settings)
        return
    postgres = EmbeddedPostgres(settings.folder, report=_log.info)
    if not make and not postgres.exists():
        raise RelayError(
            f"There is no database in {settings.folder}: name the folder of `sealwire-relay up` with --folder, or a "
            "database with --database-url."
        )
    try:
        try:
            dsn = await postgres.start()
        except AlreadyRunningError:
            if relay is Relay.REFUSED:
                raise
            dsn = postgres.address_of_other
        yield dsn
    finally:
        await postgres.stop()


@contextlib.asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[Store]:
    """A store on that database, for a command that asks a little; a relay may run on it. Raises as `database` does, and
    StoreError."""
    async with database(settings, Relay.WELCOME) as dsn:
        store = PostgresStore(dsn, append_connections=1, other_connections=1)
        try:
            await store.open()
            yield store
        finally:
            await store.close()
