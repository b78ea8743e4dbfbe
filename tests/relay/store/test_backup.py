"""Backups on real Postgres: all that one moment had comes back, all at once or not at all, under a new term."""

import asyncio
import io
from typing import Any

import pytest

from sealwire_protocol.conditions import Current
from sealwire_protocol.ids import KeyId, MailboxId, StreamId, Tag, Term
from sealwire_protocol.messages import StreamKind
from sealwire_relay.backupfile import BackupFileError, BackupReader, BackupWriter, Contents, Header
from sealwire_relay.store import backup
from sealwire_relay.store.backup import InUseError, NotEmptyError, Restored, back_up, restore
from sealwire_relay.store.interface import NewLink, SchemaError, Store, StoreError, VaultState
from sealwire_relay.store.migrate import Phase, apply_between, latest, migrate
from tests.relay.store.backups import place_on, put_back, saved
from tests.relay.store.places import (
    EPOCH,
    STATE,
    WRITER,
    PostgresPlace,
    Vault,
    batch_write,
    make_vault,
    name,
    segments,
    stream_write,
    whole,
    write,
)
from tests.support.aio import asyncio_test
from tests.support.postgres import Server

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'sealwire' AND tablename <> 'relay' ORDER BY 1"


async def rows(place: PostgresPlace) -> dict[str, list[str]]:
    """Every row of every table, but the term's."""
    async with place.direct() as direct:
        tables = [row[0] for row in await direct.fetch(TABLES)]
        return {
            table: [row[0] for row in await direct.fetch(f"SELECT t::text FROM sealwire.{table} t ORDER BY 1")]
            for table in tables
        }


async def fill(store: Store, term: Term) -> Vault:
    """A vault with a record in every table."""
    vault = await make_vault(store, term)
    held = ((Tag(name(16)), Current(3, b"salt....", True, 2)),)
    guarded = StreamId(name(8))
    await store.create_stream(vault.id, guarded, StreamKind.GUARDED)
    new = [stream_write(vault.stream, 0, b"ab", bytes(200_000)), stream_write(guarded, 0, b"xy")._replace(guards=held)]
    assert await store.append([write(vault, term, new, [batch_write(1)])]) == [True]
    await store.open_mailbox(MailboxId(name(16)), vault.id, vault.admin, 600)
    return vault


@asyncio_test
async def test_all_comes_back_in_another_database_under_a_new_term(server: Server) -> None:
    place, other = await place_on(server), await place_on(server, "template1")
    async with place.opened() as store:
        await store.open_term()
        term = await store.open_term()
        await fill(store, term)
        vault = await fill(store, term)
        header, data = await saved(place)
    assert header.contents == Contents(2, 2, 6, 2 * (2 + 200_002 + 2))
    assert (header.migrated_pre, header.term_id) == (latest(Phase.PRE), term.id.hex())
    done = await put_back(other, data)
    assert done == Restored(None, header.contents._replace(term=3))
    before = await rows(place)
    assert await rows(other) == before
    assert min(len(found) for table, found in before.items() if table in ("guard", "mailbox", "outcome")) >= 2
    async with other.opened() as store:
        now = await store.current_term()
        assert (now.number, now.id != term.id) == (3, True)
        assert await store.append([write(vault, term, [stream_write(vault.stream, 200_002, b"c")])]) == [False]
        assert await store.append([write(vault, now, [stream_write(vault.stream, 200_002, b"c")])]) == [True]


@asyncio_test
async def test_a_backup_is_one_moment_however_much_is_pushed_meanwhile(server: Server) -> None:
    place, other = await place_on(server), await place_on(server, "template1")
    async with place.opened() as store:
        term = await store.open_term()
        vaults = [await make_vault(store, term) for _ in range(4)]
        pushed = dict.fromkeys(vaults, 0)
        marks: list[int] = []

        async def push(vault: Vault) -> None:
            while True:
                at = pushed[vault]
                held = ((Tag(at.to_bytes(16)), Current(at + 1, b"salt....", False, at + 1)),)
                new = stream_write(vault.stream, at, b"r")._replace(guards=held)
                assert await store.append([write(vault, term, [new], [batch_write(at + 1)])]) == [True]
                pushed[vault] += 1

        class Marking(BackupWriter):
            def begin(self, header: Header) -> None:
                marks.append(sum(pushed.values()))
                super().begin(header)

            def end_table(self, name: str, rows: int) -> None:
                marks.append(sum(pushed.values()))
                super().end_table(name, rows)

        tasks = [asyncio.create_task(push(vault)) for vault in vaults]
        while not marks or marks[0] == marks[-1]:  # nothing may have been pushed within a backup that was quick
            marks.clear()
            file = io.BytesIO()
            await back_up(place.server.dsn(place.database), Marking(file, "it"))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await put_back(other, file.getvalue())
    async with other.opened() as store, other.direct() as direct:
        for vault in vaults:
            page = await store.read(vault.id, vault.stream, 0, 1 << 30)
            assert page is not None
            assert page.head <= marks[-1]
            found = await whole(store, vault, vault.stream)
            assert found == [each for at in range(page.head) for each in segments(at, b"r")]
            state = await store.pusher(vault.id, vault.admin)
            assert state is not None
            assert state.last_batch == page.head
            guards = await direct.fetchval("SELECT count(*) FROM sealwire.guard WHERE vault_id = $1", vault.id.hex())
            assert guards == page.head


