"""What every store promises. The same statements hold in memory, on the machine's Postgres and on the embedded one."""

import asyncio

import pytest

from sealwire_protocol.conditions import Current
from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import (
    MEMBERSHIP,
    NO_TERM,
    Author,
    DeviceKey,
    KeyId,
    MailboxId,
    StreamId,
    Tag,
    Term,
    TermStart,
    VaultId,
)
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.links import Role, decode_links
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_relay.store.interface import (
    OUTCOMES_KEPT,
    PAGE_SEGMENTS_MAX,
    MemberState,
    NewLink,
    Store,
    StoreDownError,
    StreamWrite,
)
from sealwire_relay.store.mailboxes import Mailbox, MailboxVerdict
from tests.relay.store.places import (
    ADMIN,
    EPOCH,
    MEMBERS,
    STATE,
    WRITER,
    Place,
    Vault,
    batch_write,
    make_vault,
    name,
    segments,
    stream_write,
    whole,
    write,
)
from tests.support.aio import asyncio_test

STRANGER = DeviceKey(b"s" * 32)


# --- opening and closing


@asyncio_test
async def test_a_closed_store_says_so(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.ping()
    await store.close()
    await store.close()
    with pytest.raises(StoreDownError):
        await store.ping()


@asyncio_test
async def test_what_was_stored_is_there_when_opened_again(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"ab")])]) == [True]
    async with place.opened() as store:
        assert await store.current_term() == term
        assert await whole(store, vault, vault.stream) == list(segments(0, b"ab"))


# --- vaults and the membership log


