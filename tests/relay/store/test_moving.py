"""Every store keeps a vault that has moved away as it is, and has nothing of it but its log when it comes back."""

import math

from sealwire_protocol.ids import MEMBERSHIP, Position, Term, TermStart
from sealwire_protocol.messages import StreamKind, StreamState
from sealwire_relay.store.cleaning import AckedPosition
from sealwire_relay.store.interface import NewLink, Store
from tests.relay.store.places import (
    ADMIN,
    MEMBERS,
    STATE,
    Place,
    Vault,
    batch_write,
    stream_write,
    whole,
    write,
)
from tests.relay.store.test_epochs import AFTER, BEFORE, NEXT, make_streams, takes
from tests.support.aio import asyncio_test

AWAY = NewLink(3, b"away", None, None, STATE._replace(moved=True))
BACK = NewLink(4, b"back", None, None, STATE, arrives=True)


async def filled(store: Store, term: Term) -> Vault:
    """A vault with records in two streams, a guard's worth of batches and a position."""
    vault = await make_streams(store, term)
    streams = [stream_write(BEFORE, 0, b"a", b"b"), stream_write(AFTER, 0, b"c")]
    assert await store.append([write(vault, term, streams, [batch_write(1)])]) == [True]
    await store.acked([AckedPosition(vault.id, BEFORE, vault.admin, Position(term, 2))])
    return vault


@asyncio_test
async def test_nothing_is_appended_to_a_vault_that_has_moved_but_links(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        vault, other = await filled(store, term), await filled(store, term)
        assert await store.append_link(vault.id, AWAY, term) == term
        told = await store.subscription(vault.id, vault.writer, [BEFORE])
        assert told is not None and told.vault == AWAY.state and told.streams[0].head == 2
        assert not await takes(store, vault, term, BEFORE, STATE)
        assert await store.append([write(vault, term, [], [batch_write(2)])]) == [False]
        assert len(await whole(store, vault, BEFORE)) == 2, "it stays to be read"
        rotation = NewLink(4, b"rotation", None, None, NEXT._replace(moved=True))
        assert await store.append_link(vault.id, rotation, term) == term
        told = await store.subscription(vault.id, vault.writer, [])
        assert told is not None and told.vault == rotation.state
        again = await store.subscription(other.id, other.writer, [])
        assert again is not None and again.vault == STATE
        [done] = await store.append([write(other, term, [stream_write(BEFORE, 2, b"d")])])
        assert done, "another vault is where it was"


@asyncio_test
async def test_a_vault_that_comes_back_begins_anew_in_every_stream_but_its_log(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        vault, other = await filled(store, term), await filled(store, term)
        assert await store.append_link(vault.id, AWAY, term) == term
        assert await store.append_link(vault.id, BACK, term) == term
        assert (await store.links(vault.id)).links == (b"genesis", b"second", b"away", b"back")
        told = await store.subscription(vault.id, vault.admin, [MEMBERSHIP, BEFORE, AFTER])
        assert told is not None and told.vault == STATE and told.last_batch == 1
        own = told.streams[1].terms[0].term
        assert own.number == term.number and own != term
        begun = [StreamState(name, StreamKind.OPEN, 0, 0, 0, 0, 0, 0, (TermStart(own, 0),)) for name in (BEFORE, AFTER)]
        assert list(told.streams[1:]) == begun
        assert await store.heads([(vault.id, BEFORE)]) == {(vault.id, BEFORE): Position(own, 0)}
        pusher = await store.pusher(vault.id, vault.admin)
        assert pusher is not None and (pusher.last_batch, pusher.last_term) == (1, 0), "it may skip numbers"
        assert [kept.batch for kept in pusher.outcomes] == [1], "what was said of a batch stays true"
        batch, new = batch_write(9, 1, MEMBERS[ADMIN]), stream_write(BEFORE, 0, b"e")
        assert await store.append([write(vault, term, [new], [batch])]) == [False], "it was decided before that"
        assert await store.append([write(vault, term, [new._replace(term=own)], [batch])]) == [True]
        assert [segment.body for segment in await whole(store, vault, BEFORE)] == [b"e"]
        term = await store.open_term()
        assert await store.append([write(vault, term, [stream_write(BEFORE, 1, b"f")])]) == [True]
        told = await store.subscription(vault.id, vault.admin, [BEFORE])
        assert told is not None and told.streams[0].terms == (TermStart(own, 0), TermStart(term, 1))
        assert len(await whole(store, other, BEFORE)) == 2, "another vault has what it had"


@asyncio_test
async def test_it_is_known_when_a_vault_was_moved_here(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        moved, other = await filled(store, term), await filled(store, term)
        assert await store.append_link(moved.id, BACK._replace(seq=3), term) == term
        for vault in (moved, other):
            assert await store.compacted(vault.id, BEFORE, 2, term, 1, 1)
        found = {each.vault: each for each in await store.tombstones(None, 10)}
        assert -1 <= found[moved.id].now - found[moved.id].arrived < 60
        assert found[other.id].arrived == -math.inf
        assert len(await whole(store, moved, BEFORE)) == 2, "it had not moved away: what is here stays"


@asyncio_test
async def test_another_end_of_the_log_may_say_where_the_vault_is(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        vault = await filled(store, term)
        there = await store.links(vault.id)
        members = list(MEMBERS.values())
        assert await store.replace_links(vault.id, there, 1, [b"second", b"away"], members, AWAY.state or STATE, term)
        told = await store.subscription(vault.id, vault.admin, [])
        assert told is not None and told.vault.moved
        there = await store.links(vault.id)
        assert await store.replace_links(vault.id, there, 1, [b"second", b"third"], members, STATE, term)
        told = await store.subscription(vault.id, vault.admin, [BEFORE])
        assert told is not None and not told.vault.moved and told.streams[0].head == 0
        assert told.streams[0].terms[0].term.id != term.id
