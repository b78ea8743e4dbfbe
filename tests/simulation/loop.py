"""asyncio's own event loop under trio's clock: it never waits, and stands still until it is given a turn."""

import asyncio
from collections.abc import Callable
from typing import Any

import trio


class _Nothing:
    """A selector that has no sockets to wait for."""

    def select(self, timeout: float | None) -> list[Any]:
        """Nothing is ever ready."""
        return []

    def close(self) -> None:
        """Nothing to close."""


class _Server:
    """Stands for a listening socket."""

    sockets = ()

    def close(self) -> None:
        """Nothing to close."""


class _Socket:
    def getsockname(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", 1


class VirtualLoop(asyncio.BaseEventLoop):
    """What is ready runs in `turn`, in order, as asyncio runs it; timers go by trio's clock."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Nothing()
        self.factory: Callable[[], asyncio.Protocol] | None = None
        self.errors: list[str] = []
        self.set_exception_handler(self._failed)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def time(self) -> float:
        """trio's time."""
        return trio.current_time()

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        """Remember what makes connections, for those who dial."""
        self.factory = protocol_factory
        server = _Server()
        vars(server)["sockets"] = (_Socket(),)
        return server

    def turn(self) -> None:
        """Run until nothing is ready and no timer is due."""
        mine: Any = self
        asyncio._set_running_loop(self)
        try:
            while mine._ready or (self.next_at() or trio.current_time() + 1) <= trio.current_time():
                mine._run_once()
        finally:
            asyncio._set_running_loop(None)

    def next_at(self) -> float | None:
        """When the next timer is due."""
        mine: Any = self
        return min((handle._when for handle in mine._scheduled if not handle._cancelled), default=None)

    def bury(self) -> None:
        """End all tasks. What they still do has no effect, because everything that they could reach is dead."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.turn()
        self.close()
