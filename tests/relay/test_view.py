"""Decisions about pushes, without a store: numbers, terms, heads, and what is written if they are accepted."""

import random
from collections.abc import Mapping

import pytest

from sealwire_protocol import codec
from sealwire_protocol.conditions import NOTHING, Current
from sealwire_protocol.errors import FaultCode, Outcome, Refusal, RemoteFault
from sealwire_protocol.events import Answer, Refuse
from sealwire_protocol.faults import another_member
from sealwire_protocol.ids import MEMBERSHIP, Author, KeyId, Position, StreamId, Term, TermStart, VaultId
from sealwire_protocol.limits import PUSH_RECORDS_MAX, SEGMENT_BYTES_MAX, VERSION_STEP_MAX
from sealwire_protocol.links import Role
from sealwire_protocol.messages import ATOMIC, REFILL, Group, Push, Pushed, Refused, StreamKind, StreamState
from sealwire_protocol.segment import encode_segment, read_segment
from sealwire_relay.quota import Allowance
from sealwire_relay.store.interface import OUTCOMES_KEPT, GuardName, StreamWrite, VaultState
from sealwire_relay.view import LIGHT_BYTES_MAX, Admitted, Draft, Head, Pusher, VaultView
from tests.support.device import KEY_ID, Identity, group, guarded, record, replaces, returned, stream_id
from tests.support.relay import admit

ANNA, BERT = Identity(1).key, Identity(2).key
VAULT = VaultId(bytes(16))
TODOS, NOTES, ACCOUNTS = stream_id(1), stream_id(2), stream_id(3)
TERM, BEFORE = Term(5, b"term five"[:8]), Term(3, bytes(8))
LOG = StreamState(MEMBERSHIP, StreamKind.MEMBERSHIP, 2, 0, 0, 0, 0, 0, ())
LOST, KEPT = Position(BEFORE, 11), Position(BEFORE, 10)


def view(head: int = 0, last_batch: int = 0, last_term: int = 5) -> VaultView:
    """A vault with two open streams and a guarded one, of which Anna (author 1) and Bert (author 2) are writers."""
    kinds = {TODOS: StreamKind.OPEN, NOTES: StreamKind.OPEN, ACCOUNTS: StreamKind.GUARDED}
    return VaultView(
        VaultState(1, KEY_ID),
        Allowance(0, 0),
        {stream: Head(kind, head, head, 0, 0, 0, 0) for stream, kind in kinds.items()},
        {
            ANNA: Pusher(Author(1), Role.WRITER, last_batch, last_term, {}),
            BERT: Pusher(Author(2), Role.WRITER, last_batch, last_term, {}),
        },
    )


def pushed(batch: int, *groups: Group, term: Term = TERM) -> Admitted:
    """Anna's push."""
    return admit(ANNA, Push(VAULT, term, batch, 0, groups or (group(TODOS, record()),)))


def state(draft: Draft, stream: StreamId) -> StreamState:
    """A stream as the store tells it: written in term 3 up to 10, then in the present one."""
    known = draft.view.heads[stream]
    terms = TermStart(BEFORE, 0), TermStart(TERM, 10)
    return StreamState(stream, known.kind, known.head, known.top, 0, 0, known.purged, 0, terms)


def decide(draft: Draft, admitted: Admitted, held: Mapping[GuardName, Current] | None = None) -> Pushed | Refuse:
    """The verdict on a push, where the guarded stream holds this."""
    draft.take(admitted)
    draft.decide(held or {}, {stream: state(draft, stream) for stream in draft.histories} | {MEMBERSHIP: LOG})
    _, verdict = draft.answers[-1]
    if isinstance(verdict, Refuse):
        return verdict
    assert isinstance(verdict, Answer)
    assert isinstance(verdict.message, Pushed)
    return verdict.message


