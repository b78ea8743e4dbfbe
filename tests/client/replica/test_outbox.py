from pathlib import Path

import pytest

from sealwire_client.replica import Edit, Incoming, Kind, ReplicaMisuse, SealedGroup
from sealwire_protocol.errors import Outcome, Refusal, RemoteFault
from sealwire_protocol.ids import Author, TermStart
from sealwire_protocol.messages import Refused, StreamKind
from tests.client.replica.support import ME, STREAM, T1, T2, Todos, opened, record


def test_edits_of_a_key_coalesce(a: Todos) -> None:
    for title in ("milk", "oat milk", "soy milk"):
        a.edit("k", title)
    a.edit("l", "bread")
    taken = a.take()
    assert taken is not None
    assert [(e.key, e.value) for e in taken.groups[0].edits] == [("k", b'["soy milk", 0]'), ("l", b'["bread", 0]')]
    assert a.shown() == {"k": "soy milk", "l": "bread"}


def test_edits_are_taken_in_order_within_the_limits(a: Todos) -> None:
    for key in "edcba":
        a.edit(key, "x" * 100)
    some = a.take(records_max=3)
    assert some is not None
    assert [e.key for e in some.groups[0].edits] == ["e", "d", "c"]
    fewer = a.take(bytes_max=500)
    assert fewer is not None
    assert [e.key for e in fewer.groups[0].edits] == ["e", "d"]
    one = a.take(bytes_max=1)
    assert one is not None
    assert [e.key for e in one.groups[0].edits] == ["e"]


def test_only_collections_that_caught_up_are_taken(a: Todos) -> None:
    a.edit("k", "milk")
    assert a.replica.outbox.edits.take(a.todos.vault, {}) is None


def test_versions_are_above_all_seen_sealed_and_told(a: Todos) -> None:
    a.deliver(0, record(1, "x", "theirs", 5))
    a.edit("k", "milk")
    a.edit("l", "bread")
    taken = a.take(top=3)
    assert taken is not None
    assert taken.groups[0].first_version == 6
    assert a.store(taken)
    a.edit("m", "salt")
    after = a.take(top=3)
    assert after is not None
    assert after.groups[0].first_version == 8
    told = a.take(top=50)
    assert told is not None
    assert told.groups[0].first_version == 51


def test_a_key_has_at_most_one_unanswered_write(a: Todos) -> None:
    a.edit("k", "milk")
    first = a.send()
    a.edit("k", "oat milk")
    a.edit("l", "bread")
    taken = a.take()
    assert taken is not None
    assert [e.key for e in taken.groups[0].edits] == ["l"]
    a.answer(first, 1, 1)
    taken = a.take()
    assert taken is not None
    assert [e.key for e in taken.groups[0].edits] == ["k", "l"]


def test_a_batch_is_sent_again_unchanged_until_its_verdict(tmp_path: Path) -> None:
    with opened(tmp_path) as a:
        a.edit("k", "milk")
        a.send()
        a.edit("l", "bread")
        a.send()
        before = a.replica.outbox.sent.unanswered(a.todos.vault)
        assert [batch.number for batch in before] == [1, 2]
        assert before[0].groups[0][:] == (STREAM, b"", b"sealed by 1")
    with opened(tmp_path) as a:
        assert a.replica.outbox.sent.unanswered(a.todos.vault) == before
        assert a.replica.outbox.sent.unanswered(a.todos.vault, after=1) == before[1:]
        a.answer(1, 1, 1)
        assert a.replica.outbox.sent.unanswered(a.todos.vault) == before[1:]
        assert a.answer(1, 1, 1) is None


def test_an_edit_made_while_sealing_stays_to_be_sent(a: Todos) -> None:
    a.edit("k", "milk")
    taken = a.take()
    assert taken is not None
    a.edit("k", "oat milk")
    assert a.store(taken)
    assert a.places() == (1, 1, 0, 0)
    a.answer(taken.number, 1, 1)
    a.deliver(0, a.own(1, "k", "milk", 1))
    assert a.shown() == {"k": "oat milk"}
    assert a.confirmed("k") == 1
    again = a.take()
    assert again is not None
    assert again.groups[0].edits[0].value == b'["oat milk", 0]'


def test_a_batch_that_would_lose_is_sealed_again(a: Todos) -> None:
    a.edit("k", "milk")
    taken = a.take()
    assert taken is not None
    a.deliver(0, record(1, "other", "theirs", 9))
    assert a.store(taken), "what came in between is of another key"
    a.edit("l", "bread")
    taken = a.take()
    assert taken is not None
    a.deliver(1, record(2, "l", "theirs", 99))
    assert not a.store(taken)
    assert a.places() == (1, 1, 0, 0)
    again = a.take()
    assert again is not None
    assert (again.number, again.groups[0].first_version) == (taken.number, 100)
    assert a.store(again)