@asyncio_test
async def test_what_is_there_is_replaced_only_if_that_is_said(server: Server) -> None:
    place = await place_on(server)
    async with place.opened() as store:
        first = await store.open_term()
        vault = await fill(store, first)
        _, data = await saved(place)
        kept = await rows(place)
        for _ in range(5):
            last = await store.open_term()
        await fill(store, last)
        assert await store.append([write(vault, last, [stream_write(vault.stream, 200_002, b"lost")])]) == [True]
    before = await rows(place)
    with pytest.raises(NotEmptyError, match=r"2 vaults in 6 streams, .* 400,016, under term 6; .* --replace"):
        await put_back(place, data)
    assert await rows(place) == before
    done = await put_back(place, data, replace=True)
    assert done.before == Contents(6, 2, 6, 400_016)
    assert done.now == Contents(7, 1, 3, 200_006)
    assert await rows(place) == kept


@asyncio_test
async def test_a_database_in_which_nothing_was_stored_yet_is_empty(server: Server) -> None:
    place, other, bare = await place_on(server), await place_on(server), await place_on(server, "template1")
    async with other.opened() as store:
        for _ in range(4):
            await store.open_term()
    async with bare.direct() as direct:
        await direct.execute("CREATE SCHEMA sealwire")
    async with place.opened() as store:
        await fill(store, await store.open_term())
    _, data = await saved(place)
    assert (await put_back(other, data)).now.term == 5
    assert (await put_back(bare, data)).now.term == 2
    assert await rows(other) == await rows(bare) == await rows(place)


@asyncio_test
async def test_what_half_a_restore_by_hand_has_left_can_be_replaced(server: Server) -> None:
    place = await place_on(server)
    async with place.opened() as store:
        await fill(store, await store.open_term())
    _, data = await saved(place)
    kept = await rows(place)
    async with place.direct() as direct:
        await direct.execute("DROP TABLE sealwire.stream, sealwire.segment")
    with pytest.raises(NotEmptyError, match="a part of a relay's tables"):
        await put_back(place, data)
    with pytest.raises(SchemaError, match="no tables of a relay"):
        await saved(place)
    await put_back(place, data, replace=True)
    assert await rows(place) == kept


@asyncio_test
async def test_a_connected_relay_keeps_its_database(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "GONE_SECONDS_MAX", 0.0)
    place = await place_on(server)
    async with place.opened() as store:
        await fill(store, await store.open_term())
        before = await rows(place)
        _, data = await saved(place)
        with pytest.raises(InUseError, match="stop every relay"):
            await put_back(place, data, replace=True)
        assert await rows(place) == before
    monkeypatch.undo()
    await put_back(place, data, replace=True)


@asyncio_test
async def test_somebody_who_holds_a_table_is_named_and_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_SESSION", {**backup._SESSION, "lock_timeout": "10ms"})
    place = await place_on(server)
    _, data = await saved(place)
    async with place.direct() as direct, direct.transaction():
        await direct.execute("LOCK TABLE sealwire.stream IN ACCESS SHARE MODE")
        with pytest.raises(InUseError, match="psql with an open transaction"):
            await put_back(place, data)


@asyncio_test
async def test_a_damaged_backup_changes_nothing(server: Server) -> None:
    place = await place_on(server)
    async with place.opened() as store:
        await fill(store, await store.open_term())
    _, data = await saved(place)
    async with place.opened() as store:
        await fill(store, await store.open_term())
    before = await rows(place)
    at = data.index(bytes(1_000)) + 500
    for broken in (data[:at] + b"\1" + data[at + 1 :], data[:-1], data[:at]):
        with pytest.raises(BackupFileError):
            await put_back(place, broken, replace=True)
        assert await rows(place) == before
    async with place.opened() as store:
        assert (await store.current_term()).number == 2


