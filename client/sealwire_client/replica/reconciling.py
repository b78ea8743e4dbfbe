"""Bringing a collection together with a relay whose log is not the one that its entries came from (R13).

`gather` names what the device holds, so that it can be compared; `settle` makes both sides one, in one transaction:
what the relay has is taken, what it has deleted meanwhile is dropped, what it has lost becomes a refill, and the
collection stands at the position at which it was compared. What agrees is left alone, save that a position which the
relay does not know becomes that one.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from sealwire_client.replica.boundaries import Boundaries
from sealwire_client.replica.database import Database
from sealwire_client.replica.edits import REFILLED, STRICT
from sealwire_client.replica.entries import Change, Collection, Edit, Entries, Incoming, Unopened
from sealwire_client.replica.forgetting import NOTHING_SAID, Forgetting
from sealwire_client.replica.outbox import Outbox
from sealwire_client.replica.positions import Pinned, Positions, greatest_version
from sealwire_client.replica.refills import Refill
from sealwire_client.replica.tables import Table
from sealwire_client.replica.values import Live
from sealwire_protocol.history import parting
from sealwire_protocol.ids import NO_TERM, TAG_BYTES, Position, Term, TermStart
from sealwire_protocol.lines import Line
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import SEQ_LAST, TOMBSTONE

SET_ASIDE: Final = 1 << 63
"""Places from here on are of records that could not be opened, plus their ids; those below are rows of entries."""

UNPLACED: Final = 0x80
"""A flag of an item that the device gathers: a tombstone that stands in a history which the relay has lost. It must be
learned where the relay has it, or it would outlive that one. So its rank is altered, and differs from the relay's."""

SEALED_AT_ONCE: Final = 500
"""Lost entries that are read and sealed before the next ones: bounds the memory."""

_PLACE: Final = Struct(">QB")
_GONE: Final = "({0}_seq > coalesce((SELECT seq FROM temp._end WHERE term = {0}_term), -1))"
"""True of a position that lies in a history which the relay does not know."""

TagOf = Callable[[str], bytes]
Part = tuple[Sequence[Incoming], Sequence[Unopened]]


class Gathered(NamedTuple):
    """Items (tag, rank, place, flags as `Gathering` takes them), and the place to go on after; None: that was all."""

    items: list[bytes]
    last: int | None


class Differing(NamedTuple):
    """A tag of which the two sides have different records: the device's place and rank, and the relay's rank; None: it
    has none."""

    place: int | None
    mine: bytes | None
    theirs: bytes | None


class Placed(NamedTuple):
    """A tombstone that both sides have: the device's place and rank, and the seq at which the relay has it."""

    place: int
    rank: bytes
    seq: int


class Lost(NamedTuple):
    """An entry that the relay has lost, with all that its record was made of. `value` None: a tombstone. `proof`: who
    stands for it, in a signed collection."""

    key: str
    value: bytes | None
    rank: bytes
    key_id: bytes
    flags: int
    proof: bytes = b""


Reseal = Callable[[Lost], bytes]
"""Makes the very bytes of a record that was received once (R17)."""


class Room(NamedTuple):
    """What one push to the relay may hold."""

    records_max: int
    bytes_max: int


class Settled(NamedTuple):
    """What a reconcile did: refills to be sent, entries dropped, records taken; `changes` for watchers, see Applied."""

    refills: int
    dropped: int
    taken: int
    changes: tuple[Change, ...] | None


