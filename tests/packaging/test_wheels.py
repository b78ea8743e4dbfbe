"""The three wheels, as a stranger gets them: built, installed into an empty environment, and used.

`uv` is asked to use the pinned build backend of this environment, so that no registry has to be asked for one;
the dependencies are the pinned ones, hashes checked.
"""

import json
import os
import re
import select
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

from sealwire_protocol import __version__
from tests.house.repository import PACKAGES, ROOT, files

BUILD_LIMIT_S = 250
INSTALL_LIMIT_S = 250
READY_LIMIT_S = 120
"""The first start of a relay makes a Postgres data folder, which takes seconds on a slow disk."""

EXAMPLE_LIMIT_S = 120
STOP_LIMIT_S = 60

DEFAULT_RELAY = re.compile(r"ws://(?:127\.0\.0\.1|localhost):7800")
"""The address of a relay started without options, which the example may name."""

UV = [sys.executable, "-m", "uv"]


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that holds the three wheels and nothing else of ours."""

    bin: Path

    def run(self, *command: str, limit_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs outside the checkout."""
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.bin.parent,
            env=clean_environment() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )


def clean_environment() -> dict[str, str]:
    """The environment without what would let an installed program find the checkout."""
    return {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "VIRTUAL_ENV", "SEALWIRE_"))}


def built(command: list[str], limit_s: float) -> None:
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each package."""
    folder = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES.values():
        backend = ["--no-build-isolation", "--python", sys.executable]
        built(
            [*UV, "build", "--quiet", "--wheel", *backend, "--out-dir", str(folder), str(package.parent)], BUILD_LIMIT_S
        )
    return {name: next(folder.glob(f"{name}-{__version__}-py3-none-any.whl")) for name in PACKAGES}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with the wheels and the pinned dependencies."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    built([*UV, "venv", "--quiet", "--python", sys.executable, str(venv)], INSTALL_LIMIT_S)
    install = [*UV, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python")]
    built([*install, "--require-hashes", "-r", str(ROOT / "requirements" / "run.txt")], INSTALL_LIMIT_S)
    built([*install, "--no-deps", *map(str, wheels.values())], INSTALL_LIMIT_S)
    built([*UV, "pip", "check", "--quiet", "--python", str(venv / "bin" / "python")], INSTALL_LIMIT_S)
    return Installed(venv / "bin")


@contextmanager
def start_relay(installed: Installed, folder: Path) -> Iterator[str]:
    """Where devices find a relay with its embedded Postgres in a folder, from the installed wheels; stopped at the end.

    Fails when it is not ready within `READY_LIMIT_S`, or does not stop by itself when asked to.
    """
    ports = ["--port", "0", "--control-port", "0"]
    log = folder / "relay.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [str(installed.bin / "sealwire-relay"), "up", "--folder", str(folder / "data"), *ports, "--json"],
            cwd=folder,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            told, _, _ = select.select([process.stdout], [], [], READY_LIMIT_S)
            line = process.stdout.readline() if told else b""
            assert line, f"the relay is not ready: {log.read_text()}"
            port = int(json.loads(line)["data"].rpartition(":")[2])
            yield f"ws://127.0.0.1:{port}"
            process.terminate()
            assert process.wait(STOP_LIMIT_S) == 0, log.read_text()
        finally:
            process.kill()


def example() -> str:
    """The first Python block of the README."""
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None, "README.md shows no Python example"
    return block[1]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_all_of_its_package_and_nothing_else(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        held = {entry for entry in wheel.namelist() if not entry.endswith("/")}
        information = f"{name}-{__version__}.dist-info"
        metadata = Parser().parsestr(wheel.read(f"{information}/METADATA").decode())
    source = {str(path.relative_to(PACKAGES[name].parent)) for path in files(below=PACKAGES[name])}
    assert {entry for entry in held if not entry.startswith(information)} == source
    assert f"{name}/py.typed" in held
    assert f"{information}/licenses/LICENSE" in held
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_relay_brings_its_sql(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["sealwire_relay"]) as wheel:
        assert [entry for entry in wheel.namelist() if re.match(r"sealwire_relay/store/sql/.*\.sql$", entry)]


@pytest.mark.parametrize("program", ["sealwire", "sealwire-relay"])
def test_a_program_helps(installed: Installed, program: str) -> None:
    done = installed.run(program, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stderr == ""


def test_the_example_of_the_readme_runs(installed: Installed, open_folder: Path) -> None:
    home = open_folder / "home"
    home.mkdir()
    script = open_folder / "example.py"
    code = example()
    with start_relay(installed, open_folder) as url:
        script.write_text(DEFAULT_RELAY.sub(url, code))
        settings = {"SEALWIRE_RELAY": url, "HOME": str(home)}
        done = installed.run("python", str(script), limit_s=EXAMPLE_LIMIT_S, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
