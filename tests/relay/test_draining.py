"""A relay that stops: what devices have pushed is answered, and they are sent away in waves, told when to return."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sealwire_protocol import codec
from sealwire_protocol.errors import Action, CloseCode, FaultCode, Outcome
from sealwire_protocol.ids import VaultId
from sealwire_protocol.messages import NO_VAULT, Fault, Push
from tests.relay.asking import ANNA, BERT
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running, turns, turns_until
from tests.support.stranger import BINARY, frame

TODOS = stream_id(1)
LONG = 600.0
"""Seconds that no test waits for."""


async def new_vault(device: Device) -> VaultId:
    vault, _ = await device.create_vault()
    await device.create_stream(vault, TODOS)
    await device.subscribe(vault, TODOS)
    return vault


@asynccontextmanager
async def stopping(relay: Relay) -> AsyncIterator[asyncio.Task[None]]:
    """A relay that has been asked to stop; at the end of the block it has."""
    task = asyncio.create_task(relay.plane.stop())
    try:
        yield task
    finally:
        relay.plane.hurry()
        await task


async def sent_away(device: Device) -> Fault:
    """What a device was told before it was sent away."""
    fault = await device.until(Fault, lambda told: told.vault == NO_VAULT)
    assert await device.closed() == CloseCode.RESTARTING
    return fault


@asyncio_test
async def test_what_is_given_up_is_waited_for_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[bool] = []
    async with running() as relay:
        stop = relay.plane._ingest.stop

        async def stubborn() -> None:
            for _ in range(2):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            await turns(500)
            await stop()
            ended.append(True)

        monkeypatch.setattr(relay.plane._ingest, "stop", stubborn)
        relay.plane.hurry()
        await relay.plane.stop()
        assert ended == [True]
        assert "unanswered" not in caplog.text, "there was no push"
        monkeypatch.undo()


@asyncio_test
async def test_devices_are_told_when_to_come_back_and_that_they_may() -> None:
    async with running(drain_return_seconds=2.5) as relay, await Device.open(relay.port, ANNA) as anna:
        stranger = Device(relay.port, BERT)
        await stranger.connect()
        async with stopping(relay):
            fault = await sent_away(anna)
            assert (fault.code, fault.action, fault.request) == (FaultCode.OVERLOADED, Action.RETRY, 0)
            assert fault.retry_ms == 2_500
            assert await stranger.closed() == CloseCode.RESTARTING


@asyncio_test
async def test_what_was_pushed_is_answered_before_its_connection_is_closed_and_nothing_more_is_taken() -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, drain_seconds=LONG) as relay, await Device.open(relay.port, ANNA) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            vault = await new_vault(anna)
            held = asyncio.Event()
            store.expect("append", Mishap(made=True, before=held.wait))
            for batch in (1, 2, 3):
                await anna.send(Push(vault, anna.term(vault), batch, 0, (group(TODOS, record(batch)),)))
            await turns_until(lambda: store.calls.count("append") == 1)
            async with stopping(relay) as task:
                await sent_away(bert)
                await turns_until(lambda: relay.plane.connections == 1)
                told = await anna.until(Fault)
                assert (told.vault, told.action) == (NO_VAULT, Action.RETRY)
                late = Push(vault, anna.term(vault), 4, 0, (group(TODOS, record(4)),))
                (connection,) = relay.plane._gateway._connections
                connection.data_received(frame(BINARY, codec.encode(late)))
                await turns(10)
                assert anna.close_code is None and relay.plane._ingest.unanswered == 3
                held.set()
                for batch in (1, 2, 3):
                    assert (await anna.verdict(vault, batch)).outcome is Outcome.DONE
                assert await anna.closed() == CloseCode.RESTARTING
                await task
            page = await store.store.read(vault, TODOS, 0, 1 << 20)
            assert page is not None and page.segments[-1].last == 3


@asyncio_test
async def test_a_database_that_hangs_keeps_nobody_for_longer_than_it_may(caplog: pytest.LogCaptureFixture) -> None:
    store = TroubledStore(await memory_store())
    async with running(store.store, drain_seconds=0.01) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        store.expect("append", Mishap(made=True, before=asyncio.Event().wait))
        await anna.send(Push(vault, anna.term(vault), 1, 0, (group(TODOS, record()),)))
        await turns_until(lambda: store.calls.count("append") == 1)
        task = asyncio.create_task(relay.plane.stop())
        assert await anna.closed() == CloseCode.RESTARTING
        await task
        assert "pushes were left unanswered" in caplog.text


@pytest.mark.parametrize("call", ["append", "current_term"])
def test_a_database_that_does_not_even_end_what_is_cancelled_keeps_nobody(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Postgres that is stopped: the library waits for it to take note of the cancellation."""
    monkeypatch.setattr("sealwire_relay.dataplane.LAST_WRITES_SECONDS", 0.01)

    @asyncio_test
    async def run() -> None:
        store, back = TroubledStore(await memory_store()), asyncio.Event()

        async def stubborn() -> None:
            cancelled: asyncio.CancelledError | None = None
            while not back.is_set():
                try:
                    await back.wait()
                except asyncio.CancelledError as error:
                    cancelled = error
            if cancelled is not None:
                raise cancelled

        async with running(store.store, drain_seconds=0.01, sweep_seconds=0.05) as relay:
            async with await Device.open(relay.port, ANNA) as anna:
                vault = await new_vault(anna)
                begun = store.calls.count(call)
                store.expect(call, Mishap(made=True, before=stubborn))
                await anna.send(Push(vault, anna.term(vault), 1, 0, (group(TODOS, record()),)))
                await turns_until(lambda: store.calls.count(call) > begun)
                await relay.plane.stop()
                assert await anna.closed() == CloseCode.RESTARTING
                back.set()
                await turns(100)

    run()


