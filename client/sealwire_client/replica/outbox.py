"""The outbox: edits wait unsealed, sealed writes wait for a verdict, answered ones for the cursor, refused ones for
the user. An edit is in exactly one of these places until the log has it, or its user discards it.

    edit ── taken and sealed ──> sent ── answered ──> sent, answered ── cursor passes ──> entry
      ^                            │
      └─ seal again, retry ── stuck <┘ refused for good
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.entries import Change, Collection, Edit, Entries, Incoming
from sealwire_client.replica.errors import ReplicaMisuse
from sealwire_client.replica.positions import Positions
from sealwire_protocol.errors import Outcome, RemoteFault
from sealwire_protocol.ids import StreamId
from sealwire_protocol.limits import PUSH_GROUPS_MAX, PUSH_RECORDS_MAX, PUSH_WINDOW, SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Appended, Group, Refused
from sealwire_protocol.segment import padded_bytes

RECORD_BYTES_BESIDE: Final = 80
"""Most that a record adds to its padded plaintext: skip count, wide header, MAC."""

PLAINTEXT_BYTES_BESIDE: Final = 16
"""Most that the encoding of an entry adds to its key and value: type, lengths, field number."""

SEAL_AGAIN: Final = frozenset((Outcome.EPOCH_STALE, Outcome.SEAL_AGAIN))
"""Outcomes after which the same edits, sealed anew under a new number, can succeed."""


_AUTHOR: Final = slice(10, 14)
"""Where a packed rank holds its author."""


class TakenEdit(NamedTuple):
    """An edit to be sealed. `value` None: a tombstone. `n` names this very edit of the key."""

    n: int
    key: str
    value: bytes | None


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


class SealedGroup(NamedTuple):
    """A taken group, sealed: the bytes to send, and (packed rank, key id, flags) of each record in order."""

    conditions: bytes
    records: bytes
    seals: Sequence[tuple[bytes, bytes, int]]


class StoredBatch(NamedTuple):
    """A batch without a verdict, to be sent with these very bytes."""

    number: int
    flags: int
    groups: tuple[Group, ...]


class Answered(NamedTuple):
    """What a verdict did: writes committed, writes that wait to be sealed again, writes set aside, visible changes."""

    committed: int
    again: int
    stuck: int
    changes: tuple[tuple[int, Change], ...]


class Stuck(NamedTuple):
    """A write refused for good, kept until it is tried again, replaced or discarded."""

    key: str
    value: bytes | None
    reason: str


class Waiting(NamedTuple):
    """How much of a vault has not become part of the log: writes in each place, and records that do not open."""

    edits: int
    unanswered: int
    answered: int
    stuck: int
    quarantined: int

    @property
    def pending(self) -> int:
        """Writes that are still to be sent or to be answered."""
        return self.edits + self.unanswered


class Outbox:
    """The outbox of a replica. Every method that changes something is one transaction, or part of the caller's."""

    def __init__(self, database: Database, entries: Entries, positions: Positions) -> None:
        self._database, self._entries, self._positions = database, entries, positions

    def has_claims(self, collection: int) -> bool:
        """True if any row of a collection shows something that is not in the log."""
        found = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1) OR EXISTS (SELECT 1 FROM _sent WHERE"
            " collection = ?1) OR EXISTS (SELECT 1 FROM _stuck WHERE collection = ?1)",
            (collection,),
        )
        return bool(found.fetchone()[0])

    def add(self, collection: Collection, edits: Iterable[Edit]) -> None:
        """Put edits into the outbox. A later edit of a key takes the place of one that waits or is stuck."""
        number, vault = collection.number, collection.vault
        rows = [(vault, number, edit.key, edit.value, edit.raw) for edit in edits]
        connection = self._database.connection
        with self._database.transaction():
            connection.executemany(
                "INSERT OR REPLACE INTO _edit (vault, collection, key, value, raw) VALUES (?, ?, ?, ?, ?)", rows
            )
            if connection.execute("SELECT EXISTS (SELECT 1 FROM _stuck WHERE collection = ?)", (number,)).fetchone()[0]:
                connection.executemany(
                    "DELETE FROM _stuck WHERE collection = ? AND key = ?", [(number, row[2]) for row in rows]
                )

    def take(
        self,
        vault: int,
        tops: Mapping[int, int],
        records_max: int = PUSH_RECORDS_MAX,
        bytes_max: int = SEGMENT_BYTES_MAX,
    ) -> Taken | None:
        """The edits to be sealed next, the oldest first, or None. Changes nothing.

        `tops` names the collections that have caught up, each with the `top` that the relay told (R2). Left out are
        keys with an unanswered write (R4). `bytes_max` bounds the sealed records in all; one edit is always taken.
        """
        connection = self._database.connection
        marks = ", ".join("?" * len(tops))
        found = connection.execute(
            f"SELECT n, collection, key, value FROM _edit AS e WHERE vault = ? AND collection IN ({marks})"
            " AND NOT EXISTS (SELECT 1 FROM _sent AS s"
            " WHERE s.collection = e.collection AND s.key = e.key AND s.seq IS NULL)"
            " ORDER BY n LIMIT ?",
            (vault, *tops, records_max),
        )
        taken: dict[int, list[TakenEdit]] = {}
        size = 0
        for n, collection, key, value in found:
            plain = len(key.encode()) + len(value or b"") + PLAINTEXT_BYTES_BESIDE
            size += padded_bytes(plain) + RECORD_BYTES_BESIDE
            if taken and (size > bytes_max or (collection not in taken and len(taken) == PUSH_GROUPS_MAX)):
                break
            taken.setdefault(collection, []).append(TakenEdit(n, key, value))
        found.close()
        if not taken:
            return None
        number = connection.execute("SELECT next_batch FROM _vault WHERE id = ?", (vault,)).fetchone()[0]
        groups = []
        for collection, edits in taken.items():
            stream, seen = connection.execute(
                "SELECT stream, version_seen FROM _collection WHERE id = ?", (collection,)
            ).fetchone()
            groups.append(TakenGroup(collection, stream, max(seen, tops[collection]) + 1, tuple(edits)))
        return Taken(vault, number, tuple(groups))

    def store(self, taken: Taken, sealed: Sequence[SealedGroup], flags: int = 0) -> bool:
        """Make a sealed batch durable, before its first byte is sent (R16), in one transaction.

        False, and nothing stored, if a delivery came in between that a sealed record would lose against: take and seal
        again. An edit of a key made in between stays, to be sent after this one.
        """
        with self._database.transaction() as connection:
            moved = connection.execute(
                "UPDATE _vault SET next_batch = next_batch + 1 WHERE id = ? AND next_batch = ?",
                (taken.vault, taken.number),
            )
            if not moved.rowcount or len(taken.groups) != len(sealed):
                raise ReplicaMisuse(f"batch {taken.number} is not the next one, or was not sealed as it was taken")
            if not all(self._would_win(group, seals) for group, seals in zip(taken.groups, sealed, strict=True)):
                connection.execute("UPDATE _vault SET next_batch = ? WHERE id = ?", (taken.number, taken.vault))
                return False
            connection.execute("INSERT INTO _batch VALUES (?, ?, ?)", (taken.vault, taken.number, flags))
            for place, (group, seals) in enumerate(zip(taken.groups, sealed, strict=True)):
                self._store_group(taken, place, group, seals)
        return True

    def _would_win(self, group: TakenGroup, sealed: SealedGroup) -> bool:
        if len(group.edits) != len(sealed.seals):
            raise ReplicaMisuse(f"{len(group.edits)} edits were taken and {len(sealed.seals)} sealed")
        seen = self._positions.standing(group.collection).version_seen
        if seen < group.first_version:
            return True
        table = self._entries.stored_table(group.collection)
        ranks = [self._entries.rank_of(table, edit.key) or b"" for edit in group.edits]
        return all(held < seal[0] for held, seal in zip(ranks, sealed.seals, strict=True))

    def _store_group(self, taken: Taken, place: int, group: TakenGroup, sealed: SealedGroup) -> None:
        connection = self._database.connection
        connection.execute(
            "INSERT INTO _group (vault, batch, place, stream, conditions, count, records) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                taken.vault,
                taken.number,
                place,
                group.stream,
                sealed.conditions,
                len(sealed.seals),
                sealed.records,
            ),
        )
        # Whether the value was kept raw is asked of the edit if it still stands; of a newer one it may differ, which
        # costs bytes but loses none.
        connection.executemany(
            "INSERT INTO _sent (vault, batch, place, at, collection, key, rank, key_id, flags, value, raw)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, coalesce((SELECT raw FROM _edit WHERE n = ?), 1))",
            [
                (taken.vault, taken.number, place, at, group.collection, edit.key, *seal, edit.value, edit.n)
                for at, (edit, seal) in enumerate(zip(group.edits, sealed.seals, strict=True))
            ],
        )
        connection.executemany("DELETE FROM _edit WHERE n = ?", [(edit.n,) for edit in group.edits])
        top = max(int.from_bytes(rank[:8], "big") for rank, _, _ in sealed.seals)
        self._positions.raise_version(group.collection, top)

    def unanswered(self, vault: int, after: int = 0, count: int = PUSH_WINDOW) -> list[StoredBatch]:
        """Batches without a verdict in order of their numbers, from the first above `after`."""
        execute = self._database.connection.execute
        batches = execute(
            "SELECT number, flags FROM _batch WHERE vault = ? AND number > ? ORDER BY number LIMIT ?",
            (vault, after, count),
        ).fetchall()
        groups = "SELECT stream, conditions, records FROM _group WHERE vault = ? AND batch = ? ORDER BY place"
        return [
            StoredBatch(number, flags, tuple(Group(*row) for row in execute(groups, (vault, number))))
            for number, flags in batches
        ]

    def answer(
        self, vault: int, number: int, outcome: Outcome, appended: Sequence[Appended], refused: Sequence[Refused]
    ) -> Answered | None:
        """Take in the verdict on a batch, in one transaction. None if there is no such batch without one.

        Committed writes become entries when the cursor passes them (R12), here if it has. Raises RemoteFault if the
        verdict does not fit the batch; then it stays as it was.
        """
        with self._database.transaction() as connection:
            if not connection.execute(
                "SELECT EXISTS (SELECT 1 FROM _batch WHERE vault = ? AND number = ?)", (vault, number)
            ).fetchone()[0]:
                return None
            if outcome is Outcome.DONE:
                aside = {(r.group, r.place): r.reason.name.lower() for r in refused}
                committed = self._commit(vault, number, appended, aside)
                again, stuck = 0, self._set_aside(vault, number, aside)
            elif outcome in SEAL_AGAIN:
                committed, again, stuck = 0, self._seal_again(vault, number), 0
            else:
                committed, again, stuck = 0, 0, self._set_aside(vault, number, outcome.name.lower())
            connection.execute("DELETE FROM _group WHERE vault = ? AND batch = ?", (vault, number))
            connection.execute("DELETE FROM _batch WHERE vault = ? AND number = ?", (vault, number))
            changes: list[tuple[int, Change]] = []
            for collection in self._entries.opened.values():
                if collection.vault == vault:
                    changes += [(collection.number, change) for change in self.promote(collection)]
        return Answered(committed, again, stuck, tuple(changes))

    def _commit(
        self, vault: int, number: int, appended: Sequence[Appended], refused: Mapping[tuple[int, int], str]
    ) -> int:
        """Give the accepted writes of a batch their positions. Returns how many."""
        connection = self._database.connection
        groups = connection.execute(
            "SELECT place, stream, count FROM _group WHERE vault = ? AND batch = ?", (vault, number)
        ).fetchall()
        told = {group.stream: group for group in appended}
        committed = 0
        for place, stream, count in groups:
            accepted = [at for at in range(count) if (place, at) not in refused]
            group = told.pop(stream, None)
            if len(accepted) != (group.records if group else 0):
                raise _misfit(number)
            if group:
                committed += len(accepted)
                term = self._positions.term_id(group.term)
                connection.executemany(
                    "UPDATE _sent SET term = ?, seq = ? WHERE vault = ? AND batch = ? AND place = ? AND at = ?",
                    [(term, group.first + step, vault, number, place, at) for step, at in enumerate(accepted)],
                )
        if told:
            raise _misfit(number)
        return committed

    def _seal_again(self, vault: int, number: int) -> int:
        """Put a refused batch's writes back among the edits, save where a newer edit waits. Returns how many."""
        execute = self._database.connection.execute
        back = execute(
            "INSERT OR IGNORE INTO _edit (vault, collection, key, value, raw) SELECT vault, collection, key, value, raw"
            " FROM _sent WHERE vault = ? AND batch = ? ORDER BY place, at",
            (vault, number),
        ).rowcount
        execute("DELETE FROM _sent WHERE vault = ? AND batch = ?", (vault, number))
        return back

    def _set_aside(self, vault: int, number: int, reasons: str | Mapping[tuple[int, int], str]) -> int:
        """Move refused writes of a batch to the stuck ones, save where a newer edit waits. Returns how many.

        `reasons`: one for all, or one for each (place, at).
        """
        execute = self._database.connection.execute
        stuck = 0
        rows = execute(
            "SELECT place, at, collection, key, value, raw FROM _sent WHERE vault = ? AND batch = ?",
            (vault, number),
        ).fetchall()
        for place, at, collection, key, value, raw in rows:
            reason = reasons if isinstance(reasons, str) else reasons.get((place, at))
            if reason is None:
                continue
            execute(
                "DELETE FROM _sent WHERE vault = ? AND batch = ? AND place = ? AND at = ?", (vault, number, place, at)
            )
            stuck += execute(
                "INSERT OR REPLACE INTO _stuck (collection, key, value, raw, reason) SELECT ?1, ?2, ?3, ?4, ?5"
                " WHERE NOT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1 AND key = ?2)",
                (collection, key, value, raw, reason),
            ).rowcount
        return stuck

    def _claimed(self, collection: int, key: str) -> bool:
        found = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1 AND key = ?2) OR EXISTS (SELECT 1 FROM _sent"
            " WHERE collection = ?1 AND key = ?2) OR EXISTS (SELECT 1 FROM _stuck WHERE collection = ?1 AND key = ?2)",
            (collection, key),
        )
        return bool(found.fetchone()[0])

    def promote(self, collection: Collection) -> list[Change]:
        """Turn answered writes that the cursor has passed into entries (R12), if no greater rank stands there.

        Within the caller's transaction. Returns what it changed for a watcher.
        """
        changes: list[Change] = []
        if not self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _sent WHERE collection = ? AND seq IS NOT NULL)", (collection.number,)
        ).fetchone()[0]:
            return changes
        for term, limit in self._positions.passed(collection.number):
            self._promote_plain(collection, term, limit)
            rest = self._database.connection.execute(
                "SELECT vault, batch, place, at, key, rank, key_id, flags, value, raw, seq FROM _sent"
                " WHERE collection = ? AND term = ? AND seq <= ? ORDER BY seq",
                (collection.number, term, limit),
            ).fetchall()
            for row in rest:
                changes += self._promote_one(collection, term, row)
        return changes

    def _promote_plain(self, collection: Collection, term: int, limit: int) -> None:
        """The usual case, all at once: nothing newer claims the key, and the write wins. Its row shows it already."""
        table, number = collection.table, collection.number
        execute = self._database.connection.execute
        passed = "s.collection = ? AND s.term = ? AND s.seq <= ?"
        done = execute(
            f"UPDATE {table.name} SET _local = 0, _rank = s.rank, _key_id = s.key_id, _flags = s.flags, _term = s.term,"
            f" _seq = s.seq FROM _sent AS s WHERE {passed} AND s.key = {table.name}.key"
            f" AND ({table.name}._rank IS NULL OR {table.name}._rank <= s.rank)"
            " AND NOT EXISTS (SELECT 1 FROM _edit AS e WHERE e.collection = s.collection AND e.key = s.key)"
            " AND NOT EXISTS (SELECT 1 FROM _stuck AS k WHERE k.collection = s.collection AND k.key = s.key)"
            " AND NOT EXISTS (SELECT 1 FROM _sent AS o WHERE o.collection = s.collection AND o.key = s.key"
            " AND (o.batch, o.place, o.at) <> (s.batch, s.place, s.at))",
            (number, term, limit),
        )
        if not done.rowcount:
            return
        settled = (
            f"SELECT s.key FROM _sent AS s JOIN {table.name} AS c ON c.key = s.key WHERE {passed} AND c._local = 0"
        )
        execute(f"DELETE FROM {table.shadow} WHERE key IN ({settled})", (number, term, limit))
        execute(
            f"DELETE FROM _sent AS s WHERE {passed} AND EXISTS"
            f" (SELECT 1 FROM {table.name} AS c WHERE c.key = s.key AND c._local = 0)",
            (number, term, limit),
        )

    def _promote_one(self, collection: Collection, term: int, row: tuple[object, ...]) -> list[Change]:
        vault, batch, place, at, key, rank, key_id, flags, value, raw, seq = row
        assert isinstance(key, str) and isinstance(rank, bytes) and isinstance(key_id, bytes) and isinstance(seq, int)
        assert isinstance(flags, int) and (value is None or isinstance(value, bytes))
        entries, table = self._entries, collection.table
        before = entries.look(table, [key])
        self._database.connection.execute(
            "DELETE FROM _sent WHERE vault = ? AND batch = ? AND place = ? AND at = ?", (vault, batch, place, at)
        )
        shown = None if value is None else collection.values.row_from_cbor(value)[0]
        record = Incoming(seq, key, rank, key_id, flags, shown, value if raw else None)
        entries.absorb(table, term, [record], claims=True)
        if not self._claimed(collection.number, key):
            entries.settle(table, key)
        return before.changes_to(entries.look(table, [key]))

    def recognise(self, collection: Collection, term: int, records: Sequence[Incoming]) -> Sequence[Incoming]:
        """The delivered records, without those that are this device's own sent writes.

        To be delivered is to be answered: the write has that position from now on, and `promote` does the rest. Within
        the caller's transaction.
        """
        execute, number = self._database.connection.execute, collection.number
        if not execute("SELECT EXISTS (SELECT 1 FROM _sent WHERE collection = ?)", (number,)).fetchone()[0]:
            return records
        author = execute("SELECT author FROM _vault WHERE id = ?", (collection.vault,)).fetchone()[0]
        mine: bytes = author.to_bytes(4, "big")
        seqs = (records[0].seq, records[-1].seq) if records else (0, 0)
        answered = set(
            execute(
                "SELECT seq, rank FROM _sent WHERE collection = ? AND term = ? AND seq BETWEEN ? AND ?",
                (number, term, *seqs),
            )
        )
        others = []
        for record in records:
            if (record.seq, record.rank) in answered:
                continue
            if record.rank[_AUTHOR] == mine:
                found = execute(
                    "UPDATE _sent SET term = ?, seq = ? WHERE collection = ? AND key = ? AND rank = ?",
                    (term, record.seq, number, record.key, record.rank),
                )
                if found.rowcount:
                    continue
            others.append(record)
        return others

    def stuck(self, collection: Collection) -> list[Stuck]:
        """The writes of a collection that were refused for good, by key."""
        found = self._database.connection.execute(
            "SELECT key, value, reason FROM _stuck WHERE collection = ? ORDER BY key", (collection.number,)
        )
        return [Stuck(*row) for row in found]

    def why_stuck(self, vault: int) -> str | None:
        """Why a write of the vault was refused for good; None if none was."""
        found = self._database.connection.execute(
            "SELECT reason FROM _stuck JOIN _collection AS c ON c.id = collection WHERE c.vault = ? LIMIT 1", (vault,)
        ).fetchone()
        return found[0] if found else None

    def set_aside(self, collection: Collection, key: str, reason: str) -> bool:
        """Move a waiting edit that cannot be sealed to the stuck ones, so that the others can go on."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO _stuck (collection, key, value, raw, reason)"
                " SELECT collection, key, value, raw, ? FROM _edit WHERE collection = ? AND key = ?",
                (reason, collection.number, key),
            )
            gone = connection.execute("DELETE FROM _edit WHERE collection = ? AND key = ?", (collection.number, key))
            return bool(gone.rowcount)

    def retry(self, collection: Collection, key: str) -> bool:
        """Put a stuck write back into the outbox. False if there is none of that key."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO _edit (vault, collection, key, value, raw)"
                " SELECT ?, collection, key, value, raw FROM _stuck WHERE collection = ? AND key = ?",
                (collection.vault, collection.number, key),
            )
            gone = connection.execute("DELETE FROM _stuck WHERE collection = ? AND key = ?", (collection.number, key))
            return bool(gone.rowcount)

    def discard(self, collection: Collection, key: str) -> list[Change]:
        """Give up a stuck write: the key shows what was sent before it, or what the log says."""
        entries, table = self._entries, collection.table
        with self._database.transaction() as connection:
            before = entries.look(table, [key])
            gone = connection.execute("DELETE FROM _stuck WHERE collection = ? AND key = ?", (collection.number, key))
            if not gone.rowcount:
                return []
            last = connection.execute(
                "SELECT value, raw FROM _sent WHERE collection = ? AND key = ? ORDER BY batch DESC LIMIT 1",
                (collection.number, key),
            ).fetchone()
            if last is None:
                entries.settle(table, key)
            else:
                value, raw = last
                row = None if value is None else collection.values.row_from_cbor(value)[0]
                entries.show(collection, [Edit(key, row, value, bool(raw))])
            return before.changes_to(entries.look(table, [key]))

    def waiting(self, vault: int) -> Waiting:
        """What of a vault is not part of the log, counted."""
        counts = self._database.connection.execute(
            "SELECT (SELECT count(*) FROM _edit WHERE vault = ?1),"
            " (SELECT count(*) FROM _sent WHERE vault = ?1 AND seq IS NULL),"
            " (SELECT count(*) FROM _sent WHERE vault = ?1 AND seq IS NOT NULL),"
            " (SELECT count(*) FROM _stuck JOIN _collection AS c ON c.id = collection WHERE c.vault = ?1),"
            " (SELECT count(*) FROM _quarantine JOIN _collection AS c ON c.id = collection WHERE c.vault = ?1)",
            (vault,),
        )
        return Waiting(*counts.fetchone())


def _misfit(number: int) -> RemoteFault:
    return RemoteFault(f"The relay's verdict on batch {number} does not fit what the batch holds")
