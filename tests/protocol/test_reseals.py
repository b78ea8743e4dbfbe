"""Reseals, judged: only the very record that is named is replaced, by itself under a later key."""

import pytest

from sealwire_protocol.conditions import Current
from sealwire_protocol.errors import DecodeError
from sealwire_protocol.ids import Author, KeyId, Position, StreamId, Tag, Term, TermStart
from sealwire_protocol.messages import REFILL, RESEAL, StreamKind, StreamState, push_since
from sealwire_protocol.reseals import (
    decode_applied,
    encode_applied,
    judge_resealed,
    read_resealed,
    survey_of,
    surveying_of,
)
from sealwire_protocol.segment import TOMBSTONE, WALK_RECORDS, Record, encode_record, encode_segment

T1, T2 = Term(1, b"first..."), Term(2, b"second..")
STATE = StreamState(StreamId(b"a stream"), StreamKind.GUARDED, 50, 9, 0, 0, 0, 0, (TermStart(T1, 0), TermStart(T2, 30)))
OLD, NEW = b"old salt", b"new salt"


def record(tag: int = 1, version: int = 5, epoch: int = 2, author: int = 3, flags: int = 0) -> Record:
    return Record(Tag(bytes([tag]) * 16), version, Author(author), epoch, KeyId(b"key."), flags, NEW, bytes(32))


def standing(version: int = 5, salt: bytes = OLD, epoch: int = 1, tombstone: bool = False) -> Current:
    return Current(version, salt, tombstone, 20, epoch=epoch)


@pytest.mark.parametrize(
    ("held", "accepted"),
    [
        (standing(), True),
        (standing(epoch=0), True),
        (standing(epoch=2), False),
        (standing(epoch=3), False),
        (standing(version=4), False),
        (standing(version=6), False),
        (standing(salt=NEW), False),
        (standing(tombstone=True), False),
        (None, False),
    ],
)
def test_a_record_is_replaced_by_itself_under_a_later_key(held: Current | None, accepted: bool) -> None:
    one = record()
    found = judge_resealed(read_resealed(OLD, encode_record(one), 1), encode_record(one), 50, STATE, lambda tag: held)
    if not accepted:
        assert (found.records, found.body, found.holds) == (0, b"", {})
        assert found.refused == {0: 0 if held is None else 20}
        return
    assert (found.records, found.top, found.refused, found.body) == (1, 5, {}, encode_record(one))
    assert found.holds == {one.tag: Current(5, NEW, False, 51, (Position(T1, 20),), 2)}


def test_the_others_of_a_group_are_taken_and_what_was_given_back_keeps_its_line() -> None:
    lost = (Position(Term(9, b"lost...."), 7),)
    held = {record(2).tag: standing()._replace(line=lost), record(3).tag: standing()._replace(seq=31)}
    records = [record(1), record(2), record(3)]
    body = encode_segment(records)
    found = judge_resealed(read_resealed(3 * OLD, body, 3), body, 50, STATE, held.get)
    assert (found.records, found.refused, found.body) == (2, {0: 0}, encode_segment(records[1:]))
    assert [(one.seq, one.line) for one in found.holds.values()] == [(51, lost), (52, (Position(T2, 31),))]


def test_a_deletion_may_be_sealed_anew_too() -> None:
    body = encode_record(record(flags=TOMBSTONE))
    found = judge_resealed(read_resealed(OLD, body, 1), body, 50, STATE, lambda tag: standing(tombstone=True))
    assert found.records == 1 and found.holds[record().tag].tombstone


def test_what_is_said_of_a_group_is_said_of_each_record_once() -> None:
    two = encode_segment([record(1), record(2)])
    for stated in (b"", OLD, 2 * OLD + b"x", 3 * OLD):
        with pytest.raises(DecodeError, match="does not name"):
            read_resealed(stated, two, 2)
    with pytest.raises(DecodeError, match="one tag"):
        read_resealed(2 * OLD, encode_segment([record(1), record(1)]), 2)


def test_where_an_open_stream_stood_is_one_position() -> None:
    applied = Position(T2, 1 << 40)
    assert decode_applied(encode_applied(applied)) == applied
    for spoilt in (b"", encode_applied(applied)[:-1], encode_applied(applied) + b"\0"):
        with pytest.raises(DecodeError):
            decode_applied(spoilt)


def test_a_reseal_has_one_key_and_records_of_any_authors() -> None:
    assert survey_of(RESEAL, encode_segment([record(author=3), record(2, author=4)])).records == 2
    with pytest.raises(DecodeError, match="authors"):
        survey_of(0, encode_segment([record(author=3), record(2, author=4)]))
    with pytest.raises(DecodeError, match="keys"):
        survey_of(RESEAL, encode_segment([record(epoch=2), record(2, epoch=3)]))
    with pytest.raises(DecodeError, match="no author"):
        survey_of(RESEAL, encode_record(record(author=0)))


@pytest.mark.parametrize("flags", [0, REFILL, RESEAL])
def test_a_large_group_of_any_kind_is_walked_with_pauses(flags: int) -> None:
    large = encode_segment([record()] * (3 * WALK_RECORDS + 1))
    assert len(list(surveying_of(flags, large))) == 3
    assert survey_of(flags, large).records == 3 * WALK_RECORDS + 1


def test_it_came_with_version_2() -> None:
    assert (push_since(0), push_since(REFILL), push_since(RESEAL)) == (1, 2, 2)
