"""A full vault takes nothing more but deletions and what was lost; others do not notice, and room is found again."""

import pytest

from sealwire_protocol.conditions import NOTHING
from sealwire_protocol.errors import Action, FaultCode, Outcome
from sealwire_protocol.ids import MEMBERSHIP, Position, StreamId, Term, VaultId
from sealwire_protocol.links import vault_id_of
from sealwire_protocol.messages import (
    REFILL,
    RESEAL,
    CreateStream,
    CreateVault,
    Fault,
    Group,
    OpenMailbox,
    Push,
    StreamKind,
)
from sealwire_protocol.segment import TOMBSTONE
from sealwire_relay import requests
from sealwire_relay.cleaner import Cleaner
from sealwire_relay.quota import RELAYS, Allowance
from sealwire_relay.registration import receipt_of
from sealwire_relay.store import memory_mailboxes
from sealwire_relay.store.interface import Store, Usage, VaultState
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.view import Draft, VaultView
from tests.relay.asking import ANNA, BERT, ask, done, refused
from tests.relay.test_registration import KEY, STRANGER, TOKEN, asked, minted, settings
from tests.support.aio import asyncio_test
from tests.support.device import KEY_ID, Device, genesis, group, guarded, record, returned, stream_id
from tests.support.relay import TroubledStore, admit, memory_store, running

TODOS = stream_id(1)
LARGE = 200
"""Units of a record's body: some 3 KiB."""

QUOTA = 20_000


async def new_vault(device: Device, nonce: int = 0) -> VaultId:
    vault, _ = await device.create_vault(nonce)
    await device.create_stream(vault, TODOS)
    await device.subscribe(vault, TODOS)
    return vault


def put(*tags: int, version: int = 1) -> Group:
    """Large entries."""
    return group(TODOS, *(record(version, units=LARGE, tag=tag) for tag in tags))


def delete(*tags: int, version: int = 2) -> Group:
    return group(TODOS, *(record(version, tag=tag, flags=TOMBSTONE) for tag in tags))


async def stored(store: Store, vault: VaultId) -> int:
    usage = await store.usage(vault)
    assert usage is not None
    return usage.bytes


async def fill(device: Device, store: Store, vault: VaultId, quota: int = QUOTA) -> int:
    """Push until the vault is full. Returns the last batch, which was refused."""
    for batch in range(1, 50):
        told = await device.push(vault, batch, put(batch))
        assert await stored(store, vault) <= quota
        if told.outcome is Outcome.QUOTA:
            assert not told.appended and not told.refused
            return batch
        assert told.outcome is Outcome.DONE
    raise AssertionError("the vault is never full")


@asyncio_test
async def test_a_push_beyond_the_quota_stores_nothing_and_everything_else_goes_on() -> None:
    store = await memory_store()
    async with running(store, quota_bytes=QUOTA) as relay:
        async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
            vault, other = await new_vault(anna), await new_vault(bert)
            last = await fill(anna, store, vault)
            full = await stored(store, vault)
            assert full > QUOTA - len(put(1).records)
            too_much = put(last)
            for _ in range(2):  # a repeat is told the same
                assert (await anna.push(vault, last + 1, too_much)).outcome is Outcome.QUOTA
            assert relay.counted("quota_refusals_total") == 3
            # A smaller one fits still; what is refused has used up its number.
            small = group(TODOS, record(tag=1_000))
            assert (await anna.push(vault, last + 2, small)).outcome is Outcome.DONE
            assert await stored(store, vault) == full + len(small.records)
            assert (await bert.push(other, 1, put(1, 2))).outcome is Outcome.DONE
            await anna.has(TODOS, last)  # all of the first ones, and the small one


@asyncio_test
async def test_a_full_vault_can_be_emptied_and_is_filled_again_once_it_is_cleaned() -> None:
    store = await memory_store()
    async with running(store, quota_bytes=QUOTA) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        last = await fill(anna, store, vault)
        mixed = group(TODOS, record(2, tag=1, flags=TOMBSTONE), record(2, units=LARGE, tag=2))
        assert (await anna.push(vault, last + 1, mixed)).outcome is Outcome.QUOTA
        while await stored(store, vault) <= QUOTA:
            last += 1
            told = await anna.push(vault, last + 1, delete(1, 2, 3, 4, 5, version=last))
            assert told.outcome is Outcome.DONE
        assert (await anna.push(vault, last + 2, put(100))).outcome is Outcome.QUOTA
        await Cleaner(store).look(lambda dirty: True)
        assert (await anna.push(vault, last + 3, put(100))).outcome is Outcome.DONE


@asyncio_test
async def test_deletions_and_returned_records_go_beyond_a_quota_by_the_reserve_and_no_more() -> None:
    store = await memory_store()
    async with running(store, quota_bytes=QUOTA) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        batch = await fill(anna, store, vault) + 1
        while (await anna.push(vault, batch, delete(*range(20), version=batch))).outcome is Outcome.DONE:
            batch += 1
            assert QUOTA - len(put(1).records) < await stored(store, vault) <= QUOTA * 1.25
        assert await stored(store, vault) > QUOTA * 1.25 - len(delete(*range(20)).records)


