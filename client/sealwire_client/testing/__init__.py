"""For tests of apps: a relay in memory whose connections break on request, and devices under a virtual clock.

    relay = MemoryRelay()
    async with Device.open(folder, relay=relay.origin, dialler=relay.dial, writer=fitting_writer) as device: ...

`sealwire_client.testing.fixtures` has the same as pytest fixtures. Nothing here needs pytest itself.
"""

from collections.abc import Callable
from typing import cast

import trio
import trio.testing

from sealwire_client.replica import InlineWriter, Replica, Runner, Writer
from sealwire_client.testing.log import MemoryLog
from sealwire_client.testing.relay import MemoryRelay

__all__ = ["MemoryLog", "MemoryRelay", "fitting_writer"]


async def fitting_writer(opens: Callable[[], Replica]) -> Runner[Replica]:
    """For `Device.open(writer=…)`: the thread of production, or, under trio's MockClock, none.

    A virtual clock that jumps ahead when all tasks wait would jump while a thread works, and fire every timeout.
    """
    if isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
        return cast("Runner[Replica]", InlineWriter(opens))
    return cast("Runner[Replica]", await Writer.open(opens))
