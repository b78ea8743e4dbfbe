"""What must not be in the checkout, and what every folder must have."""

import re
import tomllib
from pathlib import Path

from sealwire_protocol import __version__
from tests.house.repository import NOT_OURS, PACKAGES, ROOT, files, told

HOME = re.compile(r"/(?:home|Users)/[A-Za-z]\w*|/root/[\w.]|[A-Z]:\\Users")
"""A path in somebody's home: it is true on one machine only."""

ADDRESS = re.compile(r"https?://|--(?:extra-)?index-url|--find-links|file:")
"""What would bind a list of pinned packages to one registry."""


def homes(path: Path) -> list[str]:
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return []
    return [f"{told(path)}: {found}" for found in HOME.findall(text)]


def addresses(path: Path) -> list[str]:
    return [f"{told(path)}: {line}" for line in path.read_text().splitlines() if ADDRESS.search(line)]


def unhashed(text: str) -> list[str]:
    """Pinned packages without a hash."""
    entries = text.replace("\\\n", " ").splitlines()
    return [e.split()[0] for e in entries if e.strip() and not e.startswith("#") and "--hash=sha256:" not in e]


def test_nothing_is_true_on_one_machine_only() -> None:
    assert [line for path in files() if path != Path(__file__) for line in homes(path)] == []


def test_a_home_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("see /home/ada/notes and the home page /home")
    assert homes(path) == ["page.md: /home/ada"]


def test_versions_are_locked_in_one_way_only() -> None:
    assert [told(path) for path in files("uv.lock", "poetry.lock", "Pipfile.lock")] == []


def test_pins_carry_hashes_and_no_addresses() -> None:
    pins = list(files(".txt", below=ROOT / "requirements"))
    assert len(pins) == 4
    for pin in pins:
        assert addresses(pin) == []
        assert unhashed(pin.read_text()) == []


def test_a_pin_without_hash_or_with_an_address_is_found(tmp_path: Path) -> None:
    pin = tmp_path / "run.txt"
    pin.write_text("--index-url https://example.org\na==1 \\\n    --hash=sha256:00\nb==2\n")
    assert addresses(pin) == ["run.txt: --index-url https://example.org"]
    assert unhashed(pin.read_text()) == ["--index-url", "b==2"]


def test_tests_are_packages() -> None:
    folders = {path.parent for path in files(".py", below=ROOT / "tests")}
    assert [told(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_all_python_is_type_checked() -> None:
    checked = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"])
    top = {path.relative_to(ROOT).parts[0] for path in files(".py")}
    assert sorted(top - checked - NOT_OURS) == []


def test_packages_are_typed() -> None:
    assert [name for name, folder in PACKAGES.items() if not (folder / "py.typed").exists()] == []


def test_there_is_one_version() -> None:
    projects = {
        name: tomllib.loads((folder.parent / "pyproject.toml").read_text())["project"]
        for name, folder in PACKAGES.items()
    }
    assert {name: project["version"] for name, project in projects.items()} == dict.fromkeys(PACKAGES, __version__)
    for side in ("sealwire_relay", "sealwire_client"):
        assert f"sealwire-protocol=={__version__}" in projects[side]["dependencies"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    says = [told(path) for path in files(".py") if re.search(r"^__version__ =", path.read_text(), re.MULTILINE)]
    assert says == ["protocol/sealwire_protocol/__init__.py"]
