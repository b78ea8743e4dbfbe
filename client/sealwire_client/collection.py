"""A collection as an app uses it: keys and typed values, edited here at once and sent when possible.

Reading is local, synchronous and takes microseconds; it sees every edit of this device as soon as it was made.
"""

import re
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar, overload

import trio

from sealwire_client import sealing
from sealwire_client.conditions import KEY, matching
from sealwire_client.counting import SUBTOTAL_MAX
from sealwire_client.encoding import EncodingError, Schema
from sealwire_client.live import Live, LiveQueries
from sealwire_client.merging import Resolve
from sealwire_client.policies import Policy
from sealwire_client.replica import ALONE, Change, Edit, Mark, NeedsNewerAppError, Reader, Replica, Row, Runner, Seen
from sealwire_client.replica import Collection as Held
from sealwire_client.sync import VaultSync
from sealwire_client.tallies import Addition, counted
from sealwire_client.transactions import PutOff, Transaction, check_bytes, current
from sealwire_client.watching import Values, Watched
from sealwire_client.writes import Write

T = TypeVar("T")

EDITS_TOGETHER_MAX: Final = 20_000
"""Edits of `put_many` in one transaction: bounds the memory for encoded values, and how long other calls wait."""

CHANGES_WAITING_MAX: Final = 1_000
"""Changes kept for a listener that is slow; beyond it the listener is told to look at everything afresh."""

FOUND_MAX: Final = 50
"""Entries that a search gives unless more are asked for: as many as anybody looks through."""

_NOTHING_SEEN: Final[Mapping[tuple[str, str], Seen]] = MappingProxyType({})

_HALF: Final = re.compile("[\ud800-\udfff]")


