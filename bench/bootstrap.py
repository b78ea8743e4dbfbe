"""How fast an empty device gets everything: a real client, end to end, beside plain `sqlite3` that loads the same rows.

One device makes a vault of 1,000,000 entries, with ascending keys of 8 characters, which SQLite loads fastest, and
texts of 32; that is not timed.
In each round another one joins with an empty folder and is timed from opening its collection until it holds, durably,
everything: relay, network, opening, checking, decoding, SQLite. Its stages, in microseconds a record, are told with it:
`open_decode_sqlite_us` is what its writer's thread does, of which `sqlite_us` is the replica's.

The yardstick is one table of key and text, with the client's pragmas, in one thread that has nothing else to do, in
transactions of the size that proved best.
"""

import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.harness.client import pairs
from bench.harness.processes import line_of, pinned, places, started
from bench.harness.relay import relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, interleaved, neat
from sealwire_client.replica.database import CACHE_KIB

TOGETHER: Final = (1_000, 10_000, 100_000)
"""Rows in one transaction of plain SQLite, of which the best is taken."""

OURS, YARDSTICK = "sealwire", "raw_sqlite"


class Plan(NamedTuple):
    """How much of everything."""

    entries: int
    swept: int
    rounds: int


LONG: Final = Plan(1_000_000, 200_000, ROUNDS)
SHORT: Final = Plan(5_000, 5_000, ROUNDS_SHORT)


def run(short: bool) -> Result:
    """Measure in a temporary folder."""
    plan = SHORT if short else LONG
    # The device that reads is what is measured, so it has the core that servers have elsewhere.
    device, others = places().server, places().load
    told: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = places()._replace(server=others, database=others)
        log = folder / "client.log"
        with relay(folder, where=where) as running:
            client = [sys.executable, "-m", "bench.harness.client"]
            origin = f"ws://127.0.0.1:{running.port}"
            with started([*client, "write", str(folder / "a"), origin, str(plan.entries)], others, log=log) as writer:
                written = json.loads(line_of(writer, log))

                def catch_up() -> float:
                    assert writer.stdin is not None
                    writer.stdin.write(b"\n")
                    writer.stdin.flush()
                    link = json.loads(line_of(writer, log))["link"]
                    place = folder / f"b{len(told)}"
                    with started([*client, "read", str(place), link, str(plan.entries)], device, log=log) as reader:
                        told.append(json.loads(line_of(reader, log)))
                    return plan.entries / told[-1]["seconds"]

                rows = list(pairs(plan.entries))
                with pinned(device):
                    rates = {size: load(folder, rows[: plan.swept], size) for size in TOGETHER}
                best = max(rates, key=lambda size: rates[size])

                def load_rows() -> float:
                    with pinned(device):
                        return load(folder, rows, best)

                found = interleaved({OURS: catch_up, YARDSTICK: load_rows}, plan.rounds)
    return _result(plan, found, told, written, best)


def _result(
    plan: Plan, found: dict[str, Spread], told: Sequence[dict[str, float]], written: dict[str, Any], best: int
) -> Result:
    stages = {name: Spread(tuple(one[name] for one in told)).told() for name in told[0] if name.endswith("_us")}
    return Result(
        ours={
            "records_per_s": found[OURS].told(),
            **stages,
            "entries": plan.entries,
            "put_per_s": neat(plan.entries / written["put_s"]),
            "sent_per_s": neat(plan.entries / written["sent_s"]),
        },
        yardsticks={YARDSTICK: {"rows_per_s": found[YARDSTICK].told()}},
        ratios={"vs_raw_sqlite": neat(found[OURS].median / found[YARDSTICK].median)},
        settings={
            "sealwire": {**settings_of(), "client": "one transaction for up to 64 deliveries, synchronous = FULL"},
            YARDSTICK: {
                "version": sqlite3.sqlite_version,
                "fsync": "synchronous = FULL, WAL: at each commit",
                "rows_in_a_transaction": best,
                "cache_kib": CACHE_KIB,
            },
        },
        bars=Bars(
            f"An empty device gets {plan.entries:,} entries",
            "records/s",
            {"Sealwire, end to end": found[OURS].median, "plain sqlite3, loading alone": found[YARDSTICK].median},
        ),
    )


def load(folder: Path, rows: Sequence[tuple[str, str]], together: int) -> float:
    """Rows/s of plain `sqlite3` into a new file."""
    path = folder / "raw.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.execute("CREATE TABLE c (key TEXT NOT NULL PRIMARY KEY, text TEXT)")
    begun = time.perf_counter()
    for at in range(0, len(rows), together):
        database.execute("BEGIN")
        database.executemany("INSERT INTO c VALUES (?, ?)", rows[at : at + together])
        database.execute("COMMIT")
    seconds = time.perf_counter() - begun
    database.close()
    path.unlink()
    return len(rows) / seconds
