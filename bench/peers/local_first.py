"""Other local-first systems, by their own servers and clients: one device writes entries, another one gets all of them.

Each is a folder here with a `server.mjs`, which prints its port, and a `device.mjs`, which is given `write PORT FILE`
or `read PORT ENTRIES ID` and prints what it took.
"""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bench.harness.processes import line_of, places, started
from bench.peers.node import script

DATABASE: Final = "store.sqlite"


class Synced(NamedTuple):
    """What one system did: bytes that its server holds for an entry; entries a second that the writer took (as Jazz
    says when its server has them, automerge-repo when it has changed its document), and from connecting until the
    second device has all."""

    bytes_per_entry: float
    written_per_s: float
    caught_up_per_s: float


def synced(system: str, entries: Mapping[str, str], folder: Path) -> Synced:
    """Let a system do it, in a folder of its own. Raises Missing if it cannot run here."""
    folder.mkdir()
    store, log, given = folder / "store", folder / "log", folder / "entries.json"
    store.mkdir()
    given.write_text(json.dumps(dict(entries)))
    server, device, where = script("server.mjs", system), script("device.mjs", system), places()
    with started([*server, str(store / DATABASE)], where.server, log=log) as serving:
        port = str(json.loads(line_of(serving, log))["port"])
        with started([*device, "write", port, str(given)], where.load, log=log) as writer:
            wrote = json.loads(line_of(writer, log))
            reader_command = [*device, "read", port, str(len(entries)), wrote["id"]]
            with started(reader_command, where.load, log=log) as reader:
                read = json.loads(line_of(reader, log))
        assert serving.stdin is not None
        serving.stdin.close()
        serving.wait()
    if (store / DATABASE).is_file():
        _checkpoint(store / DATABASE)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return Synced(size / len(entries), len(entries) / wrote["seconds"], len(entries) / read["seconds"])


def _checkpoint(database: Path) -> None:
    """Bring what still lies in the log of a SQLite file into the file: in the long run it does not count."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
