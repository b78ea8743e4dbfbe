"""Delivery: live or from storage, every seq once and in order, and never more than a device's credit under way."""

import asyncio
import random

import pytest

from sealwire_protocol.faults import no_such_vault
from sealwire_protocol.ids import NO_TERM, Position, StreamId, Term, VaultId
from sealwire_protocol.limits import CREDIT_BYTES_MIN, SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Ack, Deliver
from sealwire_relay.store.interface import Page, StoreDownError, StoreError
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running, turns, turns_until

ANNA, BERT = Identity(1), Identity(2)
TODOS, NOTES = stream_id(1), stream_id(2)
TERM = Term(3, b"whatever")
VAULT = VaultId(bytes(16))


async def filled(relay: Relay, segments: int, units: int = 4000) -> tuple[Device, VaultId]:
    """A vault whose stream has so many segments of one record each, 64 KB by default."""
    anna = await Device.open(relay.port, ANNA)
    vault, log = await anna.create_vault()
    await anna.add(log, BERT)
    for stream in (TODOS, NOTES):
        await anna.create_stream(vault, stream)
    await anna.subscribe(vault)
    for batch in range(1, segments + 1):
        await anna.push(vault, batch, group(TODOS, record(units=units)))
    return anna, vault


@asyncio_test
async def test_a_device_is_never_sent_more_than_its_credit_and_catches_up_when_it_gives_it_back() -> None:
    async with running(credit_bytes=CREDIT_BYTES_MIN) as relay:
        anna, vault = await filled(relay, 20)
        async with anna, await Device.open(relay.port, BERT, applies=False) as bert:
            await bert.subscribe(vault, TODOS)
            await bert.when(lambda: CREDIT_BYTES_MIN - bert.bytes_delivered < SEGMENT_BYTES_MAX)
            outstanding = bert.bytes_delivered
            # Whoever has nothing left is not in the way of the others, and costs the relay nothing more.
            await anna.subscribe(vault, TODOS)
            for batch in range(21, 31):
                await anna.push(vault, batch, group(TODOS, record(units=100)))
            await anna.has(TODOS, 30)
            assert bert.bytes_delivered <= CREDIT_BYTES_MIN
            assert bert.bytes_delivered == outstanding
            returned = 0
            while len(bert.seqs(TODOS)) < 30:
                returned = await give_back(bert, returned)
            assert bert.seqs(TODOS) == list(range(1, 31))


async def give_back(device: Device, returned: int) -> int:
    """Acknowledge all that was delivered, and wait for more of the stream's 30 records. Returns what is given back."""
    seen = device.bytes_delivered
    await device.send(Ack(seen - returned, ()))
    await device.when(lambda: len(device.seqs(TODOS)) == 30 or device.bytes_delivered > seen)
    assert device.bytes_delivered - seen <= CREDIT_BYTES_MIN
    return seen


@asyncio_test
async def test_live_frames_respect_the_credit_too() -> None:
    async with running(credit_bytes=CREDIT_BYTES_MIN) as relay:
        anna, vault = await filled(relay, 0)
        async with anna, await Device.open(relay.port, BERT, applies=False) as bert:
            await bert.subscribe(vault, TODOS)
            for batch in range(1, 21):
                await anna.push(vault, batch, group(TODOS, record(units=4000)))
            await bert.when(lambda: CREDIT_BYTES_MIN - bert.bytes_delivered < SEGMENT_BYTES_MAX)
            # Its answer shows that what came before is done.
            await anna.create_stream(vault, TODOS)
            assert bert.bytes_delivered <= CREDIT_BYTES_MIN
            await bert.send(Ack(bert.bytes_delivered, ()))
            seen = bert.bytes_delivered
            await bert.when(lambda: bert.bytes_delivered > seen)


@asyncio_test
async def test_a_request_that_is_refused_as_if_of_no_vault_ends_no_subscription() -> None:
    async with running() as relay, await Device.open(relay.port, ANNA) as anna:
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        await anna.subscribe(vault, TODOS)
        (connection,) = relay.plane._gateway._connections
        connection.handle(no_such_vault(vault, request=7))
        await anna.push(vault, 1, group(TODOS, record()))
        await anna.has(TODOS, 1)
        connection.handle(no_such_vault(vault))
        assert not relay.plane._fanout.listened()


