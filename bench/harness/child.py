"""One bench in a process of its own: `python -m bench.harness.child NAME FOLDER long|short`.

Keeps what it finds as FOLDER/NAME.json, and a plot of it beside.
"""

import importlib
import json
import sys
from pathlib import Path

from bench.goals import judged
from bench.harness.plot import draw
from bench.harness.result import Result


def main(name: str, folder: Path, *, short: bool) -> None:
    """Run one bench; an exception is for the caller to see in the exit code."""
    result: Result = importlib.import_module(f"bench.{name}").run(short)
    told = judged(result.told(name))
    if result.bars is not None:
        draw(result.bars, folder / name)
    (folder / f"{name}.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), short=sys.argv[3] == "short")
