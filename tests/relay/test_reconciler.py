"""R13 at the relay: what it tells of a stream at a pinned position, whatever happens to the stream meanwhile."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sealwire_protocol.errors import Action, CloseCode, FaultCode
from sealwire_protocol.ids import MEMBERSHIP, START, Position, Term, VaultId
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.messages import Branch, Fault, Fetch, Prefix, Reconcile, Summary
from sealwire_protocol.reconcile import ROOT
from sealwire_protocol.segment import TOMBSTONE, Record, encode_record, encode_segment, encode_varint
from sealwire_relay import reconciler, trees
from sealwire_relay.store.interface import StoreDownError
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.segments import StoredSegment
from tests.relay.comparing import compare, fetch, fetch_all, ranges, refused, tree_of
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.relay import Mishap, Relay, TroubledStore, memory_store, running

ANNA, BERT = Identity(1), Identity(2)
NOTES = stream_id(1)


class Vault:
    """Anna's vault with one open stream, the relay's database beneath it, and a clock for the relay's trees."""

    def __init__(self, relay: Relay, anna: Device, vault: VaultId, store: TroubledStore, database: MemoryDatabase):
        self.relay, self.anna, self.id, self.store, self.database = relay, anna, vault, store, database
        self.now = 0.0
        self.batch = 0
        self.trees = relay.plane._reconciler._trees
        self.trees._clock = lambda: self.now

    async def push(self, *records: Record) -> None:
        """One push, and so one segment."""
        self.batch += 1
        assert (await self.anna.push(self.id, self.batch, group(NOTES, *records))).appended

    @property
    def log(self) -> Any:
        """The stream as the database has it."""
        return self.database.vaults[self.id].streams[NOTES]

    @property
    def scans(self) -> float:
        """How often a stream was scanned."""
        return self.relay.counted("scans_total")


@asynccontextmanager
async def vault() -> AsyncIterator[Vault]:
    database = MemoryDatabase()
    store = TroubledStore(await memory_store(database))
    async with running(store.store) as relay, await Device.open(relay.port, ANNA) as anna:
        made, _ = await anna.create_vault()
        await anna.create_stream(made, NOTES)
        await anna.subscribe(made)
        yield Vault(relay, anna, made, store, database)


def scattered(chance: random.Random, count: int, version: int = 1) -> list[Record]:
    """Records of random tags."""
    return [record(tag=chance.getrandbits(128), version=version) for _ in range(count)]


# --- what is told


@asyncio_test
async def test_r13_exactly_the_differences_are_found_and_can_be_fetched() -> None:
    chance = random.Random(5)
    async with vault() as place:
        records = scattered(chance, 900, version=2)
        for begin in range(0, 900, 90):
            await place.push(*records[begin : begin + 90])
        deleted = record(version=3, flags=TOMBSTONE)._replace(tag=records[7].tag)
        late = record(version=1)._replace(tag=records[8].tag)
        await place.push(deleted, late)
        lacks, lost = set(range(100, 130)), scattered(chance, 20)
        held = [one for number, one in enumerate(records) if number not in lacks] + lost
        told, differing = await compare(place.anna, place.id, NOTES, held)
        assert told.pin == Position(place.anna.term(place.id), 902)
        assert told.total.records == 900
        assert set(differing) == {records[7].tag, *(records[n].tag for n in lacks), *(one.tag for one in lost)}
        assert differing[deleted.tag].mine is not None
        theirs = differing[deleted.tag].theirs
        assert theirs is not None
        assert (theirs.seq, theirs.rank, theirs.flags) == (901, deleted.rank.pack(), TOMBSTONE)
        assert all(differing[one.tag].theirs is None for one in lost)
        seqs = [found.theirs.seq for found in differing.values() if found.theirs]
        found = await fetch_all(place.anna, place.id, NOTES, told.pin, seqs)
        wanted = {901: deleted, **{number + 1: records[number] for number in lacks}}
        assert dict(found) == {seq: encode_record(one) for seq, one in wanted.items()}
        assert place.scans == 1
        assert place.relay.counted("fetched_records_total") == 31


