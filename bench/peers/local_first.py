"""Other local-first systems, by their own servers and clients: one device writes entries, another one gets all of them.

Each is a folder here with a `server.mjs`, which prints its port, and a `device.mjs`, which is given `write PORT FILE`
or `read PORT ENTRIES ID` and prints what it took.
"""

import contextlib
import json
import select
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.harness.processes import Missing, line_of, places, started
from bench.peers.node import script

DATABASE: Final = "store.sqlite"

ANSWER_S_MAX: Final = 150.0
"""For each thing that a program is to do: several times what the slowest takes, and well below a bench's own limit."""


class Synced(NamedTuple):
    """What one system did: bytes that its server holds for an entry; entries a second that the writer took (as Jazz
    says when its server has them, the others when the device itself has), and from connecting until the second device
    has all."""

    bytes_per_entry: float
    written_per_s: float
    caught_up_per_s: float


def synced(system: str, entries: Mapping[str, str], folder: Path) -> Synced:
    """Let a system do it, in a folder of its own. Raises Missing if it cannot run here, or does not come to its end."""
    folder.mkdir()
    store, log, given = folder / "store", folder / "log", folder / "entries.json"
    store.mkdir()
    given.write_text(json.dumps(dict(entries)))
    server, device, where = script("server.mjs", system), script("device.mjs", system), places()
    with started([*server, str(store / DATABASE)], where.server, log=log) as serving:
        port = str(_answer(system, serving, log)["port"])
        with started([*device, "write", port, str(given)], where.load, log=log) as writer:
            wrote = _answer(system, writer, log)
            reader_command = [*device, "read", port, str(len(entries)), wrote["id"]]
            with started(reader_command, where.load, log=log) as reader:
                read = _answer(system, reader, log)
        assert serving.stdin is not None
        serving.stdin.close()
        try:
            serving.wait(ANSWER_S_MAX)
        except subprocess.TimeoutExpired as late:
            raise Missing(f"{system}: its server did not end within {ANSWER_S_MAX:.0f} s") from late
    if (store / DATABASE).is_file():
        _vacuum(store / DATABASE)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return Synced(size / len(entries), len(entries) / wrote["seconds"], len(entries) / read["seconds"])


def _answer(system: str, process: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    """The one line that a program prints. Raises Missing if it ends without, or is silent for ANSWER_S_MAX."""
    assert process.stdout is not None
    if not select.select([process.stdout], (), (), ANSWER_S_MAX)[0]:
        raise Missing(f"{system}: nothing came within {ANSWER_S_MAX:.0f} s")
    try:
        told: dict[str, Any] = json.loads(line_of(process, log))
    except RuntimeError as ended:
        raise Missing(f"{system}: {ended}") from ended
    return told


def _vacuum(database: Path) -> None:
    """Leave a SQLite file no larger than what is in it: neither its log nor half-empty pages count in the long run."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
