"""Counters: a collection whose entries are numbers that several devices add to at once, each addition counted once."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager

from sealwire_client.collection import Changes, Collection
from sealwire_client.live import Live
from sealwire_client.tallies import Addition
from sealwire_client.transactions import current
from sealwire_client.watching import Watched
from sealwire_client.writes import Write


class Counters:
    """Numbers by name. Got from `vault.counters`. In SQL they are the column `value` of a table of this name."""

    def __init__(self, collection: Collection[int]) -> None:
        self._collection = collection

    @property
    def name(self) -> str:
        """Their name, which is also their name in SQL."""
        return self._collection.name

    async def add(self, key: str, amount: int = 1) -> Write:
        """Add to a counter, or take away. Durable on this device when it returns; sent when possible, counted once.

        Raises EncodingError if the amount is no integer, or the counter takes no more from this device; nothing was
        added then. Additions to one counter that wait to be sent are sent as one.
        """
        return await self._collection.add(Addition(key, amount))

    async def reset(self, key: str) -> Write:
        """Take away what the counter says here now. What others add meanwhile stays."""
        return await self.add(key, -self.get(key))

    def get(self, key: str) -> int:
        """What a counter says; 0 if nobody has added to it."""
        said = self._collection.get(key) or 0
        transaction = current()
        put_off = transaction.edited(self.name, key) if transaction is not None else None
        return said + put_off.amount if isinstance(put_off, Addition) else said

    def mine(self, key: str) -> int:
        """What this device itself has added to a counter in all, sent or not."""
        return self._collection.tally(key)

    def items(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Keys and numbers in the order of the keys; of those that begin with `prefix`, if it is given."""
        return self._collection.items(prefix)

    def watch(self, key: str | None = None, *, prefix: str = "") -> AbstractAsyncContextManager[Live[Watched[int]]]:
        """See `Collection.watch`."""
        return self._collection.watch(prefix=prefix) if key is None else self._collection.watch(key)

    def changes(self) -> AbstractContextManager[Changes]:
        """See `Collection.changes`."""
        return self._collection.changes()

    def __len__(self) -> int:
        return len(self._collection)

    def __contains__(self, key: object) -> bool:
        return key in self._collection
