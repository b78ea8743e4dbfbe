"""Long streams, written as fast as Postgres takes segments: what stands in for years of use."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import asyncpg  # type: ignore[import-untyped]

from bench.harness.devices import BenchVault
from sealwire_protocol.ids import TAG_BYTES, StreamId, Tag
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.segment import encode_record
from sealwire_relay.embedded import EmbeddedPostgres
from sealwire_relay.store.interface import StreamWrite, VaultWrite
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.segments import StoredSegment
from tests.support.device import KEY_ID, record

TOGETHER: Final = 16
"""Segments written in one transaction: some 4 MB."""

STATEMENT_S_MAX: Final = 120.0

_TAG_AT: Final = 2
"""Where a record's tag stands in its encoding: behind its skip count and its kind."""


def database_of(folder: Path) -> str:
    """The address of the Postgres that a relay in this folder (`bench.harness.relay`) has started."""
    return EmbeddedPostgres(folder / "relay").address_of_other


def segments(records: int, units: int, prev: int = 0) -> list[StoredSegment]:
    """So many records with random tags in segments that are as large as they may be."""
    one = encode_record(record(units=units, tag=0))
    assert one[_TAG_AT : _TAG_AT + TAG_BYTES] == Tag(bytes(TAG_BYTES))
    most, made = SEGMENT_BYTES_MAX // len(one), list[StoredSegment]()
    for first in range(prev, prev + records, most):
        count = min(most, prev + records - first)
        body, noise = bytearray(one * count), os.urandom(TAG_BYTES * count)
        for place in range(TAG_BYTES):
            body[_TAG_AT + place :: len(one)] = noise[place * count : (place + 1) * count]
        made.append(StoredSegment(first, first + count, bytes(body)))
    return made


async def fill(database: str, vault: BenchVault, stream: StreamId, records: int, units: int) -> None:
    """Let an empty stream hold so many records, and what was written stand in the tables, not only in the log that
    Postgres writes ahead."""
    store = PostgresStore(database, append_connections=1, other_connections=1)
    await store.open()
    try:
        made = segments(records, units)
        for at in range(0, len(made), TOGETHER):
            await _append(store, vault, stream, made[at : at + TOGETHER])
    finally:
        await store.close()
    connection = await asyncpg.connect(database)
    await connection.execute("CHECKPOINT", timeout=STATEMENT_S_MAX)
    await connection.close()


async def _append(store: PostgresStore, vault: BenchVault, stream: StreamId, part: Sequence[StoredSegment]) -> None:
    write = StreamWrite(stream, part[0].prev, part[-1].last, 1, tuple(part))
    if await store.append([VaultWrite(vault.id, await store.current_term(), (1, KEY_ID), (write,), ())]) != [True]:
        raise RuntimeError("a stream could not be filled: somebody else writes to it")
