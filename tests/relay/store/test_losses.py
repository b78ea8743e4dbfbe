"""R13 to R15 on every store: what a relay lost with its database comes back from devices, and nothing else does."""

import asyncio
import itertools

from sealwire_protocol.conditions import NOTHING
from sealwire_protocol.errors import Outcome, Refusal
from sealwire_protocol.ids import Position, Term, VaultId
from sealwire_protocol.messages import ATOMIC, REFILL, AppendLink, CreateVault, Done, Pushed, StreamKind
from sealwire_protocol.segment import TOMBSTONE, Record, read_segment
from sealwire_relay.store.interface import Store
from tests.relay.comparing import compare, fetch_all
from tests.relay.store.places import Place
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, guarded, record, replaces, returned, stream_id
from tests.support.relay import running

_identities = itertools.count(9_000)
NOTES, ACCOUNTS = stream_id(1), stream_id(2)


async def records_of(store: Store, vault: VaultId) -> list[Record]:
    """All records of the open stream, in order."""
    page = await store.read(vault, NOTES, 0, 1 << 20)
    assert page is not None
    return [found for segment in page.segments for _, found in read_segment(segment.body, segment.prev)]


@asyncio_test
async def test_r13_r14_r15_a_relay_that_was_set_back_is_filled_up_again(fresh: Place) -> None:
    anna, bert, carl = (Identity(next(_identities)) for _ in range(3))
    kept = [record(tag=tag, version=2) for tag in range(20)]
    lost = [record(tag=tag, version=3, author=2) for tag in range(10, 30)]
    deleted = record(tag=3, version=9, author=2, flags=TOMBSTONE)
    async with fresh.opened() as store, running(store) as relay, await Device.open(relay.port, anna) as device:
        vault, log = await device.create_vault()
        await device.add(log, bert)
        await device.create_stream(vault, NOTES)
        await device.subscribe(vault)
        await device.push(vault, 1, group(NOTES, *kept))
    await fresh.back_up()
    async with fresh.opened() as store, running(store) as relay:
        async with await Device.open(relay.port, anna) as device:
            await device.add(log, carl)
        async with await Device.open(relay.port, bert) as device:
            term = (await device.subscribe(vault)).term
            told = await device.push(vault, 1, group(NOTES, *lost, deleted))
            assert told.appended[0].first == 21
    await fresh.restore()
    async with fresh.opened() as store, running(store) as relay, await Device.open(relay.port, carl) as device:
        assert isinstance(await device.request(lambda n: AppendLink(n, vault, log[2])), Done)
        await device.subscribe(vault)
        held = {one.tag: one for one in [*kept, *lost, deleted]}
        at = {one.tag: Position(term, seq) for seq, one in enumerate([*lost, deleted], 21)}
        _, differing = await compare(device, vault, NOTES, held.values())
        assert set(differing) == set(at)
        refill = returned(NOTES, *[(at[tag], held[tag]) for tag in differing])
        pushed = await device.push(vault, 1, refill, flags=REFILL)
        assert (pushed.outcome, pushed.appended[0].records, pushed.refused) == (Outcome.DONE, 21, ())
        assert await device.push(vault, 1, refill, flags=REFILL) == pushed, "an answer that was lost is told again"
        back = {one.tag: one for one in (await records_of(store, vault))[20:]}
        assert back == {tag: held[tag] for tag in differing}, "the very bytes"
        trees = relay.plane._reconciler._trees
        later = trees._clock() + 1_000  # than any tree is used again for those who come new
        trees._clock = lambda: later
        seen, differing = await compare(device, vault, NOTES, held.values())
        assert (differing, seen.total.records) == ({}, 30)
        assert [start.start for start in seen.terms] == [0, 20]
        seen, differing = await compare(device, vault, NOTES, kept[:5])
        seqs = {found.theirs.seq for found in differing.values() if found.theirs}
        found = await fetch_all(device, vault, NOTES, seen.pin, seqs)
        assert {seq for seq, _ in found} == seqs
        assert len(seqs) == 26


