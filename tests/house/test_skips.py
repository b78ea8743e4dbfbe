"""A skip is a skip, but under CI it is a failure that says what was skipped and why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.repository import ROOT

TESTS = """
import pytest

def test_runs(): pass

def test_skips(): pytest.skip("no Chromium here")

@pytest.mark.skip(reason="not root")
def test_marked(): pass

@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""

WHOLE_MODULE = """
import pytest
pytest.skip("no Node here", allow_module_level=True)
"""


def outcome(folder: Path, ci: str) -> tuple[int, str]:
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_module.py").write_text(WHOLE_MODULE)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--continue-on-collection-errors", f"--rootdir={folder}", str(folder)],
        env={**os.environ, "CI": ci},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_skip_is_named(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, ci="")
    assert code == 0
    assert "1 passed, 3 skipped, 1 xfailed" in output
    assert "no Chromium here" in output


def test_a_skip_fails_in_ci(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, ci="true")
    assert code != 0
    for named in (
        "test_some.py::test_skips was skipped, which CI does not allow: Skipped: no Chromium here",
        "test_some.py::test_marked was skipped, which CI does not allow: Skipped: not root",
        "test_module.py was skipped, which CI does not allow: Skipped: no Node here",
    ):
        assert named in output
    assert "skipped in" not in output