@asyncio_test
async def test_r13_later_records_take_no_part() -> None:
    async with vault() as place:
        records = scattered(random.Random(1), 40)
        await place.push(*records)
        first = await ranges(place.anna, place.id, NOTES)
        await place.push(*(one._replace(version=2) for one in records[:20]), *scattered(random.Random(2), 5))
        again = await ranges(place.anna, place.id, NOTES, ROOT, pin=first.pin)
        assert (again.pin, again.total) == (first.pin, tree_of(records).total)
        assert again.branches == (Branch(tree_of(records).children(ROOT), ()),)
        assert (again.top, again.terms) == (2, first.terms)


@asyncio_test
async def test_a_stream_without_records_and_one_that_is_absent_hold_nothing() -> None:
    async with vault() as place:
        for stream in (NOTES, stream_id(9)):
            told = await ranges(place.anna, place.id, stream, ROOT, ROOT)
            assert (told.pin, told.total, told.branches) == (START, Summary(0, bytes(16)), (Branch((), ()),) * 2)
            assert told.terms == ()
        assert place.scans == 0
        lost = Position(Term(9, b"lost...."), 4)
        assert await refused(place.anna, place.id, NOTES, lost) is FaultCode.STALE_PIN


@asyncio_test
async def test_s15_strangers_are_told_of_no_vault_and_the_membership_log_is_not_compared() -> None:
    async with vault() as place, await Device.open(place.relay.port, BERT) as bert:
        await place.push(record())
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        for of in (place.id, VaultId(b"no such vault...")):
            for ask in (Reconcile(1, of, NOTES, START, (ROOT,)), Fetch(2, of, NOTES, pin, (1,))):
                answer = await bert.ask(lambda number, ask=ask: type(ask)(number, *ask_fields(ask)))  # type: ignore[misc]
                assert isinstance(answer, Fault)
                assert (answer.code, answer.action) == (FaultCode.NO_SUCH_VAULT, Action.STOP)
        await place.anna.send(Reconcile(1, place.id, MEMBERSHIP, START, ()))
        assert await place.anna.closed() == CloseCode.PROTOCOL_ERROR


def ask_fields(message: Reconcile | Fetch) -> tuple[object, ...]:
    """All but its number."""
    if isinstance(message, Fetch):
        return message.vault, message.stream, message.pin, message.seqs
    return message.vault, message.stream, message.pin, message.prefixes


@pytest.mark.parametrize("prefix", [Prefix(33, bytes(16)), Prefix(1, b"\x01" + bytes(15))], ids=["long", "beyond"])
def test_a_range_that_is_none_ends_the_connection(prefix: Prefix) -> None:
    @asyncio_test
    async def run() -> None:
        async with vault() as place:
            await place.push(record())
            await place.anna.send(Reconcile(1, place.id, NOTES, START, (prefix,)))
            assert await place.anna.closed() == CloseCode.PROTOCOL_ERROR

    run()


# --- trees are shared, kept and given up


@asyncio_test
async def test_devices_that_ask_at_once_share_a_scan() -> None:
    async with vault() as place, await Device.open(place.relay.port, ANNA) as other:
        await place.push(*scattered(random.Random(1), 40))
        told = await asyncio.gather(
            *[ranges(device, place.id, NOTES, ROOT) for device in (place.anna, other) for _ in range(3)]
        )
        assert len({(one.pin, one.total, one.branches) for one in told}) == 1
        assert place.scans == 1


@asyncio_test
async def test_a_tree_serves_newcomers_for_as_long_as_it_was_worth_or_while_the_head_stands() -> None:
    async with vault() as place:
        await place.push(record(tag=1))
        first = await ranges(place.anna, place.id, NOTES)
        place.now += 1_000
        assert (await ranges(place.anna, place.id, NOTES)).pin == first.pin, "the head has not moved"
        await place.push(record(tag=2))
        second = await ranges(place.anna, place.id, NOTES)
        assert second.pin.seq == 2
        await place.push(record(tag=3))
        [*_, latest] = place.trees._all()
        latest.began -= 2.0  # so long did it take
        place.now += trees.STALE_SCANS_MAX * 2.0 - 1
        assert (await ranges(place.anna, place.id, NOTES)).pin == second.pin
        place.now += 1
        assert (await ranges(place.anna, place.id, NOTES)).pin.seq == 3
        assert place.scans == 3
        again = await ranges(place.anna, place.id, NOTES, pin=second.pin)
        assert (again.pin, again.total) == (second.pin, second.total), "who has begun goes on"


