"""One relay for all tests of hosts: each makes vaults of its own."""

from collections.abc import Iterator

import pytest

from tests.client.realrelay import RealRelay, real_relay


@pytest.fixture(scope="session")
def relay() -> Iterator[RealRelay]:
    """A real relay on loopback."""
    with real_relay() as running:
        yield running
