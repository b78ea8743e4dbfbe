"""What a bench has found, and the file that it is kept in."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.harness.processes import BUILD
from demo.processes import ROOT

RESULTS: Final = ROOT / "bench" / "results"
RESULTS_SHORT: Final = BUILD / "results"

Figures = dict[str, Any]


@dataclass
class Bars:
    """What the plot of a bench shows: bars by name, ours first and marked. `unit` says what they measure."""

    title: str
    unit: str
    bars: Mapping[str, float]
    ours: str = "Sealwire"


@dataclass
class Result:
    """What a bench returns. A figure is a number, or the spread of one over rounds, `{"median": …, …}`.

    `ours`, and each peer and each yardstick by its name, hold figures. `ratios` has those keys of bench.goals that
    could be measured; what could not is in `missing`, with why. `settings` says how everything was set, whether it
    writes to disk before it answers, and its version.
    """

    ours: Figures = field(default_factory=dict)
    peers: dict[str, Figures] = field(default_factory=dict)
    yardsticks: dict[str, Figures] = field(default_factory=dict)
    ratios: dict[str, float | str] = field(default_factory=dict)
    settings: Figures = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    bars: Bars | None = None

    def told(self, name: str) -> dict[str, Any]:
        """The object that is kept: exactly these keys."""
        return {
            "name": name,
            "machine": machine(),
            "commit": commit(),
            "ours": self.ours,
            "peers": self.peers,
            "yardsticks": self.yardsticks,
            "ratios": self.ratios,
            "settings": self.settings,
            "missing": self.missing,
        }


def figure_at(result: Mapping[str, Any], path: str) -> float | None:
    """The figure, or its median, that a path such as `peers.redis_streams.records_per_s` leads to, if there is one."""
    found: Any = result
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping):
        found = found.get("median")
    return float(found) if isinstance(found, int | float) else None


def results_folder(short: bool) -> Path:
    """Where results are kept: those of short runs say nothing, and stay out of the repository."""
    folder = RESULTS_SHORT if short else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def machine() -> dict[str, object]:
    """What the figures depend on; nothing that names the machine."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _after(Path("/proc/cpuinfo"), "model name"),
        "memory_gib": round(int(_after(Path("/proc/meminfo"), "MemTotal").split()[0]) / 1024**2, 1),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def commit() -> str:
    """What was measured; `-dirty` if that is not exactly what stands there, but for what benches write."""
    there = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!README.md", ":!bench/results")
    return f"{there}-dirty" if changed else there or "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _after(path: Path, name: str) -> str:
    """What a line of this name says in one of the kernel's files."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"
