import traceback
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_client import sealing
from sealwire_client.cipher import Purpose, Secret, keyed_hash, keyed_state, record_seal
from sealwire_client.sealing import (
    Draft,
    Opened,
    Opener,
    Reason,
    Sealer,
    Stream,
    Unopened,
    ValueTooLargeError,
    check_fits,
    pad,
    stream_keys,
    tag_of,
    unpad,
)
from sealwire_protocol.errors import DecodeError, LocalMisuse
from sealwire_protocol.ids import Author, KeyId, StreamId, Tag, VaultId
from sealwire_protocol.limits import PLAINTEXT_BYTES_MAX
from sealwire_protocol.segment import (
    SIGNED,
    TOMBSTONE,
    Record,
    encode_record,
    encode_segment,
    padded_bytes,
    read_record,
    read_segment,
)
from tests.client.ways import WAYS

VAULT, STREAM_ID = VaultId(b"v" * 16), StreamId(b"s" * 8)
TAG_KEY, EPOCH_KEY, HEDGE = Secret(b"T" * 32), Secret(b"E" * 32), Secret(b"H" * 32)
KEY_ID = KeyId(b"kid1")
STREAM = Stream(VAULT, STREAM_ID, TAG_KEY)
KEYS = stream_keys(EPOCH_KEY, 1, KEY_ID, VAULT, STREAM_ID)


def sealer(author: int = 1, epoch: int = 1, random: Callable[[int], bytes] | None = None) -> Sealer:
    keys = stream_keys(EPOCH_KEY, epoch, KEY_ID, VAULT, STREAM_ID)
    if random is None:
        return Sealer(STREAM, keys, Author(author), HEDGE)
    return Sealer(STREAM, keys, Author(author), HEDGE, random)


def opener(stream: Stream = STREAM, epochs: tuple[int, ...] = (1,)) -> Opener:
    return Opener(stream, [stream_keys(EPOCH_KEY, n, KEY_ID, stream.vault, stream.id) for n in epochs])


def record_of(draft: Draft, author: int = 1) -> Record:
    return read_record(sealer(author).seal_many([draft])[0].encoded, 0)[1]


def opened_alone(record: Record, using: Opener | None = None) -> Opened | Unopened:
    found = (using or opener()).open_segment(encode_record(record), 0)
    both: list[Opened | Unopened] = [*found.opened, *found.unopened]
    (one,) = both
    return one


def reason_of(record: Record, using: Opener | None = None) -> Reason:
    one = opened_alone(record, using)
    assert isinstance(one, Unopened)
    return one.reason


def forged(plaintext: bytes, tag: Tag, flags: int = 0) -> Record:
    """A record with any inside, made by a member who has the keys but keeps no rule."""
    own = sealing.CONTEXT_OWN.pack(flags, 1, 7, tag)
    state = keyed_state(KEYS.nonce_key, Purpose.NONCE, 12, sealing._common(STREAM, KEYS))
    state.update(own + bytes(8))
    body = record_seal(KEYS.record_key)(state.digest(), plaintext, sealing._common(STREAM, KEYS) + own)
    return Record(tag, 7, Author(1), 1, KEY_ID, flags, bytes(8), body)


DRAFTS = st.builds(
    Draft,
    st.text(max_size=200),
    st.one_of(st.binary(max_size=300), st.integers(4000, 5000).map(bytes), st.just(b"\x80\0\0")),
    st.one_of(st.integers(1, 2**20), st.integers(2**32 - 2, 2**63 - 1)),
    st.just(0),
    st.none(),
)


