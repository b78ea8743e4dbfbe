"""What whoever runs the relay can see: its tables, its records, its files. Functions block."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg  # type: ignore[import-untyped]

from demo.leaks import Found, Needles, search
from sealwire_client import cipher, keyring, keystore
from sealwire_client.device import KEYSTORE_NAME
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.links import decode_links
from sealwire_protocol.membership import Membership
from sealwire_protocol.segment import Record, encode_record, read_segment

QUERY_S_MAX: Final = 60.0
"""For one statement: a checkpoint on a slow disk is the longest."""

PROGRAMS: Final = frozenset({"binaries"})
"""The part of the data folder that is no data: Postgres' programs, if they had to be copied."""

CANARY_COPIES: Final = 16
"""Copies of the canary at each place: one may lie across the boundary of two pages, not all of them."""

TOAST_BYTES: Final = 64 << 10
"""A value that must go to the TOAST table, of random bytes around the canary, so that nothing could compress it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its indexes and large values."""

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Log:
    """The stored log, read record by record without any key."""

    records: int
    repeated: int
    """Records that occur again: same tag and same rank."""
    gaps: int
    """Places where the segments of a stream do not join."""
    tags: int
    """Different entries of the stream that has most of them."""
    beside: int
    """Those of others: what devices state, signed, of what they hold."""
    sample: bytes
    """One record as it is stored."""
    sample_record: Record


@dataclass(frozen=True, slots=True)
class Canary:
    """Texts planted in clear, and the file in which each must be found."""

    tokens: dict[str, bytes]
    files: dict[str, str]

    def seen(self, found: Found) -> dict[str, bool]:
        """Which of them a search has found where they were put."""
        return {
            place: any(name.startswith(self.files[place]) for name in found.places.get(place, ()))
            for place in self.tokens
        }


def tables(folder: Path) -> list[Table]:
    """All tables of the relay, the largest first."""

    async def look(database: Any) -> list[Table]:
        found = await database.fetch(
            "SELECT oid::regclass::text AS name, pg_total_relation_size(oid) AS bytes FROM pg_class"
            " WHERE relkind IN ('r', 'p', 'm') AND relnamespace NOT IN ('pg_catalog'::regnamespace,"
            " 'information_schema'::regnamespace, 'pg_toast'::regnamespace) ORDER BY bytes DESC, name"
        )
        return [
            Table(row["name"], await database.fetchval(f"SELECT count(*) FROM {row['name']}"), row["bytes"])
            for row in found
        ]

    return _with_database(folder, look)


def segments(folder: Path) -> list[Any]:
    """Every segment of every stream but the membership log, in order: vault_id, stream, prev, last, body."""

    async def look(database: Any) -> list[Any]:
        rows: list[Any] = await database.fetch(
            "SELECT vault_id, stream, prev, last, body FROM sealwire.segment WHERE stream <> 0"
            " ORDER BY vault_id, stream, last"
        )
        return rows

    return _with_database(folder, look)


def log(folder: Path) -> Log:
    """Walk through every segment of every stream but the membership log."""
    records = repeated = gaps = 0
    ranks: dict[tuple[Any, int], dict[bytes, set[bytes]]] = {}
    sample: Record | None = None
    reached: dict[tuple[Any, int], int] = {}
    for vault, stream, prev, last, body in segments(folder):
        gaps += prev != reached.get((vault, stream), 0)
        reached[vault, stream] = last
        for _, record in read_segment(body, prev):
            records += 1
            known = ranks.setdefault((vault, stream), {}).setdefault(record.tag, set())
            rank = record.rank.pack()
            repeated += rank in known
            known.add(rank)
            sample = sample or record
    assert sample is not None, "the relay has no record"
    *others, most = sorted(len(tags) for tags in ranks.values())
    return Log(records, repeated, gaps, most, sum(others), encode_record(sample), sample)


