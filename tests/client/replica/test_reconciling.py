"""A replica that is brought together with a relay that has lost, superseded or forgotten what it holds (R10 to R14)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from sealwire_client.replica import (
    SET_ASIDE,
    Delivery,
    Differing,
    Incoming,
    Lost,
    Pinned,
    Room,
    Settled,
    Unopened,
)
from sealwire_protocol.conditions import decode_held
from sealwire_protocol.errors import Outcome, Refusal, RemoteFault
from sealwire_protocol.ids import NO_TERM, START, Author, KeyId, Position, Tag, Term, TermStart
from sealwire_protocol.messages import ATOMIC, REFILL, Refused, StreamKind
from sealwire_protocol.segment import RANK_BYTES, TOMBSTONE, Rank, Record, encode_record
from tests.client.replica.support import T1, T2, Todos, opened, record

T3: Final = Term(3, b"termthre")
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
        (batch.flags, group.records, decode_held(group.conditions, group.records.count(b"<")))
        for batch in found
        for group in batch.groups
    ]


def superseded(place: int, seq: int = 0) -> Refused:
    return Refused(0, place, Refusal.SUPERSEDED, seq, b"")


def conflict(place: int, seq: int) -> Refused:
    return Refused(0, place, Refusal.CONFLICT, seq, b"")


@pytest.fixture(params=[StreamKind.OPEN, StreamKind.GUARDED], ids=["open", "guarded"])
def a(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, request.param) as todos:
        yield todos


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Todos]:
    with opened(tmp_path, StreamKind.GUARDED) as todos:
        yield todos


# --- what becomes of entries


def test_what_both_have_stays_as_it_is(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    relay = Relay(Position(T1, 2), BOTH[:1], record(1, "x", "one", 1), record(2, "y", "two", 2))
    assert relay.differing(a) == []
    assert relay.settle(a) == (0, 0, 0, ())
    assert a.shown() == {"x": "one", "y": "two"}
    assert a.replica.positions.standing(a.todos.number)[:2] == (Position(T1, 2), Position(T1, 2))


def test_an_entry_that_the_relay_has_lost_is_given_back_and_shown_all_the_while(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "lost", 2))
    relay = Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1))
    assert relay.settle(a)[:3] == (1, 0, 0)
    assert a.shown() == {"x": "one", "y": "lost"}
    assert batches(a) == [(REFILL, b"<y>", [Position(T1, 2)])]
    assert a.places() == (0, 1, 0, 0)
    assert a.confirmed("y") is None
    a.answer(1, first=2, count=1, term=T2)
    assert a.places() == (0, 0, 1, 0)
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 1)), 2, 0)
    a.deliver(1, record(2, "y", "lost", 2), term=T2)
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"x": "one", "y": "lost"}
    assert a.confirmed("y") == 2
    assert Relay(Position(T2, 2), BOTH[:1], record(1, "x", "one", 1), record(2, "y", "lost", 2)).differing(a) == []


def test_positions_of_an_unknown_term_are_lost_too(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), term=T3)
    assert Relay(Position(T1, 5), BOTH[:1]).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(NO_TERM, 1)])]


def test_in_the_place_of_a_term_that_the_relay_does_not_know_a_refill_states_the_newest_one_that_both_know(
    a: Todos,
) -> None:
    """The relay has used the numbers of lost terms again: they do not tell where the loss began."""
    again = TermStart(Term(3, b"another3"), 5)
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 8), TermStart(T3, 9)), 12, 0)
    a.deliver(0, record(4, "kept", "one", 1))
    a.deliver(4, record(6, "w", "lost", 2))
    a.deliver(6, record(9, "x", "lost", 3), term=T2)
    a.deliver(9, record(11, "y", "lost", 4), record(12, "z", "lost", 5), term=T3)
    kept = record(4, "kept", "one", 1)
    assert Relay(Position(again.term, 9), (TermStart(T1, 0), again), kept).settle(a).refills == 4
    assert batches(a)[0][2] == [Position(T1, 6), Position(T1, 9), Position(T1, 11), Position(T1, 12)]


def test_a_refill_states_a_place_beyond_the_end_of_a_term_that_has_grown_since(a: Todos) -> None:
    a.replica.positions.told(a.todos.number, (TermStart(T1, 0), TermStart(T2, 2)), 3, 0)
    a.deliver(0, record(3, "x", "lost", 1), term=T2)
    assert Relay(Position(T1, 7), BOTH[:1], record(7, "y", "new", 2)).settle(a).refills == 1
    assert batches(a)[0][2] == [Position(T1, 8)]


def test_a_lost_tombstone_is_given_back_and_stays_hidden(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), tombstone(2, "x", 2))
    relay = Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1))
    assert relay.settle(a).refills == 1
    assert a.shown() == {}
    assert a.confirmed("x") == 1
    assert a.answer(1, refused=[superseded(0)]) is not None
    assert a.shown() == {"x": "one"}


def test_what_was_superseded_or_deleted_meanwhile_is_dropped(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    relay = Relay(Position(T1, 9), BOTH[:1], record(2, "y", "two", 2))
    assert relay.settle(a)[:3] == (0, 1, 0)
    assert a.shown() == {"y": "two"}
    assert batches(a) == []


def test_what_the_relay_has_is_taken_also_where_its_rank_is_lesser(a: Todos) -> None:
    a.deliver(0, record(1, "x", "greater", 8), record(2, "y", "lesser", 2))
    relay = Relay(
        Position(T1, 9), BOTH[:1], record(7, "x", "theirs", 3), record(8, "y", "newer", 4), record(9, "z", "new", 5)
    )
    assert relay.settle(a)[:3] == (0, 0, 3)
    assert a.shown() == {"x": "theirs", "y": "newer", "z": "new"}
    assert (a.confirmed("x"), a.confirmed("y"), a.confirmed("z")) == (3, 4, 5)
    assert relay.differing(a) == []


def test_a_lost_entry_gives_way_to_a_greater_one_in_an_open_stream(tmp_path: Path) -> None:
    with opened(tmp_path) as a:
        a.deliver(0, record(6, "x", "lost", 1))
        assert Relay(Position(T2, 6), BOTH, record(6, "x", "theirs", 2)).settle(a)[:3] == (0, 0, 1)
        assert a.shown() == {"x": "theirs"}


def test_of_a_lost_entry_in_a_guarded_stream_the_relay_decides_whatever_it_has(guarded: Todos) -> None:
    a = guarded
    a.deliver(0, record(6, "x", "lost", 1))
    assert Relay(Position(T2, 6), BOTH, record(6, "x", "theirs", 2)).settle(a)[:3] == (1, 0, 1)
    assert a.shown() == {"x": "lost"}
    assert a.confirmed("x") == 2


def test_entries_that_agree_move_to_the_pin_only_from_positions_that_are_lost(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(8, "y", "two", 2))
    relay = Relay(Position(T2, 7), BOTH, record(1, "x", "one", 1), record(6, "y", "two", 2))
    assert relay.settle(a)[:3] == (0, 0, 0)
    rows = a.replica.database.connection.execute(
        f"SELECT key, number, _seq FROM {a.todos.table.name} JOIN _term ON id = _term ORDER BY key"
    ).fetchall()
    assert rows == [("x", 1, 1), ("y", 2, 7)]


def test_records_beyond_the_pin_in_a_history_that_is_known_take_no_part(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(4, "y", "beyond", 2))
    pinned = Pinned(Position(T1, 2), BOTH[:1], 9, 0, 0, 0)
    assert a.replica.reconciling.reaches_beyond(a.todos, pinned)
    items = a.replica.reconciling.gather(a.todos, -1, 9, tag_of, pinned).items
    assert [item[:16] for item in items] == [tag_of("x")]
    assert not a.replica.reconciling.reaches_beyond(a.todos, pinned._replace(pin=Position(T1, 4)))


def test_an_empty_relay_gets_everything_back_in_batches_that_it_takes(a: Todos) -> None:
    a.deliver(0, *[record(seq, f"k{seq}", f"t{seq}", seq) for seq in range(1, 8)])
    assert Relay(START, ()).settle(a, room=Room(3, 100_000)).refills == 7
    assert [found[1].count(b"<") for found in batches(a)] == [3, 3, 1]
    assert a.replica.positions.standing(a.todos.number)[:3] == (START, START, START)
    assert len(a.shown()) == 7


def test_bytes_bound_a_batch_as_well(a: Todos) -> None:
    a.deliver(0, *[record(seq, f"k{seq}", f"t{seq}", seq) for seq in range(1, 8)])
    Relay(START, ()).settle(a, room=Room(100, 40))
    assert [found[1].count(b"<") for found in batches(a)] == [2, 2, 2, 1]


def test_a_replica_that_has_moved_since_it_was_gathered_is_left_alone(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    pinned = Pinned(START, (), 0, 0, 0, 0)
    rank = Rank(1, 0, 9, b"saltsalt").pack()
    settle = a.replica.reconciling.settle
    assert settle(a.todos, Position(T1, 7), pinned, [Differing(1, rank, None)], [], reseal, ROOM) is None
    assert settle(a.todos, Position(T1, 1), pinned, [Differing(1, rank[::-1], None)], [], reseal, ROOM) is None
    assert settle(a.todos, Position(T1, 1), pinned, [Differing(2, rank, None)], [], reseal, ROOM) is None
    assert batches(a) == []
    assert a.cursor() == 1


def test_a_reconcile_that_fails_in_its_midst_has_done_nothing(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    relay = Relay(Position(T1, 1), BOTH[:1])
    differing = relay.differing(a)

    def broken() -> Iterator[tuple[Sequence[Incoming], Sequence[Unopened]]]:
        yield [record(1, "z", "new", 1)], []
        raise RemoteFault("what came then is no record")

    with pytest.raises(RemoteFault):
        a.replica.reconciling.settle(a.todos, Position(T1, 2), relay.pinned, differing, broken(), reseal, ROOM)
    assert batches(a) == []
    assert a.shown() == {"x": "one", "y": "two"}
    assert a.cursor() == 2
    assert relay.settle(a)[:2] == (1, 1)


def test_versions_that_the_relay_knows_are_passed_from_then_on(a: Todos) -> None:
    relay = Relay(Position(T1, 3), BOTH[:1], record(3, "x", "one", 8))
    relay.pinned = relay.pinned._replace(top=20)
    relay.settle(a)
    a.edit("y", "mine")
    taken = a.take()
    assert taken is not None
    assert taken.groups[0].first_version == 21


# --- edits, and writes on their way


def test_unsent_edits_stay_and_are_shown(a: Todos) -> None:
    a.deliver(0, record(1, "gone", "old", 1), record(2, "kept", "old", 2), record(3, "lost", "old", 3))
    for key in ("gone", "kept", "lost"):
        a.edit(key, "mine")
    relay = Relay(Position(T2, 9), (TermStart(T1, 0), TermStart(T2, 2)), record(9, "kept", "theirs", 9))
    assert relay.settle(a)[:3] == (1, 0, 1)
    assert a.shown() == {"gone": "mine", "kept": "mine", "lost": "mine"}
    assert [key for key, _, _ in a.waiting()] == ["gone", "kept", "lost"]
    assert (a.confirmed("gone"), a.confirmed("kept"), a.confirmed("lost")) == (None, 9, None)


def test_an_edit_over_a_lost_entry_waits_for_it_and_outlives_it(a: Todos) -> None:
    a.deliver(0, record(1, "x", "lost", 1))
    a.edit("x", "mine")
    assert Relay(START, ()).settle(a).refills == 1
    assert a.take() is None
    a.answer(1, refused=[superseded(0)])
    assert a.shown() == {"x": "mine"}
    taken = a.take()
    assert taken is not None


def test_an_answered_write_whose_position_is_lost_is_given_back(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    a.edit("x", "mine")
    number = a.send()
    a.answer(number, first=3, count=1)
    assert a.places() == (0, 0, 1, 0)
    assert a.replica.outbox.sent.answered_at(a.todos.number) == (Position(T1, 3),)
    assert Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1)).settle(a).refills == 1
    assert a.places() == (0, 1, 0, 0)
    assert a.shown() == {"x": "mine"}
    assert batches(a) == [(REFILL, b"<x>", [Position(T1, 3)])]


def test_an_answered_write_that_the_relay_still_has_is_no_refill(a: Todos) -> None:
    a.edit("x", "mine")
    number = a.send()
    a.answer(number, first=3, count=1)
    own = a.own(2, "x", "mine", 1)
    assert Relay(Position(T2, 2), (*BOTH[:1], TermStart(T2, 1)), own).settle(a)[:3] == (0, 0, 1)
    assert a.places() == (0, 0, 0, 0)
    assert a.confirmed("x") == 1


def test_of_an_entry_and_a_write_over_it_the_greater_is_given_back(a: Todos) -> None:
    a.deliver(0, record(2, "x", "one", 1))
    a.edit("x", "mine")
    a.answer(a.send(), first=3, count=1)
    assert Relay(START, ()).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(NO_TERM, 3)])]


def test_an_unanswered_write_is_recognised_among_the_relays_records(a: Todos) -> None:
    a.edit("x", "mine")
    a.send()
    assert Relay(Position(T1, 2), BOTH[:1], a.own(2, "x", "mine", 1)).settle(a)[:3] == (0, 0, 1)
    assert a.confirmed("x") == 1
    assert a.answer(1, first=2, count=1) is not None
    assert a.places() == (0, 0, 0, 0)


def test_a_second_loss_adds_to_the_refills_and_repeats_none(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), record(2, "y", "two", 2))
    Relay(Position(T1, 1), BOTH[:1], record(1, "x", "one", 1)).settle(a)
    assert len(batches(a)) == 1
    assert Relay(START, ()).settle(a).refills == 1
    assert [found[1] for found in batches(a)] == [b"<y>", b"<x>"]
    assert Relay(START, ()).settle(a).refills == 0
    assert a.shown() == {"x": "one", "y": "two"}


def test_a_refill_that_was_answered_and_is_lost_again_is_given_back_again(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    Relay(START, ()).settle(a)
    a.answer(1, first=1, count=1, term=T2)
    assert Relay(START, ()).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(NO_TERM, 1)])]


# --- verdicts on refills


def lose(a: Todos, *lost: str) -> None:
    """Entries that the relay has lost, and that are on their way back as batch 1."""
    a.deliver(0, *[record(seq, key, key, seq) for seq, key in enumerate(lost, 1)])
    assert Relay(START, ()).settle(a).refills == len(lost)


def test_a_superseded_refill_shows_what_the_log_says(a: Todos) -> None:
    lose(a, "x", "y")
    answered = a.answer(1, first=1, count=1, term=T2, refused=[superseded(1, 7)])
    assert answered is not None
    assert answered.winners == ((a.todos.stream, 7),)
    assert [(change.key, change.kind.value) for _, change in answered.changes] == [("y", "deleted")]
    assert a.shown() == {"x": "x"}
    assert a.places() == (0, 0, 1, 0)


def test_a_conflict_is_merged_from_nothing(guarded: Todos) -> None:
    a = guarded
    lose(a, "x")
    answered = a.answer(1, refused=[conflict(0, 4)])
    assert answered is not None
    assert (answered.again, answered.stuck) == (1, 0)
    assert a.waiting() == [("x", "x", None)]
    assert a.shown() == {"x": "x"}
    a.deliver(0, record(4, "x", "theirs", 9), term=T2)
    assert a.shown() == {"x": "x"}


def test_an_edit_that_waits_stands_for_a_refill_in_conflict(guarded: Todos) -> None:
    a = guarded
    lose(a, "x")
    a.edit("x", "mine")
    a.answer(1, refused=[conflict(0, 4)])
    assert a.waiting() == [("x", "mine", None)]


def test_a_conflict_in_a_strict_collection_sets_all_of_it_aside(guarded: Todos) -> None:
    a = guarded
    a.replica.database.connection.execute("UPDATE _collection SET policy = 'strict'")
    lose(a, "x", "y")
    assert batches(a)[0][0] == REFILL | ATOMIC
    answered = a.answer(1, refused=[conflict(0, 4), Refused(0, 1, Refusal.ATOMIC, 0, b"")])
    assert answered is not None
    assert answered.stuck == 2
    assert a.stuck() == [("x", "x"), ("y", "y")]
    assert a.shown() == {}


def test_superseded_records_fail_no_atomic_refill(guarded: Todos) -> None:
    a = guarded
    a.replica.database.connection.execute("UPDATE _collection SET policy = 'strict'")
    lose(a, "x", "y")
    assert a.answer(1, first=1, count=1, term=T2, refused=[superseded(0, 3)]) is not None
    assert a.places() == (0, 0, 1, 0)


def test_a_write_refused_over_a_lost_entry_is_tried_again_when_that_is_back(guarded: Todos) -> None:
    a = guarded
    a.deliver(0, record(1, "x", "lost", 1))
    a.edit("x", "mine")
    a.send()
    assert Relay(START, ()).settle(a).refills == 1
    a.answer(1, refused=[conflict(0, 0)])
    a.answer(2, first=1, count=1, term=T2)
    assert a.replica.database.connection.execute("SELECT refused FROM _edit").fetchall() == [(None,)]


def test_a_write_refused_over_a_lost_entry_is_tried_again_when_another_device_has_given_that_back(
    guarded: Todos,
) -> None:
    a, lost = guarded, record(1, "x", "lost", 1)
    a.deliver(0, lost)
    a.edit("x", "mine")
    a.answer(a.send(), refused=[conflict(0, 0)])
    assert a.replica.database.connection.execute("SELECT refused IS NULL FROM _edit").fetchall() == [(0,)]
    assert Relay(Position(T2, 1), (TermStart(T2, 0),), lost).settle(a).refills == 0
    assert a.replica.database.connection.execute("SELECT refused FROM _edit").fetchall() == [(None,)]


@pytest.mark.parametrize("outcome", [Outcome.CLONED, Outcome.STALE_NUMBER, Outcome.SEAL_AGAIN, Outcome.EPOCH_STALE])
def test_a_verdict_that_says_nothing_of_the_records_lets_them_be_compared_again(a: Todos, outcome: Outcome) -> None:
    lose(a, "x")
    answered = a.answer(1, outcome=outcome)
    assert answered is not None
    assert answered.lost == (a.todos.stream,)
    assert a.replica.outbox.sent.answered_at(a.todos.number) == (Position(NO_TERM, 1),)
    assert not a.replica.outbox.sent.has_doubtful(a.todos.vault)
    assert a.shown() == {"x": "x"}
    assert Relay(START, ()).settle(a).refills == 1
    assert batches(a) == [(REFILL, b"<x>", [Position(NO_TERM, 1)])]


def test_a_device_that_may_not_write_gives_nothing_back(a: Todos) -> None:
    lose(a, "x")
    a.answer(1, outcome=Outcome.NOT_A_WRITER)
    assert a.shown() == {}
    assert a.stuck() == []


def test_refills_refused_for_good_are_kept_and_can_be_tried_again(a: Todos) -> None:
    lose(a, "x")
    a.answer(1, outcome=Outcome.QUOTA)
    assert a.stuck() == [("x", "x")]
    assert a.shown() == {"x": "x"}
    assert a.replica.outbox.aside.retry(a.todos, "x")
    assert a.waiting() == [("x", "x", None)]


def test_only_a_refill_can_be_superseded(a: Todos) -> None:
    a.edit("x", "mine")
    number = a.send()
    with pytest.raises(RemoteFault):
        a.answer(number, refused=[superseded(0)])


def test_a_refill_is_not_refused_in_parts_as_if_it_were_whole(a: Todos) -> None:
    lose(a, "x", "y")
    with pytest.raises(RemoteFault):
        a.answer(1, first=1, count=1, refused=[Refused(0, 0, Refusal.ATOMIC, 0, b"")])


def test_what_another_device_gave_back_first_is_recognised(a: Todos) -> None:
    lose(a, "x")
    a.deliver(0, record(1, "x", "x", 1), term=T2)
    assert a.confirmed("x") == 1
    assert a.answer(1, refused=[superseded(0, 1)]) is not None
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"x": "x"}


# --- records that do not open


def test_records_set_aside_are_compared_too_and_dropped_when_superseded(a: Todos) -> None:
    a.replica.apply(a.todos, Delivery(T1, 0, 2), [], [set_aside(1, "x", 1), set_aside(2, "y", 2)])
    relay = Relay(Position(T1, 2), BOTH[:1])
    differing = relay.differing(a)
    assert [one.place is not None and one.place >= SET_ASIDE for one in differing] == [True, True]
    relay.settle(a)
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 0


def test_lost_records_set_aside_are_kept_and_take_part_no_more(a: Todos) -> None:
    a.replica.apply(a.todos, Delivery(T1, 0, 2), [], [set_aside(1, "x", 1), set_aside(2, "y", 2)])
    relay = Relay(START, ())
    assert relay.settle(a).refills == 0
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 2
    assert relay.differing(a) == []


def test_a_record_of_the_relays_that_does_not_open_is_set_aside(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1))
    relay = Relay(Position(T1, 2), BOTH[:1], record(2, "x", "?", 5))
    unopened = set_aside(2, "x", 5)
    rank = unopened.rank
    settled = a.replica.reconciling.settle(
        a.todos,
        Position(T1, 1),
        relay.pinned,
        [Differing(1, record(1, "x", "one", 1).rank, rank)],
        [([], [unopened])],
        reseal,
        ROOM,
    )
    assert settled is not None
    assert a.shown() == {"x": "one"}
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 1
    assert relay.differing(a) == []


# --- tombstones (R11)


def said(a: Todos) -> set[str]:
    """The keys of which the log says something."""
    found = a.replica.database.connection.execute(f"SELECT key FROM {a.todos.table.name} WHERE _rank IS NOT NULL")
    return {key for (key,) in found}


def test_tombstones_go_where_the_relay_has_purged_them_and_not_before(a: Todos) -> None:
    a.deliver(0, tombstone(1, "x", 1), tombstone(2, "y", 2), record(3, "z", "here", 3))
    a.replica.apply(a.todos, Delivery(T1, 3, 5, floor=1, floor_head=6), [record(5, "w", "w", 4)])
    assert said(a) == {"w", "x", "y", "z"}
    a.replica.apply(a.todos, Delivery(T1, 5, 7, floor=1, floor_head=6), [record(7, "v", "v", 5)])
    assert said(a) == {"v", "w", "y", "z"}
    assert a.shown() == {"v": "v", "w": "w", "z": "here"}


def test_within_a_delivery_tombstones_go_before_what_was_written_after_the_purge(a: Todos) -> None:
    """What a refill brings back there is older than the tombstone, and nobody is left who could say so."""
    a.deliver(0, tombstone(1, "x", 9))
    applied = a.replica.apply(
        a.todos,
        Delivery(T1, 1, 4, floor=1, floor_head=2),
        [record(2, "x", "loses", 8), record(3, "x", "wins", 2), record(4, "y", "other", 3)],
    )
    assert applied.changes is not None
    assert [change.key for change in applied.changes] == ["x", "y"]
    assert a.shown() == {"x": "wins", "y": "other"}
    assert a.cursor() == 4


def test_an_edit_over_a_tombstone_stays_and_is_made_upon_nothing(a: Todos) -> None:
    a.deliver(0, record(1, "x", "one", 1), tombstone(2, "x", 2))
    a.edit("x", "mine")
    a.deliver(2, record(3, "y", "y", 3))
    a.replica.forget(a.todos, 2, 3)
    assert a.shown() == {"x": "mine", "y": "y"}
    assert a.replica.claims.said(a.todos, "x").rank is None


def test_tombstones_of_a_history_that_the_relay_does_not_know_stay(a: Todos) -> None:
    a.deliver(0, tombstone(1, "x", 1))
    a.deliver(1, record(2, "y", "y", 2), term=T2)
    a.replica.positions.told(a.todos.number, [TermStart(T2, 0)], 2, 0)
    a.replica.forget(a.todos, 2, 2)
    assert said(a) == {"x", "y"}


def test_what_is_told_when_subscribing_counts_once_the_cursor_is_past_the_purge(a: Todos) -> None:
    a.deliver(0, tombstone(1, "x", 1), record(2, "y", "y", 2))
    a.replica.forget(a.todos, 1, 3)
    assert said(a) == {"x", "y"}
    a.replica.forget(a.todos, 1, 2)
    assert said(a) == {"y"}


def test_purged_tombstones_that_do_not_open_go_too(a: Todos) -> None:
    a.replica.apply(a.todos, Delivery(T1, 0, 2), [], [set_aside(1, "x", 1, flags=TOMBSTONE), set_aside(2, "y", 2)])
    a.replica.forget(a.todos, 2, 2)
    assert a.replica.outbox.waiting(a.todos.vault).quarantined == 1


def test_a_strict_write_that_was_answered_and_is_lost_is_shown_from_then_on(guarded: Todos) -> None:
    a = guarded
    a.edit("x", "mine")
    a.answer(a.send(), first=3, count=1)
    connection = a.replica.database.connection
    connection.execute("UPDATE _sent SET n = -1")
    connection.execute(f"DELETE FROM {a.todos.table.name}")
    assert a.shown() == {}
    assert Relay(START, ()).settle(a).refills == 1
    assert a.shown() == {"x": "mine"}
    a.answer(2, first=1, count=1, term=T2)
    a.deliver(0, a.own(1, "x", "mine", 1), term=T2)
    assert a.shown() == {"x": "mine"}
    assert a.confirmed("x") == 1
