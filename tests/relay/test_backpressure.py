"""A database that is slow, away, and back: who pushes is slowed down, nothing is lost or written twice, and who only
listens notices nothing. And commits of different vaults overlap, those of one vault never."""

import asyncio

import pytest

from sealwire_protocol.errors import Outcome
from sealwire_protocol.ids import VaultId
from sealwire_protocol.limits import FRAME_BYTES_MAX
from sealwire_protocol.messages import Fault, Push
from sealwire_relay.pushqueue import PushQueue
from tests.relay.test_ingest import (
    ANNA,
    BERT,
    DOWN,
    TODOS,
    UNKNOWN,
    new_vault,
    push_until_answered,
    relay_has_begun,
    stored,
)
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record
from tests.support.relay import Mishap, TroubledStore, admit, memory_store, running, turns, turns_until

RESTS_S = 3_600.0
"""How long a busy vault rests: for longer than any test runs."""

LARGE = 4_000
"""Units of a record that is about as large as one may be."""


async def two_vaults(device: Device) -> list[VaultId]:
    """Two vaults of a device."""
    found = [(await device.create_vault(nonce))[0] for nonce in range(2)]
    for vault in found:
        await device.create_stream(vault, TODOS)
        await device.subscribe(vault, TODOS)
    return found


@asyncio_test
async def test_commits_of_different_vaults_overlap_whichever_they_are() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, writers=2) as relay, await Device.open(relay.port, ANNA) as anna:
        slow, other = await two_vaults(anna)
        held = asyncio.Event()
        store.expect("append", Mishap(made=True, before=held.wait))
        await anna.send(Push(slow, anna.term(slow), 1, 0, (group(TODOS, record()),)))
        await relay_has_begun(store)
        assert (await anna.push(other, 1, group(TODOS, record()))).outcome is Outcome.DONE
        assert relay.plane._ingest.unanswered == 1
        held.set()
        assert (await anna.verdict(slow, 1)).outcome is Outcome.DONE


@asyncio_test
async def test_commits_of_one_vault_never_overlap() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, writers=2) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        held = asyncio.Event()
        store.expect("append", Mishap(made=True, before=held.wait))
        term = anna.term(vault)
        await anna.send(Push(vault, term, 1, 0, (group(TODOS, record()),)))
        await relay_has_begun(store)
        begun = store.calls.count("append")
        await anna.send(*[Push(vault, term, batch, 0, (group(TODOS, record()),)) for batch in (2, 3)])
        await turns_until(lambda: relay.plane._ingest.unanswered == 3)
        await turns(100)
        assert store.calls.count("append") == begun
        held.set()
        assert [(await anna.verdict(vault, batch)).appended[0].first for batch in (1, 2, 3)] == [1, 2, 3]
        assert store.calls.count("append") == begun + 1, "what came meanwhile is one commit"


@asyncio_test
async def test_what_one_writer_leaves_another_one_takes_at_once() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, writers=2) as relay, await Device.open(relay.port, ANNA) as anna:
        loud, other = await two_vaults(anna)
        (connection,) = relay.plane._gateway._connections
        first, second = asyncio.Event(), asyncio.Event()
        store.expect("append", *[Mishap(made=True, before=held.wait) for held in (first, second)])
        begun = store.calls.count("append")

        def push(vault: VaultId, batch: int, units: int) -> None:
            pushed = Push(vault, anna.term(vault), batch, 0, (group(TODOS, record(batch, units=units)),))
            relay.plane._ingest.push(connection, admit(ANNA.key, pushed))

        push(loud, 1, 1)
        push(other, 1, 1)
        await turns_until(lambda: store.calls.count("append") == begun + 1)
        for batch in (2, 3):
            push(loud, batch, LARGE)
        push(other, 2, 1)
        first.set()
        assert (await anna.verdict(loud, 2)).outcome is Outcome.DONE
        assert relay.plane._ingest.unanswered == 1, "what little is pushed has a commit of its own, which is held"
        second.set()
        assert (await anna.verdict(other, 2)).outcome is Outcome.DONE


