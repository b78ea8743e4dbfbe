"""Every store knows to the byte what a vault stores, whatever is added, left out or replaced; and what it may store."""

import asyncio

import pytest

from sealwire_protocol.ids import MEMBERSHIP, Author, DeviceKey, MailboxId, StreamId, Term, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import StreamKind
from sealwire_relay.store import memory_mailboxes, postgres_mailboxes
from sealwire_relay.store import migrate as migrating
from sealwire_relay.store.administration import StoredVault
from sealwire_relay.store.cleaning import Purge
from sealwire_relay.store.interface import MemberState, NewLink, Store, TokenSpentError, TokenUse, Usage
from sealwire_relay.store.mailboxes import MailboxVerdict
from sealwire_relay.store.migrate import MIGRATIONS, Phase, migrate
from sealwire_relay.store.postgres import PostgresStore
from sealwire_relay.store.segments import StoredSegment
from tests.relay.store.backups import place_on, put_back, saved
from tests.relay.store.places import (
    ADMIN,
    MEMBERS,
    STATE,
    WRITER,
    Place,
    PostgresPlace,
    Vault,
    batch_write,
    make_vault,
    name,
    stream_write,
    whole,
    write,
)
from tests.relay.store.test_migrate import _empty, _fill_first_schema
from tests.support.aio import asyncio_test
from tests.support.postgres import Server


async def stored(store: Store, vault: VaultId) -> int:
    """What the store says that a vault stores; it must be what lies there."""
    usage = await store.usage(vault)
    assert usage is not None
    return usage.bytes


async def lies(store: Store, vault: Vault) -> int:
    """What the segments of a vault amount to."""
    logs = [await whole(store, vault, stream) for stream in (MEMBERSHIP, vault.stream)]
    return sum(len(segment.body) for log in logs for segment in log)


async def append(store: Store, vault: Vault, term: Term, head: int, *bodies: bytes) -> bool:
    [done] = await store.append([write(vault, term, [stream_write(vault.stream, head, *bodies)])])
    return done


