"""What holds for every test: under `CI=true` a skipped test is a failed one, named with its reason."""

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

CI = os.environ.get("CI", "").lower() == "true"

# How fast examples are made says how busy the machine is, and nothing about what is tested.
settings.register_profile("sealwire", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("sealwire")


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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder with a short path that other users can reach into, which they cannot with `tmp_path`.

    For servers that hand their work to another user when they are started by root, and for unix sockets, whose
    paths may have some 100 bytes only.
    """
    with tempfile.TemporaryDirectory(prefix="sealwire-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def _sentence(nodeid: str, longrepr: object) -> str:
    reason = longrepr[2] if isinstance(longrepr, tuple) else longrepr
    return f"{nodeid} was skipped, which CI does not allow: {reason}"
