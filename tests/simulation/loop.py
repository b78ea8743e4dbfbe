"""asyncio's own event loop under the agenda's clock: it never waits, and stands still until it is given a turn."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.agenda import Agenda, on_grid


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

    async def start_serving(self) -> None:
        """Who dials is accepted at any time."""

    def close(self) -> None:
        """Nothing to close."""


class _Socket:
    def getsockname(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", 1

    def setsockopt(self, *option: int) -> None:
        """There is no kernel."""


class VirtualLoop(asyncio.BaseEventLoop):
    """What is ready runs in `turn`, in order, as asyncio runs it. Timers ask the agenda for a turn at their time."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__()
        self._agenda = agenda
        self._selector = _Nothing()
        self._asked_for: float | None = None
        self.factory: Callable[[], asyncio.Protocol] | None = None
        self.halted = False
        self.errors: list[str] = []
        self.set_exception_handler(self._failed)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def time(self) -> float:
        """The agenda's time."""
        return self._agenda.current_time()

    def call_at(  # type: ignore[override]  # typed with TypeVarTuple there
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """As asyncio's, at a moment of the grid."""
        when = on_grid(when)
        self._ask(when)
        return super().call_at(when, callback, *args, context=context)

    def _ask(self, when: float) -> None:
        if self._asked_for is None or when < self._asked_for:
            self._asked_for = when
            self._agenda.at(when, self.turn)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Do at once what is else done by a thread."""
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

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

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task, from the next turn on, which comes at once."""
        task = self.create_task(work)
        self._ask(self.time())
        return task

    def soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call something in the next turn, which comes at once; never, if the process is dead."""
        if not self.halted:
            self.call_soon(callback, *args)
            self._ask(self.time())

    def turn(self) -> None:
        """Run until nothing is ready and no timer is due."""
        if self.halted:
            return
        self._run()
        scheduled: list[Any] = vars(self)["_scheduled"]
        if scheduled and not self.halted:
            self._ask(scheduled[0]._when)

    def _run(self) -> None:
        mine: Any = self
        now = self.time()
        if self._asked_for is not None and self._asked_for <= now:
            self._asked_for = None
        asyncio._set_running_loop(self)
        try:
            while mine._ready or (mine._scheduled and mine._scheduled[0]._when <= now):
                mine._run_once()
        finally:
            asyncio._set_running_loop(None)

    def bury(self) -> None:
        """End all tasks. What they still do has no effect, because everything that they could reach is dead."""
        self.halted = True
        for task in asyncio.all_tasks(self):
            task.cancel()
        self._run()
        self.close()
