"""Bringing one collection together with a relay whose log is not the one that the replica has followed (R13).

The device names what it holds (`Gathering`), compares that with the relay range by range (`Comparison`), fetches the
records that it lacks, and settles all of it in one transaction of the replica. Until then it has changed nothing, so it
may end anywhere and begin again. What takes long is done in the writer's thread, in slices between which edits have
their turn. All that the relay tells is checked against what it was asked for and what it told before.
"""

import logging
import math
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from itertools import islice, pairwise
from struct import Struct
from typing import BinaryIO, Final, NamedTuple, TypeVar

import trio

from sealwire_client import sealing
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keyring import KeyringError, VaultKeys
from sealwire_client.link import AnyAnswer, Link, RelayRefusedError
from sealwire_client.nursery import open_nursery
from sealwire_client.replica import (
    Differing,
    HeldVault,
    Incoming,
    Lost,
    Pinned,
    Replica,
    ReplicaFullError,
    Room,
    Runner,
    Settled,
    Unopened,
)
from sealwire_client.replica.reconciling import UNPLACED, Placed, altered
from sealwire_client.stream import StreamSync
from sealwire_protocol.errors import FaultCode, RemoteFault
from sealwire_protocol.history import is_lost, term_at
from sealwire_protocol.ids import NO_TERM, START, Author, KeyId, Position, StreamId, Term
from sealwire_protocol.limits import FETCH_RECORDS_MAX, VERSION_TOP_MAX, Limits
from sealwire_protocol.messages import NO_REQUEST, Fetch, Fetched, Item, Prefix, Ranges, Reconcile, Records, Summary
from sealwire_protocol.reconcile import ROOT, Comparison, Difference, Gathering, Range, Tree, pack_item, unpack_item
from sealwire_protocol.segment import Rank, read_record

GATHERED_AT_ONCE: Final = 4_000
"""Entries that are named before an edit has its turn: some 30 ms."""

REQUESTS_AT_ONCE: Final = 4
"""Requests on their way: hides the round trips, and leaves most of a connection's places to others."""

OPENED_AT_ONCE: Final = 512
"""Fetched records that are opened and stored before the next ones: they stay within a core's cache."""

SPOOL_BYTES: Final = 8_388_608
"""Fetched records that are kept in memory; more wait in a file."""

ATTEMPTS_MAX: Final = 5
"""Times in a row that a comparison is begun again because one of the two sides went on meanwhile."""

AGAIN_SECONDS: Final = 60.0
"""The pause before a collection is compared again that could not be. A new connection tries at once."""

LOSSES_MAX: Final = 5
"""Times that a collection is compared within AGAIN_SECONDS on one connection. A relay that is set back ends its
connections; one that keeps saying that it has lost history must not keep a device busy."""

RELAY_TOO_OLD: Final = "the relay is too old to tell what it has; nothing is sent or received of it until it is updated"

NOTHING_THERE: Final = (
    "the relay has nothing of it, and this device may only read: it waits for one that may write, which brings it there"
)

_log = logging.getLogger("sealwire.reconcile")

_FETCHED: Final = Struct(">QI")

T = TypeVar("T")


class NothingThereError(Exception):
    """A reader is to compare what it has with nothing: it cannot give that back, and is not to forget it."""


class Compared(NamedTuple):
    """Where the replica stood, what the relay told of the stream, and in which tags the two differ. `mine`, `theirs`:
    all that either side holds, summed up; `ranges`: where the differing tags are."""

    cursor: Position
    pinned: Pinned
    differing: list[Difference]
    placed: list[Placed]
    mine: Summary
    theirs: Summary
    ranges: list[Range]


