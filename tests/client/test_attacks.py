"""What a relay can do to devices by lying, and what it cannot. Numbers are those of the list in docs/security.md."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from sealwire_client import invites
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import InviteError
from sealwire_client.link import RETRY_SECONDS_MAX, LinkState
from sealwire_client.status import State
from sealwire_client.sync import INBOX_MESSAGES_MAX
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.testing.log import MemoryLog, Verdict
from sealwire_client.testing.relay import Alter
from sealwire_client.vault import InviteExpiredError, PendingInvite
from sealwire_protocol.errors import Action, FaultCode
from sealwire_protocol.ids import MEMBERSHIP, Author, DeviceKey, Position, StreamId, Tag, Term, VaultId
from sealwire_protocol.limits import FRAME_BYTES_MIN
from sealwire_protocol.membership import LINK_CONTEXT, AddDevice, LinkType, Role, encode_links, encode_unsigned
from sealwire_protocol.messages import (
    NO_REQUEST,
    NO_VAULT,
    AppendLink,
    Branch,
    Deliver,
    Fault,
    Fetched,
    Item,
    Message,
    Push,
    Pushed,
    Ranges,
    Records,
    Subscribed,
    Summary,
    Welcome,
)
from sealwire_protocol.segment import encode_record, encode_segment, read_segment
from tests.client.party import (
    NAME,
    Guest,
    Note,
    comes,
    cut_off,
    founded,
    in_step,
    joined,
    notes_of,
    party,
    returned,
    stream_of,
    told,
)
from tests.support.virtual import virtual


@contextmanager
def lying(relay: MemoryRelay, alter: Alter) -> Iterator[None]:
    """For the length of the block the relay sends what `alter` makes of its messages."""
    relay.alter = alter
    try:
        yield
    finally:
        relay.alter = None


def swapped(message: Message) -> Sequence[Message]:
    """A DELIVER with the bodies of its first two records swapped."""
    if not isinstance(message, Deliver) or message.stream == MEMBERSHIP:
        return [message]
    found = [placed.record for placed in read_segment(message.segment, message.prev)]
    if len(found) < 2:
        return [message]
    one, two, *rest = found
    return [replace(message, segment=encode_segment([one._replace(body=two.body), two._replace(body=one.body), *rest]))]


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
        assert b.dump() == {"x": "new"}
        assert replace(await b.vault.status(), last_synced=None) == replace(before, last_synced=None)
        await a.notes.put("x", Note("newer"))
        await in_step(guests)
        assert b.dump() == {"x": "newer"}


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
        await trio.sleep(1)
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
    seen: list[Push] = []
    push = memory_relay.log.push

    def watched(device: DeviceKey, message: Push) -> Verdict:
        seen.append(message)
        return push(device, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryLog, "push", lambda _, device, message: watched(device, message))
        async with open_device("device 1") as first, open_device("clone") as second:
            clones = [await returned(first), await returned(second)]
            for clone in clones:
                await clone.vault.synced()
            for number, clone in enumerate(clones):
                for stream in clone.vault._sync._streams.values():
                    stream.sealer._random = bytes
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
async def test_a_relay_that_has_and_has_not_the_vault_is_asked_once_a_connection(
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
        await trio.sleep(3600)
        assert memory_relay.carried < 20
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


# --- comparing


def other_ranges(message: Message) -> Sequence[Message]:
    """Ranges that differ in all their parts, whatever is asked."""
    if not isinstance(message, Ranges):
        return [message]
    parts = tuple(Summary(9, os.urandom(16)) for _ in range(16))
    return [replace(message, branches=tuple(Branch(parts, ()) for _ in message.branches))]


def stranger_ranges(message: Message) -> Sequence[Message]:
    """Records that do not lie in the ranges asked for."""
    if not isinstance(message, Ranges):
        return [message]
    stranger = Branch((), (Item(Tag(b"\xff" * 16), bytes(22), 1, 0), Item(Tag(bytes(16)), bytes(22), 2, 0)))
    return [replace(message, branches=tuple(stranger for _ in message.branches))]


def fewer_ranges(message: Message) -> Sequence[Message]:
    return [replace(message, branches=())] if isinstance(message, Ranges) else [message]


def other_pin(message: Message) -> Sequence[Message]:
    """Ranges of a moment of which no stream has any."""
    return [replace(message, pin=Position(Term(9, b"no term."), 5))] if isinstance(message, Ranges) else [message]


def other_records(message: Message) -> Sequence[Message]:
    """Each record under the seq of another."""
    if not isinstance(message, Records):
        return [message]
    seqs = [record.seq for record in message.records]
    turned = [Fetched(seq, record.record) for seq, record in zip(seqs, reversed(message.records), strict=True)]
    return [replace(message, records=tuple(turned))]


def no_records(message: Message) -> Sequence[Message]:
    """None looked at, so that they are asked for again and again."""
    return [replace(message, considered=0, records=())] if isinstance(message, Records) else [message]


@pytest.mark.parametrize("alter", [other_ranges, stranger_ranges, fewer_ranges, other_pin])
def test_a_comparison_that_cannot_be_true_ends_without_effect(
    open_device: OpenDevice, memory_relay: MemoryRelay, alter: Alter
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            await a.notes.put_many([(f"k{number}", Note("kept")) for number in range(30)])
            await in_step(guests)
            backup = memory_relay.backup()
            await a.notes.put("x", Note("lost"))
            await in_step(guests)
            with lying(memory_relay, alter):
                memory_relay.restore(backup)
                dialled, carried = memory_relay.dialled, memory_relay.carried
                await trio.sleep(10 * RETRY_SECONDS_MAX)
                assert memory_relay.dialled - dialled < 2 * 15  # it does not come back without pause
                assert memory_relay.carried - carried < 100 * (memory_relay.dialled - dialled)
                assert len(a.notes) == len(b.notes) == 31
            await in_step(guests)
            assert len(a.notes) == 31

    test()


@pytest.mark.parametrize("alter", [other_records, no_records])
def test_records_that_were_not_asked_for_are_not_taken_in(
    open_device: OpenDevice, memory_relay: MemoryRelay, alter: Alter
) -> None:
    @virtual
    async def test() -> None:
        async with party(open_device) as guests:
            a, b = guests
            await a.notes.put_many([(f"k{number}", Note("kept")) for number in range(5)])
            await in_step(guests)
        async with open_device("device 0") as device:
            a = await returned(device)
            await a.notes.put_many([(f"new{number}", Note("new")) for number in range(5)])
            await in_step([a])
            (stream,) = [log for name, log in memory_relay.log.vaults[a.vault.id].streams.items() if name != MEMBERSHIP]
            stream.terms[0] = stream.terms[0]._replace(term=Term(stream.terms[0].term.number, b"another."))
            async with open_device("device 1") as other:
                b = await returned(other)
                with lying(memory_relay, alter):
                    memory_relay.cut()
                    await trio.sleep(10 * RETRY_SECONDS_MAX)
                    assert len(b.notes) == 5
                await in_step([a, b])
                assert len(b.notes) == 10

    test()


@virtual
async def test_a_fetched_record_that_does_not_open_is_set_aside_and_stops_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    def broken(message: Message) -> Sequence[Message]:
        if not isinstance(message, Records):
            return [message]
        first, *rest = message.records
        turned = Fetched(first.seq, first.record[:-1] + bytes([first.record[-1] ^ 1]))
        return [replace(message, records=(turned, *rest))]

    async with party(open_device) as guests:
        a, _ = guests
        await a.notes.put("x", Note("kept"))
        await in_step(guests)
    async with open_device("device 0") as device:
        a = await returned(device)
        await a.notes.put_many([(f"new{number}", Note("new")) for number in range(5)])
        await in_step([a])
        (stream,) = [log for name, log in memory_relay.log.vaults[a.vault.id].streams.items() if name != MEMBERSHIP]
        stream.terms[0] = stream.terms[0]._replace(term=Term(stream.terms[0].term.number, b"another."))
        memory_relay.cut()
        async with open_device("device 1") as other:
            with lying(memory_relay, broken):
                b = await returned(other)
                await in_step([b])
            assert len(b.notes) == 5
            assert (await b.vault.status()).unreadable == 1
            await a.notes.put("y", Note("goes on"))
            await comes(lambda: b.notes.get("y") is not None)
