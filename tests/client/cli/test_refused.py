"""What a device is told that may not write, or does not belong to the vault any more: why, and what to do next."""

import json
from collections.abc import Callable
from pathlib import Path

from sealwire_relay.minting import generate_key, mint
from tests.client.cli.commands import Machine, Relay, invited


def joins(inviter: Machine, joiner: Machine, role: str) -> None:
    """Let a device in, in a role."""
    with inviter.running("invite", "--role", role, "--json") as inviting:
        inviting.until("out", "\n")
        joiner.succeed("join", json.loads(inviting.out)["link"], "--name", role)
        assert inviting.done().code == 0


def test_who_may_only_read_is_told_so_before_anything_is_written(a: Machine, machine: Callable[[str], Machine]) -> None:
    reader = machine("reader")
    a.succeed("put", "notes", "k", "v")
    joins(a, reader, "reader")
    assert reader.succeed("get", "notes", "k").out == "v\n"
    for command in (("put", "notes", "k", "mine"), ("delete", "notes", "k")):
        done = reader.run(*command, "--wait", "0", "--json")
        assert (done.code, done.answer["error"]["kind"]) == (1, "membership")
        assert "may only read" in done.error and "ask an admin" in done.error
    assert reader.succeed("get", "notes", "k").out == "v\n"
    assert reader.succeed("status", "--json").answer["pending"] == 0


def test_what_a_full_vault_does_not_take_is_said_to_be_refused_and_what_to_do(
    machine: Callable[[str], Machine], environment: dict[str, str], tmp_path: Path
) -> None:
    a, key = machine("a"), tmp_path / "minting.key"
    relay = Relay(environment, registration="token", registration_keys=generate_key(key))
    try:
        a.succeed("init", "--relay", relay.address, "--token", mint(key, quota=1_000).text)
        done = a.run("put", "notes", "k", "v" * 2_000)
        again = a.run("stuck", "retry", "--all")
    finally:
        relay.end()
    assert (done.code, done.out) == (3, "saved on this device; refused by the relay\n")
    assert "refused 1 write for good" in done.error
    assert (again.code, again.out) == (3, "1 tried again; refused by the relay\n")
    for step in ("delete entries", "whoever runs the relay", "sealwire stuck retry"):
        assert step in done.error
    assert a.succeed("get", "notes", "k").out == "v" * 2_000 + "\n"


def test_a_device_that_was_removed_while_it_was_away_is_told_what_is_known(
    a: Machine, machine: Callable[[str], Machine]
) -> None:
    phone = machine("phone")
    joins(a, phone, "admin")
    a.succeed("vault", "remove", "admin", "--yes")
    done = phone.run("put", "notes", "k", "v")
    assert (done.code, done.out) == (0, "saved on this device; not sent, since the relay refuses this device\n")
    for told in ("has no such vault for this device", "is kept", "ask an admin", "sealwire vault forget"):
        assert told in done.err, done.err
    for command in (("invite",), ("vault", "rotate"), ("recovery", "show", "--yes")):
        failed = phone.run(*command, "--json")
        assert (failed.code, failed.answer["error"]["kind"]) == (1, "no_vault")
        assert "has no such vault" in failed.error and "sealwire vault forget" in failed.error
    assert phone.run("vault", "forget", "--yes", "--json").answer["error"]["kind"] == "unsent"
    phone.succeed("vault", "forget", "--yes", "--discard-unsent")


def test_whatever_would_change_a_vault_that_was_deleted_says_so(
    machine: Callable[[str], Machine], environment: dict[str, str]
) -> None:
    laptop, phone, relay = machine("laptop"), machine("phone"), Relay(environment)
    asked = (
        ("invite",),
        ("vault", "rotate"),
        ("vault", "remove", "second", "--yes"),
        ("vault", "move", "--relay", "ws://127.0.0.1:9"),
        ("vault", "move", "--relay", "ws://127.0.0.1:9", "--without-old"),
        ("recovery", "show", "--yes"),
        ("put", "notes", "k", "v"),
    )
    try:
        laptop.succeed("init", "--relay", relay.address)
        invited(laptop, phone)
        laptop.succeed("vault", "delete", "--yes")
        failed = [laptop.run(*command, "--json") for command in asked]
    finally:
        relay.end()
    failed.extend(laptop.run(*command, "--json") for command in asked)
    for done in failed:
        assert (done.code, done.answer["error"]["kind"]) == (1, "no_vault"), done
        assert "was deleted" in done.error and "sealwire vault forget" in done.error
