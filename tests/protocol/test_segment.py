"""Records and segments: one encoding each, places that skip, and what the relay learns of a push."""

from functools import reduce
from operator import and_

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.ids import KeyId, Tag
from sealwire_protocol.limits import PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, VERSION_LAST
from sealwire_protocol.segment import (
    OVERHEAD_BYTES_MIN,
    RANK_BYTES,
    TOMBSTONE,
    Placed,
    Rank,
    Record,
    Survey,
    decode_varint,
    encode_record,
    encode_segment,
    encode_varint,
    finished,
    padded_bytes,
    read_record,
    read_segment,
    survey_single,
    surveying,
)
from tests.protocol.examples import record
from tests.protocol.strategies import any_record, exactly, sized

often = settings(max_examples=100)
WIDE = 8

ranks = st.builds(Rank, sized(64), sized(16), sized(32), exactly(8))


@often
@given(any_record, st.sampled_from([0, 1, 127, 128, 1 << 40]))
def test_a_record_has_one_encoding(given_record: Record, skip: int) -> None:
    data = encode_record(given_record, skip)
    assert read_record(data, 0) == (skip, given_record, len(data))
    assert encode_record(read_record(data, 0)[1], skip) == data
    with pytest.raises(DecodeError):
        read_record(data[:-1], 0)


@pytest.mark.parametrize(
    ("change", "wide"),
    [
        ({"version": (1 << 32) - 1, "author": 255, "epoch": 255}, False),
        ({"version": 1 << 32}, True),
        ({"author": 256}, True),
        ({"epoch": 256}, True),
        ({"body": bytes(255 * 16 + 16)}, False),
        ({"body": bytes(256 * 16 + 16)}, True),
    ],
)
def test_a_record_is_wide_iff_a_number_needs_it(change: dict[str, int], wide: bool) -> None:
    assert bool(encode_record(record(1)._replace(**change))[1] & WIDE) == wide  # type: ignore[arg-type]


def test_a_compact_record_costs_53_bytes_beside_its_plaintext() -> None:
    assert OVERHEAD_BYTES_MIN == 53 and len(encode_record(record(1, units=2))) == 53 + 32
    largest = record(1)._replace(version=VERSION_LAST, body=bytes(PLAINTEXT_BYTES_MAX + 16))
    assert len(encode_record(largest)) <= RECORD_BYTES_MAX


def test_a_record_wider_than_it_needs_is_refused() -> None:
    wide = bytearray(encode_record(record(1)._replace(version=1 << 32)))
    wide[18:26] = (7).to_bytes(8, "big")
    with pytest.raises(DecodeError, match="wider"):
        read_record(bytes(wide), 0)


@pytest.mark.parametrize("version", (1 << 63, (1 << 64) - 1))
def test_a_version_above_the_last_that_there_is_is_refused(version: int) -> None:
    data = bytearray(encode_record(record(1)._replace(version=VERSION_LAST)))
    data[18:26] = version.to_bytes(8, "big")
    with pytest.raises(DecodeError, match="version"):
        read_record(bytes(data), 0)


@pytest.mark.parametrize("kind", (0x00, 0x20, 0x14, 0x90, 0xFF))
def test_an_unknown_format_or_flag_is_refused(kind: int) -> None:
    data = bytearray(encode_record(record(1)))
    data[1] = kind
    with pytest.raises(DecodeError):
        read_record(bytes(data), 0)


def test_a_record_without_contents_or_with_too_much_is_refused() -> None:
    empty = bytearray(encode_record(record(1, units=1)))
    empty[36] = 0
    with pytest.raises(DecodeError, match="size"):
        read_record(bytes(empty), 0)
    large = bytearray(encode_record(record(1)._replace(body=bytes(PLAINTEXT_BYTES_MAX + 16))))
    large[44:46] = b"\xff\xff"
    with pytest.raises(DecodeError, match="size"):
        read_record(bytes(large), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        record(1)._replace(body=bytes(40)),
        record(1)._replace(body=bytes(16)),
        record(1)._replace(body=bytes(PLAINTEXT_BYTES_MAX + 32)),
        record(1)._replace(tag=Tag(bytes(15))),
        record(1)._replace(key_id=KeyId(bytes(5))),
        record(1)._replace(salt=bytes(7)),
        record(1)._replace(flags=4),
        record(1)._replace(flags=8),
        record(1)._replace(version=1 << 63),
        record(1)._replace(version=-1),
        record(1)._replace(epoch=1 << 16),
    ],
)
def test_what_is_no_record_is_our_mistake(wrong: Record) -> None:
    with pytest.raises(LocalMisuse):
        encode_record(wrong)


# --- segments


@often
@given(st.lists(st.tuples(any_record, st.integers(0, 300)), max_size=5), st.integers(0, 1 << 40))
def test_a_records_place_gives_its_seq(items: list[tuple[Record, int]], prev: int) -> None:
    data = b"".join(encode_record(one, skip) for one, skip in items)
    seq, expected = prev, []
    for one, skip in items:
        seq += skip + 1
        expected.append(Placed(seq, one))
    assert list(read_segment(data, prev)) == expected


def test_a_fresh_segment_skips_nothing() -> None:
    data = encode_segment([record(1), record(2), record(3)])
    assert [placed.seq for placed in read_segment(data, 41)] == [42, 43, 44]
    assert list(read_segment(b"", 41)) == []


