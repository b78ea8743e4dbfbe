"""How fast an empty device gets everything: a real client, end to end, beside plain `sqlite3` that loads the same rows.

One device makes a vault of 1,000,000 entries, with ascending keys of 8 characters, which SQLite loads fastest, and
texts of 32; that is not timed.
In each round another one joins with an empty folder and is timed from opening its collection until it holds, durably,
everything: relay, network, opening, checking, decoding, SQLite. Its stages, in microseconds a record, are told with it:
`open_decode_sqlite_us` is what its writer's thread does, of which `sqlite_us` is the replica's.

The yardstick loads the same rows: all columns of what a device, which is not timed, holds after its first sync, into
the same table and indices of a file that the client has opened, with all of its pragmas. They go in in the order of
their keys, by one `executemany` in each transaction, of the size that proved best, in one thread that has nothing else
to do. Beside it stands what the same takes with many rows in a statement, and of key and text alone, which is less than
any replica holds.
"""

import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import chain, count
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.harness.client import COLLECTION, pairs
from bench.harness.processes import line_of, pinned, places, started
from bench.harness.relay import relay, settings_of
from bench.harness.result import Bars, Result
from bench.harness.rounds import ROUNDS, ROUNDS_SHORT, Spread, interleaved, neat
from sealwire_client.replica.database import FILE_NAME, Database

TOGETHER: Final = (1_000, 10_000, 100_000)
"""Rows in one transaction of plain SQLite, of which the best is taken."""

IN_A_STATEMENT: Final = 50
"""Rows in one statement, where there are many. Each transaction is a multiple of it."""

OURS, YARDSTICK = "sealwire", "raw_sqlite"
MANY, NARROW = "raw_sqlite_many_rows_a_statement", "raw_sqlite_key_and_text"
NARROW_SCHEMA: Final = ("CREATE TABLE c (key TEXT NOT NULL PRIMARY KEY, text TEXT)",)


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
    names = map("b{}".format, count())
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
                    with started(
                        [*client, "read", str(folder / next(names)), link, str(plan.entries)], device, log=log
                    ) as reader:
                        told.append(json.loads(line_of(reader, log)))
                    return plan.entries / told[-1]["seconds"]

                catch_up()
                told.clear()
                rows = held(folder / "b0")
                narrow = Rows(NARROW_SCHEMA, "c", list(pairs(plan.entries)))

                def loading(rows: Rows, together: int, in_a_statement: int = 1) -> float:
                    with pinned(device):
                        return load(folder / "raw", rows, together, in_a_statement)

                some = rows._replace(rows=rows.rows[: plan.swept])
                rates = {size: loading(some, size) for size in TOGETHER}
                best = max(rates, key=lambda size: rates[size])
                contenders: dict[str, Callable[[], float]] = {
                    OURS: catch_up,
                    YARDSTICK: lambda: loading(rows, best),
                    MANY: lambda: loading(rows, best, IN_A_STATEMENT),
                    NARROW: lambda: loading(narrow, best),
                }
                found = interleaved(contenders, plan.rounds)
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
        yardsticks={name: {"rows_per_s": found[name].told()} for name in (YARDSTICK, MANY, NARROW)},
        ratios={"vs_raw_sqlite": neat(found[OURS].median / found[YARDSTICK].median)},
        settings={
            "sealwire": {**settings_of(), "client": "one transaction for up to 64 deliveries, synchronous = FULL"},
            **{
                name: {
                    "version": sqlite3.sqlite_version,
                    "fsync": "synchronous = FULL, WAL: at each commit, as the replica",
                    "rows_in_a_transaction": best,
                    "rows_in_a_statement": IN_A_STATEMENT if name == MANY else 1,
                    "columns": "key and text" if name == NARROW else "all that the replica holds, and its indices",
                }
                for name in (YARDSTICK, MANY, NARROW)
            },
        },
        bars=Bars(
            f"An empty device gets {plan.entries:,} entries",
            "records/s",
            {
                "Sealwire, end to end": found[OURS].median,
                "plain sqlite3, loading the same rows": found[YARDSTICK].median,
                "… many rows a statement": found[MANY].median,
                "… key and text alone": found[NARROW].median,
            },
        ),
    )


class Rows(NamedTuple):
    """Rows in the order of their keys, and the SQL that makes the table that they belong to, with its indices."""

    schema: Sequence[str]
    table: str
    rows: Sequence[tuple[Any, ...]]


def held(folder: Path) -> Rows:
    """What a device holds of the collection, every column of it."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as replica:
        (number,) = replica.execute("SELECT id FROM _collection WHERE name = ?", (COLLECTION,)).fetchone()
        table = f"_c{number}"
        schema = replica.execute("SELECT sql FROM sqlite_schema WHERE tbl_name = ? AND sql IS NOT NULL", (table,))
        made = [sql for (sql,) in schema.fetchall()]
        return Rows(made, table, replica.execute(f"SELECT * FROM {table} ORDER BY key").fetchall())


def load(folder: Path, what: Rows, together: int, in_a_statement: int = 1) -> float:
    """Rows/s of plain `sqlite3` into a new file, as durable as the replica is."""
    rows, one = what.rows, f"({', '.join('?' * len(what.rows[0]))})"
    single = f"INSERT INTO {what.table} VALUES {one}"
    many = f"INSERT INTO {what.table} VALUES {', '.join([one] * in_a_statement)}"
    database = Database(folder)
    execute = database.connection.execute
    for sql in what.schema:
        execute(sql)
    begun = time.perf_counter()
    for at in range(0, len(rows), together):
        end = min(at + together, len(rows))
        execute("BEGIN")
        while in_a_statement > 1 and end - at >= in_a_statement:
            execute(many, list(chain.from_iterable(rows[at : at + in_a_statement])))
            at += in_a_statement
        database.connection.executemany(single, rows[at:end])
        execute("COMMIT")
    seconds = time.perf_counter() - begun
    database.close()
    shutil.rmtree(folder)
    return len(rows) / seconds
