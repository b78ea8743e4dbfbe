"""What one vault sends: a connection that breaks in the middle of something leaves nobody without an answer."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from sealwire_client.batching import Batcher
from sealwire_client.replica import Change, Kind
from sealwire_client.replica.outbox import Outbox
from sealwire_client.sending import ConflictError, OfflineError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from tests.client.guarded import Account, Card, Seat, agree, table
from tests.client.party import appended_twice, cut_off, records
from tests.support.virtual import virtual


def breaking(
    monkeypatch: pytest.MonkeyPatch, relay: MemoryRelay, seat: Seat, owner: type, name: str, when: Callable[[Any], bool]
) -> list[object]:
    """Break every connection, once, while a function of the writer returns something; the vault knows at once."""
    original, broken = getattr(owner, name), list[object]()

    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        if not broken and when(found):
            broken.append(found)
            relay.cut()
            scope = seat.vault._sync._scope
            assert scope is not None
            scope.cancel()  # as soon as the device knows
        return found

    monkeypatch.setattr(owner, name, call)
    return broken


@virtual
async def test_a_strict_write_that_is_being_stored_when_the_connection_breaks_is_made(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("a", Account(0))
        broken = breaking(monkeypatch, memory_relay, a, Batcher, "strict", lambda batch: batch is not None)
        with trio.fail_after(100):
            await a.accounts.put("a", Account(1))
        assert broken
        await agree(seats)
        assert b.accounts.get("a") == Account(1)
        assert appended_twice(memory_relay) == []


@virtual
async def test_a_strict_write_that_waits_for_edits_when_the_connection_breaks_is_not_made(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device, 1) as (a,):
        await a.accounts.put("a", Account(0))
        broken = breaking(monkeypatch, memory_relay, a, Batcher, "strict", lambda batch: batch is None)
        memory_relay.delay = 0.1

        async def both() -> None:
            async with a.vault.transaction():
                await a.cards.put("x", Card("strict"))
                await a.accounts.put("a", Account(1))

        await a.cards.put("x", Card("plain"))
        with trio.fail_after(100), pytest.raises(OfflineError, match="was lost"):
            await both()
        assert broken
        await a.vault.synced()
        assert (a.titles(), a.accounts.get("a")) == ({"x": "plain"}, Account(0))


@virtual
async def test_a_verdict_that_is_being_taken_in_when_the_connection_breaks_is_told(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.accounts.put("a", Account(0))
        await agree(seats)
        broken = breaking(monkeypatch, memory_relay, a, Outbox, "answer", lambda answered: answered is not None)
        with trio.fail_after(100):
            await a.accounts.put("a", Account(1))
        assert broken
        await agree(seats)
        broken.clear()
        memory_relay.delay = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.accounts.put, "a", Account(2))
            await trio.sleep(0.05)
            with trio.fail_after(100), pytest.raises(ConflictError):
                await a.accounts.put("a", Account(3))
        assert a.accounts.get("a") == Account(2)
        assert await a.vault.stuck() == []


@virtual
async def test_what_is_being_merged_when_the_connection_breaks_is_told_to_watchers(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        await a.cards.put("x", Card())
        await agree(seats)
        async with cut_off(memory_relay):
            await a.cards.put("x", Card(title="a's"))
            memory_relay.start()
            await b.cards.put("x", Card(owner="b's"))
            b.guest.device.wake()
            await b.vault.synced()
            with a.cards.changes() as changes:
                broken = breaking(monkeypatch, memory_relay, a, Batcher, "next", lambda sealed: bool(sealed.changes))
                a.guest.device.wake()
                await agree(seats)
                assert broken
                assert await anext(changes) == [Change("x", Kind.UPDATED)]
        assert a.cards.get("x") == Card("a's", "b's")


@virtual
async def test_strict_writes_go_before_edits_and_edits_are_not_forgotten(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with table(open_device, 1) as (a,):
        await a.vault.synced()
        memory_relay.delay = 0.1
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(a.accounts.put, str(number), Account(number))
                nursery.start_soon(a.cards.put, str(number), Card(count=number))
        await a.vault.synced()
        assert (len(a.accounts), len(a.cards)) == (20, 20)
        assert records(memory_relay, a.vault) == 40
