"""Copied and restored folders: every copy takes new keys, loses nothing, and sends nothing twice (R16)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client import keystore
from sealwire_client.device import KEYSTORE_NAME
from sealwire_client.enrolment import Enrolment
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keystore import KeystoreError
from sealwire_client.link import RelayRefusedError
from sealwire_client.linkmaking import replace_device_link
from sealwire_client.policies import merge
from sealwire_client.replica.vaults import Vaults
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.log import OUTCOMES_KEPT
from sealwire_protocol.ids import MEMBERSHIP
from sealwire_protocol.limits import REPLACEMENTS_MAX
from sealwire_protocol.links import LINK_CONTEXT, LinkType, Role, decode_link, encode_links
from sealwire_protocol.messages import AppendLink, Deliver, Done, Message, Pushed
from tests.client.party import (
    Guest,
    Note,
    appended_twice,
    comes,
    founded,
    in_step,
    joined,
    lying,
    notes_of,
    party,
    records,
    returned,
    told,
)
from tests.support.virtual import pass_time, virtual


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `open_device` keeps its devices."""
    return tmp_path


def copied(folder: Path, name: str, copy: str) -> None:
    """Copy a device's folder, as a backup program does while no program has it open."""
    shutil.copytree(folder / name, folder / copy)


def restored(folder: Path, backup: str, name: str) -> None:
    """Put a copy made before in a device's place."""
    shutil.rmtree(folder / name)
    copied(folder, backup, name)


def roles(relay: MemoryRelay, guest: Guest) -> list[Role]:
    """The members' roles in the relay's log, in order."""
    return [member.role for member in relay.log.vaults[guest.vault.id].membership.members.values()]


def kinds(relay: MemoryRelay, guest: Guest) -> list[LinkType]:
    """What the links of the relay's log are."""
    return [decode_link(raw).type for raw in relay.log.vaults[guest.vault.id].links]


def author(guest: Guest) -> int:
    """As which member a device writes."""
    return guest.vault._sync.held.author


async def made(open_device: OpenDevice, *edits: tuple[str, str]) -> None:
    """A vault of two devices, with entries that both have."""
    async with party(open_device) as guests:
        for key, text in edits:
            await guests[0].notes.put(key, Note(text))
        await in_step(guests)


R, A, W = Role.REPLACED, Role.ADMIN, Role.WRITER


