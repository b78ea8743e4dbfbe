"""A collection as an app uses it: keys and typed values, edited here at once and sent when possible.

Reading is local, synchronous and takes microseconds; it sees every edit of this device as soon as it was made.
"""

import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

import trio

from sealwire_client import sealing
from sealwire_client.encoding import EncodingError, Schema
from sealwire_client.policies import Policy
from sealwire_client.replica import Change, Edit, Reader, Replica, Row, Runner
from sealwire_client.replica import Collection as Held

T = TypeVar("T")

EDITS_TOGETHER_MAX: Final = 20_000
"""Edits of `put_many` in one transaction: bounds the memory for encoded values, and how long other calls wait."""

CHANGES_WAITING_MAX: Final = 1_000
"""Changes kept for a listener that is slow; beyond it the listener is told to look at everything afresh."""


_HALF: Final = re.compile("[\ud800-\udfff]")


class Changes:
    """What changes in a collection, for one listener: iterate over it. None means: more than was to be named."""

    def __init__(self) -> None:
        self._waiting: deque[Change] = deque()
        self._many = False
        self._ready = trio.Event()

    def tell(self, changes: Sequence[Change] | None) -> None:
        """Add changes; never blocks, never grows beyond its limit."""
        if changes is None or len(self._waiting) + len(changes) > CHANGES_WAITING_MAX:
            self._waiting.clear()
            self._many = True
        elif not self._many:
            self._waiting.extend(changes)
        if self._many or self._waiting:
            self._ready.set()

    def __aiter__(self) -> AsyncIterator[list[Change] | None]:
        return self

    async def __anext__(self) -> list[Change] | None:
        await self._ready.wait()
        self._ready = trio.Event()
        if self._many:
            self._many = False
            return None
        changes = list(self._waiting)
        self._waiting.clear()
        return changes


class Collection(Generic[T]):
    """An app's named set of entries. Got from `vault.collection`."""

    def __init__(
        self,
        held: Held,
        schema: Schema[T],
        policy: Policy,
        writer: Runner[Replica],
        reader: Reader,
        edited: Callable[[], None],
    ) -> None:
        self._held, self._schema, self.policy = held, schema, policy
        self._writer, self._reader, self._edited = writer, reader, edited
        self._listeners: set[Changes] = set()

    @property
    def name(self) -> str:
        """The collection's name, which is also its name in SQL."""
        return self._held.name

    # --- editing

    async def put(self, key: str, value: T) -> None:
        """Make `value` the value of `key`. Durable on this device when it returns; sent when possible.

        Raises EncodingError, or ValueTooLargeError for what does not fit into a record. Cancelled before it began:
        nothing happens; later cancellation does not cut it short.
        """
        await self._edit([self._edit_of(key, value)])

    async def put_many(self, items: Mapping[str, T] | Iterable[tuple[str, T]]) -> int:
        """Put many entries, durably, in transactions of up to EDITS_TOGETHER_MAX. Returns how many.

        Raises as `put` does; what was put before the bad entry's transaction stays.
        """
        pairs = items.items() if isinstance(items, Mapping) else items
        edits: list[Edit] = []
        count = 0
        for key, value in pairs:
            edits.append(self._edit_of(key, value))
            if len(edits) == EDITS_TOGETHER_MAX:
                await self._edit(edits)
                count, edits = count + len(edits), []
        if edits:
            await self._edit(edits)
        return count + len(edits)

    async def delete(self, key: str) -> None:
        """Delete an entry; durable on this device when it returns. Deleting what is not there is no error.

        Raises as `put` does for keys that no entry can have.
        """
        _check(key, b"")
        await self._edit([Edit(key, None, None)])

    def _edit_of(self, key: str, value: T) -> Edit:
        raw = self._schema.encode(value)
        _check(key, raw)
        return Edit(key, self._schema.to_row(value), raw)

    async def _edit(self, edits: list[Edit]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        # The writer would make the edit all the same, and then nobody would be told, nor would it be sent.
        with trio.CancelScope(shield=True):
            changes = await self._writer.run_grouped(_edit, self._held, edits, self.watched)
        self.tell(changes)
        self._edited()

    # --- reading

    def get(self, key: str) -> T | None:
        """The value of a key, or None if there is no such entry."""
        row = self._row(key)
        return None if row is None else self._schema.from_row(row)

    def items(self, prefix: str = "") -> Iterator[tuple[str, T]]:
        """Keys and values in the order of the keys; of those that begin with `prefix`, if it is given."""
        from_row = self._schema.from_row
        if not _is_text(prefix):
            return
        for key, row in self._reader.items(self._held, prefix):
            yield key, from_row(row)

    def __len__(self) -> int:
        return self._reader.count(self._held)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row(key) is not None

    def _row(self, key: str) -> Row | None:
        return self._reader.get(self._held, key) if _is_text(key) else None

    # --- watching

    @contextmanager
    def changes(self) -> Iterator[Changes]:
        """While the block lasts: `async for changed in changes` gives lists of (key, kind), from this device and
        others alike; None when more changed than is named, or this listener was too slow."""
        listener = Changes()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    @property
    def watched(self) -> bool:
        """True if anybody listens. May be asked from any thread."""
        return bool(self._listeners)

    def tell(self, changes: Sequence[Change] | None) -> None:
        """Tell the listeners what changed."""
        for listener in self._listeners:
            listener.tell(changes)


def _check(key: str, raw: bytes) -> None:
    if not _is_text(key):
        raise EncodingError(f"the key {key!a} is not text: it contains half of a surrogate pair")
    sealing.check_fits(key, raw)


def _is_text(key: str) -> bool:
    """False if it contains half of a surrogate pair, which no UTF-8 can say: no entry has such a key."""
    return key.isascii() or not _HALF.search(key)


def _edit(replica: Replica, held: Held, edits: Sequence[Edit], watched: bool) -> Sequence[Change] | None:
    if not watched:
        replica.edit(held, edits)
        return ()
    if len(edits) > CHANGES_WAITING_MAX:
        replica.edit(held, edits)
        return None
    keys = [edit.key for edit in edits]
    before = replica.entries.look(held.table, keys)
    replica.edit(held, edits)
    return before.changes_to(replica.entries.look(held.table, keys))