class Reconciler:
    """Compares and reconciles the streams of one vault over the present connection."""

    def __init__(
        self, held: HeldVault, keys: VaultKeys, identity: DeviceIdentity, writer: Runner[Replica], link: Link
    ) -> None:
        self._held, self._keys, self._identity = held, keys, identity
        self._writer, self._link = writer, link

    async def run(
        self,
        lost: Callable[[Container[StreamId]], Awaitable[StreamSync]],
        done: Callable[[StreamSync, Settled], None],
        wrong: dict[str, str],
    ) -> None:
        """Reconcile one collection after the other, for as long as the connection lives.

        `lost` returns the next one that is none of those given, as soon as there is one. `done` is told of each, and
        `wrong` of those that cannot be reconciled now, by name. Raises RemoteFault, ReplicaError.
        """
        put_off: dict[StreamId, float] = {}
        times: dict[StreamId, deque[float]] = {}
        while True:
            with trio.move_on_at(min(put_off.values(), default=math.inf)) as waiting:
                stream = await lost(put_off)
            if waiting.cancelled_caught:
                put_off = {name: again for name, again in put_off.items() if again > trio.current_time()}
                continue
            began = times.setdefault(stream.collection.stream, deque[float](maxlen=LOSSES_MAX))
            now = trio.current_time()
            if len(began) == LOSSES_MAX and now - began[0] < AGAIN_SECONDS:
                why: str | None = "the relay says so again and again"
            else:
                began.append(now)
                why = await self._try(stream, done)
            if why is not None:
                name = stream.collection.name
                wrong[name] = f"{name}: {stream.lost}; it cannot be compared now: {why}"
                put_off[stream.collection.stream] = trio.current_time() + AGAIN_SECONDS

    async def _try(self, stream: StreamSync, done: Callable[[StreamSync, Settled], None]) -> str | None:
        """Reconcile a stream. Returns why that is not possible now."""
        session = self._link.session
        if session is None:
            await trio.sleep_forever()  # the connection is lost: this ends in a moment
        if session.version < Reconcile.SINCE:
            return RELAY_TOO_OLD
        try:
            settled = await self.reconcile(stream, session.limits)
        except (RelayRefusedError, KeyringError) as error:
            return str(error)
        except NothingThereError:
            return NOTHING_THERE
        if settled is None:
            return "it changes all the time just now"
        name, (refills, dropped, taken, _) = stream.collection.name, settled
        _log.warning("%s is as the relay's: %d taken, %d dropped, %d to be given back", name, taken, dropped, refills)
        done(stream, settled)
        return None

    async def reconcile(self, stream: StreamSync, limits: Limits) -> Settled | None:
        """Make the replica's collection and the relay's stream one, as far as the relay has it; what the relay has lost
        waits in the outbox then. Its subscription has ended before; it is to be listened to again afterwards.
        None: the replica went on meanwhile, again and again; try later.

        Raises RelayRefusedError, NothingThereError, RemoteFault if the relay contradicts itself, ReplicaError. Whatever
        is raised, and if it is cancelled, nothing has changed, or everything.
        """
        try:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    compared = await self.compare(stream)
                    if stream.reads_only and compared.pinned.pin == START and compared.mine.records:
                        raise NothingThereError
                    settled = await self._settle(stream, compared, limits)
                except RelayRefusedError as error:
                    if error.fault.code is not FaultCode.STALE_PIN or attempt == ATTEMPTS_MAX:
                        raise
                    continue
                if settled is not None:
                    return settled
        except OSError as error:
            raise ReplicaFullError(
                f"there is no room for a temporary file ({error}): nothing was changed; free some disk space"
            ) from error
        return None

    async def compare(self, stream: StreamSync) -> Compared:
        """Find out in which tags the replica and the relay differ. Raises as `reconcile` does, and OSError for want of
        room for a temporary file; changes nothing.

        If the collection is subscribed to meanwhile, what comes on the way is found to differ, too: it stands beyond
        the cursor told at the relay, or beyond the pin here."""
        first: list[Ranges] = []

        async def ask_first() -> None:
            first.append(await self._ranges(stream, START, (ROOT,)))

        async with open_nursery() as nursery:  # the relay makes its tree while this device makes its own
            nursery.start_soon(ask_first)
            cursor, tree = await self._tree(stream, None)
        (ranges,) = first
        session = self._link.session
        present = _present_in(ranges, (session and session.term_of(self._held.id)) or NO_TERM)
        pinned = _pinned(stream, ranges)._replace(present=NO_TERM if _set_back(stream, cursor, present) else present)
        try:
            if await self._writer.run(lambda replica: replica.reconciling.reaches_beyond(stream.collection, pinned)):
                await self._close(tree)
                cursor, tree = await self._tree(stream, pinned)
            found = await self._descend(stream, ranges, tree)
            return Compared(cursor, pinned, *_told_apart(found.differing), tree.total, ranges.total, found.ranges)
        finally:
            await self._close(tree)

    async def summed_up(self, stream: StreamSync) -> tuple[Position, Summary]:
        """Where the replica stands, and all that it holds of the stream, summed up. Needs no relay."""
        cursor, tree = await self._tree(stream, None)
        await self._close(tree)
        return cursor, tree.total

    async def fetch_some(self, stream: StreamSync, pin: Position, items: Sequence[Item]) -> Sequence[Fetched]:
        """The relay's records of these items, at most FETCH_RECORDS_MAX, by ascending seq; as many of the first ones as
        fit into one answer. Raises RelayRefusedError, RemoteFault."""
        return (await self._records(stream, pin, items)).records if items else ()

    # --- what the device has

    async def _tree(self, stream: StreamSync, pinned: Pinned | None) -> tuple[Position, Tree]:
        gathering = Gathering()
        tag_of, collection = sealing.tagger(self._keys.stream(stream.collection.stream)), stream.collection

        told = _told(stream) if stream.lost is not None else None

        def begin(replica: Replica) -> Position:
            return replica.positions.standing(collection.number).cursor

        def gather(replica: Replica, after: int) -> int | None:
            found = replica.reconciling.gather(collection, after, GATHERED_AT_ONCE, tag_of, pinned, told)
            gathering.add(found.items)
            return found.last

        try:
            cursor = await self._writer.run(begin)
            after: int | None = -1
            while after is not None:
                after = await self._writer.run(gather, after)
            return cursor, await self._writer.run(lambda _: gathering.build())
        finally:
            await self._close(gathering)

    async def _close(self, closed: Gathering | Tree) -> None:
        """Close it once the writer's thread, which a cancelled call may still occupy, has let go of it."""
        with trio.CancelScope(shield=True):
            await self._writer.run(lambda _: closed.close())

    # --- where they differ

    async def _descend(self, stream: StreamSync, first: Ranges, tree: Tree) -> Comparison:
        comparison = Comparison(tree)

        async def look(prefixes: tuple[Prefix, ...]) -> None:
            answer = await self._ranges(stream, first.pin, prefixes)
            await self._writer.run(lambda _: comparison.take(prefixes, answer.branches))

        root = comparison.ask()
        await self._writer.run(lambda _: comparison.take(root, first.branches))
        while not comparison.done:
            async with open_nursery() as nursery:
                for _ in range(REQUESTS_AT_ONCE):
                    prefixes = comparison.ask()
                    if prefixes:
                        nursery.start_soon(look, prefixes)
        return comparison

    async def _ranges(self, stream: StreamSync, pin: Position, prefixes: tuple[Prefix, ...]) -> Ranges:
        name = self._held.id, stream.collection.stream
        answer = _of_type(Ranges, await self._link.request(Reconcile(NO_REQUEST, *name, pin, prefixes)))
        if (answer.vault, answer.stream) != name or pin not in (START, answer.pin):
            raise RemoteFault("the relay told the ranges of another stream, or of another moment, than was asked for")
        return answer

    # --- what the relay has

    async def _settle(self, stream: StreamSync, compared: Compared, limits: Limits) -> Settled | None:
        cursor, pinned, differences, placed = compared[:4]
        if any(not 0 < one.seq <= pinned.pin.seq for one in placed):
            raise RemoteFault("the relay told places of records at which none can be")
        wanted = sorted((d.theirs for d in differences if d.theirs is not None), key=lambda item: item.seq)
        if any(one.seq >= after.seq for one, after in pairwise(wanted)) or not _within(wanted, pinned.pin):
            raise RemoteFault("the relay told places of records at which none can be")
        reseal, room = _resealer(self._keys, stream, self._identity), Room(limits.push_records, limits.segment_bytes)
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            file: BinaryIO = spool  # type: ignore[assignment]
            cleaned_to = await self._fetch(stream, pinned.pin, wanted, file)
            pinned = pinned._replace(cleaned_to=max(pinned.cleaned_to, cleaned_to))
            with trio.CancelScope(shield=True):  # whoever watches learns of what was done
                settled = await self._writer.run(
                    lambda replica: replica.reconciling.settle(
                        stream.collection,
                        cursor,
                        pinned,
                        [_differing(difference) for difference in differences],
                        _parts(replica, stream, file),
                        reseal,
                        room,
                        placed,
                    )
                )
        return settled

    async def _fetch(self, stream: StreamSync, pin: Position, wanted: Sequence[Item], spool: BinaryIO) -> int:
        """Fetch the relay's records. Returns how far the log that they came from was cleaned."""
        chunks = iter([wanted[at : at + FETCH_RECORDS_MAX] for at in range(0, len(wanted), FETCH_RECORDS_MAX)])
        cleaned_to = 0

        async def work() -> None:
            nonlocal cleaned_to
            for chunk in chunks:
                left = chunk
                while left:
                    answer = await self._records(stream, pin, left)
                    cleaned_to = max(cleaned_to, answer.cleaned_to)
                    spool.write(b"".join([_FETCHED.pack(seq, len(raw)) + raw for seq, raw in answer.records]))
                    left = left[answer.considered :]

        async with open_nursery() as nursery:
            for _ in range(REQUESTS_AT_ONCE):
                nursery.start_soon(work)
        return cleaned_to

    async def _records(self, stream: StreamSync, pin: Position, wanted: Sequence[Item]) -> Records:
        name = self._held.id, stream.collection.stream
        seqs = tuple(item.seq for item in wanted)
        answer = _of_type(Records, await self._link.request(Fetch(NO_REQUEST, *name, pin, seqs)))
        if (answer.vault, answer.stream) != name or not 0 < answer.considered <= len(wanted):
            raise RemoteFault("the relay sent records of another stream, or none at all, though some were asked for")
        considered = iter(wanted[: answer.considered])
        for seq, raw in answer.records:
            item = next((item for item in considered if item.seq == seq), None)
            if item is None or not _is_named(raw, item):
                raise RemoteFault("the relay sent a record that is none of those that were asked for")
        return answer


