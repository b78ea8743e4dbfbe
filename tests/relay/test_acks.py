"""What devices acknowledge reaches the store: behind, the last word only, and within bounds."""

import pytest

from sealwire_protocol.ids import MEMBERSHIP, START, DeviceKey, Position, StreamId, VaultId
from sealwire_protocol.messages import Ack, Acked, Fault
from sealwire_relay import acks as module
from sealwire_relay.acks import Acks
from sealwire_relay.metrics import Metrics
from sealwire_relay.store.cleaning import Reader
from sealwire_relay.store.interface import StoreDownError
from sealwire_relay.store.memory import MemoryStore
from tests.relay.logs import Log, make_log, record
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, stream_id
from tests.support.device import record as made
from tests.support.relay import Mishap, TroubledStore, memory_store, running, turns, turns_until

TODOS = stream_id(1)
DOWN = StoreDownError("The database cannot be reached now.")


async def buried(store: MemoryStore) -> Log:
    """A log with a tombstone, so that the store tells who reads it."""
    log = await make_log(store, [record(1, 1, tombstone=True)])
    assert await store.compacted(log.vault.id, log.vault.stream, 1, await store.current_term(), 1, 1)
    return log


async def readers(store: MemoryStore) -> tuple[Reader, ...]:
    [found] = await store.tombstones(None, 1)
    return found.readers


def said(acks: Acks, log: Log, device: DeviceKey, seq: int) -> Position:
    position = Position(log.store.database.term, seq)  # type: ignore[attr-defined]
    acks.note(device, log.vault.id, log.vault.stream, position)
    return position


@asyncio_test
async def test_the_last_word_is_written_at_a_flush() -> None:
    store = await memory_store()
    troubled, log = TroubledStore(store), await buried(store)
    acks = Acks(troubled.store, Metrics())
    await acks.flush()
    assert troubled.calls == []
    said(acks, log, log.vault.admin, 1)
    last = said(acks, log, log.vault.admin, 0)
    acks.note(log.vault.admin, log.vault.id, MEMBERSHIP, last)
    await acks.flush()
    assert [(reader.device, reader.position) for reader in await readers(store)] == [(log.vault.admin, last)]
    await acks.flush()
    assert troubled.calls == ["acked"]


@asyncio_test
async def test_what_the_store_did_not_take_waits_on_and_does_not_undo_a_later_word() -> None:
    store = await memory_store()
    troubled, log = TroubledStore(store), await buried(store)
    acks = Acks(troubled.store, Metrics())
    said(acks, log, log.vault.admin, 0)
    first = said(acks, log, log.vault.writer, 1)

    async def speak_again() -> None:
        said(acks, log, log.vault.admin, 1)

    troubled.expect("acked", Mishap(DOWN, before=speak_again))
    with pytest.raises(StoreDownError):
        await acks.flush()
    assert await readers(store) == ()
    await acks.flush()
    assert [reader.position for reader in await readers(store)] == [first, first]


@asyncio_test
async def test_they_are_written_some_at_a_time_and_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACKS_AT_ONCE", 2)
    monkeypatch.setattr(module, "ACKS_MAX", 5)
    troubled, metrics = TroubledStore(await memory_store()), Metrics()
    acks = Acks(troubled.store, metrics)
    for number in range(8):
        acks.note(DeviceKey(bytes([number]) * 32), VaultId(bytes(16)), StreamId(bytes(7) + b"\x01"), START)
    await acks.flush()
    assert troubled.calls == ["acked"] * 3
    counted = metrics.registry.get_sample_value
    assert (counted("sealwire_acks_total"), counted("sealwire_acks_forgotten_total")) == (5, 3)


@asyncio_test
async def test_stopping_writes_what_waits_and_a_store_that_is_down_does_not_hinder_it() -> None:
    for error in (None, DOWN):
        store = await memory_store()
        troubled, log = TroubledStore(store), await buried(store)
        acks = Acks(troubled.store, Metrics())
        acks.start()
        position = said(acks, log, log.vault.admin, 1)
        if error:
            troubled.expect("acked", Mishap(error))
        await acks.stop()
        await acks.stop()
        assert [reader.position for reader in await readers(store)] == ([] if error else [position])


@asyncio_test
async def test_it_is_written_again_and_again_whatever_the_store_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACK_FLUSH_SECONDS", 0)
    store = await memory_store()
    troubled, log = TroubledStore(store), await buried(store)
    acks = Acks(troubled.store, Metrics())
    troubled.expect("acked", Mishap(DOWN), Mishap(RuntimeError("a mistake")))
    acks.start()
    position = said(acks, log, log.vault.admin, 1)
    await turns_until(lambda: troubled.calls.count("acked") == 3)
    await turns(1)
    assert [reader.position for reader in await readers(store)] == [position]
    await acks.stop()


@asyncio_test
async def test_members_are_noted_when_they_subscribe_and_when_they_acknowledge_and_strangers_never() -> None:
    store = await memory_store()
    async with running(store) as relay, await Device.open(relay.port, Identity(1)) as anna:
        acks = relay.plane._acks
        vault, _ = await anna.create_vault()
        await anna.create_stream(vault, TODOS)
        term = (await anna.subscribe(vault, TODOS)).term
        await acks.flush()
        await anna.push(vault, 1, group(TODOS, made()))
        assert await store.compacted(vault, TODOS, 1, term, 1, 1)
        assert [reader.position for reader in await readers(store)] == [START]
        await anna.has(TODOS, 1)
        known = Position(term, 1)
        await anna.send(Ack(0, (Acked(vault, TODOS, known),)))
        await turns_until(lambda: known in acks._waiting.values())
        await acks.flush()
        async with await Device.open(relay.port, Identity(2)) as bert:
            await bert.subscribe_raw(vault, TODOS)
            await bert.send(Ack(0, (Acked(vault, TODOS, known),)))
            await bert.until(Fault)
            assert bert.identity.key not in {device for _, _, device in acks._waiting}
        assert [(r.device, r.position) for r in await readers(store)] == [(anna.identity.key, known)]