@pytest.mark.parametrize("skip", (0, 1, (1 << 63) - 1))
def test_a_segment_that_holds_a_record_past_its_end_is_refused(skip: int) -> None:
    data = encode_record(record(1)) + encode_record(record(2), skip)
    assert [placed.seq for placed in read_segment(encode_record(record(1)), 41, 42)] == [42]
    with pytest.raises(DecodeError, match="up to 42"):
        list(read_segment(data, 41, 42))
    with pytest.raises(DecodeError):
        list(read_segment(encode_record(record(1), (1 << 63) - 1), 41))


def test_a_survey_tells_what_the_relay_must_know() -> None:
    found = finished(surveying(encode_segment([record(5), record(9), record(7)])))
    assert found == Survey(3, 9, 5, 1, 1, b"kkkk", 0)
    gone = [record(version)._replace(flags=TOMBSTONE) for version in (1, 2)]
    assert finished(surveying(encode_segment(gone))).flags == TOMBSTONE
    assert finished(surveying(encode_segment([*gone, record(3)]))).flags == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode_record(record(1), skip=1),
        encode_segment([record(1), record(2)._replace(author=record(1).author.__class__(2))]),
        encode_segment([record(1), record(2)._replace(epoch=2)]),
        encode_segment([record(1), record(2)._replace(key_id=KeyId(b"llll"))]),
        encode_segment([record(1)]) + b"\0",
        encode_segment([record(1), record(2)])[:-1],
    ],
)
def test_a_push_that_is_not_of_one_author_and_key_or_not_fresh_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        finished(surveying(data))


def read_one_by_one(data: bytes) -> Survey | None:
    """What a survey is to find, or that it is to refuse."""
    found: list[Record] = []
    at = 0
    while at < len(data):
        try:
            skip, one, at = read_record(data, at)
        except DecodeError:
            return None
        if skip or not one.author:
            return None
        found.append(one)
    if len({(one.author, one.epoch, one.key_id) for one in found}) != 1:
        return None
    versions, flags = [one.version for one in found], [one.flags for one in found]
    of = found[0].author, found[0].epoch, found[0].key_id
    return Survey(len(found), max(versions), min(versions), *of, reduce(and_, flags))


@often
@given(st.lists(any_record, min_size=1, max_size=4), st.data())
def test_a_survey_finds_what_reading_record_by_record_does(records: list[Record], data: st.DataObject) -> None:
    of = records[0]
    alike = [one._replace(author=of.author, epoch=of.epoch, key_id=of.key_id) for one in records]
    raw = bytearray(encode_segment(alike))
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    whole = bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))])
    try:
        found = finished(surveying(whole))
    except DecodeError:
        found = None
    assert found == read_one_by_one(whole)


@often
@given(any_record, st.integers(0, 1), st.data())
def test_a_single_record_is_surveyed_at_once_as_it_would_be_walked(one: Record, skip: int, data: st.DataObject) -> None:
    raw = bytearray(encode_record(one, skip) * data.draw(st.integers(0, 2)))
    for _ in range(data.draw(st.integers(0, 2)) if raw else 0):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 60)))] = data.draw(st.integers(0, 255))
    found = survey_single(bytes(raw))
    assert found is None or found == finished(surveying(bytes(raw)))


def test_what_nearly_all_push_is_surveyed_at_once() -> None:
    assert survey_single(encode_record(record(5))) == Survey(1, 5, 5, 1, 1, b"kkkk", 0)
    assert survey_single(encode_segment([record(5), record(6)])) is None


# --- ranks


@often
@given(ranks, ranks)
def test_packed_ranks_compare_as_ranks_do(one: Rank, other: Rank) -> None:
    assert (one.pack() < other.pack()) == (one < other) and (one.pack() == other.pack()) == (one == other)
    assert Rank.unpack(one.pack()) == one and len(one.pack()) == RANK_BYTES == 22


@often
@given(any_record)
def test_a_records_rank_is_in_the_order_of_the_rule(one: Record) -> None:
    assert one.rank == (one.version, one.epoch, one.author, one.salt)
    assert one._replace(version=one.version + 1, epoch=0).rank > one.rank


# --- numbers and padding


@often
@given(sized(63), st.binary(max_size=3))
def test_a_varint_is_read_as_it_was_written(value: int, more: bytes) -> None:
    data = encode_varint(value)
    assert decode_varint(data + more, 0) == (value, len(data)) and len(data) <= 9


def test_numbers_that_no_varint_holds_are_our_mistake() -> None:
    for value in (-1, 1 << 63):
        with pytest.raises(LocalMisuse):
            encode_varint(value)


@often
@given(st.integers(0, PLAINTEXT_BYTES_MAX - 1))
def test_padding_wastes_little_and_fits_units(length: int) -> None:
    padded = padded_bytes(length)
    assert padded % 16 == 0 and length < padded <= PLAINTEXT_BYTES_MAX
    assert padded_bytes(padded - 1) == padded
    assert padded - (length + 1) < 16 or (padded - (length + 1)) / (length + 1) <= 0.12


def test_padding_has_few_steps() -> None:
    steps = sorted({padded_bytes(length) for length in range(PLAINTEXT_BYTES_MAX)})
    assert steps[:17] == [*range(16, 257, 16), 272] and steps[-1] == PLAINTEXT_BYTES_MAX and len(steps) < 150
    assert all(padded_bytes(a) <= padded_bytes(a + 1) for a in range(3_000))


def test_records_do_not_print_what_they_hold() -> None:
    assert repr(record(7)) == "<Record v7 author=1 epoch=1 48 B>"