@asyncio_test
async def test_a_vault_is_created_once(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault, device = VaultId(name(16)), DeviceKey(name(32))
        link = NewLink(1, b"genesis", MemberState(ADMIN, device, Role.ADMIN))
        assert (await store.links(vault)).links == ()
        assert await store.create_vault(vault, STATE, link, term)
        assert not await store.create_vault(vault, STATE, link._replace(raw=b"other"), term)
        assert (await store.links(vault)).links == (b"genesis",)
        told = await store.subscription(vault, device, [MEMBERSHIP])
        assert told is not None
        assert (told.term, told.vault, told.member, told.last_batch) == (term, STATE, link.member, 0)
        log = StreamState(MEMBERSHIP, StreamKind.MEMBERSHIP, 1, 0, 0, 0, 0, 0, (TermStart(term, 0),))
        assert told.streams == (log,)


@asyncio_test
async def test_a_vault_is_not_created_under_a_term_that_has_passed(place: Place) -> None:
    async with place.opened() as store:
        old = await store.open_term()
        await store.open_term()
        vault = VaultId(name(16))
        link = NewLink(1, b"genesis", MemberState(ADMIN, STRANGER, Role.ADMIN))
        assert not await store.create_vault(vault, STATE, link, old)
        assert (await store.links(vault)).links == ()


@asyncio_test
async def test_links_are_appended_in_their_place_only(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        new = MemberState(Author(3), DeviceKey(name(32)), Role.READER)
        for seq in (1, 2, 4):
            assert not await store.append_link(vault.id, NewLink(seq, b"no", new), term)
        assert await store.subscription(vault.id, new.device, []) is None
        assert await store.append_link(vault.id, NewLink(3, b"third", new), term)
        assert await store.append_link(vault.id, NewLink(4, b"fourth", None), term)
        assert (await store.links(vault.id)).links == (b"genesis", b"second", b"third", b"fourth")
        told = await store.subscription(vault.id, new.device, [])
        assert told is not None
        assert told.member == new
        page = await store.read(vault.id, MEMBERSHIP, 1, 1_000_000)
        assert page is not None
        assert [decode_links(s.body) for s in page.segments] == [[b"second"], [b"third"], [b"fourth"]]
        assert not await store.append_link(VaultId(name(16)), NewLink(1, b"none", None), term)


@asyncio_test
async def test_a_member_that_is_replaced_stays_known_and_appends_nothing_any_more(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        first = write(vault, term, [stream_write(vault.stream, 0, b"a")], [batch_write(1, member=MEMBERS[WRITER])])
        assert await store.append([first]) == [True]
        heir = MemberState(Author(3), DeviceKey(name(32)), Role.WRITER)
        assert await store.append_link(vault.id, NewLink(3, b"third", heir, WRITER), term)
        old, new = await store.pusher(vault.id, vault.writer), await store.pusher(vault.id, heir.device)
        assert old is not None and new is not None
        assert (old.member.role, old.last_batch, [o.batch for o in old.outcomes]) == (Role.REPLACED, 1, [1])
        assert (new.member, new.last_batch, new.outcomes) == (heir, 0, ())
        told = await store.subscription(vault.id, vault.writer, [])
        assert told is not None and told.member.role is Role.REPLACED
        for member, expected in ((MEMBERS[WRITER], False), (MEMBERS[ADMIN], True), (heir, True)):
            number = 2 if member.author == WRITER else 1
            head = 1 if member != heir else 2
            more = write(vault, term, [stream_write(vault.stream, head, b"b")], [batch_write(number, member=member)])
            assert await store.append([more]) == [expected]
        other = await make_vault(store, term)
        unmoved = await store.pusher(other.id, other.writer)
        assert unmoved is not None and unmoved.member.role is Role.WRITER


@asyncio_test
async def test_a_link_is_not_appended_under_another_term(place: Place) -> None:
    async with place.opened() as store:
        old = await store.open_term()
        vault = await make_vault(store, old)
        term = await store.open_term()
        for wrong in (old, Term(term.number, b"otherid!"), Term(term.number + 1, term.id)):
            assert not await store.append_link(vault.id, NewLink(3, b"no", None), wrong)
        assert await store.append_link(vault.id, NewLink(3, b"third", None), term)
        assert await _terms(store, vault, MEMBERSHIP) == (TermStart(old, 0), TermStart(term, 2))


# --- streams


@asyncio_test
async def test_a_stream_keeps_the_kind_it_was_created_with(place: Place) -> None:
    async with place.opened() as store:
        vault = await make_vault(store, await store.open_term())
        stream = StreamId(name(8))
        assert await store.create_stream(vault.id, stream, StreamKind.GUARDED) is StreamKind.GUARDED
        assert await store.create_stream(vault.id, stream, StreamKind.OPEN) is StreamKind.GUARDED
        assert await store.create_stream(vault.id, MEMBERSHIP, StreamKind.OPEN) is StreamKind.MEMBERSHIP
        assert await store.create_stream(VaultId(name(16)), stream, StreamKind.OPEN) is StreamKind.ABSENT


@asyncio_test
async def test_a_stream_created_by_many_at_once_has_one_kind(place: Place) -> None:
    async with place.opened() as store:
        vault = await make_vault(store, await store.open_term())
        stream = StreamId(name(8))
        kinds = [StreamKind.OPEN, StreamKind.GUARDED] * 4
        told = await asyncio.gather(*[store.create_stream(vault.id, stream, kind) for kind in kinds])
        assert len(set(told)) == 1
        assert told[0] in kinds


@asyncio_test
async def test_a_subscription_tells_of_streams_in_the_order_asked_for(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        one = write(
            vault, term, [stream_write(vault.stream, 0, b"abc", top=9)], [batch_write(1, member=MEMBERS[WRITER])]
        )
        assert await store.append([one]) == [True]
        absent = StreamId(name(8))
        told = await store.subscription(vault.id, vault.writer, [absent, vault.stream, MEMBERSHIP])
        assert told is not None
        assert told.member == MemberState(WRITER, vault.writer, Role.WRITER)
        assert told.last_batch == 1
        assert [state.stream for state in told.streams] == [absent, vault.stream, MEMBERSHIP]
        assert told.streams[0] == StreamState(absent, StreamKind.ABSENT, 0, 0, 0, 0, 0, 0, ())
        assert told.streams[1] == StreamState(vault.stream, StreamKind.OPEN, 3, 9, 0, 0, 0, 0, (TermStart(term, 0),))


@asyncio_test
async def test_a_stranger_learns_nothing(place: Place) -> None:
    async with place.opened() as store:
        vault = await make_vault(store, await store.open_term())
        assert await store.subscription(vault.id, STRANGER, [vault.stream]) is None
        assert await store.subscription(VaultId(name(16)), vault.admin, []) is None
        assert await store.pusher(vault.id, STRANGER) is None
        assert await store.pusher(VaultId(name(16)), vault.admin) is None


# --- appending: each condition alone


async def _written(store: Store, vault: Vault, term: Term) -> None:
    """Head 2, top 5, and one batch of the admin's."""
    first = write(vault, term, [stream_write(vault.stream, 0, b"ab", top=5)], [batch_write(1)])
    assert await store.append([first]) == [True]


async def _terms(store: Store, vault: Vault, stream: StreamId) -> tuple[TermStart, ...]:
    told = await store.subscription(vault.id, vault.admin, [stream])
    assert told is not None
    return told.streams[0].terms


@asyncio_test
@pytest.mark.parametrize(
    "wrong", ["term", "term id", "epoch", "key", "head", "later head", "stream", "author", "batch"]
)
async def test_nothing_is_written_when_one_condition_fails(place: Place, wrong: str) -> None:
    async with place.opened() as store:
        old = await store.open_term()
        vault = await make_vault(store, old)
        await _written(store, vault, old)
        term = await store.open_term()
        good = write(vault, term, [stream_write(vault.stream, 2, b"c")], [batch_write(2)])
        stream = good.streams[0]
        bad = {
            "term": good._replace(term=old),
            "term id": good._replace(term=Term(term.number, b"otherid!")),
            "epoch": good._replace(key=(EPOCH + 1, STATE.key_id)),
            "key": good._replace(key=(EPOCH, KeyId(b"\x00\x01\x02\x03"))),
            "head": good._replace(streams=(stream_write(vault.stream, 1, b"c"),)),
            "later head": good._replace(streams=(stream_write(vault.stream, 3, b"c"),)),
            "stream": good._replace(streams=(stream, stream_write(StreamId(name(8)), 0, b"c"))),
            "author": good._replace(
                batches=(batch_write(2), batch_write(1, member=MEMBERS[ADMIN]._replace(author=Author(9))))
            ),
            "batch": good._replace(batches=(batch_write(3),)),
        }[wrong]
        before = await store.pusher(vault.id, vault.admin)
        assert await store.append([bad]) == [False]
        assert await whole(store, vault, vault.stream) == list(segments(0, b"ab"))
        assert await store.pusher(vault.id, vault.admin) == before
        assert await _terms(store, vault, vault.stream) == (TermStart(old, 0),)
        assert await store.append([good]) == [True]
        assert await store.append([good]) == [False]


@asyncio_test
async def test_one_vaults_failure_does_not_touch_another(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vaults = [await make_vault(store, term) for _ in range(5)]
        writes = [write(v, term, [stream_write(v.stream, 0, b"abc")], [batch_write(1)]) for v in vaults]
        writes[1] = writes[1]._replace(key=(EPOCH + 1, STATE.key_id))
        writes[3] = writes[3]._replace(batches=(batch_write(2),))
        writes.append(writes[0]._replace(vault=VaultId(name(16))))
        assert await store.append(writes) == [True, False, True, False, True, False]
        heads = [len(await whole(store, v, v.stream)) for v in vaults]
        assert heads == [1, 0, 1, 0, 1]


@asyncio_test
async def test_a_vault_is_written_whole_or_not_at_all(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        other = StreamId(name(8))
        await store.create_stream(vault.id, other, StreamKind.OPEN)
        two = [stream_write(vault.stream, 0, b"a", b"bc"), stream_write(other, 1, b"d")]
        assert await store.append([write(vault, term, two)]) == [False]
        assert await whole(store, vault, vault.stream) == []
        two[1] = stream_write(other, 0, b"d")
        assert await store.append([write(vault, term, two)]) == [True]
        assert await whole(store, vault, vault.stream) == list(segments(0, b"a", b"bc"))
        assert await whole(store, vault, other) == list(segments(0, b"d"))


@asyncio_test
async def test_top_never_sinks(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        await _written(store, vault, term)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 2, b"c", top=3)])]) == [True]
        told = await store.subscription(vault.id, vault.admin, [vault.stream])
        assert told is not None
        assert (told.streams[0].head, told.streams[0].top) == (3, 5)


@asyncio_test
async def test_nothing_at_all_is_appended_at_no_cost(place: Place) -> None:
    async with place.opened() as store:
        assert await store.append([]) == []


HELD = (Tag(b"\xf1" * 16), Current(3, b"\xf2" * 8, False, 1))
WRONG = [
    "gap", "short", "empty", "empty segment", "guards alone", "guards twice", "twice", "vault twice", "batches apart",
    "old batch",
]  # fmt: skip


@asyncio_test
@pytest.mark.parametrize("wrong", WRONG)
async def test_writes_that_make_no_sense_are_a_mistake_of_the_caller(place: Place, wrong: str) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        good = stream_write(vault.stream, 0, b"ab", b"c")
        bad = {
            "gap": [write(vault, term, [StreamWrite(vault.stream, 0, 3, 0, segments(1, b"ab"))])],
            "short": [write(vault, term, [good._replace(new_head=4)])],
            "empty": [write(vault, term, [StreamWrite(vault.stream, 0, 1, 0, ())])],
            "empty segment": [write(vault, term, [good._replace(segments=(*segments(0, b""), *good.segments))])],
            "guards alone": [write(vault, term, [StreamWrite(vault.stream, 0, 0, 0, (), (HELD,))])],
            "guards twice": [write(vault, term, [good._replace(guards=(HELD, HELD))])],
            "twice": [write(vault, term, [good, good])],
            "vault twice": [write(vault, term, [good]), write(vault, term, [good])],
            "batches apart": [write(vault, term, [good], [batch_write(1), batch_write(3)])],
            "old batch": [write(vault, term, [good], [batch_write(3, after=3)])],
        }[wrong]
        with pytest.raises(LocalMisuse):
            await store.append(bad)
        assert await whole(store, vault, vault.stream) == []


# --- exactly once


@asyncio_test
async def test_a_device_that_never_pushed_stands_at_zero(place: Place) -> None:
    async with place.opened() as store:
        vault = await make_vault(store, await store.open_term())
        state = await store.pusher(vault.id, vault.writer)
        assert state is not None
        assert state == (MemberState(WRITER, vault.writer, Role.WRITER), 0, 0, ())


@asyncio_test
async def test_pipelined_batches_of_several_authors_are_kept(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        batches = [batch_write(1), batch_write(1, member=MEMBERS[WRITER]), batch_write(2), batch_write(7, after=2)]
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"a")], batches)]) == [True]
        admin, writer = await store.pusher(vault.id, vault.admin), await store.pusher(vault.id, vault.writer)
        assert admin is not None
        assert writer is not None
        assert (admin.last_batch, admin.last_term) == (7, term.number)
        assert admin.outcomes == tuple(batches[i].outcome for i in (0, 2, 3))
        assert (writer.last_batch, writer.outcomes) == (1, (batches[1].outcome,))