def _of_type(kind: type[T], answer: AnyAnswer) -> T:
    if not isinstance(answer, kind):
        raise RemoteFault(f"the relay answered with {type(answer).__name__} where {kind.__name__} was asked for")
    return answer


def _within(items: Sequence[Item], pin: Position) -> bool:
    return not items or (items[0].seq > 0 and items[-1].seq <= pin.seq)


def _is_named(raw: bytes, item: Item) -> bool:
    """Whether these are the bytes of the record that the item names. Raises DecodeError for what is no record."""
    skip, record, end = read_record(raw, 0)
    return not skip and end == len(raw) and (record.tag, record.rank.pack()) == (item.tag, item.rank)


def _pinned(stream: StreamSync, ranges: Ranges) -> Pinned:
    """What the relay tells of a stream at the pin. Raises RemoteFault if no stream can be like that."""
    pin, terms = ranges.pin, ranges.terms
    starts = [start for _, start in terms]
    # A term may have begun since the relay looked.
    until = next((start for start in starts if start >= pin.seq), None)
    if pin.term != term_at(terms, pin.seq) or ranges.top > VERSION_TOP_MAX or starts != sorted(set(starts)):
        raise RemoteFault("the relay told a history of a stream that cannot be")
    head = stream.told_head if stream.told_terms == terms else until or pin.seq
    return Pinned(pin, terms, max([head, pin.seq, *starts]), ranges.floor, ranges.top, ranges.cleaned_to)