@virtual
async def test_two_copies_of_a_folder_both_edit_and_both_keep_everything(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    await made(open_device, ("x", "before"))
    copied(folder, "device 0", "copy")
    async with open_device("device 0") as one, open_device("copy") as two, open_device("device 1") as three:
        guests = [await returned(device) for device in (one, two, three)]
        for round_ in range(3):
            for number, guest in enumerate(guests):
                await guest.notes.put(f"{number} {round_}", Note(f"by {number}"))
                await guest.notes.put("x", Note(f"by {number} in {round_}"))
            await in_step(guests)
        assert len(guests[0].dump()) == 1 + 9
        await comes(lambda: roles(memory_relay, guests[0]) == [R, W, A, A])
        await in_step(guests)
        assert len({author(guest) for guest in guests}) == 3
        assert len({device.key for device in (one, two, three)}) == 3
        assert (await guests[0].vault.status()).members == 3
        await guests[0].vault.known()
        async with open_device("fourth") as fourth:
            assert (await joined(fourth, guests[1].vault)).vault.id == guests[0].vault.id
    assert appended_twice(memory_relay) == []
    assert [len(keystore.load_all(folder / name / KEYSTORE_NAME)) for name in ("device 0", "copy")] == [2, 2]
    for name in ("device 0", "copy"):
        async with open_device(name) as device:
            assert len((await returned(device)).dump()) == 10
        assert len(keystore.load_all(folder / name / KEYSTORE_NAME)) == 1


@virtual
async def test_edits_of_two_copies_to_one_guarded_entry_are_merged(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    async with party(open_device) as guests:
        plans = [await guest.vault.collection("plans", Note, policy=merge()) for guest in guests]
        await plans[0].put("x", Note("before"))
        await in_step(guests)
    copied(folder, "device 0", "copy")
    memory_relay.stop()
    async with open_device("device 0") as one, open_device("copy") as two, open_device("device 1") as three:
        guests = [await returned(device) for device in (one, two, three)]
        plans = [await guest.vault.collection("plans", Note, policy=merge()) for guest in guests]
        await plans[0].put("x", Note("by one"))
        await plans[1].put("x", Note("before", 2))
        async with guests[1].vault.transaction():
            await plans[1].put("y", Note("together"))
            await guests[1].notes.put("y", Note("together"))
        memory_relay.start()
        await comes(lambda: all(plan.get("x") == Note("by one", 2) for plan in plans))
        await comes(lambda: Role.REPLACED in roles(memory_relay, guests[0]))
        await in_step(guests)
        assert all(plan.get("y") == Note("together") for plan in [*plans, guests[0].notes])
    assert appended_twice(memory_relay) == []


@virtual
async def test_a_copy_that_never_writes_takes_new_keys_when_another_has(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    await made(open_device)
    copied(folder, "device 1", "copy")
    async with open_device("device 1") as one, open_device("copy") as two:
        a, b = await returned(one), await returned(two)
        await a.notes.put("x", Note("one"))
        await in_step([a])
        await b.notes.put("y", Note("two"))
        await comes(lambda: roles(memory_relay, a) == [A, R, W, W])
        await in_step([a, b])
        assert a.dump() == {"x": "one", "y": "two"}
        assert (await a.vault.status()).last_error is None


@virtual
async def test_a_restored_folder_invites_with_its_new_keys(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    await made(open_device)
    copied(folder, "device 0", "backup")
    async with party(open_device) as guests:
        await guests[0].notes.put("x", Note("later"))
        await in_step(guests)
    restored(folder, "backup", "device 0")
    async with open_device("device 0") as device, open_device("new") as new:
        guest = await returned(device)
        await guest.vault.known()
        invite = await guest.vault.invite()
        assert roles(memory_relay, guest)[0] is Role.REPLACED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            assert (await new.join(invite.link)).id == guest.vault.id


@virtual
async def test_a_restored_folder_is_told_before_it_sends_anything(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    await made(open_device)
    copied(folder, "device 1", "backup")
    async with party(open_device) as guests:
        for number in range(5):
            await guests[1].notes.put(f"{number}", Note("later"))
            await in_step(guests)
    restored(folder, "backup", "device 1")
    outcomes: list[Message] = []

    def watch(message: Message) -> list[Message]:
        outcomes.append(message)
        return [message]

    async with party(open_device) as guests:
        with lying(memory_relay, watch):
            await guests[1].notes.put("x", Note("new"))
            await comes(lambda: roles(memory_relay, guests[0]) == [A, R, W])
            await in_step(guests)
        assert {m.outcome.name for m in outcomes if isinstance(m, Pushed)} == {"DONE"}
        assert guests[0].dump() == {f"{number}": "later" for number in range(5)} | {"x": "new"}
    assert appended_twice(memory_relay) == []


@contextmanager
def silent(relay: MemoryRelay) -> Iterator[None]:
    """For the length of the block nobody hears what became of a push."""
    with lying(relay, lambda message: [] if isinstance(message, Pushed | Deliver) else [message]):
        yield


@pytest.mark.parametrize("later", [0, 3, OUTCOMES_KEPT + 10])
def test_unanswered_batches_of_a_backup_are_found_in_the_log_and_not_sent_twice(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path, later: int
) -> None:
    """`later`: batches of the device's former life that came after; the last case is beyond the outcomes kept."""

    @virtual
    async def test() -> None:
        await made(open_device)
        async with open_device("device 1") as device:
            b = await returned(device)
            await b.vault.synced()
            with silent(memory_relay):
                await b.notes.put_many([("x", Note("mine")), ("y", Note("mine"))])
                await trio.testing.wait_all_tasks_blocked()
                await b.notes.put("z", Note("mine"))
                await trio.testing.wait_all_tasks_blocked()
                memory_relay.stop()
                await trio.testing.wait_all_tasks_blocked()
        copied(folder, "device 1", "backup")
        memory_relay.start()
        async with party(open_device) as guests:
            a, b = guests
            await in_step(guests)
            await a.notes.put("y", Note("theirs"))
            await in_step(guests)
            for number in range(later):
                await b.notes.put("more", Note(f"{number}"))
                await b.vault.synced()
            await in_step(guests)
            expected, before = a.dump(), records(memory_relay, a.vault)
        restored(folder, "backup", "device 1")
        async with party(open_device) as guests:
            a, b = guests
            await in_step(guests)
            assert b.dump() == expected
            assert expected["x"] == expected["z"] == "mine" and expected["y"] == "theirs"
            await comes(lambda: (R in roles(memory_relay, a)) == bool(later))
            await b.notes.put("new", Note("life"))
            await in_step(guests)
            assert a.dump() == expected | {"new": "life"}
        assert appended_twice(memory_relay) == []
        assert records(memory_relay, a.vault) == before + 1

    test()


@virtual
async def test_a_copy_whose_unsent_batch_came_too_late_sends_it_anew(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    """Its number is used up and forgotten, but what it holds was never sent."""
    await made(open_device, ("x", "before"), ("y", "before"))
    copied(folder, "device 1", "copy")
    async with open_device("copy") as device:
        c = await returned(device)
        await c.vault.synced()
        await sealed_and_unsent(memory_relay, c, ("x", "by the copy"), ("y", "by the copy"))
    async with party(open_device) as guests:
        a, b = guests
        for number in range(OUTCOMES_KEPT + 3):
            await b.notes.put("more", Note(f"{number}"))
            await b.vault.synced()
        await b.notes.put("y", Note("later"))
        await b.vault.synced()
        async with open_device("copy") as device:
            c = await returned(device)
            await comes(lambda: R in roles(memory_relay, a))
            await in_step([a, b, c])
            assert c.dump()["x"] == "by the copy", "nobody had written it since"
            assert c.dump()["y"] == "later", "a greater rank stands there"
            assert (await c.vault.status()).pending == (await c.vault.status()).stuck == 0
            await b.notes.put("z", Note("goes on"))
            await comes(lambda: roles(memory_relay, a).count(R) == 1 and roles(memory_relay, a).count(W) == 2)
            await in_step([a, b, c])
    assert appended_twice(memory_relay) == []


async def sealed_and_unsent(relay: MemoryRelay, guest: Guest, *edits: tuple[str, str]) -> None:
    """Leave a device with a sealed batch that the relay never got."""
    log = relay.backup()
    with silent(relay):
        await guest.notes.put_many([(key, Note(text)) for key, text in edits])
        await trio.testing.wait_all_tasks_blocked()
        relay.stop()
    relay.log = log
    await trio.testing.wait_all_tasks_blocked()
    relay.start()


async def writes_until_it_ends(open_device: OpenDevice) -> None:
    """The copy writes, finds that it is one, and goes as far as it is let."""
    async with open_device("copy") as device:
        c = await returned(device)
        await c.notes.put("z", Note("second"))
        await pass_time(3_600)


STEPS = ["keys", "offer", "append", "answer", "links", "go over"]


class Ended(Exception):
    """The device's process was ended here."""


@contextmanager
def ends_at(step: str, relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device ends when it comes to this step of its enrolment, for the length of the block."""

    def ends(*_: object, **__: object) -> None:
        raise Ended

    async def ends_later(*_: object, **__: object) -> None:
        raise Ended

    def unheard(message: Message) -> list[Message]:
        return [] if isinstance(message, Done) else [message]

    with monkeypatch.context() as patch:
        if step == "keys":
            patch.setattr(keystore, "_write", ends)
        elif step == "offer":
            patch.setattr(Enrolment, "offer", lambda self, identity: ends() if self.why else None)
        elif step == "append":
            patch.setattr(Enrolment, "_append", ends_later)
        elif step == "answer":
            relay.alter = unheard
            patch.setattr(relay, "offer", ends)
        elif step == "links":
            patch.setattr(Vaults, "add_links", ends)
        else:
            patch.setattr(Vaults, "enrol", ends)
        yield
        relay.alter = None


@pytest.mark.parametrize("step", STEPS)
def test_a_device_that_was_ended_in_the_midst_goes_on_where_it_stopped(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    @virtual
    async def test() -> None:
        await made(open_device, ("x", "before"))
        copied(folder, "device 1", "copy")
        async with open_device("device 1") as device:
            b = await returned(device)
            await b.notes.put("y", Note("first"))
            await b.vault.synced()
        with ends_at(step, memory_relay, monkeypatch):
            with pytest.raises(Ended):
                await writes_until_it_ends(open_device)
        async with party(open_device) as guests, open_device("copy") as device:
            a, b = guests
            c = await returned(device)
            await comes(lambda: roles(memory_relay, a)[1:3] == [R, W])
            await in_step([a, c])
            await b.notes.put("y", Note("third"))
            await comes(lambda: roles(memory_relay, a) == [A, R, W, W])
            await in_step([a, b, c])
            assert a.dump() == {"x": "before", "y": "third", "z": "second"}
        assert appended_twice(memory_relay) == []

    test()


@virtual
async def test_copies_of_a_folder_on_its_way_to_new_keys_part_all_the_same(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    """Both hold the same new keys, so both go over to them, and then each to its own."""
    await made(open_device)
    keystore.renew(folder / "device 1" / KEYSTORE_NAME)
    copied(folder, "device 1", "copy")
    async with party(open_device) as guests, open_device("copy") as device:
        guests.append(await returned(device))
        await comes(lambda: len(roles(memory_relay, guests[0])) == 3)
        for number, guest in enumerate(guests[1:]):
            await guest.notes.put("x", Note(f"{number}"))
            await guest.notes.put(f"{number}", Note("kept"))
        await comes(lambda: roles(memory_relay, guests[0]) == [A, R, R, W, W])
        await in_step(guests)
        assert guests[0].dump().keys() == {"x", "0", "1"}
    assert appended_twice(memory_relay) == []


@virtual
async def test_new_keys_go_to_all_vaults_as_they_can_be_reached(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    async with open_device("a") as device:
        home = await founded(device)
        await home.notes.put("x", Note("home"))
        work = await founded(device, "work")
        for guest in (home, work):
            await guest.vault.synced()
    copied(folder, "a", "copy")
    async with open_device("a") as device:
        await (await notes_of(device.vault("home"))).put("x", Note("later"))
        await device.vault("home").synced()
    async with open_device("copy") as device:
        first = Guest(device, device.vault("home"), await notes_of(device.vault("home")))
        second = Guest(device, device.vault("work"), await notes_of(device.vault("work")))
        await first.notes.put("y", Note("one"))
        await second.notes.put("y", Note("two"))
        for guest in (first, second):
            await comes(lambda guest=guest: roles(memory_relay, guest) == [R, A])  # type: ignore[misc]
            await in_step([guest])
        assert memory_relay.connections == 1, "nobody needs the earlier keys' connection any more"
        assert memory_relay.devices == [device.key]
        third = await founded(device, "new")
        await third.vault.synced()
        assert memory_relay.connections == 1
    assert len(memory_relay.log.vaults) == 3


@virtual
async def test_a_vault_that_was_never_online_is_made_by_one_copy_and_shared_by_both(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    memory_relay.stop()
    async with open_device("a") as device:
        a = await founded(device)
        await a.notes.put("x", Note("both"))
    copied(folder, "a", "copy")
    memory_relay.start()
    async with open_device("a") as one, open_device("copy") as two:
        guests = [await returned(one), await returned(two)]
        await guests[0].notes.put("y", Note("one"))
        await guests[1].notes.put("z", Note("two"))
        await guests[0].vault.synced()
        await comes(lambda: roles(memory_relay, guests[0]) == [R, A, A])
        await in_step(guests)
        assert guests[0].dump() == {"x": "both", "y": "one", "z": "two"}


@virtual
async def test_links_that_come_first_are_no_hindrance(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path
) -> None:
    await made(open_device)
    for copy in ("copy 1", "copy 2", "copy 3"):
        copied(folder, "device 1", copy)
    async with party(open_device) as guests:
        memory_relay.delay = 1.0
        async with open_device("copy 1") as one, open_device("copy 2") as two, open_device("copy 3") as three:
            for device in (one, two, three):
                guests.append(await returned(device))
            for number, guest in enumerate(guests):
                await guest.notes.put(f"{number}", Note("kept"))
            await comes(lambda: roles(memory_relay, guests[0]) == [A, R, W, W, W, W])
            await in_step(guests)
            assert len(guests[0].dump()) == 5


@virtual
async def test_a_device_that_may_take_no_new_keys_says_so_and_keeps_what_is_unsent(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(open_device)
    copied(folder, "device 1", "copy")
    monkeypatch.setattr("sealwire_protocol.membership.REPLACEMENTS_MAX", 0)
    async with party(open_device) as guests, open_device("copy") as device:
        await guests[1].notes.put("x", Note("one"))
        await in_step(guests)
        c = await returned(device)
        await c.notes.put("y", Note("kept"))
        await told(c, "invite it again")
        assert (await c.vault.status()).pending == 1
        assert c.dump() == {"x": "one", "y": "kept"}
        monkeypatch.setattr("sealwire_protocol.membership.REPLACEMENTS_MAX", REPLACEMENTS_MAX)
        memory_relay.cut()
        await comes(lambda: R in roles(memory_relay, guests[0]))
        await guests[1].notes.put("z", Note("three"))
        await in_step([*guests, c])


@virtual
async def test_keys_that_cannot_be_written_are_told_and_tried_again(
    open_device: OpenDevice, memory_relay: MemoryRelay, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(open_device)
    copied(folder, "device 1", "copy")
    async with party(open_device) as guests, open_device("copy") as device:
        await guests[1].notes.put("x", Note("one"))
        await in_step(guests)

        def full(*_: object, **__: object) -> DeviceIdentity:
            raise KeystoreError("The disk is full.")

        with monkeypatch.context() as patch:
            patch.setattr(keystore, "renew", full)
            c = await returned(device)
            await c.notes.put("y", Note("kept"))
            await told(c, "The disk is full")
            assert (await c.vault.status()).pending == 1
        memory_relay.cut()
        await comes(lambda: R in roles(memory_relay, guests[0]))
        await in_step([guests[0], c])
        assert guests[0].dump() == {"x": "one", "y": "kept"}


@virtual
async def test_a_stranger_s_replacement_is_refused_by_relay_and_devices(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        sync, stranger = b.vault._sync, DeviceIdentity.generate()
        honest = replace_device_link(sync.identity, stranger, sync.membership, sync.keys)
        forged = honest[:-64] + stranger.sign(LINK_CONTEXT + honest[:-64])
        with pytest.raises(RelayRefusedError):
            await sync.link.request(AppendLink(0, a.vault.id, forged))
        memory_relay.offer(memory_relay.log.forge(a.vault.id, MEMBERSHIP, encode_links([forged])))
        for guest in guests:
            await told(guest, "membership log was not accepted")
            assert (await guest.vault.status()).members == 2
        assert kinds(memory_relay, a) == [LinkType.GENESIS, LinkType.ADD_DEVICE]
