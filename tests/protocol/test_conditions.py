"""Conditions of guarded writes: their bytes, when they hold, and what becomes of a push (R5)."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwire_protocol.conditions import (
    NOTHING,
    Condition,
    Current,
    Judged,
    Names,
    decode_conditions,
    encode_condition,
    holds,
    judge,
    read_writes,
    refusals,
    with_winners,
)
from sealwire_protocol.errors import DecodeError, Outcome, Refusal
from sealwire_protocol.ids import Author, KeyId, Position, Tag, Term, VaultId
from sealwire_protocol.limits import WINNERS_BYTES_MAX
from sealwire_protocol.lines import LostTerm, compared_at, decode_held, encode_held, line_of
from sealwire_protocol.messages import Pushed, Refused
from sealwire_protocol.segment import TOMBSTONE, Record, encode_record, encode_segment
from tests.protocol.strategies import exactly, sized
from tests.protocol.vectors import CONDITIONS, VALID, generate_conditions

A, B, C = b"salt a..", b"salt b..", b"salt c.."

named = st.builds(Condition, st.sampled_from([Names.ENTRY, Names.TOMBSTONE]), sized(63), exactly(8))
any_condition = st.just(NOTHING) | named


def encode(conditions: list[Condition]) -> bytes:
    return b"".join(map(encode_condition, conditions))


# --- bytes


def test_the_vectors_are_as_the_generator_writes_them() -> None:
    assert CONDITIONS.read_text(encoding="utf-8") == generate_conditions()


@pytest.mark.parametrize("given", json.loads(generate_conditions())["valid"], ids=lambda given: given["hex"][:20])
def test_conditions_of_the_vectors_are_read(given: dict[str, Any]) -> None:
    rows = [Condition(Names(names), version, bytes.fromhex(salt)) for names, version, salt in given["conditions"]]
    assert decode_conditions(bytes.fromhex(given["hex"]), len(rows)) == rows
    assert tuple(rows) in VALID


def term(given: Any) -> Term:
    """A term as the vectors write it."""
    return Term(given[0], bytes.fromhex(given[1]))


def position(given: Any) -> Position:
    """A position as the vectors write it."""
    return Position(term(given[0]), given[1])


@pytest.mark.parametrize("given", json.loads(generate_conditions())["valid_held"], ids=lambda given: given["hex"][:20])
def test_positions_of_the_vectors_are_read(given: dict[str, Any]) -> None:
    rows = [position(found) for found in given["positions"]]
    terms = {term(found): LostTerm(term(before), start) for found, before, start in given["before"]}
    lines = [tuple(map(position, line)) for line in given["lines"]]
    assert decode_held(bytes.fromhex(given["hex"]), len(rows)) == lines == [line_of(row, terms) for row in rows]
    compared = position(given["compared"])
    assert encode_held(rows, terms, compared).hex() == given["hex"]
    assert compared_at(bytes.fromhex(given["hex"])) == compared


@pytest.mark.parametrize("given", json.loads(generate_conditions())["invalid_held"], ids=lambda given: given["case"])
def test_bytes_that_are_no_positions_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode_held(bytes.fromhex(given["hex"]), given["count"])


@pytest.mark.parametrize("given", json.loads(generate_conditions())["invalid"], ids=lambda given: given["case"])
def test_bytes_that_are_no_conditions_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode_conditions(bytes.fromhex(given["hex"]), given["count"])


@given(st.lists(any_condition, min_size=1, max_size=6))
def test_what_is_encoded_is_decoded(conditions: list[Condition]) -> None:
    data = encode(conditions)
    assert decode_conditions(data, len(conditions)) == conditions
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode_conditions(data[:end], len(conditions))


@given(st.binary(max_size=80), st.integers(0, 6))
def test_bytes_have_one_meaning_or_none(data: bytes, count: int) -> None:
    try:
        conditions = decode_conditions(data, count)
    except DecodeError:
        return
    assert encode(conditions) == data


# --- when a condition holds

ENTRY, GONE = Current(5, A, False, 9), Current(5, A, True, 9)
CONDITIONS_OF_ALL_KINDS = {
    "nothing": NOTHING,
    "this entry": Condition(Names.ENTRY, 5, A),
    "this tombstone": Condition(Names.TOMBSTONE, 5, A),
    "another version": Condition(Names.ENTRY, 4, A),
    "another salt": Condition(Names.ENTRY, 5, B),
    "another tombstone": Condition(Names.TOMBSTONE, 4, B),
}
TRUE = {
    "absent": {"nothing", "this tombstone", "another tombstone"},
    "entry": {"this entry", "this tombstone"},
    "tombstone": {"nothing", "this entry", "this tombstone"},
}


@pytest.mark.parametrize("condition", CONDITIONS_OF_ALL_KINDS)
@pytest.mark.parametrize(("state", "current"), [("absent", None), ("entry", ENTRY), ("tombstone", GONE)])
def test_when_a_newer_record_is_accepted(state: str, current: Current | None, condition: str) -> None:
    for version, salt in itertools.product((6, 2**40), (A, B)):
        assert holds(CONDITIONS_OF_ALL_KINDS[condition], current, version, salt) is (condition in TRUE[state])


@pytest.mark.parametrize("condition", CONDITIONS_OF_ALL_KINDS.values())
@pytest.mark.parametrize("current", [ENTRY, GONE])
def test_an_equal_record_is_always_accepted_and_an_older_one_never(current: Current, condition: Condition) -> None:
    assert holds(condition, current, 5, A)
    for version, salt in ((5, B), (4, A), (4, B), (0, A)):
        assert not holds(condition, current, version, salt)


# --- what becomes of a push


def tag(number: int) -> Tag:
    return Tag(bytes([number]) * 16)


def record(number: int, version: int, salt: bytes = A, flags: int = 0, units: int = 1) -> Record:
    body = bytes([version % 256]) * (16 * units + 16)
    return Record(tag(number), version, Author(1), 1, KeyId(b"key1"), flags, salt, body)


def judged(held: dict[Tag, Current], *pairs: tuple[Condition, Record], head: int = 100) -> Any:
    records = encode_segment([record for _, record in pairs])
    writes = read_writes(encode([condition for condition, _ in pairs]), records, len(pairs))
    return judge(writes, records, head, held.get)


def test_refused_records_are_cut_out_and_the_others_follow_each_other() -> None:
    held = {tag(1): Current(5, A, False, 70), tag(4): ENTRY, tag(3): Current(8, C, True, 71)}
    good = [(Condition(Names.ENTRY, 5, A), record(1, 6, B)), (NOTHING, record(3, 9, B, TOMBSTONE))]
    bad = [(NOTHING, record(4, 30, C)), (Condition(Names.ENTRY, 1, A), record(2, 40))]
    found = judged(held, good[0], *bad, good[1])
    assert (found.records, found.top) == (2, 9)
    assert found.body == encode_segment([good[0][1], good[1][1]])
    assert found.holds == {tag(1): Current(6, B, False, 101, epoch=1), tag(3): Current(9, B, True, 102, epoch=1)}
    assert found.refused == {1: 9, 2: 0}


def test_what_is_accepted_whole_keeps_its_bytes() -> None:
    pairs = [(NOTHING, record(1, 5)), (NOTHING, record(2, 5)), (NOTHING, record(3, 6, B))]
    found = judged({tag(2): Current(5, A, False, 70)}, *pairs)
    assert found.body == encode_segment([record for _, record in pairs])
    assert found.holds[tag(2)] == Current(5, A, False, 102, epoch=1), "an equal record is appended again"
    assert (found.records, found.top, found.refused) == (3, 6, {})


def test_a_group_with_two_records_of_one_tag_makes_no_sense() -> None:
    with pytest.raises(DecodeError, match="one tag"):
        judged({}, (NOTHING, record(1, 5)), (NOTHING, record(2, 5)), (Condition(Names.ENTRY, 5, A), record(1, 6)))


def test_nothing_accepted_is_no_bytes() -> None:
    found = judged({tag(1): ENTRY}, (NOTHING, record(1, 6)))
    assert found == Judged(0, 0, b"", {}, {0: 9})


def test_refusals_are_told_one_by_one_unless_the_push_is_atomic() -> None:
    held = {tag(1): ENTRY}
    found = {
        1: judged(held, (NOTHING, record(2, 6)), (NOTHING, record(1, 6)), (Condition(Names.ENTRY, 1, A), record(3, 6)))
    }
    conflicts = (Refused(1, 1, Refusal.CONFLICT, 9, b""), Refused(1, 2, Refusal.CONFLICT, 0, b""))
    assert refusals([2, 3], found, atomic=False) == conflicts
    others = [Refused(group, place, Refusal.ATOMIC, 0, b"") for group, place in ((0, 0), (0, 1), (1, 0))]
    assert refusals([2, 3], found, atomic=True) == (*others, *conflicts)
    fine = {1: judged({}, (NOTHING, record(1, 6)))}
    assert refusals([2, 1], fine, atomic=True) == refusals([2, 1], fine, atomic=False) == ()


def test_winners_are_told_as_far_as_they_fit() -> None:
    large, small = record(1, 5, units=3_000), record(2, 5)
    rows = [Refused(0, place, Refusal.CONFLICT, seq, b"") for place, seq in enumerate((7, 7, 7, 8, 0, 9))]
    pushed = Pushed(VaultId(bytes(16)), 3, Outcome.DONE, (), tuple(rows))
    told = with_winners(pushed, {(0, 7): large, (0, 8): small, (1, 9): small})
    winners = [refused.winner for refused in told.refused]
    one = encode_record(large)
    assert winners == [one, one, b"", encode_record(small), b"", b""]
    assert sum(map(len, winners)) <= WINNERS_BYTES_MAX < 3 * len(one)
    assert [refused._replace(winner=b"") for refused in told.refused] == rows
