"""Runs long proofs: each in a process group of its own, within its limit, leaving no process behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.acceptance.leftovers import MARK, Owner, end_all, left_behind
from tests.acceptance.proofs import Proof

ROOT = Path(__file__).resolve().parents[2]

STOPPING_S = 15.0
"""What a proof that is over its limit gets to stop its own servers, before everything of it is killed."""

NAMED_MAX = 20
"""How many left processes a result names: enough to see what they are."""


def run_proof(proof: Proof, *, short: bool) -> dict[str, object]:
    """Run one proof and return its result: `name`, `ok`, `seconds` and its figures, or an `error`.

    Nothing of it lives afterwards; whatever did is named under `left_behind`, and the proof has failed. When
    this is interrupted (any exception), the proof's processes are ended all the same.
    """
    limit_s = proof.limit_short_s if short else proof.limit_s
    print(f"{proof.name}: started, {limit_s:.0f} s at most", file=sys.stderr, flush=True)
    start_s = time.monotonic()
    # Open to other users: servers that refuse to run as root run as one of them.
    folder = Path(tempfile.mkdtemp(prefix="sealwire-proof-"))
    folder.chmod(0o711)
    child = _start(proof, folder, short=short, mark=(mark := uuid.uuid4().hex))
    owner = Owner(child.pid, mark, folder)
    try:
        result = _outcome(child, folder / "result.json", limit_s)
        if left := left_behind(owner):
            result["ok"] = False
            result["left_behind"] = [f"{p.pid} {p.command}"[:200] for p in left[:NAMED_MAX]]
    finally:
        end_all(owner)
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - start_s, 1)
    verdict = "ok" if result["ok"] else "FAILED"
    print(f"{proof.name}: {verdict} after {seconds} s", file=sys.stderr, flush=True)
    return {"name": proof.name, "ok": result.pop("ok"), "seconds": seconds, **result}


def _start(proof: Proof, folder: Path, *, short: bool, mark: str) -> subprocess.Popen[bytes]:
    form = "short" if short else "long"
    result = str(folder / "result.json")
    return subprocess.Popen(
        [sys.executable, "-m", "tests.acceptance.child", str(proof.path), result, form],
        cwd=ROOT,
        env={**os.environ, MARK: mark, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _outcome(child: subprocess.Popen[bytes], file: Path, limit_s: float) -> dict[str, object]:
    try:
        code = child.wait(limit_s)
    except subprocess.TimeoutExpired:
        _stop(child)
        return {"ok": False, "error": f"not done within its limit of {limit_s:.0f} s"}
    if code != 0:
        return {"ok": False, "error": f"ended with exit code {code}; what it printed says why"}
    try:
        figures = json.loads(file.read_text())
    except (OSError, ValueError):
        return {"ok": False, "error": "ended without a result"}
    if not isinstance(figures, dict) or not isinstance(figures.get("ok"), bool):
        return {"ok": False, "error": 'returned no figures with a boolean "ok"'}
    return {key: value for key, value in figures.items() if key not in ("name", "seconds")}


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, as a Ctrl-C would; what does not is killed later."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOPPING_S)
