"""Tests do not sleep by the real clock, save in the places that are named here, each with its reason.

Who sleeps so that something may happen sleeps too short on a busy machine and too long on any other: there is an event
to wait for, or time is virtual.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.repository import ROOT, files, parsed, told

SLEEPS = {"asyncio.sleep", "time.sleep", "trio.sleep", "trio.sleep_until"}
"""But for those of zero seconds, which are a turn of the loop."""

QUIET = "trio.testing.wait_all_tasks_blocked"
"""With an argument it waits so long for real, under a virtual clock too."""

VIRTUAL = "tests.support.virtual.virtual"
"""What makes a test one under a virtual clock. What such tests have in common calls `pass_time`."""

UNTOLD = "another process brings it about, and does not tell"
PACE = "it is the pace of what is proved, or how often it is measured"
CLOCK = "the clock is a virtual one"

MAY_SLEEP = {
    "tests/simulation": CLOCK,
    "tests/support/virtual.py: pass_time": CLOCK,
    "tests/support/polling.py: looked_until": UNTOLD,
    "tests/support/polling.py: asked_until": UNTOLD,
    "tests/acceptance/proof_faults.py: Faults._lose_outcomes": UNTOLD,
    "tests/acceptance/proof_outage.py: Outage._watch": UNTOLD,
    "tests/acceptance/proof_overlap.py: read_some": UNTOLD,
    "tests/acceptance/proof_strangers.py: gone": UNTOLD,
    "tests/acceptance/cleaned_away.py: forget_deletions": "what was deleted has to grow old, by Postgres' clock",
    "tests/acceptance/cleaning.py: _watch": PACE,
    "tests/acceptance/cleaning.py: Pushes.during": PACE,
    "tests/acceptance/proof_compaction.py: Story.quiet": PACE,
    "tests/acceptance/proof_killed.py: prove": PACE,
    "tests/acceptance/proof_live.py: told": PACE,
    "tests/acceptance/proof_strangers.py: sample": PACE,
    "tests/acceptance/proof_strangers.py: edit": PACE,
    "tests/acceptance/proof_strangers.py: idle_rate": PACE,
    "tests/acceptance/proof_transfer.py: Reader._look_often": PACE,
    "tests/acceptance/transferring.py: until_made": PACE,
    "tests/faults/devices.py: stay_online": PACE,
    "tests/faults/editor.py: main": PACE,
    "tests/faults/trouble.py: trouble": PACE,
}


def meanings(tree: ast.Module) -> dict[str, str]:
    """What the imported names of a module stand for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def meaning(node: ast.AST, names: dict[str, str]) -> str:
    """What a name, or an attribute of a module, stands for; empty for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute) and (module := meaning(node.value, names)):
        return f"{module}.{node.attr}"
    return ""


def is_turn(call: ast.Call) -> bool:
    """Whether it is called with nothing but a zero."""
    return not call.keywords and [ast.unparse(argument) for argument in call.args] == ["0"]


def sleeps(path: Path) -> list[str]:
    """Where a module sleeps, or has somebody sleep, by what may be the real clock."""
    names = meanings(parsed(path))

    def within(node: ast.AST, place: tuple[str, ...], virtual: bool) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            virtual = virtual or any(meaning(each, names) == VIRTUAL for each in node.decorator_list)
            place = (*place, node.name)
        rests = isinstance(node, ast.Call) and (node.args or node.keywords) and meaning(node.func, names) == QUIET
        if rests or (meaning(node, names) in SLEEPS and not virtual):
            yield f"{told(path)}: {'.'.join(place)}"
        for child in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.Call) and child is node.func and is_turn(node)):
                yield from within(child, place, virtual)

    return [*within(parsed(path), (), virtual=False)]


def reason(place: str) -> str | None:
    """Why there may be slept in a place; None: there may not."""
    return next((why for where, why in MAY_SLEEP.items() if place == where or place.startswith(where + "/")), None)


def test_no_test_sleeps() -> None:
    found = [place for path in files(".py", below=ROOT / "tests") for place in sleeps(path)]
    assert [place for place in found if reason(place) is None] == []
    unused = [where for where in MAY_SLEEP if not any(each == where or each.startswith(where + "/") for each in found)]
    assert unused == [], "where nobody sleeps"


def test_a_sleep_is_found_and_virtual_time_is_not(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("""
import asyncio, time as clock
from tests.support.virtual import virtual
from trio import sleep
import trio.testing

@virtual
async def test_virtual():
    async def inner(): await trio.sleep(1)
    await trio.testing.wait_all_tasks_blocked()

@virtual
async def test_quiet():
    await trio.testing.wait_all_tasks_blocked(0.1)

class Some:
    async def there(self): await trio.sleep(1)

async def turns(nursery, sleepy):
    await trio.sleep(0)
    await trio.sleep_forever()
    await sleepy.sleep(1)
    nursery.start_soon(asyncio.sleep, 0)

def test_real():
    clock.sleep(0.1)
    async def inner(): await sleep(2)
""")
    found = ["test_quiet", "Some.there", "turns", "test_real", "test_real.inner"]
    assert sleeps(path) == [f"some.py: {place}" for place in found]
