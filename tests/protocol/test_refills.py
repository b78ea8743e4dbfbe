"""R14: what becomes of records that a relay has lost and a device gives back."""

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from sealwire_protocol.conditions import Current, Judged, refusals
from sealwire_protocol.errors import DecodeError, Refusal
from sealwire_protocol.history import is_lost, loss_before
from sealwire_protocol.ids import NO_TERM, START, Author, KeyId, Position, Tag, Term, TermStart
from sealwire_protocol.limits import LOST_TERMS_MAX
from sealwire_protocol.lines import LostTerm, decode_held, encode_held, is_of_one_line, line_of
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_protocol.refills import judge_returned, read_returned, surveying_refill
from sealwire_protocol.segment import TOMBSTONE, Record, Survey, encode_record, encode_segment, finished
from tests.protocol.examples import T1, T2, stream_state

T3, UNKNOWN, LATER = Term(3, b"\3" * 8), Term(2, b"\7" * 8), Term(9, b"\7" * 8)
STATE = stream_state(head=50, terms=(TermStart(T1, 0), TermStart(T3, 30)))._replace(kind=StreamKind.GUARDED)
"""Written in T1 up to 30, then in T3 up to 50. What came in T2, and under UNKNOWN, is lost."""

LOST = Position(T1, 31)


def record(tag: int = 1, version: int = 5, salt: bytes = b"the salt", **changes: object) -> Record:
    made = Record(Tag(bytes([tag]) * 16), version, Author(1), 1, KeyId(b"key1"), 0, salt, bytes(32))
    return made._replace(**changes)  # type: ignore[arg-type]


def give_back(
    *returned: tuple[Position, Record],
    state: StreamState = STATE,
    held: Mapping[Tag, Current] | None = None,
    terms: Mapping[Term, LostTerm] = MappingProxyType({}),
) -> Judged:
    """What becomes of records that were held at these positions."""
    body = encode_segment(found for _, found in returned)
    parsed = read_returned(encode_held([position for position, _ in returned], terms), body, len(returned))
    return judge_returned(parsed, body, state.head, state, (held or {}).get)


def standing(version: int, seq: int, *of: Position, salt: bytes = b"another.") -> dict[Tag, Current]:
    """What the stream holds of the tag; `of`: the line of the lost history that it was given back from."""
    return {record().tag: Current(version, salt, False, seq, of)}


# --- what is lost, and since when


@pytest.mark.parametrize(
    ("position", "since"),
    [
        (Position(T1, 31), 30),
        (Position(T1, 900), 30),
        (Position(T3, 51), 50),
        (Position(T2, 3), 0),
        (Position(UNKNOWN, 40), 0),
        (Position(LATER, 1), 0),
        (Position(Term(1, b"\7" * 8), 1), 0),
        (Position(NO_TERM, 4), 0),
    ],
)
def test_the_loss_begins_where_the_stated_term_ends_and_at_the_beginning_if_that_is_not_known(
    position: Position, since: int
) -> None:
    assert is_lost(position, STATE)
    assert loss_before((position,), STATE) == since


@pytest.mark.parametrize("position", [START, Position(UNKNOWN, 0), Position(T1, 1), Position(T1, 30), Position(T3, 50)])
def test_within_a_known_history_nothing_is_lost(position: Position) -> None:
    assert not is_lost(position, STATE)


def test_a_stream_that_lost_everything_lost_it_from_the_beginning() -> None:
    assert is_lost(Position(T1, 1), stream_state())
    assert loss_before((Position(T1, 1),), stream_state()) == 0


# --- verdicts


def test_what_was_held_at_a_known_position_is_not_taken_in_again() -> None:
    """It was superseded or deleted since; else whoever came late would bring deleted entries back (R13)."""
    for kind in (StreamKind.OPEN, StreamKind.GUARDED):
        judged = give_back((Position(T1, 30), record()), (LOST, record(2)), state=STATE._replace(kind=kind))
        assert (judged.records, judged.refused, judged.superseded) == (1, {}, {0: 0})
        assert judged.body == encode_record(record(2))


def test_in_an_open_stream_the_rank_decides_later() -> None:
    judged = give_back((LOST, record()), state=STATE._replace(kind=StreamKind.OPEN), held=standing(9, 45))
    assert judged == Judged(1, 5, encode_record(record()), {}, {})


def test_where_nothing_stands_it_is_appended_and_marked() -> None:
    judged = give_back((LOST, record(1)), (LOST, record(2, 7, flags=TOMBSTONE)))
    assert (judged.records, judged.top) == (2, 7)
    assert judged.holds == {
        record(1).tag: Current(5, b"the salt", False, 51, (LOST,), 1),
        record(2).tag: Current(7, b"the salt", True, 52, (LOST,), 1),
    }


