"""Every store keeps of a vault that was deleted its log and its members, and deletes the rest in steps."""

import asyncio

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import MEMBERSHIP, MailboxId, Position, StreamId, Tag, Term
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store.cleaning import AckedPosition
from sealwire_relay.store.interface import ENDED, NewLink, Store
from sealwire_relay.store.mailboxes import MailboxVerdict
from sealwire_relay.store.segments import StoredSegment
from tests.relay.store.places import (
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

END = NewLink(3, b"end", None, None, ENDED)
LEFT = """SELECT (SELECT count(*) FROM sealwire.segment WHERE vault_id = $1::text::uuid AND stream <> 0)
    + (SELECT count(*) FROM sealwire.guard WHERE vault_id = $1::text::uuid)
    + (SELECT count(*) FROM sealwire.outcome WHERE vault_id = $1::text::uuid)
    + (SELECT count(*) FROM sealwire.ack WHERE vault_id = $1::text::uuid)
    + (SELECT count(*) FROM sealwire.mailbox WHERE vault_id = $1::text::uuid)
    + (SELECT count(*) FROM sealwire.ended WHERE vault_id = $1::text::uuid)"""


async def fill(store: Store, term: Term) -> tuple[Vault, StreamId, MailboxId]:
    """A vault of which something is kept everywhere, its guarded stream, and its mailbox."""
    vault, guarded, mailbox = await make_vault(store, term), StreamId(name(8)), MailboxId(name(16))
    await store.create_stream(vault.id, guarded, StreamKind.GUARDED)
    holds = ((Tag(name(16)), Current(3, b"salt....", True, 2)),)
    new = [stream_write(vault.stream, 0, *[b"a"] * 20), stream_write(guarded, 0, b"xy")._replace(guards=holds)]
    assert await store.append([write(vault, term, new, [batch_write(1)])]) == [True]
    await store.acked([AckedPosition(vault.id, vault.stream, vault.writer, Position(term, 3))])
    assert await store.open_mailbox(mailbox, vault.id, vault.admin, 600) is MailboxVerdict.DONE
    return vault, guarded, mailbox


async def clear(store: Store, rows_max: int = 500) -> int:
    """Until nothing is left; in how many steps."""
    steps = 0
    while await store.clear(rows_max):
        steps += 1
    return steps


@asyncio_test
async def test_of_a_vault_that_was_deleted_the_log_and_its_members_stay(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        (vault, guarded, mailbox), (other, _, box) = await fill(store, term), await fill(store, term)
        assert await store.append_link(vault.id, END, term) == term
        await clear(store)
        told = await store.subscription(vault.id, vault.writer, [MEMBERSHIP, vault.stream, guarded])
        assert told is not None and told.vault == ENDED
        assert [(state.kind, state.head) for state in told.streams] == [
            (StreamKind.MEMBERSHIP, 3),
            (StreamKind.ABSENT, 0),
            (StreamKind.ABSENT, 0),
        ]
        assert (await store.links(vault.id)).links == (b"genesis", b"second", b"end")
        assert (await store.members([vault.id]))[vault.id] == {vault.admin, vault.writer}
        assert await store.read(vault.id, vault.stream, 0, 64) is None
        pusher = await store.pusher(vault.id, vault.admin)
        assert pusher is not None and pusher.outcomes == ()
        assert await store.mailbox(mailbox) is None
        assert len(await whole(store, other, other.stream)) == 20
        assert await store.mailbox(box) is not None
        assert await store.append([write(other, term, [stream_write(other.stream, 20, b"a")])]) == [True]


@asyncio_test
async def test_nothing_is_written_in_a_vault_that_was_deleted(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault, guarded, _ = await fill(store, term)
        assert await store.append_link(vault.id, END, term) == term
        new = [stream_write(vault.stream, 20, b"b")]
        for state in (STATE, ENDED):
            assert await store.append([write(vault, term, new, state=state)]) == [False]
        assert await store.append([write(vault, term, [], [batch_write(2)])]) == [False]
        for stream in (vault.stream, guarded, StreamId(name(8))):
            assert await store.create_stream(vault.id, stream, StreamKind.OPEN) is StreamKind.ABSENT
        assert await store.open_mailbox(MailboxId(name(16)), vault.id, vault.admin, 60) is MailboxVerdict.ABSENT
        one = StoredSegment(0, 1, b"a")
        assert not await store.swap(vault.id, vault.stream, [one], one, 1, term)
        assert not await store.compacted(vault.id, vault.stream, 1, term, 0, 0)
        assert not await store.create_vault(vault.id, ENDED._replace(epoch=1), NewLink(1, b"genesis", None), term)
        await store.acked([AckedPosition(vault.id, vault.stream, vault.writer, Position(term, 4))])
        await clear(store)
        assert vault.stream not in {found.stream for found in await store.dirty(None, 0, 1_000)}


@asyncio_test
async def test_r15_links_that_take_the_place_of_others_delete_the_vault_too(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault, _, _ = await fill(store, term)
        assert await store.append_link(vault.id, NewLink(3, b"third", None), term) == term
        members, there = list(MEMBERS.values()), await store.links(vault.id)
        assert await store.replace_links(vault.id, there, 2, [b"end"], members, ENDED, term)
        await clear(store)
        told = await store.subscription(vault.id, vault.writer, [vault.stream])
        assert told is not None and (told.vault, told.streams[0].kind) == (ENDED, StreamKind.ABSENT)


@asyncio_test
async def test_a_backup_of_before_has_the_vault_and_one_of_after_goes_on_deleting(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        vault, _, _ = await fill(store, term)
    await fresh.back_up()
    async with fresh.opened() as store:
        assert await store.append_link(vault.id, END, term) == term
        await clear(store)
    await fresh.restore()
    async with fresh.opened() as store:
        told = await store.subscription(vault.id, vault.writer, [vault.stream])
        assert told is not None and (told.vault.ended, told.streams[0].head) == (False, 20)
        term = await store.open_term()
        assert await store.append_link(vault.id, END, term) == term
    await fresh.back_up()
    await fresh.restore()
    async with fresh.opened() as store:
        assert await store.clear(500)
        await clear(store)
        if isinstance(fresh, PostgresPlace):
            async with fresh.direct() as direct:
                assert await direct.fetchval(LEFT, vault.id.hex()) == 0


@asyncio_test
async def test_what_is_left_is_deleted_in_bounded_steps_by_whoever_comes(postgres: PostgresPlace) -> None:
    async with postgres.opened() as one, postgres.opened() as two, postgres.direct() as direct:
        term = await one.open_term()
        await clear(one)
        vault, _, _ = await fill(one, term)
        assert await one.append_link(vault.id, END, term) == term
        before = await direct.fetchval(LEFT, vault.id.hex())
        assert await one.clear(3)
        assert before - await direct.fetchval(LEFT, vault.id.hex()) == 3 + 4, "three segments, and one of all else"
        steps = await asyncio.gather(clear(one, 3), clear(two, 3))
        assert sum(steps) >= 6
        assert await direct.fetchval(LEFT, vault.id.hex()) == 0
        assert (await one.links(vault.id)).links[-1] == b"end"


@asyncio_test
async def test_an_append_that_is_under_way_is_deleted_with_the_vault_or_refused(postgres: PostgresPlace) -> None:
    async with postgres.opened() as store, postgres.direct() as direct:
        term = await store.open_term()
        vault, _, _ = await fill(store, term)
        transaction = direct.transaction()
        await transaction.start()
        await direct.execute("SELECT 1 FROM sealwire.stream WHERE vault_id = $1::text::uuid FOR UPDATE", vault.id.hex())
        ending = asyncio.create_task(store.append_link(vault.id, END, term))
        await postgres.somebody_waits()
        pushing = asyncio.create_task(store.append([write(vault, term, [stream_write(vault.stream, 20, b"b")])]))
        await postgres.somebody_waits(2)
        await transaction.commit()
        assert await ending == term
        assert await pushing == [False]
        await clear(store)
        assert await direct.fetchval(LEFT, vault.id.hex()) == 0


@asyncio_test
async def test_who_leaves_is_forgotten_and_the_epoch_stays(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault, _, _ = await fill(store, term)
        told = await store.subscription(vault.id, vault.admin, [])
        assert told is not None
        left = NewLink(3, b"left", None, None, told.vault, (WRITER,))
        assert await store.append_link(vault.id, left, term) == term
        assert await store.subscription(vault.id, vault.writer, []) is None
        assert await store.append([write(vault, term, [stream_write(vault.stream, 20, b"b")])]) == [True]
        pushed = [batch_write(1, member=MEMBERS[WRITER])]
        assert await store.append([write(vault, term, [], pushed)]) == [False]
