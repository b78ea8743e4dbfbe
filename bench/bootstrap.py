"""How fast an empty device catches up, end to end, and where the time goes: `python -m bench.bootstrap [ENTRIES]`.

A real relay (embedded Postgres, fsync on) and two devices as processes of their own. One writes the named characters
of Unicode; the other joins, and is timed from subscribing until it holds everything: relay, network, opening, decoding,
SQLite. Yardstick in the same run: plain `sqlite3` loading the same rows into one table with the same pragmas.
Prints one JSON object.
"""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from demo.characters import Character, characters
from sealwire_client import Device, latest
from sealwire_client.replica import Replica
from sealwire_client.sync import VaultSync

ENTRIES: Final = 138_552
LIMIT_S: Final = 300.0

T = TypeVar("T")


async def write(folder: str, relay: str, entries: int) -> None:
    """The first device: writes everything, then invites the second, whose link it prints."""
    async with Device.open(folder, relay=relay) as device:
        vault = await device.create_vault("bench")
        collection = await vault.collection("characters", Character, policy=latest())
        begun = time.perf_counter()
        await collection.put_many(characters(entries))
        put = time.perf_counter()
        await vault.synced()
        invite = await vault.invite()
        told = {"put_per_s": entries / (put - begun), "upload_per_s": entries / (time.perf_counter() - put)}
        print(json.dumps({"link": invite.link, **told}), flush=True)
        await invite.joined()


async def catch_up(folder: str, link: str, entries: int) -> None:
    """The second device: joins, catches up, and prints its figures."""
    spent: dict[str, float] = {}
    _time(spent, "sqlite", Replica, "apply")
    _time(spent, "writer", VaultSync, "_apply_records")
    async with Device.open(folder) as device:
        vault = await device.join(link)
        collection = await vault.collection("characters", Character, policy=latest())
        begun, cpu = time.perf_counter(), time.process_time()
        await vault.synced()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        assert len(collection) == entries, "not everything arrived"
    spent["open_and_decode"] = spent["writer"] - spent["sqlite"]
    spent["elsewhere"] = seconds - spent.pop("writer")
    stages = {f"{name}_us": round(1e6 * value / entries, 2) for name, value in spent.items()}
    print(json.dumps({"records_per_s": entries / seconds, "cpu_us": 1e6 * cpu / entries, **stages}), flush=True)


def _time(spent: dict[str, float], stage: str, owner: type[Any], name: str) -> None:
    """From now on add up the time spent in a method."""
    method: Callable[..., Any] = getattr(owner, name)
    spent[stage] = 0.0

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[stage] += time.perf_counter() - begun

    setattr(owner, name, timed)


def raw_sqlite(folder: Path, entries: int) -> float:
    """Rows/s of plain `sqlite3`: one table, the same pragmas, a transaction for every thousand rows."""
    rows = [(key, c.name, c.category, c.numeric) for key, c in characters(entries).items()]
    database = sqlite3.connect(folder / "raw.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE c (key TEXT PRIMARY KEY, name TEXT, category TEXT, numeric REAL)")
    begun = time.perf_counter()
    for at in range(0, len(rows), 1_000):
        database.execute("BEGIN")
        database.executemany("INSERT INTO c VALUES (?, ?, ?, ?)", rows[at : at + 1_000])
        database.execute("COMMIT")
    seconds = time.perf_counter() - begun
    database.close()
    return entries / seconds


def _line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


def main(entries: int) -> dict[str, Any]:
    """Run it all; returns the figures."""
    me = [sys.executable, "-m", "bench.bootstrap"]
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> "subprocess.Popen[str]":
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
        return started[-1]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ports = ("--port", "0", "--control-port", "0", "--json")
        try:
            relay = start(sys.executable, "-m", "sealwire_relay", "up", "--folder", str(folder / "relay"), *ports)
            first = start(*me, "write", str(folder / "a"), _line(relay)["data"], str(entries))
            wrote = _line(first)
            second = start(*me, "catch_up", str(folder / "b"), wrote.pop("link"), str(entries))
            caught = _line(second)
            second.wait(LIMIT_S)
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait(LIMIT_S)
        raw = raw_sqlite(folder, entries)
    figures = {"entries": entries, **wrote, **caught, "raw_sqlite_per_s": raw}
    figures["vs_raw_sqlite"] = caught["records_per_s"] / raw
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder, relay, entries]:
            trio.run(write, folder, relay, int(entries))
        case ["catch_up", folder, link, entries]:
            trio.run(catch_up, folder, link, int(entries))
        case [*rest]:
            print(json.dumps({"name": "bootstrap", **main(int(rest[0]) if rest else ENTRIES)}))
