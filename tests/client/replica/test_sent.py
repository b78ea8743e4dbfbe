"""Verdicts on batches: which ones a relay may give, and what each does."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sealwire_protocol.errors import Outcome, Refusal, RemoteFault
from sealwire_protocol.messages import Refused, StreamKind
from tests.client.replica.support import Todos, opened


@pytest.fixture
def g(tmp_path: Path) -> Iterator[Todos]:
    """A replica with a guarded collection."""
    with opened(tmp_path / "guarded", StreamKind.GUARDED) as todos:
        yield todos


def conflict(at: int, group: int = 0) -> Refused:
    return Refused(group, at, Refusal.CONFLICT, 9, b"")


def atomic(at: int) -> Refused:
    return Refused(0, at, Refusal.ATOMIC, 0, b"")


def misfits(a: Todos, number: int, count: int, refused: Sequence[Refused]) -> None:
    """A verdict is refused, and nothing has changed."""
    before = a.waiting(), a.places()
    with pytest.raises(RemoteFault, match="does not fit"):
        a.answer(number, 1, count, refused=refused)
    assert (a.waiting(), a.places()) == before


def test_records_that_were_never_sent_cannot_be_refused(g: Todos) -> None:
    g.edit("k", "mine")
    g.edit("l", "mine")
    number = g.send()
    misfits(g, number, 2, [conflict(2)])
    misfits(g, number, 2, [conflict(0, group=1)])
    misfits(g, number, 2, [conflict(0)])
    misfits(g, number, 0, [conflict(0)])


def test_a_record_of_an_open_stream_has_no_conflicts(a: Todos) -> None:
    a.edit("k", "mine")
    a.edit("l", "mine")
    misfits(a, a.send(), 1, [conflict(0)])


def test_one_conflict_refuses_all_of_a_transaction(g: Todos) -> None:
    g.edit_together(k="mine", l="mine")
    number = g.send()
    misfits(g, number, 1, [conflict(0)])
    misfits(g, number, 0, [atomic(0), atomic(1)])
    answered = g.answer(number, refused=[conflict(0), atomic(1)])
    assert answered is not None
    assert (answered.again, answered.stuck, g.places()) == (2, 0, (2, 0, 0, 0))


def test_edits_that_stand_alone_are_not_refused_for_others(g: Todos) -> None:
    g.edit("k", "mine")
    g.edit("l", "mine")
    misfits(g, g.send(), 0, [conflict(0), atomic(1)])


@pytest.mark.parametrize("outcome", [Outcome.EPOCH_STALE, Outcome.SEAL_AGAIN, Outcome.CLONED])
def test_a_transaction_that_must_be_sealed_again_stays_whole(g: Todos, outcome: Outcome) -> None:
    g.edit_together(k="mine", l="mine")
    g.edit("m", "alone")
    number = g.send()
    g.answer(number, outcome=outcome)
    first, second = g.take(), g.send()
    assert first is not None
    assert {edit.key for edit in first.groups[0].edits} in ({"k", "l"}, {"m"})
    assert second == number + 1
    assert g.take() is not None
