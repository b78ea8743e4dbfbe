"""A cleaned log says the same as the whole one, wherever cleaning was cut short."""

from collections.abc import Sequence
from random import Random

import pytest

from sealwire_protocol.errors import DecodeError
from sealwire_protocol.ids import Author, KeyId, Tag
from sealwire_protocol.segment import TOMBSTONE, Placed, Record, encode_record, encode_segment, read_segment
from sealwire_relay.compaction import JOINED_BYTES_MAX, JOINED_MIN, Buried, Survivors, Swap, swaps
from sealwire_relay.store.segments import StoredSegment

Log = list[StoredSegment]


def record(key: int, version: int, *, salt: int = 0, flags: int = 0, size: int = 32) -> Record:
    """A version of an entry, with a body of zeros."""
    body = bytes(size + 16)
    return Record(Tag(key.to_bytes(16, "big")), version, Author(1), 1, KeyId(bytes(4)), flags, bytes([salt] * 8), body)


def log_of(*segments: Sequence[Record]) -> Log:
    """A log of these segments, as it was pushed."""
    log: Log = []
    at = 0
    for records in segments:
        log.append(StoredSegment(at, at + len(records), encode_segment(records)))
        at += len(records)
    return log


def odd(key: int, version: int) -> Record:
    """A version whose numbers need the wide layout: most of an app's records are not like this."""
    return record(key, version + (1 << 32))


def by_chance(random: Random) -> Log:
    """A log of few keys: overwritten, deleted, of equal ranks, with winners that came first; segments of any size."""
    made = [
        record(
            random.randrange(12), random.randrange(1, 9), salt=random.randrange(3), flags=random.choice((0, TOMBSTONE))
        )
        for _ in range(random.randrange(1, 80))
    ]
    parts: list[list[Record]] = []
    while made:
        size = random.choice((1, 1, 1, 2, 7))
        parts.append(made[:size])
        made = made[size:]
    return log_of(*parts)


def read(log: Log) -> list[Placed]:
    """The records of a log, which must tile."""
    at = 0
    found: list[Placed] = []
    for segment in log:
        assert segment.prev == at < segment.last
        found += read_segment(segment.body, segment.prev, segment.last)
        at = segment.last
    return found


def winners(log: Log) -> list[Placed]:
    """What must be left, by the rule as it is written: of each tag the greatest rank, of equal ones the later."""
    best: dict[Tag, Placed] = {}
    for placed in read(log):
        held = best.get(placed.record.tag)
        if held is None or placed.record.rank >= held.record.rank:
            best[placed.record.tag] = placed
    return sorted(best.values())


def apply(log: Log, swap: Swap) -> Log:
    """The log after a swap."""
    at = log.index(swap.old[0])
    assert tuple(log[at : at + len(swap.old)]) == swap.old
    assert (swap.new.prev, swap.new.last) == (swap.old[0].prev, swap.old[-1].last)
    return [*log[:at], swap.new, *log[at + len(swap.old) :]]


def step(log: Log, begin: int, end: int, swaps_max: int = 1 << 30) -> tuple[Log, bool]:
    """Clean the tail `(begin, end]` of a log; cut short after so many swaps. False: it was."""
    survivors = Survivors()
    older = [segment for segment in log if segment.last <= begin]
    tail = [segment for segment in log if begin < segment.last <= end]
    for segment in tail:
        survivors.learn(segment)
    done = 0
    for part in (older, tail):
        for swap in swaps(part, survivors.tags, survivors.stays, Buried()):
            if done == swaps_max:
                return log, False
            log, done = apply(log, swap), done + 1
    return log, True


@pytest.mark.parametrize("seed", range(60))
def test_what_is_left_are_the_winners(seed: int) -> None:
    log = by_chance(Random(seed))
    cleaned, whole = step(log, 0, log[-1].last)
    assert whole and read(cleaned) == winners(log)
    assert step(cleaned, 0, log[-1].last)[0] == cleaned


@pytest.mark.parametrize("seed", range(60))
def test_steps_that_are_cut_short_and_begun_again_come_to_the_same(seed: int) -> None:
    random = Random(f"cut {seed}")
    log = whole = by_chance(random)
    begin = 0
    while begin < whole[-1].last:
        ends = [segment.last for segment in log if segment.last > begin]
        end = ends[min(random.randrange(4), len(ends) - 1)]
        log, done = step(log, begin, end, random.choice((0, 1, 2, 1 << 30)))
        begin = end if done else begin
    assert read(log) == winners(whole)


def test_an_older_record_of_greater_rank_stays_and_the_newer_goes() -> None:
    log = log_of([record(1, 9), record(2, 1)], [record(1, 3)])
    cleaned, _ = step(log, 2, 3)
    assert [(placed.seq, placed.record.version) for placed in read(cleaned)] == [(1, 9), (2, 1)]
    assert cleaned[-1].last == 3


