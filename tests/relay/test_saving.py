"""`sealwire-relay backup` and `restore` as people run them: beside a relay or without one, and cut short anywhere."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealwire_relay.embedded import EmbeddedPostgres
from sealwire_relay.store.migrate import Phase, migrate
from sealwire_relay.store.postgres import PostgresStore
from tests.relay.store.places import PostgresPlace, make_vault, stream_write, write
from tests.support.postgres import Server, binaries_of, server
from tests.support.program import WAIT_S_MAX, Program, answer, failed, relay

VAULTS = "SELECT count(*) FROM sealwire.stream WHERE stream = 0"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server(binaries_of("embedded")) as made:
        yield made


@pytest.fixture
def place(postgres: Server) -> PostgresPlace:
    """A database with one vault in it."""

    async def prepare() -> PostgresPlace:
        made = PostgresPlace(postgres, await postgres.database(), False)
        await migrate(url(made), lambda line: None, Phase.PRE)
        await add_vault(url(made))
        return made

    return asyncio.run(prepare())


def url(place: PostgresPlace) -> str:
    return place.server.dsn(place.database)


async def add_vault(dsn: str) -> None:
    """A vault with one stream, in which there is something."""
    store = PostgresStore(dsn)
    await store.open()
    term = await store.open_term()
    vault = await make_vault(store, term)
    assert await store.append([write(vault, term, [stream_write(vault.stream, 0, bytes(100_000))])]) == [True]
    await store.close()


def done(*arguments: str, **variables: str) -> dict[str, Any]:
    """What a command that succeeds tells as JSON."""
    code, output, errors = Program(*arguments, "--json", **variables).finished()
    assert code == 0, errors
    told: dict[str, Any] = json.loads(output)
    return told


def child(first: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process in which something else is done first."""
    program = f"{first}\nfrom sealwire_relay.cli import main\nmain()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S_MAX)


@pytest.mark.embedded
def test_a_relays_folder_is_backed_up_while_it_serves_and_restored_when_it_does_not(open_folder: Path) -> None:
    folder, file, later = open_folder / "data", open_folder / "a.backup", open_folder / "later.backup"
    dsn = EmbeddedPostgres(folder).address_of_other
    with relay(folder) as program:
        told = program.ready()
        asyncio.run(add_vault(dsn))
        saved = done("backup", str(file), "--folder", str(folder))
        assert (saved["vaults"], saved["streams"], saved["heads"]) == (1, 2, 100_002)
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.stat().st_size == saved["bytes"]
        assert answer(f"{told['control']}/readyz") == (200, {"ready": True, "reasons": []})
        asyncio.run(add_vault(dsn))
        code, said = failed("restore", str(file), "--folder", str(folder), "--replace")
        assert (code, f"process id {program.process.pid}" in said) == (3, True)
        assert program.end(signal.SIGTERM) == 0
    assert done("backup", str(later), "--folder", str(folder))["vaults"] == 2
    code, said = failed("restore", str(file), "--folder", str(folder))
    assert (code, "2 vaults in 4 streams" in said) == (4, True)
    restored = done("restore", str(file), "--folder", str(folder), "--replace")
    assert restored["thrown_away"]["vaults"] == 2
    assert restored["restored"]["term"] == restored["thrown_away"]["term"] + 1
    assert done("restore", str(later), "--folder", str(open_folder / "new"))["restored"]["vaults"] == 2
    with relay(folder) as program:
        program.ready()
        assert done("backup", str(open_folder / "last.backup"), "--folder", str(folder))["vaults"] == 1
        assert program.end(signal.SIGTERM) == 0


@pytest.mark.embedded
def test_a_folder_whose_path_is_too_long_for_a_socket_is_backed_up_beside_its_relay(open_folder: Path) -> None:
    folder = open_folder / ("long" * 30)
    with relay(folder) as program:
        program.ready()
        assert done("backup", str(open_folder / "a.backup"), "--folder", str(folder))["vaults"] == 0
        assert program.end(signal.SIGTERM) == 0


@pytest.mark.embedded
def test_what_was_backed_up_is_told_and_can_be_checked_without_a_database(place: PostgresPlace, tmp_path: Path) -> None:
    file = tmp_path / "a.backup"
    code, output, errors = Program("backup", str(file), SEALWIRE_DATABASE_URL=url(place)).finished()
    assert (code, errors) == (0, "")
    assert output == f"Backed up 1 vault in 2 streams (heads: 100,002 in all) under term 1, to {file}.\n"
    code, output, _ = Program("restore", "--check", str(file)).finished()
    assert code == 0
    assert output.startswith(f"{file} is whole: 1 vault in 2 streams (heads: 100,002 in all) under term 1, as of 20")
    checked = done("restore", "--check", str(file))
    assert checked["rows"]["member"] == 2
    assert checked["bytes"] == file.stat().st_size
    assert list(tmp_path.iterdir()) == [file]
    other = asyncio.run(place.server.database())
    code, output, _ = Program("restore", str(file), SEALWIRE_DATABASE_URL=place.server.dsn(other)).finished()
    assert (code, output.startswith("Restored 1 vault in 2 streams")) == (0, True)
    assert "Thrown away" not in output
    code, output, _ = Program("restore", str(file), "--replace", SEALWIRE_DATABASE_URL=url(place)).finished()
    assert (code, "Thrown away: 1 vault in 2 streams" in output) == (0, True)
    assert asyncio.run(place.server.run(VAULTS, other)) == [{"count": 1}]


