"""The cleaner's process beside a relay's: real processes on a real Postgres."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sealwire_protocol.ids import VaultId
from sealwire_relay import beside as module
from sealwire_relay.beside import CleanerProcess
from sealwire_relay.cleaner import Looked
from sealwire_relay.metrics import Metrics
from sealwire_relay.purging import Forgotten
from sealwire_relay.settings import Settings
from tests.relay.embedded.support import assert_gone
from tests.support.aio import asyncio_test
from tests.support.device import Device, Identity, group, record, stream_id
from tests.support.polling import looked_until
from tests.support.program import WAIT_S_MAX, Program, answer, relay

ANNA = Identity(1)
LISTED = stream_id(1)
ENTRIES = 3
VERSIONS = 8


def cleaners_of(program: Program) -> list[int]:
    """The processes of cleaners among a relay's children."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(parent) == program.process.pid and b"clean" in words:
                found.append(int(folder.name))
    return found


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that other processes bring about and do not announce."""
    assert await asyncio.to_thread(looked_until, holds, WAIT_S_MAX), "it did not come about"


def counted(control: str, name: str) -> float:
    """The value of one of a relay's metrics."""
    with urllib.request.urlopen(f"{control}/metrics", timeout=WAIT_S_MAX) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"sealwire_{name}"))


async def push_versions(device: Device) -> VaultId:
    """A stream whose few entries are overwritten again and again; its vault."""
    vault, _ = await device.create_vault()
    await device.create_stream(vault, LISTED)
    await device.subscribe(vault, LISTED)
    for version in range(1, VERSIONS + 1):
        await device.push(vault, version, group(LISTED, *[record(version, tag=entry) for entry in range(ENTRIES)]))
    return vault


@pytest.mark.embedded
@asyncio_test
async def test_a_log_shrinks_by_itself(open_folder: Path) -> None:
    with relay(open_folder / "data", "--clean-seconds", "0.2", "--clean-idle-seconds", "1") as program:
        told = program.ready()
        port, control = int(told["data"].rpartition(":")[2]), told["control"]
        async with await Device.open(port, ANNA) as anna:
            vault = await push_versions(anna)
            await until(lambda: counted(control, "cleaned_records_total") == ENTRIES * (VERSIONS - 1))
            await anna.push(vault, VERSIONS + 1, group(LISTED, record(1, tag=ENTRIES)))
            await anna.has(LISTED, ENTRIES * VERSIONS + 1)
        await until(lambda: counted(control, "dirty_streams") == 0)
        assert counted(control, "cleaned_streams_total") >= 1
        assert counted(control, "cleaned_bytes_total") > 0
        assert counted(control, "cleaner_steps_total") >= 1
        assert counted(control, "cleaner_ends_total") == 0
        assert counted(control, "purged_tombstones_total") == counted(control, "kept_tombstones") == 0
        async with await Device.open(port, ANNA) as anna:
            await anna.subscribe(vault, LISTED)
            await anna.has(LISTED, ENTRIES + 1)
            assert anna.seqs(LISTED) == list(range(ENTRIES * (VERSIONS - 1) + 1, ENTRIES * VERSIONS + 2))
        [cleaner] = cleaners_of(program)
        assert os.getpriority(os.PRIO_PROCESS, cleaner) > os.getpriority(os.PRIO_PROCESS, program.process.pid)
        assert program.end(signal.SIGTERM) == 0
        assert not lives(cleaner)
        assert "force" not in program.errors


