"""A few seeds of what `make simulate` runs by the thousand, and proof that it can fail."""

from contextlib import ExitStack
from typing import Final

import pytest

from tests.simulation import faults
from tests.simulation.bugs import BUGS, planted
from tests.simulation.faults import FAULTS_MIN
from tests.simulation.planting import CALLS, rewritten
from tests.simulation.runner import SEEDS_MAX, hunted
from tests.simulation.seed import simulate
from tests.simulation.world import DEVICES

OPERATIONS_MIN: Final = 300
DEVICES_MIN: Final = 5
BUGS_MIN: Final = 10

FORKED: Final = (3, 5, 2)
"""Seeds without a restore: after one nobody can tell a fork from what was lost. Three of them, since a run may never
come to its end: who wants to join over one history, invited over the other, waits for ever."""

SOON: Final = 40
SOON_FOUND: Final = (
    "term_of_a_process",
    "cursor_ignored",
    "forgotten_at_once",
    "retention_ignored",
    "lost_dropped",
    "gaps_refused",
    "keys_forgotten",
    "any_key",
    "stale_dropped",
    "old_epoch",
)
"""Of the bugs in how a history is shortened, lost and given back, and in how keys change, those that are found within
so many seeds."""


def test_a_seed_holds_and_is_the_same_history_again() -> None:
    first = simulate(1)
    assert first.violation is None
    assert first.faults.total() >= FAULTS_MIN
    assert first.operations.total() >= OPERATIONS_MIN
    assert DEVICES >= DEVICES_MIN
    assert simulate(1) == first


def test_every_fault_happens() -> None:
    happened: set[str] = set()
    for seed in range(2, 30):
        found = simulate(seed)
        assert found.violation is None
        happened |= found.faults.keys()
        if happened == set(faults.ALL):
            return
    raise AssertionError(f"never happened: {set(faults.ALL) - happened}")


@pytest.mark.parametrize("name", BUGS)
def test_every_bug_can_still_be_planted(name: str) -> None:
    with planted(name):
        pass


def test_planted_bugs_are_found() -> None:
    """Seed after seed, until ten of them are; `make simulate BUGS=1` goes on until all are."""
    found: dict[str, str | None] = {}
    for name, result in hunted(BUGS, SEEDS_MAX):
        found[name] = result.violation
        if len(found) == BUGS_MIN:
            break
    assert len(found) == BUGS_MIN, found
    assert not any("nothing crashes: LookupError" in str(violation) for violation in found.values())


def test_bugs_in_what_becomes_of_lost_history_are_found() -> None:
    """Those that show in the first runs."""
    found = {name: result.violation for name, result in hunted(SOON_FOUND, SOON)}
    assert found.keys() == set(SOON_FOUND), found


def test_a_relay_that_leaves_records_out_is_reported_by_its_devices() -> None:
    """They notice it while the run goes on, long before all that they hold is compared in the end."""
    with planted("withheld"):
        violation = simulate(3).violation
    assert violation is not None
    assert violation.startswith("honest devices hold the same")


def test_a_relay_that_forks_is_reported_by_its_devices() -> None:
    """Two groups of them are shown two histories, each whole in itself. They notice when one is sent across."""
    violations: list[str] = []
    for seed in FORKED:
        with planted("forked"):
            violations.append(simulate(seed).violation or "none")
        if violations[-1].startswith("honest devices hold the same"):
            return
    raise AssertionError(violations)


def _told() -> str:
    return "as it was"


def test_it_is_known_whether_what_was_planted_is_ever_reached() -> None:
    with planted("links_skipped"):
        assert dict(CALLS) == {"Agreeing._give_back": 0}
    assert rewritten(_told, ("as it was", "changed"))() == "changed"  # type: ignore[arg-type]
    assert CALLS["_told"] == 1


def test_a_bug_whose_place_is_gone_is_told() -> None:
    with ExitStack(), pytest.raises(LookupError, match="plant the bug anew"):
        rewritten(simulate, ("what is not in it", ""))  # type: ignore[arg-type]
