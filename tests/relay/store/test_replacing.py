"""Every store puts other links in the place of those behind a head of stream 0 (R15), on condition, and whole."""

import asyncio

import pytest

from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.ids import MEMBERSHIP, NO_TERM, Author, DeviceKey, Position, Term, TermStart, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamState
from sealwire_relay.store.cleaning import AckedPosition
from sealwire_relay.store.interface import LinkLog, MemberState, NewLink, Store
from tests.relay.store.places import (
    ADMIN,
    MEMBERS,
    STATE,
    WRITER,
    Place,
    PostgresPlace,
    Vault,
    batch_write,
    make_vault,
    name,
    stream_write,
    whole,
    write,
)
from tests.support.aio import asyncio_test

THIRD, FOURTH = (MemberState(Author(author), DeviceKey(name(32)), Role.WRITER) for author in (3, 4))
OTHER = THIRD._replace(device=DeviceKey(name(32)))
BOTH = MEMBERS[ADMIN], MEMBERS[WRITER]


async def make_log(store: Store, term: Term) -> Vault:
    """A vault of four links: those of `make_vault`, and two more members."""
    vault = await make_vault(store, term)
    assert await store.append_link(vault.id, NewLink(3, b"third", THIRD), term) == term
    assert await store.append_link(vault.id, NewLink(4, b"fourth", FOURTH), term) == term
    return vault


async def replaced(store: Store, vault: Vault, term: Term, *members: MemberState, after: int = 2) -> bool:
    """Put as many links behind `after` as these members are more than that."""
    links = [b"other %d" % number for number in range(after + 1, len(members) + 1)]
    return await store.replace_links(vault.id, await store.links(vault.id), after, links, members, STATE, term)


async def state_of(store: Store, vault: Vault) -> StreamState:
    told = await store.subscription(vault.id, vault.admin, [MEMBERSHIP])
    assert told is not None
    return told.streams[0]


@asyncio_test
async def test_r15_other_links_take_the_place_of_those_behind_a_head_under_a_term_of_their_own(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_log(store, term)
        assert await replaced(store, vault, term, *BOTH, OTHER)
        log = await store.links(vault.id)
        assert log.links == (b"genesis", b"second", b"other 3")
        assert (log.term.number, log.term.id == term.id) == (term.number, False)
        state = await state_of(store, vault)
        assert (state.head, state.terms) == (3, (TermStart(term, 0), TermStart(log.term, 2)))
        page = await store.read(vault.id, MEMBERSHIP, 0, 1_000_000)
        assert page is not None
        assert (page.term, page.head) == (log.term, 3)
        assert [(segment.prev, segment.last) for segment in page.segments] == [(0, 1), (1, 2), (2, 3)]
        for gone in (THIRD, FOURTH):
            assert await store.subscription(vault.id, gone.device, []) is None
        told = await store.subscription(vault.id, OTHER.device, [])
        assert told is not None and told.member == OTHER
        assert await store.append_link(vault.id, NewLink(4, b"fourth", FOURTH), term) == log.term, "it goes on"
        assert (await state_of(store, vault)).terms == (TermStart(term, 0), TermStart(log.term, 2))
        later = await store.open_term()
        assert await store.append_link(vault.id, NewLink(5, b"fifth", None), term) is None
        assert await store.append_link(vault.id, NewLink(5, b"fifth", None), later) == later
        assert (await state_of(store, vault)).terms[2:] == (TermStart(later, 4),)


@asyncio_test
async def test_r15_terms_that_began_among_links_that_went_have_no_extent_any_more(place: Place) -> None:
    async with place.opened() as store:
        old = await store.open_term()
        vault = await make_vault(store, old)
        term = await store.open_term()
        for member, raw in ((THIRD, b"third"), (FOURTH, b"fourth")):
            assert await store.append_link(vault.id, NewLink(member.author, raw, member), term)
        assert await replaced(store, vault, term, *BOTH, OTHER, after=1)
        first = (await store.links(vault.id)).term
        assert (await state_of(store, vault)).terms == (TermStart(old, 0), TermStart(term, 1), TermStart(first, 1))
        assert await replaced(store, vault, term, *BOTH, OTHER, FOURTH, after=3), "behind the last link too"
        second = (await store.links(vault.id)).term
        assert (await state_of(store, vault)).terms[2:] == (TermStart(first, 1), TermStart(second, 3))


@asyncio_test
@pytest.mark.parametrize("wrong", ["head", "term", "present", "vault"])
async def test_r15_links_are_replaced_in_the_log_that_was_read_and_under_the_present_term_only(
    place: Place, wrong: str
) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_log(store, term)
        there = await store.links(vault.id)
        known, present = {
            "head": (LinkLog(term, there.links[:3]), term),
            "term": (LinkLog(Term(term.number, b"otherid!"), there.links), term),
            "present": (there, Term(term.number, b"otherid!")),
            "vault": (there, term),
        }[wrong]
        asked = VaultId(name(16)) if wrong == "vault" else vault.id
        assert not await store.replace_links(asked, known, 2, [b"other"], (*BOTH, OTHER), STATE, present)
        assert await store.links(vault.id) == there
        assert await store.subscription(vault.id, OTHER.device, []) is None
        await store.open_term()
        assert not await store.replace_links(vault.id, there, 2, [b"other"], (*BOTH, OTHER), STATE, term)
        assert await store.links(vault.id) == there


@asyncio_test
async def test_r15_what_makes_no_sense_is_not_replaced(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_log(store, term)
        there = await store.links(vault.id)
        for after, links in ((0, [b"other"]), (5, [b"other"]), (2, [])):
            with pytest.raises(LocalMisuse):
                await store.replace_links(vault.id, there, after, links, BOTH, STATE, term)


@asyncio_test
async def test_r15_batches_go_with_the_member_and_stay_with_whoever_stays_the_same(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_log(store, term)
        other = await make_log(store, term)
        pushed = [batch_write(1, member=member) for member in (*BOTH, THIRD, FOURTH)]
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"a")], pushed)]) == [True]
        heir = MEMBERS[WRITER]._replace(role=Role.REPLACED)
        assert await replaced(store, vault, term, MEMBERS[ADMIN], heir, OTHER, FOURTH)
        for member, last in ((MEMBERS[ADMIN], 1), (heir, 1), (OTHER, 0), (FOURTH, 1)):
            pusher = await store.pusher(vault.id, member.device)
            assert pusher is not None
            assert (pusher.member, pusher.last_batch, len(pusher.outcomes)) == (member, last, last)
        assert await store.pusher(vault.id, THIRD.device) is None
        assert await store.pusher(other.id, THIRD.device) is not None, "another vault's members are untouched"


