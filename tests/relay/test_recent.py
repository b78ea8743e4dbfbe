"""What is recent: it gives what the store holds under the heading that was told, or nothing; and it is bounded."""

import random
from typing import NamedTuple

import pytest

from sealwire_protocol.ids import Term, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Deliver
from sealwire_relay.recent import SEGMENT_OVERHEAD_BYTES, STREAM_SHARE, Heading, Name, Recent
from sealwire_relay.store.interface import PAGE_SEGMENTS_MAX, Page
from sealwire_relay.store.segments import StoredSegment
from tests.support.device import stream_id

VAULT = VaultId(bytes(16))
NAME = (VAULT, stream_id(1))
OTHER = (VAULT, stream_id(2))
TERM = Term(1, b"one term")
HEADING = Heading(TERM, 0, 0, 0, 0)
MUCH = 10_000_000


def committed(prev: int, last: int, body: bytes = b"body", heading: Heading = HEADING, name: Name = NAME) -> Deliver:
    vault, stream = name
    return Deliver(vault, stream, *_numbers(heading), prev, last, body)


def _numbers(heading: Heading) -> tuple[Term, int, int, int, int]:
    return heading


def filled(*ends: int, bytes_max: int = MUCH, body: bytes = b"body") -> Recent:
    """Commits that end at these seqs."""
    recent = Recent(bytes_max)
    for prev, last in zip((0, *ends), ends, strict=False):
        recent.offered(NAME, committed(prev, last, body))
    return recent


def given(recent: Recent, after: int, bytes_max: int = MUCH) -> list[tuple[int, int]]:
    """The ends of the segments that are given."""
    page = recent.page(NAME, after, bytes_max)
    return [] if page is None else [(segment.prev, segment.last) for segment in page.segments]


def test_what_was_committed_is_given_from_any_cursor_within() -> None:
    recent = filled(2, 5, 6)
    assert given(recent, 0) == [(0, 2), (2, 5), (5, 6)]
    assert given(recent, 3) == [(2, 5), (5, 6)]
    assert given(recent, 6) == given(recent, 7) == []
    assert recent.page(NAME, 0, MUCH) == Page(
        TERM, 6, 0, 0, 0, 0, tuple(StoredSegment(*x, b"body") for x in given(recent, 0))
    )


def test_a_page_holds_at_least_a_segment_and_no_more_than_is_asked_for() -> None:
    recent = filled(*range(1, PAGE_SEGMENTS_MAX + 10))
    assert given(recent, 3, 1) == [(3, 4)]
    assert given(recent, 3, 9) == [(3, 4), (4, 5)]
    assert len(given(recent, 0)) == PAGE_SEGMENTS_MAX


def test_where_the_log_may_go_on_otherwise_nothing_is_given() -> None:
    recent = filled(2)
    recent.offered(NAME, committed(4, 6))
    assert given(recent, 0) == [(0, 2)] and given(recent, 2) == given(recent, 3) == [] and given(recent, 4) == [(4, 6)]
    recent.read(NAME, recent.stamp(NAME), Page(*HEADING[:1], 6, *HEADING[1:], (StoredSegment(2, 4, b"other"),)))
    assert given(recent, 0) == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.parametrize(
    "changed",
    [
        HEADING._replace(term=Term(2, b"two term")),
        HEADING._replace(floor=1),
        HEADING._replace(floor_head=1),
        HEADING._replace(purged=1),
    ],
)
def test_another_heading_leaves_nothing(changed: Heading) -> None:
    recent = filled(2)
    before = recent.stamp(NAME)
    recent.told(NAME, HEADING)
    assert given(recent, 0) and recent.stamp(NAME) == before
    recent.told(NAME, changed)
    assert not given(recent, 0) and recent.stamp(NAME) not in (before, None)


def test_what_the_cleaner_may_have_rewritten_is_not_given_and_the_rest_says_how_far_it_got() -> None:
    recent = Recent(MUCH)
    for prev in range(0, 6, 2):
        recent.offered(NAME, committed(prev, prev + 2, bytes(60_000)))
    recent.told(NAME, HEADING._replace(cleaned_to=2))
    assert not given(recent, 0) and given(recent, 2) == [(2, 4), (4, 6)]
    # A commit is told with what its view of the stream says, which may be from before.
    recent.offered(NAME, committed(6, 7))
    page = recent.page(NAME, 4, MUCH)
    assert page is not None and (page.cleaned_to, page.head) == (2, 7)
    recent.told(NAME, HEADING._replace(cleaned_to=9))
    recent.offered(NAME, committed(7, 9))
    assert not given(recent, 7)


def test_a_page_is_not_kept_if_other_things_were_told_while_it_was_read() -> None:
    recent = Recent(MUCH)
    page = Page(*HEADING[:1], 2, *HEADING[1:], (StoredSegment(0, 2, b"body"),))
    recent.read(NAME, None, page)
    recent.told(NAME, HEADING)
    asked = recent.stamp(NAME)
    recent.told(NAME, HEADING._replace(floor=1))
    recent.read(NAME, asked, page)
    assert not given(recent, 0)
    recent.clear()
    recent.told(NAME, HEADING)
    recent.read(NAME, asked, page)
    assert not given(recent, 0)
    recent.read(NAME, recent.stamp(NAME), page)
    assert given(recent, 0) == [(0, 2)]


