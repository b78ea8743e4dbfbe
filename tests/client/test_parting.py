"""Two admins made links without each other, since the relay had lost the first ones: one log comes of both (R15)."""

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from unittest import mock

import pytest
import trio

from sealwire_client.policies import strict
from sealwire_client.sending import StrictError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.links import Role
from sealwire_protocol.messages import AppendLink, Message, OfferLinks, Pushed
from tests.client.party import Guest, Note, asked_of, comes, founded, in_step, joined, notes_of, returned, told
from tests.support.virtual import virtual

ANNA, BERT, CARL = "anna", "bert", "carl"
"""The two admins, and a writer. Anna began the vault."""


async def added(open_device: OpenDevice, admin: Guest, names: Sequence[str]) -> None:
    """Let devices join that write something, and go."""
    for name in names:
        async with open_device(name) as device:
            guest = await joined(device, admin.vault)
            await guest.notes.put(name, Note("as a member"))
            await in_step([guest, admin])


async def parted(open_device: OpenDevice, relay: MemoryRelay, lost: Sequence[str], made: Sequence[str]) -> None:
    """Anna adds devices, the relay loses that, and Bert, who has not heard of it, adds others. Nobody is there then."""
    async with open_device(ANNA) as first:
        anna = await founded(first)
        async with open_device(BERT) as second:
            invite = await anna.vault.invite(role=Role.ADMIN)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(invite.joined)
                vault = await second.join(invite.link)
            await in_step([anna, Guest(second, vault, await notes_of(vault))])
        backup = relay.backup()
        await added(open_device, anna, lost)
    relay.restore(backup)
    async with open_device(BERT) as second:
        await added(open_device, await returned(second), made)


async def all_back(stack: AsyncExitStack, open_device: OpenDevice, names: Sequence[str]) -> list[Guest]:
    """Open devices, one after the other."""
    return [await returned(await stack.enter_async_context(open_device(name))) for name in names]


async def at_one(guests: Sequence[Guest]) -> None:
    """Wait until all of these are members of one log, and in step; each of them can write."""
    for guest in guests:
        await comes(lambda guest=guest: guest.vault._sync.knows_members)  # type: ignore[misc]
    await in_step(guests)
    logs = [await guest.vault._sync.members.links() for guest in guests]
    assert all(log == logs[0] for log in logs)
    for number, guest in enumerate(guests):
        await guest.notes.put(f"at one {number}", Note("as all are"))
    await in_step(guests)
    members = guests[0].vault._sync.membership.members.values()
    assert {guest.device.key for guest in guests} == {member.device for member in members}
    assert all(guest.vault._sync.held.author == member_of(guest) for guest in guests)


def unheard(message: Message) -> Sequence[Message]:
    """What a device hears of a relay that leaves its writes unanswered."""
    return () if isinstance(message, Pushed) else (message,)


def member_of(guest: Guest) -> int:
    """A device's number in the log that it holds."""
    member = guest.vault._sync.membership.by_device(guest.device.key)
    assert member is not None
    return member.author


@pytest.mark.parametrize(
    ("lost", "made"),
    [(["c", "d"], ["e"]), (["c"], ["e", "f"]), (["c"], ["e"]), (["c", "d"], ["e", "f"])],
    ids=["the lost one stands", "the other one stands", "one each", "two each"],
)
@pytest.mark.parametrize("last", [0, 1], ids=["as they come", "the other way round"])
def test_r15_of_two_ends_one_stands_and_whom_the_other_had_added_is_added_again(
    open_device: OpenDevice, memory_relay: MemoryRelay, lost: list[str], made: list[str], last: int
) -> None:
    @virtual
    async def once() -> None:
        await parted(open_device, memory_relay, lost, made)
        names = [ANNA, BERT, *lost, *made]
        async with AsyncExitStack() as stack:
            guests = await all_back(stack, open_device, names[::-1] if last else names)
            await at_one(guests)
            for guest in guests:
                assert {name: guest.dump()[name] for name in (*lost, *made)} == dict.fromkeys(
                    [*lost, *made], "as a member"
                )
                assert (await guest.vault.status()).last_error is None
                assert (await guest.vault.status()).members == len(names)

    once()


