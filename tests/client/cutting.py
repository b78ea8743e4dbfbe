"""What devices do, done again and again with the connection cut at every place there is."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from sealwire_client.testing import MemoryRelay
from sealwire_client.testing.fixtures import OpenDevice
from tests.client.late import late_writer

Attempt = Callable[[OpenDevice, MemoryRelay, int], Awaitable[bool]]
"""Gets a factory of devices, the relay they find each other through, and after how many messages to cut; returns True
if the cut came before its end."""


async def cut_everywhere(folder: Path, attempt: Attempt, *, more_than: int, less_than: int) -> None:
    """Make an attempt with new devices, cut after one message, then after two and so on, until one is over uncut.

    Fails if that one would have been cut after `more_than` messages or fewer, as nearly nothing was cut then, and if
    all are cut after up to `less_than` messages, that number left out, as something was never cut then.
    """
    for cut_after in range(1, less_than):
        relay = MemoryRelay()
        if not await attempt(OpenDevice(folder / str(cut_after), relay, late_writer), relay, cut_after):
            assert cut_after > more_than
            return
    raise AssertionError("the test is over before it has cut everywhere")
