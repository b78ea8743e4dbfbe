"""Positions: how far a replica has come in each stream, under which term, and what it was told of that history."""

from collections.abc import Container, Sequence
from itertools import pairwise
from typing import NamedTuple

from sealwire_client.replica.database import Database
from sealwire_client.replica.errors import GapError
from sealwire_protocol.history import term_at
from sealwire_protocol.ids import NO_TERM, START, Position, Term, TermStart
from sealwire_protocol.limits import VERSION_TOP_MAX
from sealwire_protocol.lines import LostTerm


class Delivery(NamedTuple):
    """Where the records of a DELIVER belong: seqs `(prev, last]` under `term`, cleaned up to `cleaned_to`; tombstones
    up to `floor` were purged before they were read (R11). `goes_on`: what follows is of the same DELIVER."""

    term: Term
    prev: int
    last: int
    cleaned_to: int = 0
    floor: int = 0
    goes_on: bool = False


class Standing(NamedTuple):
    """How far a stream has come: `served` is the greatest (term, cleaned_to), `whole_from` the floor when the
    replica was last empty or reconciled (R10), `version_seen` the greatest version received or sealed (R2)."""

    cursor: Position
    served: Position
    whole_from: Position
    version_seen: int


class Pinned(NamedTuple):
    """What the relay tells of a stream as it was at one position, `pin`. `head`: how far it is known to reach.

    `present`: the relay's term on this connection. What it has answered under that since is not lost, however far.
    """

    pin: Position
    terms: tuple[TermStart, ...]
    head: int
    floor: int
    top: int
    cleaned_to: int
    present: Term = NO_TERM


def greatest_version(ranks: Sequence[bytes]) -> int:
    """The greatest version that steers this device's own (R2); 0: none. One above what any stream reaches does not:
    it would leave no greater one to write."""
    version = int.from_bytes(max(ranks, default=b"")[:8], "big")
    if version <= VERSION_TOP_MAX:
        return version
    return max((found for rank in ranks if (found := int.from_bytes(rank[:8], "big")) <= VERSION_TOP_MAX), default=0)


