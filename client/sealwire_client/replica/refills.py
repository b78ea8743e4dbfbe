"""Refills: records that were received once, that the relay has lost, and that are given back to it (R14).

They are sent writes like others, in batches of their own, each with the position at which it was held in the place of
a condition. Their rows show them all the while; what the log says beneath is what the relay has now. They leave the
outbox by their verdict alone: as entries again, or as what became of them meanwhile.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sealwire_client.replica.aside import Aside
from sealwire_client.replica.database import Database
from sealwire_client.replica.edits import ALONE, REFILLED, STRICT, TakenEdit
from sealwire_client.replica.entries import Change, Entries
from sealwire_client.replica.positions import Positions
from sealwire_client.replica.sent import Refusing, Sent
from sealwire_protocol.errors import Outcome, Refusal
from sealwire_protocol.ids import START, Position, StreamId, Term
from sealwire_protocol.limits import LOST_TERMS_MAX
from sealwire_protocol.lines import LostTerm, decode_line, encode_held, encode_line
from sealwire_protocol.messages import ATOMIC, REFILL, Refused, StreamKind

GIVEN_BACK_LATE: Final = "given back late"
"""Why a strict entry is set aside: it was lost, and another write came before it was given back."""

STRICT_POLICY: Final = "strict"

HELD_TERMS_MAX: Final = LOST_TERMS_MAX // 4
"""Terms in which the records of one batch were held: there must be room to tell what came before each."""

HELD_BYTES: Final = 11
"""What it takes to say where one record was held, at most."""


class Refill(NamedTuple):
    """One lost record: the entry that it made, where it was held, and its very bytes. `base`: the value before it, as
    far as that is known."""

    key: str
    value: bytes | None
    raw: bool
    rank: bytes
    key_id: bytes
    flags: int
    held: Position
    record: bytes
    base: bytes | None = None


class Decided(NamedTuple):
    """What became of refused refills: edits to be merged, writes set aside, visible changes."""

    again: int
    stuck: int
    changes: list[tuple[int, Change]]


class Refills:
    """The refills of a replica. Every method is part of the caller's transaction."""

    def __init__(self, database: Database, entries: Entries, positions: Positions, sent: Sent, aside: Aside) -> None:
        self._database, self._entries, self._positions = database, entries, positions
        self._sent, self._aside = sent, aside

    def store(
        self,
        collection: int,
        refills: Iterable[Refill],
        lost: Mapping[Term, LostTerm],
        pin: Position,
        records_max: int,
        bytes_max: int,
    ) -> int:
        """Store lost records of one collection, each of another key, in as many batches as they need. Returns how many
        they are. Those of a strict collection are given back together or not at all, as far as they fit into one, and
        only upon what the relay had at the `pin`, where they were found to be all that it lacks.

        `lost`: how the terms that the relay does not know came about."""
        execute = self._database.connection.execute
        vault, stream, policy = execute(
            "SELECT vault, stream, policy FROM _collection WHERE id = ?", (collection,)
        ).fetchone()
        flags = REFILL | ATOMIC if policy == STRICT_POLICY else REFILL
        batch: list[Refill] = []
        terms: set[Term] = set()
        stored = size = 0

        def flush() -> None:
            held = encode_held([refill.held for refill in batch], lost, pin if flags & ATOMIC else START)
            self._store(vault, stream, collection, flags, batch, held)
            batch.clear()
            terms.clear()

        for refill in refills:
            size += HELD_BYTES + len(refill.record)
            full = len(batch) == records_max or len(terms | {refill.held.term}) > HELD_TERMS_MAX
            if batch and (full or size > bytes_max):
                flush()
                size = HELD_BYTES + len(refill.record)
            batch.append(refill)
            terms.add(refill.held.term)
            stored += 1
        if batch:
            flush()
        return stored

    def _store(
        self, vault: int, stream: bytes, collection: int, flags: int, batch: Sequence[Refill], held: bytes
    ) -> None:
        connection = self._database.connection
        (number,) = connection.execute(
            "UPDATE _vault SET next_batch = next_batch + 1 WHERE id = ? RETURNING next_batch - 1", (vault,)
        ).fetchone()
        connection.execute("INSERT INTO _batch VALUES (?, ?, ?)", (vault, number, flags))
        connection.execute(
            "INSERT INTO _group (vault, batch, place, stream, conditions, count, records) VALUES (?, ?, 0, ?, ?, ?, ?)",
            (
                vault,
                number,
                stream,
                held,
                len(batch),
                b"".join([refill.record for refill in batch]),
            ),
        )
        connection.executemany(
            "INSERT INTO _sent (vault, batch, place, at, collection, n, key, value, raw, rank, key_id, flags, base,"
            f" condition) VALUES (?, ?, 0, ?, ?, {REFILLED}, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(vault, number, at, collection, *r[:6], r.base, encode_line((r.held,))) for at, r in enumerate(batch)],
        )

    def holds(self, vault: int, number: int) -> bool:
        """True if a batch without a verdict is a refill."""
        found = self._database.connection.execute(
            "SELECT flags FROM _batch WHERE vault = ? AND number = ?", (vault, number)
        ).fetchone()
        return bool(found[0] & REFILL)

    def together_await_verdict(self, collection: int) -> bool:
        """True if refills that are made together or not at all have no verdict yet. Only with it is known what else of
        their collection has to be given back with them, should the relay have lost more since."""
        found = self._database.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM _sent AS s JOIN _batch AS b ON b.vault = s.vault AND b.number = s.batch"
            " WHERE s.collection = ?1 AND b.flags & ?2 = ?2)",
            (collection, REFILL | ATOMIC),
        )
        return bool(found.fetchone()[0])

    def decide(self, writes: Sequence[Refusing], refused: Mapping[tuple[int, int], Refused]) -> Decided:
        """Let refills go that were withdrawn because the relay does not take them. Superseded ones show what the log
        says. Where a write came first whose author knew nothing of them, they are merged with it, or, if their
        collection is strict, set aside."""
        decided = Decided(0, 0, [])
        for write in writes:
            kind, policy = self._database.connection.execute(
                "SELECT kind, policy FROM _collection WHERE id = ?", (write.collection,)
            ).fetchone()
            if refused[write.place, write.at].reason is Refusal.SUPERSEDED or kind != StreamKind.GUARDED:
                decided.changes.extend(self._shown(write))
            elif policy == STRICT_POLICY:
                decided = self._put_aside(decided, write, GIVEN_BACK_LATE)
            else:
                decided = decided._replace(again=decided.again + self._edit(write))
        return decided

    def refuse(self, writes: Sequence[Refusing], outcome: Outcome) -> Decided:
        """Let all refills of a batch go that the relay has refused as a whole. A device that may not write gives
        nothing back, and shows what the log says; else they are set aside."""
        decided = Decided(0, 0, [])
        for write in writes:
            if outcome is Outcome.NOT_A_WRITER:
                decided.changes.extend(self._shown(write))
            else:
                decided = self._put_aside(decided, write, outcome.name.lower())
        return decided

    def lose(self, vault: int, number: int) -> list[StreamId]:
        """The verdict on a batch says nothing of its records: they stand where the relay has lost them, as writes that
        were answered there. Returns the streams that must be compared again, which makes them refills anew."""
        execute = self._database.connection.execute
        rows = execute(
            "SELECT at, condition, stream FROM _sent AS s JOIN _collection AS c ON c.id = s.collection"
            " WHERE s.vault = ? AND batch = ? AND seq IS NULL",
            (vault, number),
        ).fetchall()
        for at, condition, _ in rows:
            (held,) = decode_line(condition)
            execute(
                "UPDATE _sent SET term = ?, seq = ? WHERE vault = ? AND batch = ? AND at = ?",
                (self._positions.term_id(held.term), held.seq, vault, number, at),
            )
        return list(dict.fromkeys(StreamId(stream) for _, _, stream in rows))

    def _edit(self, write: Refusing) -> bool:
        """Make a lost entry an edit; one that waits stands for it, for it was made on top of it. True if it is new."""
        edit, execute = write.edit, self._database.connection.execute
        if self._follow(write):
            return False
        execute(
            "INSERT INTO _edit (vault, collection, key, value, raw, tx, base)"
            f" SELECT vault, id, ?, ?, ?, {ALONE}, ? FROM _collection WHERE id = ?",
            (edit.key, edit.value, edit.raw, edit.base, write.collection),
        )
        return True

    def _follow(self, write: Refusing) -> bool:
        """Let the oldest edit of the key change all that the lost entry had changed. False if there is none."""
        found = self._database.connection.execute(
            "UPDATE _edit SET base = ?1, refused = NULL"
            " WHERE n = (SELECT min(n) FROM _edit WHERE collection = ?2 AND key = ?3)",
            (write.edit.base, write.collection, write.edit.key),
        )
        return bool(found.rowcount)

    def _put_aside(self, decided: Decided, write: Refusing, reason: str) -> Decided:
        (policy,) = self._database.connection.execute(
            "SELECT policy FROM _collection WHERE id = ?", (write.collection,)
        ).fetchone()
        if policy == STRICT_POLICY:
            self._aside.put(write._replace(edit=_as(write.edit, STRICT)), reason)
            decided.changes.extend(self._shown(write))
            return decided._replace(stuck=decided.stuck + 1)
        if self._follow(write) or self._aside.holds(write.collection, write.edit.key):
            return decided  # what is kept already was made on top of it
        return decided._replace(stuck=decided.stuck + self._aside.put(write._replace(edit=_as(write.edit, 0)), reason))

    def _shown(self, write: Refusing) -> list[tuple[int, Change]]:
        """Show what the log says, unless the device has something else of the key."""
        entries, table = self._entries, self._entries.stored_table(write.collection)
        if self._sent.claimed(write.collection, write.edit.key):
            return []
        before = entries.look(table, [write.edit.key])
        entries.settle(table, write.edit.key)
        return [(table.number, change) for change in before.changes_to(entries.look(table, [write.edit.key]))]


def _as(edit: TakenEdit, n: int) -> TakenEdit:
    return edit._replace(n=n, tx=ALONE, since=None, refused=None)
