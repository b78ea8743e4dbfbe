"""The purge over a store: tombstones go when they may, nothing comes back because of it, and nobody is hindered."""

import asyncio
from random import Random

import pytest

from sealwire_protocol.ids import Position
from sealwire_protocol.messages import StreamKind
from sealwire_protocol.segment import TOMBSTONE, Record
from sealwire_relay import purging as module
from sealwire_relay.cleaner import Cleaner
from sealwire_relay.purging import ATTEMPTS_MAX, Forgotten, Purger
from sealwire_relay.retention import Retention
from sealwire_relay.store.cleaning import AckedPosition, Mark
from sealwire_relay.store.interface import Store, StoreDownError
from tests.relay.logs import Log, deleted_by_chance, make_log, record
from tests.support.aio import asyncio_test
from tests.support.relay import Mishap, TroubledStore, memory_store, turns

AT_ONCE = Retention(0, 1_000)
"""Whatever is compacted may go, as soon as devices know it."""

SEEDS = range(20)


def gone(entry: int, version: int) -> Record:
    return record(entry, version, tombstone=True)


async def clean(log: Log) -> None:
    assert (await Cleaner(log.store, 20).clean(await log.dirty())).complete


async def purge(store: Store, tombstones_max: int = 3, retention: Retention = AT_ONCE) -> Forgotten:
    return await Purger(store, retention, tombstones_max).look()


async def floors(log: Log) -> tuple[int, int, int]:
    page = await log.page()
    return page.floor, page.floor_head, page.purged


async def acked(log: Log, seq: int) -> None:
    position = Position(await log.store.current_term(), seq)
    await log.store.acked([AckedPosition(log.vault.id, log.vault.stream, log.vault.admin, position)])


# --- what goes


@asyncio_test
async def test_tombstones_go_and_floors_say_so() -> None:
    groups = [record(1, 1), gone(2, 7)], [gone(3, 4), record(4, 1)], [gone(5, 2), record(6, 1)]
    log = await make_log(await memory_store(), *groups)
    await clean(log)
    assert await purge(log.store) == Forgotten(3, 1, 0, 0)
    assert list(await log.left()) == [1, 4, 6]
    assert await floors(log) == (5, 6, 7)
    assert await purge(log.store) == Forgotten(0, 0, 0, 0)
    await log.append([gone(4, 8)])
    assert await purge(log.store) == Forgotten(0, 0, 0, 0), "it is not compacted yet"
    await clean(log)
    assert await purge(log.store) == Forgotten(1, 1, 0, 0)
    assert list(await log.left()) == [1, 6]
    assert await floors(log) == (7, 7, 8)


@asyncio_test
async def test_a_device_holds_what_it_does_not_know() -> None:
    log = await make_log(await memory_store(), [gone(1, 1)], [record(2, 1), gone(3, 1)], [gone(4, 1)])
    await clean(log)
    for known, forgotten, floor in ((0, (0, 0, 3, 1), 0), (2, (1, 1, 2, 1), 1), (3, (1, 1, 1, 1), 3)):
        await acked(log, known)
        assert await purge(log.store) == Forgotten(*forgotten)
        assert (await floors(log))[0] == floor
    await acked(log, 4)
    assert await purge(log.store) == Forgotten(1, 1, 0, 0)


@asyncio_test
async def test_what_is_not_old_enough_stays_and_grows_old() -> None:
    now = [1_000.0]
    store = await memory_store(clock=lambda: now[0])
    log = await make_log(store, [gone(1, 1)])
    await clean(log)
    kept = Retention(300, 1_000)
    assert await purge(store, retention=kept) == Forgotten(0, 0, 1, 1)
    [found] = await store.tombstones(None, 1)
    assert found.marks == (Mark(1, 1_000),)
    await log.append([gone(2, 1)])
    await clean(log)
    for at, expected in ((1_299, (0, 0, 2, 1)), (1_300, (1, 1, 1, 1)), (1_598, (0, 0, 1, 1)), (1_599, (1, 1, 0, 0))):
        now[0] = at
        assert await purge(store, retention=kept) == Forgotten(*expected)