class Positions:
    """The positions of a replica's collections, by the collection's number."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def term_id(self, term: Term) -> int:
        """The local number of a term, given to it now if it is new. Within the caller's transaction."""
        execute = self._database.connection.execute
        found = execute("SELECT id FROM _term WHERE number = ? AND name = ?", term).fetchone()
        if found is None:
            found = execute("INSERT INTO _term (number, name) VALUES (?, ?) RETURNING id", term).fetchone()
        return int(found[0])

    def standing(self, collection: int) -> Standing:
        """Where a collection stands. Seq 0 always comes as START."""
        found = self._database.connection.execute(
            "SELECT c.number, c.name, cursor_seq, s.number, s.name, served_seq, f.number, f.name, floor_seq,"
            " version_seen FROM _collection AS o JOIN _term AS c ON c.id = cursor_term"
            " JOIN _term AS s ON s.id = served_term"
            " JOIN _term AS f ON f.id = floor_term WHERE o.id = ?",
            (collection,),
        ).fetchone()
        places = [Position(Term(*found[at : at + 2]), found[at + 2]) if found[at + 2] else START for at in (0, 3, 6)]
        return Standing(places[0], places[1], places[2], found[9])

    def told(self, collection: int, terms: Sequence[TermStart], floor: int) -> None:
        """Take in what SUBSCRIBED tells of a stream. One transaction."""
        with self._database.transaction():
            standing = self.standing(collection)
            if standing.cursor == START and standing.whole_from.seq < floor:
                # The replica is empty, so that what was forgotten below the floor does not concern it (R10).
                self.begin_whole(collection, term_at(terms, floor), floor)
            self._remember(collection, terms)

    def told_terms(self, collection: int) -> list[TermStart]:
        """The terms of the stream as the relay told them last, the oldest first."""
        found = self._database.connection.execute(
            "SELECT number, name, start FROM _told JOIN _term ON id = term WHERE collection = ? ORDER BY place",
            (collection,),
        )
        return [TermStart(Term(number, name), start) for number, name, start in found]

    def lost_terms(self, collection: int, known: Container[Term]) -> dict[Term, LostTerm]:
        """How the terms of the stream came about that are not known to the relay."""
        kept = self._database.connection.execute(
            "SELECT t.number, t.name, b.number, b.name, start FROM _lost_term AS l JOIN _term AS t ON t.id = l.term"
            " JOIN _term AS b ON b.id = l.before WHERE collection = ?",
            (collection,),
        )
        lost = {Term(*row[:2]): LostTerm(Term(*row[2:4]), row[4]) for row in kept}
        lost |= {term: LostTerm(before, start) for (before, _), (term, start) in pairwise(self.told_terms(collection))}
        return {term: how for term, how in lost.items() if term not in known}

    def _remember(self, collection: int, terms: Sequence[TermStart]) -> None:
        """Take in what terms the relay tells. How those came about that it has lost is kept while there are writes
        that may have to be given back."""
        connection = self._database.connection
        if self.told_terms(collection) != list(terms):
            lost = self.lost_terms(collection, {term for term, _ in terms})
            connection.execute("DELETE FROM _lost_term WHERE collection = ?", (collection,))
            connection.executemany(
                "INSERT INTO _lost_term SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM _sent WHERE collection = ?1)",
                [(collection, self.term_id(term), self.term_id(how[0]), how[1]) for term, how in lost.items()],
            )
            connection.execute("DELETE FROM _told WHERE collection = ?", (collection,))
            connection.executemany(
                "INSERT INTO _told (collection, place, term, start) VALUES (?, ?, ?, ?)",
                [(collection, place, self.term_id(term), start) for place, (term, start) in enumerate(terms)],
            )

    def stand_at(self, collection: int, pinned: Pinned) -> None:
        """Stand where the replica was compared with the relay: everything up to there is here, and nothing else of the
        relay's. Within the transaction that makes it so."""
        self._remember(collection, pinned.terms)
        pin, floor = pinned.pin, min(pinned.floor, pinned.pin.seq)
        self._database.connection.execute(
            "UPDATE _collection SET cursor_term = ?1, cursor_seq = ?2, served_term = ?1, served_seq = ?3,"
            " floor_term = ?4, floor_seq = ?5, version_seen = max(version_seen, ?6), dropped_to = 0 WHERE id = ?7",
            (
                self.term_id(pin.term),
                pin.seq,
                max(pin.seq, pinned.cleaned_to),
                self.term_id(term_at(pinned.terms, floor)),
                floor,
                pinned.top,
                collection,
            ),
        )

    def begin_whole(self, collection: int, term: Term, floor: int) -> None:
        """The replica is empty, and whole from this floor on (R10). Within the transaction that fills it."""
        self._database.connection.execute(
            "UPDATE _collection SET floor_term = ?, floor_seq = ? WHERE id = ? AND floor_seq < ?",
            (self.term_id(term), floor, collection, floor),
        )

    def has_forgotten(self, collection: int) -> bool:
        """True if the relay has purged tombstones which are not here either."""
        found = self._database.connection.execute(
            "SELECT floor_seq > 0 OR dropped_to > 0 FROM _collection WHERE id = ?", (collection,)
        )
        return bool(found.fetchone()[0])

    def forgets(self, collection: int, floor: int) -> bool:
        """True if tombstones up to a floor are still to be dropped."""
        if not floor:
            return False
        found = self._database.connection.execute(
            "SELECT dropped_to < ? FROM _collection WHERE id = ?", (floor, collection)
        )
        return bool(found.fetchone()[0])

    def dropped_to(self, collection: int) -> int:
        """The floor up to which tombstones were dropped since the replica was last reconciled; 0: none were."""
        found = self._database.connection.execute("SELECT dropped_to FROM _collection WHERE id = ?", (collection,))
        return int(found.fetchone()[0])

    def forgot(self, collection: int, floor: int) -> None:
        """Tombstones up to a floor were dropped, in the caller's transaction."""
        self._database.connection.execute("UPDATE _collection SET dropped_to = ? WHERE id = ?", (floor, collection))

    def begin(self, collection: int, delivery: Delivery) -> int | None:
        """The cursor before a delivery is applied, or None if it brings nothing new. Raises GapError."""
        found = self._database.connection.execute("SELECT cursor_seq FROM _collection WHERE id = ?", (collection,))
        cursor: int = found.fetchone()[0]
        if delivery.prev > cursor:
            raise GapError(
                f"A delivery begins after seq {delivery.prev} and the replica stands at {cursor}: records are missing; "
                "subscribe again at the cursor."
            )
        return cursor if delivery.last > cursor else None

    def advance(self, collection: int, delivery: Delivery, term: int, version: int) -> None:
        """Move the cursor to the end of a delivery. Within the transaction that applies its records."""
        execute = self._database.connection.execute
        execute(
            "UPDATE _collection SET cursor_term = ?, cursor_seq = ?, version_seen = max(version_seen, ?) WHERE id = ?",
            (term, delivery.last, version, collection),
        )
        if delivery.cleaned_to:
            served = self.standing(collection).served
            if (delivery.term.number, delivery.cleaned_to) > (served.term.number, served.seq):
                execute(
                    "UPDATE _collection SET served_term = ?, served_seq = ? WHERE id = ?",
                    (term, delivery.cleaned_to, collection),
                )

    def raise_version(self, collection: int, version: int) -> None:
        """Remember a version as seen. Within the caller's transaction."""
        self._database.connection.execute(
            "UPDATE _collection SET version_seen = max(version_seen, ?) WHERE id = ?", (version, collection)
        )

    def passed(self, collection: int) -> list[tuple[int, int]]:
        """For each term (by local number) the greatest seq of its history that the cursor has passed (R12)."""
        execute = self._database.connection.execute
        term, cursor = execute("SELECT cursor_term, cursor_seq FROM _collection WHERE id = ?", (collection,)).fetchone()
        if not cursor:
            return []
        told = execute("SELECT term, start FROM _told WHERE collection = ? ORDER BY place", (collection,)).fetchall()
        ends = {told[place][0]: told[place + 1][1] for place in range(len(told) - 1)}
        passed = {number: min(cursor, end) for number, end in ends.items()}
        if told and told[-1][0] not in passed:
            passed[told[-1][0]] = cursor
        passed[term] = min(cursor, ends.get(term, cursor))
        return list(passed.items())
