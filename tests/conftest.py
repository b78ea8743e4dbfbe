"""What holds for every test: under `CI=true` a skipped test is a failed one, named with its reason."""

import os
from collections.abc import Generator

import pytest

CI = os.environ.get("CI", "").lower() == "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.longrepr = _sentence(report.nodeid, report.longrepr)
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI and report.skipped:
        report.longrepr = _sentence(report.nodeid, report.longrepr)
        report.outcome = "failed"
    return report


def _sentence(nodeid: str, longrepr: object) -> str:
    reason = longrepr[2] if isinstance(longrepr, tuple) else longrepr
    return f"{nodeid} was skipped, which CI does not allow: {reason}"
