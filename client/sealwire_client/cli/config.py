"""`config.json` in a device's folder: which vault the commands mean when none is named. Mode 0600, written whole."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealwire_client.cli.failures import Failure

NAME: Final = "config.json"
FORMAT: Final = 1
FILE_BYTES_MAX: Final = 65_536
"""A configuration has a few hundred bytes; a larger file is something else."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the first `init` or `join` in a folder has settled."""

    relay: str | None = None
    vault: str | None = None
    """The default vault's id, in hex: names can be given twice."""


def read(folder: Path) -> Config:
    """The configuration of a folder; empty if there is none. Raises Failure if it is damaged."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(FILE_BYTES_MAX))
        if fields["sealwire_config"] != FORMAT:
            raise Failure(f"{path} was written by a newer Sealwire: it was left as it is; update this program.")
        relay, vault = fields.get("relay"), fields.get("vault")
        if not isinstance(relay, str | None) or not isinstance(vault, str | None):
            raise TypeError
    except FileNotFoundError:
        return Config()
    except (ValueError, LookupError, TypeError):
        raise Failure(
            f"{path} is damaged: nothing was changed; move it away, and name the vault with --vault.", "config"
        ) from None
    return Config(relay, vault)


def write(folder: Path, config: Config) -> None:
    """Replace the configuration, durably and as a whole."""
    path, draft = folder / NAME, folder / f".{NAME}.{os.getpid()}.new"
    fields = {"sealwire_config": FORMAT, "relay": config.relay, "vault": config.vault}
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(fields, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
