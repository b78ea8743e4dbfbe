"""Whatever is killed with -9, at whatever moment, no edit that was durable on its device is lost and none is repeated.

A device edits without pause; in turn it, the relay with its Postgres, or all of them are killed at random moments and
started again. In the end a second device joins and must hold, entry by entry, the last value that the first one called
durable (or one that it had begun), and the relay's log must hold no record twice.
"""

import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

import trio

from demo import inside
from demo.processes import StoryError
from demo.relay import Relay
from sealwire_client import Device, latest
from tests.acceptance.writer import COLLECTION, Number

LIMIT_S = 420
LIMIT_SHORT_S = 400

ROUNDS: Final = 20
ROUNDS_SHORT: Final = 4
EDITS_MIN: Final = 40
"""A round lasts until the device has made so many edits since it was last started, and a random while longer."""

SYNC_S_MAX: Final = 100.0
SEED: Final = 7


class Writer:
    """The editing device's process, and what it has called durable, by key."""

    def __init__(self, folder: Path, origin: str) -> None:
        self.folder, self.origin = folder, origin
        self.durable: dict[str, int] = {}
        self.last = 0
        self.begun: set[int] = set()
        self._listener: threading.Thread | None = None
        self._heard = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it where it stopped: one past the last value that may have been made."""
        if self.last:
            self.begun.add(self.last + 1)
        self.last += 2
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.writer", str(self.folder), self.origin, str(self.last)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def reaches(self, value: int) -> bool:
        """Wait until an edit of that value, or a later one, is durable; blocks. False: not within SYNC_S_MAX."""
        with self._heard:
            return self._heard.wait_for(lambda: self.last >= value, SYNC_S_MAX)

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            key, _, value = line.strip().partition(" ")
            if line.endswith("\n") and value:
                with self._heard:
                    self.durable[key] = self.last = int(value)
                    self._heard.notify()

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None and self._listener is not None:
            self._process.kill()
            self._process.wait()
            self._listener.join()


async def prove(folder: Path, rounds: int) -> dict[str, object]:
    """Kill, start again, compare."""
    chance = random.Random(SEED)
    relay = Relay(folder)
    await relay.start()
    writer = Writer(folder / "first", relay.origin)
    killed = {"device": 0, "relay": 0}
    try:
        writer.start()
        for _ in range(rounds):
            target = writer.last + EDITS_MIN
            if not await trio.to_thread.run_sync(writer.reaches, target):
                raise StoryError(f"The device made too few edits within {SYNC_S_MAX:.0f} s.")
            await trio.sleep(chance.random() * 0.5)
            victims = chance.choice((("device",), ("relay",), ("device", "relay")))
            if "relay" in victims:
                relay.kill()
                killed["relay"] += 1
            if "device" in victims:
                writer.kill()
                killed["device"] += 1
                writer.start()
            if "relay" in victims:
                await relay.start()
        writer.kill()
        first, second = await compare(folder, relay.origin)
        log = inside.log(relay.folder)
    finally:
        writer.kill()
        relay.abandon()
    begun = writer.begun | {writer.last + 1}
    wrong = sum(first.get(key) != value and first.get(key) not in begun for key, value in writer.durable.items())
    figures: dict[str, object] = {
        "rounds": rounds,
        "killed": killed,
        "durable": len(writer.durable),
        "lost": wrong,
        "differing": sum(first.get(key) != second.get(key) for key in first.keys() | second.keys()),
        "records": log.records,
        "repeated": log.repeated,
        "gaps": log.gaps,
    }
    nothing_wrong = not (wrong or figures["differing"] or log.repeated or log.gaps)
    return {"ok": nothing_wrong and bool(writer.durable), **figures}


async def compare(folder: Path, origin: str) -> tuple[dict[str, int], dict[str, int]]:
    """What the first device holds once all is sent, and what a new one gets."""
    async with Device.open(folder / "first", relay=origin) as device:
        vault = device.vaults[0]
        numbers = await vault.collection(COLLECTION, Number, policy=latest())
        with trio.fail_after(SYNC_S_MAX):
            await vault.synced()
            invite = await vault.invite()
        first = {key: number.value for key, number in numbers.items()}
        async with trio.open_nursery() as nursery, Device.open(folder / "second") as other:
            nursery.start_soon(invite.joined)
            with trio.fail_after(SYNC_S_MAX):
                joined = await other.join(invite.link)
                same = await joined.collection(COLLECTION, Number, policy=latest())
                await joined.synced()
            second = {key: number.value for key, number in same.items()}
    return first, second


def run(short: bool) -> dict[str, object]:
    """The proof: ok if nothing was lost, nothing differs and nothing stands twice."""
    with tempfile.TemporaryDirectory(prefix="killed-", ignore_cleanup_errors=True) as name:
        return trio.run(prove, Path(name), ROUNDS_SHORT if short else ROUNDS)