@given(st.lists(DRAFTS, max_size=8), st.sampled_from([1, 255, 256, 2**32 - 1]), st.sampled_from([1, 255, 256, 65535]))
def test_what_is_sealed_opens_and_is_sealed_again_to_the_same_bytes(
    drafts: list[Draft], author: int, epoch: int
) -> None:
    writer, reader = sealer(author, epoch), opener(epochs=(epoch,))
    sealed = writer.seal_many(drafts)
    segment = b"".join(record.encoded for record in sealed)
    opened, unopened = reader.open_segment(segment, 100)
    assert not unopened
    assert [(o.key, o.value, o.flags) for o in opened] == [(d.key, d.value, 0) for d in drafts]
    assert [o.seq for o in opened] == list(range(101, 101 + len(drafts)))
    assert [(o.tag, o.rank) for o in opened] == [(s.tag, s.rank) for s in sealed]
    placed = list(read_segment(segment, 100))
    assert [o.rank for o in opened] == [p.record.rank.pack() for p in placed]
    assert [o.key_id for o in opened] == [p.record.key_id for p in placed]
    assert segment == encode_segment(p.record for p in placed)
    again = [
        writer.seal_with_salt(Draft(o.key, o.value, p.record.version, o.flags), Author(author), p.record.salt)
        for o, p in zip(opened, placed, strict=True)
    ]
    assert again == sealed


def test_a_segment_is_the_same_and_as_well_guarded_whatever_way_the_cipher_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drafts = [Draft(f"{n}", bytes(37 * n), n + 1) for n in range(60)] + [Draft("gone", b"", 9, TOMBSTONE)]
    made = set()
    for way in WAYS.values():
        monkeypatch.setattr(sealing, "record_seal", way.seal)
        made.add(b"".join(one.encoded for one in sealer(random=bytes).seal_many(drafts)))
    (segment,) = made
    records = [placed.record for placed in read_segment(segment, 0)]
    bodies = [records[-1].body, *(record.body for record in records[:-1])]
    swapped = encode_segment(record._replace(body=body) for record, body in zip(records, bodies, strict=True))
    moved = encode_segment(record._replace(version=record.version + 1) for record in records)
    for way in WAYS.values():
        monkeypatch.setattr(sealing, "record_open", way.open)
        opened, unopened = opener().open_segment(segment, 0)
        assert not unopened
        assert [(o.key, o.value, o.flags) for o in opened] == [(d.key, d.value, d.flags) for d in drafts]
        for lie in (swapped, moved):
            opened, unopened = opener().open_segment(lie, 0)
            assert not opened
            assert [one.reason for one in unopened] == [Reason.NOT_AUTHENTIC] * len(drafts)


@given(st.lists(st.tuples(DRAFTS, st.integers(0, 2**40)), max_size=6), st.data())
def test_the_fast_loop_and_the_clear_one_agree(placed: list[tuple[Draft, int]], data: st.DataObject) -> None:
    records = [read_record(s.encoded, 0)[1] for s in sealer().seal_many([draft for draft, _ in placed])]
    segment = b"".join(encode_record(r, skip) for r, (_, skip) in zip(records, placed, strict=True))
    if segment and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(segment) - 1))
        segment = segment[:at] + bytes([data.draw(st.integers(0, 255))]) + segment[at + 1 :]
    reader, at, seq, expected = opener(), 0, 0, list[Opened | Unopened]()
    try:
        while at < len(segment):
            one, at = reader.open_record(segment, at, seq)
            seq = one.seq
            expected.append(one)
    except DecodeError:
        with pytest.raises(DecodeError):
            reader.open_segment(segment, 0)
        return
    found = reader.open_segment(segment, 0)
    both: list[Opened | Unopened] = [*found.opened, *found.unopened]
    assert sorted(both, key=lambda one: one.seq) == expected


@given(st.binary(max_size=300))
def test_rubbish_is_a_typed_error_or_does_not_open(data: bytes) -> None:
    try:
        found = opener().open_segment(data, 0)
    except DecodeError:
        return
    assert not found.opened


def test_every_truncation_is_a_decode_error() -> None:
    segment = b"".join(s.encoded for s in sealer().seal_many([Draft("a", b"1", 1), Draft("b", b"2", 2**40)]))
    first = len(sealer().seal_many([Draft("a", b"1", 1)])[0].encoded)
    for end in set(range(1, len(segment))) - {first}:
        with pytest.raises(DecodeError):
            opener().open_segment(segment[:end], 0)


