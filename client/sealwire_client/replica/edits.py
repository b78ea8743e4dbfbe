"""Edits that wait to be sealed: of each key one that stands alone, and one of each transaction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sealwire_client.replica.claims import Claims
from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import Change, Collection, Edit, Entries
from sealwire_protocol.ids import StreamId
from sealwire_protocol.limits import PUSH_GROUPS_MAX, PUSH_RECORDS_MAX, SEGMENT_BYTES_MAX
from sealwire_protocol.messages import ATOMIC, StreamKind
from sealwire_protocol.segment import PROOF_BYTES, padded_bytes

RECORD_BYTES_BESIDE: Final = 80
"""Most that a record adds to its padded plaintext: skip count, wide header, MAC."""

PLAINTEXT_BYTES_BESIDE: Final = 16
"""Most that the encoding of an entry adds to its key and value: type, lengths, field number."""

ALONE: Final = 0
"""The transaction of an edit that belongs to none; the next such edit of its key takes its place. Below it, minus its
own n: it stands alone, and an edit of a transaction has come after it, so that none can take its place."""

STRICT: Final = -1
"""The n of a sent write that never was a waiting edit: it shows nothing before its verdict, and is not tried again."""

REFILLED: Final = -2
"""The n of a sent write that was in the log, which the relay has lost, and is given back (R14)."""


class TakenEdit(NamedTuple):
    """An edit to be sealed, or a strict write. `value` None: a tombstone.

    `n` names this very edit of the key, `since` the first one that it took the place of; `raw`: the row alone would not
    encode to this value. Of guarded collections: `base` is the value before it, `refused` what it was
    to replace when it was refused last, see `claims.replaced`.
    """

    n: int
    key: str
    value: bytes | None
    raw: int
    tx: int = ALONE
    since: int | None = None
    base: bytes | None = None
    refused: bytes | None = None


class TakenGroup(NamedTuple):
    """Edits of one stream. They get consecutive versions from `first_version` (R2)."""

    collection: int
    stream: StreamId
    first_version: int
    edits: tuple[TakenEdit, ...]


class Taken(NamedTuple):
    """What the next batch is to hold, and its number. Nothing has changed in the replica yet."""

    vault: int
    number: int
    groups: tuple[TakenGroup, ...]
    flags: int = 0


class Mark(NamedTuple):
    """Names one edit, to ask later what became of it."""

    collection: int
    key: str
    n: int


def sealed_bytes(key: str, value: bytes | None, signed: bool = False) -> int:
    """At most how many bytes the record of an entry takes in a push. `signed`: its collection is."""
    beside = PLAINTEXT_BYTES_BESIDE + PROOF_BYTES if signed else PLAINTEXT_BYTES_BESIDE
    return padded_bytes(len(key.encode()) + len(value or b"") + beside) + RECORD_BYTES_BESIDE


_ADD: Final = (
    "INSERT OR REPLACE INTO _edit (vault, collection, key, value, raw, tx, base, since)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ({before}))"
)
_BEFORE: Final = "SELECT coalesce(since, n) AS first FROM _edit WHERE collection = ?2 AND key = ?3 AND tx = ?6"
_BEFORE_STUCK: Final = (
    f"SELECT min(first) FROM ({_BEFORE}"
    f" UNION ALL SELECT coalesce(since, n) FROM _stuck WHERE collection = ?2 AND key = ?3 AND n <> {STRICT})"
)
"""Adds an edit in the place of others: `before` is the n of the first of them."""

_FREE: Final = (
    "SELECT e.collection, c.signed, e.n, e.key, e.value, e.raw, e.tx, e.since, e.base, e.refused FROM _edit AS e"
    " JOIN _collection AS c ON c.id = e.collection WHERE e.vault = ?"
    " AND e.collection IN ({marks})"
    " AND NOT EXISTS (SELECT 1 FROM _sent AS s WHERE s.collection = e.collection AND s.key = e.key"
    f" AND (s.seq IS NULL OR c.kind = {StreamKind.GUARDED:d}))"
    " AND NOT EXISTS (SELECT 1 FROM _resealed AS r WHERE r.collection = e.collection AND r.key = e.key)"
    " AND NOT EXISTS (SELECT 1 FROM _edit AS o WHERE o.collection = e.collection AND o.key = e.key AND o.n < e.n)"
)
"""Edits that may be sealed: none of the key is on its way (R4), and no older one waits. In a guarded stream the one on
its way must also have been delivered: only then is it known what the next one replaces."""


class Edits:
    """The waiting edits of a replica. Every method is part of the caller's transaction."""

    def __init__(self, database: Database, entries: Entries, claims: Claims) -> None:
        self._database, self._entries, self._claims = database, entries, claims

    def new_transaction(self) -> int:
        """A number for a transaction that is about to be added: the n of its first edit."""
        found = self._database.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = '_edit'").fetchone()
        return (found[0] if found else 0) + 1

    def add(self, collection: Collection, edits: Sequence[Edit], tx: int = ALONE) -> None:
        """Put edits among the waiting ones, before they are shown. One that stands alone takes the place of the newest
        of its key if that stands alone too, and any takes the place of one that is stuck."""
        number, execute = collection.number, self._database.connection.execute
        executemany = self._database.connection.executemany
        stuck = execute("SELECT EXISTS (SELECT 1 FROM _stuck WHERE collection = ?)", (number,)).fetchone()[0]
        names = [(number, edit.key) for edit in edits] if stuck or tx != ALONE else []
        if collection.kind is StreamKind.GUARDED:
            rows = [(*self._row(collection, edit, tx), self._base(collection, edit.key, tx, stuck)) for edit in edits]
        else:
            rows = [(*self._row(collection, edit, tx), None) for edit in edits]
        if tx != ALONE:
            executemany(f"UPDATE _edit SET tx = -n WHERE collection = ? AND key = ? AND tx = {ALONE}", names)
        executemany(_ADD.format(before=_BEFORE_STUCK if stuck else _BEFORE), rows)
        if stuck:
            executemany("DELETE FROM _stuck WHERE collection = ? AND key = ?", names)

    @staticmethod
    def _row(collection: Collection, edit: Edit, tx: int) -> tuple[int, int, str, bytes | None, bool, int]:
        return collection.vault, collection.number, edit.key, edit.value, edit.raw, tx

    def _base(self, collection: Collection, key: str, tx: int, stuck: bool) -> bytes | None:
        """The value before the first edit that this one takes the place of; else what is shown now."""
        execute, names = self._database.connection.execute, (collection.number, key)
        found = None
        if tx == ALONE:
            before = f"SELECT base FROM _edit WHERE collection = ? AND key = ? AND tx = {ALONE}"
            found = execute(before, names).fetchone()
        if found is None and stuck:
            before = f"SELECT base FROM _stuck WHERE collection = ? AND key = ? AND n <> {STRICT}"
            found = execute(before, names).fetchone()
        return found[0] if found else self._claims.shown(collection, key).value

    def marks(self, collection: int, keys: Iterable[str]) -> list[Mark]:
        """Names for the newest waiting edit of each key."""
        newest = "SELECT max(n) FROM _edit WHERE collection = ? AND key = ?"
        execute = self._database.connection.execute
        return [Mark(collection, key, execute(newest, (collection, key)).fetchone()[0]) for key in keys]

    def any_wait(self, vault: int) -> bool:
        """True if a vault has waiting edits."""
        found = self._database.connection.execute("SELECT EXISTS (SELECT 1 FROM _edit WHERE vault = ?)", (vault,))
        return bool(found.fetchone()[0])

    def take(
        self,
        vault: int,
        tops: Mapping[int, int],
        records_max: int = PUSH_RECORDS_MAX,
        bytes_max: int = SEGMENT_BYTES_MAX,
    ) -> Taken | None:
        """The edits to be sealed next, the oldest first, or None. Changes nothing.

        Either one whole transaction, or edits that stand alone. `tops` names the collections that have caught up, each
        with the `top` that the relay told (R2). `bytes_max` bounds the sealed records in all of edits that stand alone;
        one edit is always taken.
        """
        free = _FREE.format(marks=", ".join("?" * len(tops)))
        first = "SELECT min(n) FROM _edit WHERE tx = e.tx AND tx > 0"
        found = self._database.connection.execute(  # read as far as it is needed: what is not whole yet may be long
            f"{free} AND (e.tx <= 0 OR e.n = ({first})) ORDER BY e.n", (vault, *tops)
        )
        taken: dict[int, list[TakenEdit]] = {}
        count = size = 0
        for collection, signed, *columns in found:
            edit = TakenEdit(*columns)
            if edit.tx > 0:
                together = {} if taken else self._whole(free, vault, tops, edit.tx)
                if together:
                    return self._numbered(vault, tops, together, ATOMIC)
                continue
            count, size = count + 1, size + sealed_bytes(edit.key, edit.value, signed)
            if taken and (size > bytes_max or (collection not in taken and len(taken) == PUSH_GROUPS_MAX)):
                break
            taken.setdefault(collection, []).append(edit)
            if count == records_max:
                break
        return self._numbered(vault, tops, taken, 0) if taken else None

    def _whole(self, free: str, vault: int, tops: Mapping[int, int], tx: int) -> dict[int, list[TakenEdit]]:
        """The edits of a transaction by collection; none if not all of them may be sealed."""
        execute = self._database.connection.execute
        together: dict[int, list[TakenEdit]] = {}
        found = execute(f"{free} AND e.tx = ? AND e.tx > 0 ORDER BY e.n", (vault, *tops, tx)).fetchall()
        for collection, _, *columns in found:
            together.setdefault(collection, []).append(TakenEdit(*columns))
        (count,) = execute("SELECT count(*) FROM _edit WHERE tx = ? AND tx > 0", (tx,)).fetchone()
        return together if count == len(found) else {}

    def _numbered(
        self, vault: int, tops: Mapping[int, int], taken: Mapping[int, Sequence[TakenEdit]], flags: int
    ) -> Taken:
        groups = [self.group(collection, edits, tops[collection]) for collection, edits in taken.items()]
        return Taken(vault, self.next_batch(vault), tuple(groups), flags)

    def group(self, collection: int, edits: Sequence[TakenEdit], top: int) -> TakenGroup:
        """Edits of one collection, with the versions that they are to have (R2)."""
        stream, seen = self._database.connection.execute(
            "SELECT stream, version_seen FROM _collection WHERE id = ?", (collection,)
        ).fetchone()
        return TakenGroup(collection, stream, max(seen, top) + 1, tuple(edits))

    def next_batch(self, vault: int) -> int:
        """The number of the next batch."""
        found = self._database.connection.execute("SELECT next_batch FROM _vault WHERE id = ?", (vault,)).fetchone()
        return int(found[0])

    def is_claimed(self, collection: int, key: str) -> bool:
        """True if this device has anything of the key that is not in the log, refused writes apart."""
        found = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1 AND key = ?2)"
            " OR EXISTS (SELECT 1 FROM _sent WHERE collection = ?1 AND key = ?2)"
            " OR EXISTS (SELECT 1 FROM _resealed WHERE collection = ?1 AND key = ?2)",
            (collection, key),
        )
        return bool(found.fetchone()[0])

    def following(self, collection: Collection, edit: TakenEdit) -> TakenEdit | None:
        """The next waiting edit of the same key."""
        found = self._database.connection.execute(
            "SELECT n, key, value, raw, tx, since, base, refused FROM _edit WHERE collection = ? AND key = ? AND n > ?"
            " ORDER BY n LIMIT 1",
            (collection.number, edit.key, edit.n),
        ).fetchone()
        return None if found is None else TakenEdit(*found)

    def rebase(self, collection: Collection, edit: TakenEdit) -> list[Change]:
        """Give a waiting edit the value and base that a merge made of it, and show it if nothing newer is."""
        value = edit.value
        row, kept = (None, None) if value is None else collection.read(value)
        raw = kept is not None
        execute, table = self._database.connection.execute, collection.table
        execute("UPDATE _edit SET value = ?, raw = ?, base = ? WHERE n = ?", (value, raw, edit.base, edit.n))
        newer = "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ? AND key = ? AND n > ?)"
        if execute(newer, (collection.number, edit.key, edit.n)).fetchone()[0]:
            return []
        before = self._entries.look(table, [edit.key])
        self._entries.show(collection, [Edit(edit.key, row, value, raw)])
        return before.changes_to(self._entries.look(table, [edit.key]))

    def drop(self, collection: Collection, edit: TakenEdit) -> list[Change]:
        """Take out an edit that changes nothing any more: what it wanted is what the log says."""
        execute, entries, table = self._database.connection.execute, self._entries, collection.table
        before = entries.look(table, [edit.key])
        execute("DELETE FROM _edit WHERE n = ?", (edit.n,))
        left = execute(
            "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1 AND key = ?2)"
            " OR EXISTS (SELECT 1 FROM _sent WHERE collection = ?1 AND key = ?2)"
            f" OR EXISTS (SELECT 1 FROM _stuck WHERE collection = ?1 AND key = ?2 AND n <> {STRICT})",
            (collection.number, edit.key),
        )
        if not left.fetchone()[0]:
            entries.settle(table, edit.key)
        return before.changes_to(entries.look(table, [edit.key]))