@asyncio_test
async def test_a_verdict_is_kept_without_any_record(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        later = STATE._replace(epoch=EPOCH + 1)
        assert await store.append([write(vault, term, [], [batch_write(1)], state=later)]) == [False]
        assert await store.append([write(vault, term, [], [batch_write(1)])]) == [True]
        state = await store.pusher(vault.id, vault.admin)
        assert state is not None
        assert [outcome.batch for outcome in state.outcomes] == [1]
        assert await _terms(store, vault, vault.stream) == ()


@asyncio_test
async def test_as_many_outcomes_are_kept_as_promised_and_no_more(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        numbers = range(1, 2 * OUTCOMES_KEPT + 4)
        middle = OUTCOMES_KEPT + 10
        for group in (range(1, 4), range(4, middle), range(middle, numbers.stop)):
            assert await store.append([write(vault, term, [], [batch_write(n) for n in group])]) == [True]
        state = await store.pusher(vault.id, vault.admin)
        assert state is not None
        assert state.last_batch == numbers[-1]
        assert state.outcomes == tuple(batch_write(n).outcome for n in numbers[-OUTCOMES_KEPT:])


@asyncio_test
async def test_after_a_gap_older_outcomes_stay_until_their_place_is_needed(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        for number, after in ((1, 0), (2, 1), (2 + OUTCOMES_KEPT, 2)):
            assert await store.append([write(vault, term, [], [batch_write(number, after)])]) == [True]
        state = await store.pusher(vault.id, vault.admin)
        assert state is not None
        assert [outcome.batch for outcome in state.outcomes] == [1, 2 + OUTCOMES_KEPT]


# --- reading


@asyncio_test
async def test_a_page_ends_where_the_bytes_do_but_has_one_segment_at_least(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        bodies = [b"abcd", b"ef", b"ghijkl", b"m"]
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, *bodies)])]) == [True]
        for bytes_max, expected in ((0, 1), (3, 1), (4, 1), (5, 1), (6, 2), (11, 2), (12, 3), (13, 4), (10**9, 4)):
            page = await store.read(vault.id, vault.stream, 0, bytes_max)
            assert page is not None
            assert page.segments == segments(0, *bodies[:expected]), bytes_max
            assert (page.term, page.head) == (term, 13)
            assert (page.floor, page.floor_head, page.purged, page.cleaned_to) == (0, 0, 0, 0)


