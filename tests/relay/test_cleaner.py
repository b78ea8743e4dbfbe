"""The cleaner over a store: what is left of logs, whatever happens meanwhile, and which logs are worth it."""

import asyncio
from random import Random

import pytest

from sealwire_protocol.ids import NO_TERM, StreamId, VaultId
from sealwire_protocol.messages import StreamKind
from sealwire_relay import cleaner as module
from sealwire_relay.cleaner import Cleaned, Cleaner, Looked, Worth, by_share
from sealwire_relay.compaction import Survivors
from sealwire_relay.pace import Pace
from sealwire_relay.store.cleaning import Dirty
from sealwire_relay.store.interface import StoreDownError
from tests.relay.logs import Log, by_chance, make_log, record
from tests.relay.store.places import make_vault, stream_write, write
from tests.support.aio import asyncio_test
from tests.support.relay import Mishap, TroubledStore, memory_store

STEP_RECORDS = 10
"""Few, so that even small logs take several steps."""

SEEDS = range(20)


async def clean(log: Log, records_max: int = STEP_RECORDS) -> Cleaned:
    return await Cleaner(log.store, records_max).clean(await log.dirty())


async def is_clean(log: Log) -> bool:
    return await log.left() == log.winners() and (await log.dirty()).compacted == max(log.whole)


@asyncio_test
async def test_what_was_superseded_goes_and_the_rest_keeps_its_place() -> None:
    log = await make_log(await memory_store(), [record(1, 1), record(2, 1)], [record(1, 2)], [record(3, 1)])
    before = await log.dirty()
    cleaned = await clean(log)
    assert list(await log.left()) == [2, 3, 4]
    assert await is_clean(log)
    after = await log.dirty()
    assert cleaned == Cleaned(1, before.bytes - after.bytes, before.segments - after.segments, True)
    assert await log.cleaned_to() == 4
    assert await clean(log) == Cleaned(0, 0, 0, True)


@asyncio_test
async def test_a_greater_rank_wins_although_it_is_older_and_was_cleaned_before() -> None:
    log = await make_log(await memory_store(), [record(1, 1), record(1, 5), record(2, 1)])
    await clean(log)
    await log.append([record(1, 4)], [record(2, 2)])
    await clean(log)
    assert list(await log.left()) == [2, 5]
    assert await is_clean(log)


@asyncio_test
async def test_tombstones_stay_where_they_are() -> None:
    log = await make_log(await memory_store(), [record(1, 1), record(2, 1)], [record(1, 2, tombstone=True)])
    await clean(log)
    assert await log.left() == {2: record(2, 1), 3: record(1, 2, tombstone=True)}


@asyncio_test
async def test_what_a_guarded_stream_holds_is_never_left_out() -> None:
    groups = [[record(1, 1), record(2, 1)], [record(1, 2)], [record(2, 2, tombstone=True)], [record(1, 3)]]
    log = await make_log(await memory_store(), *groups, kind=StreamKind.GUARDED)
    await clean(log)
    left = await log.left()
    held = await log.store.guards([(log.vault.id, log.vault.stream, record(entry, 0).tag) for entry in (1, 2)])
    assert {current.seq: current.version for current in held.values()} == {seq: r.version for seq, r in left.items()}
    assert sorted(left) == [4, 5]


@pytest.mark.parametrize("seed", SEEDS)
@asyncio_test
async def test_a_log_that_grows_and_is_cleaned_by_turns(seed: int) -> None:
    random = Random(seed)
    log = await make_log(await memory_store())
    for _ in range(5):
        await log.append(*by_chance(random, groups=random.randint(1, 25)))
        assert (await clean(log, random.randint(1, 40))).complete
        assert await is_clean(log)


@pytest.mark.parametrize("seed", SEEDS)
@asyncio_test
async def test_after_a_crash_at_any_swap_the_next_comes_to_the_same(seed: int) -> None:
    groups = by_chance(Random(seed))
    crashes = done = 0
    while not done:
        troubled = TroubledStore(await memory_store())
        log = await make_log(troubled.store, *groups)
        lost = StoreDownError("the power failed")
        # Every other one is lost on its way back: it was made, and the cleaner does not know.
        troubled.expect("swap", *[Mishap()] * crashes, Mishap(lost, made=crashes % 2 == 0))
        try:
            await clean(log)
            done = 1
        except StoreDownError:
            crashes += 1
            assert log.winners().items() <= (await log.left()).items()
            await clean(log)
        assert await is_clean(log)
    assert crashes > 3


