"""Whatever devices do, each live query says what the query says when it is run afresh, whenever it is quiet."""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

import pytest
import trio

from sealwire_client.differences import Difference
from sealwire_client.live import Live
from sealwire_client.replica import Row
from sealwire_client.sending import StrictError
from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.vault import Vault
from sealwire_protocol.links import Role
from tests.client.guarded import Account, Card, Seat, seated, table
from tests.client.party import Note, all_synced, joined
from tests.client.test_differences import applied
from tests.support.virtual import virtual

QUERIES = (
    "SELECT * FROM notes",
    "SELECT text FROM notes UNION ALL SELECT title FROM cards",
    "SELECT key, text, count FROM notes ORDER BY count DESC, text, key LIMIT 3",
    "SELECT n.key, n.text, c.title FROM notes AS n LEFT JOIN cards AS c USING (key) ORDER BY n.key DESC",
    "SELECT c.title, count(*), max(n.count) FROM cards AS c JOIN notes AS n ON n.count < c.count GROUP BY c.title",
    "SELECT key, sum(count) OVER (ORDER BY key) AS so_far, rank() OVER (ORDER BY count) FROM notes ORDER BY 3, 1",
    "SELECT (SELECT sum(cents) FROM accounts), EXISTS (SELECT 1 FROM cards WHERE title = owner)",
    """WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 4)
    SELECT i AS key, count(notes.key) FROM n LEFT JOIN notes ON notes.count = i GROUP BY i ORDER BY i""",
)
KEYS = "abcdef"
WORDS = ("milk", "bread", "tea")
STEPS = 60
QUIET_EVERY = 12
"""Steps between two moments at which everything is compared."""


class Reader:
    """Who iterates over a live query, now and then, and keeps rows by what it is told alone."""

    def __init__(self, vault: Vault, sql: str, live: Live[Difference]) -> None:
        self._vault, self._sql, self._live = vault, sql, live
        self._rows: tuple[Row, ...] = ()

    async def catch_up(self) -> None:
        """Take what there is."""
        while True:
            with trio.move_on_after(1):
                found = await anext(self._live)
                self._rows = applied(self._rows, found)
                assert self._rows == found.rows
                continue
            return

    async def check(self) -> None:
        """It has what the query says now, and is told nothing more."""
        await self.catch_up()
        fresh = self._vault.select(self._sql).rows
        if self._live.question.is_ordered:
            assert list(self._rows) == fresh
        else:
            assert sorted(self._rows, key=repr) == sorted(fresh, key=repr)


async def do_something(seat: Seat, chance: random.Random) -> None:
    """One edit of one device, or a few together; or a decision about a write that was refused."""
    key, word, number = chance.choice(KEYS), chance.choice(WORDS), chance.randrange(5)
    what = chance.randrange(8)
    if what < 2:
        await seat.guest.notes.put(key, Note(word, number))
    elif what == 2:
        await seat.guest.notes.delete(key)
    elif what == 3:
        card = seat.cards.get(key) or Card()
        changed = Card(word, card.owner, card.labels, card.count)
        await seat.cards.put(key, changed if number else Card(card.title, word, card.labels, number))
    elif what == 4:
        await seat.cards.delete(key)
    elif what == 5:
        async with seat.vault.transaction():
            await seat.guest.notes.put(key, Note(word, number))
            await seat.cards.put(chance.choice(KEYS), Card(word, count=number))
    elif what == 6:
        with suppress(StrictError), trio.move_on_after(5):  # the relay may stop while it is asked
            await seat.accounts.put(key, Account(number))
    else:
        for stuck in await seat.vault.stuck():
            decide = chance.choice((seat.vault.retry, seat.vault.discard))
            if stuck.collection != "accounts" or decide == seat.vault.discard:
                await decide(stuck.collection, stuck.key)


async def quiet(seats: Sequence[Seat]) -> None:
    """All devices have everything."""
    await all_synced([seat.vault for seat in seats])


@virtual
@pytest.mark.parametrize("run", range(4))
async def test_a_live_query_says_what_the_query_says(
    open_device: OpenDevice, memory_relay: MemoryRelay, run: int
) -> None:
    chance = random.Random(run)
    async with table(open_device) as seats, open_device("reader") as device, AsyncExitStack() as stack:
        first = seats[0]  # a reader cannot make collections
        await first.guest.notes.put("a", Note("first"))
        await first.cards.put("a", Card("first"))
        await first.accounts.put("a", Account(0))
        seats.append(await seated(await joined(device, seats[0].vault, Role.READER)))
        await quiet(seats)
        readers = [
            Reader(seat.vault, sql, await stack.enter_async_context(seat.vault.live(sql)))
            for seat in seats
            for sql in QUERIES
        ]
        backup = memory_relay.backup()
        is_away = False
        for step in range(1, STEPS + 1):
            await do_something(chance.choice(seats), chance)
            for reader in chance.sample(readers, 2):
                await reader.catch_up()
            what = chance.randrange(12)
            if what < 3:
                is_away = not is_away
                memory_relay.stop() if is_away else memory_relay.start()
            elif what == 3 and not is_away:
                memory_relay.restore(backup)
            elif what == 4:
                backup = memory_relay.backup()
            if step % QUIET_EVERY == 0:
                if is_away:
                    memory_relay.start()
                    is_away = False
                await quiet(seats)
                for reader in readers:
                    await reader.check()