@asyncio_test
async def test_what_a_relay_has_lost_comes_back_into_a_full_vault() -> None:
    store = await memory_store()
    async with running(store, quota_bytes=QUOTA) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        last = await fill(anna, store, vault)
        lost = Position(Term(10_000, b"an older"), 100)
        again = returned(TODOS, (lost, record(1, units=LARGE, tag=77)))
        assert (await anna.push(vault, last + 1, again, flags=REFILL)).outcome is Outcome.DONE
        assert await stored(store, vault) > QUOTA


@asyncio_test
async def test_a_greater_setting_lets_what_was_refused_in() -> None:
    database = MemoryDatabase()
    store = await memory_store(database)
    async with running(store, quota_bytes=QUOTA) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        last = await fill(anna, store, vault)
    for quota in (2 * QUOTA, 0):
        async with running(store, quota_bytes=quota) as relay, await Device.open(relay.port, ANNA) as anna:
            await anna.subscribe(vault, TODOS)
            last += 1
            assert (await anna.push(vault, last, put(*range(5)))).outcome is Outcome.DONE


# --- tokens


@asyncio_test
async def test_a_token_says_how_much_its_vault_may_store_and_another_one_lets_it_store_more() -> None:
    database = MemoryDatabase()
    store = await memory_store(database)
    first, more = minted(TOKEN._replace(quota=QUOTA)), minted(TOKEN._replace(serial=bytes(16), quota=2 * QUOTA))
    async with running(store, quota_bytes=100 * QUOTA, **settings("token")) as relay:
        async with await Device.open(relay.port, ANNA) as anna, await Device.open(relay.port, BERT) as bert:
            await done(anna, CreateVault, genesis(ANNA), first)
            [vault] = database.vaults
            await anna.create_stream(vault, TODOS)
            await anna.subscribe(vault, TODOS)
            last = await fill(anna, store, vault)
            # Shown again, or by whoever else, and in vain: it counts once, and what is not valid does nothing.
            expired, strange = minted(TOKEN._replace(quota=9 * QUOTA, expires=1)), minted(TOKEN, STRANGER)
            for token in (first, expired, strange, b"rubbish", b""):
                await done(bert, CreateVault, genesis(ANNA), token)
            assert database.tokens == {TOKEN.serial: 1}
            assert (await anna.push(vault, last + 1, put(98))).outcome is Outcome.QUOTA
            for _ in range(2):
                await done(bert, CreateVault, genesis(ANNA), more)
            assert database.tokens == {TOKEN.serial: 1, bytes(16): 1}
            assert (await anna.push(vault, last + 2, put(98))).outcome is Outcome.DONE
            await done(bert, CreateVault, genesis(BERT), more)
            spent = minted(TOKEN._replace(serial=bytes(16), quota=3 * QUOTA))
            said = await asked(anna, genesis(ANNA), spent)
            assert said is not None and said[:2] == (FaultCode.QUOTA, Action.STOP)
            assert await store.usage(vault) == Usage(await stored(store, vault), 2 * QUOTA)


@asyncio_test
async def test_a_token_never_lets_a_vault_store_less_and_none_counts_where_there_is_no_limit() -> None:
    database = MemoryDatabase()
    for quota, mode in ((QUOTA, "token"), (0, "open")):
        async with running(await memory_store(database), quota_bytes=quota, **settings(mode)) as relay:  # type: ignore[arg-type]
            async with await Device.open(relay.port, ANNA) as anna:
                await done(anna, CreateVault, genesis(ANNA, quota), minted())
                counted = dict(database.tokens)
                small = minted(TOKEN._replace(serial=bytes(16), quota=QUOTA - 1))
                await done(anna, CreateVault, genesis(ANNA, quota), small)
                assert database.tokens == counted
    assert [kept.quota for kept in database.vaults.values()] == [0, 0]


@asyncio_test
async def test_an_open_relay_gives_by_a_token_what_it_says_and_takes_a_vault_without() -> None:
    database = MemoryDatabase()
    token = minted(TOKEN._replace(quota=QUOTA, vaults=1))
    async with running(await memory_store(database), **settings("open", KEY)) as relay:
        async with await Device.open(relay.port, ANNA) as anna:
            for nonce, shown in enumerate((token, token, b"")):
                await done(anna, CreateVault, genesis(ANNA, nonce), shown)
    assert sorted(kept.quota for kept in database.vaults.values()) == [0, 0, QUOTA]