class Changes:
    """What changes in a collection, for one listener: iterate over it. None means: more than was to be named. It ends
    when the vault goes from this device."""

    def __init__(self) -> None:
        self._waiting: deque[Change] = deque()
        self._many = self._ended = False
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

    def end(self) -> None:
        """Nothing changes any more."""
        self._ended = True
        self._ready.set()

    def __aiter__(self) -> AsyncIterator[list[Change] | None]:
        return self

    async def __anext__(self) -> list[Change] | None:
        await self._ready.wait()
        self._ready = trio.Event()
        if self._ended:
            self._ready.set()
            raise StopAsyncIteration
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
        resolve: Resolve | None,
        writer: Runner[Replica],
        reader: Reader,
        sync: VaultSync,
        live: LiveQueries,
    ) -> None:
        self.held, self._schema, self.policy, self.resolve = held, schema, policy, resolve
        self._writer, self._reader, self._sync, self._live = writer, reader, sync, live
        self._listeners: set[Changes] = set()

    @property
    def name(self) -> str:
        """The collection's name, which is also its name in SQL."""
        return self.held.name

    # --- editing

    async def put(self, key: str, value: T) -> Write:
        """Make `value` the value of `key`. Durable on this device when it returns; sent when possible.

        Raises EncodingError, ValueTooLargeError for what does not fit into a record, NeedsNewerAppError where a newer
        app wrote what this one cannot read, VaultGoneError once the vault is not on this device any more. Cancelled
        before it began: nothing happens; later cancellation does not cut it short. In a transaction: see there.

        If the collection is `strict`: waits until the relay has taken the write and it can be read here. Raises
        OfflineError at once without a connection, ConflictError if another device's write came first, StrictError if it
        was refused otherwise; nothing was written then. Cancelled, it leaves open whether it was.
        """
        return await self._edit([self._edit_of(key, value)])

    async def put_many(self, items: Mapping[str, T] | Iterable[tuple[str, T]]) -> int:
        """Put many entries, durably, in transactions of up to EDITS_TOGETHER_MAX. Returns how many.

        Raises as `put` does; what was put before the bad entry's transaction stays. Where edits are strict, or within
        `vault.transaction()`, all of them are made together.
        """
        pairs = items.items() if isinstance(items, Mapping) else items
        at_once = None if self.is_strict or current() is not None else EDITS_TOGETHER_MAX
        edits: list[Edit] = []
        count = 0
        for key, value in pairs:
            edits.append(self._edit_of(key, value))
            if len(edits) == at_once:
                await self._edit(edits)
                count, edits = count + len(edits), []
        if edits:
            await self._edit(edits)
        return count + len(edits)

    async def delete(self, key: str) -> Write:
        """Delete an entry; durable on this device when it returns. Deleting what is not there is no error.

        Raises as `put` does.
        """
        _check(key, b"", self.held.signed)
        return await self._edit([Edit(key, None, None)])

    async def add(self, addition: Addition) -> Write:
        """Add to a counter: see `Counters.add`."""
        _check(addition.key, b"", self.held.signed)
        if type(addition.amount) is not int:
            raise EncodingError(f"a counter takes integers, not {addition.amount!r}")
        if abs(addition.amount) > SUBTOTAL_MAX:
            raise EncodingError(f"a counter takes at most {SUBTOTAL_MAX} from one device in all; nothing was added")
        return await self._edit([addition])

    @property
    def is_strict(self) -> bool:
        """True if its writes wait for the relay."""
        return self.policy.name == "strict"

    def _edit_of(self, key: str, value: T) -> Edit:
        raw = self._schema.encode(value)
        _check(key, raw, self.held.signed)
        return Edit(key, self._schema.to_row(value), raw)

    async def _edit(self, edits: Sequence[Edit | Addition]) -> Write:
        if not self.is_strict:  # which asks the relay anyway
            self._sync.check_fits(self.held)
        transaction = current()
        if transaction is not None:
            transaction.check_owner(self._sync)
            self._edit_within(transaction, edits)
            return PutOff(transaction)
        if self.is_strict:
            alone: Transaction[Collection[T]] = Transaction(self._sync)
            self._edit_within(alone, edits)
            await self._sync.strict(alone.strict_writes())
            return Write(self._sync, ())
        await trio.lowlevel.checkpoint_if_cancelled()
        # The writer would make the edit all the same, and then nobody would be told, nor would it be sent.
        with trio.CancelScope(shield=True):
            made = await self._writer.run_grouped(make, [(self, edits)], marked=len(edits) == 1)
        tell(made)
        self._sync.edited()
        return Write(self._sync, made.marks)

    def _edit_within(self, transaction: "Transaction[Collection[Any]]", edits: Sequence[Edit | Addition]) -> None:
        for edit in edits:
            if isinstance(edit, Edit) and transaction.edited(self.name, edit.key) is None:
                self._seen(transaction, edit.key)
        transaction.edit(self, edits)

    def _seen(self, transaction: "Transaction[Collection[Any]]", key: str) -> Seen:
        """What is shown now; what a transaction was shown first counts for its edits."""
        seen = self._reader.seen(self.held, key)
        transaction.seen.setdefault((self.name, key), seen)
        return seen

    # --- reading

    def get(self, key: str) -> T | None:
        """The value of a key, or None if there is no such entry. In a transaction with its own edits.

        Raises NeedsNewerAppError if a newer app wrote what this one cannot read.
        """
        row = self._row(key)
        return None if row is None else self._schema.from_row(row)

    def items(self, prefix: str = "") -> Iterator[tuple[str, T]]:
        """Keys and values in the order of the keys; of those that begin with `prefix`, if it is given.

        Edits of a transaction show here only after its end, and so they do in `len` and `vault.select`.
        """
        from_row = self._schema.from_row
        if not _is_text(prefix):
            return
        for key, row in self._reader.items(self.held, prefix):
            yield key, from_row(row)

    def where(self, *, order_by: str = KEY, limit: int | None = None, **conditions: Any) -> Iterator[tuple[str, T]]:
        """Keys and values of the entries whose fields (or `key`) are what is given; of all, if nothing is.

        None: that has no value. A list, tuple, set or frozenset: one of these. Values are those of the app, and are
        compared as they are stored. `order_by`: a field, or `key`; with a minus before it the other way round; equal
        ones by their keys. `limit`: so many at most. One consistent read, made when this is called.

        Fields called `order_by` or `limit` are for `vault.select`. Edits of a transaction show only after its end.

        Raises QueryError for what is no field (a collection of dicts has none), EncodingError for what is no value
        of one.
        """
        condition, values = matching(self.name, self._schema, conditions, order_by, limit)
        from_row = self._schema.from_row
        return ((str(key), from_row(tuple(row))) for key, *row in self._reader.matching(self.held, condition, values))

    def search(self, text: str, *, limit: int = FOUND_MAX) -> list[tuple[str, T]]:
        """Entries in which all words of a text are found, in whatever fields are `searchable`, the best first; at most
        `limit`. Case and accents make no difference, and the last word may be the beginning of one: made for what a
        user is typing. No text is wrong; one without a word finds nothing, and the words after the 32nd count nothing.

        Edits of a transaction are found only after its end. Raises ReplicaMisuse if no field is searchable.
        """
        from_row = self._schema.from_row
        return [(key, from_row(row)) for key, row in self._reader.search(self.held, text, limit)]

    def __len__(self) -> int:
        return self._reader.count(self.held)

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and self._row(key) is not None
        except NeedsNewerAppError:
            return True

    def newer(self) -> list[str]:
        """The keys of entries whose values need a newer app to be read, in order. `items`, `len` and SQL leave them
        out; `get`, `put` and `delete` raise NeedsNewerAppError for them."""
        return self._reader.newer(self.held)

    def _row(self, key: str) -> Row | None:
        if not _is_text(key):
            return None
        transaction = current()
        if transaction is None:
            return self._reader.get(self.held, key)
        transaction.check_owner(self._sync)
        edit = transaction.edited(self.name, key)
        if isinstance(edit, Edit):
            return edit.row
        return self._seen(transaction, key).row

    def tally(self, key: str) -> int:
        """What this device has added to a counter: see `Counters.mine`."""
        return self._reader.tallied(self.held, key)

    # --- watching

    @overload
    def watch(self, key: str) -> "AbstractAsyncContextManager[Live[Watched[T]]]": ...

    @overload
    def watch(self, *, prefix: str = "") -> "AbstractAsyncContextManager[Live[Watched[T]]]": ...

    def watch(self, key: str | None = None, *, prefix: str = "") -> "AbstractAsyncContextManager[Live[Watched[T]]]":
        """While the block lasts: `async for watched in live` gives first the present entries, of one key or those that
        begin with `prefix`, then what became of them, with their values, from this device and others alike.

        As `vault.live` with such a query, and with its promises: a slow reader gets the newest state. Each run reads
        all entries that are watched; for what only wants to hear which keys change, among many, there is `changes`.
        """
        if not _is_text(prefix if key is None else key):
            raise EncodingError("what is watched is no text: it contains half of a surrogate pair")
        statement, values = self._reader.watching(self.held, key, prefix)
        return self._live.open(statement, values, KEY, Values(self._schema))

    @contextmanager
    def changes(self) -> Iterator[Changes]:
        """While the block lasts: `async for changed in changes` gives lists of (key, kind), from this device and
        others alike; None when more changed than is named, or this listener was too slow.

        It costs something for each change and nothing for what is there, and has no values: for logs, caches and
        whatever acts on single keys. What shows entries wants `watch`, which always tells the whole truth."""
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

    def end(self) -> None:
        """Tell the listeners that nothing changes any more."""
        for listener in self._listeners:
            listener.end()


