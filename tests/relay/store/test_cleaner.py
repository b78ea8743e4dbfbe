"""The cleaner on every store: the same is left as in memory, also by two of them while devices push."""

import asyncio
from random import Random

from sealwire_relay.cleaner import Cleaner
from tests.relay.logs import by_chance, make_log
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
