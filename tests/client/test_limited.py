"""A device at a relay that limits it: it returns when it was told, and loses nothing. What it is told is in
tests/relay/test_limits.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from sealwire_client.device import Device
from sealwire_client.link import LinkState
from sealwire_client.status import Status
from sealwire_client.vault import Vault
from sealwire_protocol.errors import FaultCode
from sealwire_protocol.messages import Fault
from sealwire_relay.buckets import BURST_SECONDS, RETURN_SECONDS
from tests.acceptance.pushing import Pusher, linked
from tests.client.party import Note, notes_of
from tests.client.realrelay import WAIT_S_MAX, real_relay

pytestmark = pytest.mark.trio


async def stands(vault: Vault, suits: Callable[[Status], bool]) -> Status:
    """The status of a vault, once it suits. It is looked at after everything that happens."""
    with trio.fail_after(WAIT_S_MAX):
        while True:
            moved = vault._sync.moved  # before the look: what happens during it must not be missed
            if suits(status := await vault.status()):
                return status
            await moved.wait()


class Limited(Pusher):
    """One that notes for how long it was refused, in seconds."""

    def __init__(self, origin: str, pushes: int) -> None:
        super().__init__(origin, 1, window=pushes, records=1)
        self.hints: list[float] = []

    def fault(self, message: Fault) -> None:
        super().fault(message)
        if message.code is FaultCode.OVERLOADED:  # what follows it is told to wait for it
            self.hints.append(message.retry_ms / 1000)


async def test_who_pushed_too_much_returns_when_it_was_told_and_everything_is_stored_once_and_in_order() -> None:
    pushes = int(BURST_SECONDS) + 3
    with real_relay(device_pushes_per_second_max="1") as relay:
        pusher = Limited(relay.origin, pushes)
        pusher.eager = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.link.run)
            await pusher.found()
            for _ in range(pushes):  # they leave at once, so that the relay reads them at one moment
                pusher.push()
            await pusher.idle()
            nursery.cancel_scope.cancel()
    assert sorted(pusher.acked.values()) == list(range(1, pushes + 1))
    assert list(pusher.acked.values()) == sorted(pusher.acked.values())
    assert not pusher.wrong
    assert all(hint >= RETURN_SECONDS - 1 for hint in pusher.hints)
    # Of the three beyond the burst two are taken when it returns; were it too early, it would be refused again.
    assert 1 <= len(pusher.hints) <= 2


async def test_who_finds_no_place_comes_in_when_there_is_one() -> None:
    with real_relay(connections_max="1") as relay:
        first, second = (linked(relay.origin, number)[1] for number in (1, 2))
        with trio.fail_after(WAIT_S_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.run)
                await first.until(lambda link: link.state is LinkState.ONLINE)
                nursery.start_soon(second.run)
                await second.until(lambda link: link.last_error is not None)
                assert second.state is not LinkState.REFUSED
                first.stop()
                await second.until(lambda link: link.state is LinkState.ONLINE)
                nursery.cancel_scope.cancel()


async def test_a_collection_too_many_is_told_and_all_others_go_on(tmp_path: Path) -> None:
    with real_relay(streams_per_vault_max="1") as relay:
        async with Device.open(tmp_path / "a", relay=relay.origin) as device:
            vault = await device.create_vault("home")
            notes, other = await notes_of(vault), await notes_of(vault, "other")
            await notes.put("a", Note("one"))
            await vault.synced()
            await other.put("b", Note("two"))
            await stands(vault, lambda status: "at most 1 collections" in (status.last_error or ""))
            await notes.put("c", Note("three"))
            status = await stands(vault, lambda status: status.pending <= 1)
            assert (status.pending, status.stuck) == (1, 0), "it waits on the device"
            assert other.get("b") == Note("two")
