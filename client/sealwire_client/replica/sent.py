"""Sealed writes: stored before their first byte is sent, unanswered until a verdict, entries once the cursor passes."""

from collections.abc import Collection as Container
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sealwire_client.replica.claims import replaced
from sealwire_client.replica.database import Database
from sealwire_client.replica.edits import REFILLED, STRICT, Taken, TakenEdit, TakenGroup
from sealwire_client.replica.entries import Change, Collection, Edit, Entries, Incoming
from sealwire_client.replica.errors import ReplicaMisuse
from sealwire_client.replica.positions import Positions
from sealwire_client.replica.proofs import Proven
from sealwire_protocol.errors import Refusal, RemoteFault
from sealwire_protocol.ids import Position, Term
from sealwire_protocol.limits import PUSH_WINDOW
from sealwire_protocol.messages import ATOMIC, REFILL, Appended, Group, Refused

_AUTHOR: Final = slice(10, 14)
"""Where a packed rank holds its author."""

DOUBTFUL: Final = "s.seq IS NULL AND NOT EXISTS (SELECT 1 FROM _batch WHERE vault = s.vault AND number = s.batch)"
"""True of a sent write that has no place in the log, although its batch does not wait for a verdict any more."""


_TERMS_ANSWERED: Final = (
    "WITH RECURSIVE found (term) AS ("
    " SELECT min(term) FROM _sent WHERE collection = ?1 AND seq IS NOT NULL UNION ALL"
    " SELECT (SELECT min(term) FROM _sent AS s WHERE collection = ?1 AND seq IS NOT NULL AND s.term > found.term)"
    " FROM found WHERE term IS NOT NULL) SELECT term FROM found WHERE term IS NOT NULL"
)
"""The terms under which writes of a collection are answered, by one look at the index for each."""


class SealedGroup(NamedTuple):
    """A taken group, sealed: a condition for each record (none in open streams), the bytes to send, and (packed rank,
    key id, flags) of each record in order, and its proof (none if the collection is not signed)."""

    conditions: Sequence[bytes]
    records: bytes
    seals: Sequence[tuple[bytes, bytes, int]]
    proofs: Sequence[bytes] = ()


class StoredBatch(NamedTuple):
    """A batch without a verdict, to be sent with these very bytes."""

    number: int
    flags: int
    groups: tuple[Group, ...]


class Refusing(NamedTuple):
    """One sent write that was refused, with all that it needs to be an edit again."""

    place: int
    at: int
    collection: int
    condition: bytes | None
    edit: TakenEdit


