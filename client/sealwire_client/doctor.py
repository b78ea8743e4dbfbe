"""Am I in sync? A device's replica is compared with its relays, collection by collection, and can be mended.

Both sides are compared at one position of the relay's, by fingerprints (R13), while everything goes on. What is only on
its way is no difference: records after the cursor, records that came after the position compared, writes that wait, and
deletions that one side has forgotten already (R11). What is left should not be, and is named.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeVar

import trio

from sealwire_client import sealing
from sealwire_client.findings import (
    CollectionFindings,
    Difference,
    DifferingKey,
    Findings,
    Side,
    VaultFindings,
    Verdict,
    Where,
)
from sealwire_client.keyring import KeyringError
from sealwire_client.link import Link, LinkState, RelayRefusedError
from sealwire_client.nursery import open_nursery
from sealwire_client.reconcile import ATTEMPTS_MAX, Compared, Reconciler
from sealwire_client.replica import SET_ASIDE, Collection, Counts, Placed, Replica, Runner, Standing
from sealwire_client.status import State, Status
from sealwire_client.stream import StreamSync
from sealwire_client.sync import VaultSync
from sealwire_client.vault import Vault
from sealwire_protocol.errors import FaultCode, RemoteFault
from sealwire_protocol.events import Doubt
from sealwire_protocol.history import why_history_is_lost
from sealwire_protocol.ids import START, Position
from sealwire_protocol.messages import Reconcile, Summary
from sealwire_protocol.reconcile import Difference as Differing
from sealwire_protocol.reconcile import unpack_item
from sealwire_protocol.segment import TOMBSTONE

LOOKS_MAX: Final = 3
"""Times that a collection is compared because new writes came in between. What is still on its way then is told."""

LOOK_SECONDS: Final = 0.1
"""Between two looks at whether a vault has come into step."""

OFFLINE_SECONDS: Final = 2.0
"""A relay that cannot be reached is tried once more, at once, and waited for so long."""

COMPARE_SECONDS_MAX: Final = 300.0
"""Longest comparison, or repair, of one collection: ten million entries take less. A relay that has no room for it for
so long is told."""

KEYS_NAMED_MAX: Final = 8
"""Differing entries that are named: enough to see what they have in common."""

DOUBTED: Final = "what is here is not what the relay has, although no history was lost"

OLD: Final = "the relay is too old to tell what it has: cannot compare until it is updated"

T = TypeVar("T")


class NotComparedError(Exception):
    """The comparison could not be made; says why."""


@dataclass(frozen=True, slots=True)
class Patient:
    """A vault that is examined, and how it is synced."""

    vault: Vault
    sync: VaultSync


async def examine(
    patients: Sequence[Patient], writer: Runner[Replica], incomplete: str | None, repair: bool, seconds: float
) -> Findings:
    """See `Device.examine`."""
    await writer.run(lambda replica: replica.census.check_file())
    found = [await _Examination(patient, writer, seconds).run(repair) for patient in patients]
    return Findings(tuple(found), incomplete)


class _Bed(NamedTuple):
    """A collection that is examined. Its stream is not synced if nobody has opened it."""

    stream: StreamSync
    opened: bool

    @property
    def collection(self) -> Collection:
        return self.stream.collection


class _Examination:
    """One vault's."""

    def __init__(self, patient: Patient, writer: Runner[Replica], seconds: float) -> None:
        self._vault, self._sync, self._writer, self._seconds = patient.vault, patient.sync, writer, seconds
        self._reconciler = Reconciler(self._sync.held, self._sync.keys, self._sync.identity, writer, self._sync.link)

    async def run(self, repair: bool) -> VaultFindings:
        """Examine the vault's collections, and mend them."""
        sync = self._sync
        await self._settled()
        found = []
        for bed in await self._beds():
            findings = await self._examined(bed)
            if repair and findings.difference is not None:
                findings = await self._repaired(bed, findings)
            found.append(findings)
        status = await self._vault.status()
        return VaultFindings(
            self._vault.name,
            sync.held.id,
            sync.held.origin,
            status.state,
            status.last_error,
            tuple(found),
            status.disputed,
        )

    async def _beds(self) -> list[_Bed]:
        synced = {stream.collection.number: stream for stream in self._sync.streams}
        known = set(await self._vault.collections())
        there = await self._writer.run(lambda replica: replica.census.collections(self._sync.held.number))
        return [
            _Bed(synced.get(each.number) or self._sync.maker.make(each), each.number in synced)
            for each in there
            if each.number in synced or each.name in known
        ]

    async def _settled(self) -> Status:
        """Wait until the vault is in step, or cannot come into step; at most until the work left has not become less
        for so many seconds."""
        least, until, tried = float("inf"), trio.current_time() + self._seconds, False
        while True:
            status = await self._vault.status()
            told = status.state not in (State.CONNECTING, State.RENEWING) and all(x.told for x in self._sync.streams)
            left = status.pending + status.behind if told else float("inf")
            if left < least:
                least, until = left, trio.current_time() + self._seconds
            if status.state is State.OFFLINE and not tried:
                self._sync.link.wake()
                tried, until = True, min(until, trio.current_time() + OFFLINE_SECONDS)
            if status.state in (State.SYNCED, State.REFUSED) or trio.current_time() >= until:
                return status
            await trio.sleep(LOOK_SECONDS)

    async def _examined(self, bed: _Bed) -> CollectionFindings:
        """Look at a collection, again if something was only on its way."""
        findings = await self._look(bed)
        for _ in range(LOOKS_MAX - 1):
            if findings.verdict is not Verdict.WAITING or not bed.opened:
                break
            if (await self._settled()).state is not State.SYNCED:
                break
            findings = await self._look(bed)
        return findings

    # --- one look

    async def _look(self, bed: _Bed) -> CollectionFindings:
        counts = await self._writer.run(lambda replica: replica.census.counts(bed.collection))
        try:
            losses = bed.stream.losses
            compared = await self._compared(bed)
            if bed.stream.losses != losses:
                raise NotComparedError("its history was found to be lost in this moment; look again")
        except NotComparedError as error:
            cursor, held = await self._reconciler.summed_up(bed.stream)
            findings = _findings(bed, Verdict.UNKNOWN, counts, _side(held, cursor), None)
            return replace(findings, why=str(error), behind=self._behind(bed, cursor))
        cursor, pinned = compared.cursor, compared.pinned
        here = _side(compared.mine, cursor)
        there = _side(compared.theirs, pinned.pin, pinned.floor)
        wrong = await self._wrong(bed, compared)
        difference = None if wrong else await self._difference(bed, compared)
        counts = await self._writer.run(lambda replica: replica.census.counts(bed.collection))
        behind = max(self._behind(bed, cursor), pinned.pin.seq - cursor.seq)
        verdict = Verdict.IN_SYNC
        if wrong is not None or difference is not None:
            verdict = Verdict.DIFFERS
        elif behind or counts.unsent or counts.answered:
            verdict = Verdict.WAITING
        findings = _findings(bed, verdict, counts, here, there)
        return replace(findings, behind=behind, difference=difference, why=wrong)

    def _behind(self, bed: _Bed, cursor: Position) -> int:
        return max(0, bed.stream.head - max(cursor.seq, bed.stream.cursor)) if bed.opened else 0

    async def _wrong(self, bed: _Bed, compared: Compared) -> str | None:
        """Why the device's history is not the relay's; None: it is the same one."""
        number, pinned = bed.collection.number, compared.pinned
        if bed.opened:
            lost = bed.stream.lost
            return None if lost is None else self._sync.progress.lasting.get(bed.collection.name, lost)

        def remembered(replica: Replica) -> tuple[Standing, int]:
            return replica.positions.standing(number), replica.positions.dropped_to(number)

        standing, dropped = await self._writer.run(remembered)
        # Where the relay compared an earlier moment than this device has seen, its newest term says enough.
        head = max(pinned.pin.seq, standing.cursor.seq, standing.served.seq)
        told, (cursor, served, whole, _) = pinned._replace(head=head), standing
        if cursor == START or why_history_is_lost(told, cursor, served, whole, dropped=dropped) is None:
            return None
        return "the relay's history is another one now, and its app compares both when it opens it"

    async def _compared(self, bed: _Bed) -> Compared:
        """Compare both sides. Raises NotComparedError."""
        link = self._sync.link
        if link.session is None:
            raise NotComparedError("there is no connection to the relay")
        if link.session.version < Reconcile.SINCE:
            raise NotComparedError(OLD)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await _while_online(link, lambda: self._reconciler.compare(bed.stream))
            except RelayRefusedError as error:
                if error.fault.code is not FaultCode.STALE_PIN or attempt == ATTEMPTS_MAX:
                    raise NotComparedError(f"the relay refused: {error}") from error
            except (RemoteFault, KeyringError) as error:
                raise NotComparedError(str(error)) from error
            except OSError as error:
                raise NotComparedError(f"there is no room for a temporary file ({error}); free some disk") from error
        raise AssertionError("the last attempt has ended")

    # --- what differs, really

    async def _difference(self, bed: _Bed, compared: Compared) -> Difference | None:
        differing, rows = await self._writer.run(self._real, bed.collection, compared)
        if not differing:
            return None
        first = min(differing, key=lambda each: each.tag)
        of_first = max(
            (each for each in compared.ranges if _begins_alike(first.tag, each.prefix.path, each.prefix.nibbles)),
            key=lambda each: each.prefix.nibbles,
        )
        wheres = [_where(each) for each in differing]
        return Difference(
            here=wheres.count(Where.HERE),
            relay=wheres.count(Where.RELAY),
            both=wheres.count(Where.BOTH),
            prefix=of_first.prefix.path.hex()[: of_first.prefix.nibbles],
            prefix_here=of_first.mine,
            prefix_relay=of_first.theirs,
            keys=await self._named(bed, compared, sorted(differing, key=lambda each: each.tag)[:KEYS_NAMED_MAX], rows),
        )

    def _real(
        self, replica: Replica, collection: Collection, compared: Compared
    ) -> tuple[list[Differing], dict[int, Placed]]:
        """The differences that are not only of the moment, and the entries' rows that they name. In the writer's
        thread."""
        if not compared.differing:
            return [], {}
        cursor, pinned = compared.cursor, compared.pinned
        tag_of = sealing.tagger(self._sync.keys.stream(collection.stream))
        moved_on = replica.census.beyond(collection, pinned.pin.seq, tag_of)
        items = [unpack_item(each.mine) for each in compared.differing if each.mine is not None]
        rows = replica.census.rows(collection, (item.seq for item in items if item.seq < SET_ASIDE))

        def is_real(each: Differing) -> bool:
            mine, theirs = None if each.mine is None else unpack_item(each.mine), each.theirs
            if each.tag in moved_on:
                return False
            if theirs is not None and theirs.seq > cursor.seq and (mine is None or theirs.rank > mine.rank):
                return False  # it is still to come
            if mine is None:
                assert theirs is not None
                return not (theirs.flags & TOMBSTONE and theirs.seq <= pinned.floor)
            if theirs is None and mine.flags & TOMBSTONE and mine.seq in rows:
                return rows[mine.seq].seq > pinned.floor
            return True

        return [each for each in compared.differing if is_real(each)], rows

    async def _named(
        self, bed: _Bed, compared: Compared, differing: Sequence[Differing], rows: dict[int, Placed]
    ) -> tuple[DifferingKey, ...]:
        """The keys of these differences. Those that only the relay has are in its records."""
        theirs = sorted((each.theirs for each in differing if each.theirs and not each.mine), key=lambda one: one.seq)
        keys = dict[bytes, str]()
        try:
            fetched = await _while_online(
                self._sync.link, lambda: self._reconciler.fetch_some(bed.stream, compared.pinned.pin, theirs)
            )
            for opened in await self._writer.run(
                lambda _: [bed.stream.opener.open_record(r, 0, s - 1)[0] for s, r in fetched]
            ):
                if isinstance(opened, sealing.Opened):
                    keys[opened.tag] = opened.key
        except (NotComparedError, RelayRefusedError, RemoteFault):
            pass  # they are counted all the same
        for each in differing:
            if each.mine is not None and (row := rows.get(unpack_item(each.mine).seq)) is not None:
                keys[each.tag] = row.key
        return tuple(DifferingKey(keys.get(each.tag), _where(each)) for each in differing)

    # --- mending

    async def _repaired(self, bed: _Bed, found: CollectionFindings) -> CollectionFindings:
        """Bring a collection together with the relay (R13), and look again."""
        if not bed.opened:
            return replace(found, why="nobody has opened it here: open it with its app, and examine the device there")
        if not (bed.stream.told and bed.stream.exists and not bed.stream.misfit):
            return replace(found, why=bed.stream.misfit or "the relay has not told how the collection stands there")
        link = self._sync.link

        link.handle(Doubt(self._sync.held.id, bed.collection.stream, DOUBTED))
        try:
            await _while_online(link, lambda: self._reconciled(bed))
        except NotComparedError as error:
            why = self._sync.progress.lasting.get(bed.collection.name, str(error))
            return replace(await self._look(bed), why=why)
        await self._settled()
        again = await self._examined(bed)
        return replace(again, repaired=found.difference)

    async def _reconciled(self, bed: _Bed) -> None:
        """Wait until a collection is one with the relay. Raises NotComparedError."""
        lasting, name = self._sync.progress.lasting, bed.collection.name
        told = lasting.get(name)
        while bed.stream.lost is not None:
            with trio.move_on_after(LOOK_SECONDS):
                await self._sync.until(lambda _: bed.stream.lost is None)
            if lasting.get(name, told) != told:
                raise NotComparedError(lasting[name])


