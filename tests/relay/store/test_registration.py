"""Who made how many vaults, and the database's secret, in every kind of store: kept, counted once, and in backups."""

import asyncio

import pytest

from sealwire_protocol.ids import DeviceKey, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_relay.store.interface import MemberState, NewLink, Store, TokenSpentError, TokenUse
from sealwire_relay.store.migrate import Phase, migrate
from tests.relay.store.backups import place_on, put_back, saved
from tests.relay.store.places import ADMIN, STATE, MemoryPlace, Place, name
from tests.support.aio import asyncio_test
from tests.support.postgres import Server


async def make(store: Store, term: Term, use: TokenUse | None, vault: VaultId | None = None) -> bool:
    link = NewLink(1, b"genesis", MemberState(ADMIN, DeviceKey(name(32)), Role.ADMIN))
    return await store.create_vault(vault or VaultId(name(16)), STATE, link, term, use)


@asyncio_test
async def test_a_token_makes_as_many_vaults_as_it_allows(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        use, other = TokenUse(name(16), 2), TokenUse(name(16), 1)
        assert await make(store, term, use)
        assert await make(store, term, use)
        for _ in range(2):
            vault = VaultId(name(16))
            with pytest.raises(TokenSpentError):
                await make(store, term, use, vault)
            assert (await store.links(vault)).links == ()
        assert await make(store, term, other)
        assert await make(store, term, None, vault)
    async with place.opened() as store:
        with pytest.raises(TokenSpentError):
            await make(store, await store.current_term(), other)


@asyncio_test
async def test_only_a_vault_that_is_made_counts(place: Place) -> None:
    async with place.opened() as store:
        old = await store.open_term()
        term = await store.open_term()
        vault, use = VaultId(name(16)), TokenUse(name(16), 2)
        assert not await make(store, old, use)
        assert await make(store, term, use, vault)
        for _ in range(3):
            assert not await make(store, term, use, vault)
        assert await make(store, term, use)
        with pytest.raises(TokenSpentError):
            await make(store, term, use)


@asyncio_test
async def test_two_relays_at_once_make_no_more_than_a_token_allows(place: Place) -> None:
    async with place.opened() as first, place.opened() as second:
        term = await first.open_term()
        use = TokenUse(name(16), 3)
        made = await asyncio.gather(
            *(make(store, term, use) for store in (first, second) for _ in range(4)), return_exceptions=True
        )
        assert sorted(map(str, made)) == sorted([*["True"] * 3, *[""] * 5])
        assert sum(isinstance(each, TokenSpentError) for each in made) == 5


@asyncio_test
async def test_the_database_keeps_its_secret(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        key = await store.receipt_key()
        device, vault = DeviceKey(name(32)), VaultId(name(16))
        link = NewLink(1, b"genesis", MemberState(ADMIN, device, Role.ADMIN))
        assert await store.create_vault(vault, STATE, link, term)
        told = await store.subscription(vault, device, [])
        assert told is not None and told.receipt_key == key and len(key) == 16
    async with place.opened() as store:
        await store.open_term()
        assert await store.receipt_key() == key
        assert isinstance(place, MemoryPlace) or key != bytes(16)


@asyncio_test
async def test_a_backup_has_the_secret_and_the_counts(server: Server) -> None:
    place, other = await place_on(server), await place_on(server, "template1")
    await migrate(server.dsn(other.database), lambda line: None, Phase.PRE)
    use = TokenUse(name(16), 2)
    async with place.opened() as store:
        assert await make(store, await store.open_term(), use)
        key = await store.receipt_key()
        _, data = await saved(place)
        assert await make(store, await store.current_term(), use)
    async with other.opened() as store:
        assert await store.receipt_key() != key
    await put_back(other, data)
    async with other.opened() as store:
        term = await store.open_term()
        assert await store.receipt_key() == key
        assert await make(store, term, use)
        with pytest.raises(TokenSpentError):
            await make(store, term, use)