@asyncio_test
async def test_r14_in_guarded_streams_what_was_written_since_a_loss_is_a_conflict(fresh: Place) -> None:
    anna, bert = (Identity(next(_identities)) for _ in range(2))
    before = [record(tag=tag, version=1) for tag in range(5)]
    lost = [record(tag=tag, version=4, author=2) for tag in range(5)]
    async with fresh.opened() as store, running(store) as relay, await Device.open(relay.port, anna) as device:
        vault, log = await device.create_vault()
        await device.add(log, bert)
        await device.create_stream(vault, ACCOUNTS, StreamKind.GUARDED)
        both_know = (await device.subscribe(vault)).term
        await device.push(vault, 1, guarded(ACCOUNTS, *[(NOTHING, one) for one in before]))
    await fresh.back_up()
    async with fresh.opened() as store, running(store) as relay, await Device.open(relay.port, bert) as device:
        await device.subscribe(vault)
        told = await device.push(
            vault, 1, guarded(ACCOUNTS, *[(replaces(old), new) for old, new in zip(before, lost, strict=True)])
        )
        assert (told.appended[0].first, told.refused) == (6, ())
    await fresh.restore()
    async with fresh.opened() as store, running(store) as relay:
        async with await Device.open(relay.port, anna) as device:
            await device.subscribe(vault)
            since = record(tag=1, version=9)
            told = await device.push(vault, 2, guarded(ACCOUNTS, (replaces(before[1]), since)))
            assert told.appended[0].first == 6
        async with await Device.open(relay.port, bert) as device:
            await device.subscribe(vault)
            at = [(Position(both_know, seq), one) for seq, one in enumerate(lost, 6)]
            older = (Position(both_know, 8), record(tag=2, version=3))

            async def refill(batch: int, *returns: tuple[Position, Record], flags: int = 0) -> Pushed:
                return await device.push(vault, batch, returned(ACCOUNTS, *returns), flags=REFILL | flags)

            told = await refill(1, at[0], at[1], flags=ATOMIC)
            assert [(one.place, one.reason, one.seq) for one in told.refused] == [
                (0, Refusal.ATOMIC, 0),
                (1, Refusal.CONFLICT, 6),
            ]
            assert told.appended == ()
            told = await refill(2, *at[:3])
            assert [(one.place, one.reason, one.seq) for one in told.refused] == [(1, Refusal.CONFLICT, 6)]
            assert (told.appended[0].first, told.appended[0].records) == (7, 2)
            told = await refill(3, older, at[3], flags=ATOMIC)
            assert [(one.place, one.reason, one.seq) for one in told.refused] == [(0, Refusal.SUPERSEDED, 8)]
            assert (told.appended[0].first, told.appended[0].records) == (9, 1)
            known = Position(told.appended[0].term, 9)
            told = await refill(4, (known, record(tag=3, version=20)))
            assert [(one.place, one.reason, one.seq) for one in told.refused] == [(0, Refusal.SUPERSEDED, 0)]
            wanted = [(vault, ACCOUNTS, record(tag=tag).tag) for tag in range(5)]
            held = await store.guards(wanted)
            assert [(held[name].version, held[name].seq, held[name].line) for name in wanted] == [
                (4, 7, (at[0][0],)),
                (9, 6, ()),
                (4, 8, (at[2][0],)),
                (4, 9, (at[3][0],)),
                (1, 5, ()),
            ]
            told = await device.push(
                vault, 5, guarded(ACCOUNTS, (replaces(lost[0]), record(tag=0, version=5, author=2)))
            )
            assert told.appended
            told = await refill(6, (Position(both_know, 11), record(tag=0, version=7, author=2)))
            assert [one.reason for one in told.refused] == [Refusal.CONFLICT], "somebody has written upon it since"


@asyncio_test
async def test_r14_what_two_devices_give_back_through_two_relays_is_taken_once(place: Place) -> None:
    anna, bert = (Identity(next(_identities)) for _ in range(2))
    lost = [record(tag=tag, version=4) for tag in range(200)]
    at = [(Position(Term(2**40, b"lost...."), seq), one) for seq, one in enumerate(lost, 1)]
    async with place.opened() as one, place.opened() as two, running(one) as first, running(two) as second:
        async with await Device.open(first.port, anna) as device, await Device.open(second.port, bert) as other:
            vault, log = await device.create_vault()
            await device.add(log, bert)
            await device.create_stream(vault, ACCOUNTS, StreamKind.GUARDED)

            async def give_back(giver: Device) -> list[Pushed]:
                await giver.subscribe(vault, ACCOUNTS)
                return [
                    await giver.push(vault, batch, returned(ACCOUNTS, *at[batch * 20 - 20 : batch * 20]), flags=REFILL)
                    for batch in range(1, 11)
                ]

            told = [pushed for half in await asyncio.gather(*map(give_back, (device, other))) for pushed in half]
            assert sum(row.records for pushed in told for row in pushed.appended) == 200
            refused = [one.reason for pushed in told for one in pushed.refused]
            assert refused == [Refusal.SUPERSEDED] * 200
            seen, differing = await compare(device, vault, ACCOUNTS, lost)
            assert (seen.total.records, seen.pin.seq, differing) == (200, 200, {})


@asyncio_test
async def test_r14_r15_a_relay_that_has_lost_everything_gets_it_back(fresh: Place) -> None:
    anna, bert = (Identity(next(_identities)) for _ in range(2))
    await fresh.back_up()
    async with fresh.opened() as store, running(store) as relay, await Device.open(relay.port, anna) as device:
        vault, log = await device.create_vault()
        await device.add(log, bert)
        await device.create_stream(vault, NOTES)
        await device.subscribe(vault)
        lost = [record(tag=tag) for tag in range(9)]
        told = await device.push(vault, 1, group(NOTES, *lost))
    await fresh.restore()
    async with fresh.opened() as store, running(store) as relay, await Device.open(relay.port, bert) as device:
        assert isinstance(await device.request(lambda n: CreateVault(n, log[0])), Done)
        assert isinstance(await device.request(lambda n: AppendLink(n, vault, log[1])), Done)
        await device.create_stream(vault, NOTES)
        await device.subscribe(vault)
        seen, differing = await compare(device, vault, NOTES, lost)
        assert (seen.total.records, len(differing)) == (0, 9)
        at = [(Position(told.appended[0].term, seq), one) for seq, one in enumerate(lost, 1)]
        pushed = await device.push(vault, 12, returned(NOTES, *at), flags=REFILL)
        assert (pushed.appended[0].records, pushed.refused) == (9, ())
        assert await records_of(store, vault) == lost
