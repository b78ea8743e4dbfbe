"""Transactions: edits of several entries, and of several collections of one vault, made and pushed as one.

Inside the block of `vault.transaction()` every edit of this task is put off until its end. Then all of them are made
in one local commit and pushed as one: the relay takes all or none. Each edit is based on what the block was shown of
its entry first, and merged with what happened to it meanwhile if the collection merges. Where a strict collection takes
part, all of it is strict, on condition of what was shown.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Generic, Protocol, TypeVar

from sealwire_client.batching import StrictWrite
from sealwire_client.replica import Collection as Held
from sealwire_client.replica import Edit, Seen, sealed_bytes
from sealwire_client.tallies import Addition
from sealwire_client.writes import Standing, Write
from sealwire_protocol.limits import PUSH_GROUPS_MAX, PUSH_RECORDS_MAX, SEGMENT_BYTES_MAX

TRANSACTION_BYTES_MAX: Final = SEGMENT_BYTES_MAX
"""All records of one transaction, sealed: they are pushed in one message, which every relay must take."""


C = TypeVar("C", bound="Editable")


class TransactionError(Exception):
    """Something cannot be done in a transaction, or not in this one. Nothing of it was made."""


class Editable(Protocol):
    """A collection, as far as a transaction must know it."""

    @property
    def name(self) -> str:
        """What the app calls it."""

    @property
    def held(self) -> Held:
        """Where it lies in the replica."""

    @property
    def is_strict(self) -> bool:
        """True if its writes wait for the relay."""


class Transaction(Generic[C]):
    """The edits of one block. After the block `write` tells what became of them."""

    def __init__(self, owner: object) -> None:
        self._owner, self._open = owner, True
        self._edits: dict[str, tuple[C, dict[str, Edit | Addition]]] = {}
        self.seen: dict[tuple[str, str], Seen] = {}
        """What the block was shown of each entry that it has read or edited, by collection and key."""
        self._made: Write | None = None

    @property
    def is_open(self) -> bool:
        """True within its block."""
        return self._open

    @property
    def write(self) -> Write:
        """All edits of the transaction, once they are made. Raises TransactionError before."""
        if self._made is None:
            raise TransactionError("the transaction has not been made yet: leave its block first")
        return self._made

    async def durable(self, *, wait: bool = True) -> Standing:
        """Where the edits stand: see `Write.durable`. Raises TransactionError within the block."""
        return await self.write.durable(wait=wait)

    # --- for collections

    def check_owner(self, owner: object) -> None:
        """Raises TransactionError for a collection of another vault."""
        if owner is not self._owner:
            raise TransactionError("a transaction edits the collections of one vault; this one belongs to another")

    def edit(self, collection: C, edits: Sequence[Edit | Addition]) -> None:
        """Put edits off until the end of the block."""
        _, kept = self._edits.setdefault(collection.name, (collection, {}))
        for edit in edits:
            before = kept.pop(edit.key, None)
            if isinstance(edit, Addition) and isinstance(before, Addition):
                edit = Addition(edit.key, before.amount + edit.amount)
            kept[edit.key] = edit

    def edited(self, collection: str, key: str) -> Edit | Addition | None:
        """The edit of a key made in this block, if there is one."""
        return self._edits[collection][1].get(key) if collection in self._edits else None

    # --- for the vault

    @property
    def strict(self) -> bool:
        """True if a collection that takes part is strict."""
        return any(collection.is_strict for collection, _ in self._edits.values())

    @property
    def parts(self) -> list[tuple[C, list[Edit | Addition]]]:
        """The edits of each collection, in order. Raises TransactionError if they are too many for one push."""
        parts = [(collection, list(edits.values())) for collection, edits in self._edits.values()]
        _check_size("collections", len(parts), PUSH_GROUPS_MAX)
        _check_size("edits", sum(len(edits) for _, edits in parts), PUSH_RECORDS_MAX)
        return parts

    def strict_writes(self) -> list[StrictWrite]:
        """The edits as strict writes, on condition of what the block was shown. Raises TransactionError."""
        writes = []
        for collection, edits in self.parts:
            for edit in edits:
                if isinstance(edit, Addition):
                    raise TransactionError(
                        f"{collection.name} counts, and what is added to a counter waits for nobody: a transaction with"
                        " a strict collection cannot hold it; nothing was written"
                    )
                seen = self.seen[collection.name, edit.key]
                writes.append(StrictWrite(collection.held, edit.key, edit.value, edit.raw, seen))
        check_bytes((write.collection, write) for write in writes)
        return writes

    def made(self, write: Write) -> None:
        """The edits are durable here."""
        self._made = write

    def close(self) -> None:
        """The block has ended: tasks that were started in it edit on their own from now on."""
        self._open = False


def check_bytes(edits: Iterable[tuple[Held, Edit | StrictWrite]]) -> None:
    """Raises TransactionError if these are too much for one push."""
    size = sum(sealed_bytes(edit.key, edit.value, held.signed) for held, edit in edits)
    _check_size("bytes", size, TRANSACTION_BYTES_MAX)


def _check_size(what: str, count: int, most: int) -> None:
    if count > most:
        raise TransactionError(
            f"a transaction of {count} {what} is too large, for it must be pushed at once ({most} at most);"
            " nothing was written: make several"
        )


_current: Final[ContextVar[Transaction[Any] | None]] = ContextVar("sealwire transaction", default=None)


def current() -> Transaction[Any] | None:
    """The transaction in whose block this task is, if it is in one."""
    transaction = _current.get()
    return transaction if transaction is not None and transaction.is_open else None


@contextmanager
def entered(transaction: Transaction[Any]) -> Iterator[None]:
    """While the block lasts, this task's edits belong to the transaction. Raises TransactionError within another."""
    if current() is not None:
        raise TransactionError("a transaction cannot begin within another; nothing was begun")
    token = _current.set(transaction)
    try:
        yield
    finally:
        transaction.close()
        _current.reset(token)


class PutOff(Write):
    """A write within a transaction: what becomes of it is what becomes of the whole."""

    def __init__(self, transaction: Transaction[Any]) -> None:
        self._transaction = transaction

    async def durable(self, *, wait: bool = True) -> Standing:
        """See `Write.durable`. Raises TransactionError before the end of the block."""
        return await self._transaction.durable(wait=wait)
