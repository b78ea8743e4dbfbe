"""The work of `sealwire-relay clean`: a cleaner on the database that the settings name, once or until it is stopped."""

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable
from typing import Final, NoReturn

from sealwire_relay.cleaner import Cleaned, Cleaner, Looked, Worth, by_share
from sealwire_relay.database import address_of
from sealwire_relay.ending import ExitCode, asked_to_end, before, ending, told
from sealwire_relay.purging import Forgotten, Purger
from sealwire_relay.retention import retention_of
from sealwire_relay.settings import Settings
from sealwire_relay.store.cleaning import Dirty
from sealwire_relay.store.interface import StoreError
from sealwire_relay.store.postgres import PostgresStore

BUSY: Final = 0.5
"""Part of the time that a cleaner works: whoever pushes meanwhile finds a disk and a core that are free."""

NICENESS: Final = 10
"""How much less of a processor it gets than a relay where both want one."""

PAUSE_SPREAD: Final = 0.25
"""Pauses differ by up to this part of them: cleaners of several relays do not stay in step."""

Tell = Callable[[Looked, Forgotten], None]
"""Is told what became of each look."""

_log = logging.getLogger("sealwire.cleaner")


async def clean_once(settings: Settings, everything: bool, tell: Tell) -> ExitCode:
    """Clean what is worth it, or `everything` that is dirty, tell what came of it, and end. Raises RelayError."""

    def worth(dirty: Dirty) -> bool:
        return everything or by_share(dirty, settings.clean_share)

    os.nice(NICENESS)
    with asked_to_end() as asked, told():
        store = _store(settings)
        cleaner = Cleaner(store, settings.clean_records_max, busy=BUSY)
        done = await before(asked, _look(store, cleaner, _purger(settings, store), worth))
        if done is None:
            return ending(asked.result(), before_ready=True)
        tell(*done)
        return ExitCode.DONE


async def clean_on(settings: Settings, tell: Tell, stepped: Callable[[Cleaned], None] | None = None) -> ExitCode:
    """Look and clean again and again, until a signal asks to end; what fails is tried again at the next look.

    With `stepped`, which is told each step, it runs beside a relay that holds the other end of stdin, and ends when
    that is closed: when the relay is gone, however it ended.
    """
    os.nice(NICENESS)
    with asked_to_end() as asked, told():
        store = _store(settings)
        cleaner = Cleaner(store, settings.clean_records_max, busy=BUSY, stepped=stepped or (lambda cleaned: None))
        watching = _watch(settings, store, cleaner, tell)
        if stepped is not None:
            _end_with_stdin(asked)
        await before(asked, watching)
        return ending(asked.result(), before_ready=False) if stepped is None else ExitCode.DONE


async def _watch(settings: Settings, store: PostgresStore, cleaner: Cleaner, tell: Tell) -> NoReturn:
    worth = Worth(settings.clean_share, settings.clean_idle_seconds, asyncio.get_running_loop().time)
    purger = _purger(settings, store)
    while True:
        worth.begin()
        try:
            tell(*await _look(store, cleaner, purger, worth))
        except StoreError as error:
            _log.warning("cleaning was cut short and is tried again: %s", error)
        except Exception:
            _log.exception("cleaning failed; it is tried again")
        await asyncio.sleep(settings.clean_seconds * random.uniform(1 - PAUSE_SPREAD, 1 + PAUSE_SPREAD))


async def _look(
    store: PostgresStore, cleaner: Cleaner, purger: Purger, worth: Callable[[Dirty], bool]
) -> tuple[Looked, Forgotten]:
    await store.open()
    try:
        looked = await cleaner.look(lambda dirty: worth(dirty) or purger.waits_for(dirty))
        return looked, await purger.look()
    finally:
        await store.close()


def _purger(settings: Settings, store: PostgresStore) -> Purger:
    return Purger(store, retention_of(settings), settings.clean_records_max, busy=BUSY)


def _store(settings: Settings) -> PostgresStore:
    # It does one thing after another, and holds connections only while it looks and cleans.
    return PostgresStore(address_of(settings), append_connections=1, other_connections=1)


def _end_with_stdin(asked: "asyncio.Future[signal.Signals]") -> None:
    """Ask to end once whoever holds the other end of stdin has closed it, or is no more."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        if not os.read(0, 4_096):
            loop.remove_reader(0)
            if not asked.done():
                asked.set_result(signal.SIGTERM)

    loop.add_reader(0, look)
