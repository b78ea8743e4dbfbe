"""Two ends of a membership log compete, and one of them has moved the vault (R15, R18)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sealwire_client.moving import MoveError
from sealwire_protocol.links import Role
from tests.client.party import Guest, Note, comes, founded, in_step, joined
from tests.client.test_moving import NEW, OLD, Opens, Relays
from tests.support.virtual import virtual

THIRD = "wss://third.test"


@pytest.fixture
def relays() -> Relays:
    return Relays(OLD, NEW, THIRD)


@pytest.fixture
def opens(tmp_path: Path, relays: Relays) -> Opens:
    return Opens(tmp_path, relays)


@asynccontextmanager
async def admins(opens: Opens) -> AsyncIterator[tuple[Guest, Guest]]:
    """Two of them, in step, with an entry."""
    async with opens("device 0") as first, opens("device 1") as second:
        host = await founded(first)
        await host.vault.synced()
        other = await joined(second, host.vault, Role.ADMIN)
        await host.notes.put("both", Note("both"))
        await in_step([host, other])
        yield host, other


async def move_and_set_back(relays: Relays, host: Guest, rotates: bool = False) -> None:
    """The old relay loses the MOVE, of which the other device has not heard."""
    before = relays[OLD].backup()
    with relays.kept_from_old("device 1"):
        await host.vault.move(NEW)
        if rotates:
            await host.vault.rotate()
        await host.notes.put("host", Note("at the new relay"))
        await host.vault.synced()
        relays[OLD].restore(before)


async def meet(host: Guest, other: Guest, origin: str) -> None:
    """Wait until both are there, and show the same, with what each has written alone."""
    await comes(lambda: host.vault.origin == other.vault.origin == origin)
    await in_step([host, other])
    assert host.dump() == {"both": "both", "host": "at the new relay", "other": "at the old relay"}
    assert host.vault._sync.membership.last_hash == other.vault._sync.membership.last_hash
    for guest in (host, other):
        await guest.notes.put(guest.vault.origin, Note("goes on"))
    await in_step([host, other])
    assert [(await guest.vault.status()).last_error for guest in (host, other)] == [None, None]


async def edit(other: Guest) -> None:
    await other.notes.put("other", Note("at the old relay"))
    await other.vault.synced()


@virtual
async def test_r15_who_has_the_end_that_gives_way_follows_to_where_the_one_that_stands_has_moved_the_vault(
    opens: Opens, relays: Relays
) -> None:
    async with admins(opens) as (host, other):
        await move_and_set_back(relays, host, rotates=True)
        await edit(other)
        async with opens("device 2") as third:
            await joined(third, other.vault)  # a link in the place of the MOVE
        assert (host.vault.origin, other.vault.origin) == (NEW, OLD)
        with pytest.raises(MoveError, match="one that must give way"):
            await host.device.follow(host.vault, OLD)
        await other.device.follow(other.vault, NEW)
        await meet(host, other, NEW)
        await comes(lambda: len(host.vault.members) == 3)  # whom only the end that went had added is added again


@virtual
async def test_r15_the_end_that_stands_has_not_moved_the_vault_and_who_has_gone_with_the_other_comes_back(
    opens: Opens, relays: Relays
) -> None:
    async with admins(opens) as (host, other):
        await move_and_set_back(relays, host)
        await edit(other)
        await other.vault.rotate()
        with pytest.raises(MoveError, match="one that must give way"):
            await other.device.follow(other.vault, NEW)
        await host.device.follow(host.vault, OLD)
        await meet(host, other, OLD)


@virtual
async def test_r15_the_end_that_stands_may_move_the_vault_to_where_the_other_one_is(
    opens: Opens, relays: Relays
) -> None:
    async with admins(opens) as (host, other):
        await move_and_set_back(relays, host)
        await edit(other)
        await other.vault.rotate()
        await other.vault.move(NEW)
        await meet(host, other, NEW)


@virtual
async def test_r15_of_two_ends_that_have_moved_the_vault_to_different_relays_one_stands(
    opens: Opens, relays: Relays
) -> None:
    async with admins(opens) as (host, other):
        await move_and_set_back(relays, host)
        await edit(other)
        await other.vault.move(THIRD)
        assert (host.vault.origin, other.vault.origin) == (NEW, THIRD)
        (loser, there) = (host, THIRD) if stands(other, host) else (other, NEW)
        await loser.device.follow(loser.vault, there)
        await meet(host, other, there)


def stands(one: Guest, other: Guest) -> bool:
    """Of two ends of one link each: the one with the smaller hash."""
    hashes = [guest.vault._sync.membership.last_hash for guest in (one, other)]
    return hashes[0] < hashes[1]


@pytest.mark.parametrize("rotates", [True, False])
@virtual
async def test_r15_a_relay_that_lost_all_of_a_move_and_the_way_back_competes_with_it(
    opens: Opens, relays: Relays, rotates: bool
) -> None:
    """Whichever end stands, the vault is there."""
    async with admins(opens) as (host, other):
        before = relays[OLD].backup()
        with relays.kept_from_old("device 1"):
            await host.vault.move(NEW)
            await host.vault.move(OLD)
            await host.notes.put("host", Note("at the new relay"))
            await host.vault.synced()
        with relays.kept_from_old("device 0"):
            relays[OLD].restore(before)
            await edit(other)
            if rotates:
                await other.vault.rotate()
            async with opens("device 2") as third:
                await joined(third, other.vault)
        relays[OLD].cut()
        await meet(host, other, OLD)
        assert other.vault._sync.membership.relay == (None if rotates else OLD)
        await comes(lambda: len(host.vault.members) == 3)
