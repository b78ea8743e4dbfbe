"""R13: comparing two histories by sums over ranges of tags, whatever lies in them, and whoever lies about them."""

import io
import os
import random
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealwire_protocol import codec, reconcile
from sealwire_protocol.errors import DecodeError, LocalMisuse, RemoteFault
from sealwire_protocol.ids import START, Tag
from sealwire_protocol.limits import BRANCH_ITEMS_MAX, RECONCILE_PREFIXES_MAX, SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Branch, Item, Prefix, Ranges, Reconcile, Summary
from sealwire_protocol.reconcile import (
    ITEM_BYTES,
    ROOT,
    Comparison,
    Difference,
    Gathering,
    Tree,
    check_prefix,
    fingerprint,
    pack_item,
    summary_of,
    unpack_item,
)
from sealwire_protocol.segment import TOMBSTONE, Rank, Record, encode_record, encode_segment, read_segment
from tests.protocol.examples import STREAM, record
from tests.protocol.strategies import any_record
from tests.support.link import VAULT

Held = dict[bytes, bytes]
"""What one side holds: packed ranks by tag."""

EVERYWHERE = st.binary(min_size=16, max_size=16)
NEARBY = st.builds(
    lambda kept, tail: (b"\xab" * 16)[:kept] + (tail + bytes(16))[: 16 - kept], st.integers(0, 15), EVERYWHERE
)
"""Tags that begin alike, some up to their last byte: as nobody's hash makes them, but whoever lies can."""

any_tag = EVERYWHERE | NEARBY
any_held = st.dictionaries(any_tag, st.integers(0, 3).map(lambda version: rank_of(version)), max_size=60)
few = settings(max_examples=25, deadline=None)


def rank_of(version: int, epoch: int = 1, author: int = 1, salt: bytes = bytes(8)) -> bytes:
    return Rank(version, epoch, author, salt).pack()


def tree_of(held: Held, small: bool = True) -> Tree:
    gathering = Gathering()
    gathering.add(pack_item(Tag(tag), rank, place, 0) for place, (tag, rank) in enumerate(held.items(), 1))
    with mock.patch.object(reconcile, "SMALL_ITEMS", reconcile.SMALL_ITEMS if small else -1):
        return gathering.build()


def random_held(count: int, seed: int) -> Held:
    chance = random.Random(seed)
    return {chance.randbytes(16): rank_of(chance.randrange(100)) for _ in range(count)}


def all_items(tree: Tree) -> list[Item]:
    return [unpack_item(item) for item in tree.items(ROOT)]


def prefix(nibbles: int, tag: bytes = b"\xab" * 16) -> Prefix:
    """The range of so many half-bytes in which a tag lies."""
    path = int.from_bytes(tag, "big") >> 4 * (32 - nibbles) << 4 * (32 - nibbles)
    return Prefix(nibbles, path.to_bytes(16, "big"))


def compare(mine: Tree, theirs: Tree) -> tuple[list[Difference], int, int]:
    """What differs, the bytes that it took on the wire, and the rounds."""
    comparison, size, rounds = Comparison(mine), 0, 0
    while asked := comparison.ask():
        assert len(asked) <= RECONCILE_PREFIXES_MAX and not comparison.done
        question = Reconcile(1, VAULT, STREAM, START, asked)
        branches = tuple(map(theirs.branch, asked))
        answer = Ranges(1, VAULT, STREAM, START, theirs.total, 0, 0, 0, 0, 0, (), branches)
        size += len(codec.encode(question)) + len(codec.encode(answer))
        comparison.take(asked, branches)
        rounds += 1
    assert comparison.done
    return comparison.differing, size, rounds


def told(differing: list[Difference]) -> dict[bytes, tuple[bytes | None, bytes | None]]:
    """The ranks of both sides by tag, each tag once."""
    found = {d.tag: (d.mine and d.mine[16:38], d.theirs and d.theirs.rank) for d in differing}
    assert len(found) == len(differing)
    return found  # type: ignore[return-value]


# --- the comparison


@few
@given(any_held, any_held, st.data())
def test_it_finds_exactly_what_differs(mine: Held, theirs: Held, data: st.DataObject) -> None:
    shared = data.draw(any_held)
    mine, theirs = {**shared, **mine}, {**shared, **theirs}
    differing, _, rounds = compare(tree_of(mine, data.draw(st.booleans())), tree_of(theirs, data.draw(st.booleans())))
    assert told(differing) == {
        tag: (mine.get(tag), theirs.get(tag)) for tag in mine | theirs if mine.get(tag) != theirs.get(tag)
    }
    assert rounds <= 33


