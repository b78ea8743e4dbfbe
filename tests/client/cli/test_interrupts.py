"""Ctrl-C at any point: exit code 130, one sentence, and what was saved stays."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.cli.commands import WAIT_S_MAX, Machine
from tests.client.cli.conftest import NOWHERE


def test_while_modules_are_still_imported(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, time\nos.write(2, b'importing')\ntime.sleep(60)\n")
    device = machine("a")
    device.environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{device.environment['PYTHONPATH']}"
    with device.running("ls", "notes") as command:
        command.until("err", "importing")
        done = command.interrupt()
    assert done.code == 130
    assert "Interrupted" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_it_waits_for_the_relay(alone: Machine, number: signal.Signals) -> None:
    with alone.running("watch", "notes", "--json") as watching:
        watching.until("err", "No relay answers")
        done = watching.interrupt(number)
    assert done.code == (130 if number is signal.SIGINT else 143)
    assert "stays saved" in done.error
    assert done.out == ""


def test_while_it_reads_lines(alone: Machine) -> None:
    with alone.running("import", "notes", "-", stdin=subprocess.PIPE) as putting:
        assert putting.process.stdin is not None
        putting.process.stdin.write(b'{"key": "k", "value": "v"}\n{"key": ')
        putting.process.stdin.flush()
        # The lines that are there are saved without waiting for more.
        while alone.run("get", "notes", "k").out != "v\n":
            pass
        writing, putting.process.stdin = putting.process.stdin, None
        done = putting.interrupt()
        writing.close()
    assert done.code == 130
    assert alone.succeed("ls", "notes").out == "k\tv\n"


def test_while_nobody_reads_what_it_prints(alone: Machine) -> None:
    lines = "\n".join(json.dumps({"key": f"k{n:05}", "value": "x" * 100}) for n in range(3_000))
    alone.succeed("import", "notes", "-", given=lines.encode())
    with alone.running("ls", "notes") as listing:
        listing.until("out", "k00000")
        listing.process.send_signal(signal.SIGINT)
        assert listing.process.wait(WAIT_S_MAX) == 130


def test_the_second_signal_ends_at_once(environment: dict[str, str]) -> None:
    # It sends them to itself, so that the first one was taken when the second one comes.
    code = """
import signal, time
from sealwire_client.cli import running
running.END_SECONDS_MAX = 600.0

async def work():
    signal.raise_signal(signal.SIGINT)
    while not signal.getitimer(signal.ITIMER_REAL)[0]:
        pass
    print("went on", flush=True)
    signal.raise_signal(signal.SIGTERM)
    time.sleep(600)

running.run(work)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=WAIT_S_MAX, check=False
    )
    assert (done.returncode, done.stdout) == (130, "went on\n")
    assert "Interrupted" in done.stderr


def test_while_an_invite_waits(a: Machine, machine: Callable[[str], Machine]) -> None:
    with a.running("invite") as inviting:
        inviting.until("out", "\n")
        link = inviting.out
        done = inviting.interrupt()
    assert done.code == 130
    assert link.startswith("sealwire:")
    unanswered = machine("b").run("join", link, "--wait", "10")  # time enough to reach the relay
    assert unanswered.code == 3
    assert "inviting device did not answer" in unanswered.error


def test_at_the_passphrase_prompt_the_terminal_keeps_its_echo(machine: Callable[[str], Machine]) -> None:
    device = machine("a")
    ours, theirs = pty.openpty()
    with device.running("init", "--relay", NOWHERE, "--passphrase", stdin=theirs) as asking:
        asking.until("err", "New passphrase")
        done = asking.interrupt()
    os.close(ours)
    os.close(theirs)
    assert done.code == 130
    assert not device.folder.exists()
