"""Peers that run on Node: packages from npm, at the exact versions of package.json, outside of the repository."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench.harness.processes import BUILD, Missing, environment

HERE: Final = Path(__file__).parent
FOLDER: Final = BUILD / "node"
STAMP: Final = FOLDER / "installed"
INSTALL_S_MAX: Final = 600.0
"""A registry that takes longer is not in reach."""


def script(name: str) -> list[str]:
    """The command that runs bench/peers/NAME, its packages installed. Raises Missing if they cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing(f"{name}: {'Node' if node is None else 'npm'} is not installed")
    _install(npm, name)
    shutil.copy(HERE / name, FOLDER / name)
    return [node, str(FOLDER / name)]


def node_version() -> str:
    """Of the Node that runs peers; nothing without one."""
    node = shutil.which("node")
    return "" if node is None else subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()


def package_version(package: str) -> str:
    """The version of a package that is pinned."""
    version: str = json.loads((HERE / "package.json").read_text())["dependencies"][package]
    return version


def _install(npm: str, name: str) -> None:
    pinned = (HERE / "package.json").read_bytes()
    digest = hashlib.sha256(pinned).hexdigest()
    if STAMP.exists() and STAMP.read_text() == digest:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    (FOLDER / "package.json").write_bytes(pinned)
    try:
        done = subprocess.run(
            [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=FOLDER,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise Missing(f"{name}: npm was not done within {INSTALL_S_MAX:.0f} s") from late
    if done.returncode:
        raise Missing(f"{name}: npm could not install its packages: {done.stderr.strip()[-300:]}")
    STAMP.write_text(digest)
