"""The long proofs as the runner sees them: which there are, and how long each may take.

A proof's constants are read from its source rather than by importing it, so that a proof that cannot even be
imported fails by itself and not the run of all.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PREFIX = "proof_"


@dataclass(frozen=True, slots=True)
class Proof:
    """One module `proof_NAME.py`.

    `limit_s` and `limit_short_s` are the seconds after which the long and the short form count as failed;
    `short` says whether there is a short form.
    """

    name: str
    path: Path
    limit_s: float
    limit_short_s: float
    short: bool


class ProofUnusable(Exception):
    """A proof's module cannot be read: it must state LIMIT_S, in seconds, as a plain number."""


def find_proofs(folder: Path = HERE) -> list[Proof]:
    """All proofs of a folder, by name. Raises `ProofUnusable` for one that states no limit."""
    return [_read(path) for path in sorted(folder.glob(f"{PREFIX}*.py"))]


def _read(path: Path) -> Proof:
    stated: dict[str, object] = {}
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if isinstance(value, ast.Constant):
            stated.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    limit = stated.get("LIMIT_S")
    if not isinstance(limit, int | float):
        raise ProofUnusable(f"{path} states no LIMIT_S, the seconds after which it counts as failed.")
    short_limit = stated.get("LIMIT_SHORT_S", limit)
    return Proof(
        name=path.stem.removeprefix(PREFIX),
        path=path,
        limit_s=float(limit),
        limit_short_s=float(short_limit) if isinstance(short_limit, int | float) else float(limit),
        short=stated.get("SHORT", True) is not False,
    )
