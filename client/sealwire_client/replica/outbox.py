"""The outbox: edits wait unsealed, sealed writes wait for a verdict, answered ones for the cursor, refused ones for
the user. An edit is in exactly one of these places until the log has it, or its user discards it.

    edit ── taken and sealed ──> sent ── answered ──> sent, answered ── cursor passes ──> entry
      ^                            │
      ├── another's came first ────┤
      └─ seal again, retry ── stuck <┘ refused for good
"""

from collections.abc import Collection as Container
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from sealwire_client.replica.aside import Aside
from sealwire_client.replica.claims import Claims
from sealwire_client.replica.database import Database
from sealwire_client.replica.edits import ALONE, REFILLED, STRICT, Edits, Mark, Taken
from sealwire_client.replica.entries import INTERNAL, Change, Entries
from sealwire_client.replica.positions import Positions
from sealwire_client.replica.refills import Decided, Refills
from sealwire_client.replica.reseals import Reseals
from sealwire_client.replica.sent import Refusing, SealedGroup, Sent
from sealwire_protocol.errors import Outcome, Refusal
from sealwire_protocol.ids import StreamId
from sealwire_protocol.messages import Appended, Refused, StreamKind

SEAL_AGAIN: Final = frozenset((Outcome.EPOCH_STALE, Outcome.SEAL_AGAIN, Outcome.CLONED, Outcome.MOVED))
"""Outcomes after which the same edits, sealed anew under a new number, can succeed."""

_OF_APPS: Final = f"collection NOT IN (SELECT id FROM _collection WHERE {INTERNAL})"

CONFLICT: Final = "conflict"
"""Why a strict write is stuck whose app was gone when the verdict came."""


class Answered(NamedTuple):
    """What a verdict did: writes committed, writes that wait to be sealed again, writes set aside, visible changes."""

    committed: int
    again: int
    stuck: int
    changes: tuple[tuple[int, Change], ...]
    winners: tuple[tuple[StreamId, int], ...] = ()
    """Streams in which another record came first, and its seq; 0: the relay holds none."""
    refused: tuple[tuple[int, str], ...] = ()
    """Strict writes (collection, key) that were refused."""
    lost: tuple[StreamId, ...] = ()
    """Streams that have to be compared with the relay's again, because records of theirs are not given back yet."""
    resealed: bool = False
    """Nothing was written by this batch: its records were sealed anew."""


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


class Place(Enum):
    """Where an edit stands."""

    DEVICE = "device"
    """Durable here, and to be sent."""
    RELAY = "relay"
    """Committed by the relay, or superseded by a later edit of this device that was."""
    REFUSED = "refused"
    """Refused for good: kept on this device, see `reason`."""


class Standing(NamedTuple):
    """What became of an edit. `reason`: why it was refused."""

    place: Place
    reason: str | None = None


