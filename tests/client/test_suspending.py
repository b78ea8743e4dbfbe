"""What a host tells a device's connections: that the app goes to the background and is back, and that the network is
another one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sealwire_client.conversation import ANSWER_SECONDS_MAX
from sealwire_client.link import Dialler, LinkState
from sealwire_client.policies import strict
from sealwire_client.replica import Place
from sealwire_client.sending import OfflineError
from sealwire_client.status import State
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.transport import Transport
from sealwire_protocol.errors import CloseCode
from sealwire_protocol.limits import LOGIN_SECONDS_MAX
from tests.client.guarded import Account
from tests.client.party import Note, comes, founded, in_step, party
from tests.client.test_link import Diary, begin, failing, online
from tests.support.virtual import virtual


class Deaf:
    """A transport whose other side is not there any more, as a network that changed leaves it behind."""

    def __init__(self, transport: Transport) -> None:
        self._transport, self.heard = transport, True

    async def send(self, data: bytes) -> None:
        """Nobody hears it."""
        if self.heard:
            await self._transport.send(data)

    async def receive(self) -> bytes:
        """Nobody says anything."""
        while True:
            data = await self._transport.receive()
            if self.heard:
                return data

    async def ping(self) -> None:
        """Nobody answers."""
        if not self.heard:
            await trio.sleep_forever()
        await self._transport.ping()

    async def close(self, code: CloseCode, reason: str) -> None:
        """The other side is not told."""
        await self._transport.close(code, reason)


def deafening(relay: MemoryRelay, made: list[Deaf]) -> Dialler:
    """A dialler whose connections can be left behind."""

    @asynccontextmanager
    async def dial(origin: str) -> AsyncIterator[Transport]:
        async with relay.dial(origin) as transport:
            made.append(Deaf(transport))
            yield made[-1]

    return dial


@virtual
async def test_after_a_change_of_network_a_dead_connection_is_found_at_once(memory_relay: MemoryRelay) -> None:
    made: list[Deaf] = []
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, deafening(memory_relay, made))
        await online(link)
        made[0].heard = False
        link.network_changed()
        link.network_changed()
        await link.until(lambda link: link.state is not LinkState.ONLINE)
        assert trio.current_time() == ANSWER_SECONDS_MAX
        await online(link)
        assert (trio.current_time(), memory_relay.dialled, link.last_error) == (ANSWER_SECONDS_MAX, 2, None)
        nursery.cancel_scope.cancel()


@virtual
async def test_a_login_that_the_network_was_changed_under_is_begun_anew(memory_relay: MemoryRelay) -> None:
    made: list[Deaf] = []
    memory_relay.delay = 1
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, deafening(memory_relay, made))
        await comes(lambda: bool(made))
        made[0].heard = False
        link.network_changed()
        await comes(lambda: len(made) == 2)
        assert trio.current_time() < LOGIN_SECONDS_MAX
        await online(link)
        nursery.cancel_scope.cancel()


@virtual
async def test_after_a_change_of_network_a_connection_that_answers_stays(memory_relay: MemoryRelay) -> None:
    memory_relay.delay = 1
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        for _ in range(3):
            link.network_changed()
            await trio.sleep(10)
        assert (link.state, memory_relay.dialled) == (LinkState.ONLINE, 1)
        nursery.cancel_scope.cancel()


@virtual
async def test_after_a_change_of_network_a_relay_that_was_not_there_is_dialled_at_once() -> None:
    diary = Diary(failing())
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, diary.dial)
        await trio.sleep(300)
        before = len(diary.times)
        link.network_changed()
        await trio.testing.wait_all_tasks_blocked()
        assert diary.times[before:] == [trio.current_time()]
        nursery.cancel_scope.cancel()


@virtual
async def test_a_suspended_link_says_goodbye_and_rests(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        link.suspend()
        link.suspend()
        await link.suspended()
        assert (link.state, memory_relay.connections) == (LinkState.OFFLINE, 0)
        assert "suspended" in (link.last_error or "")
        link.wake()
        link.network_changed()
        await trio.sleep(3600)
        assert memory_relay.dialled == 1
        now = trio.current_time()
        link.resume()
        link.resume()
        await online(link)
        assert (trio.current_time(), memory_relay.dialled, link.last_error) == (now, 2, None)
        nursery.cancel_scope.cancel()


@virtual
async def test_a_link_can_be_suspended_while_it_dials_logs_in_or_pauses(memory_relay: MemoryRelay) -> None:
    memory_relay.delay = 1
    for seconds in (0.0, 0.5, 1.5, 2.5, 3.5, 4.5):
        async with trio.open_nursery() as nursery:
            link = await begin(nursery, memory_relay.dial)
            await trio.sleep(seconds)
            link.suspend()
            await link.suspended()
            dialled = memory_relay.dialled
            await trio.sleep(600)
            assert (memory_relay.dialled, memory_relay.connections) == (dialled, 0)
            memory_relay.stop()
            link.resume()
            await trio.sleep(60)  # it pauses between attempts
            link.suspend()
            await link.suspended()
            dialled = memory_relay.dialled
            await trio.sleep(600)
            assert memory_relay.dialled == dialled
            memory_relay.start()
            link.resume()
            link.suspend()
            link.resume()
            await online(link)
            nursery.cancel_scope.cancel()


@virtual
async def test_who_waits_for_the_goodbye_of_a_link_that_is_resumed_waits_no_longer(memory_relay: MemoryRelay) -> None:
    async with trio.open_nursery() as nursery:
        link = await begin(nursery, memory_relay.dial)
        await online(link)
        link.suspend()
        nursery.start_soon(link.suspended)
        link.resume()
        await link.suspended()
        await online(link)
        nursery.cancel_scope.cancel()


# --- the device


@virtual
async def test_a_suspended_device_goes_on_without_its_relay(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.device.suspend()
        await a.device.suspend()
        assert memory_relay.connections == 1
        dialled = memory_relay.dialled
        write = await a.notes.put("x", Note("kept"))
        await b.notes.put("y", Note("missed"))
        a.device.wake()
        a.device.network_changed()
        await trio.sleep(3600)
        status = await a.vault.status()
        assert (status.state, status.pending, memory_relay.dialled) == (State.OFFLINE, 1, dialled)
        assert "suspended" in (status.last_error or "")
        assert a.dump() == {"x": Note("kept").text}
        now = trio.current_time()
        a.device.resume()
        assert (await write.durable()).place is Place.RELAY
        assert trio.current_time() == now
        await in_step(guests)


@virtual
async def test_a_vault_that_is_made_while_its_device_is_suspended_waits_too(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as device:
        await device.suspend()
        a = await founded(device)
        await trio.sleep(3600)
        assert memory_relay.dialled == 0
        device.resume()
        await a.vault.synced()


@virtual
async def test_strict_writes_are_not_made_while_a_device_is_suspended(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        accounts = await a.vault.collection("accounts", Account, policy=strict())
        await accounts.put("a", Account(1))
        memory_relay.delay = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accounts.put, "a", Account(2))
            await trio.sleep(0.5)  # it is on its way: its verdict comes when the device is back
            await a.device.suspend()
            with pytest.raises(OfflineError):
                await accounts.put("a", Account(3))
            a.device.resume()
        assert accounts.get("a") == Account(2)
        await in_step(guests)
