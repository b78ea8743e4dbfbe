"""Appends to and reads from the Postgres store: records a second, on the embedded Postgres with fsync on.

python -m bench.parts.store_append [--seconds N] [--database-url URL]

Prints one JSON object: `large` is one vault's segments of 1,000 records, one a statement; `small` is segments of one
record for 64 vaults, in one statement (`small_many`) and in one for each vault (`small_one`); `read` is catching up
through the large ones, a page of 1 MiB at a time. A record has 101 bytes, as one with a plaintext of 48.

`guarded_large` and `guarded_small_many` are the same for guarded streams: what they hold of each record's tag is looked
up before and written with it; two records of three replace one of 10,000 that are there. `guarded_to_open` is their
rate by that of the open ones.
"""

import asyncio
import json
import os
import random
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import Author, DeviceKey, KeyId, StreamId, Tag, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.embedded import EmbeddedPostgres
from sealwire_relay.store.interface import (
    BatchWrite,
    GuardName,
    KeptOutcome,
    MemberState,
    NewLink,
    StreamWrite,
    VaultState,
    VaultWrite,
)
from sealwire_relay.store.migrate import Phase, migrate
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.segments import StoredSegment

RECORD_BYTES = 101
LARGE = 1_000
VAULTS = 64
KEYS = 10_000
PAGE_BYTES = 1_048_576
STREAM, KEY = StreamId(b"\x80" * 8), (1, KeyId(b"key1"))
MEMBER = MemberState(Author(1), DeviceKey(b"\x80" * 32), Role.ADMIN)


class Pusher:
    """One vault and its stream, and the next write to it."""

    def __init__(self, vault: VaultId, term: Term, kind: StreamKind) -> None:
        self.vault, self.term, self.kind = vault, term, kind
        self.head = self.batch = 0
        self._chance = random.Random(7)

    def tags(self, records: int) -> set[Tag]:
        """Of the next write, if it is guarded."""
        if self.kind is not StreamKind.GUARDED:
            return set()
        return {Tag(self._chance.randrange(KEYS if at % 3 else 1 << 60).to_bytes(16, "big")) for at in range(records)}

    def write(self, records: int, tags: set[Tag]) -> VaultWrite:
        """The next segment of this stream, with the verdict on its batch."""
        head, last = self.head, self.head + records
        self.head, self.batch = last, self.batch + 1
        segment = StoredSegment(head, last, os.urandom(RECORD_BYTES * records))
        outcome = KeptOutcome(self.batch, os.urandom(32), os.urandom(60))
        guards = tuple((tag, Current(last, os.urandom(8), False, last)) for tag in tags)
        stream = StreamWrite(STREAM, head, last, last, (segment,), guards)
        return VaultWrite(self.vault, self.term, KEY, (stream,), (BatchWrite(MEMBER, self.batch - 1, outcome),))


class Figures(NamedTuple):
    """Records a second, and the milliseconds of one commit."""

    records_per_s: int
    commit_ms: float


async def pusher(store: PostgresStore, term: Term, kind: StreamKind = StreamKind.OPEN) -> Pusher:
    """A new vault with one member and one stream."""
    vault = VaultId(os.urandom(16))
    link = NewLink(1, b"genesis", MEMBER)
    await store.create_vault(vault, VaultState(*KEY), link, term)
    await store.create_stream(vault, STREAM, kind)
    return Pusher(vault, term, kind)


async def appends(store: PostgresStore, pushers: list[Pusher], records: int, seconds: float) -> Figures:
    """Append one segment to each vault, again and again, each commit after the other."""
    commits, spent = 0, 0.0
    while spent < seconds:
        tags = [pusher.tags(records) for pusher in pushers]
        names: list[GuardName] = [(p.vault, STREAM, tag) for p, own in zip(pushers, tags, strict=True) for tag in own]
        writes = [pusher.write(records, own) for pusher, own in zip(pushers, tags, strict=True)]
        began = time.perf_counter()
        if names:
            await store.guards(names)
        done = await store.append(writes)
        spent += time.perf_counter() - began
        if not all(done):
            raise RuntimeError("an append was refused: somebody else writes to this database")
        commits += 1
    return Figures(round(commits * len(pushers) * records / spent), round(1_000 * spent / commits, 2))


async def reads(store: PostgresStore, pusher: Pusher, seconds: float) -> int:
    """Catch up from nothing, again and again."""
    records, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        cursor = 0
        while cursor < pusher.head:
            page = await store.read(pusher.vault, STREAM, cursor, PAGE_BYTES)
            if page is None or not page.segments:
                raise RuntimeError("the stream ends before its head")
            records, cursor = records + page.segments[-1].last - cursor, page.segments[-1].last
    return round(records / (time.perf_counter() - began))


@asynccontextmanager
async def opened(dsn: str, one_vault_per_statement: bool) -> AsyncIterator[PostgresStore]:
    """An open store in one of its two shapes."""
    store = PostgresStore(dsn, one_vault_per_statement=one_vault_per_statement)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def measure(dsn: str, seconds: float) -> dict[str, object]:
    """All figures."""
    await migrate(dsn, lambda line: None, Phase.PRE)
    figures: dict[str, object] = {"name": "store_append", "ok": True, "record_bytes": RECORD_BYTES, "vaults": VAULTS}
    async with opened(dsn, False) as store:
        term = await store.open_term()
        large = await pusher(store, term)
        figures["large"] = (await appends(store, [large], LARGE, seconds))._asdict()
        figures["read_records_per_s"] = await reads(store, large, seconds)
    for name, one in (("small_many", False), ("small_one", True)):
        async with opened(dsn, one) as store:
            pushers = [await pusher(store, term) for _ in range(VAULTS)]
            figures[name] = (await appends(store, pushers, 1, seconds))._asdict()
    async with opened(dsn, False) as store:
        figures["guarded_to_open"] = ratios = {}
        for name, vaults, records in (("large", 1, LARGE), ("small_many", VAULTS, 1)):
            both = [
                await appends(store, [await pusher(store, term, kind) for _ in range(vaults)], records, seconds)
                for kind in (StreamKind.OPEN, StreamKind.GUARDED)
            ]
            figures[f"guarded_{name}"] = both[1]._asdict()
            ratios[name] = round(both[1].records_per_s / both[0].records_per_s, 3)
    return figures


async def measure_embedded(folder: Path, seconds: float) -> dict[str, object]:
    """All figures, on a Postgres of our own."""
    postgres = EmbeddedPostgres(folder)
    try:
        return await measure(await postgres.start(), seconds)
    finally:
        await postgres.stop()


def main() -> None:
    """Read the options, start a Postgres unless one is given, measure, print."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--database-url", help="a Postgres to use instead of the embedded one")
    options = parser.parse_args()
    if options.database_url:
        print(json.dumps(asyncio.run(measure(options.database_url, options.seconds))))
        return
    with tempfile.TemporaryDirectory(prefix="sealwire-bench-") as folder:
        Path(folder).chmod(0o711)
        print(json.dumps(asyncio.run(measure_embedded(Path(folder) / "data", options.seconds))))


if __name__ == "__main__":
    main()