async def _while_online(link: Link, work: Callable[[], Awaitable[T]]) -> T:
    """Do something that needs the relay. Raises NotComparedError if the connection is lost, or if it takes too long."""
    done: list[T] = []
    with trio.move_on_after(COMPARE_SECONDS_MAX) as limit:
        async with open_nursery() as nursery:

            async def give_up() -> None:
                await link.until(lambda link: link.state is not LinkState.ONLINE)
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            done.append(await work())
            nursery.cancel_scope.cancel()
    if done:
        return done[0]
    if limit.cancelled_caught:
        raise NotComparedError(f"the relay did not answer for {COMPARE_SECONDS_MAX:g} s")
    raise NotComparedError(f"the connection to the relay was lost{_because(link.last_error)}")


def _findings(bed: _Bed, verdict: Verdict, counts: Counts, here: Side, there: Side | None) -> CollectionFindings:
    return CollectionFindings(bed.collection.name, verdict, counts, here, there, 0, bed.opened)


def _side(held: Summary, at: Position, floor: int = 0) -> Side:
    return Side(held.records, held.sum.hex(), at.seq, floor)


def _because(error: str | None) -> str:
    return f": {error}" if error else ""


def _where(each: Differing) -> Where:
    if each.theirs is None:
        return Where.HERE
    return Where.RELAY if each.mine is None else Where.BOTH


def _begins_alike(tag: bytes, path: bytes, nibbles: int) -> bool:
    return tag.hex()[:nibbles] == path.hex()[:nibbles]
