import pytest

from bench.harness.result import RESULTS, kept, machine
from bench.report import BEGIN, END, README, report, with_report


def test_the_report_stands_between_the_marks_and_the_rest_of_the_page_stays() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    results = {"idle": {"machine": machine(), "ratios": {"kib_per_device": 3.5}}}
    made = with_report(page, results)
    assert made.startswith(f"before\n{BEGIN}\n\nOn ")
    assert made.endswith(f"\n\n{END}\nafter\n")
    assert "| 3.5 | ≤ 4 | met |" in made
    assert "fanout" not in made
    assert with_report(made, results) == made
    with pytest.raises(ValueError, match="lost the marks"):
        with_report("a page without marks", results)


def test_the_readme_says_what_the_results_say() -> None:
    results = {result["name"]: result for result in kept(RESULTS)}
    assert report(results) in README.read_text()
