"""For how long tombstones stay: ages by marks, and the devices that are waited for."""

import pytest

from sealwire_protocol.ids import START, Author, DeviceKey, Position, StreamId, Term, TermStart, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.holding import held
from sealwire_relay.retention import MARKS_EACH, Heard, Retention, active, marked, may_go, older_than
from sealwire_relay.store.cleaning import Mark, Reader, Tombstones

DAY = 86_400
KEPT = Retention(30 * DAY, 90 * DAY)
OLD, PRESENT = Term(1, b"\x01" * 8), Term(3, b"\x03" * 8)
NOW = 1_000 * DAY


def tombstones(
    *readers: Reader, marks: tuple[Mark, ...] = (), head: int = 100, compacted: int = 90, now: float = NOW
) -> Tombstones:
    """A stream whose first term ended at 40."""
    names = VaultId(bytes(16)), StreamId(bytes(8)), StreamKind.OPEN
    terms = TermStart(OLD, 0), TermStart(PRESENT, 40)
    return Tombstones(*names, head, compacted, 0, 5, 1, marks, terms, readers, now)


def reader(seq: int, term: Term = PRESENT, *, days: float = 0, role: Role = Role.WRITER) -> Reader:
    """A device that was heard from so many days ago."""
    return Reader(Author(1), DeviceKey(bytes(32)), role, Position(term, seq), NOW - days * DAY)


def at(head: int, days: float) -> Mark:
    """The head so many days ago."""
    return Mark(head, int(NOW - days * DAY))


MARKS = at(20, 100), at(50, 80), at(70, 31), at(95, 29)


# --- what may go


@pytest.mark.parametrize(
    ("readers", "upto"),
    [
        pytest.param((), 70, id="older than the retention, and nobody to wait for"),
        pytest.param((reader(100),), 70, id="known to the one device"),
        pytest.param((reader(100), reader(60)), 60, id="not known to another one"),
        pytest.param((reader(100), Reader(*reader(0)[:3], START, NOW)), 20, id="new devices hold it up to the cutoff"),
        pytest.param((reader(60, days=89),), 60, id="seen within the cutoff"),
        pytest.param((reader(60, days=90),), 70, id="silent beyond the cutoff"),
        pytest.param((reader(60, role=Role.REPLACED),), 70, id="replaced"),
        pytest.param((reader(60, role=Role.READER),), 60, id="one that only reads"),
        pytest.param((reader(40, OLD),), 40, id="at the end of an older term"),
        pytest.param((reader(41, OLD),), 20, id="beyond the end of an older term"),
        pytest.param((reader(101),), 20, id="beyond the head"),
        pytest.param((reader(60, Term(2, b"\x02" * 8)),), 20, id="in a term that the relay does not know"),
        pytest.param((reader(60, Term(3, b"\x02" * 8)),), 20, id="in another term of the same number"),
    ],
)
def test_what_is_old_and_known_may_go(readers: tuple[Reader, ...], upto: int) -> None:
    assert may_go(tombstones(*readers, marks=MARKS), KEPT) == upto


@pytest.mark.parametrize(("days", "upto"), [(1, 20), (89, 20), (91, 70)])
def test_in_a_vault_that_was_moved_here_within_the_cutoff_only_the_cutoff_counts(days: float, upto: int) -> None:
    """A device that was left behind has not been seen here, and may come yet with what is deleted (R18)."""
    found = tombstones(reader(100), marks=MARKS)._replace(arrived=NOW - days * DAY)
    assert may_go(found, KEPT) == upto


def test_who_looks_is_told_that_devices_left_behind_are_waited_for() -> None:
    found = tombstones(reader(100), marks=MARKS)._replace(arrived=NOW - DAY, oldest=30)
    assert "the vault was moved here" in held(found, KEPT).why
    assert "the vault was moved here" not in held(found._replace(arrived=NOW - 91 * DAY), KEPT).why


def test_nothing_that_is_not_compacted_may_go() -> None:
    assert may_go(tombstones(marks=(at(95, 31),)), KEPT) == 90


def test_without_a_mark_nothing_is_old() -> None:
    assert may_go(tombstones(), KEPT) == 0
    assert may_go(tombstones(marks=(at(95, 29),)), KEPT) == 0


def test_of_devices_that_are_waited_for_it_is_told_what_they_know() -> None:
    first, second = reader(60), reader(101)
    assert active(tombstones(first, second, reader(1, days=91)), KEPT) == [Heard(first, 60), Heard(second, 0)]


def test_without_a_retention_everything_that_is_known_may_go_at_once() -> None:
    assert may_go(tombstones(reader(60)), Retention(0, 90 * DAY)) == 60
    assert may_go(tombstones(reader(60)), Retention(0, 0)) == 90


# --- marks


def test_a_mark_is_made_when_the_head_has_moved_and_it_is_time() -> None:
    first = tombstones(head=100)
    marks = marked(first, KEPT)
    assert marks == (Mark(100, NOW),)
    assert marked(first._replace(marks=marks, now=NOW + 2 * DAY), KEPT) == marks
    grown = first._replace(marks=marks, head=101)
    assert marked(grown._replace(now=NOW + 0.9 * DAY), KEPT) == marks
    assert marked(grown._replace(now=NOW + DAY), KEPT) == (*marks, Mark(101, NOW + DAY))


@pytest.mark.parametrize("retention", [KEPT, Retention(DAY, 90 * DAY), Retention(90 * DAY, DAY), Retention(0, DAY)])
@pytest.mark.parametrize("every", [DAY / 7, DAY, 5 * DAY])
def test_few_marks_tell_ages_nearly_as_well_as_all_of_them(retention: Retention, every: float) -> None:
    """A stream that is written to all the time, its head the time in seconds."""
    found, went, now = tombstones(), 0, float(NOW)
    while now < NOW + 300 * DAY:
        found = found._replace(head=int(now), compacted=int(now), now=now)
        found = found._replace(marks=marked(found, retention))
        assert len(found.marks) <= 2 * MARKS_EACH + 3
        assert list(found.marks) == sorted(found.marks)
        for seconds in retention:
            oldest = older_than(found, seconds)
            assert oldest <= now - seconds
            late = now - seconds - oldest
            assert now < NOW + 200 * DAY or late <= max(retention) / MARKS_EACH + 2 * every
        assert may_go(found, retention) >= went, "what may go does so for ever"
        went = may_go(found, retention)
        now += every


def test_a_clock_that_was_put_right_keeps_nothing_from_growing_old() -> None:
    found = tombstones(marks=(at(50, 10), at(80, -10_000)))
    marks = marked(found, KEPT)
    assert marks == (at(50, 10), Mark(80, NOW))
    later = found._replace(marks=marks, now=NOW + 31 * DAY)
    assert may_go(later._replace(marks=marked(later, KEPT)), KEPT) == 80
