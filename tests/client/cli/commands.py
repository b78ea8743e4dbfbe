"""Running `sealwire` as people do: real processes, real folders, a relay on a real socket."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from sealwire_client.cli import main
from tests.support import memory_relay

ROOT = Path(__file__).resolve().parents[3]

WAIT_S_MAX = 100.0
"""Only a test that fails waits so long."""

PATIENCE_SECONDS = 60
"""What commands are given to wait for the relay, where a test does not say: how slow the machine is, is not tested."""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """Its last line of JSON."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    @property
    def error(self) -> str:
        """Its one sentence, which must be the only one."""
        said = [line for line in self.err.splitlines() if line.startswith("sealwire: ")]
        assert len(said) == 1, self
        assert said[0].endswith((".", "!", "?")), self
        return said[0].removeprefix("sealwire: ")


class Relay:
    """A relay in memory, which can be ended and started again, empty, on the same port."""

    def __init__(self, environment: dict[str, str], **settings: str) -> None:
        self._environment, self._settings = environment, settings
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        """What devices dial."""
        return f"ws://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; returns when devices are served."""
        self._process = subprocess.Popen(
            memory_relay.command(self.port, self._settings),
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def end(self) -> None:
        """End it, in order."""
        self._process.terminate()
        self._process.communicate(timeout=WAIT_S_MAX)


class Running:
    """A command that runs."""

    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], stdin: int = subprocess.DEVNULL, **options: Any
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sealwire_client", *arguments],
            env=environment,
            stdin=stdin,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )
        self._read = {"out": b"", "err": b""}

    def until(self, stream: str, text: str) -> None:
        """Wait until it has written a text, on `out` or `err`."""
        file = self.process.stdout if stream == "out" else self.process.stderr
        assert file is not None
        end = time.monotonic() + WAIT_S_MAX
        while text.encode() not in self._read[stream]:
            ready, _, _ = select.select([file], [], [], max(0.0, end - time.monotonic()))
            data = os.read(file.fileno(), 65_536) if ready else b""
            assert data, f"{text!r} did not come: {self._read}"
            self._read[stream] += data

    @property
    def out(self) -> str:
        """What was read of its stdout."""
        return self._read["out"].decode()

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> Done:
        """Send a signal, and wait for the end."""
        self.process.send_signal(number)
        return self.done()

    def done(self, given: bytes | None = None) -> Done:
        """Wait for the end."""
        try:
            out, err = self.process.communicate(given, timeout=WAIT_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"it did not end: {self._read}, {out!r}, {err!r}") from None
        done = Done(
            self.process.returncode, (self._read["out"] + (out or b"")).decode(), (self._read["err"] + err).decode()
        )
        assert "Traceback" not in done.err, done.err
        assert "Exception ignored" not in done.err, done.err
        return done


def _patient(arguments: Sequence[str]) -> list[str]:
    """The same, with the option to wait for the relay, if the command has it and it is not given."""
    command: click.Command = main
    words = 0
    while isinstance(command, click.Group) and words < len(arguments) and arguments[words] in command.commands:
        command, words = command.commands[arguments[words]], words + 1
    waits = any("--wait" in parameter.opts for parameter in command.params) and "--wait" not in arguments
    return [*arguments[:words], *(("--wait", str(PATIENCE_SECONDS)) if waits else ()), *arguments[words:]]


class Machine:
    """One device: a folder, in which commands are run."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**environment, "SEALWIRE_HOME": str(folder)}

    def begin(self, *arguments: str, **options: Any) -> Running:
        """Start a command."""
        return Running(_patient(arguments), self.environment, **options)

    def run(self, *arguments: str, given: bytes | None = None) -> Done:
        """Run a command to its end."""
        return self.begin(*arguments, stdin=subprocess.DEVNULL if given is None else subprocess.PIPE).done(given)

    def succeed(self, *arguments: str, given: bytes | None = None) -> Done:
        """Run a command that must do what it is asked."""
        done = self.run(*arguments, given=given)
        assert done.code == 0, done
        return done

    @contextmanager
    def running(self, *arguments: str, **options: Any) -> Iterator[Running]:
        """A command that runs for the length of the block, and not longer."""
        running = self.begin(*arguments, **options)
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.process.kill()
            running.process.communicate()


def invited(inviter: Machine, joiner: Machine) -> tuple[Done, Done]:
    """Bring two devices together; how `invite` and `join` ended."""
    with inviter.running("invite", "--json") as inviting:
        inviting.until("out", "\n")
        told = json.loads(inviting.out)
        assert "link" in told, told
        joined = joiner.run("join", told["link"], "--name", "second", "--json")
        return inviting.done(), joined