def test_a_hundred_differences_among_many_take_few_bytes_and_rounds() -> None:
    mine = random_held(30_000, 1)
    theirs = dict(mine)
    for tag in random.Random(2).sample(list(mine), 50):
        theirs[tag] = rank_of(101)
    for tag in random.Random(3).sample([tag for tag in mine if mine[tag] == theirs[tag]], 25):
        del theirs[tag]
    theirs |= random_held(25, 4)
    differing, size, rounds = compare(tree_of(mine), tree_of(theirs))
    assert len(told(differing)) == 100
    assert size < 100_000 and rounds <= 7


def test_two_that_hold_the_same_find_out_by_one_question() -> None:
    """Where their records stand, and in which order they came, does not matter."""
    held = random_held(500, 1)
    again = dict(reversed(held.items()))
    differing, size, rounds = compare(tree_of(held), tree_of(again))
    assert (differing, rounds) == ([], 1) and size < 500


def test_all_of_it_differs_where_one_side_is_empty() -> None:
    held = random_held(200, 1)
    assert told(compare(tree_of(held), tree_of({}))[0]) == {tag: (rank, None) for tag, rank in held.items()}
    assert told(compare(tree_of({}), tree_of(held))[0]) == {tag: (None, rank) for tag, rank in held.items()}
    assert compare(tree_of({}), tree_of({}))[0] == []


def test_tags_that_differ_in_their_last_bits_alone_are_told_apart() -> None:
    mine = {b"\xab" * 15 + bytes([n]): rank_of(1) for n in range(64)}
    theirs = {**mine, b"\xab" * 15 + b"\7": rank_of(2)}
    differing, _, rounds = compare(tree_of(mine), tree_of(theirs))
    assert told(differing) == {b"\xab" * 15 + b"\7": (rank_of(1), rank_of(2))} and rounds <= 33


def test_several_questions_may_be_on_their_way_at_once() -> None:
    mine, theirs = random_held(3_000, 1), random_held(3_000, 2)
    comparison, tree = Comparison(tree_of(mine)), tree_of(theirs)
    on_the_way: list[tuple[Prefix, ...]] = []
    while not comparison.done:
        while asked := comparison.ask():
            on_the_way.append(asked)
        answered = on_the_way.pop(random.Random(len(on_the_way)).randrange(len(on_the_way)))
        comparison.take(answered, tuple(map(tree.branch, answered)))
    assert len(told(comparison.differing)) == 6_000


def test_the_ranges_in_which_something_differs_are_told_with_what_each_side_holds_in_them() -> None:
    theirs = random_held(3_000, 1)
    lacking, changed = sorted(theirs)[5], sorted(theirs)[-5]
    mine = {**{tag: rank for tag, rank in theirs.items() if tag != lacking}, changed: rank_of(9_999_999)}
    comparison, tree = Comparison(tree_of(mine)), tree_of(theirs)
    while asked := comparison.ask():
        comparison.take(asked, tuple(map(tree.branch, asked)))
    found = sorted(comparison.ranges, key=lambda each: each.prefix.path)
    assert [each.prefix for each in found] == [
        prefix(each.prefix.nibbles, tag) for each, tag in zip(found, (lacking, changed), strict=True)
    ]
    for each, less in zip(found, (1, 0), strict=True):
        assert each.theirs == len(tree.items(each.prefix)) == each.mine + less


def test_what_was_found_may_be_taken_out_on_the_way() -> None:
    comparison, tree, found = Comparison(tree_of(random_held(400, 1))), tree_of(random_held(400, 2)), 0
    while asked := comparison.ask():
        comparison.take(asked, tuple(map(tree.branch, asked)))
        found += len(comparison.differing)
        comparison.differing.clear()
    assert found == 800


# --- the tree


