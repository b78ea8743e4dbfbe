"""The work of `sealwire-relay compact`: everything cleaned, then every table written anew, while nobody is served."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from sealwire_relay.borrowed import Relay, database
from sealwire_relay.cleaner import Cleaner, Looked
from sealwire_relay.database import prepare
from sealwire_relay.ending import ExitCode, RelayError, asked_to_end, before, ending, told
from sealwire_relay.settings import Settings
from sealwire_relay.store.migrate import Phase
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.repack import repacking

SPARE_BYTES: Final = 67_108_864
"""Room on the disk beyond what is needed: Postgres' own small files, and the log of what it says."""

_log = logging.getLogger("sealwire.compact")


class Compacted(NamedTuple):
    """What came of it. Sizes are of all tables with their indexes and large values, in bytes."""

    records: int
    """Superseded ones that were left out."""
    unfinished: int
    """Streams of which only a part was cleaned; the log says why."""
    bytes: int
    bytes_left: int


async def compact(settings: Settings, tell: Callable[[Compacted], None]) -> ExitCode:
    """Clean and write anew the database of the settings, tell of it, and end. Raises RelayError.

    Interrupted, every table is as it was or written anew.
    """
    with asked_to_end() as asked, told():
        done = await before(asked, _compact(settings))
        if done is None:
            return ending(asked.result(), before_ready=True)
        tell(done)
        return ExitCode.DONE


async def _compact(settings: Settings) -> Compacted:
    folder = settings.folder if settings.database_url is None else None
    async with database(settings, Relay.REFUSED) as dsn, repacking(dsn) as tables:
        await tables.refuse_relays()
        await prepare(dsn, Phase.PRE)
        size = await tables.size()
        looked = await _clean(dsn, settings.clean_records_max)
        need = await tables.need()
        _check_room(need, folder)
        await tables.refuse_relays()
        async for table in tables.each():
            _log.info("%s: %d bytes before, %d bytes now", *table)
        return Compacted(looked.records, looked.unfinished, size, await tables.size())


async def _clean(dsn: str, records_max: int) -> Looked:
    """At full speed: nobody waits for the machine."""
    store = PostgresStore(dsn, append_connections=1, other_connections=1)
    await store.open()
    try:
        return await Cleaner(store, records_max).look(lambda dirty: True)
    finally:
        await store.close()


def _check_room(need: int, folder: Path | None) -> None:
    """Raise RelayError if the disk is known and has not enough room."""
    if folder is None:
        _log.info("Up to %d bytes are needed meanwhile on the database's disk, which cannot be seen from here.", need)
        return
    free = shutil.disk_usage(folder).free
    if free < need + SPARE_BYTES:
        raise RelayError(
            f"Up to {need + SPARE_BYTES:,} bytes are needed meanwhile on the disk of {folder}, and {free:,} are free; "
            "superseded records were left out, but files are as they were: make room, and run it again.",
            ExitCode.DATABASE,
        )
    _log.info("Up to %d bytes of %d that are free are needed meanwhile.", need, free)
