"""The runner of the long proofs, on proofs planted for it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.proofs import ProofUnusable, find_proofs
from tests.house.repository import ROOT

GOOD = """
LIMIT_S = 100
def run(short):
    print("a word in between")
    return {"ok": True, "short": short, "figure": 7}
"""
BAD = """
LIMIT_S = 100
def run(short):
    return {"ok": False}
"""
BROKEN = """
LIMIT_S = 100
import a_module_that_is_not_there
"""
SLOW = """
LIMIT_S = 0.3
import signal
def run(short):
    signal.pause()
"""
LEAVES = """
LIMIT_S = 100
SHORT = False
import os, subprocess, sys
def run(short):
    # Another session, no mark, another folder: known by its parent while that lives, by its mark before.
    code = "import signal; print(flush=True); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", code, "left-by-proof"], start_new_session=True,
        stdout=subprocess.PIPE)
    child.stdout.readline()
    return {"ok": True}
"""
LEAVES_UNMARKED = LEAVES.replace("start_new_session=True", "start_new_session=True, env={}, cwd=os.environ['TMPDIR']")
WAITS = """
LIMIT_S = 100
import os, signal, sys
def run(short):
    print("waiting in", os.getpid(), file=sys.stderr, flush=True)
    signal.pause()
"""


def plant(folder: Path, **proofs: str) -> Path:
    for name, source in proofs.items():
        (folder / f"proof_{name}.py").write_text(source)
    return folder


def acceptance(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, object]], str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceptance", "--proofs", str(folder), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {result["name"]: result for result in results}, done.stderr


def lives(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_proof_prints_one_object(tmp_path: Path) -> None:
    code, results, progress = acceptance(plant(tmp_path, good=GOOD, other=GOOD))
    assert code == 0
    assert list(results) == ["good", "other"]
    assert results["good"] | {"seconds": 0} == {"name": "good", "ok": True, "short": False, "figure": 7, "seconds": 0}
    assert "a word in between" in progress


def test_failures_fail_alone(tmp_path: Path) -> None:
    code, results, progress = acceptance(plant(tmp_path, bad=BAD, broken=BROKEN, good=GOOD, slow=SLOW))
    assert code == 1
    assert {name: result["ok"] for name, result in results.items()} == {
        "bad": False,
        "broken": False,
        "good": True,
        "slow": False,
    }
    assert "exit code 1" in str(results["broken"]["error"])
    assert "a_module_that_is_not_there" in progress
    assert "not done within its limit" in str(results["slow"]["error"])
    last = progress.splitlines()[-3:]
    assert [json.loads(line.removeprefix("Not proved: ")) for line in last] == [
        results[name] for name in ("bad", "broken", "slow")
    ]


@pytest.mark.parametrize("source", [LEAVES, LEAVES_UNMARKED], ids=["marked", "in its folder"])
def test_a_process_left_behind_is_named_and_ended(tmp_path: Path, source: str) -> None:
    code, results, _ = acceptance(plant(tmp_path, leaves=source))
    assert code == 1
    assert results["leaves"]["ok"] is False
    left = results["leaves"]["left_behind"]
    assert isinstance(left, list) and len(left) == 1
    assert "left-by-proof" in left[0]
    assert not lives(int(left[0].split()[0]))


def test_only_one_and_short_forms(tmp_path: Path) -> None:
    plant(tmp_path, good=GOOD, leaves=LEAVES)
    code, results, _ = acceptance(tmp_path, "--only", "good", "--short")
    assert (code, list(results), results["good"]["short"]) == (0, ["good"], True)
    code, results, progress = acceptance(tmp_path, "--short")
    assert (code, list(results)) == (0, ["good"])
    assert "leaves: left out" in progress
    code, results, progress = acceptance(tmp_path, "--only", "absent")
    assert (code, results) == (2, {})
    assert "good, leaves" in progress


def test_an_interrupt_ends_the_proof(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.acceptance", "--proofs", str(plant(tmp_path, waits=WAITS))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stdout is not None and runner.stderr is not None
        proof = next(line for line in runner.stderr if line.startswith("waiting in")).split()[-1]
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(100) == 130
        assert runner.stdout.read() == ""
        assert not lives(int(proof))


def test_a_proof_without_a_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProofUnusable, match="states no LIMIT_S"):
        find_proofs(plant(tmp_path, endless="def run(short): return {}"))


def test_the_proofs_of_this_checkout_can_be_read() -> None:
    assert "first_run" in [proof.name for proof in find_proofs()]