@few
@given(any_held, any_tag, st.integers(0, 32), st.booleans())
def test_a_range_is_told_by_its_records_or_its_sixteen_parts(held: Held, tag: bytes, nibbles: int, small: bool) -> None:
    tree, asked = tree_of(held, small), prefix(nibbles, tag)
    inside = sorted(name for name in held if prefix(nibbles, name) == asked)
    assert [item[:16] for item in tree.items(asked)] == inside
    branch = tree.branch(asked)
    if len(inside) <= BRANCH_ITEMS_MAX:
        assert [(item.tag, item.rank) for item in branch.items] == [(tag, held[tag]) for tag in inside]
        assert branch.children == ()
    else:
        assert branch == Branch(tree.children(asked), ())
    if nibbles < 32:
        parts = [
            [item for item in tree.items(asked) if item[nibbles // 2] >> 4 * (1 - nibbles % 2) & 15 == n]
            for n in range(16)
        ]
        assert tree.children(asked) == tuple(map(summary_of, parts))
    assert tree.total == summary_of(tree.items(ROOT)) and tree.count == len(held)


def test_a_small_tree_takes_little_memory() -> None:
    held = random_held(100, 1)
    assert tree_of(held).held_bytes <= 100 * ITEM_BYTES + 1_000
    assert tree_of(held, small=False).held_bytes > 1_048_576


def test_a_fingerprint_covers_tag_and_rank_and_nothing_else() -> None:
    assert fingerprint(b"t" * 16 + b"r" * 22) == 0xF953E7A2F32EF49E160B62AB3943BA40
    one, other = pack_item(Tag(b"t" * 16), b"r" * 22, 1, 0), pack_item(Tag(b"t" * 16), b"r" * 22, 2, TOMBSTONE)
    assert len(one) == ITEM_BYTES == 47 and summary_of([one]) == summary_of([other])
    assert unpack_item(other) == Item(Tag(b"t" * 16), b"r" * 22, 2, TOMBSTONE)
    assert summary_of([]) == Summary(0, bytes(16))


def test_sums_are_modulo_two_to_the_128() -> None:
    items = [pack_item(Tag(bytes([n]) * 16), rank_of(n), n, 0) for n in range(40)]
    total = sum(fingerprint(item[:38]) for item in items)
    assert total >= 1 << 128
    assert summary_of(items) == Summary(40, (total % (1 << 128)).to_bytes(16, "big"))


@pytest.mark.parametrize(
    "wrong",
    (Prefix(33, bytes(16)), Prefix(255, bytes(16)), Prefix(0, b"\x80" + bytes(15)), Prefix(3, b"\xab\xc1" + bytes(14))),
)
def test_a_prefix_that_names_no_range_is_refused(wrong: Prefix) -> None:
    tree = tree_of({})
    for ask in (check_prefix, tree.branch, tree.items, tree.children):
        with pytest.raises(DecodeError):
            ask(wrong)
    check_prefix(Prefix(3, b"\xab\xc0" + bytes(14)))
    check_prefix(Prefix(32, b"\xab" * 16))
    with pytest.raises(DecodeError):
        tree.children(Prefix(32, b"\xab" * 16))


def test_many_tags_that_begin_alike_are_summed_up_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of({b"\xab" * 8 + n.to_bytes(8, "big"): rank_of(1) for n in range(5_000)})
    asked = [prefix(nibbles) for nibbles in range(4, 17)]
    first = [tree.branch(one) for one in asked]

    def never(named: bytes) -> int:
        raise AssertionError("summed up again")

    monkeypatch.setattr("sealwire_protocol.reconcile.fingerprint", never)
    assert [tree.branch(one) for one in asked] == first


# --- gathering

CHANCES = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(1, 200)).map(
        lambda drawn: pack_item(Tag(bytes([drawn[0] * 20]) * 16), rank_of(drawn[1]), drawn[2], 0)
    ),
    max_size=200,
)


@few
@given(CHANCES, st.sampled_from([1, 500, 3_000, 1 << 20]))
def test_of_each_tag_the_greatest_rank_stays_and_of_equal_ones_the_last_place(items: list[bytes], spill: int) -> None:
    gathering = Gathering(spill)
    for at in range(0, len(items), 7):
        gathering.add(items[at : at + 7])
    tree = gathering.build()
    assert tree.items(ROOT) == [max(same) for _, same in sorted(by_tag(items).items())]
    tree.close()


