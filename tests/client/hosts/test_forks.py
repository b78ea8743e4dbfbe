"""A device belongs to the process that opened it: one that was forked from it is refused, and touches nothing."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import sealwire_client
from sealwire_client import ForkedError, latest
from sealwire_client.blocking import Device
from sealwire_client.replica import Reader
from sealwire_client.replica.sharing import SharedReader
from tests.client.hosts.test_everywhere import NOWHERE, Todo


def in_a_child(work: Callable[[], None]) -> None:
    """Do something in a forked process, and wait for it. What it raises fails the test."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def files(folder: Path) -> dict[str, bytes]:
    """All that is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(calls: list[Callable[[], Any]]) -> None:
    """All of these are."""
    for call in calls:
        with pytest.raises(ForkedError, match="forked"):
            call()


def test_a_facade_is_refused_in_a_child_and_closing_it_there_touches_nothing(tmp_path: Path) -> None:
    with Device.open(tmp_path, relay=NOWHERE) as device:
        home = device.create_vault("home")
        notes = home.collection("todos", Todo, policy=latest())
        notes.put("x", Todo("kept"))
        before = files(tmp_path)
        block = Device.open(tmp_path / "another")
        block.__enter__()

        def child() -> None:
            refused([
                *(lambda: notes.get("x"), lambda: list(notes.items()), lambda: len(notes), lambda: "x" in notes),
                *(lambda: notes.put("x", Todo("lost")), lambda: home.select("SELECT * FROM todos"), home.status),
                *(lambda: device.vaults, lambda: device.create_vault("new"), device.wake, device.suspend),
            ])  # fmt: skip
            block.__exit__(None, None, None)
            assert files(tmp_path) == before
            with Device.open(tmp_path.with_name("of the child"), relay=NOWHERE) as own:
                own.create_vault("own")

        in_a_child(child)
        assert files(tmp_path) == before
        notes.put("y", Todo("after"))
        assert (notes.get("x"), len(notes)) == (Todo("kept"), 2)
        block.__exit__(None, None, None)
    with Device.open(tmp_path, repairs=False) as device:
        notes = device.vault("home").collection("todos", Todo, policy=latest())
        assert len(notes) == 2


def test_a_device_on_trio_is_refused_in_a_child(tmp_path: Path) -> None:
    async def app() -> None:
        async with sealwire_client.Device.open(tmp_path, relay=NOWHERE) as device:
            home = await device.create_vault("home")
            notes = await home.collection("todos", Todo, policy=latest())
            await notes.put("x", Todo("kept"))
            before = files(tmp_path)

            def child() -> None:
                refused([lambda: notes.get("x"), lambda: home.select("SELECT * FROM todos")])
                refused([home._reader.check_open])  # as live queries begin with it
                with pytest.raises(ForkedError):
                    notes.put("x", Todo("lost")).send(None)
                home._reader.close()
                assert files(tmp_path) == before

            in_a_child(child)
            assert files(tmp_path) == before
            await notes.put("y", Todo("after"))
            assert len(notes) == 2

    trio.run(app)


@pytest.mark.parametrize("reader", [Reader, SharedReader])
def test_a_child_that_ends_as_a_program_does_leaves_the_parents_files_alone(
    tmp_path: Path, reader: type[Reader]
) -> None:
    """Its memory is taken apart then, and connections in it are closed by SQLite."""
    with Device.open(tmp_path, relay=NOWHERE) as device:
        notes = device.create_vault("home").collection("todos", Todo, policy=latest())
        notes.put("x", Todo("kept"))
        opened = reader(tmp_path)
        before = files(tmp_path)

        def child() -> None:
            opened.close()
            if isinstance(opened, SharedReader):
                opened._resting.clear()
            else:
                del opened.connection

        in_a_child(child)
        assert files(tmp_path) == before
        opened.close()
        notes.put("y", Todo("after"))


def test_a_child_does_not_hold_the_folder_when_its_parent_has_closed_it(tmp_path: Path) -> None:
    ask, answer = os.pipe()
    with Device.open(tmp_path):
        child = os.fork()
        if not child:
            os.close(answer)
            os.read(ask, 1)
            os._exit(0)
    os.close(ask)
    with Device.open(tmp_path):
        pass
    os.close(answer)
    os.waitpid(child, 0)
