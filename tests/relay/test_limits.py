"""What a limited device is told, and when it may return: the table in docs/relay.md, row by row."""

import asyncio
from typing import Any

import pytest

from sealwire_protocol.errors import Action, CloseCode, FaultCode, Outcome
from sealwire_protocol.ids import VaultId
from sealwire_protocol.limits import FRAME_BYTES_MIN, PUSH_WINDOW
from sealwire_protocol.messages import CreateStream, Fault, Push, Pushed, StreamKind, Welcome
from sealwire_relay.buckets import BURST_SECONDS, RETURN_SECONDS, SPREAD, PushLimits, Rate
from tests.relay.asking import ANNA, BERT, ask
from tests.support.aio import asyncio_test
from tests.support.device import Device, group, record, stream_id
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running

pytestmark = pytest.mark.usefixtures("still_limits")

TODOS = stream_id(1)


async def new_vault(device: Device, nonce: int = 0) -> VaultId:
    vault, _ = await device.create_vault(nonce)
    await device.create_stream(vault, TODOS)
    await device.subscribe(vault, TODOS)
    return vault


def time_passes(relay: Relay) -> None:
    """All buckets are full again."""
    relay.plane._gateway._push_limits = PushLimits(Rate(0, 0), Rate(0, 0))


async def push_at_once(device: Device, vault: VaultId, first: int, pushes: int, units: int = 1) -> None:
    """Push so many batches, from this number on, without waiting for a verdict."""
    term = device.term(vault)
    batches = range(first, first + pushes)
    await device.send(*(Push(vault, term, n, 0, (group(TODOS, record(n, units=units)),)) for n in batches))


@pytest.mark.parametrize(
    ("setting", "units", "by"),
    [
        ({"device_pushes_per_second_max": 1}, 1, "device_pushes"),
        ({"device_bytes_per_second_max": 1_000}, 56, "device_bytes"),
        ({"vault_pushes_per_second_max": 1}, 1, "vault_pushes"),
        ({"vault_bytes_per_second_max": 1_000}, 56, "vault_bytes"),
    ],
)
def test_who_pushes_too_much_is_told_when_to_return_and_loses_nothing(
    setting: dict[str, Any], units: int, by: str
) -> None:
    @asyncio_test
    async def run() -> None:
        async with running(**setting) as relay, await Device.open(relay.port, ANNA) as anna:
            vault = await new_vault(anna)
            await push_at_once(anna, vault, 1, PUSH_WINDOW, units)
            fault = await anna.until(Fault)
            assert (fault.code, fault.action, fault.vault) == (FaultCode.OVERLOADED, Action.RETRY, vault)
            assert fault.message.startswith(f"this {by.partition('_')[0]} pushes more")
            most = RETURN_SECONDS * (1 + SPREAD) + 1
            assert (RETURN_SECONDS - 1) * 1_000 <= fault.retry_ms <= most * 1_000
            assert relay.counted("limited_pushes_total", limit=by) == 1, "what follows is refused without being counted"
            taken = int(BURST_SECONDS)
            for batch in range(1, taken + 1):
                assert (await anna.verdict(vault, batch)).outcome is Outcome.DONE
            time_passes(relay)
            await anna.subscribe(vault, TODOS)
            await push_at_once(anna, vault, taken + 1, PUSH_WINDOW - taken, units)
            told = [await anna.verdict(vault, batch) for batch in range(taken + 1, PUSH_WINDOW + 1)]
            assert [each.appended[0].first for each in told] == list(range(taken + 1, PUSH_WINDOW + 1))

    run()


@asyncio_test
async def test_nobody_else_is_refused_for_it() -> None:
    async with running(device_pushes_per_second_max=1) as relay, await Device.open(relay.port, ANNA) as anna:
        async with await Device.open(relay.port, BERT) as bert:
            first, second = await new_vault(anna), await new_vault(bert)
            await push_at_once(anna, first, 1, PUSH_WINDOW)
            await anna.until(Fault)
            assert (await bert.push(second, 1, group(TODOS, record()))).outcome is Outcome.DONE
            assert not [m for m in bert.log if isinstance(m, Fault)]


@asyncio_test
async def test_who_returns_too_soon_is_refused_again_and_goes_on_from_where_it_was() -> None:
    async with running(device_pushes_per_second_max=1) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        await push_at_once(anna, vault, 1, PUSH_WINDOW)
        await anna.until(Fault, lambda told: told.code is FaultCode.OVERLOADED)
        for _ in range(3):
            await anna.subscribe(vault, TODOS)
            await anna.when(lambda: anna.session.term_of(vault) is not None)
            await push_at_once(anna, vault, 5, PUSH_WINDOW - 4)
            await anna.until(Fault, lambda told: told.code is FaultCode.OVERLOADED)
        assert sorted(m.batch for m in anna.log if isinstance(m, Pushed)) == [1, 2, 3, 4]


@asyncio_test
async def test_a_vault_has_so_many_streams() -> None:
    async with running(streams_per_vault_max=1) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        said = await ask(anna, CreateStream, vault, stream_id(2), StreamKind.OPEN)
        assert isinstance(said, Fault)
        assert (said.code, said.action) == (FaultCode.QUOTA, Action.STOP)
        assert "at most 1 collections at this relay" in said.message
        assert (await anna.push(vault, 1, group(TODOS, record()))).outcome is Outcome.DONE


@asyncio_test
async def test_the_size_of_messages_and_pushes_is_told_at_the_login_and_more_ends_the_connection() -> None:
    limits: dict[str, Any] = {"frame_bytes_max": FRAME_BYTES_MIN, "push_records_max": 10}
    async with running(**limits) as relay:
        device = Device(relay.port, ANNA)
        await device.connect()
        await device.prove()
        welcome = await device.until(Welcome)
        assert (welcome.frame_bytes, welcome.push_records) == (FRAME_BYTES_MIN, 10)
        await device.send_bytes(bytes(FRAME_BYTES_MIN + 1))
        assert await device.closed() == CloseCode.TOO_LARGE
        async with await Device.open(relay.port, BERT) as bert:
            vault = await new_vault(bert)
            told = await bert.push(vault, 1, group(TODOS, *(record(n, tag=n) for n in range(1, 30))))
            assert told.outcome is Outcome.DONE, "it was sealed when more were allowed"


@asyncio_test
async def test_more_unanswered_than_the_window_ends_the_connection() -> None:
    store, held = TroubledStore(await memory_store()), asyncio.Event()
    store.expect("append", Mishap(made=True, before=held.wait))
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        vault = await new_vault(anna)
        await push_at_once(anna, vault, 1, PUSH_WINDOW + 1)
        assert await anna.closed() == CloseCode.PROTOCOL_ERROR
        held.set()
