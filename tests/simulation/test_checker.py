"""The checker can tell: each promise, broken by hand."""

from typing import Any

import pytest

from sealwire_protocol.conditions import NOTHING, Condition, Names
from sealwire_protocol.errors import Refusal
from sealwire_protocol.ids import NO_TERM, KeyId, StreamId, Term, VaultId
from sealwire_protocol.messages import Group, Push
from sealwire_protocol.segment import Rank
from sealwire_relay.store.interface import StreamWrite, VaultWrite
from sealwire_relay.store.segments import StoredSegment
from tests.simulation.checker import Checker, Ended, Logged
from tests.simulation.guarded import check_guarded
from tests.simulation.history import Ack, Edit, History, Refused, Seal, Transfer, Violation
from tests.simulation.members import Members
from tests.simulation.past import Past
from tests.simulation.things import ACCOUNTS, CARDS, NOTES, SCHEMAS, Account, Card

STREAM = StreamId(b"a stream")
KEY = 1, KeyId(b"key1")


def rank(version: int, author: int = 1) -> bytes:
    return Rank(version, 1, author, b"salt" + version.to_bytes(4, "big")).pack()


def sealed(history: History, rank: bytes, value: bytes = b"v") -> None:
    history.seals.append(Seal("a", (STREAM, "k"), value, rank, history.step))


def checker(history: History, *log: Logged, name: str = NOTES) -> Checker:
    return Checker(history, {STREAM: list(log)}, {STREAM: name})


def test_a_record_that_stands_twice_is_found() -> None:
    history = History()
    sealed(history, b"1")
    with pytest.raises(Violation, match="exactly once"):
        checker(history, Logged(1, "k", b"1", b"v"), Logged(2, "k", b"1", b"v")).once()


def test_a_record_that_nobody_sealed_is_found() -> None:
    with pytest.raises(Violation, match="only devices write"):
        checker(History(), Logged(1, "k", b"1", b"v")).once()


def test_an_edit_that_is_not_in_the_log_is_found() -> None:
    history = History()
    history.edits.append(Edit("a", (STREAM, "k"), b"v", 1, b""))
    with pytest.raises(Violation, match="nothing unsent is lost"):
        checker(history).nothing_lost()


def test_an_edit_that_a_crash_cut_may_be_missing() -> None:
    history = History()
    history.edits.append(Edit("a", (STREAM, "k"), b"v", 1, b"", certain=False))
    checker(history).nothing_lost()


def test_an_edit_that_loses_against_what_its_device_saw_is_found() -> None:
    history = History()
    history.edits.append(Edit("a", (STREAM, "k"), b"v", 0, b"2"))
    sealed(history, b"1")
    with pytest.raises(Violation, match="wins over what its device saw"):
        checker(history, Logged(1, "k", b"1", b"v")).nothing_lost()


def test_a_device_that_loses_against_itself_is_found() -> None:
    history = History()
    sealed(history, b"2")
    sealed(history, b"1")
    with pytest.raises(Violation, match="no device conflicts with itself"):
        checker(history, Logged(1, "k", b"2", b"v"), Logged(2, "k", b"1", b"v")).no_conflict_with_itself()


def test_the_greatest_rank_is_what_replicas_must_show() -> None:
    log = [Logged(1, "k", b"2", b"new"), Logged(2, "k", b"1", b"old"), Logged(3, "gone", b"1", None)]
    assert checker(History(), *log).shown(STREAM) == {"k": b"new"}


def test_a_batch_that_is_sent_with_other_bytes_is_found() -> None:
    history = History()
    for stream in (STREAM, StreamId(b"another1")):
        history.pushed("a", Push(VaultId(bytes(16)), NO_TERM, 1, 0, (Group(stream, b"", b""),)))
    assert history.broken is not None and "the same bytes" in history.broken


def test_a_write_that_is_refused_and_logged_is_found() -> None:
    history = History()
    history.refused.append(Refused("a", STREAM, rank(1), Refusal.CONFLICT, 0, b""))
    with pytest.raises(Violation, match="a refused record is in no log"):
        checker(history, Logged(1, "k", rank(1), b"v")).refused_is_not()


def test_a_write_that_is_refused_because_of_its_own_author_is_found() -> None:
    history = History()
    history.refused.append(Refused("a", STREAM, rank(2), Refusal.CONFLICT, 1, b""))
    checker(history, Logged(1, "k", rank(1, author=2), b"v")).refused_is_not()
    with pytest.raises(Violation, match="no device conflicts with itself"):
        checker(history, Logged(1, "k", rank(1), b"v")).refused_is_not()


def test_an_atomic_batch_of_which_a_part_is_logged_is_found() -> None:
    history = History()
    history.atomic.append(((STREAM, rank(1)), (STREAM, rank(2))))
    checker(history).all_or_none()
    with pytest.raises(Violation, match="atomic groups are whole"):
        checker(history, Logged(1, "k", rank(1), b"v")).all_or_none()


# --- after a restore