@pytest.mark.embedded
def test_stdout_takes_a_backup_and_the_word_about_it_goes_to_stderr(place: PostgresPlace, tmp_path: Path) -> None:
    file = tmp_path / "a.backup"
    command = [sys.executable, "-m", "sealwire_relay", "backup", "-", "--database-url", url(place)]
    with file.open("wb") as opened:
        ended = subprocess.run(command, stdout=opened, stderr=subprocess.PIPE, text=True, check=True)
    assert ended.stderr.startswith("Backed up 1 vault")
    assert done("restore", "--check", str(file))["vaults"] == 1
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "sealwire-relay: The backup cannot be written to stdout (No space left on device): make room or mend that, or "
        "choose another place.\n"
    )


@pytest.mark.embedded
def test_no_file_is_written_over(place: PostgresPlace, tmp_path: Path) -> None:
    file = tmp_path / "a.backup"
    file.write_text("mine")
    code, said = failed("backup", str(file), SEALWIRE_DATABASE_URL=url(place))
    assert (code, "choose another name" in said, file.read_text()) == (1, True, "mine")
    file.unlink()
    # Somebody else makes one of that name meanwhile.
    first = f"from sealwire_relay import saving\nsaving._sync = lambda *_: open({str(file)!r}, 'w').close()"
    ended = child(first, "backup", str(file), "--database-url", url(place))
    assert (ended.returncode, "choose another name" in ended.stderr) == (1, True)
    assert (list(tmp_path.iterdir()), file.read_bytes()) == ([file], b"")


@pytest.mark.embedded
@pytest.mark.parametrize(
    "moment", ["backupfile.BackupWriter.end_table", "saving._sync", "saving._read_through", "saving._publish"]
)
def test_a_kill_in_the_midst_leaves_no_file_of_that_name(place: PostgresPlace, tmp_path: Path, moment: str) -> None:
    file = tmp_path / "a.backup"
    first = f"import os\nfrom sealwire_relay import backupfile, saving\n{moment} = lambda *_: os.kill(os.getpid(), 9)"
    assert child(first, "backup", str(file), "--database-url", url(place)).returncode == -signal.SIGKILL
    assert not file.exists()
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".a.backup.")
    assert left.name.endswith(".unfinished")
    assert done("backup", str(file), SEALWIRE_DATABASE_URL=url(place))["vaults"] == 1


@pytest.mark.embedded
def test_a_file_that_cannot_grow_any_more_leaves_nothing(place: PostgresPlace, tmp_path: Path) -> None:
    first = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    ended = child(first, "backup", str(tmp_path / "a.backup"), "--database-url", url(place))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "make room or mend that, or choose another place" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.embedded
def test_a_damaged_file_is_found_before_the_database_is_touched(place: PostgresPlace, tmp_path: Path) -> None:
    file = tmp_path / "a.backup"
    done("backup", str(file), SEALWIRE_DATABASE_URL=url(place))
    data = file.read_bytes()
    for broken in (data[:-40], data[:50_000] + bytes([data[50_000] ^ 1]) + data[50_001:], b""):
        file.write_bytes(broken)
        for arguments in (("--check",), ("--replace", "--database-url", "postgresql://nobody@/nowhere")):
            code, said = failed("restore", str(file), *arguments)
            assert (code, "use another copy" in said) == (1, True)


@pytest.mark.embedded
def test_ctrl_c_in_the_midst_of_a_restore_changes_nothing(place: PostgresPlace, tmp_path: Path) -> None:
    file = tmp_path / "a.backup"
    done("backup", str(file), SEALWIRE_DATABASE_URL=url(place))
    first = (
        "import os, signal\nfrom sealwire_relay.backupfile import BackupReader as R\nold = R.finish\n"
        "def finish(self):\n    done.append(1)\n    len(done) == 2 and os.kill(os.getpid(), signal.SIGINT)\n"
        "    return old(self)\ndone = []\nR.finish = finish"
    )
    asyncio.run(add_vault(url(place)))
    ended = child(first, "restore", str(file), "--replace", "--database-url", url(place))
    assert (ended.returncode, "Interrupted" in ended.stderr) == (130, True)
    assert asyncio.run(place.server.run(VAULTS, place.database)) == [{"count": 2}]


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    code, said = failed("backup", str(tmp_path / "a"), "--folder", str(tmp_path / "none"))
    assert (code, "There is no database in" in said, "--database-url" in said) == (1, True, True)
    assert list(tmp_path.iterdir()) == []
    code, said = failed("backup", str(tmp_path / "none" / "a"), "--database-url", "postgresql://nobody@/nowhere")
    assert (code, "No such file or directory" in said) == (1, True)
    code, said = failed("restore", str(tmp_path / "a"))
    assert (code, "name a backup's file" in said) == (1, True)
    code, said = failed("restore", "/dev/null", "--check", "--replace")
    assert (code, "leave one of them out" in said) == (2, True)
    code, said = failed("restore", str(Path(__file__)), "--check")
    assert (code, "is not a backup" in said) == (1, True)