def test_a_batch_is_stored_once(a: Todos) -> None:
    a.edit("k", "milk")
    taken = a.take()
    assert taken is not None
    with pytest.raises(ReplicaMisuse):
        a.replica.outbox.store(taken, [SealedGroup((), b"", [])])
    assert a.store(taken)
    with pytest.raises(ReplicaMisuse):
        a.store(taken)


def test_an_answered_write_becomes_an_entry_when_the_cursor_passes(a: Todos) -> None:
    a.deliver(0, record(1, "k", "theirs", 1))
    a.edit("k", "mine")
    number = a.send()
    answered = a.answer(number, 3, 1)
    assert answered is not None
    assert answered.committed == 1
    assert a.confirmed("k") == 1, "never by the answer alone"
    assert a.places() == (0, 0, 1, 0)
    a.deliver(1, record(2, "l", "x", 2))
    assert a.places() == (0, 0, 1, 0)
    applied = a.deliver(2, last=3)
    assert applied.changes == ()
    assert a.places() == (0, 0, 0, 0)
    assert a.confirmed("k") == 2
    assert a.shown() == {"k": "mine", "l": "x"}


def test_delivered_before_answered(a: Todos) -> None:
    a.edit("k", "mine")
    number = a.send()
    applied = a.deliver(0, a.own(1, "k", "mine", 1))
    assert applied.changes == ()
    assert a.confirmed("k") == 1
    assert [batch.number for batch in a.replica.outbox.sent.unanswered(a.todos.vault)] == [number], (
        "it waits for its verdict"
    )
    answered = a.answer(number, 1, 1)
    assert answered is not None
    assert answered.committed == 1
    assert a.places() == (0, 0, 0, 0)
    assert a.shown() == {"k": "mine"}


def test_answered_after_the_cursor_has_passed(a: Todos) -> None:
    a.edit("k", "mine")
    number = a.send()
    a.deliver(0, record(2, "l", "x", 2))
    a.answer(number, 1, 1)
    assert a.confirmed("k") == 1
    assert a.places() == (0, 0, 0, 0)


def test_a_greater_rank_wins_when_the_cursor_passes(a: Todos) -> None:
    a.edit("k", "mine")
    a.answer(a.send(), 1, 1)
    applied = a.deliver(0, a.own(1, "k", "mine", 1), record(2, "k", "theirs", 2))
    assert applied.changes is not None
    assert [(c.key, c.kind) for c in applied.changes] == [("k", Kind.UPDATED)]
    assert a.shown() == {"k": "theirs"}
    assert a.places() == (0, 0, 0, 0)


def test_a_cleaned_log_lets_the_winner_stand(a: Todos) -> None:
    """The own record was superseded and cleaned away: only the winner, with a later seq, is delivered."""
    a.edit("k", "mine")
    number = a.send()
    a.deliver(0, record(2, "k", None, 5))
    assert a.shown() == {"k": "mine"}, "a claim stays visible until its verdict"
    answered = a.answer(number, 1, 1)
    assert answered is not None
    assert [(c.key, c.kind) for _, c in answered.changes] == [("k", Kind.DELETED)]
    assert a.shown() == {}


def test_a_position_of_another_term_is_passed_only_within_its_end(a: Todos) -> None:
    a.edit("k", "mine")
    a.answer(a.send(), 1, 1, term=T1)
    a.edit("l", "lost")
    a.answer(a.send(), 2, 1, term=T1)
    a.replica.positions.told(a.todos.number, [TermStart(T1, 0), TermStart(T2, 1)], floor=0)
    a.deliver(0, record(2, "m", "theirs", 3), term=T2)
    assert a.confirmed("k") == 1
    assert a.confirmed("l") is None, "the relay lost it"
    assert a.places() == (0, 0, 1, 0)
    assert a.shown() == {"k": "mine", "l": "lost", "m": "theirs"}


def test_an_answer_under_an_unknown_term_waits(a: Todos) -> None:
    a.edit("k", "mine")
    a.answer(a.send(), 1, 1, term=T2)
    a.deliver(0, last=5, term=T1)
    assert a.places() == (0, 0, 1, 0)


