"""`make acceptance`: the long proofs, `--only NAME` for one, `--short` for the form that CI runs.

stdout has one line per proof, a JSON object with `name`, `ok` and its figures; everything else is on stderr, at its end
those that are not ok once more.
Exit code 0 only if all are ok, 1 if one is not, 2 for a proof that does not exist, 130 when interrupted.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.acceptance.proofs import HERE, find_proofs
from tests.acceptance.runner import run_proof


def main(arguments: list[str]) -> int:
    """Run the proofs asked for, one after the other, and return the exit code."""
    options = _options(arguments)
    # Ends like a Ctrl-C, so that no proof outlives its runner.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    proofs = find_proofs(options.proofs)
    if options.only is not None:
        known = ", ".join(proof.name for proof in proofs) or "none"
        proofs = [proof for proof in proofs if proof.name == options.only]
        if not proofs:
            print(f"There is no proof named {options.only}; there are: {known}.", file=sys.stderr)
            return 2
    failed = []
    for proof in proofs:
        if options.short and not proof.short:
            print(f"{proof.name}: left out, it has no short form", file=sys.stderr)
            continue
        try:
            result = run_proof(proof, short=options.short)
        except KeyboardInterrupt:
            print(f"{proof.name}: interrupted", file=sys.stderr)
            return 130
        print(json.dumps(result), flush=True)
        if result["ok"] is not True:
            failed.append(result)
    for result in failed:
        # Once more, where it is seen: what came before may be long.
        print(f"Not proved: {json.dumps(result)}", file=sys.stderr)
    return 1 if failed else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make acceptance", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="one proof")
    parser.add_argument("--short", action="store_true", help="the form that CI runs")
    parser.add_argument("--proofs", type=Path, default=HERE, help="where the proofs are")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
