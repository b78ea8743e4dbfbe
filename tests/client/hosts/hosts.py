"""Where a device can live: on trio, on an asyncio loop, in a plain program. What a test does is written once, as a
coroutine, and each host carries out its awaits in its own way."""

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pytest
import trio

import sealwire_client
from sealwire_client import aio, blocking
from sealwire_client.hosted import Hosted
from tests.client.realrelay import RealRelay

R = TypeVar("R")
P = ParamSpec("P")
Step = Callable[[], Awaitable[object]]


class OnHost(Protocol):
    """A host."""

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """Carry out a test."""

    def open(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[Any]:
        """`Device.open`."""

    async def both(self, first: Step, second: Step) -> None:
        """Do two things at once."""


class OnTrio:
    """As apps use it that run on trio."""

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """See `OnHost`."""
        trio.run(test)

    def open(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[Any]:
        """See `OnHost`."""
        return sealwire_client.Device.open(*args, **kwargs)

    async def both(self, first: Step, second: Step) -> None:
        """See `OnHost`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)


class OnAsyncio:
    """As apps use it that run on asyncio."""

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """See `OnHost`."""

        async def body() -> None:
            await test()

        asyncio.run(body(), debug=True)

    def open(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[Any]:
        """See `OnHost`."""
        return aio.Device.open(*args, **kwargs)

    async def both(self, first: Step, second: Step) -> None:
        """See `OnHost`."""
        await asyncio.gather(first(), second())


class InAPlainProgram:
    """As apps use it that have no event loop: nothing is ever awaited in earnest."""

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """See `OnHost`."""
        _at_once(test())

    @asynccontextmanager
    async def open(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """See `OnHost`."""
        with blocking.Device.open(*args, **kwargs) as device:
            yield _Awaited(device)

    async def both(self, first: Step, second: Step) -> None:
        """See `OnHost`."""
        failed: list[BaseException] = []

        def do() -> None:
            try:
                _at_once(second())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=do)
        thread.start()
        try:
            _at_once(first())
        finally:
            thread.join()
        assert not failed, failed


def _at_once(awaitable: Awaitable[R]) -> R:
    """What comes of something that waits for nothing."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: R = end.value
        return result
    raise AssertionError("a plain program cannot wait for a loop")


class _Awaited:
    """An object of a plain program whose methods are awaited all the same, where those for asyncio are."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        twin = getattr(getattr(aio, type(self.inner).__name__), name)
        member = getattr(self.inner, name)
        if inspect.iscoroutinefunction(twin):
            return functools.partial(_awaited, member)
        if name in {"transaction", "live", "watch"}:
            return functools.partial(_entered, member)
        if name == "changes":
            return lambda: _listening(member())
        if callable(member):
            return lambda *args, **kwargs: _dressed(member(*args, **kwargs))
        return _dressed(member)

    def __len__(self) -> int:
        return len(self.inner)

    def __contains__(self, key: object) -> bool:
        return key in self.inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Awaited) and self.inner == other.inner

    def __hash__(self) -> int:
        return hash(self.inner)

    def __aiter__(self) -> "_Awaited":
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self.inner)
        except StopIteration:
            raise StopAsyncIteration from None


@contextmanager
def _listening(block: Any) -> Iterator[_Awaited]:
    with block as changes:
        yield _Awaited(changes)


async def _awaited(member: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _dressed(member(*map(_bare, args), **{name: _bare(value) for name, value in kwargs.items()}))


@asynccontextmanager
async def _entered(member: Callable[..., Any], *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
    with member(*args, **kwargs) as entered:
        yield _dressed(entered)


def _dressed(value: Any) -> Any:
    if isinstance(value, list):
        return [_dressed(each) for each in value]
    return _Awaited(value) if isinstance(value, Hosted) else value


def _bare(value: Any) -> Any:
    return value.inner if isinstance(value, _Awaited) else value


HOSTS = {"trio": OnTrio(), "asyncio": OnAsyncio(), "plain": InAPlainProgram()}


@dataclass(frozen=True)
class Place:
    """Where a test takes place: a host, a folder, and a relay."""

    host: Any
    folder: Path
    origin: str

    def open(self, name: str = "a", **kwargs: Any) -> AbstractAsyncContextManager[Any]:
        """The device of that name, online for the block."""
        return self.host.open(self.folder / name, **{"relay": self.origin, **kwargs})  # type: ignore[no-any-return]


def on_all_hosts(
    test: Callable[Concatenate[Place, P], Awaitable[None]],
) -> Callable[..., None]:
    """Run a coroutine function as a test, on each host, against a real relay."""

    @pytest.mark.parametrize("on", HOSTS)
    def run(on: str, tmp_path: Path, relay: RealRelay) -> None:
        place = Place(HOSTS[on], tmp_path, relay.origin)
        place.host.run(functools.partial(test, place))

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return run