@virtual
async def test_r15_what_a_member_of_the_end_that_went_had_not_sent_arrives(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, ["c"], ["e", "f"])
    memory_relay.stop()
    async with open_device("c") as device:
        c = await returned(device)
        await c.notes.put("offline", Note("as a member of a log that went"))
        await c.notes.delete("c")
    memory_relay.start()
    async with AsyncExitStack() as stack:
        guests = await all_back(stack, open_device, [ANNA, BERT, "c", "e", "f"])
        await at_one(guests)
        assert guests[0].dump()["offline"] == "as a member of a log that went"
        assert "c" not in guests[0].dump()
        assert (await guests[2].vault.status()).stuck == 0


@virtual
async def test_r15_what_was_on_its_way_as_another_member_is_sealed_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with open_device(ANNA) as first, open_device(BERT) as second:
        anna = await founded(first)
        bert = await joined(second, anna.vault, Role.ADMIN)
        await in_step([anna, bert])
        backup = memory_relay.backup()
    async with open_device(ANNA) as first:
        anna = await returned(first)
        await added(open_device, anna, ["c"])
        async with open_device("c") as third:
            c = await returned(third)
            await in_step([anna, c])
            memory_relay.alter = unheard
            await c.notes.put("unanswered", Note("1"))
            await comes(lambda: "unanswered" in anna.dump())
            await c.notes.put("unanswered too", Note("2"))
            await comes(lambda: "unanswered too" in anna.dump())
    memory_relay.alter = None
    memory_relay.restore(backup)
    async with open_device(BERT) as second:
        await added(open_device, await returned(second), ["e", "f"])
    async with AsyncExitStack() as stack:
        guests = await all_back(stack, open_device, [ANNA, BERT, "c", "e", "f"])
        await at_one(guests)
        assert {"unanswered", "unanswered too"} < guests[3].dump().keys()
        assert (await guests[2].vault.status()).stuck == 0


@virtual
async def test_r15_a_strict_write_that_was_on_its_way_as_another_member_is_left_open(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, [], [])
    backup = memory_relay.backup()
    async with open_device("c") as third, trio.open_nursery() as nursery:
        async with open_device(ANNA) as first:
            c = await joined(third, (await returned(first)).vault)
            seats = await c.vault.collection("seats", Note, policy=strict())
            await seats.put("one", Note("free"))
        memory_relay.alter = unheard

        async def take() -> None:
            with pytest.raises(StrictError, match="read whether 'one' in seats was written"):
                await seats.put("one", Note("mine"))
            refused.set()

        refused = trio.Event()
        nursery.start_soon(take)
        await comes(lambda: not c.vault._sync.link.session or bool(c.vault._sync.link.session.outstanding(c.vault.id)))
        memory_relay.alter = None
        memory_relay.restore(backup)
        async with open_device(BERT) as second:
            await added(open_device, await returned(second), ["e", "f"])
        async with open_device(ANNA) as first:
            await in_step([await returned(first), c])
            await refused.wait()
            assert seats.get("one") == Note("mine"), "it was delivered, so the relay got it back"


@virtual
async def test_r15_a_device_that_the_relay_does_not_know_any_more_offers_the_end_that_stands(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, ["c", "d"], ["e"])
    async with open_device("d") as device:
        d = await returned(device)
        with asked_of(memory_relay, OfferLinks) as offers:
            await d.vault.synced()
        assert [offer.after for offer in offers] == [2]
        assert memory_relay.log.vaults[d.vault.id].links == await d.vault._sync.members.links()


@virtual
async def test_r15_the_end_that_stands_is_offered_again_if_the_relay_loses_it_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """On one connection: the relay is set back twice to the same other end."""
    await parted(open_device, memory_relay, ["c", "d"], ["e"])
    backup = memory_relay.backup()
    async with open_device(ANNA) as first:
        anna = await returned(first)
        await anna.vault.synced()
        for _ in range(2):
            dialled = memory_relay.dialled
            # Connections live on, as when the database is restored beneath the relay.
            with mock.patch.object(memory_relay, "cut"):
                memory_relay.restore(backup)
            memory_relay.new_term()
            with asked_of(memory_relay, OfferLinks) as offers:
                await comes(lambda: memory_relay.log.vaults[anna.vault.id].links != backup.vaults[anna.vault.id].links)
            assert len(offers) == 1
            await anna.vault.synced()
            assert memory_relay.dialled == dialled
            assert memory_relay.log.vaults[anna.vault.id].links == await anna.vault._sync.members.links()