@asyncio_test
async def test_what_a_guarded_stream_holds_of_them_is_forgotten() -> None:
    log = await make_log(await memory_store(), [gone(1, 1), record(2, 1)], [gone(3, 5)], kind=StreamKind.GUARDED)
    await clean(log)
    await purge(log.store)
    names = [(log.vault.id, log.vault.stream, record(entry, 0).tag) for entry in (1, 2, 3)]
    assert [held.seq for held in (await log.store.guards(names)).values()] == [2]


@asyncio_test
async def test_a_tombstone_stays_as_long_as_anything_lesser_follows_it_and_the_floor_below_it() -> None:
    log = await make_log(await memory_store(), [gone(1, 9)], [gone(2, 9)], [gone(3, 9)], [gone(4, 9)])
    await clean(log)
    await log.append([record(2, 3), record(3, 10)])
    purger = Purger(log.store, AT_ONCE)
    assert await purger.look() == Forgotten(1, 1, 3, 1)
    assert list(await log.left()) == [2, 3, 4, 5, 6]
    assert await floors(log) == (1, 6, 9)
    dirty = await log.dirty()
    assert purger.waits_for(dirty)
    await Cleaner(log.store).look(purger.waits_for)
    assert list(await log.left()) == [2, 4, 6]
    assert await purger.look() == Forgotten(2, 1, 0, 0)
    assert not purger.waits_for(dirty)
    assert list(await log.left()) == [6]
    assert await floors(log) == (4, 6, 9)


@asyncio_test
async def test_a_tombstone_that_something_greater_follows_keeps_no_other() -> None:
    log = await make_log(await memory_store(), [gone(1, 9)], [gone(2, 9)], [gone(3, 9)])
    await clean(log)
    await log.append([gone(2, 10)])
    assert await purge(log.store) == Forgotten(2, 1, 1, 1)
    assert list(await log.left()) == [2, 4]
    assert await floors(log) == (3, 4, 9)
    assert await log.store.tombstones(None, 1) == [], "it is not looked for again, until more is compacted"
    await clean(log)
    [found] = await log.store.tombstones(None, 1)
    assert (found.number, found.oldest) == (1, 4)


@asyncio_test
async def test_what_is_left_is_not_read_again_until_it_may_go() -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, *[[gone(entry, 1)] for entry in range(9)])
    await clean(log)
    await acked(log, 4)
    await purge(log.store)
    troubled.calls.clear()
    assert await purge(log.store) == Forgotten(0, 0, 5, 1)
    assert troubled.calls == ["tombstones", "tombstones"]


# --- what happens meanwhile


@asyncio_test
async def test_a_push_between_reading_and_swapping_is_read_too() -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [gone(1, 1)], [record(2, 1)])
    await clean(log)

    async def push() -> None:
        await log.append([record(3, 1)])

    troubled.expect("swap", *[Mishap(before=push)] * (ATTEMPTS_MAX - 1))
    assert await purge(log.store) == Forgotten(1, 1, 0, 0)
    assert await floors(log) == (1, 1 + ATTEMPTS_MAX, 1)


@pytest.mark.parametrize("version", [3, 9])
@asyncio_test
async def test_a_push_of_that_very_entry_keeps_its_tombstone(version: int) -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [gone(1, 5)], [record(2, 1)])
    await clean(log)

    async def push() -> None:
        await log.append([record(1, version)])

    troubled.expect("swap", Mishap(before=push))
    assert await purge(log.store) == Forgotten(0, 0, 1, 1)
    assert list(await log.left()) == [1, 2, 3]
    assert await floors(log) == (0, 0, 0)


