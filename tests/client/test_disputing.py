"""Signed statements of what devices hold, and what they show of a relay that lies."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sealwire_client import disputing, statements
from sealwire_client.collection import Collection
from sealwire_client.policies import strict
from sealwire_client.replica import Edit, Replica
from sealwire_client.sending import StrictError
from sealwire_client.statements import STATEMENTS, Statement
from sealwire_client.status import Disputed
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.ids import MEMBERSHIP, Position, StreamId, Term
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Member
from sealwire_protocol.messages import Deliver, Message
from sealwire_protocol.segment import encode_record
from tests.client.late import late_writer
from tests.client.party import Guest, Note, all_synced, comes, in_step, joined, party, put_many, returned
from tests.support.virtual import pass_time, virtual


@pytest.fixture(autouse=True)
def stated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disputing, "STATED_RECORDS", 1)
    monkeypatch.setattr(disputing, "SPREAD_SECONDS", 0.0)


def name_of(vault: Vault) -> StreamId:
    """The stream of a vault's statements."""
    return vault._sync.keys.stream_id(STATEMENTS)


def stated(relay: MemoryRelay, vault: Vault) -> int:
    """How many statements the relay has taken in."""
    stream = relay.log.stream(vault.id, name_of(vault))
    return 0 if stream is None else stream.head


@asynccontextmanager
async def on_common_ground(open_device: OpenDevice, relay: MemoryRelay) -> AsyncIterator[list[Guest]]:
    """Two devices that hold the same entry, of which at least one has stated so."""
    async with party(open_device) as guests:
        await guests[0].notes.put("common", Note("both have it"))
        await in_step(guests)
        await comes(lambda: stated(relay, guests[0].vault) > 0)
        yield guests


async def newest(guest: Guest) -> dict[str, Statement]:
    """The statements that a device holds."""
    held = guest.vault._sync._disputing._statements
    if held is None:
        return {}  # its task has not had its turn yet
    found = await guest.vault._writer.run(lambda replica: replica.disputes.statements(held))
    return {key: said for key, raw in found if (said := statements.read(raw)) is not None}


def own(guest: Guest) -> Member:
    """A device as the member that it is."""
    sync = guest.vault._sync
    return sync.membership.members[sync.held.author]


def statement_key(guest: Guest) -> str:
    """Of the entry with what a device states of its notes."""
    return statements.entry_of(own(guest).lineage, guest.notes.held.stream)


async def keep_as_stated(guest: Guest, said: Statement, signer: Guest | None = None) -> None:
    """Let a device hold that it has stated this of its notes, signed by itself or by another one."""
    held, schema = guest.vault._sync._disputing._statements, guest.vault._sync._disputing._schema
    assert held is not None
    entry = statements.Stated(statements.signed((signer or guest).vault._sync.identity, said))
    edit = Edit(statement_key(guest), schema.to_row(entry), schema.encode(entry))
    await guest.vault._writer.run(lambda replica: replica.edit(held, [edit]))


async def disputed(guest: Guest) -> tuple[Disputed, ...]:
    return (await guest.vault.status()).disputed


async def comes_to_dispute(guest: Guest) -> Disputed:
    """Wait until a device reports that it is lied to."""
    for _ in range(600):
        if found := await disputed(guest):
            return found[0]
        await pass_time(1)
    raise AssertionError("nothing was reported within ten minutes")


async def has_stated(relay: MemoryRelay, guest: Guest) -> None:
    """Wait until a device's statement of where its notes stand now is at the relay."""
    stream = guest.notes.held.stream
    for _ in range(600):
        said = (await newest(guest)).get(statement_key(guest))
        waiting = await guest.vault._writer.run(lambda replica: replica.outbox.edits.any_wait(guest.vault._held.number))
        if said is not None and said.at.seq == guest.vault._sync._streams[stream].cursor and not waiting:
            return
        await pass_time(1)
    raise AssertionError("nothing was stated within ten minutes")


@asynccontextmanager
async def where_one_has_stated(open_device: OpenDevice, relay: MemoryRelay) -> AsyncIterator[list[Guest]]:
    """Two devices in step, the first of which has stated what it holds."""
    async with party(open_device) as guests:
        await put_many(guests[0], "x", 3)
        await in_step(guests)
        await has_stated(relay, guests[0])
        yield guests


