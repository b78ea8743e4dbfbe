"""A device in a thread of its own, whose event loop is trio's, and calls from other threads into it.

Whoever calls waits in a way of its own, on an asyncio loop or in a plain thread: see `aio` and `blocking`. What only
reads entries does not come here: any thread reads by itself (`replica.SharedReader`).
"""

import atexit
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar, cast

import trio

from sealwire_client.device import Device
from sealwire_client.forks import Birthplace
from sealwire_client.nursery import holds_cancelled, open_nursery
from sealwire_client.replica import ReplicaClosedError
from sealwire_protocol.errors import LocalMisuse

T = TypeVar("T")

EXIT_SECONDS_MAX: Final = 10.0
"""A program that ends with a device left open waits so long for its goodbye. What was edited is durable anyway."""


class Call(Generic[T]):
    """Something that is done in the device's thread, in the context (`contextvars`) of who asked for it."""

    def __init__(self, function: Callable[[], Awaitable[T]], ended: Callable[[], None]) -> None:
        self.function, self._ended = function, ended
        self.context, self.scope = copy_context(), trio.CancelScope()
        self._result: T | None = None
        self._error: BaseException | None = None

    @property
    def result(self) -> T:
        """What came of it, once it has ended. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return cast("T", self._result)

    def end(self, result: T | None, error: BaseException | None) -> None:
        """It has ended so."""
        self._result, self._error = result, error
        self._ended()


class Host:
    """The thread, and the device in it."""

    device: Device
    """There is one once it is opened."""

    def __init__(self, opens: Callable[[], AbstractAsyncContextManager[Device]]) -> None:
        self._opens = opens
        self.failure: BaseException | None = None
        """What the device has failed with, once the thread has ended."""
        self._birthplace = Birthplace()
        self._calls: dict[Call[Any], None] = {}
        self._lock = threading.Lock()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._is_open = self._ends = False
        self._scope = trio.CancelScope()
        # A daemon: a program must not hang that ends with a device left open. It is told to end then.
        self._thread = threading.Thread(target=self._work, name="sealwire-device", daemon=True)

    def begin(self, opened: Callable[[], None], ended: Callable[[], None]) -> None:
        """Open the device. Both are called once, from its thread: when it is open, or cannot be opened (`check`), and
        when it is there no more."""
        self._opened, self._ended = opened, ended
        atexit.register(self._at_exit)
        self._thread.start()

    def check(self) -> None:
        """Raises ForkedError, what the device has failed with, or ReplicaClosedError if it is not open."""
        self._birthplace.check()
        if self._token is None:
            raise self.failure or _closed()

    def start(self, call: Call[T]) -> Call[T]:
        """Begin a call, after those that were started before. It ends, whatever happens to the device.

        Raises as `check`, and LocalMisuse in the device's own thread, where waiting for it would be for ever.
        """
        self._birthplace.check()
        if threading.current_thread() is self._thread:
            raise LocalMisuse("a device's own thread cannot wait for the device: one of its callbacks has called it")
        with self._lock:
            self.check()
            assert self._token is not None
            self._calls[call] = None
            self._token.run_sync_soon(call.context.run, self._spawn, call)
        return call

    def leave(self, function: Callable[[], Awaitable[object]]) -> None:
        """Have something ended for which nobody waits, as long as there is a device. It must not raise."""
        call = Call(function, lambda: None)
        self.soon(lambda: self._spawn(call))

    def cancel(self, call: Call[Any]) -> None:
        """Cancel a call, as a task of trio's is cancelled. It ends soon, if it has not ended."""
        self.soon(call.scope.cancel)

    def ask(self, function: Callable[[], T]) -> T:
        """What a function says that returns at once and is not to be called but in the device's thread; waits for it.
        Raises what it raises, and as `start`."""

        async def asked() -> T:
            return function()

        answered = threading.Lock()
        answered.acquire()
        call = self.start(Call(asked, answered.release))
        answered.acquire()
        return call.result

    def end(self) -> None:
        """Close the device: what is under way is cancelled. Nothing happens in a process that was forked, or again."""
        if self._birthplace.is_here:
            with self._lock:
                self._ends = True
            self.soon(lambda: self._scope.cancel())

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._birthplace.is_here:
            self._thread.join()

    def soon(self, function: Callable[[], object]) -> None:
        """Have a function called in the device's thread, as long as there is a device; it must not raise."""
        if self._birthplace.is_here:
            with self._lock:
                if self._token is not None:
                    self._token.run_sync_soon(function)

    def _at_exit(self) -> None:
        if self._birthplace.is_here:
            self.end()
            self._thread.join(EXIT_SECONDS_MAX)

    # From here on: the device's thread.

    def _work(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:
            self.failure = error
        with self._lock:
            self._token, left = None, list(self._calls)
        for call in left:
            self._end(call, None, self.failure or _closed())
        atexit.unregister(self._at_exit)
        if not self._is_open:
            self._opened()
        self._ended()

    async def _run(self) -> None:
        with self._scope:
            with self._lock:
                self._token = trio.lowlevel.current_trio_token()
                if self._ends:
                    self._scope.cancel()
            async with self._opens() as self.device:
                with trio.CancelScope() as self._scope:
                    await self._serve()

    async def _serve(self) -> None:
        try:
            async with open_nursery() as self._nursery:
                self._is_open = True
                self._opened()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def _spawn(self, call: Call[Any]) -> None:
        if self._nursery is not None:  # else it ends with the thread
            self._nursery.start_soon(self._carry_out, call)

    async def _carry_out(self, call: Call[Any]) -> None:
        result: object = None
        error: BaseException | None = None
        try:
            with call.scope:
                result = await call.function()
        except BaseException as raised:
            if holds_cancelled(raised):
                raise  # the device is being closed: this call ends with it
            error = raised
        self._end(call, result, _closed() if call.scope.cancelled_caught else error)

    def _end(self, call: Call[Any], result: object, error: BaseException | None) -> None:
        with self._lock:
            self._calls.pop(call, None)
        call.end(result, error)


def soon(token: trio.lowlevel.TrioToken, function: Callable[[], object]) -> None:
    """Have a function called in the thread of a token, as long as that runs trio."""
    try:
        token.run_sync_soon(function)
    except trio.RunFinishedError:
        pass  # the device is closed: nobody waits any more


def _closed() -> ReplicaClosedError:
    return ReplicaClosedError("The device was closed, and nothing is done by it any more: open it again.")
