"""The command line as people and their scripts meet it: real processes, real ports, a real Postgres."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from sealwire_client import Device
from sealwire_protocol import __version__
from tests.support.certificate import make_pair
from tests.support.polling import looked_until
from tests.support.program import WAIT_S_MAX, Program, answer, failed, relay


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.embedded
def test_up_serves_until_it_is_asked_to_end(open_folder: Path) -> None:
    folder = open_folder / "data"
    with relay(folder) as program:
        told = program.ready()
        assert told["version"] == __version__
        assert told["pid"] == program.process.pid
        assert told["data"] in told["origins"]
        assert answer(f"{told['control']}/readyz") == (200, {"ready": True, "reasons": []})
        with urllib.request.urlopen(told["data"].replace("ws:", "http:") + "/livez", timeout=WAIT_S_MAX) as response:
            assert response.status == 200
        second = failed("up", "--folder", str(folder), "--port", "0", "--control-port", "0")
        assert second[0] == 3
        assert str(folder) in second[1]
        assert str(told["pid"]) in second[1]
        assert program.end(signal.SIGTERM) == 0
    with relay(folder) as program:
        program.ready()
        assert program.end(signal.SIGINT) == 130
        assert "sealwire-relay: Interrupted" in program.errors


@pytest.mark.embedded
def test_devices_dial_a_relay_that_has_a_certificate_over_tls(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(open_folder)
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))

    async def use(origin: str) -> None:
        with trio.fail_after(WAIT_S_MAX):
            async with Device.open(open_folder / "device", relay=origin) as device:
                vault = await device.create_vault("home")
                await vault.synced()

    files = ("--tls-certificate-path", str(pair.certificate), "--tls-key-path", str(pair.key))
    with relay(open_folder / "data", *files) as program:
        told = program.ready()
        assert told["data"].startswith("wss://127.0.0.1:")
        assert told["data"] in told["origins"]
        trio.run(use, told["data"])
        assert program.end(signal.SIGTERM) == 0


@pytest.mark.embedded
def test_ctrl_c_while_postgres_starts_leaves_nothing_behind(open_folder: Path) -> None:
    folder = open_folder / "data"
    with relay(folder) as program:
        program.until_said("Creating the database files")
        assert program.end(signal.SIGINT) == 130
        assert "sealwire-relay: Interrupted" in program.errors
    with relay(folder) as program:
        program.until_said("Creating the database files")
        assert program.end(signal.SIGTERM) == 143
    with relay(folder) as program:
        program.ready()
        assert program.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("module", ["click.core", "asyncpg", "uvloop"])
def test_ctrl_c_while_the_program_is_being_imported_is_quiet(module: str, open_folder: Path) -> None:
    ports = ("--port", "0", "--control-port", "0")
    program = Program("up", "--folder", str(open_folder / "data"), *ports, PYTHONPROFILEIMPORTTIME="1")
    program.until_said(f" {module}\n")
    assert program.end(signal.SIGINT) == 130
    assert "sealwire-relay: Interrupted" in program.errors


@pytest.mark.embedded
def test_standard_streams_may_be_closed(open_folder: Path) -> None:
    ports = ("--port", "0", "--control-port", "0")
    command = shlex.join([sys.executable, "-m", "sealwire_relay", "up", "--folder", str(open_folder / "data"), *ports])
    program = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command} 0<&- 1>&-"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stderr is not None
    try:
        assert any("database migrated" in line for line in program.stderr)
        program.terminate()
        program.communicate(timeout=WAIT_S_MAX)
        assert program.returncode in (0, 143)
    finally:
        program.kill()
        program.communicate()


@pytest.mark.embedded
def test_a_postgres_that_dies_is_started_again(open_folder: Path) -> None:
    folder = open_folder / "data"
    with relay(folder) as program:
        told = program.ready()
        pid_file = folder / "postgres" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        program.until_said("has ended and is started again")
        program.until_said("Postgres is back")

        def is_ready() -> bool:
            now = answer(f"{told['control']}/readyz")
            assert now[0] == 503 or now == (200, {"ready": True, "reasons": []})
            return now[0] == 200

        assert looked_until(is_ready, WAIT_S_MAX)
        assert program.end(signal.SIGTERM) == 0


def test_a_port_that_is_taken_is_said_before_anything_is_made(taken: int, open_folder: Path) -> None:
    folder = open_folder / "data"
    for option, other in (("--port", "--control-port"), ("--control-port", "--port")):
        code, said = failed("up", "--folder", str(folder), option, str(taken), other, "0")
        assert code == 3
        assert f"port {taken} on 127.0.0.1 is taken" in said
        assert f"{option}." in said
    assert not folder.exists()


def test_an_address_of_another_machine_is_refused(open_folder: Path) -> None:
    origin = ("--origin", "wss://relay.example.org")
    code, said = failed("up", "--folder", str(open_folder / "x"), "--port", "0", "--host", "192.0.2.1", *origin)
    assert code == 1
    assert "--host" in said


def test_a_folder_that_is_not_ours_is_left_alone(open_folder: Path) -> None:
    (open_folder / "diary.txt").write_text("mine")
    code, said = failed("up", "--folder", str(open_folder), "--port", "0", "--control-port", "0")
    assert code == 4
    assert str(open_folder) in said
    assert [path.name for path in open_folder.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("command", ["serve", "migrate", "clean", "holds", "vaults"])
def test_a_database_that_is_not_there_is_said_without_its_password(command: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://relay:hunter2@127.0.0.1:{nobody.getsockname()[1]}/sealwire"
        ports = ("--port", "0", "--control-port", "0") if command == "serve" else ()
        program = Program(command, *ports, SEALWIRE_DATABASE_URL=url)
        code, _, errors = program.finished()
    assert code == 4
    assert "hunter2" not in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["serve"], {}, "--database-url"),
        (["migrate"], {}, "SEALWIRE_DATABASE_URL_FILE"),
        (["serve", "--database-url", "mysql://relay:hunter2@x"], {}, "postgresql://user:password@host:port/name"),
        (["up"], {"SEALWIRE_DATABASE_URL": "postgresql://relay:hunter2@x"}, "unset SEALWIRE_DATABASE_URL"),
        (["clean"], {}, "--database-url"),
        (["holds"], {}, "--database-url"),
        (["holds", "--cutoff-days", "-1"], {}, "--cutoff-days is -1"),
        (["clean", "--all", "--watch"], {}, "--all"),
        (["clean", "--watch", "--clean-seconds", "0"], {}, "--clean-seconds is 0"),
        (["up", "--port", "x"], {}, "--port is 'x'"),
        (["up"], {"SEALWIRE_PROT": "1"}, "did you mean SEALWIRE_PORT?"),
        (["up", "--host", "0.0.0.0"], {}, "--origin"),
    ],
)
def test_a_wrong_setting_is_a_usage_error(arguments: list[str], variables: dict[str, str], said: str) -> None:
    code, sentence = failed(*arguments, **variables)
    assert code == 2
    assert said in sentence
    assert "hunter2" not in sentence


def test_help_and_version() -> None:
    assert Program("--version").finished() == (0, f"sealwire-relay, version {__version__}\n", "")
    for command in ("up", "serve", "migrate", "clean", "compact", "holds", "vaults"):
        code, output, errors = Program(command, "-h").finished()
        assert (code, errors) == (0, "")
        assert "Usage: sealwire-relay " + command in output
