"""All tables of a database out to a backup, and back: streamed, whatever their size (decision 0015)."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sealwire_protocol import __version__
from sealwire_protocol.ids import TERM_ID_BYTES
from sealwire_relay.backupfile import BackupReader, BackupWriter, Contents, Header, Table
from sealwire_relay.store.connections import CONNECT_SECONDS_MAX, SESSION, Connection
from sealwire_relay.store.failures import translated, translated_commit
from sealwire_relay.store.interface import SchemaError, StoreError
from sealwire_relay.store.migrate import Phase, apply_between, latest
from sealwire_relay.store.queries import QUERIES
from sealwire_relay.store.rows import signed, term_of
from sealwire_relay.words import count

LOCK_SECONDS_MAX: Final = 10
"""To wait for whoever uses the tables otherwise: a psql that was forgotten is named, and not waited for."""

GONE_SECONDS_MAX: Final = 3.0
"""For the connections of a relay that was just stopped to be gone."""

_LOOK_SECONDS: Final = 0.1

_SESSION: Final = {
    "synchronous_commit": "on",  # what was restored is durable
    "lock_timeout": f"{LOCK_SECONDS_MAX}s",
    # It takes as long as it takes, also while the file is slow.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


class InUseError(StoreError):
    """Somebody else uses the database that is to be restored or compacted."""


class NotEmptyError(StoreError):
    """The database that is to be restored holds vaults; nothing was changed."""


class Restored(NamedTuple):
    """What a restore did: what was there before (None: no whole schema), what is there now, under the new term."""

    before: Contents | None
    now: Contents


async def back_up(dsn: str, writer: BackupWriter) -> tuple[Header, bytes]:
    """Write all tables as one moment has them, while relays serve; returns the header and the file's digest.

    Raises StoreError, or BackupFileError from the writer. Cancelled, it leaves nothing in the database.
    """
    async with connected(dsn, "sealwire-relay backup") as connection:
        # Locked before the snapshot is taken, so that no migration comes between the two.
        found = await _tables(connection)
        transaction = connection.transaction(isolation="repeatable_read", readonly=True)
        await transaction.start()
        await _lock(connection, found, "ACCESS SHARE")
        tables = await _tables(connection)
        contents = await _contents(connection, tables)
        if contents is None or tables != found:
            raise SchemaError(
                "The database has no tables of a relay, or they are being changed just now: name the right database, "
                "or try again."
            )
        state = await connection.fetchrow(QUERIES["backup_state"])
        header = Header(
            datetime.now(UTC).isoformat(timespec="seconds"),
            __version__,
            state["postgres"],
            state["migrated_pre"],
            state["migrated_post"],
            term_of(0, state["term_id"]).id.hex(),
            contents,
            tables,
        )
        writer.begin(header)

        async def write(data: bytes) -> None:
            writer.data(data)

        for table in tables:
            writer.table(table.name)
            done = await connection.copy_from_table(
                table.name, schema_name="sealwire", columns=table.columns, output=write, format="binary"
            )
            writer.end_table(table.name, _rows(done))
        await transaction.rollback()
        return header, writer.finish()


async def restore(dsn: str, reader: BackupReader, replace: bool) -> Restored:
    """Make the database what the backup holds, and begin a new term, in one transaction: all of it or nothing.

    The schema is built as it was when the backup was made, filled, and migrated to this version's. With `replace` what
    is there is thrown away; else there must be no vaults. The whole file is checked before anything is committed.
    Raises InUseError, NotEmptyError, SchemaError if the backup's schema is not one that this version knows, another
    StoreError, or BackupFileError. Cancelled, it has changed nothing.
    """
    header = reader.header
    if header.migrated_pre > latest(Phase.PRE) or header.migrated_post > latest(Phase.POST) or header.migrated_pre < 1:
        raise SchemaError(
            f"The backup was made by a newer relay (Sealwire {header.sealwire}, schema {header.migrated_pre}; this one "
            f"knows {latest(Phase.PRE)}): restore it with that version, or a later one."
        )
    async with connected(dsn, "sealwire-relay restore") as connection:
        await refuse_relays(connection)
        transaction = connection.transaction()
        await transaction.start()
        before = await _clear(connection, replace)
        await apply_between(connection, Phase.PRE, 0, header.migrated_pre)
        await apply_between(connection, Phase.POST, 0, header.migrated_post)
        await _fill(connection, reader)
        reader.finish()
        await apply_between(connection, Phase.PRE, header.migrated_pre, latest(Phase.PRE))
        past = before.term if before is not None else 0
        await connection.execute(QUERIES["begin_history"], signed(os.urandom(TERM_ID_BYTES)), past)
        now = await _contents(connection, await _tables(connection))
        if now is None:
            raise _other_schema("relay", header)
        with translated_commit():
            await transaction.commit()
        return Restored(before, now)


async def _clear(connection: Connection, replace: bool) -> Contents | None:
    """Take away the tables that are there; returns what they held. Nobody else has them until the transaction ends."""
    tables = await _tables(connection)
    held = None
    if tables:
        await _lock(connection, tables, "ACCESS EXCLUSIVE")
        await refuse_relays(connection)
        held = await _contents(connection, tables)
        if not replace and (held is None or held.streams):
            raise NotEmptyError(
                f"The database holds {_in_words(held)}; nothing was changed: --replace throws that away, or restore "
                "into an empty database."
            )
        # Without CASCADE: what others have built upon these tables is theirs to take away.
        await connection.execute(f"DROP TABLE {_names(tables)}")
    await connection.execute("DROP SCHEMA IF EXISTS sealwire")
    return held


async def _fill(connection: Connection, reader: BackupReader) -> None:
    """Copy all tables in. Tables of somebody else, which the schema does not have, are left out."""
    made = {table.name: table for table in await _tables(connection)}
    for table in reader.header.tables:
        there = made.pop(table.name, None)
        if there is None:
            for _ in reader.table(table):
                pass
            continue
        if set(zip(table.columns, table.types, strict=True)) != set(zip(there.columns, there.types, strict=True)):
            raise _other_schema(table.name, reader.header)

        async def parts(table: Table = table) -> AsyncIterator[bytes]:
            for part in reader.table(table):
                yield part

        await connection.execute(f"TRUNCATE {_names((table,))}")
        done = await connection.copy_to_table(
            table.name, schema_name="sealwire", columns=table.columns, source=parts(), format="binary", freeze=True
        )
        if _rows(done) != reader.rows[table.name]:
            raise StoreError(
                f"The database took {_rows(done):,} rows of table {table.name} where the backup has "
                f"{reader.rows[table.name]:,}; nothing was changed: its log says more."
            )
    if made:
        raise _other_schema(min(made), reader.header)


async def refuse_relays(connection: Connection) -> None:
    """Raise InUseError while a relay or a cleaner is connected to this database."""
    deadline = asyncio.get_running_loop().time() + GONE_SECONDS_MAX
    while count := await connection.fetchval(QUERIES["other_relays"], SESSION["application_name"]):
        # Within a transaction the first look is all that there is.
        if connection.is_in_transaction() or asyncio.get_running_loop().time() > deadline:
            raise InUseError(
                f"A relay is connected to this database (its processes hold {count} connections); nothing was "
                "changed: stop every relay that serves it first."
            )
        await asyncio.sleep(_LOOK_SECONDS)


@asynccontextmanager
async def connected(dsn: str, name: str) -> AsyncIterator[Connection]:
    """A connection of its own; what was not committed when it is left is undone."""
    with translated():
        connection = await asyncpg.connect(
            dsn, timeout=CONNECT_SECONDS_MAX, server_settings={**_SESSION, "application_name": name}
        )
        try:
            yield connection
        except BaseException:
            connection.terminate()
            raise
        await connection.close()


async def _lock(connection: Connection, tables: tuple[Table, ...], mode: str) -> None:
    if not tables:
        return
    try:
        await connection.execute(f"LOCK TABLE {_names(tables)} IN {mode} MODE")
    except asyncpg.LockNotAvailableError as error:
        raise InUseError(
            f"Somebody else has used the database's tables for {LOCK_SECONDS_MAX} s; nothing was changed: end what "
            "uses them, such as a psql with an open transaction, and try again."
        ) from error


async def _tables(connection: Connection) -> tuple[Table, ...]:
    rows = await connection.fetch(QUERIES["tables"])
    return tuple(Table(row["name"], tuple(row["columns"]), tuple(row["types"])) for row in rows)


async def _contents(connection: Connection, tables: tuple[Table, ...]) -> Contents | None:
    """What these tables hold; None if they are not what a relay needs."""
    if not {"relay", "stream"} <= {table.name for table in tables}:
        return None
    row = await connection.fetchrow(QUERIES["contents"])
    return None if row is None else Contents(**dict(row))


def _in_words(held: Contents | None) -> str:
    if held is None:
        return "a part of a relay's tables"
    vaults, streams = count(held.vaults, "vault"), count(held.streams, "stream")
    return f"{vaults} in {streams}, whose heads add up to {held.heads:,}, under term {held.term}"


def _names(tables: tuple[Table, ...]) -> str:
    return ", ".join('sealwire."{}"'.format(table.name.replace('"', '""')) for table in tables)


def _rows(done: str) -> int:
    """The number in `COPY 12`."""
    return int(done.removeprefix("COPY "))


def _other_schema(table: str, header: Header) -> SchemaError:
    return SchemaError(
        f"The backup's table {table} is not as Sealwire's schema {header.migrated_pre} has it; nothing was changed: "
        f"restore the backup with the version that made it ({header.sealwire})."
    )
