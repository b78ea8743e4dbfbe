"""When room is reclaimed, and when a log is moved into it: decided by what a database says of its file."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from sealwire_relay import reclaimer as module
from sealwire_relay.cleaner import Cleaner
from sealwire_relay.pace import Pace
from sealwire_relay.reclaimer import LARGE_BYTES, RECLAIM_BYTES_MIN, Reclaimer
from sealwire_relay.store.cleaning import Room
from sealwire_relay.store.interface import Store, StoreDownError
from tests.relay.logs import Log, make_log, record
from tests.support.aio import asyncio_test
from tests.support.relay import memory_store

MIB = 1 << 20
UNITS = LARGE_BYTES // 16
"""Of a record whose segment does not stand in its row."""


class Files:
    """A store whose file has the sizes that a test wants, one after the other; it counts what is asked of it."""

    def __init__(self, store: Store, *rooms: Room | Exception) -> None:
        self._store, self._rooms = store, list(rooms)
        self.reclaimed = self.swapped = 0

    async def reclaim(self) -> Room:
        self.reclaimed += 1
        room = self._rooms.pop(0) if len(self._rooms) > 1 else self._rooms[0]
        if isinstance(room, Exception):
            raise room
        return room

    async def swap(self, *arguments: Any) -> bool:
        self.swapped += 1
        return await self._store.swap(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def reclaimer(files: Files) -> Reclaimer:
    return Reclaimer(cast(Store, files), Pace(1))


@asyncio_test
async def test_room_is_reclaimed_once_enough_was_replaced_and_at_the_end() -> None:
    files = Files(await memory_store(), Room(0, 0))
    work = reclaimer(files)
    await work.reclaim()
    assert files.reclaimed == 0, "nothing was replaced"
    await work.replaced(RECLAIM_BYTES_MIN - 1)
    assert files.reclaimed == 0
    await work.replaced(1)
    assert files.reclaimed == 1
    await work.replaced(1)
    await work.reclaim()
    await work.reclaim()
    assert files.reclaimed == 2


@asyncio_test
async def test_the_index_of_a_large_file_is_not_read_for_a_small_share_of_it() -> None:
    files = Files(await memory_store(), Room(1_600 * MIB, 1_600 * MIB))
    work = reclaimer(files)
    for _ in range(8):
        await work.replaced(RECLAIM_BYTES_MIN)
    assert files.reclaimed == 2, "at first, when its size was not known, and for 100 MiB"


@asyncio_test
async def test_a_database_that_cannot_reclaim_keeps_nobody_from_cleaning(caplog: pytest.LogCaptureFixture) -> None:
    log = await make_log(await memory_store(), [record(1, 1)], [record(1, 2)])
    files = Files(log.store, StoreDownError("too many connections"))
    looked = await Cleaner(cast(Store, files)).look(lambda dirty: True)
    assert (looked.streams, looked.records, files.reclaimed) == (1, 1, 1)
    assert "left for later: too many connections" in caplog.text
    again = await Cleaner(cast(Store, files)).look(lambda dirty: True)
    assert (again.streams, files.reclaimed) == (0, 1), "nothing was replaced"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a few large records exceed."""
    monkeypatch.setattr(module, "RECLAIM_BYTES_MIN", 4 * LARGE_BYTES)


async def large_log(segments: int) -> Log:
    """A clean log of so many segments that are large enough to be moved, and one that is not."""
    groups = [[record(number, 1, units=UNITS)] for number in range(segments)]
    return await make_log(await memory_store(), *groups, [record(segments, 1)])


async def finished(log: Log, *rooms: Room) -> Files:
    """What became of a log that was cleaned, and of which enough was replaced to ask for the file's size."""
    files = Files(log.store, *rooms)
    work, dirty = reclaimer(files), await log.dirty()
    work.cleaned(dirty, dirty.head, dirty.bytes)
    await work.replaced(module.RECLAIM_BYTES_MIN)
    await work.finish()
    return files


@pytest.mark.usefixtures("small")
@asyncio_test
async def test_a_log_behind_much_free_room_is_moved_until_little_is_left() -> None:
    log = await large_log(20)
    size = (await log.dirty()).bytes
    before = await log.segments()
    files = await finished(log, Room(2 * size, size), Room(2 * size, size), Room(size, size))
    assert (files.reclaimed, files.swapped) == (3, 8)
    assert (await log.segments(), await log.cleaned_to()) == (before, (await log.dirty()).head)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("room", "why"),
    [
        (lambda size: Room(size * 7 // 5, size), "little of it is free"),
        (lambda size: Room(0, 0), "the database does not say"),
        (lambda size: Room(10 * size, 3 * size), "the end of the file is likely to be another log's"),
    ],
)
@asyncio_test
async def test_a_log_is_not_moved_for_nothing(room: Callable[[int], Room], why: str) -> None:
    log = await large_log(20)
    files = await finished(log, room((await log.dirty()).bytes))
    assert files.swapped == 0, why


@asyncio_test
async def test_a_small_file_is_left_alone() -> None:
    log = await large_log(20)
    files = await finished(log, Room(400 * LARGE_BYTES, 0))
    assert files.swapped == 0


@pytest.mark.usefixtures("small")
@asyncio_test
async def test_moving_ends_when_a_file_only_grows_by_it() -> None:
    """A dump that is under way keeps what is replaced."""
    log = await large_log(20)
    size = (await log.dirty()).bytes
    files = await finished(log, Room(2 * size, size), Room(2 * size + 1, size))
    assert 0 < files.swapped < 20


@pytest.mark.usefixtures("small")
@asyncio_test
async def test_segments_that_stand_in_their_rows_stay_there() -> None:
    log = await large_log(8)
    size = (await log.dirty()).bytes
    files = await finished(log, Room(3 * size, size))
    assert files.swapped == 8
