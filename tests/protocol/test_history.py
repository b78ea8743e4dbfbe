"""R9, R10 and R12: what a replica's positions say about the history that a relay tells."""

import pytest

from sealwire_protocol.history import end_of, newest_term, why_history_is_lost, why_incomplete
from sealwire_protocol.ids import NO_TERM, START, Position, Term, TermStart
from tests.protocol.examples import T1, T2, stream_state

T3, UNKNOWN = Term(3, b"\3" * 8), Term(2, b"\7" * 8)
STATE = stream_state(head=50, terms=(TermStart(T1, 0), TermStart(T3, 30)))
"""Written in T1 up to 30, then in T3 up to 50. T2 was begun and never written here."""


@pytest.mark.parametrize(
    ("cursor", "served", "lost"),
    [
        (START, START, None),
        (Position(T1, 0), Position(UNKNOWN, 0), None),
        (Position(UNKNOWN, 0), START, None),
        (Position(T1, 1), START, None),
        (Position(T1, 30), START, None),
        (Position(T1, 31), START, "history ends at 30"),
        (Position(T3, 30), START, None),
        (Position(T3, 50), START, None),
        (Position(T3, 51), START, "history ends at 50"),
        (Position(UNKNOWN, 1), START, "does not know"),
        (Position(T2, 30), START, "does not know"),
        (Position(T3, 50), Position(T3, 50), None),
        (Position(T3, 50), Position(T1, 30), None),
        (Position(T3, 50), Position(T1, 31), "cleaned to 31"),
        (Position(T3, 50), Position(T3, 51), "cleaned to 51"),
        (Position(T3, 50), Position(UNKNOWN, 4), "cleaned to 4"),
        (START, Position(UNKNOWN, 4), "cleaned to 4"),
    ],
)
def test_both_positions_must_be_known_and_within_their_terms(
    cursor: Position, served: Position, lost: str | None
) -> None:
    why = why_history_is_lost(STATE, cursor, served)
    assert why is None if lost is None else lost in (why or "")


def test_a_stream_that_was_never_written_knows_the_empty_replica_only() -> None:
    assert why_history_is_lost(stream_state(), START, START) is None
    assert why_history_is_lost(stream_state(), Position(T1, 1), START) is not None


def test_a_floor_above_the_cursor_means_that_deletions_may_be_missed() -> None:
    state = stream_state(head=50, terms=(TermStart(T1, 0),), floor=20)
    assert "forgotten deletions up to 20" in (why_history_is_lost(state, Position(T1, 19), START) or "")
    assert why_history_is_lost(state, Position(T1, 20), START) is None


def test_an_empty_replica_misses_no_deletion() -> None:
    """Else no device could join once the first tombstone was purged."""
    state = stream_state(head=50, terms=(TermStart(T1, 0),), floor=20)
    assert why_history_is_lost(state, START, START) is None


@pytest.mark.parametrize(
    ("whole", "complete"),
    [
        (START, False),
        (Position(T1, 19), False),
        (Position(T1, 20), True),
        (Position(T1, 31), False),  # beyond the end of its term: void
        (Position(UNKNOWN, 20), False),
    ],
)
def test_the_floor_when_it_was_last_empty_or_reconciled_counts_as_long_as_its_history_is_known(
    whole: Position, complete: bool
) -> None:
    state = STATE._replace(floor=20)
    assert (why_history_is_lost(state, Position(T1, 5), START, whole) is None) == complete
    state = STATE._replace(floor=40, terms=(TermStart(T1, 0), TermStart(T3, 30)))
    assert why_history_is_lost(state, Position(T3, 35), START, Position(T3, 40)) is None


@pytest.mark.parametrize(
    ("cursor", "whole", "dropped", "floor", "again"),
    [
        (Position(T3, 40), START, 20, 20, False),
        (Position(T3, 40), START, 20, 21, False),
        (Position(T3, 40), START, 20, 19, True),
        (Position(T3, 40), Position(T1, 20), 0, 20, False),
        (Position(T3, 40), Position(T1, 20), 0, 19, True),
        (Position(T3, 40), Position(UNKNOWN, 20), 0, 19, False),
        (START, Position(T1, 20), 20, 0, False),
    ],
)
def test_a_floor_that_has_come_down_means_that_the_relay_knows_deletions_again(
    cursor: Position, whole: Position, dropped: int, floor: int, again: bool
) -> None:
    """It was set back to before it forgot them."""
    why = why_history_is_lost(STATE._replace(floor=floor), cursor, START, whole, (), dropped)
    assert ("knows deletions again" in (why or "")) is again
    assert (why is None) is not again


@pytest.mark.parametrize(
    ("floor", "cursor", "whole", "complete"),
    [(0, 1, 0, True), (5, 4, 4, False), (5, 5, 0, True), (5, 1, 5, True), (5, 0, 0, True), (5, 1, 4, False)],
)
def test_a_replica_is_complete_iff_the_floor_is_not_above_both(
    floor: int, cursor: int, whole: int, complete: bool
) -> None:
    assert (why_incomplete(floor, cursor, whole) is None) == complete


@pytest.mark.parametrize(
    ("answered", "lost"),
    [
        ((), None),
        ((Position(T1, 30), Position(T3, 50)), None),
        ((Position(T1, 30), Position(T3, 51)), "history ends at 50"),
        ((Position(T1, 31),), "history ends at 30"),
        ((Position(UNKNOWN, 1),), "does not know"),
        ((START,), None),
    ],
)
def test_a_write_that_was_answered_must_be_known_as_well(answered: tuple[Position, ...], lost: str | None) -> None:
    """Else a restore to before it leaves it on this device alone."""
    why = why_history_is_lost(STATE, Position(T1, 5), START, START, answered)
    assert why is None if lost is None else "had a write confirmed" in (why or "") and lost in (why or "")


def test_the_end_of_a_term_is_where_the_next_one_was_written() -> None:
    assert (end_of(T1, STATE), end_of(T3, STATE), end_of(T2, STATE)) == (30, 50, None)
    assert newest_term(STATE) == T3 and newest_term(stream_state()) == NO_TERM
