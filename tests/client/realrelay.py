"""The real relay, in a process of its own, for devices to talk to and to be set back under them."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import trio

from sealwire_client import transport
from sealwire_client.link import Dialler
from tests.support import memory_relay

WAIT_S_MAX = 120.0
"""For what it does: only a test that fails waits so long."""


class RealRelay:
    """A running relay. `told`: what it says."""

    def __init__(self, process: "subprocess.Popen[str]", told: IO[str]) -> None:
        self._process, self._told = process, told
        self.origin = f"ws://127.0.0.1:{int(told.readline())}"
        self.dial: Dialler = transport.dial

    async def backup(self) -> None:
        """Remember how things are."""
        await self._ask(signal.SIGUSR1)

    async def restore(self) -> None:
        """Be as things were."""
        await self._ask(signal.SIGUSR2)

    async def _ask(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        await trio.to_thread.run_sync(self._told.readline)


@contextmanager
def real_relay(**settings: str) -> Iterator[RealRelay]:
    """A fresh one, with these settings."""
    with subprocess.Popen(memory_relay.command(0, settings), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield RealRelay(process, process.stdout)
        finally:
            process.terminate()