@pytest.mark.embedded
@asyncio_test
async def test_it_is_cleaned_by_hand(open_folder: Path) -> None:
    folder = open_folder / "data"
    with relay(folder, "--clean-seconds", "0") as program:
        told = program.ready()
        async with await Device.open(int(told["data"].rpartition(":")[2]), ANNA) as anna:
            await push_versions(anna)

        def clean(*arguments: str) -> str:
            url = f"postgresql://sealwire@/sealwire?host={folder}/socket"
            code, output, errors = Program("clean", *arguments, SEALWIRE_DATABASE_URL=url).finished()
            assert (code, errors) == (0, "")
            return output

        assert clean() == (
            "Nothing was to be cleaned. 1 stream with too little to be worth it yet; --all cleans these too.\n"
        )
        said = clean("--all")
        assert said.startswith(f"Cleaned 1 stream: {ENTRIES * (VERSIONS - 1)} superseded records left out; ")
        assert f" bytes in {VERSIONS} segments before, " in said
        assert said.endswith(" bytes in 1 segment now.\n")
        assert json.loads(clean("--json"))["streams"] == 0
        assert cleaners_of(program) == []


@pytest.mark.embedded
@asyncio_test
async def test_it_ends_when_the_relay_is_killed(open_folder: Path) -> None:
    with relay(open_folder / "data", "--clean-seconds", "0.1") as program:
        program.ready()
        await until(lambda: cleaners_of(program) != [])
        [cleaner] = cleaners_of(program)
        assert program.end(signal.SIGKILL) == -signal.SIGKILL
        await asyncio.to_thread(assert_gone, cleaner)


@pytest.mark.embedded
@asyncio_test
async def test_it_is_started_again_and_the_relay_goes_on(open_folder: Path) -> None:
    with relay(open_folder / "data", "--clean-seconds", "0.1") as program:
        control = program.ready()["control"]
        await until(lambda: cleaners_of(program) != [])
        [cleaner] = cleaners_of(program)
        os.kill(cleaner, signal.SIGKILL)
        await until(lambda: not {cleaner} & set(cleaners_of(program)) and cleaners_of(program) != [])
        assert counted(control, "cleaner_ends_total") == 1
        assert answer(f"{control}/readyz")[0] == 200
        assert program.end(signal.SIGTERM) == 0
        assert "The cleaner has ended with exit status -9" in program.errors


@contextlib.asynccontextmanager
async def beside(monkeypatch: pytest.MonkeyPatch, *command: str) -> AsyncIterator[Metrics]:
    """A cleaner's process that is another program, from its start to its end."""
    monkeypatch.setattr(module, "COMMAND", command)
    monkeypatch.setattr(module, "RESTART_SECONDS_MIN", 0.01)
    metrics = Metrics()
    process = CleanerProcess(Settings(clean_seconds=0.01), "", metrics)
    process.start()
    try:
        yield metrics
    finally:
        await process.stop()
        await process.stop()


def value(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(f"sealwire_{name}") or 0.0


@pytest.mark.parametrize("command", [(sys.executable, "-c", "print('what?')"), ("/no/such/program",)])
@asyncio_test
async def test_whatever_it_is_it_is_tried_again(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    async with beside(monkeypatch, *command) as metrics:
        await until(lambda: value(metrics, "cleaner_ends_total") > 1)


@asyncio_test
async def test_one_that_does_not_end_is_ended_by_force(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "END_SECONDS_MAX", 0.1)
    step = json.dumps({"step": {"records": 7, "bytes": 1, "segments": 1, "complete": True}})
    look = json.dumps(Looked(*range(9))._asdict() | Forgotten(8, 1, 9, 1)._asdict())
    code = f"import time; print({step!r}, {look!r}, sep='\\n', flush=True); time.sleep(600)"
    async with beside(monkeypatch, sys.executable, "-c", code) as metrics:
        await until(lambda: value(metrics, "kept_tombstones") == 9)
        assert (value(metrics, "cleaned_records_total"), value(metrics, "purged_tombstones_total")) == (7, 8)
    assert "ended by force" in caplog.text


@asyncio_test
async def test_it_can_be_stopped_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, spawn = asyncio.Event(), asyncio.create_subprocess_exec

    async def begin(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
        begun.set()
        return await spawn(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", begin)
    async with beside(monkeypatch, sys.executable, "-c", "import sys; sys.stdin.read()") as metrics:
        await begun.wait()
    assert value(metrics, "cleaner_ends_total") == 0
