"""Signed collections: what is in them is by whom it says, and by somebody who may write, whatever a relay does."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from sealwire_client import signing
from sealwire_client.policies import latest, merge
from sealwire_client.replica import ReplicaMisuse
from sealwire_client.replica.database import FILE_NAME
from sealwire_client.sealing import Draft, Reason, ValueTooLargeError, tag_of
from sealwire_client.signing import Subject
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_protocol.limits import PLAINTEXT_BYTES_MAX, SEGMENT_BYTES_MAX
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Membership, membership_of, verified_before
from sealwire_protocol.messages import RESEAL, Message, Push
from sealwire_protocol.segment import PROOF_BYTES_MAX, SIGNED, TOMBSTONE
from tests.client.party import Guest, Note, asked_of, comes, in_step, joined, notes_of, party, put_many, returned
from tests.client.replica.noise import overwrite, pages_of
from tests.client.signed import (
    LEDGER,
    Forger,
    forge,
    ledger_log,
    ledger_of,
    reasons,
    set_aside,
    signed_party,
    signing_guest,
    stream_of,
)
from tests.support.virtual import virtual

POLICIES = {"open": latest(), "guarded": merge()}


def vouched(by: Guest, forger: Forger, draft: Draft, epoch: int, *, by_epoch: int | None = None) -> Draft:
    """A signed draft of another member's, vouched for by this device as a record of an epoch."""
    sync, stream = stream_of(by), forger.signer.stream
    assert sync.signer is not None
    subject = Subject(stream.vault, stream.id, tag_of(stream, draft.key), draft.version, forger.signer.author)
    proof, value = signing.parted(draft.value)
    again = signing.countersign(sync.signer.by, sync.signer.author, subject, by_epoch or epoch, proof)
    return draft._replace(value=again + value)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_signed_collection_works_like_any_other(
    open_device: OpenDevice, memory_relay: MemoryRelay, policy: str
) -> None:
    @virtual
    async def test() -> None:
        async with signed_party(open_device, 2, POLICIES[policy]) as guests:
            a, b = guests
            await a.notes.put("x", Note("by a"))
            await b.notes.put("gone", Note("by b"))
            await in_step(guests)
            await b.notes.put("x", Note("by b"))
            await a.notes.delete("gone")
            await in_step(guests)
            assert a.dump() == {"x": "by b"}
            flags = [record.flags for record in ledger_log(memory_relay, a)]
            assert flags == [SIGNED, SIGNED, SIGNED, SIGNED | TOMBSTONE]
        async with party(open_device) as found:
            guests = [await signing_guest(guest, POLICIES[policy]) for guest in found]
            await guests[1].notes.put("x", Note("again"))
            await in_step(guests)
            assert guests[0].dump() == {"x": "again"}
            assert [await reasons(guest) for guest in guests] == [[], []]

    test()