@asyncio_test
async def test_a_tree_that_nobody_asks_is_given_up() -> None:
    async with vault() as place:
        await place.push(record())
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        for _ in range(3):
            place.now += trees.IDLE_SECONDS - 1
            place.trees.tidy()
            await ranges(place.anna, place.id, NOTES, pin=pin)
        assert (place.relay.counted("trees"), place.relay.counted("tree_bytes") > 0) == (1, True)
        place.now += trees.IDLE_SECONDS
        place.trees.tidy()
        assert (place.relay.counted("trees"), place.relay.counted("tree_bytes")) == (0, 0)
        assert await refused(place.anna, place.id, NOTES, pin) is FaultCode.STALE_PIN
        answer = await place.anna.ask(lambda number: Fetch(number, place.id, NOTES, pin, (1,)))
        assert isinstance(answer, Fault)
        assert (answer.code, answer.action) == (FaultCode.STALE_PIN, Action.RESUBSCRIBE)


@asyncio_test
async def test_when_there_is_no_room_the_tree_that_rested_longest_goes_and_none_that_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trees, "TREES_MAX", 2)
    async with vault() as place:
        names = [stream_id(number) for number in range(10, 13)]
        for batch, name in enumerate(names, 1):
            await place.anna.create_stream(place.id, name)
            await place.anna.push(place.id, batch, group(name, record()))
        pins = [(await ranges(place.anna, place.id, name)).pin for name in names[:2]]
        answer = await place.anna.ask(lambda number: Reconcile(number, place.id, names[2], START, ()))
        assert isinstance(answer, Fault)
        assert (answer.code, answer.action, answer.retry_ms > 0) == (FaultCode.OVERLOADED, Action.RETRY, True)
        place.now += trees.REST_SECONDS
        await ranges(place.anna, place.id, names[0], pin=pins[0])
        await ranges(place.anna, place.id, names[2])
        assert await refused(place.anna, place.id, names[1], pins[1]) is FaultCode.STALE_PIN
        await ranges(place.anna, place.id, names[0], pin=pins[0])


@asyncio_test
async def test_more_scans_than_may_wait_are_to_be_asked_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "WAITING_MAX", 1)
    async with vault() as place:
        names = [stream_id(number) for number in range(10, 20)]
        for batch, name in enumerate(names, 1):
            await place.anna.create_stream(place.id, name)
            await place.anna.push(place.id, batch, group(name, record()))
        gate = asyncio.Event()
        place.store.expect("read", *[Mishap(made=True, before=gate.wait)] * trees.SCANS_MAX)
        asks = [
            asyncio.create_task(place.anna.ask(lambda n, name=name: Reconcile(n, place.id, name, START, ())))  # type: ignore[misc]
            for name in names
        ]
        done, _ = await asyncio.wait(asks[3:])
        assert {type(task.result()) for task in done} == {Fault}
        gate.set()
        told = await asyncio.gather(*asks[:3])
        assert not any(isinstance(one, Fault) for one in told)


# --- what happens to a stream while it is scanned


