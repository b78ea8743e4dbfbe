"""A membership log is followed, not read anew: what a link costs does not depend on how many came before it."""

import pytest

from sealwire_protocol.ids import VaultId
from sealwire_protocol.links import encode_links, vault_id_of
from sealwire_protocol.messages import AppendLink, CreateVault, OfferLinks
from sealwire_relay import logs
from sealwire_relay.logs import Logs
from sealwire_relay.store.interface import LinkLog
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.memory import MemoryStore
from tests.relay.asking import ANNA, done
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, add_link, genesis
from tests.support.relay import running

LINKS = 40


class Counting(MemoryStore):
    """Counts the links that are read of it."""

    def __init__(self, database: MemoryDatabase | None = None) -> None:
        super().__init__(clock=lambda: 0.0, database=database)
        self.read_links = 0

    async def links(self, vault: VaultId, after: int = 0) -> LinkLog:
        """Counted."""
        found = await super().links(vault, after)
        self.read_links += len(found.links)
        return found


def log_of(number: int, nonce: int = 0, first: int = 10) -> list[bytes]:
    """A log with so many links, all of Anna's."""
    log = [genesis(ANNA, nonce)]
    for member in range(first, first + number - 1):
        log.append(add_link(ANNA, log, Identity(member)))
    return log


async def counting(database: MemoryDatabase | None = None) -> Counting:
    store = Counting(database)
    await store.open()
    return store


@asyncio_test
async def test_appending_a_link_reads_two_however_many_there_are() -> None:
    store, log = await counting(), log_of(LINKS)
    vault = vault_id_of(log[0])
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        await done(anna, CreateVault, log[0])
        for raw in log[1:]:
            before = store.read_links
            await done(anna, AppendLink, vault, raw)
            assert store.read_links - before <= 2
        # Those who give a log back present links that stand there; that costs as little.
        before = store.read_links
        for raw in log[1:]:
            await done(anna, AppendLink, vault, raw)
        assert store.read_links - before <= LINKS
    assert (await store.links(vault)).links == tuple(log)


@asyncio_test
async def test_what_others_did_to_a_log_shows_at_the_next_look() -> None:
    database, log = MemoryDatabase(), log_of(6)
    one, other = [await counting(database) for _ in range(2)]
    vault = vault_id_of(log[0])
    async with running(one) as here, running(other) as there:
        async with await Device.open(here.port, ANNA) as anna, await Device.open(there.port, ANNA) as also:
            await done(anna, CreateVault, log[0])
            await done(anna, AppendLink, vault, log[1])
            await done(also, AppendLink, vault, log[2])
            await done(anna, AppendLink, vault, log[3])
            known = Logs(one)
            followed = await known.now(vault)
            assert followed is not None and followed.membership.head == 4
            rival = log[:2]
            for member in (30, 31, 32):
                rival.append(add_link(ANNA, rival, Identity(member)))
            await done(also, OfferLinks, vault, 2, encode_links(rival[2:]))
            again = await known.now(vault)
            assert again is not None and again.membership.last_hash != followed.membership.last_hash
            assert (again.membership.head, followed.membership.head) == (5, 4)
            await done(anna, AppendLink, vault, add_link(ANNA, rival, Identity(33)))
            assert await known.now(VaultId(bytes(16))) is None


@asyncio_test
async def test_a_log_that_was_set_back_is_read_whole() -> None:
    database, log = MemoryDatabase(), log_of(3)
    store = await counting(database)
    vault = vault_id_of(log[0])
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        await done(anna, CreateVault, log[0])
        backup = database.copy()
        for raw in log[1:]:
            await done(anna, AppendLink, vault, raw)
        known = Logs(store)
        followed = await known.now(vault)
        assert followed is not None and followed.membership.head == 3
        store.database = backup
        followed = await known.now(vault)
        assert followed is not None and followed.membership.head == 1


@asyncio_test
async def test_logs_that_are_kept_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINKS_KEPT_MAX", 5)
    store = await counting()
    made = [log_of(3, nonce) for nonce in range(3)]
    async with running(store) as relay, await Device.open(relay.port, ANNA) as anna:
        for log in made:
            await done(anna, CreateVault, log[0])
            for raw in log[1:]:
                await done(anna, AppendLink, vault_id_of(log[0]), raw)
    known = Logs(store)
    for log in made:
        await known.now(vault_id_of(log[0]))
    assert list(known._known) == [vault_id_of(made[-1][0])]
    assert known._links == 3