def test_s01_swapped_bodies_do_not_open() -> None:
    one, two = record_of(Draft("a", b"1", 1)), record_of(Draft("b", b"2", 1))
    assert reason_of(one._replace(body=two.body)) is Reason.NOT_AUTHENTIC
    assert reason_of(two._replace(body=one.body)) is Reason.NOT_AUTHENTIC
    assert isinstance(opened_alone(one), Opened)


@pytest.mark.parametrize(
    "moved",
    [
        lambda r: r._replace(tag=tag_of(STREAM, "another")),
        lambda r: r._replace(version=r.version + 1),
        lambda r: r._replace(epoch=2),
        lambda r: r._replace(author=Author(2)),
        lambda r: r._replace(flags=TOMBSTONE),
        lambda r: r._replace(flags=SIGNED),
        lambda r: r._replace(salt=b"othersal"),
    ],
)
def test_s09_a_record_does_not_open_elsewhere(moved: Callable[[Record], Record]) -> None:
    record = record_of(Draft("a", b"1", 5))
    assert isinstance(opened_alone(record, opener(epochs=(1, 2))), Opened)
    assert reason_of(moved(record), opener(epochs=(1, 2))) is Reason.NOT_AUTHENTIC


def test_s09_a_record_does_not_open_in_another_vault_or_stream() -> None:
    record = record_of(Draft("a", b"1", 5))
    vault, stream = VaultId(b"w" * 16), StreamId(b"t" * 8)
    assert reason_of(record, opener(Stream(vault, STREAM_ID, TAG_KEY))) is Reason.NOT_AUTHENTIC
    assert reason_of(record, opener(Stream(VAULT, stream, TAG_KEY))) is Reason.NOT_AUTHENTIC


def test_s09_the_place_is_bound_even_if_the_keys_were_the_same() -> None:
    """The keys differ by vault and stream already; the context must not rely on that."""
    record = record_of(Draft("a", b"1", 5))
    for elsewhere in (Stream(VaultId(b"w" * 16), STREAM_ID, TAG_KEY), Stream(VAULT, StreamId(b"t" * 8), TAG_KEY)):
        assert reason_of(record, Opener(elsewhere, [KEYS])) is Reason.NOT_AUTHENTIC
    for keys in (KEYS._replace(epoch=2), KEYS._replace(key_id=KeyId(b"kid2"))):
        moved = record._replace(epoch=keys.epoch, key_id=keys.key_id)
        assert reason_of(moved, Opener(STREAM, [keys])) is Reason.NOT_AUTHENTIC


def test_a_key_that_is_not_there_is_named_as_the_reason() -> None:
    record = record_of(Draft("a", b"1", 5))
    assert reason_of(record._replace(epoch=9)) is Reason.NO_KEY
    assert reason_of(record._replace(key_id=KeyId(b"nope"))) is Reason.NO_KEY


def test_a_record_that_does_not_open_stops_no_other_and_is_kept() -> None:
    records = [record_of(Draft(f"k{n}", b"v", n + 1)) for n in range(4)]
    records[1] = records[1]._replace(epoch=9)
    records[2] = records[2]._replace(salt=b"othersal")
    segment = b"".join(encode_record(r, skip) for r, skip in zip(records, (0, 300, 3, 0), strict=True))
    opened, unopened = opener().open_segment(segment, 10)
    assert [(o.seq, o.key) for o in opened] == [(11, "k0"), (317, "k3")]
    assert [(u.seq, u.reason) for u in unopened] == [(312, Reason.NO_KEY), (316, Reason.NOT_AUTHENTIC)]
    assert [u.encoded for u in unopened] == [encode_record(records[1]), encode_record(records[2])]
    assert unopened[0].rank == records[1].rank.pack()


