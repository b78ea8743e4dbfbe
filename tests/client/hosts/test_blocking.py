"""What is particular to plain programs: threads, interruptions, and how such a program ends."""

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealwire_client import ReplicaClosedError, latest
from sealwire_client.blocking import Collection, Device, Vault
from tests.client.hosts.test_aio import BugError, failing, threads
from tests.client.hosts.test_everywhere import NOWHERE, Todo
from tests.client.realrelay import RealRelay

SECONDS_MAX = 120.0
"""For other processes: only a test that fails waits so long."""

APP = """
import signal, sys, threading
from sealwire_client import latest
from sealwire_client.blocking import Device

signal.signal(signal.SIGINT, signal.default_int_handler)  # who started this may ignore it
block = Device.open(sys.argv[1], relay="ws://127.0.0.1:9")
device = block.__enter__()
home = device.create_vault("home")
notes = home.collection("notes", dict, policy=latest())
notes.put("x", {"text": "kept"})
"""


@contextmanager
def todos(folder: Path) -> Iterator[tuple[Vault, Collection[Todo]]]:
    """A collection of a device whose relay is not there."""
    with Device.open(folder, relay=NOWHERE) as device:
        home = device.create_vault("home")
        yield home, home.collection("todos", Todo, policy=latest())


def test_all_threads_of_a_program_use_one_device(tmp_path: Path) -> None:
    with todos(tmp_path) as (home, notes):
        failed: list[BaseException] = []

        def work(name: int) -> None:
            try:
                for number in range(20):
                    with home.transaction():
                        notes.put(f"{name} {number}", Todo("made"))
                        assert notes.get(f"{name} {number}") == Todo("made")
                    assert notes.get(f"{name} {number}") == Todo("made")
                    assert home.select("SELECT count(*) FROM todos WHERE key = ?", [f"{name} {number}"]).rows == [(1,)]
            except BaseException as error:
                failed.append(error)

        workers = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert (failed, len(notes)) == ([], 160)
    assert threads() == set()


def test_what_is_put_may_come_from_what_belongs_to_the_calling_thread(tmp_path: Path) -> None:
    other = sqlite3.connect(":memory:")
    rows = other.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500) SELECT i FROM n")
    with todos(tmp_path) as (home, notes):
        assert notes.put_many((str(row[0]), Todo("copied", row[0])) for row in rows) == 500
        with home.transaction():
            assert notes.put_many((key, Todo("seen again")) for key, _ in notes.items()) == 500
        assert {todo.text for _, todo in notes.items()} == {"seen again"}
    other.close()


def test_a_device_that_fails_is_told_to_whoever_calls_it_and_by_its_block(tmp_path: Path) -> None:
    def app() -> None:
        with Device.open(tmp_path, relay=NOWHERE, dialler=failing) as device:
            home = device.create_vault("home")
            with pytest.raises(BugError):
                home.synced()
            with pytest.raises((BugError, ReplicaClosedError)):
                home.status()

    with pytest.raises(BugError):
        app()
    assert threads() == set()


def test_what_an_apps_own_callbacks_raise_comes_out(tmp_path: Path, relay: RealRelay) -> None:
    class OwnError(Exception):
        pass

    def agree(code: str, name: str) -> bool:
        raise OwnError

    with Device.open(tmp_path / "a", relay=relay.origin) as device, Device.open(tmp_path / "b") as other:
        home = device.create_vault("home")
        invite = home.invite(confirm=True)

        def join() -> None:
            with pytest.raises(ReplicaClosedError):  # nobody answers any more
                other.join(invite.link, show_code=lambda _: None)

        joining = threading.Thread(target=join)
        joining.start()
        with pytest.raises(OwnError):
            invite.joined(agree)
    joining.join()


def test_a_query_that_takes_long_does_not_keep_others_waiting_nor_the_end(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    raised: list[BaseException] = []

    def look() -> None:
        try:
            home.select(endless)
        except BaseException as error:
            raised.append(error)

    with todos(tmp_path) as (home, notes):
        looking = threading.Thread(target=look)
        looking.start()
        notes.put("x", Todo("read meanwhile"))
        assert notes.get("x") == Todo("read meanwhile")
    looking.join()
    assert [type(error) for error in raised] == [ReplicaClosedError]


def run(app: str, folder: Path) -> "subprocess.Popen[str]":
    """A program of its own, whose device is in this folder."""
    return subprocess.Popen(
        [sys.executable, "-c", APP + app, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kept(folder: Path) -> object:
    """What the program has put."""
    with Device.open(folder, repairs=False) as device:
        return device.vault("home").collection("notes", dict, policy=latest()).get("x")


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError"])
def test_a_program_that_ends_with_its_device_open_ends(tmp_path: Path, end: str) -> None:
    with run(end, tmp_path) as program:
        _, errors = program.communicate(timeout=SECONDS_MAX)
    assert program.returncode == {"": 0, "sys.exit(3)": 3, "raise ValueError": 1}[end]
    assert ("ValueError" in errors) == ("ValueError" in end)
    assert "Fatal" not in errors and "Warning" not in errors and "trio" not in errors
    assert kept(tmp_path) == {"text": "kept"}


def test_a_program_that_is_interrupted_closes_its_device(tmp_path: Path) -> None:
    app = """
try:
    try:
        print("waiting", flush=True)
        home.synced()
    finally:
        notes.put("x", {"text": "last words"})
        block.__exit__(*sys.exc_info())
        print([thread.name for thread in threading.enumerate()], flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with run(app, tmp_path) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "waiting\n"
        program.send_signal(signal.SIGINT)
        told, errors = program.communicate(timeout=SECONDS_MAX)
    assert (told, errors, program.returncode) == ("['MainThread']\ninterrupted\n", "", 0)
    assert kept(tmp_path) == {"text": "last words"}