def test_of_equal_ranks_the_later_stays() -> None:
    log = log_of([record(1, 3), record(2, 1)], [record(1, 3)])
    assert [placed.seq for placed in read(step(log, 2, 3)[0])] == [2, 3]


def test_tombstones_stay() -> None:
    log = log_of([record(1, 1)], [record(1, 2, flags=TOMBSTONE)])
    assert [placed.record.flags for placed in read(step(log, 0, 2)[0])] == [TOMBSTONE]


def test_tombstones_that_stay_are_counted_and_those_that_go_are_not() -> None:
    buried = [record(key, 2, flags=TOMBSTONE) for key in (1, 2, 3)]
    log = log_of([record(9, 1), buried[0]], [odd(4, 1), buried[1], odd(5, 1)], [buried[2], record(1, 3)])
    survivors, counted = Survivors(), Buried()
    for segment in log:
        survivors.learn(segment)
    list(swaps(log, survivors.tags, survivors.stays, counted))
    assert (counted.number, counted.first) == (2, 4)


def test_a_segment_of_which_nothing_is_left_still_covers_its_seqs() -> None:
    log = log_of([record(1, 1)] * 3, [record(1, 2, size=65_536)], [record(2, 1, size=65_536)])
    survivors = Survivors()
    for segment in log:
        survivors.learn(segment)
    [swap] = swaps(log[:1], survivors.tags, survivors.stays, Buried())
    assert (swap.new, swap.left_out) == (StoredSegment(0, 3, b""), 3)


def test_what_changes_nothing_is_left_alone() -> None:
    """A segment without losers is not written anew because of its neighbours, unless many small ones become one."""
    few = log_of([record(1, 1)], [record(2, 1), record(2, 2)], [record(3, 1)])
    survivors = Survivors()
    for segment in few:
        survivors.learn(segment)
    assert [swap.old for swap in swaps(few, survivors.tags, survivors.stays, Buried())] == [(few[1],)]
    many = log_of(*([record(key, 1)] for key in range(JOINED_MIN)))
    assert [swap.old for swap in swaps(many, (), lambda placed: False, Buried())] == [tuple(many)]
    assert list(swaps(many[1:], (), lambda placed: False, Buried())) == []


def test_joined_segments_stay_small_and_none_is_divided() -> None:
    log = log_of(*([record(10 * n + k, 1, size=4_096) for k in range(4)] for n in range(40)))
    cleaned, _ = step(log, 0, log[-1].last)
    assert read(cleaned) == read(log)
    assert len(cleaned) < len(log) / 2 and max(len(segment.body) for segment in cleaned) <= JOINED_BYTES_MAX
    assert {segment.last for segment in cleaned} <= {segment.last for segment in log}


@pytest.mark.parametrize("seed", range(30))
def test_records_of_both_widths_and_gaps_of_any_size_are_read_alike(seed: int) -> None:
    random = Random(f"wide {seed}")
    made = [(odd if random.random() < 0.3 else record)(random.randrange(40), random.randrange(9)) for _ in range(80)]
    at, body = 0, b""
    for each in made:
        skip = random.choice((0, 0, 0, 5, 127, 128, 40_000))
        body += encode_record(each, skip)
        at += skip + 1
    log = [StoredSegment(0, at, body)]
    whole = winners(log)
    cleaned, _ = step(log, 0, at)
    assert read(cleaned) == whole


@pytest.mark.parametrize("records", [[record(1, 1)], [odd(1, 1)], [record(1, 1), odd(2, 1), record(3, 1)]])
def test_bytes_that_are_no_records_are_refused_in_the_tail_and_before_it(records: list[Record]) -> None:
    """Whatever its header says, and wherever it is cut off."""
    body = encode_segment(records)
    broken = [body[:size] for size in range(1, len(body)) if size not in _ends(records)]
    broken += [b"\0\x20" + body[2:], b"\x80\0" + body[1:], body + b"\0"]
    for data in broken:
        segment = StoredSegment(0, 9, data)
        with pytest.raises(DecodeError):
            Survivors().learn(segment)
        with pytest.raises(DecodeError):
            list(swaps([segment], (), lambda placed: True, Buried()))


def test_a_tail_that_goes_beyond_its_end_is_refused() -> None:
    with pytest.raises(DecodeError, match="holds a record at 2"):
        Survivors().learn(StoredSegment(0, 1, encode_segment([record(1, 1), record(2, 1)])))


def _ends(records: Sequence[Record]) -> set[int]:
    """Where a segment of these may be cut off and be a shorter one."""
    return {len(encode_segment(records[:count])) for count in range(len(records) + 1)}
