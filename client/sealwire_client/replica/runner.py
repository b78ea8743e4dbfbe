"""Runners: where the replica's writing connection lives. A thread of its own, or, under a clock of tests, inline.

One hop through trio's own thread pool costs 140 to 180 µs; a thread that waits for work costs a tenth. And
grouped calls that wait while one commit is being made durable share the next one.
"""

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, cast

import trio

from sealwire_client.forks import Birthplace
from sealwire_client.replica.errors import ReplicaClosedError

CALLS_WAITING_MAX: Final = 1_024
"""Calls that may wait for the writer; more wait in their own tasks. Bounds what a burst of edits can pile up."""

CALLS_GROUPED_MAX: Final = 256
"""Calls that share one commit. Bounds how long the first of them waits for the last."""


class Store(Protocol):
    """What a runner needs of the object that it keeps: transactions, nested as savepoints, and an end."""

    def transaction(self) -> AbstractContextManager[Any]:
        """One transaction; within another, a savepoint."""

    def in_transaction(self) -> bool:
        """False also after the store has given up a transaction by itself."""

    def explained(self, error: BaseException) -> BaseException:
        """What an error means that came out of a call: the caller gets that instead."""

    def close(self) -> None:
        """Close it; called once, after the last call."""


S = TypeVar("S", bound=Store)
T = TypeVar("T")
P = ParamSpec("P")