def test_a_record_that_claims_to_be_longer_than_what_is_left_is_cut_off() -> None:
    """How many units it has is not bound into the seal: what is there of the last one is authentic."""
    first, last = (record.encoded for record in sealer().seal_many([Draft("a", b"1", 1), Draft("b", b"2", 2)]))
    units_at = len(last) - 16 - 16 - 1
    assert last[units_at] == 1
    longer = last[:units_at] + b"\2" + last[units_at + 1 :]
    with pytest.raises(DecodeError):
        opener().open_segment(first + longer, 0)
    assert reason_of(read_record(longer + bytes(16), 0)[1]) is Reason.NOT_AUTHENTIC
    unpadded = forged(b"\1a" + b"value\x80", tag_of(STREAM, "a"))
    whole = encode_record(unpadded._replace(body=bytes(32)))
    with pytest.raises(DecodeError):
        opener().open_segment(first + whole[:-32] + unpadded.body, 0)


@pytest.mark.parametrize("records_max", [1, 2, 3, 7, 50])
def test_parts_hold_what_the_whole_holds(records_max: int) -> None:
    records = [record_of(Draft(f"{n}", bytes(n * 20), 1 + n % 5 * 2**31)) for n in range(40)]
    records[5] = records[5]._replace(salt=bytes(8))
    segment = b"".join(encode_record(record, n % 3 * 100) for n, record in enumerate(records))
    whole = opener().open_segment(segment, 0)
    parts = list(opener().open_parts(segment, 0, records_max=records_max))
    assert [one for part in parts for one in part.opened] == whole.opened
    assert [one for part in parts for one in part.unopened] == whole.unopened
    assert len(whole.unopened) == 1
    assert all(len(part.opened) == records_max for part in parts[:-1])
    assert all(part.opened or part.unopened for part in parts)


def test_a_record_beyond_the_end_is_in_no_part() -> None:
    segment = b"".join(one.encoded for one in sealer().seal_many([Draft(f"{n}", b"", n + 1) for n in range(6)]))
    parts = opener().open_parts(segment, 0, last=3, records_max=2)
    assert [one.seq for one in next(parts).opened] == [1, 2]
    with pytest.raises(DecodeError):
        next(parts)


def test_epochs_may_alternate_within_a_segment() -> None:
    writers = [sealer(epoch=1), sealer(epoch=2)]
    segment = b"".join(writers[n % 2].seal_many([Draft(f"{n}", b"v", n + 1)])[0].encoded for n in range(6))
    opened, unopened = opener(epochs=(1, 2)).open_segment(segment, 0)
    assert [o.key for o in opened] == list("012345")
    assert not unopened


@pytest.mark.parametrize(
    ("plaintext", "flags", "reason"),
    [
        (pad(b"b", b"value"), 0, Reason.WRONG_TAG),
        (pad(b"a", b"value"), SIGNED, Reason.SIGNED_HERE),
        (pad(b"a", b"value"), TOMBSTONE, Reason.MALFORMED),
        (bytes(16), 0, Reason.MALFORMED),
        (b"\x01a" + bytes(14), 0, Reason.MALFORMED),
        (pad(b"a", b"value") + bytes(16), 0, Reason.MALFORMED),
        (b"\x09a\x80" + bytes(13), 0, Reason.MALFORMED),
        (b"\x81\x00a\x80" + bytes(12), 0, Reason.MALFORMED),
        (b"\x80" + bytes(15), 0, Reason.MALFORMED),
        (b"\xff" * 9 + b"\x80" + bytes(6), 0, Reason.MALFORMED),
    ],
)
def test_a_member_who_breaks_the_layout_harms_nobody(plaintext: bytes, flags: int, reason: Reason) -> None:
    assert reason_of(forged(plaintext, tag_of(STREAM, "a"), flags)) is reason


def test_a_key_that_is_no_text_is_malformed() -> None:
    tag = Tag(keyed_hash(TAG_KEY, Purpose.TAG, STREAM_ID + b"\xff\xfe", 16))
    assert reason_of(forged(pad(b"\xff\xfe", b""), tag)) is Reason.MALFORMED


