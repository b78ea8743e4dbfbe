"""The relay in memory behaves as the real one when a vault moves: away, to it, and back (R18)."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from sealwire_client import keyring, linkmaking, transport
from sealwire_client.device import Device
from sealwire_client.identity import DeviceIdentity
from sealwire_client.link import AnyRequest, Dialler, Link, LinkState, RelayRefusedError
from sealwire_client.testing import MemoryRelay
from sealwire_client.transport import Transport
from sealwire_client.vault import Vault
from sealwire_protocol.errors import FaultCode, Outcome
from sealwire_protocol.events import Beside, Listen, Submit
from sealwire_protocol.ids import MEMBERSHIP, START, Author, MailboxId, Position, StreamId, Tag, VaultId
from sealwire_protocol.links import Role, decode_links, encode_links
from sealwire_protocol.membership import Membership, verified_before
from sealwire_protocol.messages import (
    NO_REQUEST,
    AppendLink,
    CreateStream,
    CreateVault,
    Deliver,
    Fault,
    Group,
    Join,
    OfferLinks,
    OpenMailbox,
    Push,
    Pushed,
    Ranges,
    Reconcile,
    StreamKind,
    Subscribed,
    Wanted,
)
from sealwire_protocol.reconcile import ROOT
from sealwire_protocol.segment import Record, encode_segment
from tests.client.party import Note, founded, joined
from tests.client.realrelay import WAIT_S_MAX
from tests.client.test_conformance import OPEN, Pusher, agree, refused

pytestmark = pytest.mark.trio

ELSEWHERE = "wss://elsewhere.example.org"


class Places(NamedTuple):
    """Two relays, and how they are found."""

    old: str
    new: str
    dialler: Dialler


@pytest.fixture(scope="module")
def real_relays() -> Iterator[list[str]]:
    """The addresses of two real relays, each in a process of its own."""
    command = [sys.executable, "-m", "tests.support.memory_relay", "0"]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(2)
        ]
        ports = [int(process.stdout.readline()) for process in processes if process.stdout is not None]
        yield [f"ws://127.0.0.1:{port}" for port in ports]
        for process in processes:
            process.terminate()


@pytest.fixture(params=["memory", "real"])
def places(request: pytest.FixtureRequest) -> Places:
    if request.param == "real":
        old, new = request.getfixturevalue("real_relays")
        return Places(old, new, transport.dial)
    relays = {origin: MemoryRelay(origin) for origin in ("wss://old.test", "wss://new.test")}

    @asynccontextmanager
    async def dial(origin: str) -> AsyncIterator[Transport]:
        async with relays[origin].dial(origin) as wire:
            yield wire

    return Places("wss://old.test", "wss://new.test", dial)


class Member(Pusher):
    """A member at one relay that listens to the log and to one stream, and notes what it is told."""

    def __init__(self, link: Link, vault: VaultId) -> None:
        super().__init__(link, vault)
        self.link, self.vault = link, vault
        self.links: list[bytes] = []
        self.faults: list[Fault] = []
        self.lost: list[StreamId] = []
        self.states: list[Subscribed] = []
        self.verdicts: list[Pushed] = []
        self._told = trio.Event()
        link.follow(vault, self)

    def subscribed(self, message: Subscribed) -> None:
        self.term = message.term
        self.states.append(message)
        self._stir()

    def pushed(self, message: Pushed) -> None:
        self.verdicts.append(message)
        self._stir()

    def fault(self, message: Fault) -> None:
        self.faults.append(message)
        self._stir()

    def history_lost(self, stream: StreamId, reason: str) -> None:
        self.lost.append(stream)

    async def apply(self, delivers: Sequence[Deliver]) -> list[tuple[StreamId, Position]]:
        for each in delivers:
            if each.stream == MEMBERSHIP:
                self.links[each.prev :] = decode_links(each.segment)
        self._stir()
        return [(each.stream, Position(each.term, each.last)) for each in delivers]

    def _stir(self) -> None:
        self._told.set()
        self._told = trio.Event()

    async def until(self, links: int) -> None:
        """Wait until the log has so many links."""
        with trio.fail_after(WAIT_S_MAX):
            while len(self.links) < links:
                await self._told.wait()

    async def listen(self) -> Subscribed:
        """Subscribe to the log and the stream."""
        wanted = tuple(Wanted(stream, START, START) for stream in (MEMBERSHIP, OPEN))
        before = len(self.states)
        self.link.handle(Listen(self.vault, wanted, (Beside(), Beside())))
        return await self.told_after(before)

    async def told_after(self, before: int) -> Subscribed:
        """The next SUBSCRIBED after so many."""
        with trio.fail_after(WAIT_S_MAX):
            while len(self.states) <= before:
                await self._told.wait()
        return self.states[-1]

    async def send(self, batch: int, record: Record) -> Pushed | Fault:
        """What becomes of a batch with one record."""
        before = len(self.faults)
        group = Group(OPEN, b"", encode_segment([record]))
        self.link.handle(Submit(Push(self.vault, self.term, batch, 0, (group,))))
        with trio.fail_after(WAIT_S_MAX):
            while not self.verdicts and len(self.faults) == before:
                await self._told.wait()
        return self.verdicts.pop() if self.verdicts else self.faults[-1]


async def outcome(member: Member, batch: int, record: Record) -> Outcome:
    told = await member.send(batch, record)
    assert isinstance(told, Pushed), told
    return told.outcome


async def message_of(link: Link, asked: AnyRequest) -> tuple[FaultCode, str]:
    with pytest.raises(RelayRefusedError) as caught:
        await link.request(asked)
    return caught.value.fault.code, caught.value.fault.message


class Stage:
    """A vault of two admins, with one record, at the old relay; the new one has its genesis link."""

    def __init__(self, places: Places, nursery: trio.Nursery) -> None:
        self.places, self._nursery = places, nursery
        self.admin, self.second = DeviceIdentity.generate(), DeviceIdentity.generate()
        genesis, self.keys = linkmaking.new_vault(self.admin, keyring.Names("a", "home"))
        self.vault, self.log, self.links = self.keys.vault, Membership(), [genesis]
        self.log.apply(genesis, verified_before)
        self.box = MailboxId(self.vault)

    async def dial(self, origin: str, identity: DeviceIdentity) -> Link:
        link = Link(origin, identity, self.places.dialler)
        self._nursery.start_soon(link.run)
        await link.until(lambda link: link.state is LinkState.ONLINE)
        return link

    async def set_up(self) -> None:
        self.here, self.there = [await self.dial(origin, self.admin) for origin in self.places[:2]]
        for link in (self.here, self.there):
            await link.request(CreateVault(NO_REQUEST, self.links[0]))
        added = self.second.device_key, self.second.box_key, Role.ADMIN, "b"
        await self.here.request(self.grow(linkmaking.add_device_link(self.admin, self.log, self.keys, *added)))
        await self.here.request(CreateStream(NO_REQUEST, self.vault, OPEN, StreamKind.OPEN))
        await self.here.request(OpenMailbox(NO_REQUEST, self.vault, self.box, 60))
        self.mover = Member(self.here, self.vault)
        self.other = Member(await self.dial(self.places.old, self.second), self.vault)
        self.first = await self.mover.listen()
        await self.other.listen()
        sent = await self.mover.send(1, self.record(1))
        assert isinstance(sent, Pushed) and [each.first for each in sent.appended] == [1]
        self.sent = sent

    def record(self, version: int) -> Record:
        """A record of the admin's, of one tag."""
        salt = bytes([version] * 8)
        return Record(Tag(bytes(16)), version, Author(1), 1, self.keys.current.key_id, 0, salt, bytes(32))

    def grow(self, raw: bytes) -> AppendLink:
        """One more link of the log."""
        self.links.append(raw)
        self.log.apply(raw, verified_before)
        return AppendLink(NO_REQUEST, self.vault, raw)

    def move(self, origin: str) -> AppendLink:
        """The link by which the vault goes there."""
        return self.grow(linkmaking.move_link(self.admin, self.log, self.keys, origin))

    async def settle(self) -> Member:
        """Give the new relay the log and the stream, and listen there."""
        for raw in self.links[1:]:
            await self.there.request(AppendLink(NO_REQUEST, self.vault, raw))
        await self.there.request(CreateStream(NO_REQUEST, self.vault, OPEN, StreamKind.OPEN))
        settler = Member(self.there, self.vault)
        told = await settler.listen()
        assert (told.last_batch, told.streams[1].head, told.streams[0].head) == (0, 0, len(self.links))
        return settler


