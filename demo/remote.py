"""A device process as the conductor sees it: asked by name, answered in time or not at all."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from demo.characters import DEVICES
from demo.device import read_lines
from demo.processes import StoryError, ended, kill_tree, last_words, spawn

START_S_MAX: Final = 90.0
"""For a Python that imports the library on a busy machine, and opens a replica of any size."""

END_S_MAX: Final = 60.0
"""For a device that was told to end: it closes its connection and its replica."""


class KilledError(StoryError):
    """The device was killed by the conductor."""


Told = Callable[[Any], None]


def _ignored(_: Any) -> None:
    """Nobody wants to know."""


class _Asked:
    def __init__(self, told: Told) -> None:
        self.told = told
        self.event = trio.Event()
        self.answer: dict[str, Any] | None = None


class RemoteDevice:
    """One device's process. `start` first; `ask` any number of things at once."""

    def __init__(self, letter: str, folder: Path, nursery: trio.Nursery) -> None:
        self.letter, self.name = letter, DEVICES[letter]
        self.folder = folder / letter
        self.log = folder / f"{letter}.log"
        self._nursery = nursery
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: dict[int, _Asked] = {}
        self._last = 0
        self._silent = trio.Event()
        self._expected_end = False

    @property
    def pid(self) -> int | None:
        """The id of its process, if there is one."""
        return None if self._process is None else self._process.pid

    async def start(self, relay: str | None = None) -> None:
        """Start the process on the device's folder, and wait until the device is open. Raises StoryError."""
        arguments = [str(self.folder), self.name, *([relay] if relay else [])]
        self._expected_end = False
        self._process = spawn("demo.device", *arguments, log=self.log)
        self._asked.clear()
        self._silent = trio.Event()
        opened = self._asked[0] = _Asked(_ignored)
        self._nursery.start_soon(self._listen, self._process)
        await self._answer_of(opened, "open", START_S_MAX)

    async def ask(self, do: str, limit_s: float, told: Told = _ignored, **given: Any) -> Any:
        """Have something done and wait for it; `told` gets what it tells meanwhile.

        Raises StoryError if the device fails, ends, or takes longer than the limit.
        """
        self._last += 1
        asked = self._asked[self._last] = _Asked(told)
        line = json.dumps({"id": self._last, "do": do, **given}).encode() + b"\n"
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            await self._answer_of(asked, do, END_S_MAX)
        return await self._answer_of(asked, do, limit_s)

    async def _answer_of(self, asked: _Asked, do: str, limit_s: float) -> Any:
        with trio.move_on_after(limit_s):
            await asked.event.wait()
        answer = asked.answer
        if answer is None and asked.event.is_set():
            if self._expected_end:
                raise KilledError(f"Device {self.letter} was killed while it was to {do}.")
            raise StoryError(f"Device {self.letter} ended while it was to {do}; its last words:{last_words(self.log)}")
        if answer is None:
            raise StoryError(
                f"Device {self.letter} was not done with `{do}` within {limit_s:.0f} s; its log ends:"
                f"{last_words(self.log)}"
            )
        if "failed" in answer:
            raise StoryError(
                f"Device {self.letter} could not {do}: {answer['failed']}; its log: {last_words(self.log)}"
            )
        return answer["done"]

    async def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        stream = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        async with stream:
            async for line in read_lines(stream):
                said = json.loads(line)
                asked = self._asked[said["id"]]
                if "told" in said:
                    asked.told(said["told"])
                else:
                    asked.answer = said
                    asked.event.set()
        self._silent.set()
        for asked in self._asked.values():
            asked.event.set()
        if not self._expected_end:
            status = process.wait(END_S_MAX)
            raise StoryError(
                f"Device {self.letter} ended by itself (status {status}); its last words:{last_words(self.log)}"
            )

    async def kill(self) -> None:
        """Kill -9 the process, whatever it is doing; returns when all that it had said has been heard."""
        self.abandon()
        await self._silent.wait()

    def abandon(self) -> None:
        """Kill -9 the process, if there is one."""
        self._expected_end = True
        if self._process is not None:
            kill_tree(self._process)

    async def end(self) -> int:
        """Let the process end in order; by force if it takes longer than END_S_MAX. Its exit status."""
        self._expected_end = True
        process = self._process
        assert process is not None and process.stdin is not None
        process.stdin.close()
        with trio.move_on_after(END_S_MAX):
            await ended(process)
        if process.returncode is None:
            kill_tree(process)
        return process.wait(END_S_MAX)