@asyncio_test
async def test_a_page_begins_with_the_segment_that_holds_the_next_record(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"abc", b"de")])]) == [True]
        both = segments(0, b"abc", b"de")
        for after, expected in ((0, both), (1, both), (2, both), (3, both[1:]), (4, both[1:]), (5, ()), (9, ())):
            page = await store.read(vault.id, vault.stream, after, 100)
            assert page is not None
            assert page.segments == expected, after
            assert page.head == 5


@asyncio_test
async def test_an_empty_stream_has_an_empty_page_and_an_absent_one_none(place: Place) -> None:
    async with place.opened() as store:
        vault = await make_vault(store, await store.open_term())
        page = await store.read(vault.id, vault.stream, 0, 100)
        assert page is not None
        assert (page.term, page.head, page.segments) == (NO_TERM, 0, ())
        assert await store.read(vault.id, StreamId(name(8)), 0, 100) is None
        assert await store.read(VaultId(name(16)), vault.stream, 0, 100) is None


@asyncio_test
async def test_a_page_has_a_bounded_number_of_segments(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        bodies = [b"x"] * (PAGE_SEGMENTS_MAX + 5)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, *bodies)])]) == [True]
        page = await store.read(vault.id, vault.stream, 0, 10**9)
        assert page is not None
        assert len(page.segments) == PAGE_SEGMENTS_MAX
        page = await store.read(vault.id, vault.stream, PAGE_SEGMENTS_MAX, 10**9)
        assert page is not None
        assert len(page.segments) == 5


