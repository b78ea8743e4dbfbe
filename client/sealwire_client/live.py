"""Live queries: a query that is run again when what it reads has changed, and tells what became of its result.

Nothing runs by itself: who iterates asks, and is given what changed since it was given the last difference, as soon
as there is something. So a slow reader costs nothing meanwhile, and gets the newest state then.

Queries run in threads, by connections of their own: neither the app's thread nor the writer waits for them.
"""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import trio

from sealwire_client.differences import Difference, Result, difference, first
from sealwire_client.replica import (
    Collection,
    QueryError,
    Reader,
    Replica,
    ReplicaClosedError,
    Runner,
    SqlValue,
    Touches,
    VaultGoneError,
)

T = TypeVar("T")
D = TypeVar("D")

RUNS_AT_ONCE_MAX: Final = 4
"""Live queries of one vault that run at once, each in a thread and by a connection: more wait. Four keep as many cores
busy, and a long query three others from nothing; each connection may keep 2 MB of pages."""

RUNS_APART_SECONDS: Final = 0.02
"""Between the end of a run and the next one of the same query, which also rests as long as it ran: fifty times a second
is more than anybody sees, and a flood of commits costs each query half of a core at most. After a quiet time the next
run begins at once."""

_TABLE: Final = re.compile(r"_[a-z]+(\d+)(_.*)?")
_OWN: Final = "_"
"""How names of the replica's tables begin; those of a collection's have its number in them."""

_TOKENS: Final = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|$)|[()]|\w+""", re.DOTALL
)


class Live(Generic[D]):
    """What becomes of a query's result: iterate over it, in one task. Got from `vault.live` and `collection.watch`.

    The first difference has the whole result; each later one what changed since this one was given the last. What a
    commit here changes shows without the relay. Cancelled, nothing is lost: whoever goes on iterating gets it.

    Iteration ends when the block is left, the device is closed, or the vault goes from it. Raises QueryError if the
    query fails on what it finds, or two rows have the same key; asked again, it is run again.
    """

    def __init__(self, queries: "LiveQueries", question: "_Question", shape: Callable[[Difference], D]) -> None:
        self._queries, self.question, self._shape = queries, question, shape
        self._token = trio.lowlevel.current_trio_token()
        self._woken, self._ended = trio.Event(), trio.Event()
        self._touched = 0
        """Commits that it was woken by: counted in the writer's thread alone, and compared with in the reader's."""
        self._seen = -1
        self._is_told = False
        self._not_before = -float("inf")
        self._present: Result | None = None
        self._told: Result | None = None
        self.runs = 0
        """How often the query was run."""

    def __aiter__(self) -> AsyncIterator[D]:
        return self

    async def __anext__(self) -> D:
        while True:
            await self._woken.wait()
            await trio.sleep_until(self._not_before)
            if self._ended.is_set():
                raise StopAsyncIteration
            self._woken = trio.Event()
            try:
                self._present, found = await self._asked(self._look)
            except BaseException as error:
                self._woken.set()  # it is still to be told
                if self._ended.is_set() and isinstance(error, ReplicaClosedError | VaultGoneError):
                    raise StopAsyncIteration from None
                raise
            self._told = self._present
            if found is not None:
                return found

    async def begin(self) -> None:
        """Run it for the first time, so that what is wrong with it is raised."""
        began = trio.current_time()
        self._present = await self._asked(lambda reader, stale: self.question.run(reader))
        self._not_before = began
        self._woken.set()

    async def _asked(self, ask: Callable[[Reader, bool], T]) -> T:
        """What `ask` says in a thread, which is told if it must run the query."""
        self._is_told = False  # before it is looked how many there were, as `wake` counts before it looks
        touched, began = self._touched, trio.current_time()
        stale = touched != self._seen
        found = await self._queries.read(lambda reader: ask(reader, stale))
        self._seen = touched
        if stale:
            self.runs += 1
            ended = trio.current_time()
            self._not_before = ended + max(RUNS_APART_SECONDS, ended - began)
        return found

    def _look(self, reader: Reader, stale: bool) -> tuple[Result, D | None]:
        """The present result, and what to tell of it."""
        present = self.question.run(reader) if stale or self._present is None else self._present
        if self._told is None:
            return present, self._shape(first(present))
        if not self.question.is_ordered:
            present = present.in_order_of(self._told)
        found = difference(self._told, present)
        return present, None if found is None else self._shape(found)

    def wake(self) -> None:
        """What it reads has changed. In the writer's thread."""
        self._touched += 1
        if not self._is_told:
            self._is_told = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ready)

    def _ready(self) -> None:
        self._woken.set()

    def end(self) -> None:
        """Nothing is told any more."""
        self._ended.set()
        self._woken.set()