class Fork(MemoryRelay):
    """A relay that shows another history from now on than the one that it was copied from."""

    def __init__(self, of: MemoryRelay) -> None:
        super().__init__(of.origin, of.limits)
        self.log = of.backup()

    def let_cross(self, of: MemoryRelay, vault: Vault) -> None:
        """Show the statements that are in the other history, which cannot be told from other records."""
        name = name_of(vault)
        theirs, there = of.log.stream(vault.id, name), self.log.stream(vault.id, name)
        assert theirs is not None
        assert there is not None
        known = {placed.record.rank for placed in there.records()}
        for placed in list(theirs.records()):
            if placed.record.rank not in known:
                self.offer(self.log.forge(vault.id, name, encode_record(placed.record), top=placed.record.version))


@asynccontextmanager
async def elsewhere(tmp_path: Path, relay: MemoryRelay, name: str = "device 1") -> AsyncIterator[Guest]:
    """A device of the party, at another relay."""
    async with OpenDevice(tmp_path, relay, writer=late_writer)(name) as device:
        yield await returned(device)


async def ledger_of(guest: Guest) -> Collection[Note]:
    return await guest.vault.collection("ledger", Note, policy=strict())


@virtual
async def test_s05_a_fork_is_reported_when_a_statement_crosses_and_strict_writes_are_refused(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with on_common_ground(open_device, memory_relay) as guests:
        for n, guest in enumerate(guests):
            await (await ledger_of(guest)).put(f"made {n}", Note("before"))
        await in_step(guests)
    fork = Fork(memory_relay)
    async with open_device("device 0") as here, elsewhere(tmp_path, fork) as b:
        a = await returned(here)
        await a.notes.put("x", Note("only here"))
        await b.notes.put("y", Note("only there"))
        await has_stated(memory_relay, a)
        await has_stated(fork, b)
        assert await disputed(a) == await disputed(b) == ()
        fork.let_cross(memory_relay, b.vault)
        found = await comes_to_dispute(b)
        assert (found.collection, found.key, found.back) == ("notes", a.device.key, False)
        mine, theirs = statements.read(found.held), statements.read(found.theirs)
        assert mine is not None
        assert theirs is not None
        assert (mine.stream, mine.at) == (theirs.stream, theirs.at)
        assert mine.sum != theirs.sum
        assert statements.is_signed_by(found.held, b.device.key)
        assert statements.is_signed_by(found.theirs, a.device.key)
        ledger = await ledger_of(b)
        with pytest.raises(StrictError, match="different histories"):
            await ledger.put("x", Note("refused"))
        await b.notes.put("z", Note("others are made"))
        await b.vault.synced()
    async with elsewhere(tmp_path, fork) as b:  # it outlasts the process
        assert await disputed(b) == (found,)
        ledger = await ledger_of(b)
        await b.vault.synced()
        with pytest.raises(StrictError, match="different histories"):
            await ledger.put("x", Note("refused"))
        assert await b.vault.dismiss() == 1
        assert await disputed(b) == ()
        await ledger.put("x", Note("made"))


@virtual
async def test_s05_without_a_fork_nothing_is_reported(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    """As above, with the same relay for both."""
    async with party(open_device) as guests:
        await guests[0].notes.put("common", Note("both have it"))
        await in_step(guests)
    async with open_device("device 0") as here, elsewhere(tmp_path, memory_relay) as b:
        a = await returned(here)
        await a.notes.put("x", Note("here"))
        await b.notes.put("y", Note("there"))
        for n in range(5):
            await put_many(a, f"a{n}", 3)
            await in_step([a, b])
            await trio.sleep(60)
        assert stated(memory_relay, a.vault) > 2
        assert await disputed(a) == await disputed(b) == ()
        assert a.vault._sync._disputing._pending == {a.notes.held.stream: {}}
        await (await ledger_of(b)).put("x", Note("made"))


@virtual
async def test_s05_a_record_that_the_relay_keeps_from_one_device_is_reported(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with on_common_ground(open_device, memory_relay):
        pass
    fork = Fork(memory_relay)
    async with open_device("device 0") as here, elsewhere(tmp_path, fork) as b:
        a = await returned(here)
        stream = a.notes.held.stream
        await a.notes.put("x", Note("kept from the other"))
        await a.notes.put("y", Note("shown"))
        await has_stated(memory_relay, a)
        kept, shown = list(memory_relay.log.vaults[a.vault.id].streams[stream].records())[-2:]
        fork.offer(fork.log.forge(b.vault.id, stream, b"", top=kept.record.version))
        fork.offer(fork.log.forge(b.vault.id, stream, encode_record(shown.record), top=shown.record.version))
        await comes(lambda: b.notes.get("y") is not None)
        fork.let_cross(memory_relay, b.vault)
        found = await comes_to_dispute(b)
        assert (found.collection, found.seq) == ("notes", shown.seq)
        assert b.notes.get("x") is None


@virtual
async def test_s05_a_statement_that_arrives_first_waits_for_the_stream(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    async with on_common_ground(open_device, memory_relay):
        pass
    fork = Fork(memory_relay)
    async with open_device("device 0") as here, elsewhere(tmp_path, fork) as b:
        a = await returned(here)
        await a.notes.put("x", Note("here"))
        await has_stated(memory_relay, a)
        fork.let_cross(memory_relay, b.vault)
        await trio.sleep(60)
        assert await disputed(b) == ()
        await b.notes.put("y", Note("there"))
        assert (await comes_to_dispute(b)).key == a.device.key


@virtual
async def test_a_statement_that_came_before_its_key_is_read_by_the_next_run(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """The device went down after the link was durable, and before its key was used."""
    async with party(open_device) as guests:
        await in_step(guests)
    async with open_device("device 0") as first:
        a = await returned(first)
        await a.vault.rotate()
        before = stated(memory_relay, a.vault)
        await a.notes.put("x", Note("under the new key"))
        await comes(lambda: stated(memory_relay, a.vault) > before)
        link = (await a.vault._sync.members.links())[-1]

    def withhold(message: Message) -> Sequence[Message]:
        return () if isinstance(message, Deliver) and message.stream == MEMBERSHIP else (message,)

    memory_relay.alter = withhold
    async with open_device("device 1") as second:
        b = await returned(second)
        streams, both = b.vault._sync._streams, {b.notes.held.stream, name_of(b.vault)}
        await comes(lambda: both <= {name for name, stream in streams.items() if stream.waits_for_links})
        number, seq = b.vault._held.number, b.vault._sync.membership.head + 1
        await b.vault._writer.run(lambda replica: replica.vaults.add_links(number, seq, [link]))
    memory_relay.alter = None
    async with open_device("device 0") as first, open_device("device 1") as second:
        a, b = await returned(first), await returned(second)
        await in_step([a, b])
        assert (await b.vault.status()).unreadable == 0


@virtual
async def test_s02_a_statement_that_goes_back_in_its_term_is_reported(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with where_one_has_stated(open_device, memory_relay) as (a, b):
        await comes(lambda: (own(a).lineage, a.notes.held.stream) in b.vault._sync._disputing._newest)
        said = (await newest(a))[statement_key(a)]
        earlier = said._replace(at=Position(said.at.term, said.at.seq - 1))
        await keep_as_stated(a, earlier)
        a.vault._sync.edited()
        found = await comes_to_dispute(b)
        assert (found.back, found.key, found.seq) == (True, a.device.key, said.at.seq - 1)
        assert statements.read(found.held) == said
        assert statements.read(found.theirs) == earlier


@virtual
async def test_who_stands_in_an_earlier_term_again_states_nothing_before_the_next_one_begins(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Its last statement was of a term that a restore has ended, and may have reached nobody."""
    async with where_one_has_stated(open_device, memory_relay) as (a, b):
        said = (await newest(a))[statement_key(a)]
        later = said._replace(at=Position(Term(said.at.term.number + 1, b"is ended"), said.at.seq + 9))
        await keep_as_stated(a, later)
        await put_many(a, "y", 3)
        await in_step([a, b])
        await trio.sleep(600)
        assert (await newest(a))[statement_key(a)] == later
        memory_relay.new_term()
        await put_many(a, "z", 3)
        await in_step([a, b])
        await has_stated(memory_relay, a)
        assert await disputed(b) == ()


@virtual
async def test_what_another_device_has_not_signed_is_no_statement_of_it(
    open_device: OpenDevice, memory_relay: MemoryRelay, caplog: pytest.LogCaptureFixture
) -> None:
    async with where_one_has_stated(open_device, memory_relay) as (a, b):
        said = (await newest(a))[statement_key(a)]
        await keep_as_stated(a, said._replace(sum=bytes(32)), signer=b)
        a.vault._sync.edited()
        await comes(lambda: "was not signed by it" in caplog.text)
        assert await disputed(b) == ()


@virtual
async def test_a_sum_that_was_kept_wrong_is_nobody_elses_fault(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as (a, b):
        number = b.notes.held.number
        await b.vault._writer.run(lambda replica: replica.sums._sums.update({number: 1}))
        await put_many(a, "x", 3)
        await in_step([a, b])
        await trio.sleep(600)
        assert await disputed(b) == ()
        assert await b.vault._writer.run(lambda replica: replica.sums.is_right(b.notes.held.table))


@virtual
async def test_who_is_alone_states_nothing(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 1) as (a,):
        await put_many(a, "x", 3)
        await in_step([a])
        await trio.sleep(600)
        assert stated(memory_relay, a.vault) == 0


@virtual
async def test_a_small_vault_states_nothing_at_first(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disputing, "STATED_RECORDS", 10)
    async with party(open_device) as (a, b):
        await put_many(a, "x", 9)
        await in_step([a, b])
        await trio.sleep(600)
        assert stated(memory_relay, a.vault) == 0
        await put_many(b, "y", 1)
        await comes(lambda: stated(memory_relay, a.vault) > 0)


@virtual
async def test_what_has_changed_is_stated_after_a_while(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disputing, "STATED_RECORDS", 10)
    async with party(open_device) as (a, b):
        await put_many(a, "x", 1)
        await in_step([a, b])
        monkeypatch.setattr(disputing, "now_ms", lambda: disputing.STATED_SECONDS * 1_000 + 4e12)
        await trio.sleep(disputing.STATED_SECONDS)
        assert stated(memory_relay, a.vault) > 0


@virtual
async def test_of_those_who_agree_few_speak_and_no_statement_causes_another(
    open_device: OpenDevice, memory_relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disputing, "SPREAD_SECONDS", 1.0)
    async with party(open_device, 5) as guests:
        await put_many(guests[0], "x", 3)
        await in_step(guests)
        await comes(lambda: stated(memory_relay, guests[0].vault) > 0)
        await trio.sleep(3_600)
        before = stated(memory_relay, guests[0].vault)
        await put_many(guests[1], "y", 3)
        await in_step(guests)
        await trio.sleep(86_400 / 4)
        assert stated(memory_relay, guests[0].vault) - before == 1


@virtual
async def test_a_reader_compares_and_states_nothing(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 1) as (a,), open_device("reader") as device:
        reader = await joined(device, a.vault, Role.READER)
        await put_many(a, "x", 3)
        await all_synced([a.vault, reader.vault])
        await comes(lambda: stated(memory_relay, reader.vault) > 0)
        await trio.sleep(600)
        assert stated(memory_relay, reader.vault) == 1
        assert len(await newest(reader)) == 1
        assert reader.vault._sync._disputing._pending == {reader.notes.held.stream: {}}


@virtual
async def test_statements_show_nowhere(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as (a, b):
        await put_many(a, "x", 3)
        await in_step([a, b])
        await comes(lambda: stated(memory_relay, a.vault) > 0)
        assert len([name for name in memory_relay.log.vaults[a.vault.id].streams if name != MEMBERSHIP]) == 2
        for guest in (a, b):
            assert await guest.vault.collections() == ["notes"]
            findings = await guest.device.examine()
            assert [each.name for each in findings.vaults[0].collections] == ["notes"]
            assert await guest.vault.stuck() == []


@virtual
async def test_after_a_restore_of_the_relay_honest_devices_agree(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as (a, b):
        await put_many(a, "x", 3)
        await in_step([a, b])
        backup = memory_relay.backup()
        await put_many(a, "y", 3)
        await b.notes.delete("x0")
        await in_step([a, b])
        await comes(lambda: stated(memory_relay, a.vault) > 1)
        memory_relay.restore(backup)
        await in_step([a, b])
        await put_many(b, "z", 3)
        await in_step([a, b])
        memory_relay.purge()
        await trio.sleep(600)
        await put_many(a, "z", 4)
        await in_step([a, b])
        await trio.sleep(600)
        async with open_device("late") as device:
            c = await joined(device, a.vault)
            await in_step([a, b, c])
            await c.notes.put("late", Note("late"))
            await in_step([a, b, c])
            await trio.sleep(600)
            for guest in (a, b, c):
                assert await disputed(guest) == ()
                assert await guest.vault._writer.run(_is_right, guest)


def _is_right(replica: Replica, guest: Guest) -> bool:
    return replica.sums.is_right(guest.notes.held.table)
