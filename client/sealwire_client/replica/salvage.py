"""A damaged replica is put aside, and what only this device has is carried over into a new one.

What the relay has is fetched again: entries, positions, terms. What it has not is read from the damaged file row by
row: vaults, membership links, collections, edits, sealed batches with their numbers and bytes, stuck writes, and what
was added to counters. Where rows of it are missing on which it depends that no batch number is used twice (R16), or
nothing counted twice (R19), the vault's numbering is in doubt: the device takes new keys before it sends anything new.

Nothing is deleted: the damaged files end in a folder `damaged-<date>` beside the new replica, with an account of what
was saved. A repair that is ended at any point goes on where it stopped: the damaged files are first moved into a folder
of a fixed name, whose being there is the sign that a repair is under way; the new replica is built within it, and moved
out when it is whole and on the disk; only then the folder gets its last name.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from sealwire_client.replica.damaged import DamagedFile, Row, Value, Way
from sealwire_client.replica.database import FILE_NAME, REPAIRING, FolderLock
from sealwire_client.replica.edits import REFILLED, STRICT
from sealwire_client.replica.errors import (
    OPENING,
    ReplicaFullError,
    ReplicaUnreadableError,
    explained,
    forget_damage,
)
from sealwire_client.replica.reserve import Reserve, no_room
from sealwire_client.replica.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from sealwire_client.replica.sent import DOUBTFUL
from sealwire_client.replica.tables import Column, Table
from sealwire_client.replica.values import Live
from sealwire_client.replica.waldamage import HEADER_BYTES, PAGE_BYTES, TORN_COMMITS_MAX, lost_commits, rebuild
from sealwire_protocol.lines import decode_line

ACCOUNT_NAME: Final = "what-was-saved.json"
"""The account of a repair, beside the damaged files."""

_NEW, _COPY = "new.db", "copy.db"
_BESIDE: Final = ("-wal", "-journal")

WAYS: Final = {
    "_term": Way("id"),
    "_vault": Way("id"),
    "_link": Way("seq", ("vault",)),
    "_heard": Way("author", ("vault",)),
    "_collection": Way("id"),
    "_told": Way("place", ("collection",)),
    "_lost_term": Way("term", ("collection",)),
    "_edit": Way("n"),
    "_batch": Way("number", ("vault",)),
    "_group": Way("rowid"),
    "_sent": Way("at", ("vault", "batch", "place")),
    "_stuck": Way("key", ("collection",)),
    "_counted": Way("key", ("collection",)),
    "_proof": Way("key", ("collection",)),
    "_dispute": Way("id"),
}
"""What is carried over, in an order in which each row finds those that it names."""

NUMBERING: Final = frozenset(("_vault", "_collection", "_batch", "_group", "_sent", "_counted"))
"""Tables of which a missing row may have been the last word on what was sent, or counted."""

NUMBERS_LEFT_OUT: Final = 1_048_576
"""By so many the numbering of edits goes on above those found, if the last number given is not known."""

DOUBT: Final = "this device's replica was damaged, and what it sent last could not all be read"

_SAID: Final = {
    "_vault": ("vault", "vaults"),
    "_edit": ("edit that was not sent", "edits that were not sent"),
    "_batch": ("batch without a verdict", "batches without a verdict"),
    "_sent": ("sent write", "sent writes"),
    "_stuck": ("stuck write", "stuck writes"),
    "_counted": ("counter", "counters"),
    "_dispute": ("dispute", "disputes"),
    "_collection": ("collection", "collections"),
    "_link": ("membership link", "membership links"),
}
"""What a row of a table is called, and what several are."""

_log = logging.getLogger("sealwire.replica")


class Salvaged(NamedTuple):
    """What became of a damaged replica."""

    kept: Path
    """The folder in which the damaged files lie now."""
    saved: dict[str, int]
    """Rows carried over, by table."""
    unread: tuple[str, ...]
    """Tables of which rows may be missing."""
    doubted: tuple[str, ...]
    """Names of the vaults in which this device takes new keys before it sends anything new."""

    def __str__(self) -> str:
        numbers = {table: self.saved.get(table, 0) for table in _SAID}
        saved = ", ".join(f"{number} {_SAID[table][number > 1]}" for table, number in numbers.items() if number)
        told = f"the replica was damaged and has been made anew; saved: {saved or 'nothing'}"
        lost = [said for table, (_, said) in _SAID.items() if table in self.unread]
        if lost:
            told += f"; not all could be read of: {', '.join(lost)}"
        if not self.saved.get("_vault"):
            told += (
                "; no vault could be read, so ask another device of each for an invite and join it again: what only"
                " this device had is in the damaged files alone"
            )
        if self.doubted:
            told += f"; in {', '.join(self.doubted)} this device goes on with new keys"
        return f"{told}; everything else is fetched from the relay; the damaged files are kept in {self.kept}"


def repair(folder: Path) -> Salvaged:
    """Put a folder's damaged replica aside and make a new one of what can be saved; or go on with a repair that was
    begun. Durable, and whole, when it returns; if it is ended before, the next call goes on.

    Raises ReplicaInUseError, ReplicaFullError (there must be room for what is saved, and for a copy of the damaged file
    if its log or its header is damaged), ReplicaUnreadableError. Nothing is lost by either.
    """
    lock = FolderLock(folder)
    try:
        aside = _put_aside(folder)
        Reserve(folder).give_up()  # the room is needed here; the opening that follows takes it again
        if not (folder / FILE_NAME).exists():
            _carry_over(aside, folder)
        salvaged = _finish(folder, aside)
    except sqlite3.Error as error:
        raise explained(error, folder / FILE_NAME, OPENING) or error from error
    except OSError as error:
        kind = ReplicaFullError if no_room(error) else ReplicaUnreadableError
        raise kind(
            f"The damaged replica in {folder} could not be repaired ({error.strerror}): nothing is lost; see to that"
            " and try again."
        ) from error
    finally:
        lock.release()
    _log.warning("%s", salvaged)
    return salvaged


def holds_a_replica(folder: Path) -> bool:
    """True if what does not look like a replica is one with a damaged header: its tables can be found. It is left as it
    is. Raises OSError: it takes room for a copy."""
    copy = folder / f"{FILE_NAME}-looked-at"
    try:
        rebuild(folder / FILE_NAME, folder / f"{FILE_NAME}-wal", copy, _header())
        with DamagedFile(copy) as damaged:
            return bool(damaged.columns("_vault"))
    finally:
        copy.unlink(missing_ok=True)


def _put_aside(folder: Path) -> Path:
    """Move the damaged files into the folder of the repair, the database itself last."""
    aside = folder / REPAIRING
    aside.mkdir(mode=0o700, exist_ok=True)
    _durable(folder)
    if not (aside / FILE_NAME).exists():
        for name in (*(FILE_NAME + suffix for suffix in _BESIDE), FILE_NAME):
            if (folder / name).exists():
                os.rename(folder / name, aside / name)
                _durable(aside, folder)
        (folder / f"{FILE_NAME}-shm").unlink(missing_ok=True)
    return aside


def _finish(folder: Path, aside: Path) -> Salvaged:
    """Give the folder of the repair its last name."""
    for name in (_COPY, f"{FILE_NAME}-shm"):
        (aside / name).unlink(missing_ok=True)
    forget_damage(folder / FILE_NAME)
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    kept, number = folder / f"damaged-{date}", 1
    while kept.exists():
        number += 1
        kept = folder / f"damaged-{date}-{number}"
    account = json.loads((aside / ACCOUNT_NAME).read_text())
    os.rename(aside, kept)
    _durable(folder)
    return Salvaged(kept, account["saved"], tuple(account["unread"]), tuple(account["doubted"]))


def _carry_over(aside: Path, folder: Path) -> None:
    """Build the new replica beside the damaged files, then move it to where it belongs."""
    for leftover in aside.glob(f"{_NEW}*"):
        leftover.unlink()
    path, rolled_back = _readable(aside)
    with DamagedFile(path) as damaged, closing(sqlite3.connect(aside / _NEW, isolation_level=None)) as new:
        carrying = _Carrying(damaged, new)
        new.execute("PRAGMA synchronous = FULL")
        new.execute("PRAGMA foreign_keys = ON")
        new.execute("BEGIN IMMEDIATE")
        carrying.run(rolled_back)
        new.execute("COMMIT")
    account = {"saved": carrying.saved, "unread": sorted(damaged.broken), "doubted": carrying.doubted}
    with (aside / ACCOUNT_NAME).open("w") as file:
        json.dump(account, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _durable(aside)
    os.replace(aside / _NEW, folder / FILE_NAME)
    _durable(aside, folder)


def _readable(aside: Path) -> tuple[Path, bool]:
    """The file to read from: the damaged one, or a copy with a sound header and all that is good of the log. True: the
    log had transactions that SQLite would not have read."""
    path, log = aside / FILE_NAME, aside / f"{FILE_NAME}-wal"
    if not path.exists():
        path.touch()
    lost = lost_commits(log) > TORN_COMMITS_MAX
    size = path.stat().st_size  # SQLite would delete the log of an empty file, and read half a page as a whole one
    if not lost and size and size % PAGE_BYTES == 0:
        with DamagedFile(path) as damaged:
            if damaged.columns("_vault"):
                return path, False
    rebuild(path, log, aside / _COPY, _header())
    return aside / _COPY, lost


def _header() -> bytes:
    """The header of a replica's file."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
        empty.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        empty.execute("CREATE TABLE _t (x)")
        return empty.serialize()[:HEADER_BYTES]