@virtual
async def test_r15_a_device_whose_end_went_waits_for_an_admin_and_keeps_what_it_has(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, ["c"], ["e", "f"])
    async with open_device("c") as third:
        c = await returned(third)
        await told(c, "no such vault")
        await c.notes.put("meanwhile", Note("kept"))
        assert (await c.vault.status()).state == "refused"
        async with open_device(BERT) as second:
            bert = await returned(second)
            await bert.vault.synced()
            assert "meanwhile" not in bert.dump(), "Bert never heard of it"
        async with open_device(ANNA) as first:
            anna = await returned(first)
            await in_step([anna, c])
            assert anna.dump()["meanwhile"] == "kept"


@virtual
async def test_r15_whoever_has_gone_over_adds_the_others_again_although_it_was_ended_in_between(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, ["c", "d"], ["e", "f", "g"])
    async with open_device(ANNA) as first:
        anna = await returned(first)
        await anna.vault._sync.until(lambda sync: sync.membership.head == 5)
        memory_relay.stop()
    assert len(memory_relay.log.vaults[anna.vault.id].links) == 5
    memory_relay.start()
    async with AsyncExitStack() as stack:
        await at_one(await all_back(stack, open_device, [ANNA, BERT, "c", "d", "e", "f", "g"]))


@virtual
async def test_r15_who_has_left_since_it_was_added_again_by_another_admin_stays_out(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, ["c"], ["e", "f"])
    async with open_device(ANNA) as first:
        anna = await returned(first)
        await anna.vault._sync.until(lambda sync: sync.membership.head == 4)
        memory_relay.stop()
        (owed,) = await anna.vault._writer.run(lambda replica: replica.vaults.unissued(anna.vault._held.number))
    memory_relay.start()
    async with open_device(BERT) as second, open_device("c") as third:
        bert, c = await returned(second), await returned(third)
        assert (owed.device, bert.vault._sync.membership.by_device(owed.device)) == (third.key, None)
        invite = await bert.vault.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            await third.join(invite.link)
        await c.vault.synced()
        await c.vault.leave()
        async with open_device(ANNA) as first:
            await in_step([await returned(first), bert])
            await trio.sleep(600)
            assert third.key not in [member.device for member in bert.vault.members]


@virtual
async def test_r15_it_is_reported(
    open_device: OpenDevice, memory_relay: MemoryRelay, caplog: pytest.LogCaptureFixture
) -> None:
    await parted(open_device, memory_relay, ["c"], ["e", "f"])
    with caplog.at_level(logging.WARNING, "sealwire"):
        async with open_device(ANNA) as first:
            anna = await returned(first)
            await comes(lambda: anna.vault._sync.membership.head == 5)
    assert "1 links of the membership log have given way to 2 others" in caplog.text


@virtual
async def test_r15_a_removal_that_went_with_its_end_is_made_again(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, [], [])
    async with open_device(ANNA) as first:
        anna = await returned(first)
        await added(open_device, anna, ["c"])
        (c,) = [member.device for member in anna.vault.members[2:]]
        await anna.vault.synced()
        async with open_device(BERT) as second:
            await in_step([anna, await returned(second)])
        backup = memory_relay.backup()
        await anna.vault.remove(c)
    memory_relay.restore(backup)
    async with open_device(BERT) as second:
        bert = await returned(second)
        await bert.vault.rotate()
        await bert.vault.rotate()
        async with open_device(ANNA) as first:
            anna = await returned(first)
            await comes(lambda: c not in [member.device for member in bert.vault.members])
            await anna.notes.put("x", Note("not for c"))
            await in_step([anna, bert])
            assert anna.vault._sync.keys.current.number == 4


