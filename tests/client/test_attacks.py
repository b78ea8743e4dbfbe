"""What a relay can do to devices by lying, and what it cannot. Numbers are those of the list in docs/security.md."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing

from sealwire_client import invites
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import InviteError
from sealwire_client.inviting import InviteExpiredError, PendingInvite
from sealwire_client.link import RETRY_SECONDS_MAX, LinkState
from sealwire_client.sealing import Draft
from sealwire_client.status import State
from sealwire_client.sync import INBOX_MESSAGES_MAX
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.relay import Alter
from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.ids import MEMBERSHIP, Author, StreamId, VaultId
from sealwire_protocol.limits import FRAME_BYTES_MIN
from sealwire_protocol.links import LINK_CONTEXT, AddDevice, LinkType, Role, encode_links, encode_unsigned
from sealwire_protocol.messages import (
    NO_REQUEST,
    NO_VAULT,
    AppendLink,
    Deliver,
    Fault,
    Message,
    Push,
    Pushed,
    Ranges,
    Subscribed,
    Welcome,
)
from sealwire_protocol.segment import encode_record, encode_segment, read_segment
from tests.client.guarded import Card, agree, seated, table
from tests.client.party import (
    NAME,
    Guest,
    Note,
    asked_of,
    comes,
    cut_off,
    founded,
    in_step,
    joined,
    lying,
    notes_of,
    party,
    returned,
    stream_of,
    told,
)
from tests.support.virtual import pass_time, virtual


def swapped(message: Message) -> Sequence[Message]:
    """A DELIVER with the bodies of its first two records swapped."""
    if not isinstance(message, Deliver) or message.stream == MEMBERSHIP:
        return [message]
    found = [placed.record for placed in read_segment(message.segment, message.prev)]
    if len(found) < 2:
        return [message]
    one, two, *rest = found
    return [replace(message, segment=encode_segment([one._replace(body=two.body), two._replace(body=one.body), *rest]))]


AGAIN = Draft("x", b"the same", 1)
"""What nobody seals to the same bytes twice, unless the randomness is."""


# --- records


@virtual
async def test_s01_records_whose_bodies_the_relay_swaps_are_set_aside_and_stop_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        with lying(memory_relay, swapped):
            await a.notes.put_many([("x", Note("one")), ("y", Note("two"))])
            await a.notes.put("z", Note("three"))
            await in_step([a])
            await comes(lambda: b.notes.get("z") is not None)
        assert b.dump() == {"z": "three"}
        assert (await b.vault.status()).unreadable == 2
        assert a.dump() == {"x": "one", "y": "two", "z": "three"}
        await b.notes.put("x", Note("four"))
        await in_step([b])
        await comes(lambda: a.notes.get("x") == Note("four"))


@virtual
async def test_s02_an_older_version_that_the_relay_serves_again_changes_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        for text in ("old", "new"):
            await a.notes.put("x", Note(text))
            await in_step(guests)
        stream = stream_of(memory_relay, a.vault)
        first = next(memory_relay.log.vaults[a.vault.id].streams[stream].records()).record
        before = await b.vault.status()
        with b.notes.changes() as changes:
            memory_relay.offer(memory_relay.log.forge(a.vault.id, stream, encode_record(first)))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(10) as waiting:
                await anext(changes)
        assert waiting.cancelled_caught
        versions = [placed.record.version for placed in memory_relay.log.vaults[a.vault.id].streams[stream].records()]
        assert (versions, b.vault._sync._streams[stream].cursor) == ([1, 2, 1], 3), "it has come, after the newer one"
        assert b.dump() == {"x": "new"}
        assert replace(await b.vault.status(), last_synced=None) == replace(before, last_synced=None)
        await a.notes.put("x", Note("newer"))
        await in_step(guests)
        assert b.dump() == {"x": "newer"}


@virtual
async def test_s02_an_older_version_of_a_guarded_entry_is_reported_too(
    open_device: OpenDevice, memory_relay: MemoryRelay, caplog: pytest.LogCaptureFixture
) -> None:
    async with table(open_device) as seats:
        a, b = seats
        for title in ("old", "new"):
            await a.cards.put("x", Card(title))
            await b.cards.put("y", Card(title))
            await agree(seats)
        for seat in seats:
            assert (await seat.vault.status()).last_error is None
        stream = a.cards.held.stream
        first = next(memory_relay.log.vaults[a.vault.id].streams[stream].records()).record
        memory_relay.offer(memory_relay.log.forge(a.vault.id, stream, encode_record(first)))
        for seat in seats:
            await told(seat.guest, "cards: up to 5 the relay delivered 1 older versions after newer ones")
            assert seat.titles() == {"x": "new", "y": "new"}
        assert caplog.text.count("which no honest relay does") == 2
        await b.cards.put("x", Card("newer"))
        await agree(seats)
        assert a.titles()["x"] == "newer"


@virtual
async def test_s02_so_is_one_that_comes_with_the_newer_one(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    held: list[bytes] = []

    def turned(message: Message) -> Sequence[Message]:
        if not isinstance(message, Deliver) or message.stream == MEMBERSHIP:
            return [message]
        held.append(message.segment)
        return [replace(message, prev=0, segment=b"".join(held[::-1]))] if len(held) == 2 else []

    async with table(open_device, 1) as [a]:
        for title in ("old", "new"):
            await a.cards.put("x", Card(title))
            await a.vault.synced()
        async with open_device("late") as device:
            with lying(memory_relay, turned):
                late = await seated(await joined(device, a.vault))
                await told(late.guest, "cards: up to 2 the relay delivered 1 older versions after newer ones")
                assert late.titles() == {"x": "new"}


@virtual
async def test_s09_a_record_moved_to_another_key_stream_or_vault_does_not_open(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("here"))
        other = await notes_of(a.vault, "other")
        await other.put("x", Note("there"))
        await in_step(guests)
        log = memory_relay.log.vaults[a.vault.id].streams
        names = [name for name in log if name != MEMBERSHIP]
        records = [next(log[name].records()).record for name in names]
        for name, record in zip(names, reversed(records), strict=True):
            memory_relay.offer(memory_relay.log.forge(a.vault.id, name, encode_record(record)))
        moved = records[0]._replace(tag=records[1].tag, version=9)
        memory_relay.offer(memory_relay.log.forge(a.vault.id, names[0], encode_record(moved)))
        await set_aside(b, unreadable=2)
        assert b.dump() == {"x": "here"}


async def set_aside(guest: Guest, unreadable: int) -> None:
    """Wait until a device has set so many records aside."""
    for _ in range(100):
        if (await guest.vault.status()).unreadable == unreadable:
            return
        await pass_time(1)
    raise AssertionError("the records were not set aside")


@virtual
async def test_s13_clones_with_frozen_randomness_use_no_salt_twice_and_their_batch_is_reported(
    open_device: OpenDevice, memory_relay: MemoryRelay, caplog: pytest.LogCaptureFixture
) -> None:
    async with party(open_device) as guests:
        folder = guests[1].device.folder
        await guests[1].notes.put("x", Note("before"))
        await in_step(guests)
    shutil.copytree(folder, folder.with_name("clone"))
    with asked_of(memory_relay, Push) as seen:
        async with open_device("device 1") as first, open_device("clone") as second:
            clones = [await returned(first), await returned(second)]
            for clone in clones:
                await clone.vault.synced()
            for number, clone in enumerate(clones):
                for stream in clone.vault._sync._streams.values():
                    stream.sealer._random = bytes
                    assert stream.sealer.seal_many([AGAIN]) == stream.sealer.seal_many([AGAIN]), "it is frozen"
                await clone.notes.put("x", Note(f"by {number}"))
            await comes(lambda: len({clone.device.key for clone in clones}) == 2)
    batches = [message for message in seen if message.batch == seen[0].batch][:2]
    one, two = (next(read_segment(message.groups[0].records, 0)).record for message in batches)
    assert (one.tag, one.version, one.author, one.epoch) == (two.tag, two.version, two.author, two.epoch)
    assert one.salt != two.salt and one.body != two.body
    assert "another device uses this one's identity" in caplog.text


# --- membership


def added_by(signer: DeviceIdentity, author: int, relay: MemoryRelay, vault: VaultId) -> bytes:
    """A link by which `signer`, as the member `author`, adds a device of a stranger's."""
    stranger, log = DeviceIdentity.generate(), relay.log.vaults[vault]
    body = AddDevice(stranger.device_key, stranger.box_key, Role.ADMIN, b"keys", b"name")
    head, last = log.membership.head, log.membership.last_hash
    unsigned = encode_unsigned(LinkType.ADD_DEVICE, head + 1, vault, last, Author(author), body)
    return unsigned + signer.sign(LINK_CONTEXT + unsigned)