def secrets(folder: Path, devices: dict[str, Path]) -> dict[str, bytes]:
    """All key material of these devices and their vault: what is kept, and what is derived from it."""
    found: dict[str, bytes] = {}
    links = _links(folder)
    membership = Membership()
    for raw in links:
        membership.apply(raw, cipher.verify)
    for letter, path in devices.items():
        identity = keystore.load(path / KEYSTORE_NAME)
        material = {
            "seed": identity.seed,
            "signing seed": cipher.derive(identity.seed, cipher.Purpose.SIGNING_SEED),
            "box seed": cipher.derive(identity.seed, cipher.Purpose.BOX_SEED),
            "hedge key": identity.hedge_key,
        }
        found |= {f"the {name} of device {letter}": secret.reveal() for name, secret in material.items()}
        keys = keyring.keys_from_log(identity, membership)
        found |= {f"the vault's key of epoch {n}": epoch.secret.reveal() for n, epoch in keys.epochs.items()}
        found["the vault's tag key"] = keys.stream(MEMBERSHIP).tag_key.reveal()
    return found


def _links(folder: Path) -> list[bytes]:
    async def look(database: Any) -> list[Any]:
        rows: list[Any] = await database.fetch("SELECT body FROM sealwire.segment WHERE stream = 0 ORDER BY last")
        return rows

    return [link for row in _with_database(folder, look) for link in decode_links(row["body"])]


def plant(folder: Path) -> Canary:
    """Write a text in clear through Postgres: into a heap page and a large value, both on disk, and into the WAL."""
    tokens = {place: f"canary-in-{place}-{os.urandom(8).hex()}".encode() for place in ("heap", "toast", "wal")}

    async def write(database: Any) -> dict[str, str]:
        await database.execute("CREATE TABLE public.canary (text bytea)")
        await database.execute("ALTER TABLE public.canary ALTER COLUMN text SET STORAGE EXTERNAL")
        await database.executemany("INSERT INTO public.canary VALUES ($1)", [(tokens["heap"],)] * CANARY_COPIES)
        step = TOAST_BYTES // CANARY_COPIES
        large = b"".join(tokens["toast"] + os.urandom(step) for _ in range(CANARY_COPIES))
        await database.execute("INSERT INTO public.canary VALUES ($1)", large)
        await database.execute("CHECKPOINT")
        await database.executemany("INSERT INTO public.canary VALUES ($1)", [(tokens["wal"],)] * CANARY_COPIES)
        heap, toast = await database.fetchrow(
            "SELECT pg_relation_filepath(oid), pg_relation_filepath(reltoastrelid) FROM pg_class"
            " WHERE oid = 'public.canary'::regclass"
        )
        return {"heap": f"postgres/{heap}", "toast": f"postgres/{toast}", "wal": "postgres/pg_wal/"}

    return Canary(tokens, _with_database(folder, write))


def uproot(folder: Path) -> None:
    """Remove the canary's table."""

    async def drop(database: Any) -> None:
        await database.execute("DROP TABLE public.canary")

    _with_database(folder, drop)


def transactions(folder: Path) -> int:
    """Transactions that Postgres has ended in the relay's database; those of the last second may not be counted yet."""

    async def look(database: Any) -> int:
        counted: int = await database.fetchval(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
        return counted

    return _with_database(folder, look)


def search_all(folder: Path, needles: Needles) -> Found:
    """Search everything in the relay's folder but programs: tables, WAL, logs, temporary files."""
    return search(folder, needles, skip=PROGRAMS)


def _with_database(folder: Path, work: Callable[[Any], Awaitable[T]]) -> T:
    async def run() -> T:
        database = await asyncpg.connect(
            host=str(_socket(folder)),
            port=5432,
            user="sealwire",
            database="sealwire",
            timeout=QUERY_S_MAX,
            command_timeout=QUERY_S_MAX,
        )
        try:
            return await work(database)
        finally:
            await database.close(timeout=QUERY_S_MAX)

    return asyncio.run(run())


def _socket(folder: Path) -> Path:
    """The folder of the running Postgres' socket, which it notes in its fifth line."""
    cluster = folder / "postgres"
    return (cluster / (cluster / "postmaster.pid").read_text().splitlines()[4]).resolve()
