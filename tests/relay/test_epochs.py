"""New epochs at the relay: what is sealed under an older key is refused on every relay, and who was removed is out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from sealwire_protocol import codec
from sealwire_protocol.errors import Action, CloseCode, FaultCode, Outcome
from sealwire_protocol.ids import MEMBERSHIP, START, Author, KeyId, Position, StreamId, Term
from sealwire_protocol.limits import EPOCH_LINK_BYTES_MAX, MEMBERS_MAX
from sealwire_protocol.links import Role, decode_links, encode_links, vault_id_of
from sealwire_protocol.messages import (
    NO_REQUEST,
    REFILL,
    AppendLink,
    CreateStream,
    CreateVault,
    Done,
    Fault,
    Fetch,
    Message,
    OfferLinks,
    Push,
    Reconcile,
    StreamKind,
    Subscribed,
)
from sealwire_protocol.reconcile import ROOT
from sealwire_protocol.segment import Record
from sealwire_relay.store.interface import MemberState, NewLink, StoreDownError
from sealwire_relay.store.kept import MemoryDatabase
from tests.relay.asking import ANNA, BERT, CARL, ask, done, refused
from tests.support.aio import asyncio_test
from tests.support.device import (
    Device,
    Identity,
    add_link,
    epoch_link,
    genesis,
    group,
    key_id_of,
    record,
    replace_link,
    returned,
)
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running

DORA = Identity(4)
STREAM, OTHER = StreamId(b"a stream"), StreamId(b"another.")
LOG = [genesis(ANNA)]
LOG.append(add_link(ANNA, LOG, BERT))
LOG.append(add_link(ANNA, LOG, CARL, Role.READER))
VAULT = vault_id_of(LOG[0])
ROTATION = epoch_link(ANNA, LOG, 2, 3)
REMOVAL = epoch_link(ANNA, LOG, 2, 2, 2)


class Both(NamedTuple):
    """Two relays on one database, and Anna at the first one."""

    here: Relay
    there: Relay
    database: MemoryDatabase
    anna: Device

    async def sweep(self) -> None:
        """The second relay looks for what the first one has committed."""
        await self.there.plane._sweep.look()


@asynccontextmanager
async def both() -> AsyncIterator[Both]:
    """They have the vault of `LOG` with two streams."""
    database = MemoryDatabase()
    async with running(await memory_store(database)) as here, running(await memory_store(database)) as there:
        async with await Device.open(here.port, ANNA) as anna:
            await here.plane._sweep.look()  # it adopts the term that the other one has opened
            await done(anna, CreateVault, LOG[0])
            for link in LOG[1:]:
                await done(anna, AppendLink, VAULT, link)
            for stream in (STREAM, OTHER):
                await anna.create_stream(VAULT, stream)
            yield Both(here, there, database, anna)


def of(epoch: int, author: int, tag: int = 0) -> Record:
    return record(author=author, epoch=epoch, key_id=key_id_of(epoch), tag=tag)


def links(device: Device) -> list[bytes]:
    return [raw for each in device.delivered if each.stream == MEMBERSHIP for raw in decode_links(each.segment)]


async def out(device: Device) -> Fault:
    """Wait until a device is told that it has no such vault."""
    return await device.until(Fault, lambda fault: (fault.code, fault.vault) == (FaultCode.NO_SUCH_VAULT, VAULT))


# --- an epoch


@asyncio_test
async def test_an_epoch_is_told_and_what_is_sealed_under_the_former_key_is_refused() -> None:
    async with both() as relays, await Device.open(relays.here.port, BERT) as bert:
        await relays.anna.subscribe(VAULT, MEMBERSHIP)
        await bert.subscribe(VAULT, MEMBERSHIP, STREAM)
        assert (await bert.push(VAULT, 1, group(STREAM, of(1, 2)))).outcome is Outcome.DONE
        for _ in range(2):
            await done(relays.anna, AppendLink, VAULT, ROTATION)
        await bert.when(lambda: links(bert) == [*LOG, ROTATION])
        await relays.anna.when(lambda: links(relays.anna) == [*LOG, ROTATION])
        assert (await bert.push(VAULT, 2, group(STREAM, of(1, 2)))).outcome is Outcome.EPOCH_STALE
        wrong = of(2, 2)._replace(key_id=KeyId(b"none"))
        assert (await bert.push(VAULT, 3, group(STREAM, wrong))).outcome is Outcome.EPOCH_STALE
        assert (await bert.push(VAULT, 4, group(STREAM, of(2, 2)))).outcome is Outcome.DONE
        await bert.subscribe_raw(VAULT, STREAM)
        assert (await bert.until(Subscribed, lambda told: told.epoch == 2)).key_id == key_id_of(2)


@asyncio_test
async def test_s10_a_relay_that_has_not_heard_of_the_epoch_refuses_the_former_key_too() -> None:
    async with both() as relays, await Device.open(relays.there.port, BERT) as bert:
        await bert.subscribe(VAULT, STREAM, OTHER)
        assert (await bert.push(VAULT, 1, group(STREAM, of(1, 2)))).outcome is Outcome.DONE
        await done(relays.anna, AppendLink, VAULT, ROTATION)
        assert (await bert.push(VAULT, 2, group(STREAM, of(1, 2)))).outcome is Outcome.EPOCH_STALE
        assert (await bert.push(VAULT, 3, group(OTHER, of(1, 2)))).outcome is Outcome.EPOCH_STALE
        assert (await bert.push(VAULT, 4, group(STREAM, of(2, 2)), group(OTHER, of(2, 2)))).outcome is Outcome.DONE
        assert relays.database.vaults[VAULT].streams[STREAM].head == 2


@asyncio_test
async def test_r14_what_was_sealed_under_a_former_key_is_still_given_back_after_a_loss() -> None:
    async with both() as relays, await Device.open(relays.here.port, BERT) as bert:
        await done(relays.anna, AppendLink, VAULT, ROTATION)
        told = await bert.subscribe(VAULT, STREAM)
        lost = Position(Term(told.term.number, b"otherid!"), 7)
        refill = returned(STREAM, (lost, of(1, 1)), (lost, of(1, 2, 1)), compared=Position(told.term, 0))
        assert (await bert.push(VAULT, 1, refill, flags=REFILL)).outcome is Outcome.DONE
        assert relays.database.vaults[VAULT].streams[STREAM].head == 2


@pytest.mark.parametrize(
    "link",
    [
        epoch_link(BERT, LOG, 2, 3, author=2),
        epoch_link(CARL, LOG, 2, 3, author=3),
        epoch_link(BERT, LOG, 2, 3),
        epoch_link(ANNA, LOG, 1, 3),
        epoch_link(ANNA, LOG, 3, 3),
        epoch_link(ANNA, LOG, 2, 2),
        epoch_link(ANNA, LOG, 2, 3, 2),
        epoch_link(ANNA, LOG, 2, 3, 4),
        epoch_link(ANNA, LOG, 2, 2, 1),
        epoch_link(ANNA, LOG, 2, 1, 3, 2),
    ],
    ids=["writer", "reader", "forged", "same", "beyond", "few", "many", "nobody", "itself", "disorder"],
)
def test_s03_an_epoch_that_nobody_may_begin_so_is_refused(link: bytes) -> None:
    @asyncio_test
    async def run() -> None:
        async with both() as relays, await Device.open(relays.here.port, BERT) as bert:
            for device in (relays.anna, bert):
                assert await refused(device, AppendLink, VAULT, link) is FaultCode.BAD_LINK
            async with await Device.open(relays.here.port, DORA) as dora:
                assert await refused(dora, AppendLink, VAULT, link) is FaultCode.NO_SUCH_VAULT
            assert relays.database.vaults[VAULT].state.epoch == 1

    run()


@asyncio_test
async def test_a_link_as_large_as_a_field_can_be_passes_the_wire() -> None:
    store = await memory_store()
    log = [genesis(ANNA)]
    vault = vault_id_of(log[0])
    for number in range(MEMBERS_MAX - 1):
        log.append(add_link(ANNA, log, Identity(100 + number), Role.READER))
    link = epoch_link(ANNA, log, 2, MEMBERS_MAX)
    assert MEMBERS_MAX * 32 < len(link) <= EPOCH_LINK_BYTES_MAX
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        term = await store.current_term()
        await done(anna, CreateVault, log[0])
        for number, raw in enumerate(log[1:]):
            member = MemberState(Author(number + 2), Identity(100 + number).key, Role.READER)
            assert await store.append_link(vault, NewLink(number + 2, raw, member), term)
        await done(anna, AppendLink, vault, link)
        await anna.subscribe(vault, MEMBERSHIP)
        await anna.when(lambda: links(anna) == [*log, link])
        padded = link + bytes(EPOCH_LINK_BYTES_MAX - len(link))
        assert len(codec.encode(AppendLink(1, vault, padded))) > EPOCH_LINK_BYTES_MAX
        assert await refused(anna, AppendLink, vault, padded) is FaultCode.BAD_LINK


# --- who was removed


def requests(device: Identity, position: Position) -> list[Callable[[int], Message]]:
    """What only members are answered."""
    log = [*LOG, REMOVAL]
    return [
        lambda number: CreateStream(number, VAULT, StreamId(b"a third."), StreamKind.OPEN),
        lambda number: AppendLink(number, VAULT, add_link(device, log, DORA)),
        lambda number: AppendLink(number, VAULT, replace_link(device, 2, log, DORA)),
        lambda number: OfferLinks(number, VAULT, 3, encode_links([replace_link(device, 2, LOG, DORA)])),
        lambda number: Reconcile(number, VAULT, STREAM, START, (ROOT,)),
        lambda number: Fetch(number, VAULT, STREAM, position, (1,)),
    ]


@asyncio_test
async def test_s10_a_device_that_was_removed_writes_and_reads_nothing_through_any_relay() -> None:
    async with both() as relays:
        async with (
            await Device.open(relays.here.port, BERT) as here,
            await Device.open(relays.there.port, BERT) as there,
        ):
            # Another vault of its own, so that its connections stay.
            for device in (here, there):
                await done(device, CreateVault, genesis(BERT))
                told = await device.subscribe(VAULT, STREAM)
                await device.subscribe(vault_id_of(genesis(BERT)), MEMBERSHIP)
            assert (await there.push(VAULT, 1, group(STREAM, of(1, 2)))).outcome is Outcome.DONE
            await done(relays.anna, AppendLink, VAULT, REMOVAL)
            position = Position(told.term, 1)
            for device in (here, there):
                for epoch in (1, 2):
                    push = Push(VAULT, told.term, 1 + epoch, 0, (group(STREAM, of(epoch, 2)),))
                    await device.send(push)
                    fault = await device.until(Fault)
                    assert fault.code in (FaultCode.NO_SUCH_VAULT, FaultCode.NOT_SUBSCRIBED)
                await device.subscribe_raw(VAULT, STREAM)
                assert (await out(device)).action is Action.STOP
                for make in requests(BERT, position):
                    answer = await device.ask(make)
                    assert isinstance(answer, Fault) and answer.code is FaultCode.NO_SUCH_VAULT
                assert device.close_code is None
            assert relays.database.vaults[VAULT].streams[STREAM].head == 1
            assert list((await relays.here.plane._store.links(VAULT)).links) == [*LOG, REMOVAL]


@asyncio_test
async def test_s11_the_connections_of_a_device_that_was_removed_end_on_every_relay() -> None:
    async with both() as relays:
        async with (
            await Device.open(relays.here.port, BERT) as here,
            await Device.open(relays.there.port, BERT) as there,
        ):
            for device, streams in ((here, (MEMBERSHIP, STREAM)), (there, (STREAM,))):
                await device.subscribe(VAULT, *streams)
            async with await Device.open(relays.there.port, CARL) as carl:
                await carl.subscribe(VAULT, STREAM)
                await relays.sweep()
                await done(relays.anna, AppendLink, VAULT, REMOVAL)
                await out(here)
                assert await here.closed() == CloseCode.REMOVED
                assert links(here)[-1] == REMOVAL, "it is told by whom"
                await relays.sweep()
                await out(there)
                assert await there.closed() == CloseCode.REMOVED
                await relays.anna.subscribe(VAULT, STREAM)
                assert (await relays.anna.push(VAULT, 1, group(STREAM, of(2, 1)))).outcome is Outcome.DONE
                await relays.sweep()
                await carl.has(STREAM, 1)
            assert (here.seqs(STREAM), there.seqs(STREAM)) == ([], [])


@asyncio_test
async def test_s11_a_connection_that_listens_to_other_vaults_stays_and_is_told_of_this_one() -> None:
    async with both() as relays:
        async with (
            await Device.open(relays.here.port, BERT) as here,
            await Device.open(relays.there.port, BERT) as there,
        ):
            own = vault_id_of(genesis(BERT))
            await done(here, CreateVault, genesis(BERT))
            await here.create_stream(own, STREAM)
            for device in (here, there):
                await device.subscribe(VAULT, STREAM, OTHER)
                await device.subscribe(own, STREAM)
            await done(relays.anna, AppendLink, VAULT, REMOVAL)
            await out(here)
            await relays.sweep()
            await out(there)
            assert (await here.push(own, 1, group(STREAM, of(1, 1)))).outcome is Outcome.DONE
            await relays.sweep()
            for device in (here, there):
                await device.has(STREAM, 1)
                assert [deliver.vault for deliver in device.delivered] == [own]
                assert device.close_code is None


@asyncio_test
async def test_s11_who_asks_for_something_before_it_is_found_to_be_removed_is_found_all_the_same() -> None:
    async with both() as relays, await Device.open(relays.there.port, BERT) as bert:
        await bert.subscribe(VAULT, STREAM)
        await done(relays.anna, AppendLink, VAULT, REMOVAL)
        assert await refused(bert, CreateStream, VAULT, OTHER, StreamKind.OPEN) is FaultCode.NO_SUCH_VAULT
        await relays.sweep()
        assert (await out(bert)).request == NO_REQUEST
        assert await bert.closed() == CloseCode.REMOVED


@asyncio_test
async def test_s11_all_keys_of_a_member_go_with_it() -> None:
    async with both() as relays, await Device.open(relays.here.port, BERT) as bert:
        log = list(LOG)
        await bert.replace(log, 2, DORA)
        async with await Device.open(relays.here.port, DORA) as dora:
            for device in (bert, dora):
                await device.subscribe(VAULT, STREAM)
            await done(relays.anna, AppendLink, VAULT, epoch_link(ANNA, log, 2, 2, 2))
            for device in (bert, dora):
                assert await device.closed() == CloseCode.REMOVED
        assert set(relays.database.vaults[VAULT].members) == {1, 3}


@asyncio_test
async def test_s11_who_subscribes_while_it_is_removed_is_found_by_the_next_look() -> None:
    database = MemoryDatabase()
    troubled = TroubledStore(await memory_store(database))
    async with running(troubled.store) as relay, await Device.open(relay.port, ANNA) as anna:
        await done(anna, CreateVault, LOG[0])
        for link in LOG[1:]:
            await done(anna, AppendLink, VAULT, link)
        await anna.create_stream(VAULT, STREAM)
        async with await Device.open(relay.port, BERT) as bert:
            removed, asked = asyncio.Event(), asyncio.Event()

            async def wait() -> None:
                asked.set()
                await removed.wait()

            troubled.expect("subscription", Mishap(made=True, after=wait))
            await bert.subscribe_raw(VAULT, STREAM)
            await asked.wait()
            await done(anna, AppendLink, VAULT, REMOVAL)
            await relay.plane._sweep.look()
            assert bert.close_code is None, "nobody knows yet what it will be told"
            removed.set()
            assert (await bert.until(Subscribed)).epoch == 1
            await relay.plane._sweep.look()
            assert await bert.closed() == CloseCode.REMOVED


@asyncio_test
async def test_who_becomes_a_member_while_members_are_looked_up_is_not_taken_for_one_that_was_removed() -> None:
    troubled = TroubledStore(await memory_store())
    async with running(troubled.store) as relay, await Device.open(relay.port, ANNA) as anna:
        await done(anna, CreateVault, LOG[0])
        async with await Device.open(relay.port, BERT) as bert:
            asked, added = asyncio.Event(), asyncio.Event()

            async def wait() -> None:
                asked.set()
                await added.wait()

            async def add() -> None:
                await done(anna, AppendLink, VAULT, LOG[1])
                added.set()
                await bert.until(Subscribed)

            troubled.expect("subscription", Mishap(made=True, before=wait))
            await bert.subscribe_raw(VAULT, MEMBERSHIP)
            await asked.wait()
            troubled.expect("members", Mishap(made=True, after=add))
            await relay.plane._sweep.look()
            await done(anna, AppendLink, VAULT, LOG[2])
            await bert.subscribe_raw(VAULT, MEMBERSHIP)
            await bert.until(Subscribed)
            assert (bert.close_code, [m for m in bert.log if isinstance(m, Fault)]) == (None, [])


@asyncio_test
async def test_s11_if_the_database_cannot_say_who_went_the_next_look_finds_them() -> None:
    database = MemoryDatabase()
    troubled = TroubledStore(await memory_store(database))
    async with running(troubled.store) as relay, await Device.open(relay.port, ANNA) as anna:
        await done(anna, CreateVault, LOG[0])
        for link in LOG[1:]:
            await done(anna, AppendLink, VAULT, link)
        async with await Device.open(relay.port, BERT) as bert:
            await bert.subscribe(VAULT, MEMBERSHIP)
            troubled.expect("members", Mishap(StoreDownError("down")))
            await done(anna, AppendLink, VAULT, REMOVAL)
            assert bert.close_code is None
            await relay.plane._sweep.look()
            assert await bert.closed() == CloseCode.REMOVED


@asyncio_test
async def test_who_belongs_to_a_vault_is_asked_once_for_each_change_of_its_log() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vaults = [await anna.create_vault(nonce) for nonce in range(5)]
        for vault, _ in vaults:
            await anna.create_stream(vault, STREAM)
            await anna.subscribe(vault, STREAM)
        for number in range(1, 4):
            await anna.push(vaults[0][0], number, group(STREAM, record(tag=number)))
            await relay.plane._sweep.look()
        assert store.calls.count("members") == 1, "all of them at once, when they are first listened to"
        await anna.add(vaults[1][1], BERT)
        for _ in range(3):
            await relay.plane._sweep.look()
        assert store.calls.count("members") == 2


# --- other ends (R15)


async def offered(device: Device, *coming: bytes, after: int = len(LOG)) -> Done | Fault:
    return await ask(device, OfferLinks, VAULT, after, encode_links(coming))


@asyncio_test
async def test_r15_the_end_with_the_higher_epoch_stands_with_its_key() -> None:
    async with both() as relays, await Device.open(relays.there.port, BERT) as bert:
        await bert.subscribe(VAULT, STREAM)
        log = list(LOG)
        for added in (DORA, Identity(5)):
            log.append(add_link(ANNA, log, added))
            await done(relays.anna, AppendLink, VAULT, log[-1])
        assert isinstance(await offered(bert, ROTATION), Done)
        assert list((await relays.here.plane._store.links(VAULT)).links) == [*LOG, ROTATION]
        assert isinstance(await offered(relays.anna, *log[len(LOG) :]), Fault)
        assert (await bert.push(VAULT, 1, group(STREAM, of(1, 2)))).outcome is Outcome.EPOCH_STALE
        assert (await bert.push(VAULT, 2, group(STREAM, of(2, 2)))).outcome is Outcome.DONE


@asyncio_test
async def test_r15_s11_who_is_removed_by_the_end_that_stands_is_out_and_comes_back_in_no_row() -> None:
    async with both() as relays, await Device.open(relays.here.port, BERT) as bert:
        await bert.subscribe(VAULT, STREAM)
        await done(relays.anna, AppendLink, VAULT, add_link(ANNA, LOG, DORA))
        more = add_link(ANNA, [*LOG, REMOVAL], Identity(5))
        assert isinstance(await offered(relays.anna, REMOVAL, more), Done)
        await out(bert)
        assert await bert.closed() == CloseCode.REMOVED
        kept = relays.database.vaults[VAULT]
        assert (set(kept.members), kept.state.epoch) == ({1, 3, 5}, 2)


@asyncio_test
async def test_r15_an_epoch_that_a_backup_lacks_is_given_back_by_any_device() -> None:
    async with both() as relays:
        backup = relays.database.copy()
        await done(relays.anna, AppendLink, VAULT, REMOVAL)
        async with running(await memory_store(backup)) as restored:
            async with await Device.open(restored.port, CARL) as carl, await Device.open(restored.port, BERT) as bert:
                await bert.subscribe(VAULT, STREAM)
                await done(carl, AppendLink, VAULT, REMOVAL)
                assert await bert.closed() == CloseCode.REMOVED
            assert backup.vaults[VAULT].state.epoch == 2