@pytest.mark.parametrize("noticing", [True, False])
def test_who_is_in_a_hurry_waits_for_nobody(noticing: bool) -> None:
    @asyncio_test
    async def run() -> None:
        store = TroubledStore(await memory_store())
        settings: dict[str, Any] = {"drain_seconds": LONG, "drain_notice_seconds": LONG if noticing else 0.0}
        async with running(store.store, **settings) as relay, await Device.open(relay.port, ANNA) as anna:
            vault = await new_vault(anna)
            store.expect("append", Mishap(made=True, before=asyncio.Event().wait))
            await anna.send(Push(vault, anna.term(vault), 1, 0, (group(TODOS, record()),)))
            await turns_until(lambda: store.calls.count("append") == 1)
            async with stopping(relay) as task:
                if not noticing:
                    await anna.until(Fault)
                relay.plane.hurry()
                await task
            await anna.closed()

    run()


@asyncio_test
async def test_while_load_balancers_take_notice_devices_are_served_and_the_relay_is_unready() -> None:
    async with running(drain_notice_seconds=LONG) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        async with stopping(relay):
            await turns_until(lambda: relay.plane.ready is not None)
            assert (await anna.push(vault, 1, group(TODOS, record()))).outcome is Outcome.DONE
            async with await Device.open(relay.port, BERT) as bert:
                await new_vault(bert)


@asyncio_test
async def test_devices_leave_in_waves_and_those_who_are_still_here_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealwire_relay.waves.WAVE_SIZE_MIN", 1)
    monkeypatch.setattr("sealwire_relay.waves.WAVE_SECONDS", LONG)
    monkeypatch.setattr("sealwire_relay.gateway.WAVE_SECONDS", LONG)
    async with running(drain_seconds=600.0, drain_return_seconds=1.0) as relay:
        devices = [await Device.open(relay.port, Identity(number)) for number in range(1, 5)]
        vaults = [await new_vault(device) for device in devices]
        # A quarter of the time is no more than one wave of these: there would be one.
        monkeypatch.setattr("sealwire_relay.waves.SHARE", 2.0)
        async with stopping(relay):
            await turns_until(lambda: relay.plane.connections == 2)
            gone = [device for device in devices if device.close_code is not None]
            for device in gone:
                fault = await device.until(Fault, lambda told: told.vault == NO_VAULT)
                assert fault.retry_ms == 1_000 * (LONG + 1), "as long as until the last one has left"
            for device, vault in zip(devices, vaults, strict=True):
                if device not in gone:
                    assert (await device.push(vault, 1, group(TODOS, record()))).outcome is Outcome.DONE
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", relay.port)
        for device in devices:
            await device.close()