@asyncio_test
async def test_the_first_swap_tells_how_far_the_log_was_looked_at() -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [record(1, 1), record(2, 1)])
    await clean(log)
    assert await log.cleaned_to() == 0
    await log.append([record(1, 2)], [record(3, 1)])
    troubled.expect("swap", Mishap(StoreDownError("the power failed"), made=True))
    with pytest.raises(StoreDownError):
        await clean(log)
    # The first record is gone because of the third: whoever reads on from the second must know.
    assert list(await log.left()) == [2, 3, 4]
    assert await log.cleaned_to() == 4
    assert (await log.dirty()).compacted == 2


@pytest.mark.parametrize("seed", SEEDS)
@asyncio_test
async def test_two_at_once_while_devices_push_harm_nobody(seed: int) -> None:
    random = Random(seed)
    database = (await memory_store()).database
    stores = [TroubledStore(await memory_store(database), lambda: random.randrange(4)) for _ in range(3)]
    log = await make_log(stores[0].store, *by_chance(random))

    async def push() -> None:
        for _ in range(6):
            await log.append(*by_chance(random, groups=3))

    async def look(store: TroubledStore) -> None:
        for _ in range(6):
            await Cleaner(store.store, random.randint(5, 40)).look(lambda dirty: True)

    await asyncio.gather(push(), *[look(store) for store in stores[1:]])
    assert log.winners().items() <= (await log.left()).items()
    assert (await clean(log)).complete
    assert await is_clean(log)


@asyncio_test
async def test_memory_is_bounded_by_the_records_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[Survivors] = []

    class Noted(Survivors):
        """Told to the test."""

        def __init__(self) -> None:
            super().__init__()
            known.append(self)

    monkeypatch.setattr(module, "Survivors", Noted)
    log = await make_log(await memory_store(), *[[record(10 * n + k, 1) for k in range(3)] for n in range(10)])
    steps: list[Cleaned] = []
    await Cleaner(log.store, STEP_RECORDS, stepped=steps.append).clean(await log.dirty())
    assert [len(survivors) for survivors in known] == [9, 9, 9, 3]
    assert len(steps) == 4


@asyncio_test
async def test_a_segment_longer_than_a_step_is_a_step() -> None:
    log = await make_log(await memory_store(), [record(n % 3, n) for n in range(20)], [record(1, 99)])
    await clean(log, 5)
    assert list(await log.left()) == [18, 19, 21]


@asyncio_test
async def test_a_step_may_begin_within_a_segment_that_another_cleaner_has_joined() -> None:
    log = await make_log(await memory_store(), [record(9, 1)], [record(entry, 1) for entry in range(5)])
    assert await log.store.compacted(log.vault.id, log.vault.stream, 3, await log.store.current_term(), 0, 0)
    await log.append([record(0, 2), record(4, 2)])
    assert (await clean(log)).complete
    assert list(await log.left()) == [1, 3, 4, 5, 7, 8]
    assert await is_clean(log)


@asyncio_test
async def test_a_swap_that_is_lost_ends_the_step_and_is_made_at_the_next_look(caplog: pytest.LogCaptureFixture) -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [record(1, 1)], [record(1, 2)])

    async def be_first() -> None:
        await clean(log)

    troubled.expect("swap", Mishap(before=be_first), Mishap())
    with caplog.at_level("INFO", "sealwire.cleaner"):
        looked = await Cleaner(troubled.store).look(lambda dirty: True)
    assert (looked.streams, looked.unfinished, looked.waiting_streams) == (0, 1, 1)
    assert "another cleaner is at work" in caplog.text
    assert await is_clean(log)


@asyncio_test
async def test_a_new_term_in_the_stream_ends_a_step() -> None:
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [record(1, 1)], [record(1, 2)])

    async def fail_over() -> None:
        await log.append([record(2, 1)], term=await troubled.store.open_term())

    troubled.expect("swap", Mishap(before=fail_over))
    assert not (await clean(log)).complete
    assert len(await log.left()) == 3
    assert (await clean(log)).complete
    assert await is_clean(log)


