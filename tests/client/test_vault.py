"""A vault as an app uses it: opening collections, asking how things stand, waiting until they stand well."""

from dataclasses import dataclass

import pytest
import trio
import trio.testing

from sealwire_client.encoding import EncodingError
from sealwire_client.link import LinkState
from sealwire_client.policies import latest
from sealwire_client.replica import ColumnsChangedError, QueryError, ReplicaMisuse
from sealwire_client.statements import STATEMENTS
from sealwire_client.status import State
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.messages import Deliver
from sealwire_protocol.registration import SIGNATURE_BYTES, Token, encode_token, token_bytes, token_text
from tests.client.party import Note, comes, cut_off, founded, in_step, notes_of, party, records, returned
from tests.support.virtual import virtual


@dataclass(frozen=True)
class Wider:
    """A later version of Note."""

    text: str
    count: int = 0
    more: str = ""


@dataclass(frozen=True)
class Other:
    """Something else of the same shape."""

    text: str
    count: int = 0


@dataclass(frozen=True)
class Contrary:
    """Something that contradicts a Note."""

    count: str


# --- collections


@virtual
async def test_a_collection_is_one_object_however_often_it_is_opened(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        vault = await device.create_vault("home")
        opened = []

        async def open_it() -> None:
            opened.append(await notes_of(vault))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(open_it)
        assert opened[0] is opened[1] is opened[2] is await notes_of(vault)


@virtual
async def test_a_collection_that_is_open_cannot_be_opened_as_another_type(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        a = await founded(device)
        with pytest.raises(ReplicaMisuse, match="open already, with Note"):
            await a.vault.collection("notes", Other, policy=latest())
        with pytest.raises(EncodingError):
            await a.vault.collection("other", int, policy=latest())


@virtual
async def test_an_app_cannot_open_what_devices_keep_for_themselves(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        vault = await device.create_vault("home")
        for name in (STATEMENTS, "_edit"):
            with pytest.raises(ReplicaMisuse, match="cannot name a collection"):
                await vault.collection(name, Note, policy=latest())


@virtual
async def test_a_type_may_grow_and_not_change(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        await (await founded(device)).notes.put("x", Note("old", 1))
    async with open_device("a") as device:
        with pytest.raises(ColumnsChangedError):
            await device.vaults[0].collection("notes", Contrary, policy=latest())
        wider = await device.vaults[0].collection("notes", Wider, policy=latest())
        found = wider.get("x")
        assert found is not None and (found.text, found.count) == ("old", 1)
        await wider.put("x", Wider("new", 2, "more"))
        assert wider.get("x") == Wider("new", 2, "more")


@virtual
async def test_collections_are_queried_together(open_device: OpenDevice) -> None:
    async with open_device("a") as device:
        a = await founded(device)
        other = await notes_of(a.vault, "other")
        await a.notes.put_many({"x": Note("one", 1), "y": Note("two", 2)})
        await other.put("x", Note("three", 3))
        found = a.vault.select("SELECT n.key, n.text, o.count FROM notes n JOIN other o USING (key)")
        assert found.rows == [("x", "one", 3)]
        assert a.vault.select("SELECT count(*) FROM notes WHERE count > ?", (1,)).rows == [(1,)]
        with pytest.raises(QueryError):
            a.vault.select("DELETE FROM notes")
        assert await a.vault.collections() == ["notes", "other"]


@virtual
async def test_a_collection_opened_late_is_caught_up(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        mine = await notes_of(a.vault, "other")
        await mine.put("x", Note("one"))
        await a.vault.synced()
        theirs = await notes_of(b.vault, "other")
        await b.vault.synced()
        assert theirs.get("x") == Note("one")


# --- how things stand


@virtual
async def test_a_vault_is_synced_once_the_relay_has_it(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as device:
        vault = await device.create_vault("home")
        assert vault.id not in memory_relay.log.vaults
        await vault.synced()
        assert vault.id in memory_relay.log.vaults
        status = await vault.status()
        assert status.state is State.SYNCED and status.members == 1 and status.last_error is None
        assert (status.pending, status.behind, status.stuck, status.unreadable) == (0, 0, 0, 0)


@virtual
async def test_synced_waits_for_verdicts_and_for_the_echo(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    memory_relay.delay = 1
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("first", Note("makes the stream"))
        await in_step(guests)
        began = trio.current_time()
        await a.notes.put("x", Note("one"))
        assert (await a.vault.status()).state is State.SENDING
        assert (await a.vault.status()).pending == 1
        await a.vault.synced()
        assert trio.current_time() - began == 2
        assert records(memory_relay, a.vault) == 2
        await comes(lambda: b.notes.get("x") is not None)


@virtual
async def test_another_registration_token_is_shown_at_once(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    token = token_text(encode_token(Token(bytes(8), bytes(16), 2**40, 1)) + bytes(SIGNATURE_BYTES))
    memory_relay.log.tokens = {token_bytes(token): 1}
    async with open_device("a") as device:
        vault = await device.create_vault("home")
        await comes(lambda: vault._sync.is_refused)
        began = trio.current_time()
        await vault.register(token)
        await vault.synced()
        assert trio.current_time() == began


@virtual
async def test_synced_waits_while_the_relay_is_away(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        async with cut_off(memory_relay):
            await a.notes.put("x", Note("one"))
            with trio.move_on_after(3600) as waiting:
                await a.vault.synced()
            assert waiting.cancelled_caught
            status = await a.vault.status()
            assert (status.state, status.pending) == ("offline", 1)
            assert "no relay answers" in (status.last_error or "")
        await a.vault.synced()
        status = await a.vault.status()
        assert (status.state, status.members, status.last_error) == (State.SYNCED, 2, None)


@virtual
async def test_synced_ends_for_everyone_who_waits_while_others_go_on_editing(open_device: OpenDevice) -> None:
    async with party(open_device) as guests:
        a, b = guests
        ended = 0

        async def edit() -> None:
            nonlocal ended
            for number in range(50):
                await a.notes.put(f"key {number % 3}", Note("x", number))
                await a.vault.synced()
            ended += 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(edit)
            nursery.start_soon(b.vault.synced)
        assert ended == 5
        await in_step(guests)


@virtual
async def test_what_is_behind_is_counted(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device):
        pass
    async with open_device("device 0") as device:
        a = await returned(device)
        for number in range(6):
            await a.notes.put(f"key {number}", Note("x"))
            await a.vault.synced()
        memory_relay.alter = lambda message: [] if isinstance(message, Deliver) else [message]
        async with open_device("device 1") as device:
            b = await returned(device)
            await b.device.link(b.vault.origin).until(lambda link: link.state is LinkState.ONLINE)
            await trio.testing.wait_all_tasks_blocked()
            assert (await b.vault.status()).behind == 6
            assert (await b.vault.status()).state is State.CATCHING_UP
            memory_relay.alter = None
            memory_relay.cut()
            await in_step([a, b])
            assert (await b.vault.status()).behind == 0
            assert len(b.notes) == 6


@virtual
async def test_pending_edits_of_a_collection_that_is_not_open_are_counted_and_wait(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        async with cut_off(memory_relay):
            await a.notes.put("x", Note("waits"))
        memory_relay.stop()
    memory_relay.start()
    async with open_device("device 0") as device:
        vault = device.vaults[0]
        await vault.known()
        assert (await vault.status()).pending == 1
        await notes_of(vault)
        await vault.synced()
        assert records(memory_relay, vault) == 1