def _told(stream: StreamSync) -> Pinned:
    """What the relay told of a stream when it was subscribed to last."""
    terms, head = stream.told_terms, stream.told_head
    return Pinned(Position(terms[-1].term if terms else NO_TERM, head), terms, head, 0, 0, 0)


def _told_apart(found: Sequence[Difference]) -> tuple[list[Difference], list[Placed]]:
    """What differs, and what was only to be placed."""
    differing, placed = list[Difference](), list[Placed]()
    for difference in found:
        mine = None if difference.mine is None else unpack_item(difference.mine)
        if mine is None or not mine.flags & UNPLACED:
            differing.append(difference)
            continue
        mine = mine._replace(rank=altered(mine.rank), flags=mine.flags & ~UNPLACED)
        if difference.theirs is not None and difference.theirs.rank == mine.rank:
            placed.append(Placed(mine.seq, mine.rank, difference.theirs.seq))
        else:
            differing.append(difference._replace(mine=pack_item(*mine)))
    return differing, placed


def _present_in(ranges: Ranges, present: Term) -> Term:
    """What a stream is written under now: an id of its own of the present number, if the vault has come back (R18)."""
    newest = ranges.terms[-1].term if ranges.terms else NO_TERM
    return newest if newest.number == present.number else present


def _set_back(stream: StreamSync, cursor: Position, present: Term) -> bool:
    """Whether the relay's database was set back beneath its present term, which it notices when it is to write: the
    device stands further in that term than it was told. So what it holds of it is lost, and not from after the pin."""
    return stream.lost is not None and cursor.term == present and is_lost(cursor, _told(stream))


