"""What is missing on a machine is named in one sentence, and ends the set-up with a non-zero exit code."""

import http.server
import os
import runpy
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.repository import PACKAGES, ROOT

NO_VENV = "sys.modules['ensurepip'] = None"
TOO_OLD = "sys.version_info = (3, 8, 1)"
RUN_S_MAX = 250
"""Making an environment with pip in it is the most of it."""

NOWHERE = "http://127.0.0.1:9/simple"
"""A registry that nobody keeps: connections to this port are refused at once."""

OWN_AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBmDCCAT2gAwIBAgIUJgk5/iCnq7Qfpt9IJ5xCMcdXPE4wCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVcmVnaXN0cnkgb2YgdGhlIHRlc3RzMCAXDTIwMDEwMTAwMDAw
MFoYDzIxMjAwMTAxMDAwMDAwWjAgMR4wHAYDVQQDDBVyZWdpc3RyeSBvZiB0aGUg
dGVzdHMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATDd/rUKZx7LrOx6vIlbeEc
n5PgOYUgYj2CoYTdkicl/gI6kj5lT0y0kUznoc8YIn07I7zHxgRgiO6np7xnQn34
o1MwUTAPBgNVHREECDAGhwR/AAABMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/
BAQDAgKEMB0GA1UdDgQWBBQho7s5C0Yvw8qgMtzBPktQE3RMazAKBggqhkjOPQQD
AgNJADBGAiEAzCmADag4COvTOJZFHFUrYRq4F3F8lDzBes1pM4XOg/0CIQCBtvNo
arzjEobsCjisVwwcxchFAAY+Xw0qnFt5Gxysmg==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgaWAw9HMeS9dNOP+z
C0YRVF7AzkKwnI+6xiqgI4OvZwqhRANCAATDd/rUKZx7LrOx6vIlbeEcn5PgOYUg
Yj2CoYTdkicl/gI6kj5lT0y0kUznoc8YIn07I7zHxgRgiO6np7xnQn34
-----END PRIVATE KEY-----
"""
"""What a registry shows that no machine trusts by itself: for 127.0.0.1, signed by its own key, until 2120."""


def checkout(folder: Path) -> Path:
    """A copy of what the set-up reads, without an environment."""
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(ROOT / "Makefile", folder)
    for package in PACKAGES.values():
        (folder / package.parent.name).mkdir()
        shutil.copy(package.parent / "pyproject.toml", folder / package.parent.name)
    return folder


def run(command: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "MAKE"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def set_up(folder: Path, on_a_machine: str) -> tuple[int, str]:
    script = str(folder / "requirements" / "install.py")
    code = f"import runpy, sys; {on_a_machine}; sys.argv[1:] = ['run']; runpy.run_path({script!r}, run_name='__main__')"
    return run([sys.executable, "-c", code], folder)


def test_no_python(tmp_path: Path) -> None:
    code, said = run(["make", "demo", "PYTHON=python-that-is-not-there"], checkout(tmp_path))
    assert code != 0
    assert said.startswith("There is no python-that-is-not-there here: install Python 3.11 or newer")


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    code, said = set_up(checkout(tmp_path), TOO_OLD)
    assert code == 1
    assert "needs Python 3.11 or newer" in said
    assert said.endswith("is 3.8: name a newer one with `make PYTHON=python3.12 ...`.\n")
    assert said.count("\n") == 1


def test_no_venv_module(tmp_path: Path) -> None:
    code, said = set_up(checkout(tmp_path), NO_VENV)
    assert code == 1
    assert "comes without the venv module: install it" in said
    assert said.count("\n") == 1


def test_no_registry(tmp_path: Path) -> None:
    script = str(checkout(tmp_path) / "requirements" / "install.py")
    unreachable = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": NOWHERE, "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    code, said = run([sys.executable, script, "run"], tmp_path, **unreachable)
    assert code == 1
    assert "Could not set up the installer (uv) (is the package registry in reach?)" in said
    assert "Traceback" not in said
    assert not (tmp_path / ".venv" / ".set-up-run").exists()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """An empty registry behind a certificate of its own: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    class Refused(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Who does not trust the certificate hangs up, which is no error of this one."""

    shown = tmp_path / "shown.pem"
    shown.write_text(OWN_AUTHORITY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    with Refused(("127.0.0.1", 0), Empty) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}/simple", asked
        server.shutdown()
        thread.join()


def set_up_from(registry: str, folder: Path, **environment: str) -> tuple[int, str]:
    script = str(checkout(folder / "checkout") / "requirements" / "install.py")
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": registry, "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    own = {"SSL_CERT_FILE": "", "REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}
    return run([sys.executable, script, "run"], folder, **(own | pip | environment))


def test_a_certificate_that_nobody_trusts(tmp_path: Path, registry: tuple[str, list[str]]) -> None:
    code, said = set_up_from(registry[0], tmp_path)
    assert code == 1
    assert "Could not set up the installer (uv): the package registry shows a certificate that this machine" in said
    assert "run this again with SSL_CERT_FILE=FILE" in said
    assert registry[1] == []


def test_a_certificate_that_the_user_vouches_for(tmp_path: Path, registry: tuple[str, list[str]]) -> None:
    code, said = set_up_from(registry[0], tmp_path, SSL_CERT_FILE=str(tmp_path / "shown.pem"))
    assert code == 1
    assert "No matching distribution found for uv" in said
    assert registry[1] == ["/simple/uv/"]


def test_the_authorities_of_the_machine_are_trusted_where_it_has_some(tmp_path: Path) -> None:
    certificates = runpy.run_path(str(ROOT / "requirements" / "install.py"))["certificates"]
    none, here, empty = (tmp_path / name for name in ("none", "here", "empty"))
    here.write_text("a company's")
    empty.touch()
    everywhere = (str(none), str(empty), str(here))
    assert certificates({}, everywhere[:2]) == {}
    assert certificates({}, everywhere) == {"UV_SYSTEM_CERTS": "1", "REQUESTS_CA_BUNDLE": str(here)}
    assert certificates({"SSL_CERT_FILE": "own"}, everywhere[:2]) == {"REQUESTS_CA_BUNDLE": "own"}
    assert certificates({"UV_SYSTEM_CERTS": "0", "REQUESTS_CA_BUNDLE": "own"}, everywhere) == {}
