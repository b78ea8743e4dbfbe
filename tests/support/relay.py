"""A relay's data plane in a test: on loopback, on a store in memory that can be told to fail or to wait."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

from sealwire_protocol.ids import DeviceKey
from sealwire_protocol.messages import Push
from sealwire_protocol.segment import finished
from sealwire_relay.dataplane import DataPlane
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from sealwire_relay.store.interface import Store
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.memory import MemoryStore
from sealwire_relay.view import Admitted, admitting, size_of
from tests.support.device import WAIT_SECONDS


def admit(device: DeviceKey, push: Push) -> Admitted:
    """A push whose bytes have been walked, without a pause."""
    return finished(admitting(device, push, size_of(push)))


class Mishap(NamedTuple):
    """What happens to one call of a store: `before` is awaited, the call is made if `made` (or nothing is raised),
    `after` is awaited, then `error` is raised."""

    error: Exception | None = None
    made: bool = False
    before: Callable[[], Awaitable[object]] | None = None
    after: Callable[[], Awaitable[object]] | None = None


class TroubledStore:
    """A store that passes every call on, counts it, and lets the mishaps happen that a test has put in line."""

    def __init__(self, store: Store, pauses: Callable[[], int] | None = None) -> None:
        self.calls: list[str] = []
        self._store, self._pauses = store, pauses
        self._mishaps: dict[str, deque[Mishap]] = defaultdict(deque)

    @property
    def store(self) -> Store:
        """Itself, as what it stands for."""
        return cast(Store, self)

    def expect(self, call: str, *mishaps: Mishap) -> None:
        """The next calls of this method meet with these, in order."""
        self._mishaps[call].extend(mishaps)

    def pending(self) -> bool:
        """True while mishaps are in line that have not happened."""
        return any(self._mishaps.values())

    def __getattr__(self, name: str) -> Any:
        made = getattr(self._store, name)

        async def call(*args: Any) -> Any:
            self.calls.append(name)
            await self._pause()
            mishap = self._mishaps[name].popleft() if self._mishaps[name] else Mishap(made=True)
            if mishap.before is not None:
                await mishap.before()
            result = await made(*args) if mishap.made or mishap.error is None else None
            await self._pause()
            if mishap.after is not None:
                await mishap.after()
            if mishap.error is not None:
                raise mishap.error
            return result

        return call

    async def _pause(self) -> None:
        await turns(self._pauses() if self._pauses else 0)


class Relay(NamedTuple):
    """A running data plane, and what a test may want to look at."""

    plane: DataPlane
    port: int
    metrics: Metrics

    def counted(self, name: str, **labels: str) -> float:
        """The value of one of its metrics."""
        return self.metrics.registry.get_sample_value(f"sealwire_{name}", labels) or 0.0

    def pass_time(self, seconds: float) -> None:
        """Let all that is due `seconds` from now happen now."""
        self.plane._gateway._wheel.turn(asyncio.get_running_loop().time() + seconds + 1.0)

    def stand_still(self) -> None:
        """Fill no bucket of connections again: how soon a machine dials says nothing."""
        sites = self.plane._gateway._sites
        enter = sites.enter
        vars(sites)["enter"] = lambda site, now: enter(site, 0.0)


async def memory_store(database: MemoryDatabase | None = None, clock: Callable[[], float] = lambda: 0.0) -> MemoryStore:
    """An open store in memory."""
    store = MemoryStore(clock=clock, database=database)
    await store.open()
    return store


@asynccontextmanager
async def running(store: Store | None = None, **settings: Any) -> AsyncIterator[Relay]:
    """A relay on loopback, on a fresh store in memory if none is given. It does not sweep by itself."""
    metrics = Metrics()
    settings.setdefault("sweep_seconds", 3600.0)
    plane = DataPlane(store or await memory_store(), Settings(port=0, **settings), metrics, verify)
    port = await plane.start()
    try:
        yield Relay(plane, port, metrics)
    finally:
        await plane.stop()


async def turns(count: int) -> None:
    """Let the event loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def turns_until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds that nobody announces. Raises TimeoutError if it does not."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():  # noqa: ASYNC110 - and it is looked at after each turn
            await asyncio.sleep(0)