@virtual
async def test_a_collection_is_signed_or_not_and_is_another_one_then(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with party(open_device) as guests:
        a, b = guests
        plain, signed = await notes_of(a.vault, LEDGER), await ledger_of(b.vault)
        assert plain.held.stream != signed.held.stream
        await plain.put("x", Note("plain"))
        await signed.put("x", Note("signed"))
        await in_step(guests)
        assert (plain.get("x"), signed.get("x")) == (Note("plain"), Note("signed"))
        with pytest.raises(ReplicaMisuse, match=r"ledger is open already, .* signed=False"):
            await ledger_of(a.vault)
        with pytest.raises(ReplicaMisuse, match=r"ledger is open already, .* signed=True"):
            await notes_of(b.vault, LEDGER)
    async with party(open_device) as guests:
        a, b = guests
        assert [await a.vault.is_signed(LEDGER), await b.vault.is_signed(LEDGER)] == [False, True]
        with pytest.raises(ReplicaMisuse, match=r"ledger is not signed on this device, .*open it with signed=False"):
            await ledger_of(a.vault)
        with pytest.raises(ReplicaMisuse, match=r"ledger is signed on this device, .*open it with signed=True"):
            await notes_of(b.vault, LEDGER)
        assert (await ledger_of(b.vault)).get("x") == Note("signed")


@virtual
async def test_counters_can_be_signed(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with party(open_device) as guests:
        a, b = [await guest.vault.counters("hits", signed=True) for guest in guests]
        await a.add("page", 2)
        await b.add("page", 3)
        await in_step(guests)
        assert (a.get("page"), b.get("page")) == (5, 5)
        log = memory_relay.log.vaults[guests[0].vault.id].streams[a._collection.held.stream]
        assert all(placed.record.flags & SIGNED for placed in log.records())


# --- who may write


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_s10_what_a_removed_device_seals_later_is_taken_by_nobody_even_if_the_relay_takes_it(
    open_device: OpenDevice, memory_relay: MemoryRelay, policy: str, removed: bool
) -> None:
    @virtual
    async def test() -> None:
        async with signed_party(open_device, 3, POLICIES[policy]) as guests:
            a, b, c = guests
            await c.notes.put("x", Note("in time"))
            await in_step(guests)
            thief = Forger.of(c)
            if removed:
                await a.vault.remove(c.device.key)
            await in_step([a, b])
            forge(memory_relay, a, thief.signed(thief.draft(a, "x", "too late")))
            forge(memory_relay, a, thief.signed(thief.draft(a, "y", "too late")))
            if not removed:  # the attack taken out of it
                await comes(lambda: {a.dump().get("y"), b.dump().get("y")} == {"too late"})
                assert a.dump() == b.dump() == {"x": "too late", "y": "too late"}
                return
            for guest in (a, b):
                await set_aside(guest, Reason.AUTHOR_REMOVED, Reason.AUTHOR_REMOVED)
                assert guest.dump() == {"x": "in time"}
            await b.notes.put("z", Note("goes on"))
            await in_step([a, b])
        async with open_device("device 0") as first, open_device("device 1") as second:
            a, b = [await signing_guest(await returned(device), POLICIES[policy]) for device in (first, second)]
            await in_step([a, b])
            assert a.dump() == {"x": "in time", "z": "goes on"}
            await set_aside(a, Reason.AUTHOR_REMOVED, Reason.AUTHOR_REMOVED)
            if policy == "open":  # in a guarded one the relay would refuse it, for what it has taken in
                await b.notes.put("y", Note("of a member"))
                await in_step([a, b])
                assert a.dump()["y"] == "of a member"
                await set_aside(a, Reason.AUTHOR_REMOVED)

    test()


@pytest.mark.parametrize("role", [Role.READER, Role.WRITER])
def test_s12_what_a_reader_seals_is_taken_by_nobody_even_if_the_relay_takes_it(
    open_device: OpenDevice, memory_relay: MemoryRelay, role: Role
) -> None:
    @virtual
    async def test() -> None:
        async with signed_party(open_device) as guests, open_device("guest") as device:
            a, b = guests
            invite = await a.vault.invite(role=role)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(invite.joined)
                vault = await device.join(invite.link)
            c = Guest(device, vault, await ledger_of(vault))
            await in_step([a, b, c])
            liar = Forger.of(c)
            forge(memory_relay, a, liar.signed(liar.draft(a, "x", "by c")))
            forge(memory_relay, a, liar.signed(Draft("x", b"", 1_001, TOMBSTONE)))
            forge(memory_relay, a, liar.signed(liar.draft(a, "y", "by c")))
            if role is Role.WRITER:  # the attack taken out of it
                await comes(lambda: a.dump() == b.dump() == {"y": "by c"})
                return
            for guest in (a, b):
                await set_aside(guest, *[Reason.NOT_A_WRITER] * 3)
                assert guest.dump() == {}

    test()


@virtual
async def test_a_member_that_took_new_keys_is_believed_until_it_is_removed(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 3) as guests:
        a, b, c = guests
        before, keys = Forger.of(c), c.device.key
        c.vault._sync.enrolment.notice("its folder was copied")
        c.vault._sync._wake.set()
        await comes(lambda: c.device.key != keys)
        await c.notes.put("x", Note("by the new keys"))
        await in_step(guests)
        forge(memory_relay, a, before.signed(before.draft(a, "y", "by the old ones")))
        await comes(lambda: len(a.dump()) == len(b.dump()) == 2)
        await a.vault.remove(c.device.key)
        await in_step([a, b])
        forge(memory_relay, a, before.signed(before.draft(a, "y", "too late", 1_001)))
        await set_aside(a, Reason.AUTHOR_REMOVED)


@virtual
async def test_nothing_unsigned_is_smuggled_into_a_signed_collection_nor_the_reverse(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device) as guests:
        a, b = guests
        await a.notes.put("x", Note("signed"))
        await in_step(guests)
        liar = Forger.of(b)
        forge(memory_relay, a, liar.unsigned(liar.draft(a, "x", "not signed")))
        forge(memory_relay, a, liar.unsigned(Draft("x", b"", 1_001, TOMBSTONE)))
        await set_aside(a, Reason.NOT_SIGNED, Reason.NOT_SIGNED)
        assert a.dump() == {"x": "signed"}
        plain = await notes_of(a.vault)
        await plain.put("x", Note("plain"))
        await in_step(guests)
        keys = b.vault._sync.keys
        sealer = keys.sealer(plain.held.stream, b.vault._sync.held.author, b.vault._sync.identity.hedge_key)
        record = sealer.seal_many(liar.signer.signed([liar.draft(a, "x", "signed")]))[0].encoded
        memory_relay.offer(memory_relay.log.forge(a.vault.id, plain.held.stream, record))
        a = a._replace(notes=plain)
        for _ in range(100):
            if await reasons(a) == [Reason.SIGNED_HERE.value]:
                break
            await trio.sleep(1)
        assert await reasons(a) == [Reason.SIGNED_HERE.value]
        assert a.dump() == {"x": "plain"}


SIGNATURES = {
    "of another entry": lambda draft, other: draft._replace(value=other.value[:65] + draft.value[65:]),
    "of another value": lambda draft, other: draft._replace(value=draft.value[:-1] + b"?"),
    "of another version": lambda draft, other: draft._replace(version=draft.version + 1),
    "of an entry that is not deleted": lambda draft, other: draft._replace(
        value=draft.value[:65], flags=SIGNED | TOMBSTONE
    ),
    "of nothing": lambda draft, other: draft._replace(value=b"\1" + bytes(64) + draft.value[65:]),
}


@pytest.mark.parametrize("what", SIGNATURES)
def test_a_signature_counts_for_nothing_else(open_device: OpenDevice, memory_relay: MemoryRelay, what: str) -> None:
    @virtual
    async def test() -> None:
        async with signed_party(open_device, 1) as [a]:
            liar = Forger.of(a)
            x, y = liar.signer.signed([liar.draft(a, "x", "one"), liar.draft(a, "y", "two")])
            forge(memory_relay, a, liar.sealer.seal_many([SIGNATURES[what](x, y)])[0].encoded)
            await set_aside(a, Reason.BAD_SIGNATURE)
            forge(memory_relay, a, liar.sealer.seal_many([x])[0].encoded)
            await comes(lambda: a.dump() == {"x": "one"})

    test()


@virtual
async def test_one_member_cannot_write_as_another_nor_carry_a_signature_into_another_collection(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device) as guests:
        a, b = guests
        liar, honest = Forger.of(b), Forger.of(a)
        keys, author = b.vault._sync.keys, a.vault._sync.held.author
        as_a = keys.sealer(liar.stream, author, b.vault._sync.identity.hedge_key)
        (draft,) = liar.signer._replace(author=author).signed([liar.draft(a, "x", "by b as a")])
        forge(memory_relay, a, as_a.seal_many([draft])[0].encoded)
        other = keys.stream_id("other", signed=True)
        elsewhere = honest.signer._replace(stream=keys.stream(other)).signed([honest.draft(a, "x", "elsewhere")])
        forge(memory_relay, a, as_a.seal_many(elsewhere)[0].encoded)
        await set_aside(a, Reason.BAD_SIGNATURE, Reason.BAD_SIGNATURE)


@pytest.mark.parametrize(
    "value", [b"", b"\1", b"\1" + bytes(63), b"\2" + bytes(131), b"\0" + bytes(64), b"\3" + bytes(200)]
)
def test_a_proof_that_is_laid_out_otherwise_stops_nothing(
    open_device: OpenDevice, memory_relay: MemoryRelay, value: bytes
) -> None:
    @virtual
    async def test() -> None:
        async with signed_party(open_device, 1) as [a]:
            liar = Forger.of(a)
            sealed = liar.sealer.seal_many([Draft("x", value or b"\0", 1_000, SIGNED)])[0].encoded
            forge(memory_relay, a, sealed)
            await set_aside(a, Reason.MALFORMED if value[:1] in (b"\1", b"\2") else Reason.UNKNOWN_KIND)
            deleted = liar.signer.signed([Draft("y", b"", 1_000, TOMBSTONE)])[0]
            forge(memory_relay, a, liar.sealer.seal_many([deleted._replace(value=deleted.value + b"?")])[0].encoded)
            await a.notes.put("z", Note("goes on"))
            await in_step([a])
            assert a.dump() == {"z": "goes on"}
            assert (await reasons(a))[1] == Reason.MALFORMED.value

    test()


# --- those who are gone, and who vouches for them


@virtual
async def test_what_a_removed_device_wrote_in_time_stays_with_those_who_had_it_and_comes_to_others_once_vouched_for(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 3) as guests:
        a, b, c = guests
        await c.notes.put("x", Note("in time"))
        await in_step(guests)
        gone = Forger.of(c)
        await a.vault.remove(c.device.key)
        await in_step([a, b])
        async with open_device("newcomer") as device:
            d = await signing_guest(await joined(device, a.vault))
            await set_aside(d, Reason.AUTHOR_REMOVED)
            assert (a.dump(), b.dump(), d.dump()) == ({"x": "in time"}, {"x": "in time"}, {})
            (first,) = ledger_log(memory_relay, a)
            (draft,) = gone.signer.signed([gone.draft(a, "x", "in time", first.version)])
            assert a.vault._sync.keys.current.number == 2
            present = stream_of(b).sealer
            salt = bytes(8)
            for again in (draft, vouched(b, gone, draft, 2, by_epoch=1)):
                salt = bytes((salt[0] + 1,)) + salt[1:]
                forge(memory_relay, a, present.seal_with_salt(again, gone.signer.author, salt).encoded)
            await set_aside(d, *[Reason.AUTHOR_REMOVED] * 3)
            assert await reasons(a) == [Reason.AUTHOR_REMOVED.value] * 0
            right = vouched(b, gone, draft, 2)
            forge(memory_relay, a, present.seal_with_salt(right, gone.signer.author, b"\xff" * 8).encoded)
            await comes(lambda: d.dump() == {"x": "in time"})
            await set_aside(d)
            for guest in (a, b):
                assert guest.dump() == {"x": "in time"}
            await a.vault.remove(b.device.key)
            async with open_device("last") as other:
                last = await signing_guest(await joined(other, a.vault))
                await set_aside(last, *[Reason.AUTHOR_REMOVED] * 4)
                assert last.dump() == {}
                assert d.dump() == {"x": "in time"}


@virtual
async def test_who_was_away_when_a_member_was_removed_takes_what_it_had_written_once_it_is_vouched_for(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 3) as guests:
        await in_step(guests)
    async with open_device("device 0") as first, open_device("device 2") as third:
        a, c = [await signing_guest(await returned(device)) for device in (first, third)]
        await c.notes.put("x", Note("in time"))
        await in_step([a, c])
        with no_reseals(memory_relay):
            await a.vault.remove(c.device.key)
            async with open_device("device 1") as second:
                b = await signing_guest(await returned(second))
                await set_aside(b, Reason.AUTHOR_REMOVED)
                assert b.dump() == {}
        async with open_device("device 1") as second:
            b = await signing_guest(await returned(second))
            memory_relay.cut()
            await comes(lambda: b.dump() == {"x": "in time"})
            await set_aside(b)


@virtual
async def test_who_had_an_entry_of_a_removed_member_has_it_after_its_file_was_damaged(
    open_device: OpenDevice, memory_relay: MemoryRelay, tmp_path: Path
) -> None:
    with no_reseals(memory_relay):
        async with signed_party(open_device, 3) as guests:
            a, b, c = guests
            await c.notes.put("x", Note("in time"))
            await in_step(guests)
            await a.vault.remove(c.device.key)
            await in_step([a, b])
            table = b.notes.held.table.name
        file = tmp_path / "device 1" / FILE_NAME
        overwrite(file, pages_of(file.parent, table), random.Random(1))
        file.with_name("replica.damaged").touch()  # so that all of it is looked at
        async with open_device("device 0") as first, open_device("device 1") as second:
            assert second.repaired is not None
            a, b = [await signing_guest(await returned(device)) for device in (first, second)]
            await in_step([a, b])
            assert b.dump() == {"x": "in time"}
            await set_aside(b)


@contextmanager
def no_reseals(relay: MemoryRelay) -> Iterator[None]:
    """In the block the relay hears of nothing that is sealed anew."""

    def unheard(message: Message) -> Sequence[Message]:
        return () if isinstance(message, Push) and message.flags & RESEAL else (message,)

    relay.mishear = unheard
    try:
        yield
    finally:
        relay.mishear = None


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_removed_device_deleted_in_time_is_deleted_for_those_who_come_later(
    open_device: OpenDevice, memory_relay: MemoryRelay, policy: str
) -> None:
    @virtual
    async def test() -> None:
        async with signed_party(open_device, 3, POLICIES[policy]) as guests:
            a, b, c = guests
            await a.notes.put_many({"x": Note("by a"), "y": Note("by a")})
            await in_step(guests)
            await c.notes.delete("x")
            await b.notes.delete("y")
            await in_step(guests)
            await a.vault.remove(c.device.key)
            await in_step([a, b])
            async with open_device("newcomer") as device:
                d = await signing_guest(await joined(device, a.vault), POLICIES[policy])
                await comes(lambda: len(ledger_log(memory_relay, a)) == 5)
                await in_step([a, b, d])
                assert d.dump() == {}
                await set_aside(d)
                await a.vault.rotate()
                await trio.sleep(3_600)
                assert len(ledger_log(memory_relay, a)) == 5  # it is vouched for once

    test()


@virtual
async def test_nobody_but_a_member_that_may_write_vouches_for_anybody(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 3) as guests, open_device("reader") as device:
        a, b, c = guests
        invite = await a.vault.invite(role=Role.READER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            vault = await device.join(invite.link)
        reader = Guest(device, vault, await ledger_of(vault))
        await in_step([*guests, reader])
        gone = Forger.of(c)
        await a.vault.remove(c.device.key)
        await in_step([a, b, reader])
        (draft,) = gone.signer.signed([gone.draft(a, "x", "too late")])
        present, author = stream_of(b).sealer, gone.signer.author
        for number, again in enumerate((vouched(reader, gone, draft, 2), vouched(c, gone, draft, 2))):
            forge(memory_relay, a, present.seal_with_salt(again, author, bytes((number,)) * 8).encoded)
        await set_aside(a, Reason.AUTHOR_REMOVED, Reason.AUTHOR_REMOVED)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_comes_before_the_link_that_adds_its_author_is_read_when_the_link_is_here(
    open_device: OpenDevice, memory_relay: MemoryRelay, restarted: bool
) -> None:
    @virtual
    async def test() -> None:
        async with signed_party(open_device, 3) as guests:
            a, b, c = guests
            sync = b.vault._sync
            sync.members.membership = await earlier(b, 2)  # before c
            forger = Forger.of(c)
            forge(memory_relay, a, forger.signed(forger.draft(a, "x", "by c")))
            await comes(lambda: a.dump() == {"x": "by c"})
            await set_aside(b, Reason.UNKNOWN_AUTHOR)
            assert b.dump() == {}
            if not restarted:
                sync._rekeying._looked.clear()
                sync.members.read_anew()
                sync._listen_again()
                await comes(lambda: b.dump() == {"x": "by c"})
                await set_aside(b)
        async with party(open_device, 2) as found:
            b = await signing_guest(found[1])
            await comes(lambda: b.dump() == {"x": "by c"})
            await set_aside(b)

    test()


async def earlier(guest: Guest, head: int) -> Membership:
    """The members as they were after so many links."""
    return membership_of((await guest.vault._sync.members.links())[:head], verified_before)


# --- what is given back


@virtual
async def test_records_that_a_relay_has_lost_come_back_with_their_signatures(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 3) as guests:
        a, b, c = guests
        backup = memory_relay.backup()
        await b.notes.put("x", Note("by b"))
        await b.notes.put("gone", Note("by b"))
        await in_step(guests)
        await b.notes.delete("gone")
        await c.notes.put("y", Note("by c"))
        await in_step(guests)
        before = {record.tag: record for record in ledger_log(memory_relay, a)}
    memory_relay.restore(backup)
    async with open_device("device 0") as first:
        a = await signing_guest(await returned(first))
        await comes(lambda: len(ledger_log(memory_relay, a)) == 3)
        assert {record.tag: record for record in ledger_log(memory_relay, a)} == before
        async with open_device("newcomer") as device:
            d = await signing_guest(await joined(device, a.vault))
            await in_step([a, d])
            assert d.dump() == {"x": "by b", "y": "by c"}
            await set_aside(d)


@virtual
async def test_a_removed_authors_record_is_given_back_by_those_who_had_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 4) as guests:
        a, b, c, d = guests
        await a.vault.remove(d.device.key)
        await in_step([a, b, c])
        backup = memory_relay.backup()
        await c.notes.put("x", Note("in time"))
        await in_step([a, b, c])
        before = ledger_log(memory_relay, a)
        await a.vault.remove(c.device.key)
        await in_step([a, b])
    memory_relay.restore(backup)
    async with open_device("device 0") as first, open_device("device 1") as second:
        a, b = [await signing_guest(await returned(device)) for device in (first, second)]
        await comes(lambda: ledger_log(memory_relay, a)[:1] == before)
        await in_step([a, b])
        assert a.dump() == b.dump() == {"x": "in time"}
        assert [await reasons(guest) for guest in (a, b)] == [[], []]


# --- sizes


@virtual
async def test_a_value_leaves_room_for_who_may_come_to_vouch_for_it(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 1) as [a]:
        beside = len(a.notes._schema.encode(Note("x" * 60_000))) - 60_000 + len("x") + 1
        most = PLAINTEXT_BYTES_MAX - 1 - PROOF_BYTES_MAX - beside
        await a.notes.put("x", Note("x" * most))
        with pytest.raises(ValueTooLargeError):
            await a.notes.put("x", Note("x" * (most + 1)))
        await in_step([a])
        gone = Forger.of(a)
        (draft,) = gone.signer.signed([gone.draft(a, "x", "x" * most)])
        gone.sealer.seal_many([vouched(a, gone, draft, 1)])


@virtual
async def test_many_edits_fit_into_the_pushes_that_they_are_put_into(
    open_device: OpenDevice, memory_relay: MemoryRelay
) -> None:
    async with signed_party(open_device, 1) as [a]:
        with asked_of(memory_relay, Push) as pushes:
            await put_many(a, "n", 3_000)
            await in_step([a])
        sizes = [len(group.records) for push in pushes for group in push.groups]
        assert len(sizes) > 1 and max(sizes) <= SEGMENT_BYTES_MAX
        assert max(sizes) > SEGMENT_BYTES_MAX // 2