class Runner(ABC, Generic[S]):
    """Runs functions on a store that belongs to one thread, one after the other, in the order of the calls."""

    @abstractmethod
    async def run(self, function: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(store, …)`, and what it returns or raises. A checkpoint.

        Cancelled before it was queued, the call does not happen. Cancelled later, it happens all the same and nobody
        learns its result. Raises ReplicaClosedError after `aclose`.
        """

    @abstractmethod
    async def run_grouped(self, function: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, in a transaction that calls from other tasks may share. Durable when it returns.

        A function that raises undoes its own part only. If the shared commit fails, all calls of it raise that.
        """

    @abstractmethod
    async def beside(self, function: Callable[[], T], interrupt: Callable[[], None]) -> T:
        """`function()`, which does not use the store and so waits for nobody's call, in a thread of its own.

        Cancelled, it calls `interrupt`, from the caller's thread, and waits until `function` has ended; what that
        returns is returned all the same, and Cancelled is raised instead of what it raises.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Run what is queued, then close the store. Not cut short by cancellation. A second call does nothing."""


class _Call:
    """A function on its way through the writer's thread, and its result on the way back."""

    __slots__ = ("done", "error", "function", "grouped", "result")

    def __init__(self, function: Callable[[Any], Any], grouped: bool) -> None:
        self.function, self.grouped = function, grouped
        self.done = trio.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, store: Store) -> None:
        try:
            self.result = self.function(store)
        except BaseException as error:
            self.error = store.explained(error)

    def run_within(self, store: Store) -> None:
        try:
            with store.transaction():
                self.result = self.function(store)
        except BaseException as error:
            self.error = store.explained(error)


class Writer(Runner[S]):
    """The runner of production: a thread that owns the store, from opening to closing it."""

    def __init__(self, opens: Callable[[], S]) -> None:
        """Use `Writer.open`."""
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._room = trio.Semaphore(CALLS_WAITING_MAX)
        self._token = trio.lowlevel.current_trio_token()
        self._closing = False
        self._birthplace = Birthplace()
        self._ended = trio.Event()
        # A daemon: a program that ends without closing must not hang, and what was acknowledged is durable.
        self._thread = threading.Thread(target=self._work, args=(opens,), name="sealwire-writer", daemon=True)

    @classmethod
    async def open(cls, opens: Callable[[], S]) -> "Writer[S]":
        """Start the thread and open the store in it. Raises what `opens` raises."""
        writer = cls(opens)
        opened = _Call(lambda _: None, grouped=False)
        writer._queue.put(opened)
        writer._thread.start()
        with trio.CancelScope(shield=True):
            await opened.done.wait()
        if opened.error is not None:
            writer._closing = True
            raise opened.error
        return writer

    async def run(self, function: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast("T", await self._call(_Call(lambda store: function(store, *args, **kwargs), grouped=False)))

    async def run_grouped(self, function: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast("T", await self._call(_Call(lambda store: function(store, *args, **kwargs), grouped=True)))

    async def beside(self, function: Callable[[], T], interrupt: Callable[[], None]) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()

        def ended(result: Any) -> None:
            self._tell(lambda: trio.lowlevel.reschedule(task, result))

        def abort(_: object) -> trio.lowlevel.Abort:
            interrupt()
            return trio.lowlevel.Abort.FAILED

        trio.lowlevel.start_thread_soon(function, ended)
        try:
            return cast("T", await trio.lowlevel.wait_task_rescheduled(abort))
        except Exception:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise

    async def _call(self, call: _Call) -> Any:
        self._birthplace.check()
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        if self._closing:
            self._room.release()
            raise ReplicaClosedError("The replica is closed: nothing was done; open it again.")
        self._queue.put(call)
        await call.done.wait()
        if call.error is not None:
            raise call.error
        return call.result

    async def aclose(self) -> None:
        if not self._birthplace.is_here:
            return  # its thread is not here
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        with trio.CancelScope(shield=True):
            if self._thread.is_alive():
                await self._ended.wait()
        self._thread.join()

    # From here on: the writer's thread.

    def _work(self, opens: Callable[[], S]) -> None:
        first = self._queue.get()
        assert first is not None
        try:
            store = opens()
        except BaseException as error:
            first.error = error
            self._tell(first.done.set)
            return
        self._tell(first.done.set)
        call = self._queue.get()
        while call is not None:
            call = self._work_once(store, call)
        try:
            store.close()
        finally:
            self._tell(self._ended.set)

    def _work_once(self, store: S, call: _Call) -> _Call | None:
        """Run a call and those that can share its commit. Returns the next call, None at the end."""
        if not call.grouped:
            call.run(store)
            self._deliver([call])
            return self._queue.get()
        group, after, waits = [call], None, True
        while len(group) < CALLS_GROUPED_MAX:
            try:
                after = self._queue.get_nowait()
            except queue.Empty:
                break
            if after is None or not after.grouped:
                waits = False
                break
            group.append(after)
        _run_group(store, group)
        self._deliver(group)
        return self._queue.get() if waits else after

    def _deliver(self, calls: list[_Call]) -> None:
        def arrive() -> None:
            for call in calls:
                self._room.release()
                call.done.set()

        self._tell(arrive)

    def _tell(self, function: Callable[[], Any]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            pass  # the program left its event loop without closing: nobody waits any more


def _run_group(store: Store, group: list[_Call]) -> None:
    """Run calls in one transaction, each in a savepoint of its own."""
    try:
        with store.transaction():
            for call in group:
                call.run_within(store)
                if not store.in_transaction():
                    assert call.error is not None
                    raise call.error
    except BaseException as error:
        for call in group:
            call.error = call.error or error


class InlineWriter(Runner[S]):
    """The runner of tests with a virtual clock, which would jump while a thread works: runs at once, in the caller."""

    def __init__(self, opens: Callable[[], S]) -> None:
        """Opens the store at once. Raises what `opens` raises."""
        self._store = opens()
        self._closed = False

    async def run(self, function: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise ReplicaClosedError("The replica is closed: nothing was done; open it again.")
        try:
            return function(self._store, *args, **kwargs)
        except Exception as error:
            meant = self._store.explained(error)
            if meant is error:
                raise
            raise meant from error

    async def run_grouped(self, function: Callable[Concatenate[S, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise ReplicaClosedError("The replica is closed: nothing was done; open it again.")
        with self._store.transaction():
            return function(self._store, *args, **kwargs)

    async def beside(self, function: Callable[[], T], interrupt: Callable[[], None]) -> T:
        await trio.lowlevel.checkpoint()
        return function()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()