def test_pushes_of_one_commit_follow_each_other_and_become_one_segment() -> None:
    known = view(head=10)
    draft = Draft(VAULT, known, TERM)
    groups = [group(TODOS, record(), record()), group(TODOS, record(version=4))]
    assert [decide(draft, pushed(n, g)).appended[0].first for n, g in enumerate(groups, 1)] == [11, 13]  # type: ignore[union-attr]
    write = draft.write()
    assert write is not None
    (stream,) = write.streams
    assert (stream.expected_head, stream.new_head, stream.new_top) == (10, 13, 10)
    assert [(s.prev, s.last, s.body) for s in stream.segments] == [(10, 13, groups[0].records + groups[1].records)]
    assert [(b.expected_last, b.outcome.batch) for b in write.batches] == [(0, 1), (1, 2)]
    assert known.heads[TODOS].head == 10, "the view changes only when it is committed"
    (deliver,) = draft.committed(write)
    assert (deliver.prev, deliver.last, deliver.term) == (10, 13, TERM)
    assert (known.heads[TODOS].head, known.pushers[ANNA].last_batch) == (13, 2)


def test_segments_tile_what_they_cover_and_stay_within_their_size() -> None:
    chance = random.Random(3)
    draft = Draft(VAULT, view(head=7), TERM)
    for batch in range(1, 40):
        records = [record(units=chance.choice((1, 100, 1000))) for _ in range(chance.randint(1, 15))]
        decide(draft, pushed(batch, group(chance.choice((TODOS, NOTES)), *records)))
    write = draft.write()
    assert write is not None
    for stream in write.streams:
        at = stream.expected_head
        for segment in stream.segments:
            assert segment.prev == at
            assert len(segment.body) <= SEGMENT_BYTES_MAX
            assert [placed.seq for placed in read_segment(segment.body, at)] == list(range(at + 1, segment.last + 1))
            at = segment.last
        assert at == stream.new_head


def test_a_repeat_within_one_commit_and_after_it_gets_the_same_verdict() -> None:
    known = view()
    draft = Draft(VAULT, known, TERM)
    push = pushed(1)
    first = decide(draft, push)
    assert decide(draft, push) == first
    write = draft.write()
    assert write is not None
    assert len(write.batches) == 1
    draft.committed(write)
    again = Draft(VAULT, known, Term(6, bytes(8)))
    assert decide(again, push) == first
    assert again.write() is None


def test_outcomes_are_looked_up_before_the_epoch_and_the_term() -> None:
    known = view()
    draft = Draft(VAULT, known, TERM)
    push = pushed(1)
    first = decide(draft, push)
    write = draft.write()
    assert write is not None
    draft.committed(write)
    known.state = VaultState(2, KEY_ID)
    assert decide(Draft(VAULT, known, Term(6, bytes(8))), push) == first


def test_the_same_number_with_other_contents_is_a_clone() -> None:
    draft = Draft(VAULT, view(), TERM)
    decide(draft, pushed(1))
    for other in (
        pushed(1),
        pushed(1, group(NOTES, record())),
        pushed(1, group(TODOS, record()), group(NOTES, record())),
    ):
        verdict = decide(draft, other)
        assert isinstance(verdict, Pushed)
        assert verdict.outcome is Outcome.CLONED


def test_a_replaced_device_is_told_what_became_of_its_batches_and_that_it_must_enrol_anew() -> None:
    known = view()
    draft = Draft(VAULT, known, TERM)
    first, push = pushed(1), pushed(2)
    before = [decide(draft, first), decide(draft, push)]
    write = draft.write()
    assert write is not None
    draft.committed(write)
    known.pushers[ANNA].role = Role.REPLACED
    del known.pushers[ANNA].outcomes[1]
    for term in (TERM, Term(6, bytes(8))):
        draft = Draft(VAULT, known, term)
        told = [decide(draft, each) for each in (first, push, pushed(2), pushed(3), pushed(9))]
        assert told[1] == before[1]
        outcomes = [each.outcome if isinstance(each, Pushed) else None for each in told]
        assert outcomes == [Outcome.STALE_NUMBER, Outcome.DONE, Outcome.CLONED, Outcome.CLONED, Outcome.CLONED]
        assert draft.write() is None