def test_s13_frozen_randomness_gives_different_contents_different_salts() -> None:
    def frozen(size: int) -> bytes:
        return bytes(size)

    base = Draft("a", b"1", 1)
    variants = [
        base,
        base._replace(key="b"),
        base._replace(value=b"2"),
        base._replace(version=2),
        Draft("a", b"", 1, 1),
    ]
    salts = {read_record(sealer(random=frozen).seal_many([draft])[0].encoded, 0)[1].salt for draft in variants}
    salts |= {read_record(sealer(2, random=frozen).seal_many([base])[0].encoded, 0)[1].salt}
    salts |= {read_record(sealer(epoch=2, random=frozen).seal_many([base])[0].encoded, 0)[1].salt}
    elsewhere = Stream(VAULT, StreamId(b"t" * 8), TAG_KEY)
    salts |= {read_record(Sealer(elsewhere, KEYS, Author(1), HEDGE, frozen).seal_many([base])[0].encoded, 0)[1].salt}
    assert len(salts) == len(variants) + 3
    assert sealer(random=frozen).seal_many([base]) == sealer(random=frozen).seal_many([base])


def test_each_record_of_a_batch_has_randomness_of_its_own() -> None:
    sealed = sealer().seal_many([Draft("a", b"1", 1)] * 50)
    assert len({s.rank for s in sealed}) == 50


@given(st.integers(0, 70_000).map(bytes), st.binary(max_size=300))
@settings(max_examples=30)
def test_padding(value: bytes, key: bytes) -> None:
    try:
        padded = pad(key, value)
    except ValueTooLargeError:
        assert len(key) + len(value) + 3 > PLAINTEXT_BYTES_MAX - 1
        return
    assert unpad(padded) == (key, value)
    assert len(padded) % 16 == 0


@pytest.mark.parametrize("size", [*range(300), 511, 512, 4095, 65532])
def test_sizes_are_padded_as_the_protocol_says(size: int) -> None:
    padded = pad(b"k", b"v" * size)
    assert len(padded) == padded_bytes(size + 2)
    assert unpad(padded) == (b"k", b"v" * size)


def test_the_largest_entry_fits_and_one_byte_more_does_not() -> None:
    largest = PLAINTEXT_BYTES_MAX - 1 - 2
    check_fits("k", b"v" * largest)
    sealed = sealer().seal_many([Draft("k", b"v" * largest, 1)])[0]
    assert opener().open_segment(sealed.encoded, 0).opened[0].value == b"v" * largest
    with pytest.raises(ValueTooLargeError, match=r"65,536 bytes \(key 1, value 65,534\).*65,535 bytes; split"):
        check_fits("k", b"v" * (largest + 1))
    with pytest.raises(ValueTooLargeError):
        sealer().seal_many([Draft("a", b"1", 1), Draft("k", b"v" * (largest + 1), 2)])


@pytest.mark.parametrize("draft", [Draft("a", b"x", 1, TOMBSTONE), Draft("a", b"", 1, SIGNED), Draft("a", b"", 1, 4)])
def test_flags_that_nobody_could_read_are_not_sealed(draft: Draft) -> None:
    with pytest.raises(LocalMisuse):
        sealer().seal_many([draft])
    with pytest.raises(LocalMisuse):
        sealer().seal_with_salt(draft, Author(1), bytes(8))


def test_tags_tell_entries_and_streams_apart() -> None:
    other = Stream(VAULT, StreamId(b"t" * 8), TAG_KEY)
    assert len({tag_of(STREAM, "a"), tag_of(STREAM, "b"), tag_of(other, "a")}) == 3
    assert record_of(Draft("a", b"1", 1)).tag == tag_of(STREAM, "a")


def test_s22_neither_keys_nor_plaintexts_show_in_errors() -> None:
    secret = Secret(b"canary canary canary canary can!")
    keys = stream_keys(secret, 1, KEY_ID, VAULT, STREAM_ID)
    writer = Sealer(Stream(VAULT, STREAM_ID, secret), keys, Author(1), secret)
    with pytest.raises(UnicodeEncodeError) as caught:
        writer.seal_many([Draft("\ud800", b"x", 1)])
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    text += repr(keys) + repr(writer) + repr(STREAM)
    assert "canary" not in text
    assert keys.record_key.reveal().hex() not in text
    assert repr(keys.record_key.reveal())[2:-1] not in text