@pytest.mark.parametrize("outcome", [Outcome.EPOCH_STALE, Outcome.SEAL_AGAIN])
def test_seal_again_puts_edits_back_unless_newer_ones_wait(a: Todos, outcome: Outcome) -> None:
    a.edit("k", "milk")
    a.edit("l", "bread")
    number = a.send()
    a.edit("k", "oat milk")
    answered = a.answer(number, outcome=outcome)
    assert answered is not None
    assert (answered.again, answered.stuck) == (1, 0)
    taken = a.take()
    assert taken is not None
    assert {e.key: e.value for e in taken.groups[0].edits} == {"k": b'["oat milk", 0]', "l": b'["bread", 0]'}
    assert taken.number == number + 1, "a refused batch has used up its number"
    assert taken.groups[0].first_version == 3
    assert a.shown() == {"k": "oat milk", "l": "bread"}


def test_of_a_batch_that_a_full_vault_refuses_deletions_are_sent_again_without_the_rest(a: Todos) -> None:
    a.deliver(0, record(1, "k", "theirs", 1), record(2, "l", "bread", 2))
    a.edit("k", "mine")
    a.edit("l", None)
    answered = a.answer(a.send(), outcome=Outcome.QUOTA)
    assert answered is not None and (answered.again, answered.stuck) == (1, 1)
    taken = a.take()
    assert taken is not None and [(e.key, e.value) for e in taken.groups[0].edits] == [("l", None)]
    answered = a.answer(a.send(), outcome=Outcome.QUOTA)
    assert answered is not None and (answered.again, answered.stuck) == (0, 1), "there is no room for these either"
    assert [(s.key, s.reason) for s in a.replica.outbox.aside.all(a.todos)] == [("k", "quota"), ("l", "quota")]


@pytest.mark.parametrize("outcome", [Outcome.NOT_A_WRITER, Outcome.MALFORMED])
def test_refused_for_good_is_set_aside_and_shown(a: Todos, outcome: Outcome) -> None:
    a.deliver(0, record(1, "k", "theirs", 1), record(2, "l", "bread", 2))
    a.edit("k", "mine")
    a.edit("l", None)
    answered = a.answer(a.send(), outcome=outcome)
    assert answered is not None
    assert answered.stuck == 2
    assert a.shown() == {"k": "mine"}
    assert [(s.key, s.value, s.reason) for s in a.replica.outbox.aside.all(a.todos)] == [
        ("k", b'["mine", 0]', outcome.name.lower()),
        ("l", None, outcome.name.lower()),
    ]
    assert a.take() is None


def test_a_batch_whose_verdict_is_forgotten_is_doubtful_until_all_is_known(a: Todos) -> None:
    a.deliver(0, *(record(seq, key, "theirs", seq) for seq, key in enumerate("klmn", 1)))
    for key in "klmn":
        a.edit(key, "mine")
    taken = a.take()
    assert taken is not None
    number = a.send()
    a.edit("n", "mine, newer")
    answered = a.answer(number, outcome=Outcome.STALE_NUMBER)
    assert answered is not None and (answered.again, answered.stuck, answered.committed) == (0, 0, 0)
    outbox, vault = a.replica.outbox, a.todos.vault
    assert outbox.sent.has_doubtful(vault) and outbox.sent.unanswered(vault) == []
    assert a.take() is None, "one write of a key at a time (R4)"
    first = taken.groups[0].first_version
    mine = record(5, "k", "mine", first, author=ME)
    a.deliver(4, mine, record(6, "l", "theirs, greater", first + 5))
    assert outbox.settle_doubtful(vault, ()) == []
    assert [c.key for _, c in outbox.settle_doubtful(vault, (a.todos.number,))] == ["l"]
    assert not outbox.sent.has_doubtful(vault)
    assert a.shown() == {"k": "mine", "l": "theirs, greater", "m": "mine", "n": "mine, newer"}
    taken = a.take()
    assert taken is not None
    assert {e.key: e.value for e in taken.groups[0].edits} == {"m": b'["mine", 0]', "n": b'["mine, newer", 0]'}
    assert a.confirmed("k") == first
    assert outbox.settle_doubtful(vault, (a.todos.number,)) == []


