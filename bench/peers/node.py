"""Peers that run on Node: packages from npm, at the exact versions of package.json, outside of the repository."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench.harness.processes import BUILD, Missing, environment

HERE: Final = Path(__file__).parent
INSTALL_S_MAX: Final = 600.0
"""A registry that takes longer is not in reach."""


def script(name: str, group: str = "") -> list[str]:
    """The command that runs bench/peers/NAME, or bench/peers/GROUP/NAME with packages of its own, once these are
    installed. Raises Missing if they cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing(f"{group or name}: {'Node' if node is None else 'npm'} is not installed")
    folder = BUILD / f"node-{group or 'peers'}"
    _install(npm, HERE / group, folder, group or name)
    shutil.copy(HERE / group / name, folder / name)
    return [node, str(folder / name)]


def node_version() -> str:
    """Of the Node that runs peers; nothing without one."""
    node = shutil.which("node")
    return "" if node is None else subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()


def package_version(package: str, group: str = "") -> str:
    """The version of a package that is pinned."""
    version: str = json.loads((HERE / group / "package.json").read_text())["dependencies"][package]
    return version


def _install(npm: str, source: Path, folder: Path, name: str) -> None:
    pinned = (source / "package.json").read_bytes()
    stamp, digest = folder / "installed", hashlib.sha256(pinned).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "package.json").write_bytes(pinned)
    try:
        done = subprocess.run(
            [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder,
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
    stamp.write_text(digest)
