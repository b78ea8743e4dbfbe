"""Writes refused for good are listed, tried again, discarded; a collection keeps the policy that it was made with."""

import json
import sqlite3
from collections.abc import Callable

from tests.client.cli.commands import Machine, Relay, invited


def set_aside(device: Machine, keys: str, together: int = 0) -> None:
    """Set edits that wait on a device aside, as the verdict of a relay that is full does."""
    with sqlite3.connect(device.folder / "replica.db") as connection:
        for key in keys:
            connection.execute(
                "INSERT INTO _stuck (collection, key, value, raw, reason, n, tx)"
                " SELECT collection, key, value, raw, 'quota', n, ? FROM _edit WHERE key = ?",
                (together, key),
            )
            connection.execute("DELETE FROM _edit WHERE key = ?", (key,))
    connection.close()


def test_stuck_writes_are_listed_with_their_reason(alone: Machine) -> None:
    assert alone.succeed("stuck", "list").err == "Nothing is stuck.\n"
    for key in "kl":
        alone.succeed("put", "notes", key, "v")
    alone.succeed("delete", "notes", "l")
    set_aside(alone, "kl")
    lines = alone.succeed("stuck", "list").out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [["notes", "k", "put"], ["notes", "l", "delete"]]
    assert "the vault is full" in lines[0]
    listed = [json.loads(line) for line in alone.succeed("stuck", "list", "--json").out.splitlines()]
    assert [(one["collection"], one["key"], one["deletes"], one["together"]) for one in listed] == [
        ("notes", "k", False, False),
        ("notes", "l", True, False),
    ]
    assert alone.run("status", "--wait", "0", "--json").answer["stuck"] == 2


def test_a_stuck_write_is_sent_when_it_is_tried_again(
    machine: Callable[[str], Machine], environment: dict[str, str]
) -> None:
    a, relay = machine("a"), Relay(environment)
    relay.end()
    a.succeed("init", "--relay", relay.address, "--wait", "0")
    for key in "klm":
        a.succeed("put", "notes", key, "v", "--wait", "0")
    set_aside(a, "klm")
    relay.start()
    try:
        one = a.succeed("stuck", "retry", "notes", "k", "--json").answer
        assert one == {"retried": 1, "stuck": 2, "pending": 0, "why": one["why"]}
        again = a.succeed("stuck", "retry", "--all", "--json").answer
        assert again == {"retried": 2, "stuck": 0, "pending": 0, "why": None}
        assert a.run("status", "--json").answer["state"] == "synced"
    finally:
        relay.end()


def test_what_is_discarded_shows_what_was_there_before(alone: Machine) -> None:
    for key in "klm":
        alone.succeed("put", "notes", key, "v")
    set_aside(alone, "kl", together=7)
    asked = alone.run("stuck", "discard", "notes", "k")
    assert (asked.code, "say --yes" in asked.error) == (2, True)
    gone = alone.succeed("stuck", "discard", "notes", "k", "--yes", "--json").answer
    assert gone == {"collection": "notes", "key": "k", "discarded": True, "value": None}
    assert alone.succeed("stuck", "list").out == "", "the rest of its transaction went with it"
    assert alone.succeed("ls", "notes").out == "m\tv\n"


def test_what_is_not_stuck_is_told(alone: Machine) -> None:
    for command in (("retry", "notes", "k"), ("discard", "notes", "k", "--yes")):
        done = alone.run("stuck", *command)
        assert (done.code, "is stuck on this device" in done.error) == (1, True)
    for wrong in ([], ["notes"], ["notes", "k", "--all"]):
        assert alone.run("stuck", "retry", *wrong).code == 2


def test_a_collection_keeps_the_policy_that_its_maker_chose(relay: Relay, machine: Callable[[str], Machine]) -> None:
    a, b = machine("a"), machine("b")
    a.succeed("init", "--relay", relay.address)
    assert a.succeed("put", "notes", "k", '{"a": 1, "b": 1}', "--policy", "merge", "--json").answer["sent"] is True
    invited(a, b)
    # Not fetched yet, so taken for an open one at first. The relay tells, before or after it was put: then it is not
    # written at all, or not forced on what is there.
    early = b.run("put", "notes", "l", "early", "--json")
    assert "is guarded at the relay and open here" in early.error
    listed = b.succeed("stuck", "list").out
    assert (early.code, "another policy" in listed) in ((1, False), (3, True))
    assert b.succeed("put", "notes", "k", '{"a": 1, "b": 2}', "--json").answer["sent"] is True
    assert a.succeed("put", "notes", "k", '{"a": 2, "b": 2}', "--json").answer["sent"] is True
    assert json.loads(b.succeed("get", "notes", "k", "--fresh").out) == {"a": 2, "b": 2}
    if listed:
        b.succeed("stuck", "retry", "notes", "l")
    else:
        b.succeed("put", "notes", "l", "early")
    assert a.succeed("get", "notes", "l", "--fresh").out == "early\n"
    assert a.run("put", "notes", "k", "v", "--policy", "latest").code == 1


def test_a_strict_put_needs_the_relay(relay: Relay, machine: Callable[[str], Machine], alone: Machine) -> None:
    a = machine("a")
    a.succeed("init", "--relay", relay.address)
    assert a.succeed("put", "accounts", "k", "100", "--policy", "strict", "--json").answer["sent"] is True
    assert a.succeed("put", "accounts", "k", "90").code == 0
    assert a.succeed("get", "accounts", "k").out == "90\n"
    refused = alone.run("put", "accounts", "k", "100", "--policy", "strict", "--wait", "1")
    assert (refused.code, "nothing was written" in refused.error) == (3, True)
    assert alone.run("get", "accounts", "k", "--wait", "0").code != 0
