"""What is offered to app developers: the page's example runs as printed, and the relay in memory does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from sealwire_client.device import Device
from sealwire_client.replica import InlineWriter, Replica, Writer
from sealwire_client.testing import MemoryRelay, fitting_writer
from sealwire_client.testing.fixtures import OpenDevice
from sealwire_client.transport import TransportError
from sealwire_protocol.limits import CREDIT_BYTES_MIN, Limits
from tests.client.party import Note, founded, in_step, joined, party, records
from tests.support.virtual import virtual

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"


def test_the_example_of_the_page_runs_as_printed(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["conftest.py", "test_notes.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    folders = [str(ROOT / name) for name in ("protocol", "client")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_page_names_everything_that_the_relay_can_do() -> None:
    public = [name for name in vars(MemoryRelay()) | vars(MemoryRelay) if not name.startswith("_")]
    inside = {"count", "do", "forget", "offer", "limits", "connections", "devices", "dial", "origin"}
    page = PAGE.read_text()
    assert [name for name in public if name not in inside and f"relay.{name}" not in page] == []


def test_the_package_needs_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import sealwire_client.testing; print('fine')"
    folders = os.pathsep.join(str(ROOT / name) for name in ("protocol", "client"))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": folders}, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_the_writer_fits_the_clock(tmp_path: Path) -> None:
    async def kind(name: str) -> type:
        writer = await fitting_writer(lambda: Replica(tmp_path / name))
        await writer.aclose()
        return type(writer)

    assert trio.run(kind, "real") is Writer
    assert trio.run(kind, "virtual", clock=trio.testing.MockClock(autojump_threshold=0)) is InlineWriter


@virtual
async def test_a_stopped_relay_answers_nobody_and_goes_by_one_name(memory_relay: MemoryRelay) -> None:
    for origin in (memory_relay.origin, "wss://other.test"):
        memory_relay.stop()
        with pytest.raises(TransportError, match="no relay answers"):
            async with memory_relay.dial(origin):
                pass
        if origin == memory_relay.origin:
            memory_relay.start()
            async with memory_relay.dial(origin):
                assert memory_relay.connections == 1
    assert memory_relay.connections == 0


@virtual
async def test_a_message_takes_as_long_as_was_set(memory_relay: MemoryRelay, tmp_path: Path) -> None:
    memory_relay.delay = 0.5
    async with Device.open(
        tmp_path / "a", relay=memory_relay.origin, dialler=memory_relay.dial, writer=fitting_writer
    ) as device:
        link = device.link(memory_relay.origin)
        await link.until(lambda link: link.session is not None)
        assert trio.current_time() == 2.5, "dialling, and the four messages of a login"
        assert memory_relay.carried == 4
        assert memory_relay.devices == [device.key]


@virtual
async def test_a_backup_is_a_copy(open_device: OpenDevice, memory_relay: MemoryRelay) -> None:
    async with open_device("a") as device:
        a = await founded(device)
        await a.notes.put("x", Note("one"))
        await a.vault.synced()
        backup = memory_relay.backup()
        await a.notes.put("y", Note("two"))
        await a.vault.synced()
        assert records(memory_relay, a.vault) == 2
        memory_relay.restore(backup)
        assert records(memory_relay, a.vault) == 1
        assert memory_relay.log is not backup


@virtual
async def test_little_credit_delivers_everything_all_the_same(tmp_path: Path) -> None:
    relay = MemoryRelay(limits=Limits(credit_bytes=CREDIT_BYTES_MIN))
    open_device = OpenDevice(tmp_path, relay)
    async with party(open_device, 1) as guests:
        (a,) = guests
        await a.notes.put_many((f"key {n}", Note("x" * 20_000)) for n in range(100))
        await a.vault.synced()
        async with open_device("b") as device:
            b = await joined(device, a.vault)
            await in_step([a, b])
            assert len(b.notes) == 100