@pytest.mark.parametrize("who", ["a stranger as the admin", "a writer as itself", "nonsense", "half a link"])
def test_s03_a_log_with_a_link_that_nobody_may_sign_is_rejected(
    open_device: OpenDevice, memory_relay: MemoryRelay, who: str
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            vault = a.vault.id
            raw = {
                "a stranger as the admin": added_by(DeviceIdentity.generate(), 1, memory_relay, vault),
                "a writer as itself": added_by(b.device._identities.present, 2, memory_relay, vault),
                "nonsense": b"no link",
                "half a link": added_by(b.device._identities.present, 2, memory_relay, vault)[:90],
            }[who]
            memory_relay.offer(memory_relay.log.forge(vault, MEMBERSHIP, encode_links([raw])))
            for guest in guests:
                await told(guest, "membership log was not accepted")
                assert (await guest.vault.status()).members == 2
            await a.notes.put("x", Note("still"))
            await comes(lambda: b.notes.get("x") == Note("still"))
            memory_relay.cut()
            await trio.sleep(60)
            await told(b, "membership log was not accepted")
            await b.notes.put("y", Note("goes on"))
            await comes(lambda: a.notes.get("y") == Note("goes on"))
            assert (await a.vault.status()).state != "synced"

    test()


@virtual
async def test_a_log_that_was_mended_is_accepted(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        vault, admin = a.vault.id, a.device._identities.present
        log = memory_relay.log.vaults[vault].streams[MEMBERSHIP]
        forged = added_by(DeviceIdentity.generate(), 1, memory_relay, vault)
        memory_relay.offer(memory_relay.log.forge(vault, MEMBERSHIP, encode_links([forged])))
        for guest in guests:
            await told(guest, "membership log was not accepted")
        async with cut_off(memory_relay):
            log.segments.pop()
            log.head -= 1
            true = added_by(admin, 1, memory_relay, vault)
            memory_relay.log.append_link(a.device.key, AppendLink(1, vault, true))
        await in_step(guests)
        for guest in guests:
            assert (await guest.vault.status()).members == 3
            assert (await guest.vault.status()).last_error is None


@virtual
async def test_another_log_than_the_one_held_is_rejected(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, _ = guests
        other = await founded(a.device, "other")
        await other.vault.synced()
        links = memory_relay.log.vaults[other.vault.id].links
        log = memory_relay.log.vaults[a.vault.id].streams[MEMBERSHIP]
        log.segments[0] = (0, 1, encode_links(links))
    async with open_device("device 1") as device:
        b = await returned(device)
        await told(b, "another membership log")
        assert (await b.vault.status()).members == 2


@virtual
async def test_s07_a_vault_older_than_the_invite_is_not_joined(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        folder = b.device.folder
    for file in folder.glob("replica*"):
        file.unlink()
    async with open_device("device 0") as device:
        a = await returned(device)
        old = memory_relay.backup()
        async with open_device("c") as other:
            await joined(other, a.vault)
        invite = await a.vault.invite()
        memory_relay.restore(old)
        async with open_device("device 1") as device:
            with pytest.raises(InviteError, match="older"):
                await device.join(invite.link)
            assert device.vaults == []


@virtual
async def test_an_invite_names_its_vault(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device, 1) as guests:
        (a,) = guests
        other = await founded(a.device, "other")
        await other.vault.synced()
        pending = await a.vault.invite(seconds=60)
        changed = replace(invites.parse(pending.link), vault=other.vault.id).encode()
        async with open_device("b") as device, trio.open_nursery() as nursery:
            nursery.start_soon(_expires, pending)
            with pytest.raises(InviteError, match="expired"):
                await device.join(changed)
            assert device.vaults == []


async def _expires(pending: PendingInvite) -> None:
    with pytest.raises(InviteExpiredError):
        await pending.joined()


# --- what no honest relay sends ends the connection, never the app


def wrong_verdict(message: Message) -> Sequence[Message]:
    if isinstance(message, Pushed):
        return [replace(message, appended=tuple(group._replace(records=7) for group in message.appended))]
    return [message]


def verdicts_without_end(message: Message) -> Sequence[Message]:
    return [message] * (2 * INBOX_MESSAGES_MAX if isinstance(message, Pushed) else 1)


def narrow(message: Message) -> Sequence[Message]:
    return [replace(message, frame_bytes=FRAME_BYTES_MIN - 1) if isinstance(message, Welcome) else message]


@pytest.mark.parametrize("alter", [wrong_verdict, verdicts_without_end, narrow])
def test_nonsense_from_the_relay_ends_a_connection_and_nothing_else(
    open_device: OpenDevice, memory_relay: MemoryRelay, alter: Alter
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            with lying(memory_relay, alter):
                if alter is narrow:
                    memory_relay.cut()
                await a.notes.put_many((f"key {n}", Note("x" * 3_000)) for n in range(300))
                link = a.device.link(a.vault.origin)
                await link.until(lambda link: link.state in (LinkState.REFUSED, LinkState.OFFLINE))
                await trio.testing.wait_all_tasks_blocked()
                assert link.last_error
                await a.notes.put("x", Note("goes on"))
                await trio.sleep(RETRY_SECONDS_MAX)
            await in_step(guests)
            assert b.notes.get("x") == Note("goes on")
            assert len(b.notes) == 301

    test()


def broken_segments_of(stream: StreamId) -> Alter:
    """Of each delivery of a stream the last record cannot be read."""

    def alter(message: Message) -> Sequence[Message]:
        if isinstance(message, Deliver) and message.stream == stream:
            return [replace(message, segment=message.segment[:-1])]
        return [message]

    return alter


@virtual
async def test_a_segment_that_cannot_be_read_stops_nothing_and_what_it_held_is_got_by_comparing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        others = [await notes_of(guest.vault, "others") for guest in guests]
        with lying(memory_relay, broken_segments_of(a.vault._sync.keys.stream_id(NAME))):
            await a.notes.put_many((f"key {n}", Note("x" * 3_000)) for n in range(300))
            await others[0].put("x", Note("goes on"))
            await comes(lambda: others[1].get("x") is not None)
            await in_step(guests)
            assert len(b.notes) == 300


@virtual
async def test_while_what_cannot_be_read_cannot_be_compared_either_the_rest_goes_on(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        others = [await notes_of(guest.vault, "others") for guest in guests]
        broken = broken_segments_of(a.vault._sync.keys.stream_id(NAME))

        def damaged(message: Message) -> Iterable[Message]:
            if isinstance(message, Ranges):
                return [Fault(message.request, NO_VAULT, FaultCode.INTERNAL, Action.STOP, 0, "it is damaged")]
            return broken(message)

        with lying(memory_relay, damaged):
            await a.notes.put("x", Note("one"))
            await others[0].put("x", Note("goes on"))
            await others[1].put("y", Note("goes on too"))
            await comes(lambda: others[1].get("x") is not None and others[0].get("y") is not None)
            await told(b, "notes: what the relay sent of it after 0 cannot be read")
            await told(b, "it cannot be compared now: it is damaged")
            assert (await b.vault.status()).state is State.RECONCILING
        await in_step(guests)
        assert b.notes.get("x") == Note("one")


@virtual
async def test_a_relay_that_has_and_has_not_the_vault_is_asked_ever_more_rarely(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    def deny(message: Message) -> Sequence[Message]:
        if isinstance(message, Subscribed):
            why = "there is no such vault here for this device"
            return [Fault(NO_REQUEST, message.vault, FaultCode.NO_SUCH_VAULT, Action.STOP, 0, why)]
        return [message]

    async with open_device("a") as device:
        memory_relay.alter = deny
        a = await founded(device)
        await told(a, "no such vault")
        await trio.sleep(60)
        assert memory_relay.carried < 20
        before = memory_relay.carried
        await trio.sleep(12 * 3600)
        assert memory_relay.carried - before < 100, "in half a day"
        assert (await a.vault.status()).state == "refused"
        memory_relay.alter = None
        memory_relay.cut()
        await a.vault.synced()
        assert (await a.vault.status()).last_error is None


@virtual
async def test_a_device_that_is_no_member_any_more_is_told_so(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        await b.notes.put("x", Note("kept"))
        await in_step(guests)
        del memory_relay.log.vaults[a.vault.id].membership.members[Author(2)]
        memory_relay.cut()
        await told(b, "no such vault")
        assert (await b.vault.status()).state == "refused"
        assert b.dump() == {"x": "kept"}
        assert (await a.vault.status()).state in ("synced", "offline", "catching_up")