@asyncio_test
async def test_several_lagging_streams_take_turns() -> None:
    async with running(credit_bytes=CREDIT_BYTES_MIN) as relay:
        anna, vault = await filled(relay, 12)
        async with anna, await Device.open(relay.port, BERT) as bert:
            for batch in range(13, 17):
                await anna.push(vault, batch, group(NOTES, record()))
            await bert.subscribe(vault, TODOS, NOTES)
            await bert.has(NOTES, 4)
            await bert.has(TODOS, 12)
            assert bert.seqs(TODOS) == list(range(1, 13))
            assert bert.seqs(NOTES) == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(12))
def test_pushes_during_catching_up_are_delivered_once_and_in_order(seed: int) -> None:
    @asyncio_test
    async def run() -> None:
        chance = random.Random(seed)
        store = TroubledStore(await memory_store(), lambda: chance.randrange(6))
        async with running(store.store, recent_bytes_max=0) as relay:
            anna, vault = await filled(relay, 5, units=1)
            async with anna:
                readers = [await Device.open(relay.port, BERT) for _ in range(3)]

                async def push_all() -> None:
                    for batch in range(6, 31):
                        await anna.push(vault, batch, group(TODOS, *[record()] * chance.randint(1, 3)))
                        await turns(chance.randrange(10))

                async def listen(device: Device) -> None:
                    await turns(chance.randrange(60))
                    await device.subscribe(vault, TODOS)
                    if chance.random() < 0.5:
                        # Again, from where it stands, in the middle of it.
                        seqs = device.seqs(TODOS)
                        at = Position(device.delivered[-1].term, seqs[-1]) if seqs else Position(NO_TERM, 0)
                        await device.subscribe(vault, TODOS, cursor=at)

                await asyncio.gather(push_all(), *map(listen, readers))
                stored = await store.read(vault, TODOS, 0, 1)
                for device in readers:
                    await device.has(TODOS, stored.head)
                    assert device.seqs(TODOS) == list(range(1, stored.head + 1))
                    await device.close()

    run()


@asyncio_test
async def test_a_page_read_for_an_earlier_subscription_is_not_sent() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, recent_bytes_max=0) as relay:
        anna, vault = await filled(relay, 6, units=1)
        async with anna, await Device.open(relay.port, BERT) as bert:
            held = asyncio.Event()
            store.expect("read", Mishap(made=True, before=held.wait))
            await bert.subscribe(vault, TODOS, cursor=Position(anna.term(vault), 4))
            await turns_until(lambda: "read" in store.calls)
            await bert.subscribe(vault, TODOS)
            held.set()
            await bert.has(TODOS, 6)
            assert bert.seqs(TODOS) == [1, 2, 3, 4, 5, 6]
            assert [(d.prev, d.last) for d in bert.log if isinstance(d, Deliver)] == [(0, 6)]


@asyncio_test
async def test_what_is_committed_after_a_page_was_read_and_before_it_is_sent_is_not_missed() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, recent_bytes_max=0) as relay:
        anna, vault = await filled(relay, 3, units=1)
        async with anna, await Device.open(relay.port, BERT) as bert:

            async def push() -> None:
                await anna.push(vault, 4, group(TODOS, record()))

            store.expect("read", Mishap(after=push))
            await bert.subscribe(vault, TODOS)
            await bert.has(TODOS, 4)
            assert [(d.prev, d.last) for d in bert.log if isinstance(d, Deliver)] == [(0, 3), (3, 4)]


@asyncio_test
async def test_who_is_at_the_head_already_costs_no_read() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, recent_bytes_max=0) as relay:
        anna, vault = await filled(relay, 3, units=1)
        async with anna, await Device.open(relay.port, BERT) as bert:
            await bert.subscribe(vault, TODOS, cursor=Position(anna.term(vault), 3))
            await anna.push(vault, 4, group(TODOS, record()))
            await bert.has(TODOS, 1)
            assert bert.seqs(TODOS) == [4]
            assert "read" not in store.calls