@pytest.mark.parametrize(("batch", "legal"), [(6, True), (7, False), (5, None), (1, None)])
def test_numbers_within_a_term(batch: int, legal: bool | None) -> None:
    draft = Draft(VAULT, view(last_batch=5), TERM)
    verdict = decide(draft, pushed(batch))
    if legal is None:
        assert isinstance(verdict, Pushed)
        assert verdict.outcome is Outcome.STALE_NUMBER
    elif legal:
        assert isinstance(verdict, Pushed)
        assert verdict.outcome is Outcome.DONE
    else:
        assert isinstance(verdict, Refuse)
        assert verdict.code is FaultCode.BATCH_GAP
    assert draft.gap is (legal is False)
    assert (draft.write() is not None) is (legal is True)


def test_a_gap_is_legal_once_at_the_beginning_of_a_term() -> None:
    draft = Draft(VAULT, view(last_batch=5, last_term=4), TERM)
    first, second = decide(draft, pushed(9)), decide(draft, pushed(11))
    assert isinstance(first, Pushed)
    assert first.outcome is Outcome.DONE
    assert isinstance(second, Refuse)
    write = draft.write()
    assert write is not None
    assert [(b.expected_last, b.outcome.batch) for b in write.batches] == [(5, 9)]


def test_a_push_of_another_term_is_sent_back_to_subscribe() -> None:
    verdict = decide(Draft(VAULT, view(), TERM), pushed(1, term=Term(4, bytes(8))))
    assert isinstance(verdict, Refuse)
    assert (verdict.code, verdict.batch) == (FaultCode.TERM_CHANGED, 1)


def test_a_stranger_learns_nothing() -> None:
    known = view()
    del known.pushers[ANNA]
    verdict = decide(Draft(VAULT, known, TERM), pushed(1))
    assert isinstance(verdict, Refuse)
    assert verdict.code is FaultCode.NO_SUCH_VAULT


def test_what_was_purged_must_be_sealed_again() -> None:
    known = view()
    known.heads[TODOS].purged = 7
    draft = Draft(VAULT, known, TERM)
    verdict = decide(draft, pushed(1, group(TODOS, record(version=8), record(version=7))))
    assert isinstance(verdict, Pushed)
    assert verdict.outcome is Outcome.SEAL_AGAIN
    verdict = decide(draft, pushed(2, group(TODOS, record(version=8))))
    assert isinstance(verdict, Pushed)
    assert verdict.outcome is Outcome.DONE


def test_a_refused_push_writes_its_verdict_alone_and_uses_up_its_number() -> None:
    known = view()
    draft = Draft(VAULT, known, TERM)
    decide(draft, pushed(1, group(TODOS, record()), group(stream_id(9), record())))
    write = draft.write()
    assert write is not None
    assert not write.streams
    kept = codec.decode(write.batches[0].outcome.answer)
    assert kept == Pushed(VAULT, 1, Outcome.MALFORMED, (), ())
    assert draft.committed(write) == []
    assert known.pushers[ANNA].last_batch == 1


def test_a_version_too_high_is_refused_on_condition_of_the_head_that_was_looked_at() -> None:
    """Another relay process may have raised the top since: the refusal would set aside what is right."""
    known = view(head=10)
    draft = Draft(VAULT, known, TERM)
    verdict = decide(draft, pushed(1, group(TODOS, record(version=10 + VERSION_STEP_MAX + 1))))
    assert verdict == Pushed(VAULT, 1, Outcome.MALFORMED, (), ())
    write = draft.write()
    assert write is not None
    assert write.streams == (StreamWrite(TODOS, 10, 10, 10, (), ()),)
    assert draft.committed(write) == []
    assert (known.heads[TODOS].head, known.heads[TODOS].top) == (10, 10)


def test_as_many_outcomes_are_kept_as_the_store_keeps() -> None:
    known = view()
    for batch in range(1, OUTCOMES_KEPT + 20):
        draft = Draft(VAULT, known, TERM)
        decide(draft, pushed(batch))
        write = draft.write()
        assert write is not None
        draft.committed(write)
    assert len(known.pushers[ANNA].outcomes) == OUTCOMES_KEPT
    verdict = decide(Draft(VAULT, known, TERM), pushed(3))
    assert isinstance(verdict, Pushed)
    assert verdict.outcome is Outcome.STALE_NUMBER


