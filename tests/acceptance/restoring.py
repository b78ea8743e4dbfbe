"""The ways in which people back a relay's database up and restore it: its own commands, pg_dump, a copied disk."""

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

import trio

from demo.processes import ROOT
from tests.faults.site import Site
from tests.support.postgres import embedded_binaries, stopped

COMMAND_S_MAX: Final = 120.0


class Way(ABC):
    """One way. `back_up` while the relay serves; `restore` while no relay runs."""

    name: str

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder

    @abstractmethod
    async def back_up(self) -> None:
        """Keep the database as it is now."""

    @abstractmethod
    async def restore(self) -> None:
        """Put the database back to what was kept."""


class OwnCommands(Way):
    """`sealwire-relay backup` and `restore`."""

    name = "own command"

    async def back_up(self) -> None:
        await run(sys.executable, "-m", "sealwire_relay", "backup", str(self._file), *self._database)

    async def restore(self) -> None:
        await run(sys.executable, "-m", "sealwire_relay", "restore", "--replace", str(self._file), *self._database)

    @property
    def _file(self) -> Path:
        return self.folder / "relay.backup"

    @property
    def _database(self) -> tuple[str, str]:
        return "--database-url", self.site.postgres.dsn()


class Dump(Way):
    """`pg_dump` and `pg_restore`, as anybody uses them."""

    name = "pg_restore"

    async def back_up(self) -> None:
        await run(self._program("pg_dump"), "--format=custom", f"--file={self._file}", self.site.postgres.dsn())

    async def restore(self) -> None:
        options = ("--clean", "--if-exists", "--single-transaction", f"--dbname={self.site.postgres.dsn()}")
        await run(self._program("pg_restore"), *options, str(self._file))

    @property
    def _file(self) -> Path:
        return self.folder / "relay.dump"

    @staticmethod
    def _program(name: str) -> str:
        binaries = embedded_binaries()
        assert binaries is not None, "the embedded Postgres is not installed"
        return str(binaries / name)


class Snapshot(Way):
    """A copy of the data folder as it is at one moment, as a disk's snapshot is: nobody writes meanwhile."""

    name = "file snapshot"

    async def back_up(self) -> None:
        with stopped(self._data):
            await run("cp", "--archive", str(self._data), str(self._copy))

    async def restore(self) -> None:
        self.site.postgres.kill()
        shutil.rmtree(self._data)
        await run("cp", "--archive", str(self._copy), str(self._data))
        await self.site.with_asyncio(self.site.postgres.start)

    @property
    def _data(self) -> Path:
        return self.site.postgres.folder / "data"

    @property
    def _copy(self) -> Path:
        return self.folder / "snapshot"


WAYS: Final[tuple[type[Way], ...]] = (OwnCommands, Dump, Snapshot)


async def run(*command: str) -> None:
    """Run a command to its end. Raises RuntimeError, with what it said, if it fails."""
    with trio.fail_after(COMMAND_S_MAX):
        done = await trio.run_process(
            command, cwd=ROOT, check=False, capture_stdout=True, stderr=subprocess.STDOUT, env=_environment()
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout.decode(errors='replace')}")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SEALWIRE_RELAY")}
