"""How fast a replica takes in a catch-up, and edits. Prints one JSON object: `python -m bench.parts.replica`.

Entries are the named characters of the Unicode database: key, name, category, numeric value. Everything goes
through the writer's thread and is durable (synchronous=FULL) when it counts.
"""

import itertools
import json
import statistics
import tempfile
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from sealwire_client.cipher import Secret
from sealwire_client.encoding import schema_of
from sealwire_client.replica import Collection, Delivery, Edit, Incoming, Reader, Replica, Row, SealedGroup, Writer
from sealwire_client.sealing import Stream, summer
from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import Author, StreamId, Term, VaultId
from sealwire_protocol.messages import Appended, StreamKind
from sealwire_protocol.segment import Rank

SEGMENT_RECORDS: Final = 1_000
PUTS: Final = 500
TERM: Final = Term(1, b"benchmrk")
STREAM: Final = StreamId(b"unicode.")


def characters() -> list[tuple[str, Row]]:
    """Every named character, in code point order."""
    named = ((chr(code), unicodedata.name(chr(code), None)) for code in range(0x110000))
    return [
        (f"{ord(c):05X}", (name, unicodedata.category(c), unicodedata.numeric(c, None))) for c, name in named if name
    ]


@dataclass(frozen=True)
class Character:
    """The values."""

    name: str
    category: str
    number: float | None


SCHEMA: Final = schema_of(Character)


def open_collection(replica: Replica) -> Collection:
    """The one collection of the benchmark."""
    vault = replica.vaults.add(VaultId(bytes(16)), "bench", "wss://relay.example.org", Author(1))
    with replica.transaction():
        opened = replica.entries.open(
            vault.number, "characters", STREAM, StreamKind.OPEN, "latest", SCHEMA.columns, SCHEMA
        )
        replica.keep_sum(opened, summer(Stream(vault.id, STREAM, Secret(bytes(32)))), ())
    return opened


async def catch_up(folder: Path, entries: list[tuple[str, Row]]) -> dict[str, float]:
    """Apply everything in segments to a fresh replica, then ask a question over all of it."""
    writer = await Writer.open(lambda: Replica(folder))
    collection = await writer.run(open_collection)
    records = [
        Incoming(seq, key, Rank(seq, 0, 1, b"saltsalt").pack(), b"key1", 0, row)
        for seq, (key, row) in enumerate(entries, 1)
    ]
    begun = time.perf_counter()
    for start in range(0, len(records), SEGMENT_RECORDS):
        part = records[start : start + SEGMENT_RECORDS]
        await writer.run(Replica.apply, collection, Delivery(TERM, start, start + len(part)), part, changes_max=0)
    seconds = time.perf_counter() - begun
    reader = Reader(folder)
    reader.show(collection)
    begun = time.perf_counter()
    reader.select("SELECT category, count(*) FROM characters GROUP BY category")
    scan = time.perf_counter() - begun
    keys = [key for key, _ in entries[:: len(entries) // 2_000]]
    begun = time.perf_counter()
    for key in keys:
        reader.get(collection, key)
    got = time.perf_counter() - begun
    reader.close()
    await writer.aclose()
    size = (folder / "replica.db").stat().st_size
    return {
        "apply_records_per_s": round(len(records) / seconds),
        "scan_ms": round(scan * 1e3, 1),
        "get_us": round(got / len(keys) * 1e6, 1),
        "replica_bytes_per_entry": round(size / len(records), 1),
    }


async def edits(folder: Path, entries: list[tuple[str, Row]]) -> dict[str, float]:
    """Single edits one after the other, from many tasks at once, and in bulk; then all of it sent and confirmed."""
    writer = await Writer.open(lambda: Replica(folder))
    collection = await writer.run(open_collection)
    work = [Edit(key, row, SCHEMA.cbor_from_row(row)) for key, row in entries]
    took = []
    for edit in work[:PUTS]:
        begun = time.perf_counter()
        await writer.run_grouped(Replica.edit, collection, [edit])
        took.append(time.perf_counter() - begun)
    hops = []
    for _ in range(PUTS):
        begun = time.perf_counter()
        await writer.run(Replica.in_transaction)
        hops.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for edit in work[: 4 * PUTS]:
            nursery.start_soon(writer.run_grouped, Replica.edit, collection, [edit])
    at_once = time.perf_counter() - begun
    begun = time.perf_counter()
    for start in range(0, len(work), SEGMENT_RECORDS):
        await writer.run(Replica.edit, collection, work[start : start + SEGMENT_RECORDS])
    many = time.perf_counter() - begun
    begun = time.perf_counter()
    sent = await writer.run(send_all, collection)
    seconds = time.perf_counter() - begun
    await writer.aclose()
    return {
        "put_us_p50": round(statistics.median(took) * 1e6),
        "hop_us_p50": round(statistics.median(hops) * 1e6),
        "put_from_many_tasks_per_s": round(4 * PUTS / at_once),
        "put_many_per_s": round(len(work) / many),
        "sent_and_confirmed_per_s": round(sent / seconds),
    }


def send_all(replica: Replica, collection: Collection) -> int:
    """Take, store, answer and receive back every edit, as a link to a relay would (sealing left out)."""
    sent = 0
    while taken := replica.outbox.edits.take(collection.vault, {collection.number: 0}):
        group = taken.groups[0]
        ranks = [Rank(group.first_version + step, 0, 1, b"saltsalt").pack() for step in range(len(group.edits))]
        replica.outbox.store(taken, [SealedGroup((), b"sealed", [(rank, b"key1", 0) for rank in ranks])])
        appended = [Appended(STREAM, TERM, sent + 1, len(ranks))]
        records = [
            Incoming(seq, edit.key, rank, b"key1", 0, SCHEMA.row_from_cbor(edit.value or b"")[0])
            for seq, edit, rank in zip(itertools.count(sent + 1), group.edits, ranks, strict=False)
        ]
        with replica.transaction():
            replica.apply(collection, Delivery(TERM, sent, sent + len(ranks)), records, changes_max=0)
        replica.outbox.answer(collection.vault, taken.number, Outcome.DONE, appended, [])
        sent += len(ranks)
    return sent


def main() -> None:
    """Measure in a temporary folder."""
    entries = characters()
    with tempfile.TemporaryDirectory() as folder:
        figures = trio.run(catch_up, Path(folder, "first"), entries)
        figures |= trio.run(edits, Path(folder, "second"), entries)
    print(json.dumps({"name": "replica", "entries": len(entries), **figures}))


if __name__ == "__main__":
    main()
