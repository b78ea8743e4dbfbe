"""The checkout as data, for the house tests: its files, and its Python as syntax trees."""

import ast
import functools
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "sealwire_protocol": ROOT / "protocol" / "sealwire_protocol",
    "sealwire_relay": ROOT / "relay" / "sealwire_relay",
    "sealwire_client": ROOT / "client" / "sealwire_client",
}

NOT_OURS = {".git", ".venv", "node_modules", "build", "dist", "__pycache__"}
"""Folders that hold nothing of ours; so do hidden caches, which all end alike."""


def files(*suffixes: str, below: Path = ROOT) -> Iterator[Path]:
    """Every file of the checkout below a folder, of the suffixes named or, with none, of any."""
    for folder, names, here in os.walk(below):
        names[:] = [n for n in sorted(names) if n not in NOT_OURS and not n.endswith((".egg-info", "_cache"))]
        names[:] = [n for n in names if n != ".hypothesis"]
        for name in sorted(here):
            if not suffixes or name.endswith(suffixes):
                yield Path(folder, name)


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(), str(path))


def told(path: Path) -> str:
    """A path as a message names it: from the root of the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def documentation() -> str:
    """All prose of the checkout that speaks to users, as one text."""
    pages = [ROOT / "README.md", *files(".md", below=ROOT / "docs")]
    return "\n".join(page.read_text() for page in pages)
