"""What a newcomer does: clone into an empty folder, `make demo`, `make test`, with nothing set up before.

The short form leaves out the tests and takes 30,000 entries, beside which the pages of empty tables hardly count. What
is proved is the last commit, not what lies uncommitted in the checkout.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 900
LIMIT_SHORT_S = 900

DEMO_LIMIT_S = 240
"""The promise: from an empty folder to the end of the demo in under four minutes, installation included."""

DEMO_SHORT_LIMIT_S = 800
"""The short form shows that it works, on whatever machine."""

TEST_LIMIT_S = 360
"""The promise: all tests in under six minutes."""

RELAY_BYTES_PER_ENTITY_MAX = 120
"""The promise: what the relay's tables take on disk per live entry."""

RELAY_BYTES_PER_ENTITY_SHORT_MAX = 125
"""Of fewer entries, and on a machine so slow that Postgres has tidied up tables by itself meanwhile: each of those then
has a map of its free space, of three pages."""

ROOT = Path(__file__).resolve().parents[2]

FOREIGN = re.compile(
    "PYTHON|PYENV_V|PYTEST|VIRTUAL_ENV|CONDA|PIPENV|POETRY|MAKE|MFLAGS|GIT_DIR|GIT_WORK|SEALWIRE_(?!PROOF)|"
    "(ARGS|ONLY|SHORT)$"
)
"""Variables (by their beginnings) that tell of another environment, or of the make that runs this."""

EXPECTED = {"converged": True, "lost": 0, "duplicated": 0, "plaintext_found": 0, "canary_found": True}


def run(short: bool) -> dict[str, object]:
    """Do as a newcomer does; ok only if every step ends well, in its time, and the demo's figures are right."""
    with tempfile.TemporaryDirectory(prefix="first-run-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        clone = Path(folder, "sealwire")
        git = ["git", "clone", "--quiet", "--no-hardlinks", f"file://{ROOT}", str(clone)]
        subprocess.run(git, check=True, timeout=60, env=fresh_environment())
        commit = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
        figures: dict[str, object] = {"commit": subprocess.check_output(commit, text=True, timeout=60).strip()}
        problems = demo(clone, figures, short=short)
        if not short:
            problems += tests(clone, figures)
    return {"ok": not problems, "problems": problems, **figures}


def demo(clone: Path, figures: dict[str, object], *, short: bool) -> list[str]:
    """`make demo` in the clone, which sets itself up; adds its figures and returns what is wrong with them."""
    arguments = "ARGS=--entries 30000 --json" if short else "ARGS=--json"
    limit_s = DEMO_SHORT_LIMIT_S if short else DEMO_LIMIT_S
    code, seconds, output = step(clone, ["make", "demo", arguments], limit_s)
    figures["demo_s"] = seconds
    problems = judged("make demo", code, seconds, limit_s)
    try:
        told = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return [*problems, "the last line of `make demo` is no JSON object"]
    figures["demo"] = told
    return problems + wrong_figures(told, RELAY_BYTES_PER_ENTITY_SHORT_MAX if short else RELAY_BYTES_PER_ENTITY_MAX)


def tests(clone: Path, figures: dict[str, object]) -> list[str]:
    """`make test` in the clone; adds its figures and returns what is wrong."""
    code, seconds, output = step(clone, ["make", "test"], TEST_LIMIT_S)
    figures["test_s"] = seconds
    passed = re.findall(r"(\d+) passed", output)
    figures["tests_passed"] = int(passed[-1]) if passed else 0
    return judged("make test", code, seconds, TEST_LIMIT_S) + ([] if passed else ["no test passed"])


def wrong_figures(told: dict[str, object], bytes_max: int = RELAY_BYTES_PER_ENTITY_MAX) -> list[str]:
    """What the demo's figures say against it."""
    wrong = [f"{name} is {told.get(name)}, not {value}" for name, value in EXPECTED.items() if told.get(name) != value]
    size = told.get("relay_bytes_per_entity")
    if not isinstance(size, int | float) or size > bytes_max:
        wrong.append(f"relay_bytes_per_entity is {size}, {bytes_max} at most")
    return wrong


def judged(what: str, code: int | None, seconds: float, limit_s: int) -> list[str]:
    """What is wrong with a step: None for an exit code means that it was not done in time."""
    if code is None:
        return [f"`{what}` was not done within {limit_s} s"]
    return [f"`{what}` ended with exit code {code} after {seconds} s"] if code else []


def step(clone: Path, command: list[str], limit_s: int) -> tuple[int | None, float, str]:
    """Run one command in the clone; its exit code, its seconds and its stdout, which is shown too."""
    start_s = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=clone,
        env=fresh_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, code = process.communicate()[0], None
    sys.stderr.write(output)
    return code, round(time.monotonic() - start_s, 1), output


def fresh_environment() -> dict[str, str]:
    """The environment without what an activated environment, a test runner or make has put into it."""
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    foreign = os.environ.get("VIRTUAL_ENV")
    folders = kept.get("PATH", os.defpath).split(os.pathsep)
    kept["PATH"] = os.pathsep.join(f for f in folders if not foreign or not Path(f).is_relative_to(foreign))
    return kept
