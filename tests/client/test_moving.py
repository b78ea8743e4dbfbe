"""A vault moves to another relay, and its devices follow (R18)."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client import moving
from sealwire_client.device import Device
from sealwire_client.invites import InviteError
from sealwire_client.keyring import KeyringError
from sealwire_client.link import Dialler, RelayRefusedError
from sealwire_client.moving import MoveError
from sealwire_client.policies import merge, strict
from sealwire_client.recovery import RecoveryError
from sealwire_client.sending import StrictError
from sealwire_client.testing import MemoryRelay, fitting_writer
from sealwire_client.testing.log import MemoryLog
from sealwire_client.testing.stream import Stream
from sealwire_client.transport import InsecureOriginError, Transport, TransportError
from sealwire_client.vault import Vault
from sealwire_protocol.ids import MEMBERSHIP, VaultId
from sealwire_protocol.links import Role
from sealwire_protocol.messages import AppendLink, CreateVault, Message, Push
from sealwire_protocol.registration import SIGNATURE_BYTES, Token, encode_token, token_text
from tests.client.party import (
    Guest,
    Note,
    asked_of,
    comes,
    founded,
    in_step,
    joined,
    notes_of,
    party,
    records,
    returned,
    told,
)
from tests.support.virtual import virtual

OLD, NEW = "wss://old.test", "wss://new.test"


class Relays:
    """Several relays, each found under its own name. `kept_out`: devices that do not find the old one."""

    def __init__(self, *origins: str) -> None:
        self.by_origin = {origin: MemoryRelay(origin) for origin in origins}
        self.kept_out: set[str] = set()

    def __getitem__(self, origin: str) -> MemoryRelay:
        return self.by_origin[origin]

    def dialler(self, name: str) -> Dialler:
        """How this device finds them."""

        @asynccontextmanager
        async def dial(origin: str) -> AsyncIterator[Transport]:
            if origin == OLD and name in self.kept_out:
                raise TransportError("this device does not find the old relay")
            async with self.by_origin[origin].dial(origin) as transport:
                yield transport

        return dial

    @contextmanager
    def kept_from_old(self, *names: str) -> Iterator[None]:
        """For the length of the block these do not find the old relay."""
        self.kept_out.update(names)
        self[OLD].cut()
        try:
            yield
        finally:
            self.kept_out.clear()


@pytest.fixture
def relays() -> Relays:
    return Relays(OLD, NEW)


class Opens:
    """Opens devices by name, each time the same."""

    def __init__(self, folder: Path, relays: Relays) -> None:
        self.folder, self._relays = folder, relays

    def __call__(self, name: str) -> AbstractAsyncContextManager[Device]:
        return Device.open(self.folder / name, relay=OLD, dialler=self._relays.dialler(name), writer=fitting_writer)


@pytest.fixture
def opens(tmp_path: Path, relays: Relays) -> Opens:
    return Opens(tmp_path, relays)


@virtual
async def test_a_vault_moves_and_its_devices_follow(opens: Opens, relays: Relays) -> None:
    async with party(opens, 3) as found:
        host, other, third = found
        await host.notes.put("a", Note("one"))
        await other.notes.put("b", Note("two"))
        await in_step(found)
        await host.vault.move(NEW)
        assert host.vault.origin == NEW
        await comes(lambda: {guest.vault.origin for guest in found} == {NEW})
        await in_step(found)
        before = records(relays[OLD], host.vault)
        await third.notes.put("c", Note("three"))
        await in_step(found)
        assert host.dump() == {"a": "one", "b": "two", "c": "three"}
        assert records(relays[NEW], host.vault) >= 3
        assert records(relays[OLD], host.vault) == before
        assert host.device.link(NEW).idle is False


@virtual
async def test_what_was_edited_and_deleted_without_the_relay_arrives_whoever_comes_late(
    opens: Opens, relays: Relays
) -> None:
    async with party(opens) as (host, other):
        for key in ("kept", "deleted before", "deleted after", "deleted late"):
            await host.notes.put(key, Note(key))
        await in_step([host, other])
    async with opens("device 0") as device:
        host = await returned(device)
        await host.notes.delete("deleted before")
        await host.vault.move(NEW)
        await host.notes.delete("deleted after")
        await host.notes.put("new", Note("new"))
        await host.vault.synced()
    relays[OLD].stop()
    async with opens("device 1") as device:  # it does not hear of the move yet
        other = await returned(device)
        await other.notes.put("late", Note("late"))
        await other.notes.delete("deleted late")
        assert other.vault.origin == OLD
    relays[OLD].start()
    async with party(opens) as found:
        await comes(lambda: {guest.vault.origin for guest in found} == {NEW})
        await in_step(found)
        assert found[0].dump() == {"kept": "kept", "new": "new", "late": "late"}
        assert relays[OLD].log.vaults[found[0].vault.id].moved


@virtual
async def test_a_deletion_that_the_old_relay_has_purged_stays_one(opens: Opens, relays: Relays) -> None:
    async with party(opens) as (host, other):
        for key in ("a", "b"):
            await host.notes.put(key, Note(key))
        await in_step([host, other])
    async with opens("device 0") as device:
        host = await returned(device)
        await host.notes.delete("a")
        await host.vault.synced()
        relays[OLD].purge()
        await host.notes.put("c", Note("c"))
        await host.vault.synced()  # it has forgotten the deletion too
        await host.vault.move(NEW)
    async with party(opens) as found:  # the other one finishes at the old relay, and honours the floor there
        await comes(lambda: {guest.vault.origin for guest in found} == {NEW})
        await in_step(found)
        assert found[1].dump() == {"b": "b", "c": "c"}


@virtual
async def test_collections_of_every_policy_move(opens: Opens, relays: Relays) -> None:
    async with party(opens) as found:
        sets = [
            (
                await guest.vault.collection("merged", Note, policy=merge()),
                await guest.vault.collection("strict", Note, policy=strict()),
                await guest.vault.counters("counted"),
            )
            for guest in found
        ]
        (merged, strictly, counted), (other_merged, other_strictly, other_counted) = sets
        await merged.put("m", Note("one", 1))
        await strictly.put("s", Note("one"))
        await counted.add("c", 3)
        await in_step(found)
        await other_counted.add("c", 4)
        await found[0].vault.move(NEW)
        await comes(lambda: found[1].vault.origin == NEW)
        await in_step(found)
        async with cut_off_all(relays):
            await merged.put("m", Note("two", 1))
            await other_merged.put("m", Note("one", 2))
        await in_step(found)
        assert merged.get("m") == other_merged.get("m") == Note("two", 2)
        await other_strictly.put("s", Note("two"))
        await other_counted.add("c", 5)
        await in_step(found)
        assert strictly.get("s") == Note("two")
        assert counted.get("c") == other_counted.get("c") == 12


@asynccontextmanager
async def cut_off_all(relays: Relays) -> AsyncIterator[None]:
    for relay in relays.by_origin.values():
        relay.stop()
    await trio.testing.wait_all_tasks_blocked()
    try:
        yield
    finally:
        for relay in relays.by_origin.values():
            relay.start()


@pytest.mark.parametrize("strictly", [False, True])
@pytest.mark.parametrize("committed", [True, False])
@virtual
async def test_a_batch_without_a_verdict_gets_one_before_the_device_goes_over(
    opens: Opens, relays: Relays, committed: bool, strictly: bool
) -> None:
    old = relays[OLD]
    async with party(opens) as (host, other):
        guarded = await other.vault.collection("guarded", Note, policy=strict() if strictly else merge())
        await other.vault.synced()
        here = await host.vault.collection("guarded", Note, policy=strict() if strictly else merge())
        heard: list[StrictError | None] = []

        async def writes() -> None:
            try:
                await guarded.put("k", Note("sent"))
                heard.append(None)
            except StrictError as error:
                heard.append(error)

        def swallow(message: Message) -> list[Message]:
            if isinstance(message, Push):
                old.mishear = None
                relays.kept_out.add("device 1")
                old.cut()
                return [message] if committed else []
            return [message]

        async with trio.open_nursery() as nursery:
            old.mishear = swallow
            nursery.start_soon(writes)
            await comes(lambda: old.mishear is None)
            with relays.kept_from_old("device 1"):
                await host.vault.move(NEW)
            await comes(lambda: other.vault.origin == NEW)
        await in_step([host, other])
        if strictly and not committed:
            assert isinstance(heard[0], StrictError)
            assert here.get("k") is guarded.get("k") is None
        else:
            assert here.get("k") == guarded.get("k") == Note("sent")
        assert not await other.vault.stuck()


@virtual
async def test_who_may_not_move_a_vault_is_told_so_and_nothing_is_moved(opens: Opens, relays: Relays) -> None:
    async with party(opens) as (host, other):
        for relay, error in ((NEW, KeyringError), (OLD, KeyringError)):
            with pytest.raises(error, match="admin"):
                await other.vault.move(relay)
        with pytest.raises(MoveError, match="already"):
            await host.vault.move(OLD)
        with pytest.raises(InsecureOriginError):
            await host.vault.move("ws://new.test")
        assert not relays[NEW].log.vaults
        relays[NEW].log.tokens = {}
        with pytest.raises(RelayRefusedError, match="token"):
            await host.vault.move(NEW)
        assert (host.vault.origin, relays[OLD].log.vaults[host.vault.id].moved) == (OLD, False)


@virtual
async def test_a_device_that_may_lack_something_does_not_move_the_vault_unless_it_is_told_to(
    opens: Opens, relays: Relays
) -> None:
    async with party(opens) as (host, other):
        await host.notes.put("a", Note("one"))
        await in_step([host, other])
    async with opens("device 0") as device:
        vault = device.vaults[0]
        with pytest.raises(MoveError, match=r"1 of the vault's collections are not open here \(notes\)"):
            await vault.move(NEW)
        await vault.move(NEW, force=True)
    async with party(opens) as found:
        await in_step(found)
        assert found[1].dump() == {"a": "one"}


@virtual
async def test_a_relay_that_wants_a_token_gets_the_mover_s_and_nobody_else_s_old_one(
    opens: Opens, relays: Relays
) -> None:
    token = b"t" * 20
    async with party(opens) as found:
        relays[NEW].log.tokens = {token: 1}
        with asked_of(relays[NEW], CreateVault) as asked:
            await moving.move_vault(
                found[0].vault._sync, found[0].vault._writer, NEW, token, without_old=False, force=False
            )
            await comes(lambda: found[1].vault.origin == NEW)
            await in_step(found)
        assert {message.token for message in asked} <= {token, b""}
        assert relays[NEW].log.tokens == {token: 0}


@virtual
async def test_the_token_of_the_old_relay_is_not_shown_to_the_new_one(opens: Opens, relays: Relays) -> None:
    token = token_text(encode_token(Token(bytes(8), bytes(16), 2**40, 1)) + bytes(SIGNATURE_BYTES))
    async with opens("device 0") as first:
        vault = await first.create_vault("home", token=token)
        await vault.synced()
        async with opens("second") as device:
            invite = await vault.invite(role=Role.ADMIN)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(invite.joined)
                second = await device.join(invite.link)
            await second.move(NEW)
            await comes(lambda: vault.origin == NEW)
            await vault.synced()
        with asked_of(relays[NEW], CreateVault) as asked:
            relays[NEW].restore(MemoryLog())
            await comes(lambda: len(asked) > 0)
            await vault.synced()
        assert asked and not any(message.token for message in asked)


@pytest.mark.parametrize("step", ["link", "gone", "log"])
@virtual
async def test_a_mover_that_dies_on_the_way_is_followed_all_the_same(opens: Opens, relays: Relays, step: str) -> None:
    """After the link at the old relay; after it has gone over; with half of the log at the new one."""
    async with party(opens) as (host, other):
        await host.notes.put("a", Note("one"))
        await in_step([host, other])
    reached = trio.Event()
    if step == "link":
        relays[OLD].alter = lambda message: [] if relays[OLD].log.vaults[vault_id(relays)].moved else [message]
    elif step == "gone":
        relays[NEW].alter = lambda message: [] if relays[OLD].log.vaults[vault_id(relays)].moved else [message]
    else:
        relays[NEW].mishear = lambda message: stop_at(message, relays[NEW], reached)
    async with opens("device 0") as device:
        host = await returned(device)
        with trio.move_on_after(120):
            await host.vault.move(NEW)
            assert step == "never"
    relays[OLD].alter = relays[NEW].alter = relays[NEW].mishear = None
    relays[NEW].start()
    async with opens("device 1") as device:
        other = await returned(device)
        await comes(lambda: other.vault.origin == NEW)
        await other.notes.put("b", Note("two"))
        await other.vault.synced()
        assert other.dump() == {"a": "one", "b": "two"}
    async with party(opens) as found:
        await comes(lambda: found[0].vault.origin == NEW)
        await in_step(found)
        assert found[0].dump() == {"a": "one", "b": "two"}


def vault_id(relays: Relays) -> VaultId:
    return next(iter(relays[OLD].log.vaults))


def stop_at(message: Message, relay: MemoryRelay, reached: trio.Event) -> list[Message]:
    """The new relay takes in the genesis link, and goes away at the next one."""
    if isinstance(message, AppendLink):
        reached.set()
        relay.stop()
        return []
    return [message]


@pytest.mark.parametrize("purged", [False, True])
@virtual
async def test_a_vault_that_comes_back_is_as_it_was_where_it_has_been(
    opens: Opens, relays: Relays, purged: bool
) -> None:
    async with party(opens, 3) as found:
        for key in ("kept", "deleted elsewhere"):
            await found[0].notes.put(key, Note(key))
        await in_step(found)
    async with party(opens, 2) as (host, other):
        await host.vault.move(NEW)
        await comes(lambda: other.vault.origin == NEW)
        await in_step([host, other])
        await other.notes.delete("deleted elsewhere")
        await other.notes.put("made elsewhere", Note("made"))
        await in_step([host, other])
        if purged:
            relays[NEW].purge()
            await other.notes.put("later", Note("later"))
            await other.notes.delete("later")
            await in_step([host, other])
        await host.vault.move(OLD)
        await comes(lambda: other.vault.origin == OLD)
        await other.notes.put("back", Note("back"))
        await in_step([host, other])
        now = {"kept": "kept", "made elsewhere": "made", "back": "back"}
        assert host.dump() == other.dump() == now
        assert not relays[OLD].log.vaults[host.vault.id].moved
        assert relays[NEW].log.vaults[host.vault.id].moved
    async with party(opens, 2) as (host, other):
        invited = await stack_joined(opens, host)
        assert invited == now
    if not purged:  # else it was silent for longer than deletions are kept
        async with party(opens, 3) as found:  # one that has missed all of it
            await in_step(found)
            assert found[2].dump() == now


@virtual
async def test_what_a_relay_still_has_from_before_counts_for_nothing_when_the_vault_comes_back(
    opens: Opens, relays: Relays
) -> None:
    """The old relay gets the links late, so that devices find there what was deleted elsewhere."""
    async with party(opens) as (host, other):
        more = await notes_of(host.vault, "more")
        for notes in (host.notes, more):
            await notes.put("kept", Note("kept"))
            await notes.put("deleted", Note("deleted"))
        await in_step([host, other])
        await host.vault.move(NEW)
        await comes(lambda: other.vault.origin == NEW)
        await in_step([host, other])
        for notes in (host.notes, more):
            await notes.delete("deleted")
        await in_step([host, other])
        relays[NEW].purge()
        for notes in (host.notes, more):
            await notes.put("later", Note("later"))
        await in_step([host, other])
        with asked_of(relays[OLD], AppendLink, swallowed=True), trio.move_on_after(60):
            await host.vault.move(OLD)
        await comes(lambda: other.vault.origin == OLD)
        its = await notes_of(other.vault, "more")
        await trio.sleep(60)
        assert other.dump() == {"kept": "kept", "later": "later"} and not list(its.items())
        relays[OLD].cut()
        await in_step([host, other])
        for notes in (host.notes, other.notes, more, its):
            assert {key: note.text for key, note in notes.items()} == {"kept": "kept", "later": "later"}


async def stack_joined(opens: Opens, host: Guest) -> dict[str, str]:
    async with opens("newcomer") as device:
        guest = await joined(device, host.vault)
        await guest.vault.synced()
        return guest.dump()


@virtual
async def test_the_old_relay_is_gone_and_a_device_is_told_the_address_by_hand(opens: Opens, relays: Relays) -> None:
    async with party(opens) as (host, other):
        await host.notes.put("a", Note("one"))
        await in_step([host, other])
        relays[OLD].stop()
        await host.notes.put("b", Note("two"))
        await other.notes.put("c", Note("three"))
        with pytest.raises(MoveError, match="does not have the vault"):
            await other.device.follow(other.vault, NEW)
        assert other.vault.origin == OLD
        await host.vault.move(NEW, without_old=True)
        assert other.vault.origin == OLD
        await other.device.follow(other.vault, NEW)
        assert other.vault.origin == NEW
        await in_step([host, other])
        assert host.dump() == {"a": "one", "b": "two", "c": "three"}


@virtual
async def test_nobody_follows_to_a_relay_whose_log_does_not_say_that_the_vault_is_there(
    opens: Opens, relays: Relays
) -> None:
    async with party(opens) as (host, other):
        await in_step([host, other])
        relays[NEW].log.vaults = deepcopy(relays[OLD].log.vaults)
        with asked_of(relays[NEW], Push) as pushed:
            with pytest.raises(MoveError, match="does not say that the vault was moved there"):
                await other.device.follow(other.vault, NEW)
            await other.notes.put("a", Note("one"))
            await in_step([host, other])
        assert (other.vault.origin, pushed) == (OLD, [])


@virtual
async def test_an_invite_from_before_the_move_says_what_to_do(opens: Opens, relays: Relays) -> None:
    async with party(opens) as (host, _):
        invite = await host.vault.invite()
        await host.vault.move(NEW)
        async with opens("newcomer") as device:
            with pytest.raises(InviteError, match=f"{NEW}.*new invite"):
                await device.join(invite.link)


@virtual
async def test_recovery_words_at_the_old_relay_are_told_where_the_vault_is(opens: Opens, relays: Relays) -> None:
    async with party(opens) as (host, _):
        words = (await host.vault.recovery_words()).reveal()
        await host.notes.put("a", Note("one"))
        await host.vault.move(NEW)
        await host.vault.synced()
        async with opens("empty") as device:
            with pytest.raises(RecoveryError, match=NEW):
                await device.recover(words)
        folder = opens.folder / "empty"
        async with Device.open(folder, relay=NEW, dialler=relays.dialler("empty"), writer=fitting_writer) as device:
            vault = await device.recover(words)
            await returned(device)
            await vault.synced()
            assert (await returned_notes(vault)) == {"a": "one"}


async def returned_notes(vault: Vault) -> dict[str, str]:
    notes = await notes_of(vault)
    return {key: note.text for key, note in notes.items()}


@virtual
async def test_a_relay_that_withholds_the_link_does_not_keep_its_devices_busy(opens: Opens, relays: Relays) -> None:
    async with party(opens) as (host, other):
        await host.notes.put("kept", Note("kept"))
        await in_step([host, other])
        with relays.kept_from_old("device 1"):
            await host.vault.move(NEW)
        vault = relays[OLD].log.vaults[host.vault.id]
        vault.links, vault.streams[MEMBERSHIP] = vault.links[:-1], shortened(vault.streams[MEMBERSHIP])
        with asked_of(relays[OLD], Push) as pushed:
            await other.notes.put("a", Note("one"))
            await trio.sleep(600)
        assert 0 < len(pushed) < 600
        await told(other, "at another relay")
        assert other.dump() == {"kept": "kept", "a": "one"} and other.vault.origin == OLD


def shortened(log: Stream) -> Stream:
    """Without its last link."""
    log.segments.pop()
    log.head -= 1
    return log


@virtual
async def test_of_two_who_move_a_vault_at_once_one_does(opens: Opens, relays: Relays) -> None:
    relays.by_origin["wss://third.test"] = MemoryRelay("wss://third.test")
    async with opens("device 0") as first, opens("second") as device:
        host = await founded(first)
        await host.vault.synced()
        invite = await host.vault.invite(role=Role.ADMIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            vault = await device.join(invite.link)
        other = Guest(device, vault, await notes_of(vault))
        await host.notes.put("a", Note("one"))
        await in_step([host, other])
        errors = []

        async def moves(guest: Guest, relay: str) -> None:
            try:
                await guest.vault.move(relay)
            except MoveError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(moves, host, NEW)
            nursery.start_soon(moves, other, "wss://third.test")
        assert len(errors) == 1 and "another admin" in str(errors[0])
        await comes(lambda: host.vault.origin == other.vault.origin != OLD)
        await in_step([host, other])
        assert host.dump() == other.dump() == {"a": "one"}


@virtual
async def test_a_device_that_was_removed_before_the_move_comes_back_by_an_invite_from_after_it(
    opens: Opens, relays: Relays
) -> None:
    async with party(opens) as (host, other):
        await host.notes.put("a", Note("one"))
        await in_step([host, other])
        await host.vault.remove(other.device.key)
        await told(other, "removed")
        await other.notes.put("b", Note("kept"))
        await host.vault.move(NEW)
        invite = await host.vault.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            await other.device.join(invite.link)
        assert other.vault.origin == NEW
        await in_step([host, other])
        assert host.dump() == {"a": "one", "b": "kept"}