@asyncio_test
async def test_a_stream_that_is_pushed_to_without_pause_is_left_for_another_time() -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [gone(1, 5)])
    other = await make_log(troubled.store, [gone(1, 5)])
    await clean(log)
    await clean(other)

    async def push() -> None:
        await log.append([record(2, 1)])

    troubled.expect("swap", *[Mishap(before=push)] * ATTEMPTS_MAX)
    assert (await purge(log.store)).purged_tombstones == 1
    assert await purge(log.store) == Forgotten(1, 1, 0, 0)


@asyncio_test
async def test_another_history_or_another_cleaner_stops_it() -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [gone(1, 5)], [gone(2, 5)], [gone(3, 5)])
    await clean(log)

    async def fail_over() -> None:
        await log.append([record(9, 1)], term=await troubled.store.open_term())

    async def be_first() -> None:
        assert await purge(log.store) == Forgotten(3, 1, 0, 0)

    for before in (fail_over, be_first):
        troubled.expect("swap", Mishap(before=before))
        assert (await purge(log.store)).purged_tombstones == 0
    assert list(await log.left()) == [4]


@asyncio_test
async def test_a_log_that_cannot_be_read_keeps_no_other_waiting(caplog: pytest.LogCaptureFixture) -> None:
    store = await memory_store()
    strange, log = await make_log(store, [record(1, 1)]), await make_log(store, [gone(1, 5)])
    term = (await strange.dirty()).term
    page = await strange.page()
    broken = page.segments[0]._replace(body=b"what is this")
    assert await store.swap(strange.vault.id, strange.vault.stream, page.segments, broken, 1, term)
    assert await store.compacted(strange.vault.id, strange.vault.stream, 1, term, 1, 1)
    await clean(log)
    with caplog.at_level("INFO", "sealwire.purging"):
        assert (await purge(store)).purged_tombstones == 1
    assert "stopped" in caplog.text


@pytest.mark.parametrize("seed", SEEDS)
@asyncio_test
async def test_after_a_crash_at_any_swap_the_next_comes_to_the_same(seed: int) -> None:
    groups = deleted_by_chance(Random(seed))
    crashes = done = 0
    while not done:
        troubled = TroubledStore(await memory_store())
        log = await make_log(troubled.store, *groups)
        await clean(log)
        lost = StoreDownError("the power failed")
        # Every other one is lost on its way back: it was made, and the cleaner does not know.
        troubled.expect("swap", *[Mishap()] * crashes, Mishap(lost, made=crashes % 2 == 0))
        try:
            await purge(log.store)
            done = 1
        except StoreDownError:
            crashes += 1
            await log.says_the_same()
            await log.is_purged_to_its_floor()
            await purge(log.store)
        await log.says_the_same()
        assert not [each for each in (await log.left()).values() if each.flags & TOMBSTONE]
        assert await log.store.tombstones(None, 1) == []
    assert crashes > 1


@pytest.mark.parametrize("seed", SEEDS)
@asyncio_test
async def test_purgers_and_cleaners_at_once_while_devices_push_bring_nothing_back(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_BYTES", 1_000)
    random = Random(seed)
    inner = await memory_store()
    log = await make_log(inner, *deleted_by_chance(random))

    def store() -> Store:
        return TroubledStore(inner, lambda: random.randrange(4)).store

    async def push() -> None:
        for _ in range(20):
            purged = (await log.page()).purged
            await log.append(*deleted_by_chance(random, groups=2, above=purged))
            await turns(random.randrange(60))

    async def look(own: Store) -> None:
        for _ in range(8):
            await Cleaner(own, random.randint(5, 40)).look(lambda dirty: True)
            await purge(own, random.randint(1, 10))
            await log.is_purged_to_its_floor()

    await asyncio.gather(push(), look(store()), look(store()))
    await log.says_the_same()
    await clean(log)
    await purge(inner)
    await log.says_the_same()
    assert not [each for each in (await log.left()).values() if each.flags & TOMBSTONE]
    assert (await log.page()).floor > 0
