"""A few seeds of what `make simulate` runs by the thousand, and proof that it can fail."""

from contextlib import ExitStack

import pytest

from sealwire_protocol.ids import NO_TERM, StreamId, VaultId
from sealwire_protocol.messages import Group, Push
from tests.simulation.bugs import BUGS, planted, rewritten
from tests.simulation.faults import FAULTS_MIN
from tests.simulation.history import Checker, Edit, History, Logged, Seal, Violation
from tests.simulation.world import simulate

STREAM = StreamId(b"a stream")
OPERATIONS_MIN = 300


def test_a_seed_holds_and_is_the_same_history_again() -> None:
    first = simulate(1)
    assert first.violation is None
    assert first.faults.total() >= FAULTS_MIN
    assert first.operations.total() >= OPERATIONS_MIN
    assert simulate(1) == first


@pytest.mark.parametrize("name", BUGS)
def test_every_bug_can_still_be_planted(name: str) -> None:
    with planted(name):
        pass


@pytest.mark.parametrize("name", ["two_in_flight", "early_entry"])
def test_a_planted_bug_is_found(name: str) -> None:
    with planted(name):
        found = simulate(1).violation
    assert found is not None


def test_a_bug_whose_place_is_gone_is_told() -> None:
    with ExitStack(), pytest.raises(LookupError, match="plant the bug anew"):
        rewritten(simulate, ("what is not in it", ""))  # type: ignore[arg-type]


# --- the checker can tell


def sealed(history: History, rank: bytes, value: bytes = b"v") -> None:
    history.seals.append(Seal("a", (STREAM, "k"), value, rank, history.step))


def checker(history: History, *log: Logged) -> Checker:
    return Checker(history, {STREAM: list(log)}, {})


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
    for records in (b"one", b"two"):
        history.pushed("a", Push(VaultId(bytes(16)), NO_TERM, 1, 0, (Group(STREAM, b"", records),)))
    assert history.broken is not None and "the same bytes" in history.broken
