"""What is missing on a machine is named in one sentence, and ends the set-up with a non-zero exit code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.repository import PACKAGES, ROOT

NO_VENV = "sys.modules['ensurepip'] = None"
TOO_OLD = "sys.version_info = (3, 8, 1)"
NOWHERE = "http://127.0.0.1:9/simple"
"""A registry that nobody keeps: connections to this port are refused at once."""


def checkout(folder: Path) -> Path:
    """A copy of what the set-up reads, without an environment."""
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(ROOT / "Makefile", folder)
    for package in PACKAGES.values():
        (folder / package.parent.name).mkdir()
        shutil.copy(package.parent / "pyproject.toml", folder / package.parent.name)
    return folder


def run(command: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "MAKE"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def set_up(folder: Path, on_a_machine: str) -> tuple[int, str]:
    script = str(folder / "requirements" / "install.py")
    code = f"import runpy, sys; {on_a_machine}; sys.argv[1:] = ['run']; runpy.run_path({script!r}, run_name='__main__')"
    return run([sys.executable, "-c", code], folder)


def test_no_python(tmp_path: Path) -> None:
    code, said = run(["make", "demo", "PYTHON=python-that-is-not-there"], checkout(tmp_path))
    assert code != 0
    assert said.startswith("There is no python-that-is-not-there here: install Python 3.11 or newer")


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    code, said = set_up(checkout(tmp_path), TOO_OLD)
    assert code == 1
    assert "needs Python 3.11 or newer" in said
    assert said.endswith("is 3.8: name a newer one with `make PYTHON=python3.12 ...`.\n")
    assert said.count("\n") == 1


def test_no_venv_module(tmp_path: Path) -> None:
    code, said = set_up(checkout(tmp_path), NO_VENV)
    assert code == 1
    assert "comes without the venv module: install it" in said
    assert said.count("\n") == 1


def test_no_registry(tmp_path: Path) -> None:
    script = str(checkout(tmp_path) / "requirements" / "install.py")
    unreachable = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": NOWHERE, "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    code, said = run([sys.executable, script, "run"], tmp_path, **unreachable)
    assert code == 1
    assert "Could not set up the installer (uv) (is the package registry in reach?)" in said
    assert "Traceback" not in said
    assert not (tmp_path / ".venv" / ".set-up-run").exists()