@pytest.mark.parametrize(
    ("position", "held", "verdict"),
    [
        (LOST, standing(4, 30), "appended"),
        (LOST, standing(5, 30), "superseded"),
        (LOST, standing(6, 30), "superseded"),
        (LOST, standing(4, 31), "conflict"),
        (LOST, standing(5, 31), "conflict"),
        (LOST, standing(6, 50), "conflict"),
        (LOST, standing(4, 50, LOST), "appended"),
        (LOST, standing(5, 50, LOST), "superseded"),
        (LOST, standing(6, 50, LOST), "superseded"),
        (LOST, standing(5, 50, salt=b"the salt"), "superseded"),
        (LOST, standing(5, 50, LOST, salt=b"the salt"), "superseded"),
        (Position(T3, 51), standing(4, 50), "appended"),
        (Position(UNKNOWN, 12), standing(4, 1), "conflict"),
        (Position(LATER, 99), standing(4, 1), "conflict"),
        (Position(LATER, 99), standing(4, 31, Position(LATER, 3)), "appended"),
        (Position(LATER, 99), standing(4, 31, LOST), "conflict"),
        (LOST, standing(4, 50, Position(LATER, 3)), "conflict"),
    ],
)
def test_in_a_guarded_stream_a_greater_one_replaces_what_nobody_wrote_since(
    position: Position, held: dict[Tag, Current], verdict: str
) -> None:
    judged = give_back((position, record()), held=held)
    seq = held[record().tag].seq
    assert (judged.records, judged.refused, dict(judged.superseded)) == {
        "appended": (1, {}, {}),
        "superseded": (0, {}, {0: seq}),
        "conflict": (0, {0: seq}, {}),
    }[verdict]


def test_what_is_refused_leaves_the_others_bytes_and_seqs() -> None:
    others = [(LOST, record(tag)) for tag in (2, 3)]
    judged = give_back(others[0], (LOST, record()), others[1], held=standing(4, 31))
    assert judged.body == encode_segment([record(2), record(3)])
    assert [current.seq for current in judged.holds.values()] == [51, 52]


def test_in_an_atomic_refill_one_conflict_refuses_all_and_one_that_is_superseded_does_not() -> None:
    conflict = give_back((LOST, record()), (LOST, record(2)), held=standing(4, 31))
    superseded = give_back((LOST, record()), (LOST, record(2)), held=standing(7, 30))
    told = refusals([2, 2], {0: superseded, 1: conflict}, True)
    assert [(r.group, r.place, r.reason, r.seq) for r in told] == [
        (0, 0, Refusal.ATOMIC, 0),
        (0, 1, Refusal.ATOMIC, 0),
        (1, 0, Refusal.CONFLICT, 31),
        (1, 1, Refusal.ATOMIC, 0),
    ]
    told = refusals([2, 2], {0: superseded, 1: superseded}, True)
    assert [(r.group, r.place, r.reason, r.seq) for r in told] == [
        (0, 0, Refusal.SUPERSEDED, 30),
        (1, 0, Refusal.SUPERSEDED, 30),
    ]
    told = refusals([2, 2], {0: superseded, 1: conflict}, False)
    assert [(r.group, r.reason) for r in told] == [(0, Refusal.SUPERSEDED), (1, Refusal.CONFLICT)]


# --- histories that are lost


FIRST, SECOND = Term(4, b"\4" * 8), Term(5, b"\5" * 8)
"""Two histories that part in T3 behind its end: the first one after 60, the second one after 55."""

TERMS = {FIRST: LostTerm(T3, 60), SECOND: LostTerm(T3, 55), T3: LostTerm(T1, 30)}


def test_a_line_leads_through_all_terms_that_led_there() -> None:
    assert line_of(Position(FIRST, 70), TERMS) == (Position(FIRST, 70), Position(T3, 60), Position(T1, 30))
    assert line_of(Position(LATER, 5), TERMS) == (Position(LATER, 5),)


def test_a_line_begins_with_the_term_in_which_the_seq_was_written() -> None:
    """A record is held under the newest term of its delivery, which may be later."""
    assert line_of(Position(FIRST, 58), TERMS) == (Position(T3, 58), Position(T1, 30))
    assert line_of(Position(FIRST, 30), TERMS) == (Position(T1, 30),)


