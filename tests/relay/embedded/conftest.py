"""Data folders for the tests: an empty place, and copies of one whose cluster was created once."""

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealwire_relay.embedded import EmbeddedPostgres


@pytest.fixture(scope="package")
def created_folder() -> Iterator[Path]:
    """A data folder with a complete cluster, at rest. Not to be started: copy it."""

    async def create(folder: Path) -> None:
        postgres = EmbeddedPostgres(folder)
        await postgres.start()
        await postgres.stop()

    with tempfile.TemporaryDirectory(prefix="sealwire-") as parent:
        Path(parent).chmod(0o711)
        asyncio.run(create(Path(parent) / "data"))
        yield Path(parent) / "data"


@pytest.fixture
def data_folder(created_folder: Path, open_folder: Path) -> Path:
    """A data folder of the test's own with a complete cluster, at rest."""
    target = open_folder / "data"
    subprocess.run(["cp", "-a", str(created_folder), str(target)], check=True)
    return target