def restored(history: History, *log: Logged, lost: Logged, name: str = NOTES, **ended: Any) -> Checker:
    """A log that stands after a restore that took one record away."""
    history.restores = 1
    known = Ended({STREAM: [lost]}, **ended)
    return Checker(history, {STREAM: list(log)}, {STREAM: name}, known)


def test_a_record_that_a_restore_took_and_nobody_gave_back_is_found() -> None:
    lost = Logged(1, "k", rank(2), b"v")
    restored(History(), Logged(1, "k", rank(3), b"w"), lost=lost).nothing_held_is_lost()
    restored(History(), Logged(1, "k", rank(2), b"v"), lost=lost).nothing_held_is_lost()
    with pytest.raises(Violation, match="what a restore takes comes back"):
        restored(History(), Logged(1, "k", rank(1), b"old"), lost=lost).nothing_held_is_lost()


def test_a_strict_write_that_nobody_heard_of_before_a_restore_may_be_refused_when_it_is_sent_again() -> None:
    lost, name = Logged(2, "k", rank(2), b"v"), (STREAM, rank(2))
    withdrawn = Refused("a", STREAM, rank(2), Refusal.CONFLICT, 0, b"", eras=(0, 1))

    def check(*refused: Refused, acked: bool = False, received: bool = False, of: str = ACCOUNTS) -> None:
        history = History()
        history.refused += refused
        history.acks += [Ack("a", STREAM, ((2, rank(2)),), 1)] if acked else []
        history.received |= {name} if received else set()
        restored(history, Logged(1, "k", rank(1), b"old"), lost=lost, name=of).nothing_held_is_lost()

    def found(*refused: Refused, **known: Any) -> None:
        with pytest.raises(Violation, match="what a restore takes comes back"):
            check(*refused, **known)

    check(withdrawn)
    found()
    found(withdrawn, acked=True)
    found(withdrawn, received=True)
    found(withdrawn, of=CARDS)
    found(withdrawn._replace(eras=(1, 1)))


def test_a_delete_that_a_restore_took_and_nobody_gave_back_is_found() -> None:
    deleted = Logged(2, "k", rank(2), None)
    with pytest.raises(Violation, match="what a restore takes comes back"):
        restored(History(), Logged(1, "k", rank(1), b"old"), lost=deleted).nothing_held_is_lost()


def test_a_delete_that_was_forgotten_before_an_older_backup_came_back_is_missed_no_more() -> None:
    deleted, place = Logged(2, "k", rank(2), None), (STREAM, "k")
    written = deleted._replace(value=b"new")
    restored(History(), Logged(1, "k", rank(1), b"old"), lost=deleted, late={place}).nothing_held_is_lost()
    with pytest.raises(Violation, match="what a restore takes comes back"):
        restored(History(), Logged(1, "k", rank(1), b"old"), lost=written, late={place}).nothing_held_is_lost()


def test_an_entry_that_comes_back_after_its_tombstone_was_purged_is_found_unless_its_holder_came_too_late() -> None:
    back, place = Logged(3, "k", rank(1), b"v"), (STREAM, "k")
    log = (Logged(2, "k", rank(2), None), back)
    restored(History(), *log, lost=back).nothing_held_is_lost()
    restored(History(), *log, lost=back, forgotten={place: 2}, late={place}).nothing_held_is_lost()
    with pytest.raises(Violation, match="what was deleted stays deleted"):
        restored(History(), *log, lost=back, forgotten={place: 2}).nothing_held_is_lost()


def test_a_record_may_stand_once_more_for_each_time_that_it_was_given_back() -> None:
    history, record = History(), Logged(1, "k", rank(1), b"v")
    sealed(history, rank(1))
    history.returned[STREAM, rank(1)] = {("a", 1)}
    twice = (record, record._replace(seq=2))
    restored(history, *twice, lost=record).once()
    with pytest.raises(Violation, match="exactly once"):
        restored(history, *twice, record._replace(seq=3), lost=record).once()


def test_what_was_acknowledged_before_a_restore_is_in_the_log_or_was() -> None:
    history = History()
    history.acks.append(Ack("a", STREAM, ((7, rank(1)),), 1))
    restored(history, lost=Logged(7, "k", rank(1), b"v")).acked_is_logged()
    with pytest.raises(Violation, match="acked means durable"):
        restored(history, lost=Logged(7, "k", rank(2), b"v")).acked_is_logged()


def test_a_position_that_names_two_records_is_found() -> None:
    told: list[str] = []
    past = Past(lambda: 0.0, told.append, Members(History()))
    vault, term = VaultId(bytes(16)), Term(1, b"name of ")
    write = StreamWrite(STREAM, 0, 1, 1, (StoredSegment(0, 1, b""),))
    snapshot = past.snapshot()
    past.committed(VaultWrite(vault, term, KEY, (write,), ()))
    past.restore(snapshot)
    assert [ended.stream for ended in past.ended] == [STREAM]
    past.committed(VaultWrite(vault, Term(2, b"its name"), KEY, (write,), ()))
    assert not told
    past.committed(VaultWrite(vault, term, KEY, (write,), ()))
    assert "names one record for ever" in told[0]