class _Carrying:
    """From a damaged replica into an empty file, within one transaction."""

    def __init__(self, damaged: DamagedFile, new: sqlite3.Connection) -> None:
        self._damaged, self._new = damaged, new
        self.saved: dict[str, int] = {}
        self.doubted: list[str] = []

    def run(self, rolled_back: bool) -> None:
        version = self._version()
        self._migrate(0, version)
        self._new.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for table, way in WAYS.items():
            if self._columns(table):
                self._damaged.read(table, way, list(self._fixed(way)), self._taker(table))
        self._migrate(version, SCHEMA_VERSION)
        self._number_edits()
        self._cut_links()
        self._doubt(rolled_back)
        self._lose_refills()
        for number, columns in self._new.execute("SELECT id, columns FROM _collection").fetchall():
            self._show(number, [Column(*column) for column in json.loads(columns)])
        self.saved = {table: self._one(f"SELECT count(*) FROM {table}") for table in WAYS}

    def _one(self, statement: str, *values: Value) -> Any:
        return self._new.execute(statement, values).fetchone()[0]

    def _columns(self, table: str) -> list[str]:
        return [row[1] for row in self._new.execute(f'PRAGMA table_info("{table}")')]

    def _version(self) -> int:
        """Of which schema the damaged file is: as it tells, or as its tables look."""
        told = self._damaged.version
        if 1 <= told <= SCHEMA_VERSION:
            return told
        for version in range(SCHEMA_VERSION, 1, -1):
            with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
                for number in range(version):
                    empty.executescript(MIGRATIONS[number])
                looks = [[row[1] for row in empty.execute(f"PRAGMA table_info({table})")] for table in WAYS]
            if all(now == then for now, then in zip(map(self._damaged.columns, WAYS), looks, strict=True) if now):
                return version
        return 1

    def _migrate(self, version: int, to: int) -> None:
        for number in range(version, to):
            for statement in _statements(MIGRATIONS[number]):
                self._new.execute(statement)
        self._new.execute(f"PRAGMA user_version = {to}")

    def _fixed(self, way: Way) -> Iterable[tuple[Value, ...]]:
        """Values that the fixed columns of a table may have: what has been carried over names them."""
        match way.fixed:
            case ("vault",):
                return self._new.execute("SELECT id FROM _vault").fetchall()
            case ("collection",):
                return self._new.execute("SELECT id FROM _collection").fetchall()
            case ("vault", "batch", "place"):
                return self._new.execute("SELECT vault, batch, place FROM _group").fetchall()
            case _:
                return []

    def _taker(self, table: str) -> Callable[[Row], None]:
        """Puts rows into the new replica. A row that does not fit there is none that a replica has written."""
        columns = self._columns(table)
        put = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"

        def take(row: Row) -> None:
            try:
                self._new.execute(put, [self._value(table, column, row) for column in columns])
            except (sqlite3.IntegrityError, ValueError, TypeError) as error:
                if "UNIQUE" not in str(error):  # else it is here already
                    self._damaged.broken.add(table)

        return take

    def _value(self, table: str, column: str, row: Row) -> Any:
        found = row.get(column)
        if table == "_collection":
            if column.startswith(("cursor_", "served_", "floor_", "dropped_")):
                return 0  # its entries are fetched from the beginning
            if column == "columns":
                Table(0, [Column(*each) for each in json.loads(str(found))])
        if table == "_sent" and column in ("term", "seq") and not self._knows_term(row.get("term")):
            return None  # what became of it is found out when all is here again
        return found

    def _knows_term(self, term: Any) -> bool:
        return bool(self._new.execute("SELECT EXISTS (SELECT 1 FROM _term WHERE id = ?)", (term,)).fetchone()[0])

    # --- what is to be made of it

    def _number_edits(self) -> None:
        """No number of an edit is given again."""
        rooms = " UNION ALL ".join(f"SELECT max(n) AS n FROM {room}" for room in ("_edit", "_sent", "_stuck"))
        found = self._one(f"SELECT coalesce(max(n), 0) FROM ({rooms})")
        told = self._damaged.number_of_edits()
        last = told if told >= found else found + NUMBERS_LEFT_OUT
        self._new.execute("DELETE FROM sqlite_sequence WHERE name = '_edit'")
        self._new.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('_edit', ?)", (last,))

    def _cut_links(self) -> None:
        """A membership log is of use up to its first gap."""
        gap = (
            "SELECT min(seq) FROM (SELECT 1 AS seq UNION SELECT seq + 1 FROM _link WHERE vault = :vault) AS s"
            " WHERE NOT EXISTS (SELECT 1 FROM _link WHERE vault = :vault AND seq = s.seq)"
        )
        for (vault,) in self._new.execute("SELECT id FROM _vault").fetchall():
            self._new.execute(f"DELETE FROM _link WHERE vault = :vault AND seq > ({gap})", {"vault": vault})

    def _doubt(self, rolled_back: bool) -> None:
        """Keep of the unanswered batches what is known to be all of them up to some number, each whole. What was in the
        others becomes doubtful: it is looked for in the log, and sent anew if it is not there."""
        broken = self._damaged.broken & NUMBERING
        for vault, name in self._new.execute("SELECT id, name FROM _vault").fetchall():
            if "_batch" in broken or {"_group", "_sent"} <= broken:
                self._drop_batches(vault, -(2**62))
            elif "_group" in broken:
                self._drop_batches(vault, self._first_incomplete(vault))
            if broken or rolled_back:
                self._new.execute("UPDATE _vault SET doubt = ? WHERE id = ?", (DOUBT, vault))
                self.doubted.append(name)

    def _first_incomplete(self, vault: int) -> int:
        """The first batch of which a group is missing that its writes or its other groups tell of."""
        told = (
            "SELECT place FROM _sent AS s WHERE s.vault = b.vault AND s.batch = b.number"
            " UNION ALL SELECT place FROM _group AS g WHERE g.vault = b.vault AND g.batch = b.number"
        )
        found = self._one(
            "SELECT min(number) FROM _batch AS b WHERE vault = ? AND"
            " (SELECT count(*) FROM _group AS g WHERE g.vault = b.vault AND g.batch = b.number)"
            f" <= (SELECT coalesce(max(place), 0) FROM ({told}))",
            vault,
        )
        return 2**62 if found is None else int(found)

    def _drop_batches(self, vault: int, first: int) -> None:
        self._new.execute("DELETE FROM _group WHERE vault = ? AND batch >= ?", (vault, first))
        self._new.execute("DELETE FROM _batch WHERE vault = ? AND number >= ?", (vault, first))

    def _lose_refills(self) -> None:
        """Let refills of which it is not known what became stand where the relay had lost them: so they are compared
        with it before anything else, and given back if it does not have them."""
        rows = self._new.execute(
            f"SELECT vault, batch, place, at, condition FROM _sent AS s WHERE n = {REFILLED} AND {DOUBTFUL}"
        ).fetchall()
        for *sent, condition in rows:
            ((term, seq),) = decode_line(condition)
            self._new.execute("INSERT OR IGNORE INTO _term (number, name) VALUES (?, ?)", term)
            self._new.execute(
                "UPDATE _sent SET seq = ?, term = (SELECT id FROM _term WHERE number = ? AND name = ?)"
                " WHERE vault = ? AND batch = ? AND place = ? AND at = ?",
                (seq, *term, *sent),
            )

    def _show(self, number: int, columns: list[Column]) -> None:
        """Make a collection's tables, and show in them what this device has of its own. The app that opens the
        collection reads the values from their bytes."""
        table = Table(number, columns)
        for statement in (*table.create().split(";"), *table.index()):
            self._new.execute(statement)
        self._new.execute(
            f"INSERT INTO {table.name} (key, _live, _local, _raw)"
            f" SELECT key, iif(value IS NULL, {Live.TOMBSTONE:d}, {Live.NEWER:d}), 1, value FROM"
            " (SELECT key, value, row_number() OVER (PARTITION BY key ORDER BY n DESC, room) AS place FROM"
            f" (SELECT key, value, n, 1 AS room FROM _edit WHERE collection = :number"
            f" UNION ALL SELECT key, value, n, 2 FROM _sent WHERE collection = :number AND n <> {STRICT}"
            f" UNION ALL SELECT key, value, n, 3 FROM _stuck WHERE collection = :number AND n <> {STRICT}))"
            " WHERE place = 1",
            {"number": number},
        )


def _statements(script: str) -> Iterable[str]:
    """The statements of a script. `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _durable(*folders: Path) -> None:
    """What was made, moved or deleted in these folders is on the disk."""
    for folder in folders:
        found = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a file system that cannot do so keeps the order by itself
                os.fsync(found)
        finally:
            os.close(found)
