"""The relay in memory behaves as the real one: the same conversations, as devices see them, with both."""

import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from sealwire_client import cipher, keyring, linkmaking, transport
from sealwire_client.cipher import Secret
from sealwire_client.device import Device
from sealwire_client.identity import DeviceIdentity
from sealwire_client.invites import InviteError
from sealwire_client.keyring import KeyringError
from sealwire_client.link import AnyRequest, Dialler, Link, LinkState, RelayRefusedError
from sealwire_client.testing import MemoryRelay
from sealwire_protocol.conditions import NOTHING, Condition, Names, encode_condition
from sealwire_protocol.errors import FaultCode, Outcome, Refusal
from sealwire_protocol.events import Listen, Submit
from sealwire_protocol.ids import (
    MEMBERSHIP,
    NO_TERM,
    START,
    Author,
    KeyId,
    MailboxId,
    Position,
    StreamId,
    Tag,
    Term,
    VaultId,
)
from sealwire_protocol.limits import ANSWER_BYTES_MAX, MAILBOX_BYTES_MAX
from sealwire_protocol.lines import LostTerm, encode_held
from sealwire_protocol.links import Role, encode_links, link_hash
from sealwire_protocol.membership import Membership, verified_before
from sealwire_protocol.messages import (
    ATOMIC,
    NO_REQUEST,
    REFILL,
    RESEAL,
    AnswerJoin,
    AppendLink,
    CreateStream,
    CreateVault,
    Deliver,
    Fault,
    Fetch,
    Group,
    Join,
    Joined,
    Joining,
    OfferLinks,
    OpenMailbox,
    Prefix,
    Push,
    Pushed,
    Ranges,
    Reconcile,
    Records,
    StreamKind,
    Subscribed,
)
from sealwire_protocol.reconcile import ROOT
from sealwire_protocol.reseals import encode_applied
from sealwire_protocol.segment import Record, encode_segment
from tests.client.party import Guest, Note, Open, founded, joined, notes_of, returned
from tests.client.realrelay import real_relay
from tests.support.vaults import all_have_read

pytestmark = pytest.mark.trio

Dial = Callable[[], AbstractAsyncContextManager[Link]]
NOWHERE = VaultId(b"no vault at all.")


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    """The address of a real relay."""
    with real_relay() as relay:
        yield relay.origin


