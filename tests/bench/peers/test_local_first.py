"""Other local-first systems, each of which is a pair of programs: here shell scripts stand in for them."""

from pathlib import Path

import pytest

from bench.harness.processes import Missing
from bench.peers import local_first

ENTRIES = {"a": "1", "b": "2"}


def _system(monkeypatch: pytest.MonkeyPatch, server: str, device: str) -> None:
    programs = {"server.mjs": server, "device.mjs": device}
    monkeypatch.setattr(local_first, "script", lambda name, system: ["/bin/sh", "-c", programs[name], name])


def test_what_its_server_holds_counts_for_each_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = """printf 0123456789 > "$1"; mv "$1" "$1.other"; echo '{"port": 1}'; cat > /dev/null"""
    device = """echo '{"id": "x", "seconds": 0.5}'"""
    _system(monkeypatch, server, device)
    found = local_first.synced("system", ENTRIES, tmp_path / "system")
    assert found == (5.0, 4.0, 4.0)


def test_a_server_that_ends_at_once_is_missing_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _system(monkeypatch, "echo a library is not there >&2", "")
    with pytest.raises(Missing, match=r"(?s)^system: .*a library is not there"):
        local_first.synced("system", ENTRIES, tmp_path / "system")


def test_a_device_that_never_says_that_it_is_done_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_first, "ANSWER_S_MAX", 1.0)
    _system(monkeypatch, """echo '{"port": 1}'; cat > /dev/null""", "exec cat")
    with pytest.raises(Missing, match=r"system: nothing came within 1 s"):
        local_first.synced("system", ENTRIES, tmp_path / "system")