def _check(key: str, raw: bytes, signed: bool) -> None:
    if not _is_text(key):
        raise EncodingError(f"the key {key!a} is not text: it contains half of a surrogate pair")
    sealing.check_fits(key, raw, signed)


def _is_text(key: str) -> bool:
    """False if it contains half of a surrogate pair, which no UTF-8 can say: no entry has such a key. Raises
    EncodingError for what is no str."""
    if not isinstance(key, str):
        raise EncodingError(f"a key is text (str), and {key!r} is a {type(key).__name__}")
    return key.isascii() or not _HALF.search(key)


class Made(NamedTuple):
    """Edits that were made: names for them, and what to tell the watchers of each collection."""

    marks: list[Mark]
    changes: list[tuple[Collection[Any], Sequence[Change] | None]]


def make(
    replica: Replica,
    parts: Sequence[tuple[Collection[Any], Sequence[Edit | Addition]]],
    *,
    together: bool = False,
    marked: bool = True,
    seen: Mapping[tuple[str, str], Seen] = _NOTHING_SEEN,
) -> Made:
    """Make edits in one transaction, in the writer's thread. `together`: they are pushed as one, too. `seen`: what
    edits are based on, by collection and key, if not on what is shown now; the two are merged.

    Raises TransactionError if they are too much for that, EncodingError if a counter takes no more, and MergeError.
    """
    made, all_edits = Made([], []), list[tuple[Held, Edit]]()
    with replica.transaction():
        tx = replica.outbox.edits.new_transaction() if together else ALONE
        for collection, given in parts:
            edits = [
                counted(replica, collection.held, x)
                if isinstance(x, Addition)
                else _brought_up(replica, collection, x, seen.get((collection.name, x.key)))
                for x in given
            ]
            held, watched = collection.held, collection.watched
            all_edits += [(held, edit) for edit in edits]
            many = watched and len(edits) > CHANGES_WAITING_MAX
            keys = [edit.key for edit in edits]
            before = replica.entries.look(held.table, keys if watched and not many else [])
            replica.edit(held, edits, tx)
            if watched:
                changed = None if many else before.changes_to(replica.entries.look(held.table, keys))
                made.changes.append((collection, changed))
            if marked:
                made.marks.extend(replica.outbox.edits.marks(held.number, keys))
        if together:
            check_bytes(all_edits)
    return made


def _brought_up(replica: Replica, collection: Collection[Any], edit: Edit, seen: Seen | None) -> Edit:
    """An edit brought together with what happened to its entry since the app was shown it."""
    claims, held = replica.claims, collection.held
    if seen is None or collection.resolve is None:
        return edit
    base, shown = claims.seen(held, seen), claims.shown(held, edit.key)
    if shown.newer or shown.value == base:
        return edit
    value = collection.resolve(base, edit.value, shown.value)
    if value is None:
        return Edit(edit.key, None, None)
    sealing.check_fits(edit.key, value, held.signed)
    row, kept = held.read(value)
    return Edit(edit.key, row, value, kept is not None)


def tell(made: Made) -> None:
    """Tell the watchers."""
    for collection, changes in made.changes:
        collection.tell(changes)