@asyncio_test
async def test_a_stream_in_which_something_is_purged_under_the_scan_is_scanned_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the tree would have an entry whose tombstone it never saw, and every device would bring it back."""
    monkeypatch.setattr(trees, "PAGE_BYTES", 1)
    async with vault() as place:
        entry, deleted = record(tag=1), record(tag=1, version=2, flags=TOMBSTONE)
        for one in (entry, record(tag=2), deleted, record(tag=3)):
            await place.push(one)

        async def purge() -> None:
            log = place.log
            log.segments[0] = StoredSegment(0, 1, b"")
            log.segments[2] = StoredSegment(2, 3, b"")
            log.floor, log.floor_head, log.purged = 3, 4, 2

        place.store.expect("read", Mishap(made=True, after=purge))
        told, differing = await compare(place.anna, place.id, NOTES, [entry])
        assert differing[entry.tag].theirs is None
        assert (told.total.records, told.floor, told.floor_head, told.purged) == (2, 3, 4, 2)


@asyncio_test
async def test_a_tree_from_before_a_purge_is_of_no_use() -> None:
    async with vault() as place:
        await place.push(record(tag=1, flags=TOMBSTONE), record(tag=2))
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        log = place.log
        log.segments[0] = StoredSegment(0, 2, encode_varint(1) + encode_record(record(tag=2))[1:])
        log.floor, log.floor_head, log.purged = 1, 2, 1
        answer = await place.anna.ask(lambda number: Fetch(number, place.id, NOTES, pin, (1,)))
        assert isinstance(answer, Fault)
        assert answer.code is FaultCode.STALE_PIN
        assert await refused(place.anna, place.id, NOTES, pin) is FaultCode.STALE_PIN
        assert (await ranges(place.anna, place.id, NOTES)).total.records == 1


@asyncio_test
async def test_what_the_cleaner_leaves_out_under_a_scan_is_told_by_what_won(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record may lose to one that is beyond the head at which the scan began."""
    monkeypatch.setattr(trees, "PAGE_BYTES", 1)
    async with vault() as place:
        loser, winner = record(tag=1, version=1), record(tag=1, version=2)
        for one in (record(tag=2), loser):
            await place.push(one)

        async def clean() -> None:
            await place.push(winner, record(tag=3))
            log = place.log
            log.segments[1] = StoredSegment(1, 2, b"")
            log.cleaned_to = 4

        place.store.expect("read", Mishap(made=True, after=clean))
        told, differing = await compare(place.anna, place.id, NOTES, [loser, record(tag=2)])
        assert (told.pin.seq, told.cleaned_to, told.total.records) == (4, 4, 3)
        theirs = differing[loser.tag].theirs
        assert theirs is not None
        assert (theirs.seq, theirs.rank) == (3, winner.rank.pack())


@asyncio_test
async def test_a_stream_that_is_written_under_another_term_meanwhile_is_scanned_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trees, "PAGE_BYTES", 1)
    async with vault() as place:
        for tag in range(3):
            await place.push(record(tag=tag))
        other = await memory_store(place.database)

        async def restore() -> None:
            term = await other.open_term()
            log = place.log
            del log.segments[1:], log.lasts[1:]
            log.head = 1
            log.append(term, [StoredSegment(1, 2, encode_segment([record(tag=9)]))], 0.0)

        place.store.expect("read", Mishap(made=True, after=restore))
        told = await ranges(place.anna, place.id, NOTES)
        assert (told.pin, told.total.records) == (Position(place.database.term, 2), 2)
        assert [start.start for start in told.terms] == [0, 1]


@asyncio_test
async def test_a_tree_of_a_history_that_was_lost_since_is_of_no_use() -> None:
    async with vault() as place:
        await place.push(record(tag=1))
        await place.push(record(tag=2))
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        log = place.log
        del log.segments[1:], log.lasts[1:]
        log.head = 1
        assert await refused(place.anna, place.id, NOTES, pin) is FaultCode.STALE_PIN
        assert (await ranges(place.anna, place.id, NOTES)).pin == Position(pin.term, 1)


# --- records


@asyncio_test
async def test_records_that_do_not_fit_are_asked_for_again() -> None:
    async with vault() as place:
        records = [record(tag=tag, units=2_000) for tag in range(20)]
        for one in records:
            await place.push(one)
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        told = await fetch(place.anna, place.id, NOTES, pin, *range(1, 21))
        size = len(encode_record(records[0]))
        assert told.considered == len(told.records) == SEGMENT_BYTES_MAX // size
        found = await fetch_all(place.anna, place.id, NOTES, pin, range(1, 21))
        assert found == [(seq, encode_record(one)) for seq, one in enumerate(records, 1)]


