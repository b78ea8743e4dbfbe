"""Running a command's work on trio so that Ctrl-C ends it in order, at any point and within seconds.

What is acknowledged is durable already, so that even an end at once loses nothing; an end in order says goodbye to
the relay and closes the replica cleanly.
"""

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, TypeVar

import trio

from sealwire_client.cli.failures import ExitCode, Failure

T = TypeVar("T")

END_SECONDS_MAX: Final = 3.0
"""From the first Ctrl-C to an end without ceremony: more than a goodbye that is not answered (2 s)."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

INTERRUPTED: Final = "Interrupted: what was saved on this device stays saved, and is sent later if it was not."

_SHOW_CURSOR: Final = b"\x1b[?25h"


class _Ending:
    """What the first signal asks for, and the second one or the alarm enforces."""

    def __init__(self) -> None:
        self.by: int | None = None
        self.scope: trio.CancelScope | None = None
        self.token: trio.lowlevel.TrioToken | None = None

    @property
    def code(self) -> ExitCode:
        """The exit code for the signal that came."""
        return ExitCode.INTERRUPTED if self.by in (None, signal.SIGINT) else ExitCode.TERMINATED

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The first signal: cancel the work. The second one: end now."""
        if self.by is not None or self.token is None or self.scope is None:
            self.by = self.by or number
            self.end()
        self.by = number
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS_MAX)
        try:
            assert self.token is not None and self.scope is not None
            self.token.run_sync_soon(self.scope.cancel)
        except trio.RunFinishedError:
            self.end()

    def end(self, number: int = 0, frame: FrameType | None = None) -> None:
        """End this process now."""
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)
        os.write(2, f"sealwire: {INTERRUPTED}\n".encode())
        os._exit(self.code)


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run a command's work to its end. Raises what it raises, and Failure if it was interrupted."""
    _configure_logging()
    ending = _Ending()

    async def within() -> T | None:
        with trio.CancelScope() as scope:
            ending.token, ending.scope = trio.lowlevel.current_trio_token(), scope
            return await work()
        return None

    with _handled(ending):
        result = trio.run(within)
    if ending.by is not None:
        raise Failure(INTERRUPTED, "interrupted", ending.code)
    return result  # type: ignore[return-value]


@contextmanager
def _handled(ending: _Ending) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A signal that is ignored (nohup) stays so.
    ours = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    alarm = signal.signal(signal.SIGALRM, ending.end)
    for number in ours:
        signal.signal(number, ending.ask)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        for number in ours:
            signal.signal(number, before[number])


def _configure_logging() -> None:
    """The library's log is for whoever looks for a mistake; commands say in their own words what matters."""
    if os.environ.get("SEALWIRE_DEBUG"):
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("websockets").setLevel(logging.INFO)  # its frames hold what is sealed only, but all of it
    else:
        logging.basicConfig(handlers=[logging.NullHandler()])