class Outbox:
    """The outbox of a replica. Every method that changes something is one transaction, or part of the caller's."""

    def __init__(self, database: Database, entries: Entries, positions: Positions, claims: Claims) -> None:
        self._database, self._entries, self._positions = database, entries, positions
        self.edits = Edits(database, entries, claims)
        self.sent = Sent(database, entries, positions)
        self.aside = Aside(database, entries)
        self.refills = Refills(database, entries, positions, self.sent, self.aside)
        self.reseals = Reseals(database)

    def has_claims(self, collection: int) -> bool:
        """True if any row of a collection shows something that is not in the log."""
        found = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _edit WHERE collection = ?1) OR EXISTS (SELECT 1 FROM _sent WHERE"
            " collection = ?1) OR EXISTS (SELECT 1 FROM _stuck WHERE collection = ?1)",
            (collection,),
        )
        return bool(found.fetchone()[0])

    def store(self, taken: Taken, sealed: Sequence[SealedGroup]) -> bool:
        """Make a sealed batch durable, before its first byte is sent (R16), in one transaction.

        False, and nothing stored, if a delivery came in between that a sealed record would lose against: take and seal
        again. An edit of a key made in between stays, to be sent after this one.
        """
        with self._database.transaction():
            return self.sent.store(taken, sealed)

    def answer(
        self, vault: int, number: int, outcome: Outcome, appended: Sequence[Appended], refused: Sequence[Refused]
    ) -> Answered | None:
        """Take in the verdict on a batch, in one transaction. None if there is no such batch without one.

        Committed writes become entries when the cursor passes them (R12), here if it has. Of those that were refused
        because another record came first, edits wait to be merged and sealed again, strict writes are set aside. What a
        full vault has refused is set aside but for deletions among the rest, for which there may be room. After
        STALE_NUMBER writes are doubtful: they may be in the log, and wait for `settle_doubtful`. For refills see there.
        Raises RemoteFault if the verdict does not fit the batch; then it stays as it was.
        """
        with self._database.transaction():
            if not self.sent.awaits(vault, number):
                return None
            if self.refills.holds(vault, number):
                return self._answer_refill(vault, number, outcome, appended, refused)
            if self.reseals.holds(vault, number):
                return self._answer_reseal(vault, number, outcome, appended, refused)
            committed, winners = 0, list[tuple[StreamId, int]]()
            if outcome is Outcome.DONE:
                named = {(r.group, r.place): r for r in refused}
                committed = self.sent.commit(vault, number, appended, named)
                winners = self._winners(vault, number, named)
                writes = self.sent.withdraw(vault, number, named)
                again, stuck = self._conflicted(vault, writes, named)
            elif outcome in SEAL_AGAIN:
                writes = self.sent.withdraw(vault, number)
                again, stuck = self._conflicted(vault, writes, {}, outcome.name.lower())
            elif outcome is Outcome.STALE_NUMBER:
                writes, again, stuck = [], 0, 0
            else:
                writes = self.sent.withdraw(vault, number)
                smaller, rest = _parted(writes) if outcome is Outcome.QUOTA else ([], writes)
                again, _ = self._conflicted(vault, smaller, {})
                stuck = sum(self.aside.put(write, outcome.name.lower()) for write in rest)
            self.sent.finish(vault, number)
            changes = self._promoted(vault)
        strict = tuple((write.collection, write.edit.key) for write in writes if write.edit.n == STRICT)
        return Answered(committed, again, stuck, tuple(changes), tuple(winners), strict)

    def _answer_refill(
        self, vault: int, number: int, outcome: Outcome, appended: Sequence[Appended], refused: Sequence[Refused]
    ) -> Answered:
        committed, winners, lost = 0, list[tuple[StreamId, int]](), list[StreamId]()
        decided = Decided(0, 0, [])
        if outcome is Outcome.DONE:
            named = {(r.group, r.place): r for r in refused}
            committed = self.sent.commit(vault, number, appended, named)
            winners = self._winners(vault, number, named)
            decided = self.refills.decide(self.sent.withdraw(vault, number, named), named)
        elif outcome in SEAL_AGAIN or outcome is Outcome.STALE_NUMBER:
            lost = self.refills.lose(vault, number)
        else:
            decided = self.refills.refuse(self.sent.withdraw(vault, number), outcome)
        self.sent.finish(vault, number)
        changes = (*decided.changes, *self._promoted(vault))
        return Answered(committed, decided.again, decided.stuck, changes, tuple(winners), lost=tuple(lost))

    def _answer_reseal(
        self, vault: int, number: int, outcome: Outcome, appended: Sequence[Appended], refused: Sequence[Refused]
    ) -> Answered:
        winners = list[tuple[StreamId, int]]()
        if outcome is Outcome.DONE:
            self.reseals.accept(vault, number, appended, len(refused))
            winners = self._winners(vault, number, {(r.group, r.place): r for r in refused})
        self.reseals.finish(vault, number)
        self.sent.finish(vault, number)
        return Answered(0, 0, 0, (), tuple(winners), resealed=True)

    def settle_doubtful(self, vault: int, caught_up: Container[int]) -> list[tuple[int, Change]]:
        """Decide what became of doubtful writes of collections that have applied all that the relay had after the
        verdict, in one transaction. Returns the visible changes.

        What is in the log was recognised when it was delivered. A write of an open stream that lost, or would lose,
        against what stands there now is dropped; else edits wait to be sealed again, strict writes are set aside.
        """
        changes: list[tuple[int, Change]] = []
        with self._database.transaction():
            for rank, write in self.sent.withdraw_doubtful(vault, caught_up):
                collection, key = self._entries.opened[write.collection], write.edit.key
                held = self._entries.rank_of(collection.table, key)
                if collection.kind is StreamKind.GUARDED or held is None or held < rank:
                    self._conflicted(vault, [write], {}, Outcome.STALE_NUMBER.name.lower())
                    continue
                before = self._entries.look(collection.table, [key])
                if not self.sent.claimed(collection.number, key):
                    self._entries.settle(collection.table, key)
                found = before.changes_to(self._entries.look(collection.table, [key]))
                changes += [(collection.number, change) for change in found]
        return changes

    def _winners(
        self, vault: int, number: int, refused: Mapping[tuple[int, int], Refused]
    ) -> list[tuple[StreamId, int]]:
        found = self._database.connection.execute(
            "SELECT place, stream FROM _group WHERE vault = ? AND batch = ?", (vault, number)
        )
        streams = dict(found.fetchall())
        beaten = [
            r for r in refused.values() if r.reason is Refusal.CONFLICT or (r.reason is Refusal.SUPERSEDED and r.seq)
        ]
        return [(StreamId(streams[r.group]), r.seq) for r in beaten]

    def _conflicted(
        self,
        vault: int,
        writes: Sequence[Refusing],
        refused: Mapping[tuple[int, int], Refused],
        reason: str = CONFLICT,
    ) -> tuple[int, int]:
        """Let refused writes be edits again, with what they were based on. Returns how many are, and how many strict
        ones were set aside."""
        again = stuck = 0
        for write in writes:
            if write.edit.n == STRICT:
                stuck += self.aside.put(write, reason)
                continue
            verdict = refused.get((write.place, write.at))
            conflict = verdict is not None and verdict.reason is Refusal.CONFLICT
            again += self._put_back(vault, write, write.condition if conflict else None)
        return again, stuck

    def _put_back(self, vault: int, write: Refusing, condition: bytes | None) -> bool:
        """False if the write stands alone and the next edit of its key does too, and was made on it: then it stands for
        both."""
        edit, execute = write.edit, self._database.connection.execute
        tx = edit.tx
        if tx <= ALONE:
            following = execute(
                "SELECT n, tx, base FROM _edit WHERE collection = ? AND key = ? AND n > ? ORDER BY n LIMIT 1",
                (write.collection, edit.key, edit.n),
            ).fetchone()
            based = write.condition is None or (following and following[2] == edit.value)
            if following and ((following[1] <= ALONE and based) or not edit.n):
                stood_for = edit.n if edit.since is None else edit.since
                execute("UPDATE _edit SET base = ?, since = ? WHERE n = ?", (edit.base, stood_for, following[0]))
                return False
            tx = -edit.n if following else ALONE
        execute(
            "INSERT INTO _edit (vault, collection, refused, n, key, value, raw, tx, since, base)"
            " VALUES (?, ?, ?, nullif(?, 0), ?, ?, ?, ?, ?, ?)",
            (vault, write.collection, condition, edit.n, edit.key, edit.value, edit.raw, tx, edit.since, edit.base),
        )
        return True

    def _promoted(self, vault: int) -> list[tuple[int, Change]]:
        changes: list[tuple[int, Change]] = []
        for collection in self._entries.opened.values():
            if collection.vault == vault:
                # What the cursor has passed already was recognised when it was delivered.
                delivered = () if self._positions.has_forgotten(collection.number) else None
                changes += [(collection.number, change) for change in self.sent.promote(collection, delivered)]
        return changes

    def standing(self, mark: Mark) -> Standing:
        """What became of an edit, unless it was stuck and discarded."""
        execute, names = self._database.connection.execute, (mark.collection, mark.key)
        this = "collection = ?1 AND key = ?2 AND ?3 BETWEEN coalesce(since, n) AND n"
        reason = execute(f"SELECT reason FROM _stuck WHERE {this}", (*names, mark.n)).fetchone()
        if reason is not None:
            return Standing(Place.REFUSED, reason[0])
        here = execute(
            f"SELECT EXISTS (SELECT 1 FROM _edit WHERE {this})"
            f" OR EXISTS (SELECT 1 FROM _sent WHERE {this} AND seq IS NULL)"
            # What the relay has lost is not there again before it has taken it back.
            f" OR EXISTS (SELECT 1 FROM _sent WHERE collection = ?1 AND key = ?2 AND n = {REFILLED} AND seq IS NULL)",
            (*names, mark.n),
        )
        return Standing(Place.DEVICE if here.fetchone()[0] else Place.RELAY)

    def any_wait(self, vault: int) -> bool:
        """True if a vault has writes that are to be sent, answered or delivered. As `waiting`, without counting."""
        found = self._database.connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM _edit WHERE vault = ?1 AND {_OF_APPS})"
            f" OR EXISTS (SELECT 1 FROM _sent WHERE vault = ?1 AND {_OF_APPS})",
            (vault,),
        )
        return bool(found.fetchone()[0])

    def waiting(self, vault: int) -> Waiting:
        """What of a vault is not part of the log, counted."""
        counts = self._database.connection.execute(
            f"SELECT (SELECT count(*) FROM _edit WHERE vault = ?1 AND {_OF_APPS}),"
            f" (SELECT count(*) FROM _sent WHERE vault = ?1 AND seq IS NULL AND {_OF_APPS}),"
            f" (SELECT count(*) FROM _sent WHERE vault = ?1 AND seq IS NOT NULL AND {_OF_APPS}),"
            f" (SELECT count(*) FROM _stuck JOIN _collection AS c ON c.id = collection WHERE c.vault = ?1"
            f" AND {_OF_APPS}),"
            " (SELECT count(*) FROM _quarantine JOIN _collection AS c ON c.id = collection WHERE c.vault = ?1)",
            (vault,),
        )
        return Waiting(*counts.fetchone())


def _parted(writes: Sequence[Refusing]) -> tuple[Sequence[Refusing], Sequence[Refusing]]:
    """Deletions that may be sent without the rest, and the rest. If there are only deletions, all are the rest."""
    deletions, rest = list[Refusing](), list[Refusing]()
    for write in writes:
        (deletions if write.edit.value is None and write.edit.tx <= ALONE else rest).append(write)
    return (deletions, rest) if rest else ([], deletions)
