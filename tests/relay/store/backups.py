"""Backups of databases that tests make, and what comes back of them."""

import io

from sealwire_relay.backupfile import BackupReader, BackupWriter, Header
from sealwire_relay.store.backup import Restored, back_up, restore
from tests.relay.store.conftest import MIGRATED
from tests.relay.store.places import PostgresPlace
from tests.support.postgres import Server


async def place_on(server: Server, template: str = MIGRATED) -> PostgresPlace:
    """A database of its own; with `template1` one without a schema."""
    return PostgresPlace(server, await server.database(template), False)


async def saved(place: PostgresPlace) -> tuple[Header, bytes]:
    file = io.BytesIO()
    header, digest = await back_up(place.server.dsn(place.database), BackupWriter(file, "it"))
    assert file.getvalue().endswith(digest)
    return header, file.getvalue()


async def put_back(place: PostgresPlace, data: bytes, *, replace: bool = False) -> Restored:
    return await restore(place.server.dsn(place.database), BackupReader(io.BytesIO(data), "it"), replace)
