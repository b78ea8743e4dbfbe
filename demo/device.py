"""One device of the demo, a process of its own: `python -m demo.device FOLDER NAME [RELAY]`.

It is told what to do by lines of JSON on stdin and answers on stdout: `{"id": 1, "do": "load", ...}` gives any
number of `{"id": 1, "told": ...}` and in the end `{"id": 1, "done": ...}` or `{"id": 1, "failed": "why"}`. Several
things may be under way at once. It ends when stdin does. All work is done through the library's public interface.
"""

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from demo.characters import COLLECTION, VAULT, Character, characters, fields
from sealwire_client.collection import Collection
from sealwire_client.device import Device
from sealwire_client.link import LinkState
from sealwire_client.nursery import open_nursery
from sealwire_client.policies import latest
from sealwire_client.vault import Vault

TELL_EVERY_S: Final = 0.25
"""How often progress is told: often enough for a bar, seldom enough to cost nothing."""

TELL_EVERY_ENTRIES: Final = 2_000

Tell = Callable[[Any], None]

BY_CATEGORY: Final = f"SELECT category, count(*) AS n FROM {COLLECTION} GROUP BY category ORDER BY n DESC, category"


class Program:
    """What the device can be told to do: each `do_` method is one thing."""

    def __init__(self, device: Device, name: str) -> None:
        self._device, self._name = device, name
        self._vault: Vault | None = None
        self._collection: Collection[Character] | None = None

    @property
    def vault(self) -> Vault:
        """The one vault."""
        assert self._vault is not None, "there is no vault yet"
        return self._vault

    @property
    def collection(self) -> Collection[Character]:
        """The one collection."""
        assert self._collection is not None, "there is no collection yet"
        return self._collection

    async def _open(self) -> None:
        self._collection = await self.vault.collection(COLLECTION, Character, policy=latest())

    async def do_create(self, tell: Tell) -> None:
        """Make the vault."""
        self._vault = await self._device.create_vault(VAULT, device_name=self._name)
        await self._open()

    async def do_open(self, tell: Tell) -> None:
        """Open what an earlier process of this device has left."""
        self._vault = self._device.vault(VAULT)
        await self._open()

    async def do_load(self, tell: Tell, entries: int) -> dict[str, float]:
        """Put so many characters, durably on this device."""
        loaded = characters(entries)
        tell(0)

        def counted() -> Iterator[tuple[str, Character]]:
            for count, item in enumerate(loaded.items()):
                if count % TELL_EVERY_ENTRIES == 0:
                    tell(count)
                yield item

        began = time.perf_counter()
        count = await self.collection.put_many(counted())
        return {"puts": count, "seconds": time.perf_counter() - began}

    async def do_synced(self, tell: Tell) -> None:
        """Wait until all is confirmed by the relay and applied; meanwhile tells [pending, behind]."""

        async def progress() -> None:
            while True:
                status = await self.vault.status()
                tell([status.pending, status.behind])
                await trio.sleep(TELL_EVERY_S)

        async with open_nursery() as nursery:
            nursery.start_soon(progress)
            await self.vault.synced()
            nursery.cancel_scope.cancel()

    async def do_invite(self, tell: Tell) -> str:
        """Invite a device: tells the invite, waits, approves, gives the joiner's name."""
        pending = await self.vault.invite()
        tell(pending.link)
        return (await pending.joined()).name

    async def do_join(self, tell: Tell, link: str) -> None:
        """Join by an invite."""
        self._vault = await self._device.join(link, device_name=self._name)

    async def do_catch_up(self, tell: Tell) -> dict[str, float]:
        """Subscribe with an empty replica and wait until it holds everything; meanwhile tells [pending, behind]."""
        began = time.perf_counter()
        await self._open()
        await self.do_synced(tell)
        seconds = time.perf_counter() - began
        return {"records": len(self.collection), "seconds": seconds}

    async def do_watch(self, tell: Tell) -> None:
        """Tell every change, with the time at which the app here learns of it, until the process ends."""
        with self.collection.changes() as changes:
            tell(None)
            async for changed in changes:
                tell({"at": time.time_ns(), "keys": [change.key for change in changed or ()]})

    async def do_edit(self, tell: Tell, edits: Sequence[tuple[str, Any]], pause_s: float = 0.0) -> None:
        """Put or delete, one after the other; tells each once it is durable here, with the time of the call."""
        for key, value in edits:
            at = time.time_ns()
            if value is None:
                await self.collection.delete(key)
            else:
                await self.collection.put(key, Character(*value))
            tell({"key": key, "at": at})
            await trio.sleep(pause_s)

    async def do_miss_relay(self, tell: Tell) -> None:
        """Wait until the connection to the relay is lost."""
        await self._device.link(self.vault.origin).until(lambda link: link.state is not LinkState.ONLINE)

    async def do_wake(self, tell: Tell) -> None:
        """What an app does when the network is back: do not wait for the next attempt."""
        self._device.wake()

    async def do_values(self, tell: Tell, keys: Sequence[str]) -> list[Any]:
        """The values of some entries."""
        return [fields(self.collection.get(key)) for key in keys]

    async def do_scan(self, tell: Tell, times: int) -> dict[str, Any]:
        """Count all entries by category, several times; the median milliseconds, and the answer."""
        took = []
        for _ in range(times):
            began = time.perf_counter()
            answer = self.vault.select(BY_CATEGORY)
            took.append((time.perf_counter() - began) * 1e3)
        return {"ms": statistics.median(took), "rows": answer.rows}

    async def do_dump(self, tell: Tell, path: str) -> int:
        """Write all entries to a file, a line of JSON each, in the order of the keys."""
        count = 0
        with Path(path).open("w") as file:  # noqa: ASYNC230 - the demo waits for nothing else meanwhile
            for key, value in self.collection.items():
                file.write(json.dumps([key, fields(value)]) + "\n")
                count += 1
        return count

    # --- being told

    async def serve(self, lines: AsyncIterator[bytes]) -> None:
        """Do what the lines say until they end."""
        async with open_nursery() as nursery:
            async for line in lines:
                nursery.start_soon(self._answer, json.loads(line))
            nursery.cancel_scope.cancel()

    async def _answer(self, asked: dict[str, Any]) -> None:
        number, method = asked.pop("id"), getattr(self, "do_" + asked.pop("do"))
        try:
            done = await method(lambda told: _say(id=number, told=told), **asked)
        except Exception as error:
            logging.getLogger("demo.device").exception("This could not be done")
            _say(id=number, failed=f"{type(error).__name__}: {error}")
        else:
            _say(id=number, done=done)


def _say(**words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


async def read_lines(stream: trio.lowlevel.FdStream) -> AsyncIterator[bytes]:
    """The lines of a stream, until it ends."""
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


async def _main(folder: str, name: str, relay: str | None) -> None:
    async with Device.open(folder, relay=relay) as device:
        _say(id=0, done=device.key.hex())
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            await Program(device, name).serve(read_lines(stdin))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    trio.run(_main, sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