@asyncio_test
async def test_a_read_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.catchup.RETRY_SECONDS", 0.0)
    store = TroubledStore(await memory_store())
    async with running(store.store, recent_bytes_max=0) as relay:
        anna, vault = await filled(relay, 3, units=1)
        async with anna, await Device.open(relay.port, BERT) as bert:
            store.expect("read", Mishap(StoreDownError("down")), Mishap(StoreDownError("down")))
            await bert.subscribe(vault, TODOS)
            await bert.has(TODOS, 3)
            assert store.calls.count("read") == 3
            assert relay.counted("store_errors_total") == 2


@asyncio_test
async def test_a_stream_that_cannot_be_read_is_named_asked_for_ever_more_rarely_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sealwire_relay.catchup.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("sealwire_relay.catchup.REST_SECONDS_MAX", 0.04)
    store = await memory_store()
    read, failures, mended = store.read, 0, 5

    async def damaged(vault: VaultId, stream: StreamId, after: int, bytes_max: int) -> Page | None:
        nonlocal failures
        if stream == TODOS and failures < mended:
            failures += 1
            raise StoreError("The database refused a statement (invalid page in block 7)")
        return await read(vault, stream, after, bytes_max)

    monkeypatch.setattr(store, "read", damaged)
    async with running(store, read_pages_max=1, recent_bytes_max=0) as relay:
        anna, vault = await filled(relay, 3, units=1)
        await anna.push(vault, 4, group(NOTES, record()))
        async with anna, await Device.open(relay.port, BERT) as bert:
            await bert.subscribe(vault, TODOS)
            await bert.subscribe(vault, NOTES)
            await bert.has(NOTES, 1)
            await bert.has(TODOS, 3)
            lines = [record.getMessage() for record in caplog.records if record.name == "sealwire.catchup"]
            assert len(lines) == 5
            assert lines[0].startswith(f"Stream {TODOS.hex()} of vault {vault.hex()} cannot be read after seq 0")
            assert "in 0.01 seconds" in lines[0]
            assert "in 0.04 seconds: The database refused a statement (invalid page in block 7)" in lines[-1]


@asyncio_test
async def test_a_read_that_fails_unforeseen_ends_that_connection_alone() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, read_pages_max=1, recent_bytes_max=0) as relay:
        anna, vault = await filled(relay, 3, units=1)
        async with anna, await Device.open(relay.port, BERT) as bert:
            store.expect("read", Mishap(ZeroDivisionError()))
            await bert.subscribe_raw(vault, TODOS)
            assert await bert.closed() == 1006
            await anna.subscribe(vault, TODOS)
            await anna.has(TODOS, 3)


@asyncio_test
async def test_nothing_is_remembered_of_who_has_gone() -> None:
    async with running() as relay:
        anna, vault = await filled(relay, 1, units=1)
        fanout = relay.plane._fanout
        async with anna:
            for _ in range(3):
                async with await Device.open(relay.port, BERT) as bert:
                    await bert.subscribe(vault, TODOS, NOTES)
                    for stranger in range(5):
                        await bert.subscribe_raw(VaultId(stranger.to_bytes(16, "big")), TODOS, NOTES)
                    await bert.when(lambda d=bert: len([m for m in d.log if type(m).__name__ == "Fault"]) == 5)  # type: ignore[misc]
                    assert len(fanout._listeners) == 2
            await turns_until(lambda: relay.plane.connections == 1)
            assert not fanout._listeners
            assert not fanout._by_peer or list(fanout._by_peer.values()) == [{}]
            assert not fanout._heads
            assert not fanout._catchup._queued


@asyncio_test
async def test_many_subscribers_get_the_very_same_bytes() -> None:
    async with running() as relay:
        anna, vault = await filled(relay, 1, units=1)
        at = Position(anna.term(vault), 1)
        async with anna:
            devices = [await Device.open(relay.port, BERT) for _ in range(20)]
            for device in devices:
                await device.subscribe(vault, TODOS, cursor=at)
            sent = [record(), record()]
            await anna.push(vault, 2, group(TODOS, *sent))
            for device in devices:
                await device.has(TODOS, 2)
                assert device.records(TODOS) == sent
            assert relay.counted("deliveries_total") == 20
            for device in devices:
                await device.close()