@asyncio_test
async def test_the_largest_segments_come_back_as_they_were(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        bodies = [bytes([n]) * SEGMENT_BYTES_MAX for n in range(3)]
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, *bodies)])]) == [True]
        page = await store.read(vault.id, vault.stream, 0, 2 * SEGMENT_BYTES_MAX)
        assert page is not None
        assert [segment.body for segment in page.segments] == bodies[:2]


# --- two processes


@asyncio_test
async def test_appends_of_many_to_one_stream_leave_neither_gap_nor_duplicate(place: Place) -> None:
    """Two stores, 32 tasks: each tries again, from what it reads, until its own record is in."""
    async with place.opened() as one, place.opened() as two:
        term = await one.open_term()
        vault = await make_vault(one, term)
        tries = 0

        async def push(store: Store, body: bytes) -> None:
            nonlocal tries
            done = False
            while not done:
                page = await store.read(vault.id, vault.stream, 0, 0)
                assert page is not None
                tries += 1
                [done] = await store.append([write(vault, term, [stream_write(vault.stream, page.head, body)])])

        bodies = [bytes([n]) * (1 + n % 3) for n in range(32)]
        await asyncio.gather(*[push(two if n % 2 else one, body) for n, body in enumerate(bodies)])
        found = await whole(one, vault, vault.stream)
        assert sorted(segment.body for segment in found) == sorted(bodies)
        assert [segment.prev for segment in found] == [0, *[segment.last for segment in found][:-1]]
        told = await two.subscription(vault.id, vault.admin, [vault.stream])
        assert told is not None
        assert told.streams[0].head == found[-1].last == sum(map(len, bodies))
        assert tries >= len(bodies)