def test_terms_that_come_before_each_other_make_no_endless_line() -> None:
    terms = {FIRST: LostTerm(SECOND, 9), SECOND: LostTerm(FIRST, 9)}
    assert len(line_of(Position(FIRST, 10), terms)) <= LOST_TERMS_MAX
    assert line_of(Position(FIRST, 5), terms) == (Position(FIRST, 5),)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (Position(FIRST, 61), Position(FIRST, 70), True),
        (Position(FIRST, 61), Position(T3, 60), True),
        (Position(FIRST, 61), Position(T3, 61), False),
        (Position(FIRST, 61), Position(SECOND, 58), False),
        (Position(SECOND, 58), Position(T3, 55), True),
        (Position(SECOND, 58), Position(T3, 56), False),
        (Position(SECOND, 55), Position(FIRST, 61), True),
        (Position(LATER, 1), Position(FIRST, 61), False),
    ],
)
def test_two_records_are_of_one_line_if_one_came_after_the_other(
    one: Position, other: Position, together: bool
) -> None:
    a, b = line_of(one, TERMS), line_of(other, TERMS)
    assert is_of_one_line(a, b) is is_of_one_line(b, a) is together


def test_the_loss_begins_where_a_line_left_the_newest_term_that_the_relay_knows() -> None:
    known = STATE._replace(head=70)
    assert loss_before(line_of(Position(FIRST, 70), TERMS), known) == 60
    assert loss_before(line_of(Position(FIRST, 70), TERMS), STATE) == 50
    assert loss_before(line_of(Position(LATER, 70), TERMS), STATE) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_of_two_lost_histories_none_replaces_the_other_in_silence(version: int) -> None:
    """Neither author knew of the other's record, though both were lost in the same place and are given back."""
    of_second = line_of(Position(SECOND, 58), TERMS)
    judged = give_back((Position(FIRST, 61), record()), held=standing(version, 51, *of_second), terms=TERMS)
    assert judged.refused == {0: 51}
    judged = give_back((Position(SECOND, 55), record()), held=standing(version, 51, *of_second), terms=TERMS)
    assert judged.refused == {}


def test_what_was_held_before_the_loss_under_a_later_term_is_not_taken_in_again() -> None:
    judged = give_back((Position(FIRST, 30), record()), terms=TERMS)
    assert judged.superseded == {0: 0}


def test_as_many_terms_are_told_as_there_is_room_for_the_nearest_first() -> None:
    many = {Term(n, b"a term.."): LostTerm(Term(n - 1, b"a term.."), n) for n in range(1, 2 * LOST_TERMS_MAX)}
    last = Position(Term(len(many), b"a term.."), 9_999)
    [line] = decode_held(encode_held([last], many), 1)
    assert len(line) == LOST_TERMS_MAX
    assert line == line_of(last, many)


# --- bytes


def test_a_refill_may_mix_authors_and_epochs() -> None:
    mixed = [
        record(1, 9, author=Author(3)),
        record(2, 4, author=Author(300), epoch=2, key_id=KeyId(b"key2")),
        record(3, 6, author=Author(2)),
    ]
    assert finished(surveying_refill(encode_segment(mixed))) == Survey(3, 9, 4, 300, 2, b"key2", 0)


@pytest.mark.parametrize(("last", "epoch", "key"), [(2, 2, b""), (3, 3, b"key3")])
def test_a_refill_may_mix_keys_of_one_epoch(last: int, epoch: int, key: bytes) -> None:
    """Two ends of the membership log have each begun it, and devices have sealed under both."""
    mixed = [
        record(1, 9, epoch=2, key_id=KeyId(b"key1")),
        record(2, 4, epoch=2, key_id=KeyId(b"key2")),
        record(3, 6, epoch=last, key_id=KeyId(b"key%d" % last)),
        record(4, 6, epoch=2, key_id=KeyId(b"key1")),
    ]
    found = finished(surveying_refill(encode_segment(mixed)))
    assert (found.records, found.epoch, found.key_id) == (4, epoch, key)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode_record(record(), 1),
        encode_segment([record()])[:-1],
        encode_segment([record(author=Author(0))]),
    ],
    ids=["empty", "skip", "cut", "author 0"],
)
def test_bytes_that_are_no_refill_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        finished(surveying_refill(data))


def test_a_replica_has_one_record_of_a_tag() -> None:
    with pytest.raises(DecodeError, match="two records of one tag"):
        give_back((LOST, record(version=1)), (LOST, record(version=2)))


def test_each_record_says_where_it_was_held() -> None:
    with pytest.raises(DecodeError):
        read_returned(encode_held([LOST], {}), encode_segment([record(1), record(2)]), 2)
