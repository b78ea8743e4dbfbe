"""A relay that has lost, superseded or forgotten what a replica holds, as far as the replica sees of it."""

from collections.abc import Sequence
from typing import Final

from sealwire_client.replica import (
    Differing,
    Incoming,
    Lost,
    Pinned,
    Room,
    Settled,
    Unopened,
)
from sealwire_protocol.errors import Refusal
from sealwire_protocol.ids import Author, KeyId, Position, Tag, Term, TermStart
from sealwire_protocol.lines import Line, decode_held
from sealwire_protocol.messages import Refused
from sealwire_protocol.segment import RANK_BYTES, TOMBSTONE, Record, encode_record
from tests.client.replica.support import T1, T2, Todos, record

T3: Final = Term(3, b"termthre")
T4: Final = Term(4, b"termfour")
ROOM: Final = Room(100, 100_000)
BOTH: Final = (TermStart(T1, 0), TermStart(T2, 5))


def tag_of(key: str) -> bytes:
    return key.encode().ljust(16, b"\0")


def reseal(lost: Lost) -> bytes:
    return b"<" + lost.key.encode() + b">"


def tombstone(seq: int, key: str, version: int) -> Incoming:
    return record(seq, key, None, version)._replace(flags=TOMBSTONE)


def set_aside(seq: int, name: str, version: int, flags: int = 0) -> Unopened:
    """A record that does not open."""
    tag = Tag(tag_of(name))
    sealed = Record(tag, version, Author(9), 0, KeyId(b"key?"), flags, b"saltsalt", bytes(32))
    return Unopened(seq, sealed.rank.pack(), encode_record(sealed), "no key")


class Relay:
    """What a relay tells: its records by key, as of a pin."""

    def __init__(self, pin: Position, terms: Sequence[TermStart], *records: Incoming, floor: int = 0) -> None:
        self.records = {record.key: record for record in records}
        self.pinned = Pinned(pin, tuple(terms), pin.seq, floor, 0, 0)

    def differing(self, a: Todos) -> list[Differing]:
        """What differs between the two."""
        held: dict[bytes, tuple[bytes, int]] = {}
        after: int | None = -1
        while after is not None:
            gathered = a.replica.reconciling.gather(a.todos, after, 2, tag_of, self.pinned)
            after = gathered.last
            for item in gathered.items:
                tag, rank = item[:16], item[16 : 16 + RANK_BYTES]
                held[tag] = max(held.get(tag, (b"", 0)), (rank, int.from_bytes(item[38:46], "big")))
        theirs = {tag_of(record.key): record.rank for record in self.records.values()}
        found = []
        for tag in sorted({*held, *theirs}):
            mine = held.get(tag)
            if mine is None:
                found.append(Differing(None, None, theirs[tag]))
            elif mine[0] != theirs.get(tag):
                found.append(Differing(mine[1], mine[0], theirs.get(tag)))
        return found

    def settle(self, a: Todos, *unopened: Unopened, room: Room = ROOM) -> Settled:
        """Reconcile."""
        cursor = a.replica.positions.standing(a.todos.number).cursor
        differing = self.differing(a)
        wanted = {one.theirs for one in differing}
        records = [record for record in self.records.values() if record.rank in wanted]
        settled = a.replica.reconciling.settle(
            a.todos, cursor, self.pinned, differing, [(records, unopened)], reseal, room
        )
        assert settled is not None
        return settled


def batches(a: Todos) -> list[tuple[int, bytes, list[Position]]]:
    """The batches that wait for a verdict: flags, records, positions held."""
    found = a.replica.outbox.sent.unanswered(a.todos.vault)
    return [
        (batch.flags, group.records, [line[0] for line in lines])
        for batch, lines in zip(found, lines_of(a), strict=True)
        for group in batch.groups
    ]


def lines_of(a: Todos) -> list[list[Line]]:
    """Where those batches say that their records were held, and how that history came there."""
    groups = [group for batch in a.replica.outbox.sent.unanswered(a.todos.vault) for group in batch.groups]
    return [decode_held(group.conditions, group.records.count(b"<")) for group in groups]


def superseded(place: int, seq: int = 0) -> Refused:
    return Refused(0, place, Refusal.SUPERSEDED, seq, b"")


def conflict(place: int, seq: int) -> Refused:
    return Refused(0, place, Refusal.CONFLICT, seq, b"")
