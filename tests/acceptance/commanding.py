"""Devices that people use by the command line: each a folder of its own, in which `sealwire` is run as a process."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import trio

from demo.processes import FOREIGN, StoryError
from sealwire_client.nursery import open_nursery

COMMAND_S_MAX: Final = 180.0
"""For one command on a busy machine."""

ATTEMPTS_MAX: Final = 3
"""Times that a person says the same again, as they are told when the relay did not answer: on a busy machine."""

RELAY_MISSING: Final = 3
"""The exit code of a command that the relay did not answer."""

WAIT: Final = ("--wait", "60")
"""For what needs the relay, which is there."""

Answer = dict[str, Any]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    told: list[Answer]
    """Its lines of JSON."""
    said: str
    """What it wrote to stderr."""

    @property
    def answer(self) -> Answer:
        """Its last line."""
        return self.told[-1] if self.told else {}


class Command:
    """A command that runs. Made by `Machine.running`."""

    def __init__(self, process: trio.Process, name: str) -> None:
        self._process, self._name, self._read = process, name, b""

    async def line(self) -> Answer:
        """Its next line of JSON. Raises StoryError if it ends before."""
        assert self._process.stdout is not None
        while b"\n" not in self._read:
            data = await self._process.stdout.receive_some()
            if not data:
                raise StoryError(f"`sealwire {self._name}` ended before it had said all")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        told: Answer = json.loads(line)
        return told

    async def type(self, text: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(text.encode() + b"\n")


class Machine:
    """A device, by the name that its person gives it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, folder / name
        kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
        self._environment = kept | {"SEALWIRE_HOME": str(self.folder)}

    def _command(self, arguments: Iterable[str]) -> list[str]:
        return [sys.executable, "-m", "sealwire_client", *arguments, "--json"]

    async def try_to(self, *arguments: str, given: str = "") -> Ended:
        """Run a command to its end, whatever that is."""
        with trio.fail_after(COMMAND_S_MAX):
            done = await trio.run_process(
                self._command(arguments),
                stdin=given.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self._environment,
            )
        said = done.stderr.decode()
        if "Traceback" in said:
            raise StoryError(f"{self.name}: `sealwire {' '.join(arguments)}` met a bug: {said}")
        return Ended(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], said)

    async def done(self, *arguments: str, given: str = "") -> Ended:
        """Run a command that must do what it is asked, and again if the relay did not answer. Raises StoryError."""
        for _ in range(ATTEMPTS_MAX):
            ended = await self.try_to(*arguments, given=given)
            if ended.code != RELAY_MISSING:
                break
        if ended.code:
            raise StoryError(f"{self.name}: `sealwire {' '.join(arguments)}` ended with {ended.code}: {ended.said}")
        return ended

    async def do(self, *arguments: str, given: str = "") -> Answer:
        """The last that a command answers that must do what it is asked."""
        return (await self.done(*arguments, given=given)).answer

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[Command]:
        """A command that runs beside others, and must have done what it was asked when the block ends."""
        process = await trio.lowlevel.open_process(
            self._command(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
        )
        try:
            with trio.fail_after(COMMAND_S_MAX):
                yield Command(process, arguments[0])
                if await process.wait():
                    raise StoryError(f"{self.name}: `sealwire {' '.join(arguments)}` ended with {process.returncode}")
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    # --- what people do

    async def invites(self, other: "Machine", *options: str) -> Answer:
        """Invite another device of the same person, by a link that it is shown; what the inviter is told."""
        async with self.running("invite", *options) as inviting:
            link = (await inviting.line())["link"]
            await other.do("join", link, "--name", other.name, *WAIT)
            joined: Answer = (await inviting.line())["joined"]
        return joined

    async def shares(self, other: "Machine", *options: str) -> bool:
        """Invite another person's device; both people compare their codes. True if those are the same."""
        async with self.running("invite", "--confirm", *options) as inviting:
            link = (await inviting.line())["link"]
            async with other.running("join", link, "--name", other.name, *WAIT) as joining:
                theirs = (await joining.line())["code"]
                asked = (await inviting.line())["asks"]
                same: bool = asked == {"name": other.name, "code": theirs}
                await inviting.type("y" if same else "n")
                await joining.line()
            await inviting.line()
        return same

    async def puts(self, collection: str, key: str, value: Answer, vault: str, *, wait: bool = True) -> Answer:
        """Put an entry; other fields of it that somebody else changes meanwhile are merged with it."""
        how = ("--policy", "merge", "--vault", vault, *(WAIT if wait else ("--wait", "0")))
        return await self.do("put", collection, key, json.dumps(value), *how)

    async def shows(self, collection: str, vault: str) -> dict[str, Answer]:
        """What is in a collection, in step with the relay."""
        ended = await self.done("ls", collection, "--fresh", "--vault", vault, *WAIT)
        return {line["key"]: line["value"] for line in ended.told}

    def holds_text(self, text: str) -> bool:
        """True if any file of it holds a text, in clear."""
        return any(text.encode() in file.read_bytes() for file in self.folder.rglob("*") if file.is_file())


T = TypeVar("T")


async def at_once(works: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Do all of these, one beside the other; what each came to, in order."""
    found: dict[int, T] = {}

    async def work(number: int, one: Callable[[], Awaitable[T]]) -> None:
        found[number] = await one()

    async with open_nursery() as nursery:
        for number, one in enumerate(works):
            nursery.start_soon(work, number, one)
    return [found[number] for number in sorted(found)]