def test_a_push_is_measured_whole() -> None:
    one = group(TODOS, record())
    other = group(NOTES, record())._replace(conditions=b"1234")
    assert pushed(1, one, other).size == 2 * len(one.records) + 4


def test_a_push_names_a_stream_once() -> None:
    one = group(TODOS, record())
    with pytest.raises(RemoteFault, match="twice"):
        pushed(1, one, one)


def test_a_push_has_only_so_many_records() -> None:
    half = encode_segment([record()] * (PUSH_RECORDS_MAX // 2))
    groups = (Group(TODOS, b"", half), Group(NOTES, b"", half))
    assert sum(found.records for found in pushed(1, *groups).surveys) == PUSH_RECORDS_MAX
    with pytest.raises(RemoteFault):
        pushed(1, *groups, group(stream_id(9), record()))


# --- guarded streams


def conflict(place: int, seq: int, group: int = 0) -> Refused:
    """A refusal as it is kept."""
    return Refused(group, place, Refusal.CONFLICT, seq, b"")


def test_what_the_stream_holds_is_asked_for_by_those_groups_alone_that_need_it() -> None:
    known = view()
    draft = Draft(VAULT, known, TERM)
    draft.take(pushed(1, group(TODOS, record(tag=1)), guarded(ACCOUNTS, (NOTHING, record(tag=2)))))
    draft.take(pushed(2, guarded(ACCOUNTS, (NOTHING, record(tag=3)), (NOTHING, record(tag=2)))))
    draft.take(pushed(3, guarded(NOTES, (NOTHING, record(tag=4)))))
    draft.take(pushed(4, group(ACCOUNTS, record(tag=5))))
    assert draft.wanted == {(VAULT, ACCOUNTS, record(tag=n).tag) for n in (2, 3)}
    draft.decide({}, {})
    write = draft.write()
    assert write is not None
    draft.committed(write)
    again = Draft(VAULT, known, TERM)
    again.take(pushed(1, guarded(ACCOUNTS, (NOTHING, record(tag=6)))))
    known.pushers.clear()
    again.take(pushed(5, guarded(ACCOUNTS, (NOTHING, record(tag=7)))))
    assert again.wanted == set(), "neither a repeat nor a stranger makes the relay look"


def test_each_push_is_judged_on_top_of_those_before_it_and_written_with_what_the_stream_holds_then() -> None:
    known = view(head=10)
    draft = Draft(VAULT, known, TERM)
    old, first, second, late = (record(version=n) for n in (4, 5, 6, 20))
    held = {(VAULT, ACCOUNTS, old.tag): Current(old.version, old.salt, False, 7)}
    for batch, write in enumerate([(replaces(old), first), (replaces(old), late), (replaces(first), second)], 1):
        draft.take(pushed(batch, guarded(ACCOUNTS, write)))
    draft.decide(held, {})
    refused = [answer.message.refused for _, answer in draft.answers]  # type: ignore[union-attr]
    assert refused == [(), (conflict(0, 11),), ()]
    assert draft.conflicts == [1]
    written = draft.write()
    assert written is not None
    (stream,) = written.streams
    assert (stream.expected_head, stream.new_head, stream.new_top) == (10, 12, 10)
    assert [segment.body for segment in stream.segments] == [encode_segment([first, second])]
    assert stream.guards == ((old.tag, Current(6, second.salt, False, 12, epoch=1)),)
    (deliver,) = draft.committed(written)
    assert (deliver.prev, deliver.last, draft.records) == (10, 12, 2)


def test_what_was_refused_does_not_raise_the_top() -> None:
    known = view()
    draft = Draft(VAULT, known, TERM)
    held = {(VAULT, ACCOUNTS, record().tag): Current(1, bytes(8), False, 1)}
    decide(draft, pushed(1, guarded(ACCOUNTS, (NOTHING, record(version=2**32)), (NOTHING, record(tag=1)))), held)
    write = draft.write()
    assert write is not None
    assert [(s.new_head, s.new_top) for s in write.streams] == [(1, 1)]


@pytest.mark.parametrize("flags", [0, ATOMIC])
def test_a_stream_that_was_looked_at_is_a_condition_though_nothing_is_appended(flags: int) -> None:
    known = view(head=10)
    draft = Draft(VAULT, known, TERM)
    held = {(VAULT, ACCOUNTS, record().tag): Current(1, bytes(8), False, 3)}
    push = Push(VAULT, TERM, 1, flags, (guarded(ACCOUNTS, (NOTHING, record(version=2))),))
    verdict = decide(draft, admit(ANNA, push), held)
    assert verdict == Pushed(VAULT, 1, Outcome.DONE, (), (conflict(0, 3),))
    write = draft.write()
    assert write is not None
    assert write.streams == (StreamWrite(ACCOUNTS, 10, 10, 10, (), ()),)
    assert codec.decode(write.batches[0].outcome.answer) == verdict
    assert draft.committed(write) == []
    assert known.heads[ACCOUNTS].head == 10


def test_an_atomic_push_that_is_refused_leaves_no_trace_for_those_after_it() -> None:
    draft = Draft(VAULT, view(), TERM)
    held = {(VAULT, ACCOUNTS, record(tag=1).tag): Current(1, bytes(8), False, 3)}
    both = (NOTHING, record()), (NOTHING, record(tag=1, version=2))
    push = Push(VAULT, TERM, 1, ATOMIC, (group(TODOS, record()), guarded(ACCOUNTS, *both)))
    verdict = decide(draft, admit(ANNA, push), held)
    assert isinstance(verdict, Pushed)
    assert (verdict.appended, len(verdict.refused)) == ((), 3)
    verdict = decide(draft, pushed(2, group(TODOS, record()), guarded(ACCOUNTS, (NOTHING, record()))), held)
    assert isinstance(verdict, Pushed)
    assert [(row.stream, row.first) for row in verdict.appended] == [(TODOS, 1), (ACCOUNTS, 1)]


def test_an_atomic_push_is_never_divided_between_segments() -> None:
    draft = Draft(VAULT, view(), TERM)
    ends = []
    for batch in range(1, 30):
        writes = [(NOTHING, record(tag=batch * 100 + n, units=500)) for n in range(1 + batch % 7)]
        told = decide(draft, admit(ANNA, Push(VAULT, TERM, batch, ATOMIC, (guarded(ACCOUNTS, *writes),))))
        assert isinstance(told, Pushed)
        ends.append(told.appended[0].first + told.appended[0].records - 1)
    write = draft.write()
    assert write is not None
    assert len(write.streams[0].segments) > 2
    assert {segment.last for segment in write.streams[0].segments} <= set(ends)


def test_a_long_verdict_marks_the_view_and_a_short_one_does_not() -> None:
    for records, heavy in ((3, False), (LIGHT_BYTES_MAX // 8, True)):
        known = view()
        draft = Draft(VAULT, known, TERM)
        held = {(VAULT, ACCOUNTS, record(tag=n).tag): Current(1, bytes(8), False, 1) for n in range(records)}
        writes = [(NOTHING, record(tag=n, version=2)) for n in range(records)]
        decide(draft, pushed(1, guarded(ACCOUNTS, *writes)), held)
        write = draft.write()
        assert write is not None
        draft.committed(write)
        assert known.heavy is heavy


# --- refills


def refilled(batch: int, *groups: Group, flags: int = 0) -> Admitted:
    """Anna's refill."""
    return admit(ANNA, Push(VAULT, TERM, batch, REFILL | flags, groups))


def test_r14_a_refill_is_of_any_author_and_old_epoch_and_below_what_was_purged() -> None:
    known = view(head=20)
    known.state = VaultState(2, KEY_ID)
    for head in known.heads.values():
        head.purged = 100
    draft = Draft(VAULT, known, TERM)
    old = record(tag=1, author=30, version=7, key_id=KeyId(b"old!"))
    new = record(tag=2, author=1, version=8, epoch=2)
    verdict = decide(draft, refilled(1, returned(TODOS, (LOST, old), (KEPT, new)), returned(ACCOUNTS, (LOST, old))))
    assert isinstance(verdict, Pushed)
    assert [(row.stream, row.first, row.records) for row in verdict.appended] == [(TODOS, 21, 1), (ACCOUNTS, 21, 1)]
    assert verdict.refused == (Refused(0, 1, Refusal.SUPERSEDED, 0, b""),)
    write = draft.write()
    assert write is not None
    assert [segment.body for stream in write.streams for segment in stream.segments] == [encode_segment([old])] * 2
    assert write.streams[1].guards == ((old.tag, Current(7, old.salt, False, 21, (LOST,), 1)),)


def test_r15_what_was_sealed_as_another_member_uses_up_no_number() -> None:
    draft = Draft(VAULT, view(head=20), TERM)
    for batch in (1, 9):
        refused = decide(draft, admit(ANNA, Push(VAULT, TERM, batch, 0, (group(TODOS, record(author=3)),))))
        assert refused == another_member(VAULT, batch)
    assert draft.write() is None


@pytest.mark.parametrize(
    "early",
    [
        returned(TODOS, (LOST, record(epoch=2))),
        returned(TODOS, (LOST, record(key_id=KeyId(b"none")))),
        returned(TODOS, (LOST, record(key_id=KeyId(b"none"))), (LOST, record(tag=1))),
    ],
    ids=["a later epoch", "another key", "two keys"],
)
def test_r14_r15_what_was_sealed_under_a_key_of_another_end_waits_for_an_epoch_that_hands_it_on(early: Group) -> None:
    draft = Draft(VAULT, view(head=20), TERM)
    verdict = decide(draft, refilled(1, early))
    assert verdict == Pushed(VAULT, 1, Outcome.SEAL_AGAIN, (), ())
    write = draft.write()
    assert write is not None and not write.streams


@pytest.mark.parametrize(
    "wrong",
    [
        returned(TODOS, (LOST, record(version=20 + VERSION_STEP_MAX + 1))),
        returned(TODOS, (LOST, record()), (LOST, record())),
        returned(stream_id(9), (LOST, record())),
        returned(MEMBERSHIP, (LOST, record())),
        group(TODOS, record()),
        guarded(ACCOUNTS, (NOTHING, record())),
    ],
    ids=["version", "one tag", "absent", "members", "no position", "condition"],
)
def test_r14_what_no_device_can_have_held_is_not_taken_in(wrong: Group) -> None:
    draft = Draft(VAULT, view(head=20), TERM)
    good = returned(NOTES, (LOST, record()))
    verdict = decide(draft, refilled(1, good, wrong))
    assert verdict == Pushed(VAULT, 1, Outcome.MALFORMED, (), ())
    write = draft.write()
    assert write is not None
    assert not any(stream.segments for stream in write.streams)


def test_r14_what_was_found_missing_in_a_history_that_is_lost_too_is_to_be_compared_again() -> None:
    draft = Draft(VAULT, view(head=20), TERM)
    good = returned(NOTES, (LOST, record()), compared=KEPT)
    verdict = decide(draft, refilled(1, good, returned(TODOS, (LOST, record()), compared=LOST), flags=ATOMIC))
    assert verdict == Pushed(VAULT, 1, Outcome.SEAL_AGAIN, (), ())
    write = draft.write()
    assert write is not None
    assert not any(stream.segments for stream in write.streams)
    verdict = decide(draft, refilled(2, good, flags=ATOMIC))
    assert isinstance(verdict, Pushed)
    assert verdict.outcome is Outcome.DONE


def test_r14_a_stream_by_whose_history_a_refill_was_judged_is_a_condition_though_nothing_is_appended() -> None:
    for stream in (TODOS, ACCOUNTS):
        draft = Draft(VAULT, view(head=20), TERM)
        verdict = decide(draft, refilled(1, returned(stream, (KEPT, record()))))
        assert verdict == Pushed(VAULT, 1, Outcome.DONE, (), (Refused(0, 0, Refusal.SUPERSEDED, 0, b""),))
        write = draft.write()
        assert write is not None
        assert write.streams == (StreamWrite(stream, 20, 20, 20, (), ()),)


def test_r14_refills_of_one_commit_are_judged_one_after_the_other_and_told_again_alike() -> None:
    draft = Draft(VAULT, view(head=20), TERM)
    held = {(VAULT, ACCOUNTS, record().tag): Current(9, bytes(8), False, 10)}
    older, newer = record(version=10), record(version=11)
    pushes = [refilled(batch, returned(ACCOUNTS, (LOST, one))) for batch, one in enumerate([newer, older], 1)]
    verdicts = [decide(draft, push, held) for push in pushes]
    superseded = (Refused(0, 0, Refusal.SUPERSEDED, 21, b""),)
    assert [verdict.refused for verdict in verdicts if isinstance(verdict, Pushed)] == [(), superseded]
    write = draft.write()
    assert write is not None
    draft.committed(write)
    again = Draft(VAULT, draft.view, TERM)
    assert [decide(again, push) for push in pushes] == verdicts
    assert again.histories == {}


def test_r14_in_an_atomic_refill_one_conflict_refuses_all() -> None:
    draft = Draft(VAULT, view(head=20), TERM)
    held = {(VAULT, ACCOUNTS, record().tag): Current(1, bytes(8), False, 11)}
    push = refilled(1, returned(TODOS, (LOST, record())), returned(ACCOUNTS, (LOST, record())), flags=ATOMIC)
    told = (Refused(0, 0, Refusal.ATOMIC, 0, b""), Refused(1, 0, Refusal.CONFLICT, 11, b""))
    assert decide(draft, push, held) == Pushed(VAULT, 1, Outcome.DONE, (), told)
    held = {(VAULT, ACCOUNTS, record().tag): Current(2, bytes(8), False, 10)}
    push = refilled(2, *push.push.groups, flags=ATOMIC)
    verdict = decide(draft, push, held)
    assert isinstance(verdict, Pushed)
    assert ([row.stream for row in verdict.appended], verdict.refused) == (
        [TODOS],
        (Refused(1, 0, Refusal.SUPERSEDED, 10, b""),),
    )


def test_r16_a_refill_is_a_batch_like_any_other() -> None:
    known = view(head=20, last_batch=7)
    draft = Draft(VAULT, known, TERM)
    one = returned(TODOS, (LOST, record()))
    gap = decide(draft, refilled(9, one))
    assert isinstance(gap, Refuse)
    assert gap.code is FaultCode.BATCH_GAP
    stale = decide(draft, refilled(7, one))
    assert isinstance(stale, Pushed)
    assert stale.outcome is Outcome.STALE_NUMBER
    verdict = decide(draft, refilled(8, one))
    assert decide(draft, refilled(8, one)) == verdict
    for other in (refilled(8, one, flags=ATOMIC), refilled(8, returned(TODOS, (KEPT, record()))), pushed(8)):
        cloned = decide(draft, other)
        assert isinstance(cloned, Pushed)
        assert cloned.outcome is Outcome.CLONED
    assert draft.refills == [2], "it is judged once"
    known.pushers[ANNA].last_term = BEFORE.number
    legal = decide(Draft(VAULT, known, TERM), refilled(12, one))
    assert isinstance(legal, Pushed)
    assert legal.outcome is Outcome.DONE


def test_r16_an_atomic_refill_is_never_divided_between_segments() -> None:
    draft = Draft(VAULT, view(), TERM)
    ends = []
    for batch in range(1, 20):
        lost = [(LOST, record(tag=batch * 100 + n, units=500)) for n in range(1 + batch % 7)]
        told = decide(draft, refilled(batch, returned(ACCOUNTS, *lost), flags=ATOMIC))
        assert isinstance(told, Pushed)
        ends.append(told.appended[0].first + told.appended[0].records - 1)
    write = draft.write()
    assert write is not None
    assert len(write.streams[0].segments) > 2
    assert {segment.last for segment in write.streams[0].segments} <= set(ends)
