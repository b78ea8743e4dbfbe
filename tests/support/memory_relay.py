"""A relay without Postgres as a process of its own: `python -m tests.support.memory_relay PORT` (0: any).

Prints its port once devices are served. Ends by SIGTERM, and with it everything that it stored.
"""

import asyncio
import signal
import sys

from sealwire_relay.dataplane import DataPlane
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from sealwire_relay.store.memory import MemoryStore


async def _serve(port: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    store = MemoryStore()
    await store.open()
    plane = DataPlane(store, Settings(port=port), Metrics(), verify)
    print(await plane.start(), flush=True)
    await ended.wait()
    await plane.stop()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
