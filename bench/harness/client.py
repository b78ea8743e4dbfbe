"""A real client as a process of its own, `python -m bench.harness.client write|read …`: prints JSON, one object a line.

`write FOLDER RELAY ENTRIES` makes a vault of so many entries, and says when all are at the relay. Then, for each line
that comes in, it opens an invite, prints its link, and lets one device in.

`read FOLDER LINK ENTRIES` is such a device: it joins, opens the collection, and is timed until it holds everything.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import trio

from sealwire_client import Device, latest
from sealwire_client.receiving import Receiving
from sealwire_client.replica import Replica

COLLECTION: Final = "entries"


@dataclass(frozen=True, slots=True)
class Entry:
    """32 bytes of text."""

    text: str


def pairs(count: int) -> Iterator[tuple[str, str]]:
    """So many ascending keys of 8 characters, as those that begin with the time, with texts of 32 bytes of which 16 are
    random: always the same."""
    chance = random.Random(1)
    for place in range(count):
        yield f"{place:08x}", f"{chance.getrandbits(128):032x}"


async def write(folder: str, relay: str, entries: int) -> None:
    """The first device."""
    async with Device.open(folder, relay=relay) as device:
        vault = await device.create_vault("bench")
        collection = await vault.collection(COLLECTION, Entry, policy=latest())
        begun = time.perf_counter()
        await collection.put_many((key, Entry(text)) for key, text in pairs(entries))
        put = time.perf_counter()
        await vault.synced()
        _tell(put_s=put - begun, sent_s=time.perf_counter() - put)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            invite = await vault.invite()
            _tell(link=invite.link)
            await invite.joined()


async def read(folder: str, link: str, entries: int) -> None:
    """A device that joins. Its stages are told in microseconds a record."""
    spent: dict[str, float] = {}
    _time(spent, "sqlite_us", Replica, "apply")
    _time(spent, "open_decode_sqlite_us", Receiving, "_apply_records")
    async with Device.open(folder) as device:
        vault = await device.join(link)
        begun, cpu = time.perf_counter(), time.process_time()
        collection = await vault.collection(COLLECTION, Entry, policy=latest())
        await vault.synced()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        if len(collection) != entries:
            raise RuntimeError(f"{len(collection)} of {entries} entries arrived")
    _tell(seconds=seconds, cpu_us=1e6 * cpu / entries, **{name: 1e6 * s / entries for name, s in spent.items()})


def _time(spent: dict[str, float], stage: str, owner: type[Any], name: str) -> None:
    """From now on add up the time spent in a method."""
    method: Callable[..., Any] = getattr(owner, name)
    spent[stage] = 0.0

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[stage] += time.perf_counter() - begun

    setattr(owner, name, timed)


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder, relay, entries]:
            trio.run(write, folder, relay, int(entries))
        case ["read", folder, link, entries]:
            trio.run(read, folder, link, int(entries))
        case _:
            sys.exit(__doc__)