@asyncio_test
async def test_appends_that_cross_each_other_all_end(place: Place) -> None:
    """The same vaults, streams and authors named in opposite orders by two processes: nobody waits for ever."""
    async with place.opened() as one, place.opened() as two:
        term = await one.open_term()
        vaults = [await make_vault(one, term) for _ in range(6)]

        async def push(store: Store, number: int) -> int:
            order = vaults if number % 2 else vaults[::-1]
            author = ADMIN if number % 4 < 2 else WRITER
            writes = []
            for vault in order:
                told = await store.subscription(
                    vault.id, vault.admin if author == ADMIN else vault.writer, [vault.stream]
                )
                assert told is not None
                head = stream_write(vault.stream, told.streams[0].head, b"x")
                writes.append(write(vault, term, [head], [batch_write(told.last_batch + 1, member=MEMBERS[author])]))
            return sum(await store.append(writes))

        done = sum(await asyncio.gather(*[push(two if n % 2 else one, n) for n in range(16)]))
        heads = [len(await whole(one, vault, vault.stream)) for vault in vaults]
        assert sum(heads) == done >= len(vaults)


# --- mailboxes


async def _opened(store: Store) -> tuple[Vault, MailboxId]:
    vault, box = await make_vault(store, await store.open_term()), MailboxId(name(16))
    assert await store.open_mailbox(box, vault.id, vault.admin, 60) is MailboxVerdict.DONE
    return vault, box


JOINER, LATECOMER = DeviceKey(b"j" * 32), DeviceKey(b"l" * 32)


@asyncio_test
async def test_an_invite_goes_through_its_mailbox(place: Place) -> None:
    async with place.opened() as store:
        vault, box = await _opened(store)
        assert await store.mailbox(box) == Mailbox(vault.id, vault.admin, None, b"", b"")
        assert await store.answer(box, vault.admin, b"too early") is MailboxVerdict.ABSENT
        assert await store.deposit(box, JOINER, b"first") is MailboxVerdict.DONE
        assert await store.deposit(box, JOINER, b"request") is MailboxVerdict.DONE
        assert await store.deposit(box, LATECOMER, b"mine") is MailboxVerdict.USED
        assert await store.answer(box, JOINER, b"no") is MailboxVerdict.ABSENT
        assert await store.answer(box, vault.admin, b"answer") is MailboxVerdict.DONE
        assert await store.deposit(box, JOINER, b"again") is MailboxVerdict.DONE
        assert await store.mailbox(box) == Mailbox(vault.id, vault.admin, JOINER, b"request", b"answer")


@asyncio_test
async def test_a_mailbox_is_opened_by_an_admin_and_left_as_it_is_when_opened_again(place: Place) -> None:
    async with place.opened() as store:
        vault, box = await _opened(store)
        other = await make_vault(store, await store.open_term())
        for who, where in ((vault.writer, vault.id), (STRANGER, vault.id), (other.admin, other.id)):
            assert await store.open_mailbox(box, where, who, 60) is MailboxVerdict.ABSENT
        assert await store.deposit(box, JOINER, b"request") is MailboxVerdict.DONE
        assert await store.open_mailbox(box, vault.id, vault.admin, 60) is MailboxVerdict.DONE
        assert await store.mailbox(box) == Mailbox(vault.id, vault.admin, JOINER, b"request", b"")
        assert await store.open_mailbox(MailboxId(name(16)), vault.id, vault.writer, 60) is MailboxVerdict.ABSENT


@asyncio_test
async def test_an_expired_mailbox_is_none_at_all(place: Place) -> None:
    async with place.opened() as store:
        vault, _ = await _opened(store)
        box = MailboxId(name(16))
        assert await store.open_mailbox(box, vault.id, vault.admin, 0) is MailboxVerdict.DONE
        assert await store.mailbox(box) is None
        assert await store.deposit(box, JOINER, b"request") is MailboxVerdict.ABSENT
        assert await store.answer(box, vault.admin, b"answer") is MailboxVerdict.ABSENT
        other = await make_vault(store, await store.open_term())
        assert await store.open_mailbox(box, other.id, other.admin, 60) is MailboxVerdict.DONE
        assert await store.mailbox(MailboxId(name(16))) is None
