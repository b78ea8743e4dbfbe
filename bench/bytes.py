"""What an entry takes: a key of 8 characters and a text of 32, at rest in Postgres, and on the wire.

At rest: a real client puts 100,000 entries into a vault; the relay's cleaner is run over all of it; then all tables
and indexes of the relay's schema are counted, with what belongs to them and what room they hold free, and divided by
the entries. Others store the same entries through their own servers and clients, and their files are counted, after a
VACUUM where they are SQLite's. What they keep is not the same: Jazz encrypts and signs each entry and keeps history;
Evolu encrypts each, by a key that all devices have; automerge-repo neither encrypts nor keeps an entry by itself, but
compresses the whole document, and is given fewer: with all of them it takes minutes.

On the wire: bytes of WebSocket frames, headers included and TCP's left out, that a device is sent for one record of 32
bytes of ciphertext: live, when each comes alone, and in bulk, when it catches up.
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]
import uvloop

from bench.harness.client import pairs
from bench.harness.devices import STREAM, BenchVault, DeviceWire, found
from bench.harness.fill import database_of
from bench.harness.processes import Missing, environment, line_of, places, started
from bench.harness.pushing import Pusher
from bench.harness.relay import BenchRelay, relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import neat
from bench.peers.local_first import Synced, synced
from bench.peers.node import node_version, package_version
from sealwire_protocol import codec
from sealwire_protocol.ids import START
from sealwire_protocol.messages import Deliver, Wanted
from sealwire_relay.frames import binary_frame

CLEAN_S_MAX: Final = 300.0
UNITS: Final = 2

JAZZ: Final = "jazz"
EVOLU: Final = "evolu"
AUTOMERGE: Final = "automerge"

NOT_RUN: Final = (
    ("hocuspocus", "it keeps whole documents, as automerge-repo does, which stands for both"),
    ("pouchdb", "its server, pouchdb-server 4.2, is not maintained any more"),
)


class Plan(NamedTuple):
    """How many entries."""

    all: int
    of_automerge: int
    on_the_wire: int


LONG: Final = Plan(100_000, 10_000, 1_000)
SHORT: Final = Plan(2_000, 500, 100)


class Wired(NamedTuple):
    """Bytes on the wire for one record delivered."""

    single: float
    bulk: float


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    plan = SHORT if short else LONG
    result = Result(missing=[f"{name}: {why}" for name, why in NOT_RUN])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Nothing but the one cleaning is done to what is stored.
        options: dict[str, object] = {"clean_seconds": 0}
        with relay(folder / "ours", options) as running:
            wired = uvloop.run(_on_the_wire(running, plan.on_the_wire))
        with relay(folder / "stored", options) as running:
            stored = _stored(running, folder / "stored", plan.all)
        result.ours = {
            "bytes_per_entry": neat(stored),
            "entries": plan.all,
            "wire_bytes_per_record_single": neat(wired.single),
            "wire_bytes_per_record_bulk": neat(wired.bulk),
        }
        result.settings["sealwire"] = settings_of(options)
        for system, settings in ((JAZZ, _jazz), (EVOLU, _evolu), (AUTOMERGE, _automerge)):
            entries = plan.of_automerge if system == AUTOMERGE else plan.all
            try:
                _compare(result, system, synced(system, dict(pairs(entries)), folder / system), stored)
                result.settings[system] = {**settings(), "node": node_version(system), "entries": entries}
            except Missing as missing:
                result.missing.append(str(missing))
    bars = {"Sealwire": stored} | {name: peer["bytes_per_entry"] for name, peer in result.peers.items()}
    result.bars = Bars("An entry of 8 and 32 bytes at the server", "bytes", bars)
    return result


def _compare(result: Result, system: str, peer: Synced, stored: float) -> None:
    result.peers[system] = {name: neat(figure) for name, figure in peer._asdict().items()}
    if system != AUTOMERGE:
        result.ratios[f"vs_{system}"] = neat(stored / peer.bytes_per_entry)


def _jazz() -> dict[str, Any]:
    return {
        "version": ", ".join(f"{name} {package_version(name, JAZZ)}" for name in ("jazz-run", "better-sqlite3")),
        "fsync": "no: SQLite in WAL mode with synchronous = NORMAL, which is better-sqlite3's default, syncs at "
        "checkpoints only",
        "holds": "sealed and signed by the writer, with its history",
    }


def _evolu() -> dict[str, Any]:
    return {
        "version": ", ".join(f"{name} {package_version(f'@evolu/{name}', EVOLU)}" for name in ("nodejs", "common")),
        "fsync": "yes: SQLite with a rollback journal and synchronous = FULL, its defaults, which Evolu leaves alone",
        "holds": "each entry sealed by its owner's key, under a timestamp",
        "together": "1,000 entries in one change",
        "driver": "node:sqlite in place of better-sqlite3, which would have to be compiled for this Node",
    }


def _automerge() -> dict[str, Any]:
    return {
        "version": f"automerge-repo {package_version('@automerge/automerge-repo', AUTOMERGE)}",
        "fsync": "no: files are written, and not synced",
        "holds": "one compressed document, readable by the server",
        "together": "1,000 entries in one change",
    }


def _stored(running: BenchRelay, folder: Path, entries: int) -> float:
    """Bytes in Postgres for each entry of a vault that a real client has made, cleaned."""
    log = folder / "client.log"
    client = [sys.executable, "-m", "bench.harness.client", "write", str(folder / "device")]
    with started([*client, f"ws://127.0.0.1:{running.port}", str(entries)], places().load, log=log) as writer:
        line_of(writer, log)
    database = database_of(folder)
    subprocess.run(
        [sys.executable, "-m", "sealwire_relay", "clean", "--all", "--json", "--log-level", "warning"],
        env=environment(SEALWIRE_DATABASE_URL=database),
        check=True,
        timeout=CLEAN_S_MAX,
        stdout=subprocess.DEVNULL,
    )
    return uvloop.run(_schema_bytes(database)) / entries


async def _schema_bytes(database: str) -> int:
    connection = await asyncpg.connect(database)
    try:
        size: int = await connection.fetchval(
            "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'sealwire'::regnamespace"
        )
    finally:
        await connection.close()
    return size


async def _on_the_wire(running: BenchRelay, records: int) -> Wired:
    """Push single records to a vault in which one device listens, and then let another one catch up."""
    vault = await found(running.port, 1, 1)
    pusher = await Pusher.open(running.port, vault, vault.admin)
    listener = await _listener(running, vault)
    live = asyncio.create_task(_received(listener, records))
    await pusher.push(STREAM, records, UNITS, 1)
    single = await live
    late = await _listener(running, vault)
    bulk = await _received(late, records)
    for wire in (listener, late):
        wire.close()
    pusher.close()
    return Wired(single / records, bulk / records)


async def _listener(running: BenchRelay, vault: BenchVault) -> DeviceWire:
    """A device that is told of everything in STREAM."""
    wire = await DeviceWire.login(running.port, vault.admin.identity)
    await wire.subscribe(vault.id, Wanted(STREAM, START, START))
    return wire


async def _received(wire: DeviceWire, last: int) -> int:
    """Bytes of the frames that come until everything up to this seq is there."""
    size, reached = 0, 0
    while reached < last:
        _, payload = await wire.receive()
        message = codec.decode(payload)
        if isinstance(message, Deliver):
            size, reached = size + len(binary_frame(payload)), message.last
    return size
