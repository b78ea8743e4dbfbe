"""Noticing a relay that shows its devices different histories: saying what is held, and comparing what others say.

A statement is compared only where this device held exactly what the log says up to that position (see `boundaries` of
the replica); else its maker's next one is waited for. So no two honest devices ever differ, and a difference is a fork,
or a record that was dropped: it is kept with both signed statements, told, and no strict write is made any more, until
somebody dismisses it.

A device states seldom, and where another one has just said the same not at all: of a thousand devices that agree, a few
speak.
"""

import logging
import math
import random
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

import trio

from sealwire_client.encoding import schema_of
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import VaultKeys
from sealwire_client.memberlog import MemberLog
from sealwire_client.policies import latest
from sealwire_client.replica import (
    Boundary,
    Collection,
    Column,
    Edit,
    HeldVault,
    LastStated,
    Replica,
    Runner,
    now_ms,
)
from sealwire_client.statements import STATEMENTS, Stated, Statement, entry_of, is_signed_by, read, signed
from sealwire_client.stream import StreamSync, waits_for_links
from sealwire_protocol.ids import Author, StreamId
from sealwire_protocol.links import Role
from sealwire_protocol.membership import Member

STATED_RECORDS: Final = 1_000
"""Records of a collection after which what it holds is stated again: some 250 bytes beside 100 kB or more."""

STATED_SECONDS: Final = 3_600.0
"""Time after which it is stated again if anything has changed: so long a withheld record may go unnoticed."""

SPREAD_SECONDS: Final = 1.0
"""For each member a device waits up to so long before it states: whoever hears meanwhile that another one holds the
same keeps silent. In a vault of 1,000 a few state, not all at once."""

INEXACT_SECONDS: Final = 60.0
"""The pause before a device looks again that could not state, because something of the log is not readable here."""

_log = logging.getLogger("sealwire.disputing")


class Heard(NamedTuple):
    """A statement of another device, as it was signed."""

    lineage: Author
    raw: bytes
    said: Statement


class Sync(Protocol):
    """What keeps the vault in step."""

    def add(self, collection: Collection, resolve: None, waits_for_links: bool) -> None:
        """Sync a collection from now on; `waits_for_links`: see StreamSync."""

    def edited(self) -> None:
        """There are new edits in the outbox."""

    @property
    def may_sign(self) -> bool:
        """False while this device does not know the members, or is on its way to be another one."""