class _Question:
    """A query with all that belongs to it."""

    def __init__(self, sql: str, values: Sequence[SqlValue], key: str | Sequence[str] | None) -> None:
        self.sql, self.values = sql, tuple(values)
        self._key = (key,) if isinstance(key, str) else key
        self.is_ordered = is_ordered(sql)

    def run(self, reader: Reader) -> Result:
        """Its result. Raises QueryError."""
        columns, rows = reader.select(self.sql, self.values)
        return Result(columns, rows, self._key)

    def tables(self, reader: Reader) -> frozenset[int]:
        """The collections that it reads, by number. Raises QueryError."""
        found = set[int]()
        for name in reader.tables_of(self.sql, self.values):
            if table := _TABLE.fullmatch(name):
                found.add(int(table[1]))
            elif name.startswith(_OWN):
                raise QueryError(f"The query reads {name}, of which nobody tells when it changes: name collections.")
        return frozenset(found)


def is_ordered(sql: str) -> bool:
    """True if the order of a query's rows is its own: there is an ORDER BY that is not within parentheses."""
    depth = 0
    for token in _TOKENS.findall(sql):
        depth += (token == "(") - (token == ")")
        if depth == 0 and token.lower() == "order":
            return True
    return False


class LiveQueries:
    """The live queries of one vault, and the connections by which they are run."""

    def __init__(self, folder: Path, writer: Runner[Replica], reader: Reader) -> None:
        """`reader`: the vault's own, which is closed when this is."""
        self._folder, self._writer, self._reader = folder, writer, reader
        self._shown: dict[str, Collection] = {}
        self._touches = Touches()
        self._open = set[Live[Any]]()
        self._idle, self._lent = list[Reader](), set[Reader]()
        self._room = trio.Semaphore(RUNS_AT_ONCE_MAX)
        self._returned = trio.Event()

    def show(self, collection: Collection, touches: Touches) -> None:
        """A collection was opened, and can be named from now on. `touches`: the replica's."""
        self._shown[collection.name], self._touches = collection, touches

    @asynccontextmanager
    async def open(
        self,
        sql: str,
        values: Sequence[SqlValue],
        key: str | Sequence[str] | None,
        shape: Callable[[Difference], D],
    ) -> AsyncIterator[Live[D]]:
        """A live query for the block's length. `shape` makes of a difference what is told, in a thread."""
        live = Live(self, _Question(sql, values, key), shape)
        tables = frozenset[int]()
        self._open.add(live)
        try:
            tables = await self.read(live.question.tables)
            for number in tables:
                self._touches.register(number, live.wake)
            await live.begin()
            yield live
        finally:
            live.end()
            self._open.discard(live)
            for number in tables:
                self._touches.unregister(number, live.wake)
            if not self._open:
                self._let_go()

    async def read(self, question: Callable[[Reader], T]) -> T:
        """Ask a question in a thread, by a connection that knows all collections, which is kept while a query is open.

        Raises as `Reader.select` does. Cancelled, or closed meanwhile, it interrupts the query.
        """
        async with self._room:
            self._reader.check_open()
            reader = self._idle.pop() if self._idle else Reader(self._folder, wanders=True)
            unknown = [each for name, each in self._shown.items() if name not in reader.shown]

            def ask() -> T:
                for collection in unknown:
                    reader.show(collection)
                return question(reader)

            self._lent.add(reader)
            try:
                return await self._writer.beside(ask, reader.interrupt)
            except QueryError:
                self._reader.check_open()  # which has interrupted it
                raise
            finally:
                self._lent.discard(reader)
                self._idle.append(reader)
                if not self._open or reader.is_interrupted or self._reader.is_closed:
                    self._let_go()
                self._returned.set()

    def _let_go(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def close(self) -> None:
        """The vault was closed, or has gone: all of them end, no connection is left. After its reader was closed."""
        for live in self._open:
            live.end()
        for reader in self._lent:
            reader.interrupt()
        self._let_go()
        with trio.CancelScope(shield=True):
            while self._lent:
                self._returned = trio.Event()
                await self._returned.wait()
