import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.cli.commands import ROOT, Machine, Relay

NOWHERE = "ws://127.0.0.1:9"
"""Nobody listens on the discard port."""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands find around them: nothing of the caller's own device, and compiled modules to start quickly."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("SEALWIRE_", "PYTHON"))}
    folders = [str(ROOT / name) for name in ("protocol", "relay", "client")]
    return {
        **inherited,
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": os.pathsep.join(folders),
        "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled")),
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture(scope="session")
def relay(environment: dict[str, str]) -> Iterator[Relay]:
    """A relay that is there all the time. Tests that end it start one of their own."""
    relay = Relay(environment)
    yield relay
    relay.end()


@pytest.fixture
def machine(tmp_path: Path, environment: dict[str, str]) -> Callable[[str], Machine]:
    """Makes devices by their names: each has an empty folder."""
    return lambda name: Machine(tmp_path / name, environment)


@pytest.fixture
def a(machine: Callable[[str], Machine], relay: Relay) -> Machine:
    """A device with a vault that the relay has."""
    device = machine("a")
    device.succeed("init", "--relay", relay.address, "--name", "first")
    return device


@pytest.fixture(scope="session")
def lonely(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The folder of a device whose relay is not there."""
    folder = tmp_path_factory.mktemp("lonely") / "device"
    Machine(folder, environment).succeed("init", "--relay", NOWHERE, "--wait", "0")
    return folder


@pytest.fixture
def astray(machine: Callable[[str], Machine]) -> Machine:
    """A device with a vault of its own, and a wrong address of its relay."""
    device = machine("astray")
    device.succeed("init", "--relay", NOWHERE, "--wait", "0")
    return device


@pytest.fixture
def alone(machine: Callable[[str], Machine], lonely: Path) -> Machine:
    """A device with a vault, whose relay is not there. A copy, which no relay will ever see beside another."""
    device = machine("alone")
    shutil.copytree(lonely, device.folder)
    return device
