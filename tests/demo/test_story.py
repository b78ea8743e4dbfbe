"""The demo as people run it: a process of its own, with all that it starts."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.processes import ROOT
from tests.acceptance.leftovers import Owner, end_all, left_behind

pytestmark = pytest.mark.embedded

STORY_S_MAX = 250.0
"""It takes a tenth of that on an idle machine."""

END_S_MAX = 100.0


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The demo with its temporary folder in `folder`; fails if a process or a file is left when it has ended."""
    mark = f"demo-{folder.name}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALWIRE_")}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo", *arguments],
        cwd=ROOT,
        env={**kept, "TMPDIR": str(folder), "SEALWIRE_PROOF": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    owner = Owner(process.pid, mark, folder)
    try:
        with process:
            yield process
        assert left_behind(owner) == []
        assert list(folder.iterdir()) == []
    finally:
        end_all(owner)


def until_said(process: "subprocess.Popen[str]", text: str) -> None:
    """Wait until the demo's output has a text."""
    assert process.stdout is not None
    deadline, said = time.monotonic() + STORY_S_MAX, ""
    while text not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        read = os.read(process.stdout.fileno(), 65_536).decode() if ready else ""
        assert read, f"{text!r} was not said: {said}"
        said += read


@pytest.mark.timeout(STORY_S_MAX + END_S_MAX)
def test_the_story_holds(open_folder: Path) -> None:
    with demo(open_folder, "--entries", "2000", "--json") as process:
        output, errors = process.communicate(timeout=STORY_S_MAX)
    assert process.returncode == 0, errors
    told = json.loads(output.splitlines()[-1])
    held = {name: told[name] for name in ("converged", "canary_found", "lost", "duplicated", "plaintext_found")}
    assert held == {"converged": True, "canary_found": True, "lost": 0, "duplicated": 0, "plaintext_found": 0}
    assert (told["entries"], told["devices"], told["problems"]) == (2000, 2, [])
    for name in ("bootstrap_records_per_s", "live_ms_median", "scan_ms", "put_per_s", "upload_per_s", "recovery_s"):
        assert told[name] > 0
    assert told["live_edits"] >= 100
    assert 100 < told["relay_bytes_per_entity"] < 400
    assert "All of it held." in errors


@pytest.mark.parametrize(
    ("moment", "number"), [("1  A relay", signal.SIGINT), ("2  Device B", signal.SIGINT), ("3  Both", signal.SIGTERM)]
)
def test_an_interruption_leaves_nothing(open_folder: Path, moment: str, number: signal.Signals) -> None:
    with demo(open_folder, "--entries", "1000") as process:
        until_said(process, moment)
        process.send_signal(number)
        output, errors = process.communicate(timeout=END_S_MAX)
    assert process.returncode == 128 + number, errors
    assert output.endswith("Interrupted: everything was ended and removed.\n")


def test_too_few_or_too_many_entries_are_refused(open_folder: Path) -> None:
    for count in ("10", "10000000"):
        with demo(open_folder, "--entries", count) as process:
            errors = process.communicate(timeout=END_S_MAX)[1]
        assert process.returncode == 2
        assert "--entries is 1,000 to" in errors
