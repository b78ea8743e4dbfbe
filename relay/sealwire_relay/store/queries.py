"""The named queries of `sql/queries/`, read once. Each begins with `-- name: it` and says what it does."""

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

SQL: Final = files("sealwire_relay.store") / "sql"

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def named_queries(text: str) -> Iterator[tuple[str, str]]:
    """Name and SQL, comments included, of each query in a file."""
    before, *parts = _NAME.split(text)
    if before.strip():
        raise ValueError("a file of queries begins with something that has no name")
    for name, sql in zip(parts[::2], parts[1::2], strict=True):
        yield name, sql.strip()


def _read(folder: Traversable) -> dict[str, str]:
    queries: dict[str, str] = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.name.endswith(".sql"):
            for name, sql in named_queries(path.read_text(encoding="utf-8")):
                if name in queries:
                    raise ValueError(f"two queries are named {name}")
                queries[name] = sql
    return queries


QUERIES: Final = _read(SQL / "queries")