@pytest.fixture(params=["memory", "real"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Open, Dial]:
    """How devices and bare links are opened, on the one relay and on the other."""
    memory = MemoryRelay() if request.param == "memory" else None
    origin = memory.origin if memory else str(request.getfixturevalue("real"))
    dialler = memory.dial if memory else transport.dial

    def open_device(name: str) -> AbstractAsyncContextManager[Device]:
        return Device.open(tmp_path / name, relay=origin, dialler=dialler)

    @asynccontextmanager
    async def dial() -> AsyncIterator[Link]:
        link = Link(origin, DeviceIdentity.generate(), dialler)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            await link.until(lambda link: link.state is LinkState.ONLINE)
            yield link
            nursery.cancel_scope.cancel()

    return open_device, dial


@pytest.fixture
def open_device(places: tuple[Open, Dial]) -> Open:
    return places[0]


@pytest.fixture
def dial(places: tuple[Open, Dial]) -> Dial:
    return places[1]


async def agree(*guests: Guest, entries: int) -> None:
    """Wait until everything was sent, and all show the same, with so many entries."""
    for guest in guests:
        with guest.notes.changes() as changes:
            while len(guest.notes) != entries:
                await anext(changes)
    for guest in guests:
        await guest.vault.synced()
    await all_have_read([guest.vault for guest in guests])
    assert all(guest.dump() == guests[0].dump() for guest in guests)
    assert len(guests[0].dump()) == entries


async def refused(link: Link, message: AnyRequest) -> FaultCode:
    """The code with which a request is refused."""
    with pytest.raises(RelayRefusedError) as caught:
        await link.request(message)
    return caught.value.fault.code


async def test_devices_meet_and_converge(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        await a.notes.put("x", Note("before"))
        await a.vault.synced()
        b = await joined(second, a.vault)
        await agree(a, b, entries=1)
        await a.notes.put_many((f"key {n:03}", Note("x" * 100, n)) for n in range(500))
        await b.notes.put("y", Note("b's"))
        await agree(a, b, entries=502)
        await b.notes.delete("x")
        await agree(a, b, entries=501)
        for guest in (a, b):
            status = await guest.vault.status()
            assert (status.state, status.pending, status.members, status.last_error) == ("synced", 0, 2, None)


async def test_devices_come_back_and_catch_up(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        await a.vault.synced()
        await joined(second, a.vault)
    async with open_device("a") as first:
        a = await returned(first)
        for number in range(20):
            await a.notes.put(f"key {number}", Note("x" * 2_000))
            await a.vault.synced()
        async with open_device("b") as second:
            b = await returned(second)
            await agree(a, b, entries=20)
            first.wake()
            await b.notes.put("key 0", Note("b's"))
            await b.vault.synced()
            await agree(a, b, entries=20)


async def test_copies_of_a_folder_part_and_keep_everything(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        await a.vault.synced()
        b = await joined(second, a.vault)
        await b.notes.put("x", Note("before"))
        await b.vault.synced()
    shutil.copytree(second.folder, second.folder.with_name("copy"))
    async with open_device("a") as first, open_device("b") as second, open_device("copy") as third:
        guests = [await returned(device) for device in (first, second, third)]
        for number, guest in enumerate(guests):
            await guest.notes.put("x", Note(f"by {number}"))
            await guest.notes.put_many([(f"{number} {n}", Note("kept")) for n in range(3)])
        await agree(*guests, entries=10)
        for guest in guests[1:]:
            await guest.vault._sync.until(lambda sync: sync.held.author > 2 and sync.knows_members)
            await guest.notes.put("y", Note("with new keys"))
        await agree(*guests, entries=11)
        assert len({guest.device.key for guest in guests}) == 3
        await first.vaults[0]._sync.until(lambda sync: sync.membership.head == 4)
        assert (await guests[0].vault.status()).members == 3


async def test_an_invite_works_once(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        a = await founded(first)
        invite = await a.vault.invite()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite.joined)
            b = await second.join(invite.link)
        with pytest.raises(InviteError, match="used by another device"):
            await third.join(invite.link)
        with pytest.raises(KeyringError, match="may not add devices"):
            await b.invite()
        open_mailbox = OpenMailbox(NO_REQUEST, a.vault.id, MailboxId(b"another mailbox."), 60)
        assert await refused(second.link(a.vault.origin), open_mailbox) is FaultCode.NO_SUCH_MAILBOX


async def test_an_answer_to_an_invite_may_name_many_vaults(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a, came = await founded(first), trio.Event()
        await a.vault.known()
        inviter, joiner = first.link(a.vault.origin), second.link(a.vault.origin)
        box, answer, found = MailboxId(b"for all of them."), bytes(ANSWER_BYTES_MAX), list[bytes]()

        def receive(mail: Joining | Joined) -> None:
            found.append(mail.sealed)
            came.set()

        joiner.expect_mail(box, receive)
        await inviter.request(OpenMailbox(NO_REQUEST, a.vault.id, box, 60))
        await joiner.request(Join(NO_REQUEST, box, bytes(MAILBOX_BYTES_MAX)))
        await inviter.request(AnswerJoin(NO_REQUEST, box, answer))
        await came.wait()
        assert found == [answer]
        joiner.expect_mail(box, None)


async def test_two_approvals_at_once_both_come_true(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        a = await founded(first)
        pending = [await a.vault.invite(role=role) for role in (Role.ADMIN, Role.WRITER)]
        async with trio.open_nursery() as nursery:
            for device, invite in zip((second, third), pending, strict=True):
                nursery.start_soon(invite.joined)
                nursery.start_soon(device.join, invite.link)
        assert (await a.vault.status()).members == 3


async def test_a_vault_goes_on_under_a_new_key_without_who_was_removed(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        a = await founded(first)
        b, c = await joined(second, a.vault), await joined(third, a.vault)
        await b.notes.put("x", Note("before"))
        await agree(a, b, c, entries=1)
        await a.vault.rotate()
        await b.notes.put("y", Note("under the second key"))
        await agree(a, b, c, entries=2)
        link = third.link(c.vault.origin)
        await a.vault.remove(third.key)
        await link.until(lambda link: link.state is LinkState.REFUSED)
        await b.notes.put("z", Note("under the third key"))
        await agree(a, b, entries=3)
        assert len(c.dump()) == 2
    async with open_device("a") as first, open_device("b") as second, open_device("c") as third:
        guests = [await returned(device) for device in (first, second)]
        await agree(*guests, entries=3)
        link = third.link(guests[0].vault.origin)
        await link.until(lambda link: link.state is LinkState.ONLINE)
        stream = guests[0].notes.held.stream
        for message in (
            Reconcile(NO_REQUEST, guests[0].vault.id, stream, START, (ROOT,)),
            Fetch(NO_REQUEST, guests[0].vault.id, stream, START, (1,)),
            CreateStream(NO_REQUEST, guests[0].vault.id, StreamId(b"a stream"), StreamKind.OPEN),
            AppendLink(NO_REQUEST, guests[0].vault.id, b"no link"),
        ):
            assert await refused(link, message) is FaultCode.NO_SUCH_VAULT


async def test_strangers_get_the_same_answers(dial: Dial) -> None:
    mailbox, stream = MailboxId(b"no such mailbox."), StreamId(b"a stream")
    async with dial() as link:
        assert await refused(link, CreateVault(NO_REQUEST, b"no link")) is FaultCode.BAD_LINK
        for message in (
            Reconcile(NO_REQUEST, NOWHERE, stream, START, (ROOT,)),
            Fetch(NO_REQUEST, NOWHERE, stream, START, (1,)),
        ):
            assert await refused(link, message) is FaultCode.NO_SUCH_VAULT
        create = CreateStream(NO_REQUEST, NOWHERE, stream, StreamKind.OPEN)
        assert await refused(link, create) is FaultCode.NO_SUCH_VAULT
        assert await refused(link, AppendLink(NO_REQUEST, NOWHERE, b"no link")) is FaultCode.NO_SUCH_VAULT
        assert await refused(link, OpenMailbox(NO_REQUEST, NOWHERE, mailbox, 60)) is FaultCode.NO_SUCH_MAILBOX
        assert await refused(link, Join(NO_REQUEST, mailbox, b"sealed")) is FaultCode.NO_SUCH_MAILBOX
        assert await refused(link, AnswerJoin(NO_REQUEST, mailbox, b"sealed")) is FaultCode.NO_SUCH_MAILBOX


async def test_of_two_ends_of_a_membership_log_the_same_one_stands(dial: Dial) -> None:
    async with dial() as link, dial() as stranger:
        admin = link._identity
        genesis, keys = linkmaking.new_vault(admin, keyring.Names("a", "home"))

        def ends(*names: str) -> list[bytes]:
            """Links behind the genesis link that add fresh devices."""
            log, links = Membership(), list[bytes]()
            log.apply(genesis, verified_before)
            for name in names:
                fresh = DeviceIdentity.generate()
                added = (fresh.device_key, fresh.box_key, Role.WRITER, name)
                links.append(linkmaking.add_device_link(admin, log, keys, *added))
                log.apply(links[-1], verified_before)
            return links

        def offer(links: Sequence[bytes], after: int = 1) -> OfferLinks:
            return OfferLinks(NO_REQUEST, keys.vault, after, encode_links(links))

        one, two, other = ends("x"), ends("y", "z"), ends("v", "w")
        assert await refused(link, offer(one)) is FaultCode.NO_SUCH_VAULT
        await link.request(CreateVault(NO_REQUEST, genesis))
        await link.request(AppendLink(NO_REQUEST, keys.vault, one[0]))
        await link.request(offer(one))
        assert await refused(link, AppendLink(NO_REQUEST, keys.vault, two[0])) is FaultCode.LINK_CONFLICT
        for wrong in ([two[0][:-1] + bytes([two[0][-1] ^ 1]), two[1]], [two[1]], [b"no link"]):
            assert await refused(link, offer(wrong)) is FaultCode.BAD_LINK
            assert await refused(stranger, offer(wrong)) is FaultCode.NO_SUCH_VAULT
        assert await refused(stranger, offer(two, 5)) is FaultCode.NO_SUCH_VAULT
        await stranger.request(offer(two))  # whoever has links may give them: they are signed
        assert await refused(link, offer(one)) is FaultCode.LINK_CONFLICT
        better = other if link_hash(other[1]) < link_hash(two[1]) else two
        if better is other:
            await link.request(offer(other))
        assert await refused(link, offer(two if better is other else other)) is FaultCode.LINK_CONFLICT
        await link.request(offer(better))


async def test_a_vault_that_was_deleted_gets_the_same_answers(open_device: Open) -> None:
    async with open_device("a") as first:
        a = await founded(first)
        await a.vault.synced()
        vault, link = a.vault.id, a.vault._sync.link
        await a.vault.delete()
        links = await a.vault._sync.members.links()
        await link.request(CreateVault(NO_REQUEST, links[0]))
        await link.request(AppendLink(NO_REQUEST, vault, links[1]))
        asked = CreateStream(NO_REQUEST, vault, a.notes.held.stream, StreamKind.OPEN)
        assert await refused(link, asked) is FaultCode.VAULT_DELETED
        compared = Reconcile(NO_REQUEST, vault, a.notes.held.stream, START, (ROOT,))
        assert await refused(link, compared) is FaultCode.VAULT_DELETED
        mailbox = OpenMailbox(NO_REQUEST, vault, MailboxId(b"b" * 16), 60)
        assert await refused(link, mailbox) is FaultCode.NO_SUCH_MAILBOX


async def test_members_get_the_same_answers(open_device: Open) -> None:
    async with open_device("a") as first, open_device("b") as second:
        a = await founded(first)
        other = await founded(second)
        await a.vault.synced()
        await other.vault.synced()
        link, theirs = first.link(a.vault.origin), second.link(a.vault.origin)
        neither = CreateStream(NO_REQUEST, a.vault.id, StreamId(b"a stream"), StreamKind.MEMBERSHIP)
        assert await refused(link, neither) is FaultCode.UNSUPPORTED
        members = CreateStream(NO_REQUEST, a.vault.id, MEMBERSHIP, StreamKind.OPEN)
        assert await refused(link, members) is FaultCode.UNSUPPORTED
        open_ = CreateStream(NO_REQUEST, a.vault.id, StreamId(b"a stream"), StreamKind.OPEN)
        assert await refused(theirs, open_) is FaultCode.NO_SUCH_VAULT
        await link.request(open_)
        await link.request(open_)
        guarded = CreateStream(NO_REQUEST, a.vault.id, StreamId(b"a stream"), StreamKind.GUARDED)
        assert await refused(link, guarded) is FaultCode.STREAM_KIND
        await link.request(replace(guarded, stream=StreamId(b"guarded.")))
        genesis = (await first._writer.run(lambda replica: replica.vaults.links(1)))[0]
        await link.request(CreateVault(NO_REQUEST, genesis))
        await theirs.request(CreateVault(NO_REQUEST, genesis))
        assert await refused(theirs, CreateVault(NO_REQUEST, genesis[:-1] + b"x")) is FaultCode.BAD_LINK
        for one in (link, theirs):
            await one.request(AppendLink(NO_REQUEST, a.vault.id, genesis))
        foreign = (await second._writer.run(lambda replica: replica.vaults.links(1)))[0]
        assert await refused(link, AppendLink(NO_REQUEST, a.vault.id, foreign)) is FaultCode.LINK_CONFLICT
        assert await refused(link, AppendLink(NO_REQUEST, a.vault.id, b"no link")) is FaultCode.BAD_LINK
        for raw in (foreign, b"no link"):
            assert await refused(theirs, AppendLink(NO_REQUEST, a.vault.id, raw)) is FaultCode.NO_SUCH_VAULT
        notes = await notes_of(a.vault)
        assert len(notes) == 0


# --- pushes, without a device of ours above them

OPEN, FIRST, SECOND = StreamId(b"an open."), StreamId(b"guarded1"), StreamId(b"guarded2")
KINDS = {OPEN: StreamKind.OPEN, FIRST: StreamKind.GUARDED, SECOND: StreamKind.GUARDED}


class Pusher:
    """A follower that pushes one batch after the other, and listens to no stream."""

    def __init__(self, link: Link, vault: VaultId) -> None:
        self._link, self._vault = link, vault
        self._send, self._receive = trio.open_memory_channel[Subscribed | Pushed](10)
        self.term = NO_TERM

    def online(self) -> None:
        assert self.term == NO_TERM, "the relay had hung up"

    def offline(self) -> None:
        """Said again when the connection is back, which it must not come to."""

    def subscribed(self, message: Subscribed) -> None:
        self._send.send_nowait(message)

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        raise AssertionError(delivers)

    def pushed(self, message: Pushed) -> None:
        self._send.send_nowait(message)

    def fault(self, message: Fault) -> None:
        raise AssertionError(message)

    def history_lost(self, stream: StreamId, reason: str) -> None:
        raise AssertionError(reason)

    async def subscribe(self) -> None:
        self._link.handle(Listen(self._vault, ()))
        told = await self._receive.receive()
        assert isinstance(told, Subscribed)
        self.term = told.term

    async def push(self, batch: int, flags: int, groups: tuple[Group, ...]) -> Pushed:
        """The verdict, under whatever term, on a batch."""
        self._link.handle(Submit(Push(self._vault, self.term, batch, flags, groups)))
        told = await self._receive.receive()
        assert isinstance(told, Pushed)
        appended = tuple(row._replace(term=NO_TERM) for row in told.appended)
        return replace(told, appended=appended)


class Pushes:
    """Pushes to two guarded streams and an open one, as a seed has them: some conflict, some make no sense."""

    def __init__(self, seed: int, key_id: KeyId) -> None:
        self._chance, self._epoch, self._key_id = random.Random(seed), 1, key_id
        self._seen: list[Record] = []

    def rotate(self, key_id: KeyId) -> None:
        """The vault has another key from now on."""
        self._epoch, self._key_id = self._epoch + 1, key_id

    def next(self, term: Term) -> tuple[int, tuple[Group, ...]]:
        """Flags and groups of a push under this term."""
        flags = self._chance.choice((0, REFILL)) | self._chance.choice((0, ATOMIC))
        flags = RESEAL if self._chance.random() < 0.3 else flags
        streams = self._chance.sample(list(KINDS), self._chance.randint(1, 3))
        if flags == RESEAL:
            return flags, tuple(self._resealed(stream, term) for stream in streams)
        if flags & REFILL:
            return flags, tuple(self._returned(stream, term) for stream in streams)
        return flags, tuple(self._group(stream) for stream in streams)

    def _resealed(self, stream: StreamId, term: Term) -> Group:
        chance = self._chance
        held = [one for one in self._seen[-8:] if one.version < 2**32] or [self._record()]
        old = list({one.tag: one for one in chance.sample(held, min(len(held), chance.choice((1, 1, 2, 3))))}.values())
        changes: dict[str, Any] = {
            "epoch": self._epoch,
            "key_id": self._key_id,
            "author": Author(chance.randrange(1, 4)),
        }
        if chance.random() < 0.05:
            changes |= chance.choice(({"version": 2**40}, {"epoch": 1}, {"key_id": KeyId(b"none")}))
        records = [one._replace(salt=chance.randbytes(8), **changes) for one in old]
        if KINDS[stream] is StreamKind.GUARDED:
            stated = b"".join(one.salt for one in old)
        else:
            other = chance.random() < 0.05
            stated = encode_applied(Position(Term(term.number, b"another.") if other else term, chance.randrange(60)))
        if chance.random() < 0.03:
            stated = chance.choice((b"", stated[:-1], stated + b"\0"))
        self._seen.extend(records)
        return Group(stream, stated, encode_segment(records))

    def _returned(self, stream: StreamId, term: Term) -> Group:
        chance = self._chance
        records = [self._record() for _ in range(chance.choice((1, 1, 2, 3)))]
        if chance.random() < 0.05:
            changes = chance.choice(({"author": Author(2)}, {"epoch": 9}, {"key_id": KeyId(b"none")}))
            records = [one._replace(**changes) for one in records]
        terms = term, Term(term.number + 1, b"lost...."), Term(0, b"before..")
        before = {terms[1]: LostTerm(chance.choice((terms[0], terms[2])), chance.randrange(60))}
        positions = [Position(chance.choice(terms), chance.randrange(60)) for _ in records]
        compared = Position(terms[0], positions[0].seq) if positions[0].seq % 3 == 0 else START
        held = encode_held(positions, before, compared)
        if chance.random() < 0.03:
            held = chance.choice((b"", held[:-1], held + b"\0"))
        self._seen.extend(records)
        return Group(stream, held, encode_segment(records))

    def _group(self, stream: StreamId) -> Group:
        chance = self._chance
        epoch = self._epoch + 1 if chance.random() < 0.02 else self._epoch
        records = [self._record()._replace(epoch=epoch) for _ in range(chance.choice((1, 1, 1, 2)))]
        conditions = (
            b"".join(encode_condition(self._condition()) for _ in records)
            if KINDS[stream] is StreamKind.GUARDED
            else b""
        )
        if chance.random() < 0.03:
            conditions = chance.choice((b"", b"\0" * 5, b"\x03", conditions + b"\0", conditions[:-1]))
        self._seen.extend(records)
        return Group(stream, conditions, encode_segment(records))

    def _record(self) -> Record:
        chance = self._chance
        if self._seen and chance.random() < 0.1:
            return chance.choice(self._seen)._replace(author=Author(1), epoch=self._epoch, key_id=self._key_id)
        tag, version, flags = Tag(bytes([chance.randrange(3)]) * 16), chance.randrange(1, 40), chance.choice((0, 0, 1))
        version = version + 2**33 if chance.random() < 0.02 else version
        body = chance.randbytes(chance.choice((1, 20, 1_000)) * 16 + 16)
        return Record(tag, version, Author(1), self._epoch, self._key_id, flags, chance.randbytes(8), body)

    def _condition(self) -> Condition:
        chance = self._chance
        if not self._seen or chance.random() < 0.3:
            return NOTHING
        return Condition(chance.choice((Names.ENTRY, Names.TOMBSTONE)), *self._named())

    def _named(self) -> tuple[int, bytes]:
        record = self._chance.choice(self._seen[-6:])
        return record.version, record.salt


async def compared(link: Link, vault: VaultId) -> list[tuple[object, ...]]:
    """What a relay tells of its streams, range by range and record by record, under whatever term."""
    told: list[tuple[object, ...]] = []
    parts = tuple(Prefix(1, bytes([part << 4]) + bytes(15)) for part in range(16))
    ranges = ROOT, *parts, Prefix(32, bytes(16)), Prefix(31, b"\1" * 15 + b"\x10")
    for stream in (*KINDS, StreamId(b"absent..")):
        found = await link.request(Reconcile(NO_REQUEST, vault, stream, START, ranges))
        assert isinstance(found, Ranges)
        told.append((found.pin.seq, found.total, found.top, found.cleaned_to, len(found.terms), found.branches))
        if found.pin == START:
            fetch = Fetch(NO_REQUEST, vault, stream, START, (1,))
            assert await refused(link, fetch) is FaultCode.STALE_PIN
            continue
        again = await link.request(Reconcile(NO_REQUEST, vault, stream, found.pin, ranges[:1]))
        assert isinstance(again, Ranges)
        assert (again.pin, again.branches) == (found.pin, found.branches[:1])
        seqs = (*range(found.pin.seq + 1), found.pin.seq + 9)
        records = await link.request(Fetch(NO_REQUEST, vault, stream, found.pin, seqs))
        assert isinstance(records, Records)
        told.append((records.cleaned_to, records.considered, records.records))
        for lost in (Position(found.pin.term, found.pin.seq + 1), Position(Term(9, b"lost...."), 1)):
            assert await refused(link, Reconcile(NO_REQUEST, vault, stream, lost, ())) is FaultCode.STALE_PIN
            assert await refused(link, Fetch(NO_REQUEST, vault, stream, lost, ())) is FaultCode.STALE_PIN
    return told


async def verdicts(origin: str, dialler: Dialler, seed: int) -> tuple[list[Pushed], list[tuple[object, ...]]]:
    """What a relay says of a seed's pushes, and of some of them once more; and what it holds then."""
    identity = DeviceIdentity(Secret(seed.to_bytes(32, "big")))
    genesis, keys = linkmaking.new_vault(identity, keyring.Names("device", "vault"), random.Random(seed).randbytes)
    pushes, told, members = Pushes(seed, keys.current.key_id), list[Pushed](), Membership()
    members.apply(genesis, cipher.verify)
    link = Link(origin, identity, dialler)
    pusher = Pusher(link, keys.vault)
    link.follow(keys.vault, pusher)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await link.request(CreateVault(NO_REQUEST, genesis))
        for stream, kind in KINDS.items():
            await link.request(CreateStream(NO_REQUEST, keys.vault, stream, kind))
        await link.until(lambda link: link.state is LinkState.ONLINE)
        await pusher.subscribe()
        for batch in range(1, 121):
            if batch in (40, 80):
                rotation = linkmaking.new_epoch_link(identity, members, keys, random=random.Random(batch).randbytes)
                await link.request(AppendLink(NO_REQUEST, keys.vault, rotation))
                members.apply(rotation, cipher.verify)
                keys = keyring.keys_from_log(identity, members)
                pushes.rotate(keys.current.key_id)
            flags, groups = pushes.next(pusher.term)
            for _ in range(1 + (batch % 5 == 0)):
                told.append(await pusher.push(batch, flags, groups))
        holds = await compared(link, keys.vault)
        nursery.cancel_scope.cancel()
    return told, holds


@pytest.mark.parametrize("seed", range(1, 7))
async def test_pushes_get_the_same_verdicts(real: str, seed: int) -> None:
    memory = MemoryRelay()
    told, holds = await verdicts(memory.origin, memory.dial, seed)
    assert any(len(pushed.appended) > 1 for pushed in told)
    assert (told, holds) == await verdicts(real, transport.dial, seed)
    reasons = {refused.reason for pushed in told for refused in pushed.refused}
    assert reasons == {Refusal.CONFLICT, Refusal.ATOMIC, Refusal.SUPERSEDED}
    assert any(refused.winner for pushed in told for refused in pushed.refused)
    assert {pushed.outcome for pushed in told} >= {Outcome.DONE, Outcome.MALFORMED, Outcome.SEAL_AGAIN}
    assert sum(len(pushed.appended) for pushed in told) > 10