def test_a_snapshot_of_a_history_that_was_ended_takes_away_all_that_came_after_the_two_parted() -> None:
    past = Past(lambda: 0.0, lambda told: None, Members(History()))
    vault, numbers = VaultId(bytes(16)), iter(range(1, 9))

    def commit(head: int, body: bytes) -> None:
        write = StreamWrite(STREAM, head, head + 1, 1, (StoredSegment(head, head + 1, body),))
        past.committed(VaultWrite(vault, Term(next(numbers), b"name of "), KEY, (write,), ()))

    commit(0, b"both")
    before = past.snapshot()
    commit(1, b"one")
    one = past.snapshot()
    past.restore(before)
    commit(1, b"other")
    past.restore(one)
    assert [[segment.body for segment in ended.segments] for ended in past.ended] == [[b"one"], [b"other"]]


# --- guarded streams


def card(title: str, *marks: str) -> bytes:
    return SCHEMAS[CARDS].encode(Card(title, marks=frozenset(marks)))


def merged(first: bytes, then: bytes | None, *edits: Edit, condition: Condition | None = None) -> Checker:
    """Two records: one by device b, then one by device a, which made these edits."""
    history = History()
    names = Condition(Names.ENTRY, 1, rank(1)[-8:]) if condition is None else condition
    history.conditions = {(STREAM, rank(1, author=2)): NOTHING, (STREAM, rank(2)): names}
    place = (STREAM, "k")
    history.edits = [Edit("b", place, first, 0, b"", n=1), *edits]
    history.seals = [Seal("b", place, first, rank(1, author=2), 9, 1, 1), Seal("a", place, then, rank(2), 9, 1, 9)]
    log = [Logged(1, "k", rank(1, author=2), first), Logged(2, "k", rank(2), then)]
    return checker(history, *log, name=CARDS)


def edit(before: bytes | None, value: bytes | None, n: int = 1) -> Edit:
    return Edit("a", (STREAM, "k"), value, n, b"", before=before, n=n)


def test_two_edits_that_both_are_there_hold() -> None:
    check_guarded(merged(card("b", "1"), card("a", "1", "2"), edit(None, card("a", "2"))))


def test_a_merge_that_drops_the_others_edit_is_found() -> None:
    with pytest.raises(Violation, match="takes out what its author never saw: 1"):
        check_guarded(merged(card("b", "1"), card("a", "2"), edit(None, card("a", "2"))))


def test_a_merge_that_drops_its_own_edit_is_found() -> None:
    with pytest.raises(Violation, match="lacks what its author put in: 2"):
        check_guarded(merged(card("b", "1"), card("b", "1"), edit(None, card("a", "2"))))


def test_a_merge_that_sets_back_a_field_is_found() -> None:
    with pytest.raises(Violation, match="has a title that neither"):
        check_guarded(merged(card("b", "1"), card("old", "1", "2"), edit(card("old"), card("old", "2"))))


def test_a_delete_of_what_its_device_never_saw_is_found() -> None:
    check_guarded(merged(card("b", "1"), None, edit(card("b", "1"), None)))
    with pytest.raises(Violation, match="takes out what its author never saw"):
        check_guarded(merged(card("b", "1"), None, edit(card("b"), None)))


def test_a_guarded_write_that_replaces_another_record_than_it_names_is_found() -> None:
    with pytest.raises(Violation, match="replaces what it names"):
        check_guarded(merged(card("b", "1"), card("a", "1", "2"), edit(None, card("a", "2")), condition=NOTHING))


def accounts(history: History, *values: Account) -> Checker:
    log, before = [], NOTHING
    for version, value in enumerate(values, 1):
        history.conditions[STREAM, rank(version)] = before
        before = Condition(Names.ENTRY, version, rank(version)[-8:])
        log.append(Logged(version, "a", rank(version), SCHEMAS[ACCOUNTS].encode(value)))
    return checker(history, *log, name=ACCOUNTS)


def test_a_strict_write_that_starts_from_an_old_balance_is_found() -> None:
    with pytest.raises(Violation, match="knows what it replaces"):
        check_guarded(accounts(History(), Account(3_000, 3_000, "x"), Account(10, 5, "y")))


def test_money_that_is_made_is_found() -> None:
    with pytest.raises(Violation, match="the sum of all accounts"):
        check_guarded(accounts(History(), Account(3_000, 3_000, "x"), Account(3_005, 5, "y")))


@pytest.mark.parametrize("done", [True, False])
def test_a_strict_write_that_is_told_wrongly_is_found(done: bool) -> None:
    history = History()
    history.transfers.append(Transfer("a", "y" if done else "x", done))
    with pytest.raises(Violation, match="is what it is told to be"):
        check_guarded(accounts(history, Account(3_000, 3_000, "x")))