async def keyed_apart(open_device: OpenDevice, relay: MemoryRelay, stands: str) -> None:
    """Anna changes the key and writes, the relay loses that, and Bert, who has not heard of it, does the same; Carl has
    heard of neither. The end of one of them stands. Nobody is there then."""
    await parted(open_device, relay, [], [])
    async with open_device(ANNA) as first:
        anna = await returned(first)
        await added(open_device, anna, [CARL])
        await anna.vault.synced()
        async with open_device(BERT) as second:
            await in_step([anna, await returned(second)])
    backup = relay.backup()
    for name in (ANNA, BERT):
        async with open_device(name) as device:
            guest = await returned(device)
            await guest.vault.rotate()
            await guest.notes.put(name, Note("under a key of its own"))
            await guest.vault.synced()
            if name == stands:
                await added(open_device, guest, ["e"])
        if name == ANNA:
            relay.restore(backup)


KEYED_APART = {ANNA: "under a key of its own", BERT: "under a key of its own", CARL: "as a member"}


@pytest.mark.parametrize("stands", [ANNA, BERT])
@virtual
async def test_r15_what_was_sealed_under_a_key_of_the_end_that_went_is_read_by_all(
    open_device: OpenDevice, memory_relay: MemoryRelay, stands: str
) -> None:
    await keyed_apart(open_device, memory_relay, stands)
    async with AsyncExitStack() as stack:
        guests = await all_back(stack, open_device, [ANNA, BERT, CARL])
        await in_step(guests)
        for guest in guests:
            assert {name: guest.dump()[name] for name in KEYED_APART} == KEYED_APART
            assert (await guest.vault.status()).unreadable == 0
            assert guest.vault._sync.keys.current.number == 3, "one of them has handed it on, once"


@virtual
async def test_r15_who_has_the_log_that_stands_takes_the_keys_of_the_other_one_from_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await keyed_apart(open_device, memory_relay, ANNA)
    async with open_device(ANNA) as first, open_device(CARL) as third:
        guests = [await returned(first), await returned(third)]
        await in_step(guests)
        assert all(guest.dump()[BERT] == "under a key of its own" for guest in guests), "although Bert is away"


@virtual
async def test_r15_keys_of_the_end_that_went_outlast_the_app_until_they_are_handed_on(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await keyed_apart(open_device, memory_relay, BERT)
    async with open_device(ANNA) as first:
        anna = await returned(first)
        gone = anna.vault._sync.keys.current
        with asked_of(memory_relay, AppendLink, swallowed=True) as asked:
            await comes(lambda: bool(asked))
        memory_relay.stop()
    assert len(memory_relay.log.vaults[anna.vault.id].links) == anna.vault._sync.membership.head
    memory_relay.start()
    async with open_device(ANNA) as first, open_device(CARL) as third:
        anna, carl = guests = [await returned(first), await returned(third)]
        assert list(anna.vault._sync.keys.others.values()) == [gone]
        await in_step(guests)
        assert carl.dump()[ANNA] == "under a key of its own"
        assert list(carl.vault._sync.keys.others.values()) == [gone]


@virtual
async def test_r15_whom_both_ends_have_added_and_the_one_that_stands_has_removed_stays_removed(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    """Numbers of members of different ends do not say who came later."""
    await parted(open_device, memory_relay, ["b", "c", "d"], [])
    async with open_device(BERT) as second:
        bert = await returned(second)
        await bert.vault.rotate()
        async with open_device("d") as device:
            d = await joined(device, bert.vault)
            await in_step([bert, d])
        await bert.vault.remove(device.key)
        async with open_device(ANNA) as first:
            anna = await returned(first)
            await in_step([anna, bert])
            assert device.key not in [member.device for member in bert.vault.members]


@virtual
async def test_r15_s10_who_was_removed_cannot_undo_it_by_signing_beside_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    await parted(open_device, memory_relay, [], [])
    backup = memory_relay.backup()
    async with open_device(ANNA) as first:
        anna = await returned(first)
        bert_key = anna.vault.members[1].device
        await anna.vault.remove(bert_key)
        await anna.vault.synced()
    memory_relay.restore(backup)
    async with open_device(BERT) as second:
        bert = await returned(second)
        for _ in range(3):
            await bert.vault.rotate()
        assert len(memory_relay.log.vaults[bert.vault.id].links) == 5
        async with open_device(ANNA) as first:
            anna = await returned(first)
            await anna.notes.put("x", Note("not for Bert"))
            await in_step([anna])
            await comes(lambda: len(memory_relay.log.vaults[anna.vault.id].links) == 3)
            assert [member.device for member in anna.vault.members] == [first.key]
            await trio.sleep(600)
            assert "x" not in bert.dump()
