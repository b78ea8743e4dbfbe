"""One proof in a process of its own: `python -m tests.acceptance.child PROOF RESULT long|short`.

What the proof prints goes to stderr, so that stdout stays the runner's; its figures go to the file RESULT.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path


def main(proof: Path, result: Path, *, short: bool) -> None:
    """Run one proof and write its figures; an exception is for the runner to see in the exit code."""
    os.dup2(2, 1)
    spec = importlib.util.spec_from_file_location(proof.stem, proof)
    assert spec is not None and spec.loader is not None, f"{proof} is no module"
    module = importlib.util.module_from_spec(spec)
    sys.modules[proof.stem] = module
    spec.loader.exec_module(module)
    result.write_text(json.dumps(module.run(short)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), short=sys.argv[3] == "short")