def _differing(difference: Difference) -> Differing:
    theirs = None if difference.theirs is None else difference.theirs.rank
    if difference.mine is None:
        return Differing(None, None, theirs)
    mine = unpack_item(difference.mine)
    return Differing(mine.seq, mine.rank, theirs)


def _parts(replica: Replica, stream: StreamSync, spool: BinaryIO) -> Iterator[tuple[list[Incoming], list[Unopened]]]:
    """Fetched records, opened, in parts."""
    spool.seek(0)

    def fetched() -> Iterator[Fetched]:
        while head := spool.read(_FETCHED.size):
            seq, size = _FETCHED.unpack(head)
            yield Fetched(seq, spool.read(size))

    records = fetched()
    while part := list(islice(records, OPENED_AT_ONCE)):
        yield stream.opened(replica, part)


async def next_ready(
    lost: Callable[[], Sequence[StreamSync]], moved: Callable[[], trio.Event], writer: Runner[Replica]
) -> StreamSync:
    """Wait for a lost collection that can be compared: one that gives back what stands together hears first what became
    of that. `moved` is set when something has happened."""
    await trio.lowlevel.checkpoint()
    while True:
        happened = moved()  # before the look: what happens during it must not be missed
        for stream in lost():
            number = stream.collection.number
            if not await writer.run(_together_await_verdict, number) and stream.is_lost:
                return stream
        await happened.wait()


def _together_await_verdict(replica: Replica, collection: int) -> bool:
    return replica.outbox.refills.together_await_verdict(collection)


def _resealer(keys: VaultKeys, stream: StreamSync, identity: DeviceIdentity) -> Callable[[Lost], bytes]:
    """What makes the bytes of a record once more that this device has received or made (R17)."""
    sealers: dict[bytes, sealing.Sealer] = {}

    def reseal(lost: Lost) -> bytes:
        rank = Rank.unpack(lost.rank)
        author = Author(rank.author)
        sealer = sealers.get(lost.key_id)
        if sealer is None:
            key = keys.named(rank.epoch, KeyId(lost.key_id))
            sealer = sealers[lost.key_id] = keys.sealer(stream.collection.stream, author, identity.hedge_key, key=key)
        draft = sealing.Draft(lost.key, lost.proof + (lost.value or b""), rank.version, lost.flags)
        return sealer.seal_with_salt(draft, author, rank.salt).encoded

    return reseal
