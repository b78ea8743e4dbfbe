"""What the README says of the results, between two marks: a table and plots, and nothing that was not measured."""

from collections.abc import Mapping
from typing import Any, Final

from bench.goals import GOALS, table
from demo.processes import ROOT

README: Final = ROOT / "README.md"
BEGIN: Final = "<!-- What follows is written by `make bench`. -->"
END: Final = "<!-- Until here. -->"


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all goals of the benches that have results, and their plots."""
    names = tuple(dict.fromkeys(goal.bench for goal in GOALS if goal.bench in results))
    if not names:
        return "Nothing has been measured yet.\n"
    of = results[names[0]]["machine"]
    machine = f"{of['cores']} cores of {of['processor']}, {of['memory_gib']} GiB, Linux {of['kernel']}"
    plots = " ".join(
        f"![{name}](bench/results/{name}.svg)"
        for name in names
        if (ROOT / "bench" / "results" / f"{name}.svg").exists()
    )
    return "\n\n".join(part for part in (f"On {machine}:", table(results, names), plots) if part) + "\n"


def with_report(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A page whose part between the marks is the report. Raises ValueError without them."""
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError("README.md has lost the marks between which the results of benches stand")
    return f"{before}{BEGIN}\n\n{report(results)}\n{END}{after}"


def write_report(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Bring the README up to date."""
    README.write_text(with_report(README.read_text(), results))