def test_what_was_not_used_for_longest_goes_first() -> None:
    body = bytes(SEGMENT_BYTES_MAX)
    each = len(body) + SEGMENT_OVERHEAD_BYTES
    recent = filled(1, 2, 3, bytes_max=STREAM_SHARE * (3 * each + 1_000), body=body)
    assert given(recent, 0, 1)
    recent.offered(NAME, committed(3, 4, body))
    assert given(recent, 0) == [(0, 1)] and not given(recent, 1) and given(recent, 2) == [(2, 3), (3, 4)]
    for number in range(3, 3 + STREAM_SHARE):
        name = VAULT, stream_id(number)
        recent.told(OTHER, HEADING)
        for prev in range(3):
            recent.offered(name, committed(prev, prev + 1, body, name=name))
    assert not given(recent, 3) and recent.stamp(OTHER) is not None
    assert recent.size <= STREAM_SHARE * (3 * each + 1_000)


def test_nothing_is_kept_where_there_is_no_room_for_it() -> None:
    recent = filled(2, bytes_max=0)
    recent.told(NAME, HEADING)
    recent.read(NAME, recent.stamp(NAME), Page(*HEADING[:1], 2, *HEADING[1:], (StoredSegment(0, 2, b"body"),)))
    assert (given(recent, 0), recent.stamp(NAME), recent.size) == ([], None, 0)


def test_a_vault_is_forgotten_with_all_its_streams_and_no_other() -> None:
    recent = filled(2)
    elsewhere = VaultId(b"e" * 16), NAME[1]
    recent.offered(elsewhere, committed(0, 2, name=elsewhere))
    recent.forget(VAULT)
    assert recent.stamp(NAME) is None and recent.last(NAME) is None and recent.last(elsewhere) == 2
    recent.clear()
    assert recent.last(elsewhere) is None and recent.size == 0


class Model:
    """A stream's log as a database has it, and the rows that it had under each heading, as they were last: with what
    came since, if nothing has changed but how far the log is cleaned."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.heading, self.rows = chance, HEADING, list[StoredSegment]()
        self.under: dict[Heading, list[StoredSegment]] = {}
        self.keep()

    @property
    def head(self) -> int:
        return self.rows[-1].last if self.rows else 0

    def keep(self) -> None:
        self.under[self.heading] = list(self.rows)

    def append(self) -> StoredSegment:
        size = self.chance.choice((10, 500, 40_000, 100_000))
        segment = StoredSegment(self.head, self.head + self.chance.randint(1, 5), self.chance.randbytes(size))
        self.rows.append(segment)
        self.keep()
        for heading, rows in self.under.items():
            if heading != self.heading and heading.goes_with(self.heading):
                rows.append(segment)
        return segment

    def clean(self) -> None:
        """Some rows become one, up to which all is cleaned then."""
        first = self.chance.randrange(len(self.rows))
        count = self.chance.randint(1, 4)
        old = self.rows[first : first + count]
        if old[-1].last > self.heading.cleaned_to:
            self.rows[first : first + count] = [StoredSegment(old[0].prev, old[-1].last, self.chance.randbytes(20))]
            self.heading = self.heading._replace(cleaned_to=old[-1].last)
            self.keep()

    def purge(self) -> None:
        self.rows = [StoredSegment(0, self.head, self.chance.randbytes(20))]
        floor, head = self.heading.floor + 1, self.head
        self.heading = self.heading._replace(floor=floor, floor_head=head, purged=floor, cleaned_to=head)
        self.keep()

    def restart(self) -> None:
        self.heading = self.heading._replace(term=Term(self.heading.term.number + 1, self.chance.randbytes(8)))
        self.keep()

    def page(self, after: int, bytes_max: int) -> Page:
        rows, size = list[StoredSegment](), 0
        for row in self.rows:
            size += len(row.body) if row.last > after else 0
            if row.last > after and (not rows or size <= bytes_max):
                rows.append(row)
        heading = self.heading
        return Page(heading.term, self.head, *heading[1:], tuple(rows))


class Reading(NamedTuple):
    """A read that is under way: what it will bring is decided already."""

    stamp: int | None
    page: Page


@pytest.mark.parametrize("bytes_max", [4_000, 700_000, 3_000_000, 100_000_000])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_given_is_what_the_store_holds_under_that_heading(seed: int, bytes_max: int) -> None:
    chance = random.Random(seed)
    model, recent = Model(chance), Recent(bytes_max)
    view, readings, pages = model.heading, list[Reading](), 0
    for _ in range(1_500):
        after, size = chance.randint(0, model.head), chance.choice((1, 60_000, 1_048_576))
        match chance.choices(range(8), (30, 3, 2, 0.5, 0.5, 10, 20, 20))[0]:
            case 0:  # here, by a view that may not know how far the log is cleaned
                view = view if view.goes_with(model.heading) else model.heading
                prev, last, body = model.append()
                recent.offered(NAME, committed(prev, last, body, view))
            case 1:  # by another relay
                model.append()
            case 2 if model.rows:
                model.clean()
            case 3 if model.rows:
                model.purge()
            case 4:
                model.restart()
            case 5:
                recent.told(NAME, model.heading)
            case 6:
                recent.told(NAME, model.heading)
                readings.append(Reading(recent.stamp(NAME), model.page(after, size)))
            case 7 if readings:
                recent.read(NAME, *readings.pop(chance.randrange(len(readings))))
        assert recent.size <= bytes_max
        page = recent.page(NAME, after, size)
        if page is not None:
            pages += 1
            rows = [row for row in model.under[Heading.of(page)] if row.last > after]
            assert page.segments[0].prev <= after < page.segments[0].last
            assert list(page.segments) == rows[: len(page.segments)] and page.head == page.segments[-1].last
    assert pages > 100 or bytes_max < 100_000
