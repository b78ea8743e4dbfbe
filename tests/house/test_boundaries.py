"""Who may import whom. The contracts of pyproject.toml are run here, and shown to be able to fail."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.repository import PACKAGES, ROOT, files, imported, parsed, told

SECRETS_OF_CLIENT = {"cipher", "sealing", "keyring", "keystore", "identity"}
"""Rooms of the client that may see keys."""

SIGNATURES_OF_RELAY = {"signatures", "minting"}
"""The rooms of the relay that may do cryptography: one verifies, the other signs tokens where no relay runs. Neither
holds a key that opens a record."""

MAY_IMPORT_NACL = {
    "sealwire_protocol": set[str](),
    "sealwire_relay": SIGNATURES_OF_RELAY,
    "sealwire_client": SECRETS_OF_CLIENT,
}


def cryptography(package: str, module: Path, tree: ast.Module) -> list[str]:
    """Where a module imports cryptography without being of a room that may."""
    room = module.relative_to(PACKAGES[package]).parts[0].removesuffix(".py")
    if room in MAY_IMPORT_NACL[package]:
        return []
    lines = [line for line, name in imported(tree) if name.split(".")[0] in {"nacl", "_sodium", "cryptography"}]
    return [f"{told(module)}:{line}: cryptography outside its room" for line in lines]


def strangers(tree: ast.Module) -> list[str]:
    """What a module of the protocol imports that is neither its own nor the standard library's."""
    known = {*sys.stdlib_module_names, "sealwire_protocol"}
    return [f"line {line}: {name}" for line, name in imported(tree) if name.split(".")[0] not in known]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
        "--no-cache",
    ]
    paths = [str(folder / package.parent.relative_to(ROOT)) for package in PACKAGES.values()]
    return subprocess.run(
        [*command, "--config", str(folder / "pyproject.toml")],
        cwd=folder,
        env={"PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    """A checkout with the real contracts and three empty packages."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES.values():
        folder = tmp_path / package.relative_to(ROOT)
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    return tmp_path


def test_contracts_are_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_contracts_are_kept_by_empty_packages(miniature: Path) -> None:
    done = lint_imports(miniature)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "imports"),
    [
        ("relay/sealwire_relay/ingest.py", "sealwire_client"),
        ("client/sealwire_client/sync.py", "sealwire_relay"),
        ("protocol/sealwire_protocol/codec.py", "sealwire_relay"),
        ("client/sealwire_client/link.py", "asyncpg"),
        ("relay/sealwire_relay/ingest.py", "trio"),
        ("relay/sealwire_relay/settings.py", "sealwire_relay.serve"),
        ("client/sealwire_client/replica.py", "sealwire_client.vault"),
        ("protocol/sealwire_protocol/ids.py", "sealwire_protocol.codec"),
    ],
)
def test_a_breach_is_found(miniature: Path, module: str, imports: str) -> None:
    package, _, name = imports.partition(".")
    if name:
        (miniature / PACKAGES[package].relative_to(ROOT) / f"{name}.py").write_text("")
    (miniature / module).write_text(f"import {imports}\n")
    done = lint_imports(miniature)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "broken" in done.stdout


def test_the_protocol_needs_nothing_but_python() -> None:
    for module in files(".py", below=PACKAGES["sealwire_protocol"]):
        assert strangers(parsed(module)) == [], told(module)


def test_keys_are_seen_in_few_rooms_only() -> None:
    found = [
        line
        for package, folder in PACKAGES.items()
        for module in files(".py", below=folder)
        for line in cryptography(package, module, parsed(module))
    ]
    assert found == []


def test_a_stranger_and_stray_cryptography_are_found() -> None:
    tree = ast.parse("import struct\ndef f():\n    from nacl.signing import SigningKey\n")
    assert strangers(tree) == ["line 3: nacl.signing"]
    relay = PACKAGES["sealwire_relay"]
    assert len(cryptography("sealwire_relay", relay / "ingest.py", tree)) == 1
    assert cryptography("sealwire_relay", relay / "signatures.py", tree) == []