@asyncio_test
async def test_a_vault_that_comes_back_by_its_receipt_has_the_quota_of_the_token_that_it_was_made_with() -> None:
    database = MemoryDatabase(receipt_key=bytes(range(16)))
    token = minted(TOKEN._replace(quota=QUOTA, expires=1))
    async with running(await memory_store(database), **settings("closed")) as relay:
        async with await Device.open(relay.port, ANNA) as anna:
            link = genesis(ANNA)
            vault = vault_id_of(link)
            await done(anna, CreateVault, link, token, receipt_of(database.receipt_key, vault))
    assert database.vaults[vault].quota == QUOTA
    assert database.tokens == {}


# --- streams and mailboxes


@asyncio_test
async def test_streams_and_mailboxes_of_a_vault_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    for mailboxes in (memory_mailboxes, requests):
        monkeypatch.setattr(mailboxes, "MAILBOXES_PER_VAULT_MAX", 1)
    async with running(streams_per_vault_max=2) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        await done(anna, CreateStream, vault, StreamId(b"another."), StreamKind.OPEN)
        said = await ask(anna, CreateStream, vault, StreamId(b"too many"), StreamKind.OPEN)
        assert isinstance(said, Fault) and (said.code, said.action) == (FaultCode.QUOTA, Action.STOP)
        assert "at most 2 collections" in said.message
        await done(anna, CreateStream, vault, TODOS, StreamKind.OPEN)
        await done(anna, OpenMailbox, vault, bytes(16), 60)
        assert await refused(anna, OpenMailbox, vault, bytes(range(16)), 60) is FaultCode.QUOTA


# --- several relays


@asyncio_test
async def test_two_relays_on_one_database_store_no_more_than_the_quota_together() -> None:
    database = MemoryDatabase()
    stores = [await memory_store(database) for _ in range(2)]
    first, second = [running(store, quota_bytes=3 * QUOTA) for store in stores]
    async with first as one, second as two:
        async with await Device.open(one.port, ANNA) as anna, await Device.open(two.port, BERT) as bert:
            vault, log = await anna.create_vault()
            author = await anna.add(log, BERT)
            streams = stream_id(1), stream_id(2)
            for stream in streams:
                await anna.create_stream(vault, stream)
            for device in (anna, bert):
                await device.subscribe(vault, MEMBERSHIP, *streams)
            outcomes = []
            for batch in range(1, 60):
                for device, number, stream in ((anna, 1, streams[0]), (bert, author, streams[1])):
                    pushed = group(stream, record(units=LARGE // 4, author=number, tag=batch))
                    outcomes.append((await device.push(vault, batch, pushed)).outcome)
                    assert await stored(stores[0], vault) <= 3 * QUOTA
            assert outcomes.count(Outcome.QUOTA) > 30
            assert await stored(stores[0], vault) > 3 * QUOTA - 1_000


@asyncio_test
async def test_what_a_vault_stores_is_asked_for_rarely_while_it_has_room() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, quota_bytes=1_000_000) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        for batch in range(1, 31):
            assert (await anna.push(vault, batch, put(batch))).outcome is Outcome.DONE
        assert store.calls.count("usage") == 1


# --- by itself


def test_an_allowance_is_read_again_before_its_share_is_used_up_and_before_anything_is_refused() -> None:
    for stored_before in (0, 500, 990, 1_000, 1_400):
        allowance = Allowance.of(Usage(stored_before, 0), 1_000)
        share = max(1_000 - stored_before, 0) // RELAYS
        assert not share or not allowance.doubtful(share)
        assert allowance.doubtful(share + 1)
        for size in range(1, 1_500):
            assert allowance.takes(size, False) or allowance.doubtful(size)
            assert allowance.takes(size, True) or allowance.doubtful(size)
            assert allowance.takes(size, True) >= allowance.takes(size, False)
    without = Allowance.of(Usage(1 << 50, 0), 0)
    assert without.takes(1 << 50, False) and not without.doubtful(1 << 50)
    assert Allowance.of(Usage(0, 7), 1_000).quota == 7


def test_what_is_said_beside_the_records_takes_nothing_of_a_quota() -> None:
    vault, term = VaultId(bytes(16)), Term(1, bytes(8))
    pushed = guarded(TODOS, (NOTHING, record()))
    for room, fits in ((len(pushed.records), True), (len(pushed.records) - 1, False)):
        view = VaultView(VaultState(1, KEY_ID), Allowance(QUOTA, QUOTA - room))
        assert Draft(vault, view, term)._fits(admit(ANNA.key, Push(vault, term, 1, 0, (pushed,)))) is fits


def test_what_is_sealed_anew_goes_into_the_reserve_as_what_comes_back_does() -> None:
    vault, term = VaultId(bytes(16)), Term(1, bytes(8))
    size = len(group(TODOS, record()).records)
    for room, flags, fits in ((size, 0, True), (size - 1, 0, False), (size - 1, RESEAL, True), (-QUOTA, RESEAL, False)):
        view = VaultView(VaultState(1, KEY_ID), Allowance(QUOTA, QUOTA - room))
        admitted = admit(ANNA.key, Push(vault, term, 1, flags, (group(TODOS, record()),)))
        assert Draft(vault, view, term)._fits(admitted) is fits