@asyncio_test
async def test_a_busy_vault_rests_while_others_push_on_and_nobody_rests_when_the_relay_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy: set[VaultId] = set()
    monkeypatch.setattr(
        PushQueue, "rest", lambda queue, vaults, seconds, now: 0.0 if busy.isdisjoint(vaults) else RESTS_S
    )
    store = TroubledStore(await memory_store())
    async with running(store.store, writers=1) as relay, await Device.open(relay.port, ANNA) as anna:
        loud, other = await two_vaults(anna)
        busy.add(loud)
        assert (await anna.push(loud, 1, group(TODOS, record()))).outcome is Outcome.DONE
        await anna.send(Push(loud, anna.term(loud), 2, 0, (group(TODOS, record()),)))
        assert (await anna.push(other, 1, group(TODOS, record()))).outcome is Outcome.DONE
        await turns(100)
        assert relay.plane._ingest.unanswered == 1, "what it pushed while it rests waits"
        await relay.plane._ingest.stop()
        assert (await anna.verdict(loud, 2)).outcome is Outcome.DONE
        assert relay.plane._ingest.unanswered == 0


@asyncio_test
async def test_a_database_that_hangs_then_fails_then_recovers_slows_pushers_down_and_nobody_else() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, waiting_bytes_max=FRAME_BYTES_MAX) as relay:
        pushers = [await Device.open(relay.port, Identity(number)) for number in range(10, 40)]
        vaults = [await new_vault(device) for device in pushers]
        back = asyncio.Event()
        store.expect("append", *[Mishap(error, made=made, before=back.wait) for error, made in ((UNKNOWN, True),) * 2])
        store.expect("current_term", Mishap(DOWN), Mishap(DOWN))

        async def push_all(device: Device, vault: VaultId) -> list[bytes]:
            salts = []
            for batch in (1, 2, 3):
                pushed = record(units=LARGE)
                salts.append(pushed.salt)
                told = await push_until_answered(device, vault, batch, group(TODOS, pushed))
                assert (told.outcome, told.appended[0].first) == (Outcome.DONE, batch)
            return salts

        async with asyncio.TaskGroup() as tasks:
            pushing = [tasks.create_task(push_all(*each)) for each in zip(pushers, vaults, strict=True)]
            await turns_until(lambda: relay.counted("held_back_connections") > 0)
            async with await Device.open(relay.port, BERT) as bert:
                vault = await new_vault(bert)
                assert relay.counted("held_back_connections") > 0, "it was served while the others waited"
                assert (await bert.subscribe(vault, TODOS)).streams
            assert FRAME_BYTES_MAX < relay.counted("waiting_bytes") < 2 * FRAME_BYTES_MAX
            back.set()
        for vault, salts in zip(vaults, pushing, strict=True):
            assert await stored(store.store, vault) == list(enumerate(salts.result(), 1))
        assert not store.pending()
        assert (relay.counted("waiting_bytes"), relay.counted("held_back_connections")) == (0, 0)
        assert [device.close_code for device in pushers] == [None] * len(pushers)
        for device in pushers:
            await device.close()


@asyncio_test
async def test_who_sends_on_although_nothing_is_read_is_not_read_and_is_not_taken_for_silent() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, waiting_bytes_per_connection_max=65_536) as relay:
        async with await Device.open(relay.port, ANNA) as anna:
            vault = await new_vault(anna)
            term, held = anna.term(vault), asyncio.Event()
            store.expect("append", Mishap(made=True, before=held.wait))
            batches = range(1, 9)
            sending = asyncio.create_task(
                anna.send(*[Push(vault, term, n, 0, (group(TODOS, record(units=LARGE)),)) for n in batches])
            )
            await turns_until(lambda: relay.counted("held_back_connections") == 1)
            relay.pass_time(1_000)
            held.set()
            for batch in batches:
                assert (await anna.verdict(vault, batch)).appended[0].first == batch
            await sending
            assert not [message for message in anna.log if isinstance(message, Fault)]
            assert relay.counted("held_back_connections") == 0
            relay.pass_time(3_000)
            assert await anna.closed() == 4003, "from now on silence is its own"