def by_tag(items: list[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for item in items:
        found.setdefault(item[:16], []).append(item)
    return found


@few
@given(st.lists(st.tuples(any_record, st.integers(0, 300)), max_size=30), st.integers(0, 1 << 40))
def test_a_segment_is_taken_in_as_it_is_read(given: list[tuple[Record, int]], prev: int) -> None:
    body = b"".join(encode_record(one, skip) for one, skip in given)
    placed = list(read_segment(body, prev))
    gathering, ready = Gathering(), Gathering()
    gathering.add_segment(body, prev, placed[-1].seq if placed else prev)
    ready.add(pack_item(at.record.tag, at.record.rank.pack(), at.seq, at.record.flags) for at in placed)
    assert all_items(gathering.build()) == all_items(ready.build())


@few
@given(st.binary(max_size=200), st.data())
def test_bytes_that_are_no_segment_are_refused(rubbish: bytes, data: st.DataObject) -> None:
    body = bytearray(encode_segment(map(record, range(1, 5))))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (rubbish, bytes(body), bytes(body[: data.draw(st.integers(0, len(body)))])):
        outcomes = []
        for read in (
            lambda body=damaged: list(read_segment(body, 0, 4)),
            lambda body=damaged: Gathering().add_segment(body, 0, 4),
        ):
            try:
                read()
                outcomes.append("read")
            except DecodeError:
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1]


def test_a_record_behind_the_end_of_its_segment_is_refused() -> None:
    with pytest.raises(DecodeError, match="up to 3 holds a record at 4"):
        Gathering().add_segment(encode_segment(map(record, range(1, 5))), 0, 3)


def test_an_item_of_another_size_is_our_mistake() -> None:
    with pytest.raises(LocalMisuse):
        Gathering().add([bytes(46)])


def test_what_is_too_much_for_memory_waits_in_a_file_and_comes_out_the_same() -> None:
    files: list[BinaryIO] = []

    def file() -> BinaryIO:
        files.append(tempfile.TemporaryFile())  # noqa: SIM115 - whoever asked for it closes it
        return files[-1]

    held = random_held(20_000, 1)
    small, large = Gathering(100_000, file), Gathering()
    for gathering in (small, large):
        for again in (held, dict(reversed(held.items()))):
            gathering.add(pack_item(Tag(tag), rank, place, 0) for place, (tag, rank) in enumerate(again.items(), 1))
    one, other = small.build(), large.build()
    assert len(files) == 2 and [file.closed for file in files] == [True, False]
    assert one.items(ROOT) == other.items(ROOT) and one.total == other.total
    assert all(one.branch(prefix(n, tag)) == other.branch(prefix(n, tag)) for n in range(33) for tag in list(held)[:5])
    assert other.held_bytes - one.held_bytes == 20_000 * ITEM_BYTES
    one.close()
    one.close()
    assert files[1].closed


def test_a_bucket_that_is_too_large_for_memory_is_merged_from_its_runs() -> None:
    """Tags that all begin alike: nobody's hash makes them, but whoever lies can."""
    chance, gathering = random.Random(1), Gathering(20_000)
    items = [
        pack_item(Tag(b"\xab" + chance.randbytes(1) * 15), rank_of(chance.randrange(9)), n, 0) for n in range(1, 9_000)
    ]
    items += [pack_item(Tag(b"\xab" + chance.randbytes(15)), rank_of(1), n, 0) for n in range(1, 6_000)]
    chance.shuffle(items)
    for at in range(0, len(items), 100):
        gathering.add(items[at : at + 100])
    tree = gathering.build()
    assert tree.items(ROOT) == [max(same) for _, same in sorted(by_tag(items).items())]
    assert tree.total == summary_of(tree.items(ROOT))
    tree.close()


def test_gathering_holds_no_more_than_it_may() -> None:
    gathering = Gathering(200_000)
    tracemalloc.start()
    try:
        for number in range(40):
            body = encode_segment(record(number * 1_000 + n) for n in range(1_000))
            gathering.add_segment(body, number * 1_000, number * 1_000 + 1_000)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 400_000 and peak < 2_000_000 + SEGMENT_BYTES_MAX
    tree = gathering.build()
    assert tree.count == 40_000
    tree.close()


def test_a_gathering_that_is_given_up_gives_its_file_back() -> None:
    with tempfile.TemporaryFile() as file:
        gathering = Gathering(1, lambda: file)
        gathering.add([pack_item(Tag(bytes(16)), rank_of(1), 1, 0)])
        gathering.close()
        gathering.close()
        assert file.closed


def test_a_build_that_fails_gives_its_files_back() -> None:
    files: list[io.BytesIO] = []

    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if len(files) == 2:
                raise OSError("no space left")
            return super().write(data)

    def file() -> io.BytesIO:
        files.append(Full())
        return files[-1]

    gathering = Gathering(1, file)
    gathering.add([pack_item(Tag(bytes(16)), rank_of(1), 1, 0)])
    with pytest.raises(OSError, match="no space"):
        gathering.build()
    assert [file.closed for file in files] == [True, True]


# --- relays that lie


MINE = random_held(100, 1)
THEIRS = tree_of(random_held(100, 2))
FEW = tree_of(random_held(3, 3))


def lies() -> Iterator[tuple[str, Callable[[Prefix, Branch], Branch]]]:
    """What a relay may tell instead of the truth, of the root or of what lies below it."""
    extra = Item(Tag(b"\xff" * 16), rank_of(1), 1, 0)

    def swapped(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(items=branch.items[::-1])

    def twice(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(items=branch.items[:1] * 2 if branch.items else ())

    def another_rank(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(items=tuple(item._replace(rank=rank_of(99)) for item in branch.items))

    def one_more(asked: Prefix, branch: Branch) -> Branch:
        return branch if branch.children else branch._replace(items=(*branch.items, extra))

    def one_less(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(items=branch.items[1:])

    def fifteen(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(children=branch.children[1:])

    def both(_: Prefix, branch: Branch) -> Branch:
        return branch if not branch.children else branch._replace(items=(extra,))

    def another_sum(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(children=tuple(Summary(c.records, os.urandom(16)) for c in branch.children))

    def more_records(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(children=tuple(Summary(c.records + 1, c.sum) for c in branch.children))

    def sum_of_nothing(_: Prefix, branch: Branch) -> Branch:
        return branch._replace(children=(*branch.children[:15], Summary(0, b"\1" * 16)) if branch.children else ())

    def parts_of_few(_: Prefix, branch: Branch) -> Branch:
        return Branch((Summary(1, b"\1" * 16), *(Summary(0, bytes(16)),) * 15), ())

    for lie in (
        swapped,
        twice,
        another_rank,
        one_more,
        one_less,
        fifteen,
        both,
        another_sum,
        more_records,
        sum_of_nothing,
        parts_of_few,
    ):
        yield lie.__name__, lie


@pytest.mark.parametrize("lie", [lie for _, lie in lies()], ids=[name for name, _ in lies()])
def test_a_relay_that_contradicts_itself_is_refused(lie: Callable[[Prefix, Branch], Branch]) -> None:
    """At the root it may tell what it likes, of one branch: it contradicts itself, or soon will."""
    with pytest.raises(RemoteFault):
        answer(Comparison(tree_of(MINE)), lambda asked: lie(asked, THEIRS.branch(asked)))


def answer(comparison: Comparison, branch: Callable[[Prefix], Branch]) -> None:
    """Answer as many questions as there may be levels."""
    for _ in range(33):
        asked = comparison.ask()
        comparison.take(asked, tuple(map(branch, asked)))


def test_a_record_of_another_range_is_refused() -> None:
    comparison = Comparison(tree_of({}))
    comparison.take(comparison.ask(), (THEIRS.branch(ROOT),))
    asked = comparison.ask()
    one = asked[0]
    [elsewhere] = [THEIRS.branch(other) for other in asked if other != one][:1]
    with pytest.raises(RemoteFault):
        comparison.take((one,), (elsewhere,))


def test_more_or_fewer_answers_than_questions_are_refused() -> None:
    for branches in ((), (FEW.branch(ROOT),) * 2):
        comparison = Comparison(tree_of(MINE))
        with pytest.raises(RemoteFault, match="other ranges"):
            comparison.take(comparison.ask(), branches)


def test_an_answer_that_nobody_asked_for_is_our_mistake() -> None:
    with pytest.raises(LocalMisuse):
        Comparison(tree_of(MINE)).take((ROOT,), (FEW.branch(ROOT),))


@pytest.mark.parametrize("records", (9, 1 << 62))
def test_a_relay_that_tells_the_same_deeper_and_deeper_cannot_lead_on_for_ever(records: int) -> None:
    """Its sums always add up, of records that do not exist."""
    deeper = Branch((Summary(records, b"\7" * 16), *(Summary(0, bytes(16)),) * 15), ())
    with pytest.raises(RemoteFault, match="two records of one tag"):
        answer(Comparison(tree_of(MINE)), lambda _: deeper)
