"""`sealwire-relay` as people and their scripts run it: a real process, real ports, a real Postgres."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.leftovers import Owner, left_behind

WAIT_S_MAX = 120.0
"""For a Postgres that makes its files on a slow and busy machine."""


class Program:
    """A running `sealwire-relay`, in a session of its own as under a supervisor."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        environment = {name: text for name, text in os.environ.items() if not name.startswith("SEALWIRE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sealwire_relay", *arguments],
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self.errors = ""

    def ready(self) -> dict[str, Any]:
        """The object of the line that says that devices are served."""
        assert self.process.stdout is not None
        found, _, _ = select.select([self.process.stdout], [], [], WAIT_S_MAX)
        line = self.process.stdout.readline() if found else ""
        assert line, f"no ready line: {self.process.communicate()}"
        told: dict[str, Any] = json.loads(line)
        return told

    def until_said(self, text: str) -> None:
        """Wait for a line on stderr that contains a text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line
            if text in line:
                return
        pytest.fail(f"{text!r} was not said: {self.errors}")

    def end(self, number: signal.Signals) -> int:
        """Ask it to end, and wait for the exit code."""
        self.process.send_signal(number)
        return self.finished()[0]

    def finished(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a program that ends by itself."""
        output, errors = self.process.communicate(timeout=WAIT_S_MAX)
        self.errors += errors
        assert "Traceback" not in self.errors, self.errors
        return self.process.returncode, output, self.errors


@contextlib.contextmanager
def relay(folder: Path, *arguments: str) -> Iterator[Program]:
    """A program that may run in a folder; whatever happens, nothing of it is left."""
    program = Program("up", "--folder", str(folder), "--port", "0", "--control-port", "0", "--json", *arguments)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.kill()
            program.process.communicate()
        # A Postgres that has lost its relay ends in order, which takes its time on a slow disk.
        assert left_behind(Owner(program.process.pid, "", folder), WAIT_S_MAX) == []


def failed(*arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code of a program that fails, and its one sentence."""
    code, output, errors = Program(*arguments, **variables).finished()
    assert output == ""
    said = [line for line in errors.splitlines() if line.startswith("sealwire-relay: ")]
    assert len(said) == 1, errors
    return code, said[0]


def answer(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S_MAX) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
