"""The cleaner on every store: the same is left as in memory, also by two of them while devices push."""

import asyncio
from random import Random

from sealwire_protocol.segment import TOMBSTONE
from sealwire_relay.cleaner import Cleaner
from sealwire_relay.purging import Purger
from sealwire_relay.retention import Retention
from sealwire_relay.store.interface import Store
from tests.relay.logs import by_chance, deleted_by_chance, make_log
from tests.relay.store.places import Place
from tests.support.aio import asyncio_test


@asyncio_test
async def test_winners_are_left_of_a_log_that_two_clean_while_it_grows(fresh: Place) -> None:
    random = Random(1)
    async with fresh.opened() as store, fresh.opened() as rival:
        log = await make_log(store, *by_chance(random, groups=100))

        async def push() -> None:
            for _ in range(5):
                await log.append(*by_chance(random, groups=5))

        async def look(cleaner: Cleaner) -> None:
            for _ in range(3):
                await cleaner.look(lambda dirty: dirty.vault == log.vault.id)

        await asyncio.gather(push(), look(Cleaner(store, 20)), look(Cleaner(rival, 30)))
        assert log.winners().items() <= (await log.left()).items()
        before = await log.dirty()
        cleaned = await Cleaner(store).clean(before)
        after = await log.dirty()
        assert cleaned.complete
        assert await log.left() == log.winners()
        assert after.compacted == after.head == max(log.whole)
        assert (before.bytes - after.bytes, before.segments - after.segments) == (cleaned.bytes, cleaned.segments)
        assert await log.cleaned_to() <= after.head


@asyncio_test
async def test_nothing_comes_back_when_two_clean_and_purge_a_log_at_once(fresh: Place) -> None:
    random = Random(2)
    async with fresh.opened() as store, fresh.opened() as rival:
        log = await make_log(store, *deleted_by_chance(random, groups=100))

        async def push() -> None:
            for _ in range(10):
                await log.append(*deleted_by_chance(random, groups=3, above=1_000))

        async def look(own: Store) -> None:
            for _ in range(5):
                await Cleaner(own, 30).look(lambda dirty: dirty.vault == log.vault.id)
                await Purger(own, Retention(0, 1_000), 5).look()

        # Before the first purge, so that none of these is refused because of it.
        await push()
        await asyncio.gather(look(store), look(rival))
        await asyncio.gather(Cleaner(store).look(lambda dirty: True), Purger(rival, Retention(0, 1_000)).look())
        await Purger(store, Retention(0, 1_000)).look()
        await log.says_the_same()
        await log.is_purged_to_its_floor()
        assert (await log.page()).floor > 0
        assert not [each for each in (await log.left()).values() if each.flags & TOMBSTONE]
        assert await store.tombstones(None, 10) == []
