"""A relay without Postgres as a process of its own: `python -m tests.support.memory_relay PORT [KEY]` (0: any port).

Without KEY it takes in every vault; else those for which it is shown a registration token that this key has signed.

Prints its port once devices are served. SIGUSR1 makes a backup, SIGUSR2 starts the relay anew with the last one: each
prints a line when it is done. It ends by SIGTERM, and with it everything that it stored.
"""

import asyncio
import signal
import sys
from typing import Final

from sealwire_relay.dataplane import DataPlane
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.memory import MemoryStore

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


async def _started(port: int, keys: tuple[str, ...], database: MemoryDatabase) -> tuple[DataPlane, int]:
    store = MemoryStore(database=database)
    await store.open()
    settings = Settings(port=port, registration="token" if keys else "open", registration_keys=keys)
    plane = DataPlane(store, settings, Metrics(), verify)
    return plane, await plane.start()


async def _serve(port: int, *keys: str) -> None:
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, asked.put_nowait, number)
    database = backup = MemoryDatabase()
    plane, port = await _started(port, keys, database)
    print(port, flush=True)
    while (number := await asked.get()) is not signal.SIGTERM:
        if number is signal.SIGUSR1:
            backup = database.copy()
            print("backed up", flush=True)
        else:
            await plane.stop()
            database = backup.copy()
            plane, port = await _started(port, keys, database)
            print("restored", flush=True)
    await plane.stop()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), *sys.argv[2:]))