class Sent:
    """The sealed writes of a replica. Every method is part of the caller's transaction."""

    def __init__(self, database: Database, entries: Entries, positions: Positions) -> None:
        self._database, self._entries, self._positions = database, entries, positions

    def store(self, taken: Taken, sealed: Sequence[SealedGroup]) -> bool:
        """Store a sealed batch. False, and nothing stored, if a delivery came in between that a sealed record would
        lose against."""
        execute = self._database.connection.execute
        moved = execute(
            "UPDATE _vault SET next_batch = next_batch + 1 WHERE id = ? AND next_batch = ?", (taken.vault, taken.number)
        )
        if not moved.rowcount or len(taken.groups) != len(sealed):
            raise ReplicaMisuse(f"batch {taken.number} is not the next one, or was not sealed as it was taken")
        if not all(self._would_win(group, seals) for group, seals in zip(taken.groups, sealed, strict=True)):
            execute("UPDATE _vault SET next_batch = ? WHERE id = ?", (taken.number, taken.vault))
            return False
        execute("INSERT INTO _batch VALUES (?, ?, ?)", (taken.vault, taken.number, taken.flags))
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
                b"".join(sealed.conditions),
                len(sealed.seals),
                sealed.records,
            ),
        )
        replaces: Sequence[bytes | None] = (None,) * len(group.edits)
        if sealed.conditions:
            table = self._entries.stored_table(group.collection)
            places = [self._entries.place_of(table, edit.key) for edit in group.edits]
            replaces = [replaced(*each) for each in zip(sealed.conditions, places, strict=True)]
        connection.executemany(
            "INSERT INTO _sent"
            " (vault, batch, place, at, collection, n, key, value, raw, tx, since, base, rank, key_id, flags,"
            " condition) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (taken.vault, taken.number, place, at, group.collection, *edit[:-1], *seal, each)
                for at, (edit, seal, each) in enumerate(zip(group.edits, sealed.seals, replaces, strict=True))
            ],
        )
        if sealed.proofs:
            proven = zip(group.edits, sealed.seals, sealed.proofs, strict=True)
            self._entries.proofs.add(
                group.collection, [Proven(edit.key, seal[0], proof) for edit, seal, proof in proven]
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

    def awaits(self, vault: int, number: int) -> bool:
        """True if there is such a batch without a verdict."""
        found = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _batch WHERE vault = ? AND number = ?)", (vault, number)
        )
        return bool(found.fetchone()[0])

    def commit(
        self, vault: int, number: int, appended: Sequence[Appended], refused: Mapping[tuple[int, int], Refused]
    ) -> int:
        """Give the accepted writes of a batch their positions. Returns how many. Raises RemoteFault."""
        connection = self._database.connection
        groups = connection.execute(
            "SELECT place, stream, count, length(conditions) FROM _group WHERE vault = ? AND batch = ?", (vault, number)
        ).fetchall()
        told = {group.stream: group for group in appended}
        known = {(place, at): bool(guarded) for place, _, count, guarded in groups for at in range(count)}
        if len(told) < len(appended) or not self._may_refuse(vault, number, known, refused):
            raise misfit(number)
        committed = 0
        for place, stream, count, _ in groups:
            accepted = [at for at in range(count) if (place, at) not in refused]
            group = told.pop(stream, None)
            if len(accepted) != (group.records if group else 0):
                raise misfit(number)
            if group:
                committed += len(accepted)
                term = self._positions.term_id(group.term)
                connection.executemany(
                    "UPDATE _sent SET term = ?, seq = ? WHERE vault = ? AND batch = ? AND place = ? AND at = ?",
                    [(term, group.first + step, vault, number, place, at) for step, at in enumerate(accepted)],
                )
        if told:
            raise misfit(number)
        return committed

    def _may_refuse(
        self,
        vault: int,
        number: int,
        known: Mapping[tuple[int, int], bool],
        refused: Mapping[tuple[int, int], Refused],
    ) -> bool:
        """False if no relay may refuse these of a batch's records. `known`: which of them name a condition."""
        (flags,) = self._database.connection.execute(
            "SELECT flags FROM _batch WHERE vault = ? AND number = ?", (vault, number)
        ).fetchone()
        conflicts = {at for at, record in refused.items() if record.reason is Refusal.CONFLICT}
        if flags & REFILL:
            if flags & ATOMIC and conflicts:
                return refused.keys() == known.keys()
            return refused.keys() <= known.keys() and all(r.reason is not Refusal.ATOMIC for r in refused.values())
        if any(record.reason is Refusal.SUPERSEDED for record in refused.values()):
            return False
        whole = not flags & ATOMIC or refused.keys() == known.keys()
        others = flags & ATOMIC or len(conflicts) == len(refused)
        return not refused or bool(whole and others and conflicts and all(known.get(at) for at in conflicts))

    def withdraw(
        self, vault: int, number: int, refused: Mapping[tuple[int, int], object] | None = None
    ) -> list[Refusing]:
        """Take refused writes of a batch (None: all) out of what was sent, in the order of their edits.

        What was delivered is in the log, whatever the verdict says."""
        execute = self._database.connection.execute
        rows = execute(
            "SELECT place, at, collection, condition, n, key, value, raw, tx, since, base FROM _sent"
            " WHERE vault = ? AND batch = ? AND seq IS NULL ORDER BY n, place, at",
            (vault, number),
        ).fetchall()
        found = [
            Refusing(place, at, collection, condition, TakenEdit(*edit))
            for place, at, collection, condition, *edit in rows
            if refused is None or (place, at) in refused
        ]
        self._database.connection.executemany(
            "DELETE FROM _sent WHERE vault = ? AND batch = ? AND place = ? AND at = ?",
            [(vault, number, row.place, row.at) for row in found],
        )
        return found

    def withdraw_doubtful(self, vault: int, collections: Container[int]) -> list[tuple[bytes, Refusing]]:
        """Take the doubtful writes of these collections (see `Outbox.answer`) out of what was sent, with their ranks,
        in the order of their edits; those of one transaction only together."""
        execute, marks = self._database.connection.execute, ", ".join("?" * len(collections))
        rows = execute(
            "SELECT batch, rank, place, at, collection, condition, n, key, value, raw, tx, since, base FROM _sent AS s"
            f" WHERE vault = ? AND {DOUBTFUL} AND collection IN ({marks}) AND NOT EXISTS"
            " (SELECT 1 FROM _sent AS o WHERE o.vault = s.vault AND o.tx > 0 AND o.tx = s.tx AND o.seq IS NULL"
            f" AND o.collection NOT IN ({marks})) ORDER BY n, place, at",
            (vault, *collections, *collections),
        ).fetchall()
        self._database.connection.executemany(
            "DELETE FROM _sent WHERE vault = ? AND batch = ? AND place = ? AND at = ?",
            [(vault, row[0], row[2], row[3]) for row in rows],
        )
        return [
            (rank, Refusing(place, at, collection, condition, TakenEdit(*edit)))
            for _, rank, place, at, collection, condition, *edit in rows
        ]

    def answered_at(self, collection: int) -> tuple[Position, ...]:
        """Where writes were answered that the cursor has not passed: the greatest position of each term (R12)."""
        found = self._database.connection.execute(
            "SELECT t.number, t.name, max(seq) FROM _sent JOIN _term AS t ON t.id = term"
            " WHERE collection = ? AND seq IS NOT NULL GROUP BY t.id ORDER BY t.number",
            (collection,),
        )
        return tuple(Position(Term(number, name), seq) for number, name, seq in found)

    def has_doubtful(self, vault: int) -> bool:
        """True if there are doubtful writes (see `Outbox.answer`)."""
        found = self._database.connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM _sent AS s WHERE vault = ? AND {DOUBTFUL})", (vault,)
        )
        return bool(found.fetchone()[0])

    def finish(self, vault: int, number: int) -> None:
        """Forget the bytes of a batch that has its verdict."""
        execute = self._database.connection.execute
        execute("DELETE FROM _group WHERE vault = ? AND batch = ?", (vault, number))
        execute("DELETE FROM _batch WHERE vault = ? AND number = ?", (vault, number))

    def promote(self, collection: Collection, delivered: Iterable[bytes] | None = None) -> list[Change]:
        """Turn answered writes that the cursor has passed into entries (R12), if no greater rank stands there.

        `delivered`: the ranks with which the cursor has passed them, if the relay has forgotten deletions: what is not
        among them was superseded, though what won may be gone. Returns what it changed for a watcher.
        """
        changes: list[Change] = []
        answered = self._database.connection.execute(_TERMS_ANSWERED, (collection.number,)).fetchall()
        if not answered:
            return changes
        for term, limit in self._positions.passed(collection.number):
            if (term,) not in answered:
                continue
            if delivered is not None:
                changes += self._let_superseded_go(collection, term, limit, frozenset(delivered))
            self._promote_plain(collection, term, limit)
            rest = self._database.connection.execute(
                "SELECT vault, batch, place, at, key, rank, key_id, flags, value, seq FROM _sent"
                " WHERE collection = ? AND term = ? AND seq <= ? ORDER BY seq",
                (collection.number, term, limit),
            ).fetchall()
            for row in rest:
                changes += self._promote_one(collection, term, row)
        return changes

    def _let_superseded_go(
        self, collection: Collection, term: int, limit: int, delivered: Container[bytes]
    ) -> list[Change]:
        passed = self._database.connection.execute(
            "SELECT batch, place, at, key, rank FROM _sent WHERE collection = ? AND term = ? AND seq <= ?",
            (collection.number, term, limit),
        ).fetchall()
        gone = [tuple(row[:4]) for row in passed if row[4] not in delivered]
        return self.let_go(collection, gone)

    def let_go(self, collection: Collection, superseded: Iterable[tuple[int, int, int, str]]) -> list[Change]:
        """Forget answered writes (batch, place, at, key) that the log has no more: their keys show what it says, unless
        the device has something else of them. Returns what that changed for a watcher."""
        changes: list[Change] = []
        for batch, place, at, key in superseded:
            before = self._entries.look(collection.table, [key])
            self._database.connection.execute(
                "DELETE FROM _sent WHERE vault = ? AND batch = ? AND place = ? AND at = ?",
                (collection.vault, batch, place, at),
            )
            self._uncover(collection, key)
            changes += before.changes_to(self._entries.look(collection.table, [key]))
        return changes

    def _promote_plain(self, collection: Collection, term: int, limit: int) -> None:
        """The usual case, all at once: nothing newer claims the key, and the write wins. Its row shows it already,
        unless it was strict."""
        table, number = collection.table, collection.number
        execute = self._database.connection.execute
        passed = f"s.collection = ? AND s.term = ? AND s.seq <= ? AND s.n <> {STRICT}"
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
        vault, batch, place, at, key, rank, key_id, flags, value, seq = row
        assert isinstance(key, str) and isinstance(rank, bytes) and isinstance(key_id, bytes) and isinstance(seq, int)
        assert isinstance(flags, int) and (value is None or isinstance(value, bytes))
        entries, table = self._entries, collection.table
        before = entries.look(table, [key])
        self._database.connection.execute(
            "DELETE FROM _sent WHERE vault = ? AND batch = ? AND place = ? AND at = ?", (vault, batch, place, at)
        )
        shown, kept = (None, None) if value is None else collection.read(value)
        record = Incoming(seq, key, rank, key_id, flags, shown, kept)
        entries.absorb(table, term, [record], claims=True)
        self._uncover(collection, key)
        return before.changes_to(entries.look(table, [key]))

    def _uncover(self, collection: Collection, key: str) -> None:
        """A write of the key has left the outbox: show what is beneath it, what the log says or a refill."""
        if not self.claimed(collection.number, key):
            self._entries.settle(collection.table, key)
            return
        found = self._database.connection.execute(
            "SELECT n, value, raw FROM _sent WHERE collection = ?1 AND key = ?2 AND NOT EXISTS"
            " (SELECT 1 FROM _edit WHERE collection = ?1 AND key = ?2) AND NOT EXISTS"
            f" (SELECT 1 FROM _stuck WHERE collection = ?1 AND key = ?2 AND n <> {STRICT}) AND n <> {STRICT}"
            f" ORDER BY n = {REFILLED}, rank DESC LIMIT 1",
            (collection.number, key),
        ).fetchone()
        if found is not None and found[0] == REFILLED:
            row = None if found[1] is None else collection.read(found[1])[0]
            self._entries.show(collection, [Edit(key, row, found[1], bool(found[2]))])

    def claimed(self, collection: int, key: str) -> bool:
        """True if this device has anything of the key that is not in the log; but a strict write, sent or stuck, is
        none: it shows nothing."""
        found = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1 AND key = ?2)"
            f" OR EXISTS (SELECT 1 FROM _sent WHERE collection = ?1 AND key = ?2 AND n <> {STRICT})"
            f" OR EXISTS (SELECT 1 FROM _stuck WHERE collection = ?1 AND key = ?2 AND n <> {STRICT})",
            (collection, key),
        )
        return bool(found.fetchone()[0])

    def recognise(self, collection: Collection, term: int, records: Sequence[Incoming]) -> Sequence[Incoming]:
        """The delivered records, without those that are this device's own sent writes.

        To be delivered is to be answered: the write has that position from now on, and `promote` does the rest.
        """
        execute, number = self._database.connection.execute, collection.number
        if not execute("SELECT EXISTS (SELECT 1 FROM _sent WHERE collection = ?)", (number,)).fetchone()[0]:
            return records
        author = execute("SELECT author FROM _vault WHERE id = ?", (collection.vault,)).fetchone()[0]
        mine: bytes = author.to_bytes(4, "big")
        former = (
            "SELECT EXISTS (SELECT 1 FROM _sent WHERE vault = ?1 AND batch < 1 AND seq IS NULL)"
            f" OR EXISTS (SELECT 1 FROM _batch WHERE vault = ?1 AND flags & {REFILL})"
        )
        any_author = bool(execute(former, (collection.vault,)).fetchone()[0])
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
            if any_author or record.rank[_AUTHOR] == mine:
                found = execute(
                    "UPDATE _sent SET term = ?, seq = ? WHERE collection = ? AND key = ? AND rank = ?",
                    (term, record.seq, number, record.key, record.rank),
                )
                if found.rowcount:
                    continue
            others.append(record)
        return others


def misfit(number: int) -> RemoteFault:
    """A verdict that cannot be the one on this batch."""
    return RemoteFault(f"The relay's verdict on batch {number} does not fit what the batch holds")