class Disputing:
    """The statements of one vault."""

    def __init__(
        self,
        held: HeldVault,
        identity: DeviceIdentity,
        members: MemberLog,
        keys: VaultKeys,
        streams: Mapping[StreamId, StreamSync],
        writer: Runner[Replica],
        sync: Sync,
    ) -> None:
        self._held, self._identity, self._members, self._keys = held, identity, members, keys
        self._streams, self._writer, self._sync = streams, writer, sync
        self._schema = schema_of(Stated)
        self._statements: Collection | None = None
        self._read_at: tuple[int, int] | None = None
        self._newest: dict[tuple[Author, StreamId], Heard] = {}
        self._pending: dict[StreamId, dict[Author, Heard]] = {}
        self._stated: dict[StreamId, LastStated] = {}
        self._turn: dict[StreamId, float] = {}

    def become(self, held: HeldVault, identity: DeviceIdentity) -> None:
        """Be another member from now on."""
        self._held, self._identity = held, identity

    async def run(self, moved: Callable[[], trio.Event]) -> None:
        """Compare and state, until cancelled. `moved`: set when something has happened."""
        while True:
            happened = moved()  # before the look: what happens during it must not be missed
            seconds = await self._look()
            with trio.move_on_after(seconds):
                await happened.wait()

    async def _look(self) -> float:
        """Do what is to be done now. Returns after how many seconds to look again if nothing happens."""
        own = self._members.membership.members.get(self._held.author)
        others = len(self._members.membership.present()) - 1
        if own is None or others < 1:
            return math.inf
        statements = await self._opened()
        await self._hear(statements, own)
        await self._compare(statements)
        return await self._state(statements, own, others)

    async def _opened(self) -> Collection:
        if self._statements is None:
            policy, stream = latest(), self._keys.stream_id(STATEMENTS)
            columns = [Column(*column) for column in self._schema.columns]

            def open_it(replica: Replica) -> tuple[Collection, bool]:
                of = self._held.number, STATEMENTS, stream, policy.kind, policy.name, columns, self._schema
                held = replica.entries.open(*of)
                return held, waits_for_links(replica, held)

            held, waits = await self._writer.run(open_it)
            self._statements = held
            self._sync.add(held, None, waits)
        return self._statements

    # --- what others say

    async def _hear(self, statements: Collection, own: Member) -> None:
        """Read what is new of the statements."""
        membership, known = self._members.membership, self._streams.get(statements.stream)
        at = (0 if known is None else known.cursor, membership.head)
        if at == self._read_at:
            return
        present = {member.lineage for member in membership.present()} - {own.lineage}
        for key, raw in await self._writer.run(lambda replica: replica.disputes.statements(statements)):
            said = read(raw)
            maker = None if said is None else membership.members.get(said.author)
            if said is None or maker is None or maker.lineage not in present or said.vault != self._held.id:
                continue
            name = maker.lineage, said.stream
            former = self._newest.get(name)
            if key != entry_of(*name) or (former is not None and former.raw == raw):
                continue
            heard = self._newest[name] = Heard(maker.lineage, raw, said)
            self._pending.setdefault(said.stream, {})[maker.lineage] = heard
            if former is not None and said.author == former.said.author and said.is_before(former.said):
                await self._dispute(heard, former.raw, back=True)
        self._read_at = at

    async def _compare(self, statements: Collection) -> None:
        """Compare what has been said of positions that this device has reached."""
        for name, pending in list(self._pending.items()):
            stream = self._streams.get(name)
            ready = [] if stream is None else [each for each in pending.values() if each.said.at.seq <= stream.cursor]
            if stream is None or not ready:
                continue
            number = stream.collection.number

            def held(replica: Replica, number: int = number, ready: list[Heard] = ready) -> list[Boundary | None]:
                return [replica.boundaries.at(number, each.said.at) for each in ready]

            found = await self._writer.run(held)
            for each, boundary in zip(ready, found, strict=True):
                if pending.get(each.lineage) is each:
                    del pending[each.lineage]
                if boundary is None:
                    continue  # its next one is waited for
                if boundary.sum == each.said.sum:
                    await self._agree(stream, boundary)
                elif await self._dispute(each, signed(self._identity, self._statement(name, boundary))):
                    await self._put(statements, stream, boundary)

    async def _agree(self, stream: StreamSync, boundary: Boundary) -> None:
        """Another device has said what this one would."""
        name, number = stream.collection.stream, stream.collection.number
        if name not in self._stated or boundary.at.seq > self._stated[name].seq:
            self._turn.pop(name, None)
            self._stated[name] = await self._writer.run(
                lambda replica: replica.disputes.stated(number, boundary.at.seq)
            )

    async def _dispute(self, heard: Heard, held: bytes, *, back: bool = False) -> bool:
        """Keep a statement that cannot be true beside another one. False if nothing came of it."""
        said, stream = heard.said, self._streams.get(heard.said.stream)
        maker = self._members.membership.members.get(said.author)
        if stream is None or maker is None:
            return False
        if not all(is_signed_by(raw, maker.device) for raw in ((heard.raw, held) if back else (heard.raw,))):
            _log.warning("a statement in the name of device %d was not signed by it, and does not count", said.author)
            return False
        collection = stream.collection

        def keep(replica: Replica) -> bool:
            with replica.transaction():
                return judge(replica)

        def judge(replica: Replica) -> bool:
            if not back and not replica.sums.is_right(collection.table):
                replica.boundaries.begin_anew(collection.number, 0)
                return False
            return replica.disputes.add(
                collection, heard.lineage, said.author, said.at, back=back, held=held, theirs=heard.raw
            )

        new = await self._writer.run(keep)
        if new:
            what = "states less than it has stated before" if back else "holds something else there than this device"
            _log.error(
                "%s at %d: device %d %s; the relay shows its devices different histories, or has dropped a record",
                *(collection.name, said.at.seq, said.author, what),
            )
        return new

    # --- what this device says

    def _statement(self, stream: StreamId, boundary: Boundary) -> Statement:
        return Statement(self._held.id, stream, self._held.author, boundary.at, boundary.sum)

    async def _state(self, statements: Collection, own: Member, others: int) -> float:
        """State what is due. Returns after how many seconds something will be."""
        if own.role < Role.WRITER or not self._sync.may_sign:
            return math.inf
        soonest = math.inf
        for name, stream in list(self._streams.items()):
            if name == statements.stream or not (stream.writable and stream.cursor) or stream.misfit:
                continue
            due = await self._due_in(stream)
            if due > 0:
                self._turn.pop(name, None)
                soonest = min(soonest, due)
                continue
            now = trio.current_time()
            turn = self._turn.setdefault(name, now + random.uniform(0, SPREAD_SECONDS * others))
            if turn <= now:
                turn = self._turn[name] = now + INEXACT_SECONDS
                await self._put(statements, stream)
            soonest = min(soonest, max(0.0, turn - now))
        return soonest

    async def _due_in(self, stream: StreamSync) -> float:
        """After how many seconds what a collection holds is to be stated."""
        name, number = stream.collection.stream, stream.collection.number
        if name not in self._stated:
            self._stated[name] = await self._writer.run(lambda replica: replica.disputes.last_stated(number))
        last = self._stated[name]
        changed = abs(stream.cursor - last.seq)
        if changed >= STATED_RECORDS:
            return 0.0
        passed = (now_ms() - last.at) / 1_000
        return max(0.0, STATED_SECONDS - passed) if changed and passed >= 0 else math.inf if not changed else 0.0

    async def _put(self, statements: Collection, stream: StreamSync, boundary: Boundary | None = None) -> None:
        """State what a collection holds at a boundary, or where it stands, if it can be compared; but nothing before
        what this device has stated."""
        collection = stream.collection
        own = self._members.membership.members[self._held.author]
        key = entry_of(own.lineage, collection.stream)

        def put(replica: Replica) -> LastStated | None:
            with replica.transaction():
                at = boundary or replica.boundaries.present(collection.number)
                if at is None:
                    return None
                statement = self._statement(collection.stream, at)
                former = next((read(raw) for name, raw in replica.disputes.statements(statements) if name == key), None)
                if former is None or statement.may_follow(former):
                    stated = Stated(signed(self._identity, statement))
                    value, row = self._schema.encode(stated), self._schema.to_row(stated)
                    replica.edit(statements, [Edit(key, row, value)])
                return replica.disputes.stated(collection.number, at.at.seq)

        done = await self._writer.run(put)
        if done is not None:
            self._stated[collection.stream] = done
            self._turn.pop(collection.stream, None)
            self._sync.edited()
