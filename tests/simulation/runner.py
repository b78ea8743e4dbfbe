"""The command line: runs seeds on all cores; replays one; plants bugs and says how soon they are found."""

import argparse
import itertools
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from tests.simulation import faults
from tests.simulation.bugs import BUGS, planted
from tests.simulation.faults import FAULTS_MIN
from tests.simulation.world import Result, simulate


def with_bug(name: str, seed: int) -> Result:
    """Run one seed with a planted bug."""
    with planted(name):
        return simulate(seed)


def found_within(name: str, seeds: Iterable[int]) -> tuple[int, Result] | None:
    """How many seeds it took to find a planted bug, and what was found; None: it was not."""
    for count, seed in enumerate(seeds, 1):
        result = with_bug(name, seed)
        if result.violation is not None:
            return count, result
    return None


def _hunt(name: str) -> tuple[str, tuple[int, Result] | None]:
    return name, found_within(name, itertools.islice(itertools.count(1), BUGS[name].seeds))


def _results(first: int, seeds: int) -> Iterator[Result]:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        yield from pool.imap(simulate, range(first, first + seeds))


def run_seeds(first: int, seeds: int) -> int:
    """Run seeds until one fails, and tell what happened in them. Returns how many failed: 0 or 1."""
    began, happened, operations, done, steps = time.monotonic(), Counter[str](), Counter[str](), 0, 0
    fewest = 1 << 30
    for result in _results(first, seeds):
        if result.violation is not None:
            print(f"seed {result.seed}: {result.violation}\nreplay it: make simulate SEED={result.seed}")
            return 1
        done, steps = done + 1, steps + result.steps
        fewest = min(fewest, result.faults.total())
        happened += result.faults
        operations += result.operations
    seconds = time.monotonic() - began
    print(f"{done} seeds, {steps:,} steps, no violation, {seconds:.0f} s, {done / seconds:.2f} seeds a second")
    print(f"at least {fewest} faults a seed (must be {FAULTS_MIN}); {happened.total() / done:.0f} on average:")
    for kind in faults.ALL:
        print(f"  {happened[kind]:8,}  {kind}")
    print("operations: " + ", ".join(f"{count:,} {name}" for name, count in operations.most_common()))
    return 0 if fewest >= FAULTS_MIN else 1


def replay(seed: int) -> int:
    """Run one seed twice: it must be the same history. Returns how many runs failed."""
    first, second = simulate(seed), simulate(seed)
    same = "the same history twice" if first == second else "NOT THE SAME HISTORY TWICE"
    print(f"seed {seed}: {first.violation or 'no violation'}")
    print(f"{first.steps:,} steps, {first.virtual_seconds:.0f} virtual seconds, history {first.digest}, {same}")
    return int(first.violation is not None) + int(first != second)


def hunt(names: list[str]) -> int:
    """Plant bugs, one after the other, and tell how soon each is found. Returns how many were not."""
    missed = 0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for name, found in pool.imap_unordered(_hunt, names):
            if found is None:
                missed += 1
                print(f"{name}: NOT FOUND within {BUGS[name].seeds} seeds: {BUGS[name].what}", flush=True)
            else:
                print(f"{name}: found after {found[0]} seeds: {found[1].violation}", flush=True)
    return missed


def main() -> int:
    """Parse the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--bugs", action="store_true", help="plant bugs, and find them")
    parser.add_argument("--bug", choices=BUGS, action="append", help="plant this one only")
    told = parser.parse_args()
    if told.bugs or told.bug:
        return int(hunt(told.bug or list(BUGS)) > 0)
    if told.seed is not None:
        return int(replay(told.seed) > 0)
    return run_seeds(told.first, told.seeds)