@asyncio_test
async def test_a_cancelled_restore_changes_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = await place_on(server)
    async with place.opened() as store:
        await fill(store, await store.open_term())
    _, data = await saved(place)
    before = await rows(place)
    reader = BackupReader(io.BytesIO(data), "it")
    task = asyncio.create_task(restore(place.server.dsn(place.database), reader, True))
    reached, go_on = asyncio.Event(), reader.table

    def table(*arguments: Any) -> Any:
        task.cancel()
        reached.set()
        return go_on(*arguments)

    monkeypatch.setattr(reader, "table", table)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached.is_set()
    assert await rows(place) == before


@asyncio_test
async def test_an_older_schema_comes_back_as_this_one(server: Server) -> None:
    """The backup of a relay before guarded streams, restored by one of today."""
    old, new, today = [await place_on(server, "template1") for _ in range(3)]
    async with old.direct() as direct:
        await apply_between(direct, Phase.PRE, 0, 1)
        await direct.execute(
            "INSERT INTO sealwire.member VALUES (gen_random_uuid(), 1, 2, 3, repeat('10', 128)::bit(256), 1)"
        )
    header, data = await saved(old)
    assert header.migrated_pre == 1
    await put_back(new, data)
    await migrate(today.server.dsn(today.database), lambda line: None, Phase.PRE)
    catalogue = (
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema='sealwire'"
    )
    async with new.direct() as restored, today.direct() as fresh:
        assert set(await restored.fetch(catalogue)) == set(await fresh.fetch(catalogue))
    assert (await rows(new))["member"] == (await rows(old))["member"]
    async with new.opened() as store:
        assert (await store.current_term()).number == 1


@asyncio_test
async def test_a_newer_schema_is_refused_in_words(server: Server) -> None:
    place = await place_on(server)
    _, data = await saved(place)
    reader = BackupReader(io.BytesIO(data), "it")
    reader.header = reader.header._replace(migrated_pre=99, sealwire="9.0.0")
    with pytest.raises(SchemaError, match=r"newer relay \(Sealwire 9.0.0, schema 99;.*a later one"):
        await restore(place.server.dsn(place.database), reader, True)


@asyncio_test
async def test_tables_that_are_not_ours_are_left_out_and_other_columns_refused(server: Server) -> None:
    place, other = await place_on(server), await place_on(server, "template1")
    async with place.opened() as store:
        await fill(store, await store.open_term())
    kept = await rows(place)
    async with place.direct() as direct:
        await direct.execute('CREATE TABLE sealwire."my ""notes" AS SELECT 1 AS one')
        _, data = await saved(place)
        assert (await put_back(other, data)).now.vaults == 1
        assert await rows(other) == kept
        await direct.execute("ALTER TABLE sealwire.member ADD mine text")
    _, data = await saved(place)
    with pytest.raises(SchemaError, match="table member is not as Sealwire's schema"):
        await put_back(other, data, replace=True)
    assert await rows(other) == kept


@asyncio_test
async def test_what_others_have_built_upon_the_tables_is_not_taken_away(server: Server) -> None:
    place = await place_on(server)
    _, data = await saved(place)
    async with place.direct() as direct:
        await direct.execute("CREATE VIEW public.mine AS SELECT head FROM sealwire.stream")
        with pytest.raises(StoreError, match="other objects depend on"):
            await put_back(place, data)
        assert await direct.fetch("SELECT * FROM public.mine") == []


@asyncio_test
async def test_s10_a_restored_vault_has_the_epoch_and_the_members_of_its_backup(server: Server) -> None:
    place, other = await place_on(server), await place_on(server)
    state = VaultState(EPOCH + 1, KeyId(b"next"))
    async with place.opened() as store:
        term = await store.open_term()
        vault = await make_vault(store, term)
        assert await store.append_link(vault.id, NewLink(3, b"removal", None, None, state, (WRITER,)), term)
    _, data = await saved(place)
    await put_back(other, data)
    async with other.opened() as store:
        term = await store.open_term()
        told = await store.subscription(vault.id, vault.admin, [])
        assert told is not None and told.vault == state
        assert await store.members([vault.id]) == {vault.id: {vault.admin}}
        for judged_on, taken in ((STATE, False), (state, True)):
            late = write(vault, term, [stream_write(vault.stream, 0, b"a")], state=judged_on)
            assert await store.append([late]) == [taken]
