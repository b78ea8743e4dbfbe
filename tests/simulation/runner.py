"""The command line: runs seeds on all cores; replays one; plants bugs and says how soon they are found."""

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.pool import Pool
from typing import Final

from tests.simulation import faults
from tests.simulation.bugs import BUGS, planted
from tests.simulation.faults import FAULTS_MIN
from tests.simulation.planting import CALLS
from tests.simulation.seed import Result, simulate

SEEDS_MAX: Final = 500
"""Seeds within which every planted bug must be found."""

RUNS_TOGETHER: Final = 16
"""Runs that are handed to the cores at once while bugs are hunted: few, because what is found is not run again."""


def with_bug(name: str, seed: int) -> tuple[Result, set[str]]:
    """Run one seed with a planted bug. Returns also which of the changed functions were never called."""
    with planted(name):
        return simulate(seed), {function for function, calls in CALLS.items() if not calls}


def _pool() -> AbstractContextManager[Pool]:
    os.environ["PYTHONHASHSEED"] = "0"  # of the processes that are started: the order of sets is chance too
    return multiprocessing.get_context("spawn").Pool(os.cpu_count())


def _hunt(planting: tuple[str, int]) -> tuple[str, Result, set[str]]:
    name, seed = planting
    return name, *with_bug(name, seed)


def hunted(names: Iterable[str], seeds: int) -> Iterator[tuple[str, Result]]:
    """Planted bugs as they are found, each by the first seed that finds it: all that are missing are run with one seed
    after the other, on all cores. Raises LookupError for one that no run has ever reached."""
    missing, seed = list(names), 1
    idle: dict[str, set[str]] = {}
    with _pool() as pool:
        while missing and seed <= seeds:
            after = min(seed + max(1, RUNS_TOGETHER // len(missing)), seeds + 1)
            for name, result, uncalled in pool.imap(_hunt, [(name, n) for n in range(seed, after) for name in missing]):
                idle[name] = uncalled & idle.get(name, uncalled)
                if result.violation is not None and name in missing:
                    missing.remove(name)
                    yield name, result
            seed = after
    if unreached := {name: functions for name in missing if (functions := idle.get(name))}:
        raise LookupError(f"no run reached what was planted: {unreached}; plant it where the code goes now")


def _results(first: int, seeds: int) -> Iterator[Result]:
    with _pool() as pool:
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
    missing = set(names)
    for name, result in hunted(names, SEEDS_MAX):
        missing.remove(name)
        print(f"{name}: found after {result.seed} seeds: {result.violation}", flush=True)
    for name in missing:
        print(f"{name}: NOT FOUND within {SEEDS_MAX} seeds: {BUGS[name].what}", flush=True)
    return len(missing)


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