@pytest.fixture
async def stage(places: Places) -> AsyncIterator[Stage]:
    async with trio.open_nursery() as nursery:
        found = Stage(places, nursery)
        await found.set_up()
        yield found
        nursery.cancel_scope.cancel()


async def test_a_vault_that_has_moved_away_can_be_read_and_takes_in_links_alone(stage: Stage) -> None:
    here, mover, other, new = stage.here, stage.mover, stage.other, stage.places.new
    rival = linkmaking.move_link(stage.second, stage.log, stage.keys, ELSEWHERE)
    away = stage.move(new)
    for _ in range(2):
        await here.request(away)
    conflict = AppendLink(NO_REQUEST, stage.vault, rival)
    assert await refused(other.link, conflict) is FaultCode.LINK_CONFLICT, "somebody else has moved it"
    await other.until(links=3)
    assert other.links == stage.links
    assert await mover.send(1, stage.record(1)) == stage.sent, "its outcome is known"
    for _ in range(2):
        assert await outcome(mover, 2, stage.record(2)) is Outcome.MOVED
    stranger = await stage.dial(stage.places.old, DeviceIdentity.generate())
    for link, asked in (
        (here, CreateStream(NO_REQUEST, stage.vault, StreamId(b"another."), StreamKind.OPEN)),
        (here, OpenMailbox(NO_REQUEST, stage.vault, MailboxId(b"another mailbox."), 60)),
        (stranger, Join(NO_REQUEST, stage.box, b"sealed")),
    ):
        code, message = await message_of(link, asked)
        assert code is FaultCode.MOVED and new in message
    ranges = await other.link.request(Reconcile(NO_REQUEST, stage.vault, OPEN, START, (ROOT,)))
    assert isinstance(ranges, Ranges) and ranges.total.records == 1, "it stays to be read"


