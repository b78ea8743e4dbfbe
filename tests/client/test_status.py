"""Am I in sync? What a vault's status says, and what of it outlives the run."""

from datetime import UTC, datetime, timedelta

import pytest
import trio

from sealwire_client import listening
from sealwire_client.replica import Collection, Replica
from sealwire_client.replica import vaults as vaults_module
from sealwire_client.status import State
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.ids import NO_TERM, KeyId
from sealwire_protocol.messages import CreateVault, StreamKind, StreamState, Subscribed
from tests.client.party import Note, asked_of, comes, cut_off, founded, in_step, joined, party, returned
from tests.support.virtual import virtual

SOON = timedelta(seconds=30)
"""A test with a virtual clock takes less by this machine's clock."""


def now() -> datetime:
    return datetime.now(UTC)


@virtual
async def test_a_first_connection_is_being_made_and_a_lost_one_is_offline(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device("a") as device:
        vault = await device.create_vault("home")
        status = await vault.status()
        assert (status.state, status.last_error, status.last_synced) == (State.CONNECTING, None, None)
        await vault.synced()
        assert (await vault.status()).state is State.SYNCED
        async with cut_off(memory_relay):
            status = await vault.status()
            assert status.state is State.OFFLINE and status.last_error
        await vault.synced()
        assert (await vault.status()).state == "synced"


@virtual
async def test_a_vault_that_is_being_made_is_not_refused(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    with asked_of(memory_relay, CreateVault, swallowed=True) as asked:
        async with open_device("a") as device:
            vault = await device.create_vault("home")
            await comes(lambda: bool(asked))
            status = await vault.status()
            assert (status.state, status.last_error) == (State.CATCHING_UP, None)


@virtual
async def test_when_all_was_in_step_outlives_the_run(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as device:
        a = await founded(device)
        await a.notes.put("x", Note("one"))
        await a.vault.synced()
        status = await a.vault.status()
        assert status.last_synced is not None and abs(now() - status.last_synced) < SOON
    memory_relay.stop()
    async with open_device("a") as device:
        a = await returned(device)
        await a.notes.put("x", Note("two"))
        status = await a.vault.status()
        assert status.state in (State.CONNECTING, State.OFFLINE) and status.pending == 1
        assert status.last_synced is not None and abs(now() - status.last_synced) < SOON
        before = status.last_synced
        await trio.sleep(600)
        assert (await a.vault.status()).last_synced == before
    async with open_device("a") as device:
        assert (await device.vaults[0].status()).last_synced == before


@virtual
async def test_every_device_is_named_with_when_it_was_last_heard(open_device: OpenDevice) -> None:
    vaults_module.HEARD_MS_MIN, usual = 0, vaults_module.HEARD_MS_MIN  # type: ignore[misc]
    try:
        async with open_device("a") as first, open_device("b") as second:
            vault = await first.create_vault("home", device_name="laptop")
            invite = await vault.invite()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(invite.joined)
                joined_vault = await second.join(invite.link, device_name="phone")
            a, b = await returned(first), await returned(second)
            assert joined_vault is b.vault
            devices = (await a.vault.status()).devices
            assert [(one.name, one.is_this, one.last_heard) for one in devices] == [
                ("laptop", True, None),
                ("phone", False, None),
            ]
            await b.notes.put("x", Note("one"))
            await comes(lambda: a.notes.get("x") is not None)
            heard = (await a.vault.status()).devices[1]
            assert heard.key == second.key and heard.last_heard is not None and abs(now() - heard.last_heard) < SOON
            assert (await b.vault.status()).devices[0].last_heard is None
        async with open_device("a") as device:
            assert (await device.vaults[0].status()).devices[1] == heard
    finally:
        vaults_module.HEARD_MS_MIN = usual  # type: ignore[misc]


@virtual
async def test_a_device_that_is_heard_all_the_time_is_noted_once_in_a_while(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        replica = a.device._writer._store  # type: ignore[attr-defined]
        before = replica.database.connection.total_changes
        await b.notes.put_many({f"key {n}": Note("x", n) for n in range(2_000)})
        await in_step(guests)
        noted = replica.vaults._heard_at
        assert len(noted) == 1
        assert replica.database.connection.total_changes - before < 2_000 * 2


@virtual
async def test_a_device_with_new_keys_is_still_one_device(open_device: OpenDevice) -> None:
    async with open_device("a") as first, open_device("b") as second:
        host = await founded(first)
        await host.vault.synced()
        guest = await joined(second, host.vault)
        await guest.notes.put("x", Note("before"))
        await in_step([host, guest])
        guest.vault._sync.enrolment.notice("a test says so")
        guest.vault._sync._wake.set()
        await guest.vault._sync.until(lambda sync: sync.enrolment.why is None)
        await in_step([host, guest])
        status = await host.vault.status()
        assert status.members == len(status.devices) == 2
        assert status.devices[1].key == second.key and status.devices[1].last_heard is not None


@virtual
async def test_what_the_relay_has_as_another_kind_of_collection_is_not_in_step_before_it_is_here(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_relay.stop()  # nothing is delivered
    looks = list[bool]()
    async with open_device("a") as device:
        a = await founded(device)
        (stream,) = a.vault._sync.streams

        def settle(replica: Replica, collection: Collection, kind: StreamKind) -> None:
            looks.append(stream.caught_up)

        monkeypatch.setattr(listening, "settle_kind", settle)
        state = StreamState(stream.collection.stream, StreamKind.GUARDED, 3, 3, 0, 0, 0, 0, ())
        told = Subscribed(a.vault.id, NO_TERM, 1, KeyId(bytes(4)), 0, (state,))
        await a.vault._sync._listening.told(told)
        assert looks == [False] and stream.told and not stream.caught_up
