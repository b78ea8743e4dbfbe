"""Fixtures of the client's tests: those offered to apps, with a writer that is stricter than need be."""

from pathlib import Path

import pytest

from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice, memory_relay
from tests.client.late import late_writer

__all__ = ["memory_relay"]


@pytest.fixture
def open_device(tmp_path: Path, memory_relay: MemoryRelay) -> OpenDevice:
    """A factory of devices that find each other through `memory_relay`."""
    return OpenDevice(tmp_path, memory_relay, writer=late_writer)