@asyncio_test
async def test_one_fetch_reads_so_many_pages_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "PAGE_BYTES", 1)
    async with vault() as place:
        for tag in range(20):
            await place.push(record(tag=2 * tag), record(tag=2 * tag + 1))
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        place.store.calls.clear()
        told = await fetch(place.anna, place.id, NOTES, pin, *range(40, 0, -1))
        assert (told.considered, [seq for seq, _ in told.records]) == (32, list(range(40, 8, -1)))
        assert place.store.calls.count("read") == reconciler.READS_MAX


@asyncio_test
async def test_a_record_that_is_gone_is_left_out() -> None:
    async with vault() as place:
        records = [record(tag=tag) for tag in range(3)]
        await place.push(*records)
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        log = place.log
        log.segments[0] = StoredSegment(0, 3, encode_record(records[0]) + encode_record(records[2], 1))
        log.cleaned_to = 3
        told = await fetch(place.anna, place.id, NOTES, pin, 1, 2, 3, 0, 99)
        assert (told.considered, told.cleaned_to) == (5, 3)
        assert [seq for seq, _ in told.records] == [1, 3]


# --- trouble


@asyncio_test
async def test_a_store_that_fails_is_asked_again_later() -> None:
    async with vault() as place:
        await place.push(record())
        place.store.expect("read", Mishap(StoreDownError("down")))
        assert await refused(place.anna, place.id, NOTES) is FaultCode.OVERLOADED
        pin = (await ranges(place.anna, place.id, NOTES)).pin
        place.store.expect("read", Mishap(StoreDownError("down")))
        answer = await place.anna.ask(lambda number: Fetch(number, place.id, NOTES, pin, (1,)))
        assert isinstance(answer, Fault)
        assert (answer.code, answer.action) == (FaultCode.OVERLOADED, Action.RETRY)


@asyncio_test
async def test_a_device_that_leaves_does_not_end_the_scan_for_the_others() -> None:
    async with vault() as place, await Device.open(place.relay.port, ANNA) as other:
        await place.push(record())
        gate, begun = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await gate.wait()

        place.store.expect("read", Mishap(made=True, before=wait))
        await other.send(Reconcile(1, place.id, NOTES, START, ()))
        await begun.wait()
        waiting = asyncio.create_task(ranges(place.anna, place.id, NOTES))
        await other.close()
        gate.set()
        assert (await waiting).total.records == 1
        assert place.scans == 1


@asyncio_test
async def test_a_relay_that_stops_ends_scans_and_gives_up_trees() -> None:
    async with vault() as place:
        await place.push(record())
        await ranges(place.anna, place.id, NOTES)
        other = stream_id(9)
        await place.anna.create_stream(place.id, other)
        await place.anna.push(place.id, 2, group(other, record()))
        begun = asyncio.Event()

        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()

        place.store.expect("read", Mishap(made=True, before=hang))
        await place.anna.send(Reconcile(1, place.id, other, START, ()))
        await begun.wait()
        kept = place.trees
    assert not kept._scans
    assert not kept._kept
    assert kept._timer is None


@asyncio_test
async def test_a_stream_that_is_damaged_at_the_relay_is_refused_and_its_host_told_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with vault() as place:
        await place.push(record(tag=1))
        await place.push(record(tag=2))
        told = await ranges(place.anna, place.id, NOTES)
        whole, place.log.segments[1] = place.log.segments[1], place.log.segments[1]._replace(body=b"what is this")
        gone = await place.anna.ask(lambda number: Fetch(number, place.id, NOTES, told.pin, (2,)))
        place.now += trees.IDLE_SECONDS + 1
        place.trees.tidy()
        for answer in (gone, await place.anna.ask(lambda n: Reconcile(n, place.id, NOTES, START, (ROOT,)))):
            assert isinstance(answer, Fault)
            assert (answer.code, answer.action, answer.retry_ms) == (FaultCode.INTERNAL, Action.STOP, 0)
        assert caplog.text.count("its stored segment that ends at seq 2 cannot be read") == 2
        assert "Traceback" not in caplog.text
        place.log.segments[1] = whole
        assert (await ranges(place.anna, place.id, NOTES)).total.records == 2
