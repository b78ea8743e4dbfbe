"""The public API behaves alike on trio, on asyncio and in plain programs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from sealwire_client import (
    EncodingError,
    InviteRefusedError,
    KeyringError,
    OfflineError,
    ReplicaClosedError,
    ReplicaMisuse,
    Role,
    State,
    StrictError,
    TransactionError,
    UnsentError,
    VaultGoneError,
    Verdict,
    latest,
    strict,
)
from sealwire_client import (
    Place as Stands,
)
from sealwire_client.device import NoRelayError
from sealwire_client.invites import InviteError
from sealwire_client.keystore import KeystoreError
from sealwire_client.replica import Kind, QueryError, ReplicaInUseError
from sealwire_client.transport import InsecureOriginError
from tests.client.hosts.hosts import Place, on_all_hosts

NOWHERE = "ws://127.0.0.1:9"
"""Nobody listens there."""


@dataclass(frozen=True)
class Todo:
    """What is to be done."""

    text: str
    times: int = 0


class OwnError(Exception):
    """What an app raises."""


@asynccontextmanager
async def todos(place: Place, name: str = "a", **kwargs: Any) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A device with a vault and a collection."""
    async with place.open(name, **kwargs) as device:
        home = await device.create_vault("home")
        yield device, home, await home.collection("todos", Todo, policy=latest())


async def joined(place: Place, device: Any, vault: Any, role: Role = Role.WRITER) -> Any:
    """The vault on another device, which was invited."""
    invite = await vault.invite(role=role)

    async def join() -> None:
        found.append(await device.join(invite.link, device_name="another"))

    found: list[Any] = []
    await place.host.both(invite.joined, join)
    return found[0]


# --- devices and vaults


@on_all_hosts
async def test_what_was_put_is_there_when_a_device_is_opened_again(place: Place) -> None:
    async with todos(place) as (device, home, notes):
        await notes.put("x", Todo("kept"))
        key, name = device.key, home.id
        assert device.folder == place.folder / "a"
        assert (device.repaired, device.incomplete, device.awaited) == (None, None, {})
    async with place.open() as device:
        (home,) = device.vaults
        assert (device.key, home.id, home.name, home.origin) == (key, name, "home", place.origin)
        notes = await home.collection("todos", Todo, policy=latest())
        assert notes.get("x") == Todo("kept")


@on_all_hosts
async def test_a_vault_is_found_by_its_name(place: Place) -> None:
    async with todos(place) as (device, home, _):
        assert device.vault("home") == device.vault(home.id.hex()[:8]) == home
        assert len({home, device.vault("home")}) == 1
        with pytest.raises(LookupError, match="no vault 'away'"):
            device.vault("away")


@on_all_hosts
async def test_a_device_that_cannot_be_opened_says_why(place: Place) -> None:
    async with place.open():
        with pytest.raises(ReplicaInUseError):
            async with place.open():
                pass
    with pytest.raises(InsecureOriginError):
        async with place.open("b", relay="ws://example.org"):
            pass
    async with place.open("c", passphrase="right"):
        pass
    with pytest.raises(KeystoreError):
        async with place.open("c", passphrase="wrong"):
            pass


@on_all_hosts
async def test_an_error_leaves_the_block_as_it_is_and_the_device_is_closed(place: Place) -> None:
    for _ in range(2):
        with pytest.raises(OwnError):
            async with place.open():
                raise OwnError


@on_all_hosts
async def test_a_vault_needs_a_relay(place: Place) -> None:
    async with place.open(relay=None) as device:
        with pytest.raises(NoRelayError):
            await device.create_vault("home")


@on_all_hosts
async def test_when_the_device_is_closed_nothing_is_done_any_more(place: Place) -> None:
    async with todos(place) as (device, home, notes):
        await notes.put("x", Todo("kept"))
    assert (home.name, notes.name) == ("home", "todos")
    with pytest.raises(ReplicaClosedError):
        await notes.put("y", Todo("lost"))
    with pytest.raises(ReplicaClosedError):
        notes.get("x")
    with pytest.raises(ReplicaClosedError):
        home.select("SELECT * FROM todos")
    with pytest.raises(ReplicaClosedError):
        await device.create_vault("another")


# --- collections