async def test_the_relay_to_which_a_vault_moves_takes_it_in_and_the_next_move_sends_it_on(stage: Stage) -> None:
    await stage.here.request(stage.move(stage.places.new))
    settler = await stage.settle()
    assert await outcome(settler, 7, stage.record(3)) is Outcome.DONE, "numbers go on from the old relay"
    await stage.there.request(stage.move(ELSEWHERE))
    assert await outcome(settler, 8, stage.record(4)) is Outcome.MOVED
    assert await outcome(stage.mover, 2, stage.record(4)) is Outcome.MOVED


async def test_a_vault_that_comes_back_begins_anew_under_terms_of_its_own(stage: Stage) -> None:
    mover, other, here = stage.mover, stage.other, stage.here
    await here.request(stage.move(stage.places.new))
    settler = await stage.settle()
    await other.until(links=3)
    back = stage.move(stage.places.old)
    await stage.there.request(back)
    assert await outcome(settler, 1, stage.record(4)) is Outcome.MOVED
    known = len(mover.states), len(other.states)
    await here.request(back)
    for member, before in zip((mover, other), known, strict=True):
        told = await member.told_after(before)
        [(own, start)] = told.streams[1].terms
        assert (told.term, told.last_batch, told.streams[1].head, start) == (stage.first.term, member is mover, 0, 0)
        assert own.number == told.term.number and own != told.term
        assert [fault.code for fault in member.faults] == [FaultCode.TERM_CHANGED]
    assert mover.lost == [OPEN], "what it had been told stood in another history"
    assert await mover.send(1, stage.record(1)) == stage.sent, "what was said of a batch stays true"
    sent = await mover.send(5, stage.record(5))
    assert isinstance(sent, Pushed) and [(each.term, each.first) for each in sent.appended] == [(own, 1)]
    gap = await mover.send(7, stage.record(6))
    assert isinstance(gap, Fault) and gap.code is FaultCode.BATCH_GAP
    kind = CreateStream(NO_REQUEST, stage.vault, OPEN, StreamKind.GUARDED)
    assert await refused(other.link, kind) is FaultCode.STREAM_KIND


async def test_another_end_of_the_log_brings_a_vault_back(stage: Stage) -> None:
    """A rotation was signed in the place of the MOVE, and stands: a higher epoch."""
    before = stage.log.copy()
    await stage.here.request(stage.move(stage.places.new))
    assert await outcome(stage.mover, 2, stage.record(2)) is Outcome.MOVED
    end = linkmaking.new_epoch_link(stage.admin, before, stage.keys)
    known = len(stage.mover.states)
    await stage.here.request(OfferLinks(NO_REQUEST, stage.vault, 2, encode_links([end])))
    told = await stage.mover.told_after(known)
    assert (told.epoch, told.streams[1].head, len(told.streams[1].terms)) == (2, 0, 1)
    assert await outcome(stage.mover, 2, stage.record(2)) is Outcome.EPOCH_STALE, "it is here, with another key"


async def is_at(vault: Vault, origin: str) -> None:
    await vault._sync.until(lambda sync: sync.held.origin == origin)


async def test_devices_go_to_and_fro_without_waiting(places: Places, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        devices = [
            await stack.enter_async_context(Device.open(tmp_path / name, relay=places.old, dialler=places.dialler))
            for name in ("a", "b")
        ]
        hosts = [await founded(devices[0]) for _ in range(2)]
        b = await joined(devices[1], hosts[0].vault)
        a = hosts[0]
        await a.notes.put("x", Note("before"))
        await agree(a, b, entries=1)
        entries = 1
        with trio.fail_after(WAIT_S_MAX):
            for _ in range(2):
                for origin in (places.new, places.old):
                    for host in hosts:
                        await host.vault.move(origin)
                    await is_at(b.vault, origin)
                    for guest in (a, b):
                        await guest.notes.put(f"{entries}", Note("more"))
                        entries += 1
                    await agree(a, b, entries=entries)
        assert {host.vault.origin for host in hosts} == {places.old}
