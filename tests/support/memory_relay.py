"""A relay without Postgres as a process of its own: `python -m tests.support.memory_relay PORT [SETTING=VALUE…]`.

PORT 0 is any that is free.

Prints its port once devices are served. SIGUSR1 makes a backup, SIGUSR2 starts the relay anew with the last one: each
prints a line when it is done. It ends by SIGTERM, and with it everything that it stored.
"""

import asyncio
import signal
import sys
from collections.abc import Mapping
from typing import Final

from sealwire_relay.dataplane import DataPlane
from sealwire_relay.metrics import Metrics
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify
from sealwire_relay.sources import load
from sealwire_relay.store.kept import MemoryDatabase
from sealwire_relay.store.memory import MemoryStore

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def command(port: int, settings: Mapping[str, str]) -> list[str]:
    """What starts one, with these settings."""
    options = [f"{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "tests.support.memory_relay", str(port), *options]


async def _started(settings: Settings, database: MemoryDatabase) -> tuple[DataPlane, int]:
    store = MemoryStore(database=database)
    await store.open()
    plane = DataPlane(store, settings, Metrics(), verify)
    return plane, await plane.start()


async def _serve(port: str, *settings: str) -> None:
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, asked.put_nowait, number)
    database = backup = MemoryDatabase()
    options = dict(setting.split("=", 1) for setting in settings)
    plane, found = await _started(load({}, {**options, "port": port}), database)
    print(found, flush=True)
    while (number := await asked.get()) is not signal.SIGTERM:
        if number is signal.SIGUSR1:
            backup = database.copy()
            print("backed up", flush=True)
        else:
            await plane.stop()
            database = backup.copy()
            plane, _ = await _started(load({}, {**options, "port": str(found)}), database)
            print("restored", flush=True)
    await plane.stop()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