@on_all_hosts
async def test_entries_are_put_read_and_deleted(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (_, home, notes):
        assert (notes.name, notes.is_strict, notes.newer()) == ("todos", False, [])
        await notes.put("b", Todo("second"))
        assert await notes.put_many({"a": Todo("first"), "c": Todo("third")}) == 2
        assert await notes.put_many((f"many {number}", Todo("of them", number)) for number in range(30_000)) == 30_000
        assert await notes.put_many([]) == 0
        assert list(notes.items("many 29999")) == [("many 29999", Todo("of them", 29_999))]
        assert [key for key, _ in notes.items()][:3] == ["a", "b", "c"]
        assert (notes.get("a"), notes.get("none"), len(notes)) == (Todo("first"), None, 30_003)
        assert ("a" in notes, "none" in notes, 7 in notes) == (True, False, False)
        await notes.delete("a")
        assert "a" not in notes
        assert await home.collections() == ["todos"]
        assert (await home.policy_of("todos"), await home.is_signed("todos")) == ("latest", False)


@on_all_hosts
async def test_what_cannot_be_put_is_refused_before_anything_happens(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (_, home, notes):
        with pytest.raises(EncodingError):
            await notes.put("x", "no todo")
        with pytest.raises(EncodingError):
            await notes.put(7, Todo("a key that is no text"))
        with pytest.raises(EncodingError):
            await notes.put_many([("x", Todo("good")), ("y", "bad")])
        assert len(notes) == 0
        with pytest.raises(ReplicaMisuse, match="open already"):
            await home.collection("todos", dict, policy=latest())
        assert await home.collection("todos", Todo, policy=latest()) == notes


@on_all_hosts
async def test_sql_reads_collections(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (_, home, notes):
        await notes.put_many([("a", Todo("x", 2)), ("b", Todo("x", 3))])
        counters = await home.counters("hits")
        await counters.add("a", 5)
        found = home.select("SELECT text, sum(times) AS total FROM todos WHERE times > ? GROUP BY text", [1])
        assert (found.columns, found.rows) == (("text", "total"), [("x", 5)])
        assert home.select("SELECT times + value FROM todos JOIN hits USING (key)").rows == [(7,)]
        with pytest.raises(QueryError):
            home.select("DELETE FROM todos")
        with pytest.raises(QueryError):
            home.select("SELECT nothing FROM nowhere")
        assert len(notes) == 2


@on_all_hosts
async def test_counters_count(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (_, home, _):
        hits = await home.counters("hits")
        await hits.add("page")
        await hits.add("page", 4)
        assert (hits.name, hits.get("page"), hits.mine("page"), hits.get("none"), len(hits)) == ("hits", 5, 5, 0, 1)
        async with hits.watch("page") as watched:
            assert (await anext(watched)).values == {"page": 5}
        assert (list(hits.items()), "page" in hits, "none" in hits) == ([("page", 5)], True, False)
        await hits.reset("page")
        assert hits.get("page") == 0
        with pytest.raises(EncodingError):
            await hits.add("page", 1.5)


# --- transactions


@on_all_hosts
async def test_a_transaction_sees_its_own_edits_and_is_made_as_one(place: Place) -> None:
    async with todos(place) as (_, home, notes):
        hits = await home.counters("hits")
        async with home.transaction() as made:
            await notes.put("x", Todo("within"))
            write = await notes.put_many([("y", Todo("within, too"))])
            await hits.add("page", 2)
            await hits.add("page", 3)
            assert (notes.get("x"), notes.get("y"), hits.get("page")) == (Todo("within"), Todo("within, too"), 5)
            await notes.delete("x")
            assert (notes.get("x"), "y" in notes, len(notes), made.is_open) == (None, True, 0, True)
            with pytest.raises(TransactionError):
                await made.durable()
        assert (write, made.is_open) == (1, False)
        assert ([key for key, _ in notes.items()], hits.get("page")) == (["y"], 5)
        assert (await made.durable()).place is Stands.RELAY
        assert (await made.write.durable(wait=False)).place is Stands.RELAY


@on_all_hosts
async def test_an_error_in_a_transaction_makes_none_of_it(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (_, home, notes):
        await notes.put("x", Todo("before"))

        async def fail() -> None:
            async with home.transaction():
                await notes.put("x", Todo("never"))
                await notes.delete("x")
                raise OwnError

        with pytest.raises(OwnError):
            await fail()
        assert notes.get("x") == Todo("before")
        await notes.put("x", Todo("after"))
        assert notes.get("x") == Todo("after")


@on_all_hosts
async def test_a_transaction_holds_for_its_own_vault_and_within_no_other(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (device, home, notes):
        away = await device.create_vault("away")
        others = await away.collection("todos", Todo, policy=latest())
        async with home.transaction():
            await notes.put("x", Todo("here"))
            with pytest.raises(TransactionError, match="another"):
                await others.put("x", Todo("there"))
            with pytest.raises(TransactionError, match="another"):
                others.get("x")
            with pytest.raises(TransactionError, match="within another"):
                async with away.transaction():
                    pass
        assert (len(notes), len(others)) == (1, 0)


# --- the relay


@on_all_hosts
async def test_what_is_put_is_sent(place: Place) -> None:
    async with todos(place) as (_, home, notes):
        assert await home.known()
        write = await notes.put("x", Todo("sent"))
        assert (await write.durable()).place is Stands.RELAY
        await home.synced()
        status = await home.status()
        assert (status.state, status.pending, home.is_known, home.over) == (State.SYNCED, 0, True, None)
        assert await home.stuck() == []
        assert not await home.retry("todos", "x")
        assert not await home.discard("todos", "x")
        assert await home.dismiss() == 0


@on_all_hosts
async def test_without_a_relay_things_wait_and_say_so(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (device, home, notes):
        write = await notes.put("x", Todo("waiting"))
        assert (await write.durable(wait=False)).place is Stands.DEVICE
        status = await home.status()
        assert (status.state in {State.OFFLINE, State.CONNECTING}, status.pending) == (True, 1)
        accounts = await home.collection("accounts", Todo, policy=strict())
        assert accounts.is_strict
        with pytest.raises(OfflineError):
            await accounts.put("a", Todo("not made"))
        assert accounts.get("a") is None
        with pytest.raises(UnsentError) as caught:
            await device.forget(home, without_relay=True)
        assert caught.value.count == 1
        await device.forget(home, discard=True, without_relay=True)
        assert device.vaults == []
        with pytest.raises(VaultGoneError):
            notes.get("x")
        with pytest.raises(VaultGoneError):
            await notes.put("x", Todo("too late"))


@on_all_hosts
async def test_strict_writes_are_made_or_refused(place: Place) -> None:
    async with place.open() as device, place.open("b") as other:
        home = await device.create_vault("home")
        accounts = await home.collection("accounts", Todo, policy=strict())
        await home.synced()
        await accounts.put("a", Todo("made", 1))
        assert accounts.get("a") == Todo("made", 1)
        there = await joined(place, other, home, Role.READER)
        seen = await there.collection("accounts", Todo, policy=strict())
        await there.synced()
        assert seen.get("a") == Todo("made", 1)
        with pytest.raises(StrictError):
            await seen.put("a", Todo("a reader's"))
        async with home.transaction():
            found = accounts.get("a")
            await accounts.put("a", Todo("made", found.times + 1))
        assert accounts.get("a") == Todo("made", 2)


@on_all_hosts
async def test_two_devices_share_a_vault(place: Place) -> None:
    async with todos(place) as (_, home, notes), place.open("b") as other:
        await notes.put("x", Todo("shared"))
        there = await joined(place, other, home)
        assert (there.id, there.name, len(home.members), there.head) == (home.id, "home", 2, home.head)
        assert [member.name for member in there.members if member.is_this] == ["another"]
        copies = await there.collection("todos", Todo, policy=latest())
        await there.synced()
        assert copies.get("x") == Todo("shared")
        with pytest.raises(KeyringError):
            await there.invite()
        await home.remove(other.key)
        assert len(home.members) == 1


@on_all_hosts
async def test_what_changes_is_told(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (device, home, notes):
        with notes.changes() as changes:
            await notes.put("x", Todo("new"))
            assert [tuple(change) for change in await anext(changes)] == [("x", Kind.INSERTED)]
            await notes.put("x", Todo("newer"))
            await notes.delete("x")
            told = [tuple(change) async for changed in _some(changes, 2) for change in changed]
            assert told == [("x", Kind.UPDATED), ("x", Kind.DELETED)]
            await device.forget(home, discard=True, without_relay=True)
            with pytest.raises(StopAsyncIteration):
                await anext(changes)


@on_all_hosts
async def test_a_querys_result_is_kept_up_to_date(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (_, home, notes):
        await notes.put_many([("a", Todo("x", 1)), ("b", Todo("y", 2))])
        assert [key for key, _ in notes.where(text="x", order_by="times", limit=5)] == ["a"]
        with pytest.raises(QueryError):
            notes.where(nothing=1)
        async with home.live("SELECT key, times FROM todos WHERE times > ?", [1]) as live:
            assert list((await anext(live)).rows) == [("b", 2)]
            await notes.put("c", Todo("z", 3))
            assert [each.row for each in (await anext(live)).inserted] == [("c", 3)]
        with pytest.raises(QueryError):
            async with home.live("SELECT nothing FROM nowhere"):
                pass
        async with notes.watch(prefix="b") as watched:
            assert (await anext(watched)).values == {"b": Todo("y", 2)}
            await notes.delete("b")
            assert (await anext(watched)).deleted == ("b",)
        async with notes.watch("a") as watched:
            assert (await anext(watched)).values == {"a": Todo("x", 1)}


async def _some(changes: Any, count: int) -> AsyncIterator[Any]:
    """So many changes, which may come together."""
    while count > 0:
        changed = await anext(changes)
        count -= len(changed)
        yield changed


@on_all_hosts
async def test_who_waits_for_changes_hears_of_those_made_elsewhere(place: Place) -> None:
    async with todos(place, relay=NOWHERE) as (_, _, notes):
        heard: list[str] = []

        async def listen() -> None:
            async for changed in changes:
                heard.extend(change.key for change in changed)
                if "last" in heard:
                    return

        async def write() -> None:
            for key in ("first", "last"):
                await notes.put(key, Todo("told"))

        with notes.changes() as changes:
            await place.host.both(listen, write)
        assert heard == ["first", "last"]


@on_all_hosts
async def test_people_compare_codes(place: Place) -> None:
    async with todos(place) as (_, home, _), place.open("b") as other:
        for same in (False, True):
            invite = await home.invite(confirm=True)
            shown: list[str] = []
            asked: list[str] = []

            def agree(code: str, name: str, same: bool = same, asked: list[str] = asked) -> bool:
                asked.append(f"{code} {name}")
                return same

            async def agreed(code: str, name: str) -> bool:
                return agree(code, name)

            async def approve() -> None:
                if same:  # noqa: B023
                    await invite.joined(asking)  # noqa: B023
                else:
                    with pytest.raises(InviteRefusedError):
                        await invite.joined(asking)  # noqa: B023

            async def join() -> None:
                if same:  # noqa: B023
                    await other.join(invite.link, device_name="other", show_code=shown.append)  # noqa: B023
                else:
                    with pytest.raises(InviteError):
                        await other.join(invite.link, device_name="other", show_code=shown.append)  # noqa: B023

            asking = agree if type(home).__name__ == "_Awaited" else agreed
            await place.host.both(approve, join)
            assert asked == [f"{shown[0]} other"]
            assert len(other.vaults) == same


@on_all_hosts
async def test_another_device_of_the_same_person_gets_all_vaults(place: Place) -> None:
    async with todos(place) as (device, home, _), place.open("b") as other:
        away = await device.create_vault("away")
        await home.synced()
        await away.synced()
        invite = await device.invite()
        assert (invite.link.startswith("sealwire"), len(invite.qr_lines()) > 10) == (True, True)
        assert invite.qr_png().startswith(b"\x89PNG")
        members: list[Any] = []

        async def approve() -> None:
            members.append(await invite.joined())

        async def join() -> None:
            await other.join(invite.link)
            while other.awaited:
                await other.another_vault()

        await place.host.both(approve, join)
        assert {vault.id for vault in other.vaults} == {home.id, away.id} == set(members[0].vaults)


@on_all_hosts
async def test_recovery_words_bring_a_vault_back(place: Place) -> None:
    async with todos(place) as (_, home, notes):
        await notes.put("x", Todo("saved"))
        await home.synced()
        words = (await home.recovery_words()).reveal()
    async with place.open("empty") as device:
        home = await device.recover(words)
        notes = await home.collection("todos", Todo, policy=latest())
        await home.synced()
        assert notes.get("x") == Todo("saved")
        await home.rotate()
        await home.delete()
        assert home.over is not None
        await device.forget(home)
        assert device.vaults == []


@on_all_hosts
async def test_a_device_compares_itself_with_its_relay(place: Place) -> None:
    async with todos(place) as (device, home, notes):
        await notes.put("x", Todo("both have it"))
        await home.synced()
        assert (await device.examine()).verdict is Verdict.IN_SYNC
        assert (await device.examine(home, repair=True, patience_seconds=60)).verdict is Verdict.IN_SYNC


@on_all_hosts
async def test_a_device_is_suspended_and_resumed(place: Place) -> None:
    async with todos(place) as (device, home, notes):
        await home.synced()
        await device.suspend()
        write = await notes.put("x", Todo("kept"))
        device.wake()
        device.network_changed()
        assert (await home.status()).state is State.OFFLINE
        assert notes.get("x") == Todo("kept")
        device.resume()
        assert (await write.durable()).place is Stands.RELAY
        device.network_changed()
        device.wake()
        await home.synced()


@on_all_hosts
async def test_a_device_leaves_a_vault(place: Place) -> None:
    async with todos(place) as (_, home, _), place.open("b") as other:
        there = await joined(place, other, home, Role.ADMIN)
        await there.leave()
        assert other.vaults == []