@asyncio_test
async def test_r15_a_push_that_was_judged_as_a_member_that_is_gone_is_not_written(place: Place) -> None:
    async with place.opened() as one, place.opened() as two:
        term = await one.open_term()
        vault = await make_log(one, term)
        assert await replaced(two, vault, term, *BOTH, OTHER)
        for member in (THIRD, OTHER._replace(role=Role.ADMIN), FOURTH):
            judged = write(vault, term, [stream_write(vault.stream, 0, b"a")], [batch_write(1, member=member)])
            assert await one.append([judged]) == [False]
        mixed = [batch_write(1, member=THIRD), batch_write(1, member=OTHER)]
        assert await one.append([write(vault, term, [stream_write(vault.stream, 0, b"a")], mixed)]) == [False]
        assert await whole(one, vault, vault.stream) == []
        for number, streams in ((1, [stream_write(vault.stream, 0, b"a")]), (2, [])):
            good = write(vault, term, streams, [batch_write(number, member=OTHER)])
            assert await one.append([good]) == [True], "stream 0 has another id of this term's number"


@asyncio_test
async def test_r15_positions_of_members_that_went_are_forgotten(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        vault = await make_log(store, term)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 0, b"abc")])]) == [True]
        assert await store.compacted(vault.id, vault.stream, 3, term, 1, 1)
        devices = [member.device for member in (MEMBERS[WRITER], THIRD, FOURTH)]
        await store.acked([AckedPosition(vault.id, vault.stream, each, Position(term, 3)) for each in devices])
        assert await replaced(store, vault, term, *BOTH, OTHER)
        [found] = await store.tombstones(None, 9)
        assert [reader.device for reader in found.readers] == [vault.writer]


@asyncio_test
async def test_r15_of_two_that_replace_the_same_links_at_once_one_does(place: Place) -> None:
    async with place.opened() as one, place.opened() as two:
        term = await one.open_term()
        vault = await make_log(one, term)
        there = await one.links(vault.id)
        done = await asyncio.gather(
            *[
                store.replace_links(vault.id, there, 2, [raw], (*BOTH, member), STATE, term)
                for store, raw, member in ((one, b"one", OTHER), (two, b"two", THIRD))
            ]
        )
        assert sorted(done) == [False, True]
        winner = b"one" if done[0] else b"two"
        assert (await two.links(vault.id)).links == (b"genesis", b"second", winner)


@asyncio_test
async def test_r15_an_append_that_waits_while_links_are_replaced_finds_its_member_gone(postgres: PostgresPlace) -> None:
    async with postgres.opened() as store, postgres.direct() as direct:
        term = await store.open_term()
        vault = await make_log(store, term)
        judged = write(vault, term, [stream_write(vault.stream, 0, b"a")], [batch_write(1, member=THIRD)])
        transaction = direct.transaction()
        await transaction.start()
        head = "SELECT FROM sealwire.member WHERE vault_id = $1::text::uuid AND author = 4 FOR UPDATE"
        await direct.execute(head, vault.id.hex())
        replacing = asyncio.create_task(replaced(store, vault, term, *BOTH, OTHER))
        await postgres.somebody_waits()  # it has the lock of every member before this one
        appending = asyncio.create_task(store.append([judged]))
        await postgres.somebody_waits(2)
        await transaction.rollback()
        assert (await replacing, await appending) == (True, [False])
        assert await whole(store, vault, vault.stream) == []
        pusher = await store.pusher(vault.id, OTHER.device)
        assert pusher is not None and (pusher.last_batch, pusher.outcomes) == (0, ())


@asyncio_test
async def test_a_link_that_was_judged_on_another_end_is_not_appended_to_this_one(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_log(store, term)
        judged = (await store.links(vault.id)).term
        assert await replaced(store, vault, term, *BOTH, THIRD, OTHER._replace(author=Author(4)))
        there = await store.links(vault.id)
        fifth = NewLink(5, b"fifth", MemberState(Author(5), DeviceKey(name(32)), Role.WRITER), there=judged)
        assert len(there.links) == 4 and there.term != judged
        assert await store.append_link(vault.id, fifth, term) is None
        assert await store.append_link(vault.id, fifth._replace(there=there.term), term) == there.term


@asyncio_test
async def test_the_end_of_a_log_is_read_by_itself(place: Place) -> None:
    async with place.opened() as store:
        vault = await make_log(store, await store.open_term())
        whole_log = await store.links(vault.id)
        for after in range(6):
            assert await store.links(vault.id, after) == LinkLog(whole_log.term, whole_log.links[after:])
        assert await store.links(VaultId(name(16)), 1) == LinkLog(NO_TERM, ())
