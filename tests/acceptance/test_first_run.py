"""What the proof of the first run makes of figures and of the environment it finds."""

import pytest

from tests.acceptance.proof_first_run import EXPECTED, fresh_environment, judged, wrong_figures

RIGHT: dict[str, object] = {**EXPECTED, "relay_bytes_per_entity": 74.5}


def test_right_figures_pass() -> None:
    assert wrong_figures(RIGHT) == []
    assert judged("make demo", 0, 100.0, 240) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"converged": False},
        {"lost": 1},
        {"duplicated": None},
        {"plaintext_found": 3},
        {"canary_found": False},
        {"relay_bytes_per_entity": 120.1},
        {"relay_bytes_per_entity": None},
    ],
)
def test_a_wrong_figure_fails(wrong: dict[str, object]) -> None:
    found = wrong_figures(RIGHT | wrong)
    assert len(found) == 1
    assert next(iter(wrong)) in found[0]


def test_a_step_that_fails_or_takes_too_long_fails() -> None:
    assert judged("make test", 2, 3.0, 360) == ["`make test` ended with exit code 2 after 3.0 s"]
    assert judged("make test", None, 360.0, 360) == ["`make test` was not done within 360 s"]


def test_a_newcomer_has_no_environment_activated(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "VIRTUAL_ENV": "/v",
        "PATH": "/v/bin:/usr/bin",
        "PYTHONPATH": "/p",
        "MAKEFLAGS": "-- SHORT=1",
        "SHORT": "1",
        "SEALWIRE_RELAY": "ws://x",
        "SEALWIRE_PROOF": "mark",
        "PIP_CERT": "/c",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    fresh = fresh_environment()
    assert {name: fresh.get(name) for name in given if name in fresh} == {
        "PATH": "/usr/bin",
        "SEALWIRE_PROOF": "mark",
        "PIP_CERT": "/c",
    }
