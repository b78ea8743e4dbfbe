"""Noise over a replica's file, as a failing disk writes it."""

import random
import sqlite3
from collections.abc import Collection
from pathlib import Path

from sealwire_client.replica.database import FILE_NAME

PAGE = 4096


def pages_of(folder: Path, *tables: str) -> dict[int, tuple[str, int]]:
    """The pages of some tables: what each is, and how many rows it has."""
    connection = sqlite3.connect(folder / FILE_NAME)
    found = {}
    for table in tables:
        for page, kind, cells in connection.execute(
            "SELECT pageno, pagetype, ncell FROM dbstat WHERE name = ?", (table,)
        ):
            found[page] = (kind, cells)
    connection.close()
    return found


def overwrite(path: Path, pages: Collection[int], chance: random.Random) -> None:
    """Write noise over pages."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(chance.choice([chance.randbytes(PAGE), bytes(PAGE), b"\xff" * PAGE]))
