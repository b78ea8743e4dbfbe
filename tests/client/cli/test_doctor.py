"""`sealwire doctor`: what it says, what it repairs, and its exit codes."""

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.client.cli.commands import Machine, invited
from tests.client.replica.noise import overwrite, pages_of

MANY = 3_000


def put_many(device: Machine, count: int = MANY) -> None:
    lines = [json.dumps({"key": f"k{number:04}", "value": {"n": number, "text": "x" * 50}}) for number in range(count)]
    assert device.succeed("import", "notes", "-", "--json", given="\n".join(lines).encode()).answer["sent"]


def remove(device: Machine, key: str) -> None:
    """Take an entry out of the file by hand."""
    with closing(sqlite3.connect(device.folder / "replica.db")) as connection, connection:
        assert connection.execute("DELETE FROM _c1 WHERE key = ?", (key,)).rowcount == 1


def test_two_devices_in_sync_have_the_same_fingerprint(a: Machine, machine: Callable[[str], Machine]) -> None:
    b = machine("b")
    put_many(a, 100)
    a.succeed("delete", "notes", "k0003")
    invited(a, b)
    b.succeed("ls", "notes")
    found = []
    for device in (a, b):
        answer = device.succeed("doctor", "--json").answer
        assert (answer["verdict"], answer["damaged"], answer["repaired"]) == ("in_sync", None, None)
        ((notes,),) = [vault["collections"] for vault in answer["vaults"]]
        assert (notes["entries"], notes["deletions"], notes["unsent"], notes["behind"]) == (99, 1, 0, 0)
        assert {**notes["here"], "floor": 0} == notes["relay"]
        found.append(notes["here"])
    assert found[0] == found[1]
    told = a.succeed("doctor", "--vault", "home").out
    assert "in sync: this device and the relay hold the same" in told
    assert told.endswith("verdict     in sync\n")


def test_what_differs_is_named_and_repaired(a: Machine) -> None:
    put_many(a, 50)
    remove(a, "k0007")
    done = a.run("doctor")
    assert done.code == 1
    assert "not in sync: 1 entry at the relay and not here" in done.out
    assert "k0007: only at the relay" in done.out and "first in the range of" in done.out
    assert a.run("get", "notes", "k0007").code == 1, "nothing was changed"
    repaired = a.succeed("doctor", "--repair", "--json").answer
    ((notes,),) = [vault["collections"] for vault in repaired["vaults"]]
    assert (notes["verdict"], notes["difference"]) == ("in_sync", None)
    assert notes["repaired"]["keys"] == [{"key": "k0007", "where": "relay"}]
    assert json.loads(a.succeed("get", "notes", "k0007").out)["n"] == 7


@pytest.mark.parametrize("where", ["an entry", "an edit", "the header"])
def test_a_damaged_file_is_told_and_repaired(a: Machine, where: str) -> None:
    put_many(a)
    file = a.folder / "replica.db"
    if where == "the header":
        file.write_bytes(b"\xa5" * 100 + file.read_bytes()[100:])
    else:
        table = "_c1" if where == "an entry" else "_edit"
        leaves = [page for page, (kind, _) in pages_of(a.folder, table).items() if kind == "leaf"]
        overwrite(file, leaves[-2:], random.Random(1))
    content = file.read_bytes()
    done = a.run("doctor", "--json")
    assert (done.code, done.answer["verdict"]) == (1, "differs")
    assert "damaged" in done.answer["damaged"] and "Traceback" not in done.err
    assert file.read_bytes() == content, "nothing was changed"
    assert "doctor --repair" in a.run("doctor").out
    answer = a.succeed("doctor", "--repair", "--json").answer
    assert "has been made anew" in answer["repaired"]
    ((notes,),) = [vault["collections"] for vault in answer["vaults"]]
    assert (notes["verdict"], notes["entries"]) == ("in_sync", MANY)
    assert a.succeed("doctor", "--json").answer["repaired"] is None


def test_without_the_relay_it_tells_what_is_here(alone: Machine) -> None:
    alone.succeed("put", "notes", "k", "v", "--wait", "0")
    done = alone.run("doctor", "--json")
    assert (done.code, done.answer["verdict"]) == (2, "unknown")
    ((notes,),) = [vault["collections"] for vault in done.answer["vaults"]]
    assert (notes["relay"], notes["entries"], notes["unsent"], notes["here"]["records"]) == (None, 1, 1, 0)
    told = alone.run("doctor", "--repair", "--wait", "0")
    assert (told.code, "it cannot be told whether" in told.out) == (2, True)


def test_while_another_process_has_the_folder_it_says_so(a: Machine) -> None:
    with a.running("watch", "notes") as watching:
        watching.until("err", "\n")
        done = a.run("doctor", "--json")
        assert (done.code, done.answer["error"]["kind"]) == (4, "in_use")


def test_a_folder_without_a_device_and_an_unknown_vault(machine: Callable[[str], Machine], alone: Machine) -> None:
    assert machine("none").run("doctor", "--json").answer["error"]["kind"] == "no_device"
    assert alone.run("doctor", "--vault", "nowhere", "--json").answer["error"]["kind"] == "no_vault"
