"""`python -m bench [--only NAME] [--short]`: runs benches one after another, keeps their results, and compares.

Exit code 1 if one did not come to its end; a goal that is missed is told, and is no failure.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.goals import table
from bench.harness.processes import environment
from bench.harness.result import kept, results_folder
from bench.report import write_report
from demo.processes import ROOT
from tests.acceptance.leftovers import MARK, Owner, end_all

BENCHES: Final = ("fanout", "append", "catchup", "latency", "idle", "storm", "growth", "bytes", "bootstrap")
LIMIT_S: Final = 1_800.0
"""For one bench: several times what the longest takes on two cores, and more than packages of all peers may take to be
installed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benches asked for."""
    there = [name for name in BENCHES if (ROOT / "bench" / f"{name}.py").exists()]
    parser = ArgumentParser(prog="bench", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--only", choices=there, metavar="NAME", help=f"one of {', '.join(there)}")
    parser.add_argument("--short", action="store_true", help="see that all of it runs; the figures say nothing")
    options = parser.parse_args(arguments)
    for word in (signal.SIGTERM, signal.SIGHUP):
        # As with Ctrl-C, what was started is ended first.
        signal.signal(word, lambda number, _: sys.exit(128 + number))
    names = (options.only,) if options.only else tuple(there)
    folder = results_folder(options.short)
    failed = [name for name in names if not run(name, folder, short=options.short)]
    results = {result["name"]: result for result in kept(folder)}
    print(table(results, names))
    for name in names:
        for line in results.get(name, {}).get("missing", ()):
            print(f"{name}: {line}")
    if not options.short:
        write_report(results)
    for name in failed:
        print(f"{name}: failed; what it printed says why", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, folder: Path, *, short: bool) -> bool:
    """Run one bench in a process group of its own, of which nothing lives afterwards. False if it failed: then an
    older result of it is gone too."""
    (folder / f"{name}.json").unlink(missing_ok=True)
    print(f"{name}: started", file=sys.stderr, flush=True)
    begun = time.monotonic()
    # Open to other users: servers that refuse to run as root run as one of them.
    scratch = Path(tempfile.mkdtemp(prefix="sealwire-bench-"))
    scratch.chmod(0o711)
    mark = uuid.uuid4().hex
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.harness.child", name, str(folder), "short" if short else "long"],
        cwd=ROOT,
        env=environment(**{MARK: mark, "TMPDIR": str(scratch)}),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
    )
    try:
        code = child.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"{name}: not done within {LIMIT_S:.0f} s", file=sys.stderr)
        code = 1
    finally:
        end_all(Owner(child.pid, mark, scratch))
        child.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{name}: {'done' if code == 0 else 'FAILED'} after {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if code == 0:
        ratios = json.loads((folder / f"{name}.json").read_text())["ratios"]
        print(f"{name}: {json.dumps(ratios)}", file=sys.stderr, flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