def test_another_member_counts_its_batches_from_one_and_knows_what_the_former_one_sent(a: Todos) -> None:
    outbox, vaults, vault = a.replica.outbox, a.replica.vaults, a.todos.vault
    seqs = {"k 1": 10, "l 1": 11, "k 2": 20, "l 2": 21, "m": 22}
    for round_, author in enumerate((11, 12), 1):
        for key in "kl":
            a.edit(f"{key} {round_}", "mine")
            number = a.send()
        assert number == 2
        assert vaults.enrol(vault, Author(author)) is None
        a.answer(1, 10 * round_, 1)
        assert vaults.enrol(vault, Author(author)) is None, "the second batch has no verdict"
        a.answer(2, outcome=Outcome.STALE_NUMBER)
        held = vaults.enrol(vault, Author(author))
        assert held is not None and (held.author, held.next_batch) == (author, 1)
        assert outbox.sent.has_doubtful(vault) and a.places() == (0, round_, round_, 0)
    a.edit("m", "mine")
    assert a.send() == 1
    ranks = dict(a.replica.database.connection.execute("SELECT key, rank FROM _sent"))
    a.deliver(0, *(Incoming(seq, key, ranks[key], b"key1", 0, ("mine", 0)) for key, seq in seqs.items()))
    assert a.places() == (0, 0, 0, 0) and not outbox.sent.has_doubtful(vault)
    assert a.shown() == dict.fromkeys(seqs, "mine")
    a.answer(1, seqs["m"], 1)
    assert a.places() == (0, 0, 0, 0)


def test_a_stuck_write_is_retried_discarded_or_replaced(a: Todos) -> None:
    a.deliver(0, record(1, "k", "theirs", 1), record(2, "l", "theirs", 2), record(3, "m", "theirs", 3))
    for key in "klmn":
        a.edit(key, "mine")
    a.answer(a.send(), outcome=Outcome.QUOTA)
    outbox = a.replica.outbox
    assert outbox.aside.retry(a.todos, "k")
    assert not outbox.aside.retry(a.todos, "k")
    a.deliver(3, record(4, "l", "theirs, newer", 99))
    assert discarded(a, "l") == [("l", Kind.UPDATED)]
    assert discarded(a, "l") == []
    a.edit("m", "mine, newer")
    assert discarded(a, "n") == [("n", Kind.DELETED)]
    assert a.shown() == {"k": "mine", "l": "theirs, newer", "m": "mine, newer"}
    assert a.places() == (2, 0, 0, 0)
    assert a.confirmed("l") == 99


def discarded(a: Todos, key: str) -> list[tuple[str, Kind]]:
    """Discard, and what it changed."""
    return [
        (change.key, change.kind) for gone in a.replica.outbox.aside.discard(a.todos, key) for change in gone.changes
    ]


def test_discarding_falls_back_to_what_was_sent_before(a: Todos) -> None:
    a.edit("k", "first")
    a.answer(a.send(), 1, 1)
    a.edit("k", "second")
    a.answer(a.send(), outcome=Outcome.QUOTA)
    a.replica.outbox.aside.discard(a.todos, "k")
    assert a.shown() == {"k": "first"}
    a.deliver(0, a.own(1, "k", "first", 1))
    assert a.shown() == {"k": "first"}
    assert a.places() == (0, 0, 0, 0)


def test_a_refused_record_leaves_the_others_their_places(tmp_path: Path) -> None:
    with opened(tmp_path, StreamKind.GUARDED) as a:
        for key in "klm":
            a.edit(key, "mine")
        answered = a.answer(a.send(), 1, 2, refused=[Refused(0, 1, Refusal.CONFLICT, 9, b"")])
        assert answered is not None
        assert (answered.committed, answered.again) == (2, 1)
        assert answered.winners == ((STREAM, 9),)
        a.deliver(0, last=2)
        assert [a.confirmed(key) for key in "klm"] == [1, None, 3]
        assert a.places() == (1, 0, 0, 0)


def test_a_verdict_that_does_not_fit_changes_nothing(a: Todos) -> None:
    a.edit("k", "mine")
    number = a.send()
    for count in (0, 2):
        with pytest.raises(RemoteFault, match="does not fit"):
            a.answer(number, 1, count)
    assert a.places() == (0, 1, 0, 0)


def test_what_cannot_be_sealed_is_set_aside(a: Todos) -> None:
    a.edit("k", "far too long")
    a.edit("l", "bread")
    assert a.put_aside("k", "too large")
    taken = a.take()
    assert taken is not None
    assert [e.key for e in taken.groups[0].edits] == ["l"]
    assert a.shown() == {"k": "far too long", "l": "bread"}


def test_a_value_that_says_more_than_its_row_is_kept_raw(a: Todos) -> None:
    value = b'["mine", 0, "more"]'
    a.replica.edit(a.todos, [Edit("k", ("mine", 0), value, raw=True)])
    a.answer(a.send(), 1, 1)
    a.edit("k", "newer")
    a.deliver(0, last=1)
    kept = a.replica.database.connection.execute(f"SELECT _raw FROM {a.todos.table.shadow} WHERE key = 'k'").fetchone()
    assert kept == (value,)
