"""pytest fixtures for tests of apps. Use them with `pytest_plugins = ["sealwire_client.testing.fixtures"]`.

They are plain fixtures: tests may be run by pytest-trio, or call `trio.run` themselves.
"""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from sealwire_client.device import Device, OpenWriter
from sealwire_client.testing import MemoryRelay, fitting_writer


class OpenDevice:
    """Opens devices whose relay is a test's `memory_relay`. Called again with the same name: the same device."""

    def __init__(self, folder: Path, relay: MemoryRelay, writer: OpenWriter = fitting_writer) -> None:
        self._folder, self._relay, self._writer = folder, relay, writer

    def __call__(self, name: str = "device") -> AbstractAsyncContextManager[Device]:
        """`async with open_device("phone") as device`: in a temporary folder of that name, online for the block."""
        return Device.open(self._folder / name, relay=self._relay.origin, dialler=self._relay.dial, writer=self._writer)


@pytest.fixture
def memory_relay() -> MemoryRelay:
    """A fresh relay in memory."""
    return MemoryRelay()


@pytest.fixture
def open_device(tmp_path: Path, memory_relay: MemoryRelay) -> OpenDevice:
    """A factory of devices that find each other through `memory_relay`."""
    return OpenDevice(tmp_path, memory_relay)
