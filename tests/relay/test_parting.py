"""Who leaves a vault is out of it on every relay; and what a relay answers of a vault that was deleted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sealwire_protocol.errors import CloseCode, FaultCode, Outcome
from sealwire_protocol.ids import MEMBERSHIP, START, Author, MailboxId
from sealwire_protocol.links import Role, encode_links, vault_id_of
from sealwire_protocol.messages import (
    AppendLink,
    CreateStream,
    CreateVault,
    Done,
    Fault,
    Fetch,
    OfferLinks,
    OpenMailbox,
    Push,
    Reconcile,
    StreamKind,
    Subscribed,
)
from sealwire_protocol.reconcile import ROOT
from sealwire_relay.store.kept import MemoryDatabase
from tests.relay.asking import ANNA, BERT, CARL, ask, done, refused
from tests.relay.test_epochs import DORA, LOG, OTHER, STREAM, VAULT, Both, both, links, of, out
from tests.support.aio import asyncio_test
from tests.support.device import Device, add_link, end_link, epoch_link, genesis, group, leave_link
from tests.support.relay import memory_store, running

LEFT = leave_link(BERT, 2, LOG)
END = end_link(ANNA, LOG)


async def deleted(device: Device) -> Fault:
    """Wait until a device is told that the vault was deleted."""
    return await device.until(Fault, lambda fault: (fault.code, fault.vault) == (FaultCode.VAULT_DELETED, VAULT))


async def push_in_vain(device: Device, batch: int) -> None:
    """Push as to a vault that is there; the fault is awaited by whoever asks."""
    await device.send(Push(VAULT, device.term(VAULT), batch, 0, (group(STREAM, of(1, 2)),)))


# --- leaving


@asyncio_test
async def test_s10_who_has_left_writes_no_more_on_any_relay() -> None:
    async with both() as relays:
        async with (
            await Device.open(relays.there.port, BERT) as there,
            await Device.open(relays.here.port, BERT) as here,
        ):
            await there.subscribe(VAULT, STREAM)
            assert (await there.push(VAULT, 1, group(STREAM, of(1, 2)))).outcome is Outcome.DONE
            await done(here, AppendLink, VAULT, LEFT)
            await push_in_vain(there, 2)
            await out(there)
            for number, device in ((3, here), (4, there)):
                await device.subscribe_raw(VAULT, STREAM)
                await out(device)
                assert await refused(device, CreateStream, VAULT, OTHER, StreamKind.OPEN) is FaultCode.NO_SUCH_VAULT
                assert await refused(device, AppendLink, VAULT, leave_link(BERT, 2, [*LOG, LEFT])) is (
                    FaultCode.NO_SUCH_VAULT
                ), number
        assert relays.database.vaults[VAULT].streams[STREAM].head == 1
        assert relays.database.vaults[VAULT].state.epoch == 1
        assert set(relays.database.vaults[VAULT].members) == {1, 3}


@asyncio_test
async def test_s11_the_connections_of_who_has_left_end_on_every_relay() -> None:
    async with both() as relays:
        async with (
            await Device.open(relays.here.port, BERT) as here,
            await Device.open(relays.there.port, BERT) as there,
        ):
            for device in (here, there):
                await device.subscribe(VAULT, MEMBERSHIP, STREAM)
            await done(here, AppendLink, VAULT, LEFT)
            await out(here)
            assert links(here)[-1] == LEFT
            assert await here.closed() == CloseCode.REMOVED
            await relays.sweep()
            assert await there.closed() == CloseCode.REMOVED


@pytest.mark.parametrize(
    "link",
    [
        leave_link(ANNA, 2, LOG),
        leave_link(BERT, 1, LOG),
        leave_link(BERT, 3, LOG),
        leave_link(DORA, 4, LOG),
        leave_link(ANNA, 1, LOG),
        end_link(BERT, LOG, author=2),
        end_link(CARL, LOG, author=3),
        end_link(BERT, LOG),
        end_link(DORA, LOG, author=4),
    ],
    ids=["by an admin", "for an admin", "for another", "stranger", "only admin", "writer", "reader", "forged", "none"],
)
def test_s03_nobody_leaves_for_another_and_no_stranger_or_member_deletes_a_vault(link: bytes) -> None:
    @asyncio_test
    async def run() -> None:
        async with both() as relays, await Device.open(relays.here.port, BERT) as bert:
            for device in (relays.anna, bert):
                assert await refused(device, AppendLink, VAULT, link) is FaultCode.BAD_LINK
                assert await refused(device, OfferLinks, VAULT, len(LOG), encode_links([link])) is FaultCode.BAD_LINK
            async with await Device.open(relays.here.port, DORA) as dora:
                assert await refused(dora, AppendLink, VAULT, link) is FaultCode.NO_SUCH_VAULT
            kept = relays.database.vaults[VAULT]
            assert (kept.state.epoch, set(kept.members), kept.streams[MEMBERSHIP].head) == (1, {1, 2, 3}, len(LOG))

    run()


@asyncio_test
async def test_anybody_brings_back_to_a_restored_relay_that_somebody_has_left() -> None:
    async with both() as relays, await Device.open(relays.here.port, BERT) as bert:
        backup = relays.database.copy()
        await done(bert, AppendLink, VAULT, LEFT)
        async with running(await memory_store(backup)) as restored:
            async with await Device.open(restored.port, BERT) as again, await Device.open(restored.port, CARL) as carl:
                await again.subscribe(VAULT, STREAM)
                await done(carl, AppendLink, VAULT, LEFT)
                await out(again)


# --- a vault that was deleted


@asynccontextmanager
async def ended() -> AsyncIterator[tuple[Both, Device]]:
    """Two relays, and Bert at the second one, which has not heard of it; there is a record, and nothing of it is
    cleared yet."""
    async with both() as relays, await Device.open(relays.there.port, BERT) as bert:
        await bert.subscribe(VAULT, MEMBERSHIP, STREAM)
        assert (await bert.push(VAULT, 1, group(STREAM, of(1, 2)))).outcome is Outcome.DONE
        await bert.has(STREAM, 1)
        await relays.anna.subscribe(VAULT, MEMBERSHIP, STREAM)
        await relays.anna.has(STREAM, 1)
        for device in (bert, relays.anna):
            device.log.clear()
        await done(relays.anna, AppendLink, VAULT, END)
        yield relays, bert


@asyncio_test
async def test_members_hear_that_their_vault_was_deleted_and_their_connections_stay() -> None:
    async with ended() as (relays, bert):
        await relays.anna.when(lambda: links(relays.anna)[-1] == END)
        await relays.sweep()
        await bert.when(lambda: links(bert)[-1] == END)
        async with await Device.open(relays.here.port, CARL) as late:
            told = await late.subscribe(VAULT, MEMBERSHIP, STREAM)
            assert (told.epoch, told.key_id) == (0, bytes(4))
            assert {state.stream: state.kind for state in told.streams} == {
                MEMBERSHIP: StreamKind.MEMBERSHIP,
                STREAM: StreamKind.ABSENT,
            }
            await late.when(lambda: links(late) == [*LOG, END])
            assert (late.close_code, bert.close_code) == (None, None)


@asyncio_test
async def test_a_push_to_a_vault_that_was_deleted_is_refused_also_where_nobody_has_heard_of_it() -> None:
    async with ended() as (relays, bert):
        await push_in_vain(bert, 2)
        await deleted(bert)
        await bert.subscribe(VAULT, MEMBERSHIP)
        await push_in_vain(bert, 1)
        await deleted(bert)
        assert set(relays.database.vaults[VAULT].streams) == {MEMBERSHIP}


@asyncio_test
async def test_whatever_a_member_asks_for_in_it_is_refused_and_strangers_learn_nothing() -> None:
    async with ended() as (relays, bert):
        asked = (
            (CreateStream, VAULT, STREAM, StreamKind.OPEN),
            (Reconcile, VAULT, STREAM, START, (ROOT,)),
            (Fetch, VAULT, STREAM, START, (1,)),
        )
        async with await Device.open(relays.here.port, DORA) as dora:
            for kind, *fields in asked:
                for device in (relays.anna, bert):
                    assert await refused(device, kind, *fields) is FaultCode.VAULT_DELETED
                assert await refused(dora, kind, *fields) is FaultCode.NO_SUCH_VAULT
            await dora.subscribe_raw(VAULT, MEMBERSHIP)
            await out(dora)
        box = MailboxId(b"mailbox of death")
        assert await refused(relays.anna, OpenMailbox, VAULT, box, 60) is FaultCode.NO_SUCH_MAILBOX


@asyncio_test
async def test_nothing_follows_the_end_of_a_vault_and_nobody_makes_it_anew() -> None:
    async with ended() as (relays, bert):
        log = [*LOG, END]
        for link in (add_link(ANNA, log, DORA), epoch_link(ANNA, log, 2, 3), end_link(ANNA, log)):
            assert await refused(relays.anna, AppendLink, VAULT, link) is FaultCode.BAD_LINK
        assert await refused(bert, AppendLink, VAULT, leave_link(BERT, 2, log)) is FaultCode.BAD_LINK
        for device in (relays.anna, bert):
            await done(device, CreateVault, LOG[0])
            for link in log[1:]:
                await done(device, AppendLink, VAULT, link)
        told = await bert.subscribe(VAULT, STREAM)
        assert (told.epoch, told.streams[0].kind) == (0, StreamKind.ABSENT)


@asyncio_test
async def test_r15_no_other_links_take_the_place_of_the_end_of_a_vault() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        log = [genesis(ANNA)]
        log.append(add_link(ANNA, log, BERT, Role.ADMIN))
        vault = vault_id_of(log[0])
        await done(anna, CreateVault, log[0])
        await done(anna, AppendLink, vault, log[1])
        ends = end_link(BERT, log, author=2)
        async with await Device.open(relay.port, BERT) as bert:
            await done(bert, AppendLink, vault, ends)
            removal = epoch_link(ANNA, log, 2, 1, 2)
            assert await refused(anna, OfferLinks, vault, 2, encode_links([removal])) is FaultCode.LINK_CONFLICT
            assert isinstance(await ask(anna, OfferLinks, vault, 2, encode_links([ends])), Done)
            assert (await anna.subscribe(vault, MEMBERSHIP)).epoch == 0
            assert (await bert.subscribe(vault, MEMBERSHIP)).epoch == 0


@asyncio_test
async def test_a_restored_relay_that_is_told_deletes_the_vault_again() -> None:
    for others in (0, 3):
        database = MemoryDatabase()
        async with running(await memory_store(database)) as relay, await Device.open(relay.port, ANNA) as anna:
            await done(anna, CreateVault, LOG[0])
            for link in LOG[1:]:
                await done(anna, AppendLink, VAULT, link)
            await anna.create_stream(VAULT, STREAM)
            log = list(LOG)
            for number in range(others):
                log.append(epoch_link(ANNA, log, 2 + number, 3))
                await done(anna, AppendLink, VAULT, log[-1])
            async with await Device.open(relay.port, CARL) as carl:
                if others:
                    assert isinstance(await ask(carl, OfferLinks, VAULT, len(LOG), encode_links([END])), Done)
                else:
                    await done(carl, AppendLink, VAULT, END)
                told = await carl.subscribe(VAULT, MEMBERSHIP, STREAM)
                assert (told.epoch, [state.kind for state in told.streams]) == (
                    0,
                    [StreamKind.MEMBERSHIP, StreamKind.ABSENT],
                )
                await carl.when(lambda: bool(links(carl)) and links(carl)[-1] == END)
            assert set(database.vaults[VAULT].streams) == {MEMBERSHIP}
            await relay.plane._clearing.look()
            assert (database.ended, database.vaults[VAULT].members[carl_author(database)].outcomes) == (set(), {})


def carl_author(database: MemoryDatabase) -> Author:
    return next(a for a, m in database.vaults[VAULT].members.items() if m.state.device == CARL.key)


@asyncio_test
async def test_a_device_that_subscribes_again_and_again_hears_the_same() -> None:
    async with ended() as (_, bert):
        for _ in range(3):
            await bert.subscribe_raw(VAULT, STREAM)
            assert (await bert.until(Subscribed, lambda told: told.epoch == 0)).streams[0].head == 0
