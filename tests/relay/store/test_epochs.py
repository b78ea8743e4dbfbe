"""Every store writes an epoch into all heads of a vault with the link that begins it, and forgets whom that removes."""

import asyncio

import pytest

from sealwire_protocol.ids import MEMBERSHIP, Author, KeyId, Position, StreamId, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.cleaning import AckedPosition
from sealwire_relay.store.interface import MemberState, NewLink, Store, VaultState
from tests.relay.store.places import (
    ADMIN,
    EPOCH,
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

NEXT = VaultState(EPOCH + 1, KeyId(b"\x01\xff\x02\x03"))
ROTATION = NewLink(3, b"rotation", None, None, NEXT)
REMOVAL = ROTATION._replace(removed=(WRITER,))
BEFORE, AFTER = StreamId(b"\xffbefore0"), StreamId(b"after 0.")
"""In the order of keys stream 0 lies between them."""


async def make_streams(store: Store, term: Term) -> Vault:
    """A vault with streams on both sides of stream 0."""
    vault = await make_vault(store, term)
    for stream in (BEFORE, AFTER):
        await store.create_stream(vault.id, stream, StreamKind.OPEN)
    return vault


async def takes(store: Store, vault: Vault, term: Term, stream: StreamId, state: VaultState) -> bool:
    """Whether an append that was decided on this state is written."""
    [done] = await store.append([write(vault, term, [stream_write(stream, 0, b"a")], state=state)])
    return done


@asyncio_test
async def test_an_epoch_is_in_every_head_of_its_vault_with_the_link_that_begins_it(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault, other = await make_streams(store, term), await make_streams(store, term)
        assert await store.append_link(vault.id, ROTATION, term) == term
        assert (await store.links(vault.id)).links == (b"genesis", b"second", b"rotation")
        told = await store.subscription(vault.id, vault.writer, [])
        assert told is not None and told.vault == NEXT
        late = StreamId(name(8))
        await store.create_stream(vault.id, late, StreamKind.OPEN)
        for stream in (BEFORE, AFTER, late):
            assert not await takes(store, vault, term, stream, STATE)
            assert await takes(store, vault, term, stream, NEXT)
        judged = [batch_write(1)]
        assert await store.append([write(vault, term, [], judged)]) == [False], "a verdict alone looks at stream 0"
        assert await store.append([write(vault, term, [], judged, state=NEXT)]) == [True]
        assert await takes(store, other, term, BEFORE, STATE), "another vault's epoch is what it was"


@asyncio_test
async def test_s10_of_a_member_that_is_removed_nothing_is_kept(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        vault, other = await make_vault(store, term), await make_vault(store, term)
        pushed = [batch_write(1, member=member) for member in MEMBERS.values()]
        for each in (vault, other):
            assert await store.append([write(each, term, [stream_write(each.stream, 0, b"abc")], pushed)]) == [True]
            await store.acked(
                [AckedPosition(each.id, each.stream, m.device, Position(term, 3)) for m in MEMBERS.values()]
            )
            assert await store.compacted(each.id, each.stream, 3, term, 1, 1)
        assert await store.append_link(vault.id, REMOVAL, term) == term
        assert await store.subscription(vault.id, vault.writer, []) is None
        assert await store.pusher(vault.id, vault.writer) is None
        stays = await store.pusher(vault.id, vault.admin)
        assert stays is not None and (stays.last_batch, len(stays.outcomes)) == (1, 1)
        readers = {found.vault: [each.author for each in found.readers] for found in await store.tombstones(None, 9)}
        assert readers == {vault.id: [ADMIN], other.id: [ADMIN, WRITER]}
        nowhere = VaultId(name(16))
        assert await store.members([vault.id, other.id, nowhere]) == {
            vault.id: {vault.admin},
            other.id: {vault.admin, vault.writer},
            nowhere: set(),
        }
        again = MemberState(Author(4), vault.writer, Role.WRITER)
        assert await store.append_link(vault.id, NewLink(4, b"again", again), term) == term
        pusher = await store.pusher(vault.id, vault.writer)
        assert pusher is not None
        assert (pusher.member, pusher.last_batch, pusher.outcomes) == (again, 0, ())


@asyncio_test
@pytest.mark.parametrize("wrong", ["head", "term", "vault"])
async def test_an_epoch_is_written_with_its_link_or_not_at_all(place: Place, wrong: str) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        link = REMOVAL._replace(seq=4) if wrong == "head" else REMOVAL
        present = Term(term.number, b"otherid!") if wrong == "term" else term
        assert await store.append_link(VaultId(name(16)) if wrong == "vault" else vault.id, link, present) is None
        told = await store.subscription(vault.id, vault.writer, [MEMBERSHIP])
        assert told is not None and (told.vault, told.streams[0].head) == (STATE, 2)
        assert await takes(store, vault, term, vault.stream, STATE)


@asyncio_test
async def test_r15_links_that_take_the_place_of_others_bring_their_own_epoch(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_streams(store, term)
        assert await store.append_link(vault.id, REMOVAL, term) == term
        for after, links, state, members in (
            (2, [b"back"], STATE, (MEMBERS[ADMIN], MEMBERS[WRITER])),
            (2, [b"forth", b"and on"], NEXT, (MEMBERS[ADMIN],)),
        ):
            there = await store.links(vault.id)
            assert await store.replace_links(vault.id, there, after, links, members, state, term)
            told = await store.subscription(vault.id, vault.admin, [])
            assert told is not None and told.vault == state
            assert (await store.members([vault.id]))[vault.id] == {member.device for member in members}
            pusher = await store.pusher(vault.id, vault.writer)
            assert pusher is None or pusher.last_batch == 0
        for stream in (BEFORE, AFTER):
            assert not await takes(store, vault, term, stream, STATE)
            assert await takes(store, vault, term, stream, NEXT)


@asyncio_test
async def test_epochs_appends_and_new_streams_at_once_never_wait_for_each_other_in_a_ring(place: Place) -> None:
    async with place.opened() as one, place.opened() as two:
        term = await one.open_term()
        vault = await make_streams(one, term)
        heads, present, links, streams = dict.fromkeys((BEFORE, AFTER), 0), STATE, 2, 0

        async def push() -> None:
            for _ in range(60):
                told = await two.subscription(vault.id, vault.admin, [])
                assert told is not None
                new = [stream_write(stream, head, b"a") for stream, head in heads.items()]
                if (await two.append([write(vault, term, new, state=told.vault)]))[0]:
                    heads.update({stream: head + 1 for stream, head in heads.items()})

        async def create() -> None:
            nonlocal streams
            for _ in range(30):
                stream = StreamId(name(8))
                kinds = await asyncio.gather(*[s.create_stream(vault.id, stream, StreamKind.OPEN) for s in (one, two)])
                assert kinds == [StreamKind.OPEN] * 2
                made.append(stream)

        async def rotate() -> None:
            nonlocal present, links
            while present.epoch < EPOCH + 20:
                state = VaultState(present.epoch + 1, KeyId(present.epoch.to_bytes(4, "big")))
                if await one.append_link(vault.id, NewLink(links + 1, b"link", None, None, state), term):
                    present, links = state, links + 1

        made: list[StreamId] = []
        async with asyncio.timeout(200), asyncio.TaskGroup() as tasks:
            for work in (push, create, rotate):
                tasks.create_task(work())
        assert len(await whole(one, vault, BEFORE)) == heads[BEFORE] > 0
        for stream in made:
            assert not await takes(one, vault, term, stream, STATE)
            assert await takes(one, vault, term, stream, present)


@asyncio_test
async def test_a_stream_that_is_born_while_an_epoch_waits_for_it_has_that_epoch_or_the_link_is_tried_again(
    postgres: PostgresPlace,
) -> None:
    async with postgres.opened() as store, postgres.direct() as direct:
        term = await store.open_term()
        vault = await make_streams(store, term)
        transaction = direct.transaction()
        await transaction.start()
        await direct.execute(
            "INSERT INTO sealwire.stream SELECT vault_id, 5, head, top, floor, floor_head, purged, cleaned_to, term,"
            " term_id, key_id, epoch, 1, terms FROM sealwire.stream WHERE vault_id = $1::text::uuid AND stream = 0"
            " FOR SHARE",
            vault.id.hex(),
        )
        rotating = asyncio.create_task(store.append_link(vault.id, ROTATION, term))
        await postgres.somebody_waits()  # it was begun before that stream was there
        await transaction.commit()
        assert await rotating is None
        told = await store.subscription(vault.id, vault.admin, [MEMBERSHIP])
        assert told is not None and (told.vault, told.streams[0].head) == (STATE, 2)
        assert await store.append_link(vault.id, ROTATION, term) == term


@asyncio_test
async def test_s10_an_append_that_waits_for_an_epoch_is_refused_by_it(postgres: PostgresPlace) -> None:
    async with postgres.opened() as store, postgres.direct() as direct:
        term = await store.open_term()
        vault = await make_streams(store, term)
        transaction = direct.transaction()
        await transaction.start()
        head = "SELECT FROM sealwire.stream WHERE vault_id = $1::text::uuid AND stream = 0 FOR UPDATE"
        await direct.execute(head, vault.id.hex())
        rotating = asyncio.create_task(store.append_link(vault.id, REMOVAL, term))
        await postgres.somebody_waits()  # it has the locks of the heads before stream 0
        appending = asyncio.create_task(takes(store, vault, term, BEFORE, STATE))
        await postgres.somebody_waits(2)
        await transaction.rollback()
        assert (await rotating, await appending) == (term, False)
        assert await whole(store, vault, BEFORE) == []


@asyncio_test
async def test_epochs_and_removals_outlast_a_restart_and_go_with_a_restore(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        vault = await make_streams(store, term)
        assert await store.append_link(vault.id, REMOVAL, term) == term
    await fresh.back_up()
    async with fresh.opened() as store:
        later = await store.open_term()
        again = MemberState(Author(4), vault.writer, Role.WRITER)
        assert await store.append_link(vault.id, NewLink(4, b"again", again), later) == later
        third = VaultState(EPOCH + 2, KeyId(b"\x02\x02\x02\x02"))
        assert await store.append_link(vault.id, NewLink(5, b"third", None, None, third), later) == later
        assert await takes(store, vault, later, BEFORE, third)
    await fresh.restore()
    async with fresh.opened() as store:
        later = await store.open_term()
        told = await store.subscription(vault.id, vault.admin, [MEMBERSHIP])
        assert told is not None and (told.vault, told.streams[0].head) == (NEXT, 3)
        assert await store.subscription(vault.id, vault.writer, []) is None
        for stream in (BEFORE, AFTER):
            assert not await takes(store, vault, later, stream, STATE)
            assert await takes(store, vault, later, stream, NEXT)