class Reconciling:
    """Reconciles a replica's collections, in the writer's thread."""

    def __init__(
        self,
        database: Database,
        entries: Entries,
        positions: Positions,
        outbox: Outbox,
        forgetting: Forgetting,
        boundaries: Boundaries,
    ) -> None:
        self._database, self._entries, self._positions = database, entries, positions
        self._outbox, self._forgetting, self._boundaries = outbox, forgetting, boundaries

    def gather(
        self,
        collection: Collection,
        after: int,
        count: int,
        tag_of: TagOf,
        pinned: Pinned | None = None,
        told: Pinned | None = None,
    ) -> Gathered:
        """What the device holds of the log, claims of its own apart, from the first place above `after` (-1 at first).

        `pinned`: records that stand beyond it, in a history that the relay knows, take no part. `told`: what the relay
        has told of the stream, if that is to be reconciled: tombstones that it has lost are `UNPLACED`.
        """
        with self._database.transaction():
            known = pinned or told
            if known is not None:
                self._know(known)
            if after >= SET_ASIDE:
                return self._gather_set_aside(collection, after, count, pinned)
            gone = _GONE.format("")
            beyond = f" AND NOT (_seq > ? AND NOT {gone})" if pinned is not None else ""
            flags = "_flags" if told is None else f"iif(_flags & {TOMBSTONE} AND {gone}, _flags | {UNPLACED}, _flags)"
            rows = self._database.connection.execute(
                f"SELECT key, _rank, rowid, {flags} FROM {collection.table.name}"
                f" WHERE rowid > ? AND _rank IS NOT NULL{beyond} ORDER BY rowid LIMIT ?",
                (after, pinned.pin.seq, count) if pinned is not None else (after, count),
            ).fetchall()
            pack = _PLACE.pack
            items = [
                tag_of(key) + (altered(rank) if flags & UNPLACED else rank) + pack(place, flags)
                for key, rank, place, flags in rows
            ]
            return Gathered(items, rows[-1][2] if len(rows) == count else SET_ASIDE)

    def _gather_set_aside(self, collection: Collection, after: int, count: int, pinned: Pinned | None) -> Gathered:
        beyond = f" AND NOT (_seq > ? AND NOT {_GONE.format('')})" if pinned is not None else ""
        rows = self._database.connection.execute(
            "SELECT tag, rank, id, flags FROM (SELECT tag, rank, id, flags, term AS _term, seq AS _seq FROM _quarantine"
            f" WHERE collection = ? AND id > ? AND term > 0 AND length(tag) = {TAG_BYTES}) WHERE TRUE{beyond}"
            " ORDER BY id LIMIT ?",
            (collection.number, after - SET_ASIDE, *((pinned.pin.seq,) if pinned is not None else ()), count),
        ).fetchall()
        items = [tag + rank + _PLACE.pack(SET_ASIDE + place, flags) for tag, rank, place, flags in rows]
        return Gathered(items, SET_ASIDE + rows[-1][2] if len(rows) == count else None)

    def reaches_beyond(self, collection: Collection, pinned: Pinned) -> bool:
        """True if records stand beyond the pin in a history that the relay knows: see `gather`."""
        with self._database.transaction() as connection:
            self._know(pinned)
            beyond = f"_seq > ?1 AND NOT {_GONE.format('')}"
            found = connection.execute(
                f"SELECT EXISTS (SELECT 1 FROM {collection.table.name} WHERE {beyond}) OR EXISTS (SELECT 1 FROM"
                " (SELECT term AS _term, seq AS _seq FROM _quarantine WHERE collection = ?2 AND term > 0)"
                f" WHERE {beyond})",
                (pinned.pin.seq, collection.number),
            )
            return bool(found.fetchone()[0])

    def settle(
        self,
        collection: Collection,
        cursor: Position,
        pinned: Pinned,
        differing: Sequence[Differing],
        records: Iterable[Part],
        reseal: Reseal,
        room: Room,
        placed: Sequence[Placed] = (),
    ) -> Settled | None:
        """Make both sides one, in one transaction (R13). `records` are the relay's of all `differing` tags that it has
        any of, opened, in any order. None, and nothing done, if the replica has changed since it was gathered, when it
        stood at `cursor`: compare again. Raises what `records` and `reseal` raise; then nothing is done either.
        """
        number, table = collection.number, collection.table
        with self._database.transaction():
            if self._positions.standing(number).cursor != cursor:
                return None
            self._positions.term_id(pinned.pin.term)
            self._know(pinned)
            self._place_back(collection, pinned)
            self._stage(differing)
            if not self._is_as_gathered(table):
                return None
            self._choose(collection)
            refills = self._refill(collection, pinned, reseal, room)
            taken, greatest = self._take(collection, pinned, records)
            dropped = self._drop(table)
            self._settle_set_aside(collection, pinned)
            self._place(table, pinned, placed)
            self._move(table, pinned)
            self._positions.stand_at(number, pinned)
            self._positions.raise_version(number, greatest)
            # What was refused in the history that is lost may be taken in this one.
            self._database.connection.execute("UPDATE _edit SET refused = NULL WHERE collection = ?", (number,))
            changes = self._let_go(collection, pinned) + self._outbox.sent.promote(collection)
            self._forgetting.forget(table, pinned.floor)
            self._entries.proofs.sweep(number, table.name)
            self._boundaries.begin_anew(number, cursor.seq if self.reaches_beyond(collection, pinned) else 0)
        return Settled(refills, dropped, taken, None if differing else tuple(changes))

    # --- what is known, and what is to become of what

    def _know(self, pinned: Pinned) -> None:
        """Keep at hand where each term's history ends, as the relay tells it (R7)."""
        connection = self._database.connection
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS _end (term INTEGER PRIMARY KEY, seq INTEGER NOT NULL)")
        connection.execute("DELETE FROM temp._end")
        connection.executemany(
            "INSERT INTO temp._end SELECT id, ? FROM _term WHERE number = ? AND name = ?",
            [(end, *term) for term, end in (_ends(pinned) | _open_end(pinned)).items()],
        )

    def _place_back(self, collection: Collection, pinned: Pinned) -> None:
        """Let what stands under a lost term, but was written before it, stand where it was written.

        A delivery is of the newest term, whenever its records were written. Where that term is lost, they are not, up
        to where the two histories part: the relay has superseded or deleted what it does not have of them.
        """
        told = self._positions.told_terms(collection.number)
        common, until = parting(_line(told), pinned)
        known = {term for term, _ in pinned.terms}
        lost = json.dumps([self._positions.term_id(term) for term, _ in told if term not in known])
        of_it = f"collection = {collection.number}"
        for stored, which, term, seq in (
            (collection.table.name, "TRUE", "_term", "_seq"),
            ("_sent", of_it, "term", "seq"),
            ("_quarantine", of_it, "term", "seq"),
        ):
            self._database.connection.execute(
                f"UPDATE {stored} SET {term} = ? WHERE {which} AND {seq} <= ? AND {term} IN"
                " (SELECT value FROM json_each(?))",
                (self._positions.term_id(common), until, lost),
            )

    def _stage(self, differing: Sequence[Differing]) -> None:
        """Lay out what differs: rows of entries by their place, records set aside by minus their id, others without."""
        connection = self._database.connection
        for name in ("_differing", "_lost"):
            connection.execute(f"DROP TABLE IF EXISTS temp.{name}")
        connection.execute("CREATE TEMP TABLE _differing (place INTEGER, mine BLOB, theirs BLOB)")
        connection.executemany(
            "INSERT INTO temp._differing VALUES (?, ?, ?)",
            [
                (None if place is None else place if place < SET_ASIDE else SET_ASIDE - place, mine, theirs)
                for place, mine, theirs in differing
            ],
        )
        connection.execute("CREATE INDEX temp._differing_place ON _differing (place) WHERE place IS NOT NULL")
        connection.execute("CREATE INDEX temp._differing_theirs ON _differing (theirs) WHERE theirs IS NOT NULL")
        connection.execute("CREATE TEMP TABLE _lost (place INTEGER PRIMARY KEY)")

    def _is_as_gathered(self, table: Table) -> bool:
        found = self._database.connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM temp._differing AS d LEFT JOIN {table.name} AS c ON c.rowid = d.place"
            " WHERE d.place >= 0 AND c._rank IS NOT d.mine) OR EXISTS (SELECT 1 FROM temp._differing AS d"
            " WHERE d.place < 0 AND NOT EXISTS (SELECT 1 FROM _quarantine AS q WHERE q.id = -d.place))"
        )
        return not found.fetchone()[0]

    def _choose(self, collection: Collection) -> None:
        """Choose the entries to give back. A greater rank that the relay has beats a lost one in an open stream; in a
        guarded one the relay decides (R14)."""
        beaten = "" if collection.kind is StreamKind.GUARDED else " AND (d.theirs IS NULL OR d.theirs < d.mine)"
        self._database.connection.execute(
            f"INSERT INTO temp._lost SELECT d.place FROM temp._differing AS d JOIN {collection.table.name} AS c"
            f" ON c.rowid = d.place WHERE d.place >= 0 AND {_GONE.format('c.')}{beaten}"
        )

    # --- giving back

    def _refill(self, collection: Collection, pinned: Pinned, reseal: Reseal, room: Room) -> int:
        """Make refills of what is lost, and leave of it what the device claims: nothing is said of it by the log."""
        table, execute = collection.table, self._database.connection.execute
        lost_terms = self._positions.lost_terms(collection.number, {term for term, _ in pinned.terms})
        answered = self._withdraw_answered(collection)
        better = {refill.key: refill for refill in answered}

        def record_of(lost: Lost) -> bytes:
            return reseal(lost._replace(proof=self._entries.proofs.of(collection.number, lost.key, lost.rank)))

        def refills() -> Iterator[Refill]:
            for lost, raw, held, hidden in self._lost(collection):
                mine = better.get(lost.key)
                if mine is not None and mine.rank > lost.rank:
                    # All that the lost one had changed is in this record alone: it is merged from nothing.
                    better[lost.key] = mine._replace(base=None)
                    continue
                better.pop(lost.key, None)
                if hidden:
                    self._show_again(collection, lost)
                yield Refill(lost.key, lost.value, raw, lost.rank, lost.key_id, lost.flags, held, record_of(lost))
            for refill in better.values():
                again = Lost(refill.key, refill.value, refill.rank, refill.key_id, refill.flags)
                yield refill._replace(record=record_of(again))

        count = self._outbox.refills.store(collection.number, refills(), lost_terms, pinned.pin, *room)
        chosen = "SELECT place FROM temp._lost"
        hidden = f"SELECT key FROM {table.name} WHERE rowid IN ({chosen})"
        execute(f"DELETE FROM {table.shadow} WHERE key IN ({hidden})")
        execute(f"UPDATE {table.name} SET _local = 1, {NOTHING_SAID} WHERE rowid IN ({chosen})")
        return count

    def _show_again(self, collection: Collection, lost: Lost) -> None:
        """Show a lost entry again that was hidden by a claim, now that nothing hides it but what it had beaten."""
        hidden = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1 AND key = ?2) OR EXISTS"
            f" (SELECT 1 FROM _sent WHERE collection = ?1 AND key = ?2 AND n NOT IN ({STRICT}, {REFILLED})) OR EXISTS"
            f" (SELECT 1 FROM _stuck WHERE collection = ?1 AND key = ?2 AND n <> {STRICT})",
            (collection.number, lost.key),
        ).fetchone()[0]
        if not hidden:
            row, kept = (None, None) if lost.value is None else collection.read(lost.value)
            self._entries.show(collection, [Edit(lost.key, row, lost.value, kept is not None)])

    def _lost(self, collection: Collection) -> Iterator[tuple[Lost, bool, Position, bool]]:
        """The chosen entries with what the log said of them, and whether something else is shown in their place. What
        is on its way back already is passed over: it is given back once."""
        table, execute = collection.table, self._database.connection.execute
        log = "c._local, c.key, c._rank, c._key_id, c._flags, t.number, t.name, c._seq"
        columns = [f'."{column.name}"' for column in collection.columns]
        shown, hidden = ("".join(f", {of}{column}" for column in columns) for of in "cs")
        page = (
            f"SELECT {log}, c._live, c._raw{shown} FROM {table.name} AS c JOIN _term AS t ON t.id = c._term"
            " WHERE c.rowid IN ({0}) AND c._local = 0 AND {1} UNION ALL"
            f" SELECT {log}, s._live, s._raw{hidden} FROM {table.name} AS c JOIN _term AS t ON t.id = c._term"
            f" JOIN {table.shadow} AS s ON s.key = c.key WHERE c.rowid IN ({{0}}) AND c._local = 1 AND {{1}}"
        ).format(
            "SELECT place FROM temp._lost WHERE place BETWEEN ?1 AND ?2",
            "NOT EXISTS (SELECT 1 FROM _sent AS o WHERE o.collection = ?3 AND o.key = c.key AND o.rank = c._rank)",
        )
        places = f"SELECT place FROM temp._lost WHERE place > ? ORDER BY place LIMIT {SEALED_AT_ONCE}"
        last = -1
        while found := execute(places, (last,)).fetchall():
            last = found[-1][0]
            for local, key, rank, key_id, flags, term, name, seq, live, kept, *row in execute(
                page, (found[0][0], last, table.number)
            ).fetchall():
                value = collection.values.cbor_from_row(tuple(row), kept) if live != Live.TOMBSTONE else None
                raw = isinstance(kept, bytes)
                yield Lost(key, value, rank, key_id, flags), raw, Position(Term(term, name), seq), bool(local)

    def _withdraw_answered(self, collection: Collection) -> list[Refill]:
        """Take out what was answered at positions that are lost (R12), unless the relay has it. Returns the greatest of
        each key. A strict write was not shown before; from now on it is, as the entry that it had become."""
        execute, number = self._database.connection.execute, collection.number
        rows = execute(
            "SELECT s.batch, s.place, s.at, s.key, s.value, s.raw, s.rank, s.key_id, s.flags, t.number, t.name, s._seq,"
            " s.base FROM (SELECT *, term AS _term, seq AS _seq FROM _sent WHERE collection = ?) AS s"
            f" JOIN _term AS t ON t.id = s._term WHERE s._seq IS NOT NULL AND {_GONE.format('s.')}"
            " AND s.rank NOT IN (SELECT theirs FROM temp._differing WHERE theirs IS NOT NULL) ORDER BY s.rank",
            (number,),
        ).fetchall()
        found: dict[str, Refill] = {}
        for batch, place, at, key, value, raw, rank, key_id, flags, term, name, seq, base in rows:
            sent = collection.vault, batch, place, at
            execute("DELETE FROM _sent WHERE vault = ? AND batch = ? AND place = ? AND at = ?", sent)
            held = Position(Term(term, name), seq)
            found[key] = Refill(key, value, bool(raw), rank, key_id, flags, held, b"", base)
        for key, refill in found.items():
            if not self._outbox.sent.claimed(number, key):
                row, kept = (None, None) if refill.value is None else collection.read(refill.value)
                self._entries.show(collection, [Edit(key, row, refill.value, kept is not None)])
        return list(found.values())

    # --- taking, dropping, moving

    def _take(self, collection: Collection, pinned: Pinned, records: Iterable[Part]) -> tuple[int, int]:
        """Take in the relay's records, also lesser ones than those that stand there, which are superseded. Returns how
        many, and their greatest version."""
        table, execute = collection.table, self._database.connection.execute
        replaced = (
            f"SELECT d.place FROM temp._differing AS d JOIN {table.name} AS c ON c.rowid = d.place WHERE d.place >= 0"
            " AND (d.theirs IS NULL OR d.theirs < d.mine) AND c._rank IS NOT NULL"
        )
        execute(f"DELETE FROM {table.shadow} WHERE key IN (SELECT key FROM {table.name} WHERE rowid IN ({replaced}))")
        execute(f"UPDATE {table.name} SET {NOTHING_SAID} WHERE rowid IN ({replaced})")
        term, count, greatest = self._positions.term_id(pinned.pin.term), 0, 0
        claims = self._outbox.has_claims(table.number)
        for opened, unopened in records:
            count += len(opened)
            ranks = [record.rank for record in opened] + [record.rank for record in unopened if record.sealed]
            greatest = max(greatest, greatest_version(ranks))
            others = self._outbox.sent.recognise(collection, term, sorted(opened, key=lambda record: record.seq))
            self._entries.absorb(table, term, others, claims)
            self._entries.prove(collection, others)
            self._entries.quarantine(collection, term, unopened)
        return count, greatest

    def _drop(self, table: Table) -> int:
        """Drop the entries of which the relay has nothing, and which it has not lost."""
        return self._entries.drop(table, "SELECT place FROM temp._differing WHERE place >= 0")

    def _let_go(self, collection: Collection, pinned: Pinned) -> list[Change]:
        """Forget answered writes that the relay has at another position than the one that it has lost, and those up to
        the pin in a history that it knows of which it has something else or nothing: they were superseded, also by
        deletions that it has forgotten."""
        gone, theirs = _GONE.format("s."), "SELECT theirs FROM temp._differing WHERE theirs IS NOT NULL"
        said = f"EXISTS (SELECT 1 FROM {collection.table.name} AS c WHERE c.key = s.key AND c._rank = s.rank)"
        done = self._database.connection.execute(
            "SELECT batch, place, at, key FROM (SELECT *, term AS _term, seq AS _seq FROM _sent WHERE collection = ?)"
            f" AS s WHERE s._seq IS NOT NULL AND iif({gone}, {said},"
            f" s._seq <= ? AND s.rank NOT IN ({theirs}) AND NOT {said})",
            (collection.number, pinned.pin.seq),
        ).fetchall()
        return self._outbox.sent.let_go(collection, done)

    def _settle_set_aside(self, collection: Collection, pinned: Pinned) -> None:
        """Records that could not be opened: superseded ones are dropped. A lost one is kept and not given back, for it
        may be no record at all; who can open it does that."""
        execute, number = self._database.connection.execute, collection.number
        mine = "id IN (SELECT -place FROM temp._differing WHERE place < 0 AND (theirs IS NULL OR theirs < mine))"
        gone = "seq > coalesce((SELECT e.seq FROM temp._end AS e WHERE e.term = _quarantine.term), -1)"
        execute(f"UPDATE _quarantine SET term = 0 WHERE collection = ? AND {mine} AND {gone}", (number,))
        execute(f"DELETE FROM _quarantine WHERE collection = ? AND {mine} AND term > 0", (number,))
        execute(
            f"UPDATE _quarantine SET term = ?, seq = ? WHERE collection = ? AND term > 0 AND {gone}",
            (self._positions.term_id(pinned.pin.term), pinned.pin.seq, number),
        )

    def _place(self, table: Table, pinned: Pinned, placed: Sequence[Placed]) -> None:
        """Let tombstones that agree stand where the relay has them: so both are dropped at once (R11)."""
        term = self._positions.term_id(pinned.pin.term)
        self._database.connection.executemany(
            f"UPDATE {table.name} SET _term = ?, _seq = ? WHERE rowid = ? AND _rank = ? AND {_GONE.format('')}",
            [(term, seq, place, rank) for place, rank, seq in placed],
        )

    def _move(self, table: Table, pinned: Pinned) -> None:
        """Let entries that agree stand at the pin, if the relay does not know the position where they stood."""
        self._database.connection.execute(
            f"UPDATE {table.name} SET _term = ?, _seq = ? WHERE _rank IS NOT NULL AND {_GONE.format('')}",
            (self._positions.term_id(pinned.pin.term), pinned.pin.seq),
        )


def altered(rank: bytes) -> bytes:
    """A rank that is no other record's; altered again, it is what it was."""
    return rank[:-1] + bytes((rank[-1] ^ 1,))


def _ends(pinned: Pinned) -> dict[Term, int]:
    """Where each term's history ends at the relay (R7)."""
    ends = [start for _, start in pinned.terms[1:]] + [max(pinned.head, pinned.pin.seq)]
    return {term: end for (term, _), end in zip(pinned.terms, ends, strict=False)}


def _open_end(pinned: Pinned) -> dict[Term, int]:
    """The present term goes on while things are compared, unless another one has begun since."""
    ended = {term for term, _ in pinned.terms[:-1]}
    return {} if pinned.present in ended or pinned.present == NO_TERM else {pinned.present: SEQ_LAST}


def _line(told: Sequence[TermStart]) -> Line:
    """The line of whatever was to come in the history that was told."""
    ends = [start for _, start in told[1:]] + [SEQ_LAST]
    return tuple(Position(term, end) for (term, _), end in zip(reversed(told), reversed(ends), strict=False))
