"""Live queries as in production: in threads, by the real clock."""

from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client.device import Device
from sealwire_client.live import RUNS_AT_ONCE_MAX
from sealwire_client.replica import ReplicaClosedError
from sealwire_client.testing import MemoryRelay
from sealwire_client.vault import Vault
from tests.client.party import Note, founded

pytestmark = pytest.mark.trio

ALL = "SELECT key, text FROM notes"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i), (SELECT 1 FROM notes) FROM n"


def connections(vault: Vault) -> int:
    """Connections that live queries of a vault have open."""
    return len(vault._live._idle) + len(vault._live._lent)


async def one_runs(vault: Vault) -> None:
    """Wait until a connection is lent."""
    while not vault._live._lent:
        await trio.testing.wait_all_tasks_blocked()


async def test_a_commit_is_told_from_the_writers_thread(tmp_path: Path, memory_relay: MemoryRelay) -> None:
    with trio.fail_after(60):
        async with Device.open(tmp_path, relay=memory_relay.origin, dialler=memory_relay.dial) as device:
            guest = await founded(device)
            async with guest.vault.live(ALL) as live:
                assert (await anext(live)).rows == ()
                for n in range(20):
                    await guest.notes.put("x", Note(str(n)))
                    assert (await anext(live)).rows == (("x", str(n)),)
            assert connections(guest.vault) == 0


async def test_many_at_once_take_few_connections_and_leave_none(tmp_path: Path, memory_relay: MemoryRelay) -> None:
    with trio.fail_after(60):
        async with Device.open(tmp_path, relay=memory_relay.origin, dialler=memory_relay.dial) as device:
            guest, most, told = await founded(device), 0, list[int]()
            vault = guest.vault

            async def read(number: int) -> None:
                nonlocal most
                async with vault.live(ALL) as live:
                    async for difference in live:
                        most = max(most, connections(vault))
                        if difference.rows:
                            told.append(number)
                            return

            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(read, number)
                await guest.notes.put("x", Note("here"))
            assert sorted(told) == list(range(50))
            assert most <= RUNS_AT_ONCE_MAX
            assert (connections(vault), len(vault._live._open), len(vault._live._touches)) == (0, 0, 0)


@pytest.mark.parametrize("ends", ["cancelled", "closed"])
async def test_a_query_without_end_ends_with_its_reader(tmp_path: Path, memory_relay: MemoryRelay, ends: str) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with Device.open(tmp_path, relay=memory_relay.origin, dialler=memory_relay.dial) as device:
                vault = (await founded(device)).vault

                @nursery.start_soon
                async def read() -> None:
                    with pytest.raises((trio.Cancelled, ReplicaClosedError)):
                        async with vault.live(ENDLESS):
                            raise AssertionError("it has a result")

                await one_runs(vault)
                if ends == "cancelled":
                    nursery.cancel_scope.cancel()
            assert connections(vault) == 0
        assert (connections(vault), len(vault._live._open), len(vault._live._touches)) == (0, 0, 0)
