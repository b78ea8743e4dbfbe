"""Where a relay's store comes from: a Postgres that it was given, or one that it starts and keeps alive itself."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from sealwire_relay.embedded import DiskFullError, EmbeddedPostgres, EmbeddedPostgresError
from sealwire_relay.settings import Settings, SettingsError
from sealwire_relay.store.interface import Store
from sealwire_relay.store.migrate import Phase, migrate
from sealwire_relay.store.postgres import PostgresStore

log: Final = logging.getLogger("sealwire.database")

CALM_SECONDS: Final = 60.0
"""A Postgres that lived this long ended for a new reason, and is started again at once."""

RESTART_SECONDS_MIN: Final = 0.5
RESTART_SECONDS_MAX: Final = 10.0
"""Waits between attempts to start it, doubling: a full disk is not helped by hurry, but is soon mended."""

CONNECTIONS_SPARE: Final = 12
"""Connections that the embedded Postgres takes beyond the relay's pool: for migrations, psql and a backup."""


Changed: TypeAlias = Callable[[], None]
"""Called when the Postgres below is not the one it was: started again, failed over, restored."""


class Database(Protocol):
    """Gives a store, and says how the Postgres below it is."""

    def look(self) -> None:
        """Raise what is known to keep it from starting, before anything was started. Raises EmbeddedPostgresError."""

    async def start(self, changed: Changed) -> Store:
        """Make the database ready, its schema too, and return a store on it that is not open yet.

        Cancelling it leaves nothing that `stop` does not end. Raises EmbeddedPostgresError or StoreError.
        """

    async def watch(self) -> None:
        """Keep the database alive until cancelled. Raises EmbeddedPostgresError if that is not possible."""

    async def stop(self) -> None:
        """End what `start` has started. Safe in every state."""

    @property
    def address(self) -> str:
        """Where it is found once it has been started, for other processes of this relay. May hold a password."""

    @property
    def trouble(self) -> str | None:
        """What keeps the database from working, as far as it is known here."""


class GivenDatabase:
    """A Postgres that somebody else runs. Raises SettingsError if no database is set."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dsn = address_of(settings)

    @property
    def address(self) -> str:
        """See Database."""
        return self._dsn

    @property
    def trouble(self) -> None:
        """Nothing is known here: the store finds out."""
        return

    def look(self) -> None:
        """See Database: nothing is known."""

    async def start(self, changed: Changed) -> Store:
        """See Database. Relays of the version before may still run on it: what they need is left in place."""
        await prepare(self._dsn, Phase.PRE)
        return _store(self._dsn, self._settings, changed)

    async def watch(self) -> None:
        """See Database: it is not ours to keep alive."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """See Database: nothing was started."""


class OwnDatabase:
    """A Postgres of the relay's own in a folder, started again whenever it ends by itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._postgres = EmbeddedPostgres(
            settings.folder, report=log.info, max_connections=settings.pool_size + CONNECTIONS_SPARE
        )
        self._dsn = ""
        self._trouble: str | None = None

    @property
    def address(self) -> str:
        """See Database."""
        return self._dsn

    @property
    def trouble(self) -> str | None:
        """See Database."""
        return self._trouble

    def look(self) -> None:
        """See Database: whether a relay runs in the folder, or it is another's. Then its ports are of no concern."""
        self._postgres.look()

    async def start(self, changed: Changed) -> Store:
        """See Database."""
        self._dsn = await self._postgres.start()
        # Nobody else runs on it: the whole way at once.
        await prepare(self._dsn, Phase.PRE, Phase.POST)
        return _store(self._dsn, self._settings, changed)

    async def watch(self) -> None:
        """See Database. The store connects again by itself; nothing that was acknowledged is lost."""
        clock, wait = asyncio.get_running_loop().time, 0.0
        while True:
            began = clock()
            await self._postgres.wait_died()
            why = self._postgres.why_died()
            self._trouble = _died(why)
            log.error("The relay's Postgres has ended and is started again now. %s", why)
            wait = 0.0 if clock() - began >= CALM_SECONDS else _longer(wait)
            while not await self._started_again(wait):
                wait = _longer(wait)
            self._trouble = None
            log.info("Postgres is back.")

    async def stop(self) -> None:
        """See Database."""
        await self._postgres.stop()

    async def _started_again(self, wait: float) -> bool:
        await asyncio.sleep(wait)
        try:
            dsn = await self._postgres.start()
        except EmbeddedPostgresError as error:
            self._trouble = _died(error)
            log.error("Postgres could not be started again, and is tried until it can be: %s", error)
            return False
        if dsn != self._dsn:
            raise EmbeddedPostgresError("Postgres is back at another address: start the relay again.")
        return True


def _died(why: EmbeddedPostgresError) -> str:
    """What `/readyz` tells of it."""
    if isinstance(why, DiskFullError):
        return "Postgres has ended because its disk is full, and is started again once there is room."
    return "Postgres has ended by itself and is being started again."


def address_of(settings: Settings) -> str:
    """The address of the database that the settings name. Raises SettingsError, which does not show it."""
    if settings.database_url is None:
        raise SettingsError(
            "No database is set: name one with --database-url, SEALWIRE_DATABASE_URL or SEALWIRE_DATABASE_URL_FILE, "
            "or let `sealwire-relay up` start one."
        )
    dsn = settings.database_url.reveal()
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise SettingsError("The database's address is wrong: it looks like postgresql://user:password@host:port/name.")
    return dsn


async def prepare(dsn: str, *phases: Phase) -> None:
    """Bring the schema up to date, telling what is done. Raises StoreError."""
    for phase in phases:
        await migrate(dsn, log.info, phase)


def _store(dsn: str, settings: Settings, changed: Changed) -> Store:
    return PostgresStore(
        dsn,
        append_connections=settings.writers,
        other_connections=settings.pool_size - settings.writers,
        on_other_server=changed,
    )


def _longer(wait: float) -> float:
    return min(max(2 * wait, RESTART_SECONDS_MIN), RESTART_SECONDS_MAX)
