"""The main road: init, invite, join, put, get, ls, watch and status, between two devices and a relay."""

import json
import time
from collections.abc import Callable

from tests.client.cli.commands import Machine, Relay, invited


def test_two_devices_come_together_and_see_each_others_entries(relay: Relay, machine: Callable[[str], Machine]) -> None:
    a, b = machine("a"), machine("b")
    made = a.succeed("init", "--relay", relay.address, "--name", "first", "--json").answer
    assert made["relay_reached"] is True
    assert made["vault"] == "home"
    assert (a.folder / "config.json").stat().st_mode & 0o777 == 0o600
    assert "sent" in a.succeed("put", "notes", "milk", "buy", "two litres").out
    inviting, joining = invited(a, b)
    assert inviting.code == joining.code == 0
    assert joining.answer["id"] == made["id"]
    joined = {"device": joining.answer["device"], "name": "second", "vaults": ["home"], "left_out": []}
    assert inviting.answer == {"joined": joined}
    # The joiner has never seen the collection: it is fetched.
    assert b.succeed("get", "notes", "milk").out == "buy two litres\n"
    with b.running("watch", "notes", "--json") as watching:
        watching.until("err", "Connected")
        before = time.time()
        sent = a.succeed("put", "notes", "t1", '{"title": "ü", "done": false}', "--json").answer
        assert sent == {"collection": "notes", "key": "t1", "saved": True, "sent": True, "pending": 0, "why": None}
        watching.until("out", '"t1"')
        change = json.loads(watching.out.splitlines()[-1])
        assert before - 1 < change.pop("at") / 1000 < time.time() + 1
        value = {"title": "ü", "done": False}
        assert change == {"collection": "notes", "key": "t1", "kind": "inserted", "value": value}
        # The folder is in use, but may be read.
        listed = [json.loads(line) for line in b.succeed("ls", "notes", "--json").out.splitlines()]
        assert listed == [{"key": "milk", "value": {"value": "buy two litres"}}, {"key": "t1", "value": value}]
        assert b.succeed("ls", "notes", "t").out == 't1\t{"done":false,"title":"ü"}\n'
        assert json.loads(b.succeed("get", "notes", "t1", "--json").out)["value"] == value
        refused = b.run("put", "notes", "x", "y")
        assert refused.code == 4
        assert f"process {watching.process.pid}" in refused.error
        ended = watching.interrupt()
    assert ended.code == 130
    status = b.succeed("status", "--json").answer
    assert (status["state"], status["members"], status["pending"]) == ("synced", 2, 0)
    assert status["collections"] == ["notes"]


def test_fresh_fetches_what_is_new_and_without_it_the_device_answers(
    a: Machine, machine: Callable[[str], Machine]
) -> None:
    b = machine("b")
    a.succeed("put", "notes", "k", "old")
    invited(a, b)
    assert b.succeed("get", "notes", "k").out == "old\n"
    a.succeed("put", "notes", "k", "new")
    assert b.succeed("get", "notes", "k", "--fresh").out == "new\n"


def test_what_is_deleted_is_gone_on_the_other_device_too(a: Machine, machine: Callable[[str], Machine]) -> None:
    b = machine("b")
    a.succeed("put", "notes", "k", "v")
    invited(a, b)
    early = b.run("delete", "notes", "k", "--json")
    assert (early.code, early.answer["error"]["kind"]) == (1, "no_collection")
    assert "sealwire ls notes" in early.error
    assert b.succeed("ls", "notes").out == "k\tv\n"
    gone = b.succeed("delete", "notes", "k", "--json").answer
    assert gone == {"collection": "notes", "key": "k", "deleted": True, "sent": True, "pending": 0, "why": None}
    assert a.succeed("ls", "notes", "--fresh").out == ""
    again = a.run("delete", "notes", "k", "--json")
    assert (again.code, again.answer["error"]["kind"]) == (1, "no_entry")


def test_many_lines_are_put_read_back_and_put_again(a: Machine) -> None:
    lines = [json.dumps({"key": f"k{n:05}", "value": {"n": n}}) for n in range(20_000)]
    put = a.succeed("import", "numbers", "-", "--wait", "0", "--json", given="\n".join(lines).encode())
    assert put.answer["saved"] == 20_000
    # What was cut off in the middle of sending is sent by the next command, all of it.
    assert a.succeed("status", "--json").answer["pending"] == 0
    listed = a.succeed("ls", "numbers", "--json").out
    assert [json.loads(line) for line in listed.splitlines()] == [json.loads(line) for line in lines]
    path = a.folder / "copy.jsonl"
    path.write_text(listed[: listed.index("\n", 50_000)])
    again = a.succeed("import", "copy", str(path), "--json").answer
    assert (again["saved"] > 1_000, again["sent"]) == (True, True)


def test_what_was_put_offline_is_sent_once_the_relay_is_there(
    machine: Callable[[str], Machine], environment: dict[str, str]
) -> None:
    own = Relay(environment)
    try:
        a, b = machine("a"), machine("b")
        a.succeed("init", "--relay", own.address)
        invited(a, b)
        own.end()
        put = a.succeed("put", "notes", "k", "v")
        assert put.out == "saved on this device; will be sent when the relay is reachable\n"
        assert "no relay answers" in put.err.lower()
        assert a.run("status", "--json").code == 3
        a.succeed("put", "others", "k", "v")
        # An empty relay at the old address: whichever member comes first tells it of the vault (R15).
        own.start()
        assert b.succeed("status", "--json").answer["state"] == "synced"
        told = a.succeed("status", "--json").answer
        assert (told["state"], told["pending"]) == ("synced", 0)
    finally:
        own.end()