@asyncio_test
async def test_what_is_appended_counts_and_what_is_refused_does_not(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault, other = await make_vault(store, term), await make_vault(store, term)
        links = await stored(store, vault.id)
        assert links == await lies(store, vault) > 0
        assert await append(store, vault, term, 0, b"four", b"and more")
        assert not await append(store, vault, term, 0, b"a condition does not hold")
        assert await append(store, vault, term, 12, b"x")
        assert await store.append([write(vault, term, [], [batch_write(1)])]) == [True]
        assert await stored(store, vault.id) == links + 13 == await lies(store, vault)
        assert await stored(store, other.id) == links
        assert await store.usage(VaultId(name(16))) is None


@asyncio_test
async def test_many_appends_at_once_are_counted_each(place: Place) -> None:
    async with place.opened() as first, place.opened() as second:
        term = await first.open_term()
        vault = await make_vault(first, term)
        streams = [StreamId(name(8)) for _ in range(4)]
        for stream in streams:
            assert await first.create_stream(vault.id, stream, StreamKind.OPEN) is StreamKind.OPEN
        before = await stored(first, vault.id)
        done = await asyncio.gather(
            *(
                store.append([write(vault, term, [stream_write(stream, 0, b"ten bytes.")])])
                for stream in streams
                for store in (first, second)
            )
        )
        assert sum(made for [made] in done) == 4
        assert await stored(second, vault.id) == before + 40


@asyncio_test
async def test_what_a_cleaner_leaves_out_is_given_back(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        links = await stored(store, vault.id)
        assert await append(store, vault, term, 0, b"abcd", b"efghij", b"kl")
        first, second, third = await whole(store, vault, vault.stream)
        smaller = StoredSegment(0, 10, b"bdf")
        assert await store.swap(vault.id, vault.stream, (first, second), smaller, 10, term)
        assert not await store.swap(vault.id, vault.stream, (first, second), smaller, 10, term)
        assert await stored(store, vault.id) == links + 5 == await lies(store, vault)
        purge = Purge(12, 12, 3, ((vault.admin[:16], 12),), False)  # type: ignore[arg-type]
        assert await store.swap(vault.id, vault.stream, (third,), StoredSegment(10, 12, b""), 12, term, purge)
        assert await stored(store, vault.id) == links + 3 == await lies(store, vault)


@asyncio_test
async def test_links_count_as_they_come_and_as_others_take_their_place(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        before = await stored(store, vault.id)
        third = MemberState(Author(3), DeviceKey(name(32)), Role.WRITER)
        assert await store.append_link(vault.id, NewLink(3, b"a third link", third), term)
        assert not await store.append_link(vault.id, NewLink(3, b"a third link", third), term)
        assert await stored(store, vault.id) == await lies(store, vault) > before
        members = MEMBERS[ADMIN], MEMBERS[WRITER]
        there, others = await store.links(vault.id), [b"other"]
        assert await store.replace_links(vault.id, there, 2, others, members, STATE, term)
        assert not await store.replace_links(vault.id, there, 2, others, members, STATE, term)
        assert await stored(store, vault.id) == await lies(store, vault) > before


@asyncio_test
async def test_a_vault_has_the_quota_that_its_token_gave_it_and_a_greater_one_by_another(place: Place) -> None:
    async with place.opened() as store:
        term = await store.open_term()
        vault, link = VaultId(name(16)), NewLink(1, b"genesis", MEMBERS[ADMIN])
        first, second = TokenUse(name(16), 1), TokenUse(name(16), 2)
        assert await store.create_vault(vault, STATE, link, term, first, 1_000)
        assert await store.usage(vault) == Usage(await stored(store, vault), 1_000)
        with pytest.raises(TokenSpentError):
            await store.raise_quota(vault, 2_000, first)
        for more, raised in ((900, False), (1_000, False), (1_500, True), (1_500, False), (1_700, True)):
            assert await store.raise_quota(vault, more, second) is raised
        with pytest.raises(TokenSpentError):
            await store.raise_quota(vault, 9_000, second)
        assert not await store.raise_quota(VaultId(name(16)), 9_000, TokenUse(name(16), 1))
        assert await store.usage(vault) == Usage(await stored(store, vault), 1_700)


@asyncio_test
async def test_all_vaults_are_told_page_by_page(fresh: Place) -> None:
    async with fresh.opened() as store:
        term = await store.open_term()
        assert await store.vaults(None, 10) == []
        made = sorted([await make_vault(store, term) for _ in range(3)])
        assert await append(store, made[1], term, 0, b"something")
        first = await store.vaults(None, 2)
        assert [told.vault for told in first] == [vault.id for vault in made[:2]]
        [last] = await store.vaults(first[-1].vault, 2)
        links = await stored(store, made[0].id)
        assert last == StoredVault(made[2].id, links, 0, 1, last.written)
        assert first[1][:4] == (made[1].id, links + 9, 0, 1)
        assert all(told.written is not None for told in (*first, last))
        assert await store.vaults(last.vault, 2) == []


@asyncio_test
async def test_a_vault_has_so_many_streams_and_open_mailboxes_and_no_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mailboxes in (memory_mailboxes, postgres_mailboxes):
        monkeypatch.setattr(mailboxes, "MAILBOXES_PER_VAULT_MAX", 2)
    async with place.opened() as store:
        term = await store.open_term()
        vault, other = await make_vault(store, term), await make_vault(store, term)
        kinds = [await store.create_stream(vault.id, StreamId(name(8)), StreamKind.OPEN, 3) for _ in range(3)]
        assert kinds == [StreamKind.OPEN, StreamKind.OPEN, StreamKind.ABSENT]
        assert await store.create_stream(vault.id, vault.stream, StreamKind.GUARDED, 3) is StreamKind.OPEN
        assert await store.create_stream(other.id, StreamId(name(8)), StreamKind.OPEN, 3) is StreamKind.OPEN
        boxes = [MailboxId(name(16)) for _ in range(3)]
        opened = [await store.open_mailbox(box, vault.id, vault.admin, 60) for box in boxes]
        assert opened == [MailboxVerdict.DONE, MailboxVerdict.DONE, MailboxVerdict.FULL]
        assert await store.open_mailbox(boxes[0], vault.id, vault.admin, 60) is MailboxVerdict.DONE
        assert await store.open_mailbox(boxes[2], other.id, vault.admin, 60) is MailboxVerdict.DONE
        assert await store.open_mailbox(MailboxId(name(16)), vault.id, vault.writer, 60) is MailboxVerdict.ABSENT


# --- on Postgres


@asyncio_test
async def test_what_was_there_before_it_was_counted_is_counted_by_the_migration(postgres: PostgresPlace) -> None:
    dsn = await _empty(postgres)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrating, "MIGRATIONS", MIGRATIONS[:7])
        await migrate(dsn, lambda line: None, Phase.PRE)
    vault = Vault(VaultId(name(16)), MEMBERS[ADMIN].device, MEMBERS[WRITER].device, StreamId(name(8)))
    await _fill_first_schema(dsn, vault)
    await migrate(dsn, lambda line: None, Phase.PRE)
    store = PostgresStore(dsn)
    await store.open()
    assert await store.usage(vault.id) == Usage(2, 0)
    assert await store.vaults(None, 9) == [StoredVault(vault.id, 2, 0, 1, None)]
    await store.close()


@asyncio_test
async def test_a_backup_has_quotas_and_what_is_stored(server: Server) -> None:
    place, other = await place_on(server), await place_on(server)
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        assert await append(store, vault, term, 0, b"ten bytes.")
        assert await store.raise_quota(vault.id, 4_711, TokenUse(name(16), 1))
        before = await store.vaults(None, 9)
        _, data = await saved(place)
    await put_back(other, data)
    async with other.opened() as store:
        assert await store.vaults(None, 9) == before
        assert before[0].quota == 4_711