@asyncio_test
async def test_a_log_that_cannot_be_read_is_told_once_and_keeps_no_other_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = await memory_store()
    term = await store.open_term()
    strange = await make_vault(store, term)
    assert await store.append([write(strange, term, [stream_write(strange.stream, 0, b"what is this")])]) == [True]
    log = await make_log(store, [record(1, 1)], [record(1, 2)])
    cleaner = Cleaner(store)
    for streams in (1, 0):
        looked = await cleaner.look(lambda dirty: True)
        assert (looked.streams, looked.waiting_streams) == (streams, 1)
    assert caplog.text.count("cannot be cleaned: its stored segment that ends at seq 12 cannot be read") == 1
    assert await is_clean(log)


@asyncio_test
async def test_a_look_finds_every_stream_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAMS_AT_ONCE", 2)
    store = await memory_store()
    logs = [await make_log(store, [record(1, 1)], [record(1, 2)]) for _ in range(5)]
    small = await make_log(store, [record(1, 1)])
    waiting = await small.dirty()
    before = [await log.dirty() for log in logs]
    looked = await Cleaner(store).look(lambda dirty: dirty.head > 1)
    after = [await log.dirty() for log in logs]
    assert looked == Looked(
        *(5, 0, 5),
        *(sum(each.bytes for each in before), sum(each.bytes for each in after)),
        *(10, sum(each.segments for each in after)),
        *(1, waiting.bytes),
    )


@asyncio_test
async def test_it_works_the_part_of_the_time_that_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rests = [0.0], list[float]()

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    async def take() -> None:
        now[0] += 3.0

    monkeypatch.setattr(Pace, "time", lambda pace: now[0])
    monkeypatch.setattr(asyncio, "sleep", sleep)
    troubled = TroubledStore(await memory_store())
    log = await make_log(troubled.store, [record(1, 1)], [record(1, 2)])
    troubled.expect("read", Mishap(before=take))
    await Cleaner(troubled.store, busy=0.25).clean(await log.dirty())
    assert rests[0] == 9.0
    assert set(rests[1:]) == {0.0}


MIB = 1 << 20


def dirty(head: int, *, size: int = 100 * MIB, tail: int = 0, segments: int = 100) -> Dirty:
    name = VaultId(bytes(16)), StreamId(bytes(8))
    return Dirty(*name, head, 0, size, tail, segments, NO_TERM)


@pytest.mark.parametrize(
    ("stream", "wanted"),
    [
        (dirty(1, tail=26 * MIB), True),
        (dirty(1, tail=24 * MIB), False),
        (dirty(1, size=MIB - 1, tail=MIB - 1), False),
        (dirty(1, size=MIB, tail=MIB), True),
        (dirty(1, size=4 * MIB, segments=999), False),
        (dirty(1, size=4 * MIB, segments=1_000), True),
        (dirty(1, size=9 * MIB, segments=1_000), False),
    ],
)
def test_a_busy_log_is_worth_it_by_share_or_by_small_segments(stream: Dirty, wanted: bool) -> None:
    assert by_share(stream, 0.25) is wanted
    assert Worth(0.25, 60, lambda: 0.0)(stream) is wanted


def test_a_silent_log_is_worth_it_for_less() -> None:
    now = [0.0]
    worth = Worth(0.25, 60, lambda: now[0])

    def looks(stream: Dirty, at: float) -> bool:
        now[0] = at
        worth.begin()
        return worth(stream)

    assert [looks(dirty(1, tail=MIB), at) for at in (0, 59, 60, 61)] == [False, False, True, True]
    assert [looks(dirty(2, tail=MIB), at) for at in (70, 129, 130)] == [False, False, True]
    # Not dirty at one look: the clock begins anew.
    worth.begin()
    assert [looks(dirty(2, tail=MIB), at) for at in (200, 259, 260)] == [False, False, True]
    # Next to nothing to gain.
    assert [looks(dirty(3, tail=MIB - 1), at) for at in (300, 400, 100_000)] == [False, False, False]
