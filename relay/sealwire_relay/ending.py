"""How a command ends: by itself, by a signal, or by an error that can be foreseen. What all long commands share."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from enum import IntEnum
from typing import Any, Final, TypeVar

from sealwire_relay.embedded import AlreadyRunningError, EmbeddedPostgresError
from sealwire_relay.log import redacted
from sealwire_relay.settings import SettingsError
from sealwire_relay.store.backup import InUseError
from sealwire_relay.store.interface import StoreError

log: Final = logging.getLogger("sealwire.serve")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a process to end: Ctrl-C, a supervisor, a terminal that is closed."""

T = TypeVar("T")


class ExitCode(IntEnum):
    """How a command ended; docs/relay.md lists them for those who write scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    IN_USE = 3
    DATABASE = 4
    INTERRUPTED = 130
    TERMINATED = 143


class RelayError(Exception):
    """The command cannot go on. The message is one sentence for whoever started it; `code` is for scripts."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


async def before(asked: "asyncio.Future[signal.Signals]", work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None if the process was asked to end before there was one; `work` has ended then."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((asked, task), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() and not asked.done() else None
    finally:
        if not task.done():
            task.cancel()
        await asyncio.wait({task})
        if asked.done() and not task.cancelled() and task.exception() is not None:
            log.debug("Ended in the middle of it", exc_info=task.exception())


def ending(by: signal.Signals, *, before_ready: bool) -> ExitCode:
    """The exit code of a process that a signal asked to end, before it had done (or begun) what it is for, or after."""
    log.info("Asked to end by %s: finishing what is under way.", by.name)
    if by is signal.SIGINT:
        return ExitCode.INTERRUPTED
    return ExitCode.TERMINATED if before_ready else ExitCode.DONE


@contextlib.contextmanager
def asked_to_end(hurry: Callable[[], None] = lambda: None) -> Iterator["asyncio.Future[signal.Signals]"]:
    """A future that is set by the first signal that asks the process to end; later ones call `hurry`."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[signal.Signals] = loop.create_future()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: signal.Signals) -> None:
        if asked.done():
            log.info("Asked to end again, by %s: waiting for nobody.", number.name)
            hurry()
        else:
            asked.set_result(number)

    # A signal that is ignored (nohup) stays so.
    handled = [number for number in SIGNALS if handlers[number] != signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, ask, number)
    try:
        yield asked
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
            signal.signal(number, handlers[number])


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Every error that can be foreseen, as RelayError: the one sentence that it is worth, and its exit code."""
    try:
        yield
    except (AlreadyRunningError, InUseError) as error:
        raise RelayError(redacted(str(error)), ExitCode.IN_USE) from error
    except (EmbeddedPostgresError, StoreError) as error:
        raise RelayError(redacted(str(error)), ExitCode.DATABASE) from error
    except SettingsError as error:
        raise RelayError(str(error), ExitCode.USAGE) from error
