"""What goes wrong is one sentence and an exit code; nothing is lost by it."""

import json
import os
import socket
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sealwire_client.replica.schema import SCHEMA_VERSION
from tests.client.cli.commands import Machine, Relay, invited
from tests.client.cli.conftest import NOWHERE
from tests.support.small_disk import fill, make_room, small_disk


def test_without_a_relay_the_device_works(alone: Machine) -> None:
    put = alone.succeed("put", "notes", "k", "v", "--json")
    assert (put.answer["saved"], put.answer["sent"], put.answer["pending"]) == (True, False, 1)
    assert alone.succeed("get", "notes", "k").out == "v\n"
    fresh = alone.run("get", "notes", "k", "--fresh")
    assert fresh.code == 3
    assert fresh.out == ""
    assert "without --fresh" in fresh.error


def test_inviting_and_joining_need_the_relay_and_say_so_in_time(
    alone: Machine, a: Machine, machine: Callable[[str], Machine], environment: dict[str, str]
) -> None:
    invite = alone.run("invite", "--wait", "5")  # it has been tried by then
    assert invite.code == 3
    assert "No relay answers at ws://127.0.0.1:9" in invite.error
    own = Relay(environment)
    founder = machine("founder")
    founder.succeed("init", "--relay", own.address)
    with founder.running("invite") as inviting:
        inviting.until("out", "\n")
        own.end()
        join = machine("b").run("join", inviting.out.strip(), "--wait", "0.5", "--json")
    assert join.code == 3
    assert join.answer["error"]["kind"] == "relay"
    assert join.answer["error"]["message"] == join.error


@pytest.mark.parametrize(
    ("address", "told"),
    [("ws://example.org", "wss://example.org"), ("https://example.org", "not a relay's address"), ("", "address")],
)
def test_a_relay_that_must_not_or_cannot_be_dialled_is_refused_before_anything_is_made(
    machine: Callable[[str], Machine], address: str, told: str
) -> None:
    device = machine("a")
    done = device.run("init", "--relay", address, "--json")
    assert done.code == 2
    assert done.answer["error"]["kind"] == "usage"
    assert told in done.error
    assert not device.folder.exists()


def test_an_address_without_a_relay_is_told_and_the_vault_is_made(machine: Callable[[str], Machine]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        done = machine("a").succeed("init", "--relay", f"ws://127.0.0.1:{server.getsockname()[1]}", "--json")
        thread.join()
    assert done.answer["relay_reached"] is False
    assert "not as a relay (HTTP 404)" in done.answer["why"]


def test_a_relay_that_hangs_is_named_as_why_nothing_is_in_step(machine: Callable[[str], Machine]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never answers
        address, device = f"ws://127.0.0.1:{server.getsockname()[1]}", machine("a")
        device.succeed("init", "--relay", address, "--wait", "0")
        status = device.run("status", "--wait", "0.5", "--json")
        assert (status.code, status.answer["state"]) == (3, "connecting")
        assert status.answer["last_error"] == f"{address} did not answer within 0.5 s"
        assert device.run("status", "--wait", "0", "--json").answer["last_error"] is None


def test_a_wrong_address_is_corrected_by_saying_the_right_one(
    astray: Machine, relay: Relay, machine: Callable[[str], Machine]
) -> None:
    astray.succeed("put", "notes", "k", "v")
    before = astray.run("status", "--wait", "0", "--json").answer
    corrected = astray.succeed("init", "--relay", relay.address, "--json").answer
    assert (corrected["id"], corrected["relay"]) == (before["id"], relay.address)
    assert corrected["relay_reached"] is True
    assert json.loads((astray.folder / "config.json").read_text())["relay"] == relay.address
    status = astray.succeed("status", "--json").answer
    assert (status["relay"], status["pending"]) == (relay.address, 0)
    b = machine("b")
    invited(astray, b)
    assert b.succeed("get", "notes", "k").out == "v\n"


def test_a_vault_of_which_a_relay_holds_something_stays_there(
    astray: Machine, relay: Relay, machine: Callable[[str], Machine]
) -> None:
    astray.succeed("init", "--relay", relay.address)
    invited(astray, machine("b"))
    written = machine("written")
    written.succeed("init", "--relay", relay.address)
    written.succeed("put", "notes", "k", "v")
    for device in (astray, written):
        done = device.run("init", "--relay", NOWHERE, "--json")
        assert (done.code, done.answer["error"]["kind"]) == (1, "exists")
        assert relay.address in done.error
        assert device.succeed("status", "--json").answer["relay"] == relay.address


def test_a_command_line_without_a_command_is_answered_with_help(machine: Callable[[str], Machine]) -> None:
    done = machine("a").run()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: sealwire")
    assert "\n  put " in done.err


@pytest.mark.parametrize("option", [("--folder", "x"), ("--folder=x",), ("--json",)])
def test_an_option_before_the_command_is_told_its_place(machine: Callable[[str], Machine], option: tuple[str]) -> None:
    done = machine("a").run(*option, "ls", "notes")
    assert done.code == 2
    assert f"options follow the command, as in `sealwire COMMAND {option[0].split('=')[0]}" in done.error
    assert "follow the command" not in machine("a").run("ls", "--no-such").error
    assert "follow the command" not in machine("a").run("--no-such", "ls").error


def test_vaults_of_one_name_are_told_by_their_ids(
    astray: Machine, relay: Relay, machine: Callable[[str], Machine]
) -> None:
    inviter = machine("inviter")
    made = inviter.succeed("init", "--relay", relay.address, "--json").answer
    with inviter.running("invite") as inviting:
        inviting.until("out", "\n")
        astray.succeed("join", inviting.out.split()[0])
        inviting.done()
    several = astray.run("put", "notes", "k", "v", "--vault", "home")
    assert made["id"][:8] in several.error
    (astray.folder / "config.json").unlink()
    assert made["id"][:8] in astray.run("put", "notes", "k", "v").error
    astray.succeed("put", "notes", "k", "v", "--vault", made["id"][:8])


def test_an_invite_works_once_and_for_its_time(a: Machine, machine: Callable[[str], Machine]) -> None:
    with a.running("invite", "--seconds", "1") as short:
        short.until("out", "\n")
        expired = short.out.strip()
        assert short.done().code == 1
    late = machine("late").run("join", expired)
    assert late.code == 1
    assert "expired" in late.error
    b = machine("b")
    with a.running("invite", "--seconds", "60") as inviting:
        inviting.until("out", "\n")
        link = inviting.out.split()[0]
        b.succeed("join", "-", given=link.encode())
        inviting.done()
    used = machine("c").run("join", link)
    assert used.code == 1
    assert "used by another device" in used.error
    assert "already" in b.succeed("join", link).out


@pytest.mark.parametrize("link", ["nonsense", "sealwire:", "sealwire:AeeW", "sealwire:a b!"])
def test_a_malformed_invite_makes_nothing(machine: Callable[[str], Machine], link: str) -> None:
    device = machine("b")
    done = device.run("join", link)
    assert done.code == 1
    assert "invite" in done.error
    assert not device.folder.exists()


def test_a_replica_that_is_none_is_left_as_it_is(alone: Machine) -> None:
    replica = alone.folder / "replica.db"
    for name in ("replica.db-wal", "replica.db-shm"):
        (alone.folder / name).unlink(missing_ok=True)
    replica.write_bytes(b"my own notes, not SQLite's" * 100)
    done = alone.run("put", "notes", "k", "v", "--json")
    assert done.code == 1
    assert done.answer["error"]["kind"] == "replica"
    assert "is not an SQLite file" in done.error
    assert replica.read_bytes().startswith(b"my own notes")


def test_a_folder_of_a_newer_version_is_left_as_it_is(alone: Machine) -> None:
    with sqlite3.connect(alone.folder / "replica.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    assert "newer Sealwire" in alone.run("ls", "notes").error
    config = json.loads((alone.folder / "config.json").read_text())
    with sqlite3.connect(alone.folder / "replica.db") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.close()
    (alone.folder / "config.json").write_text(json.dumps({**config, "sealwire_config": 2}))
    done = alone.run("put", "notes", "k", "v")
    assert done.code == 1
    assert "newer Sealwire" in done.error


def test_a_device_whose_replica_is_gone_is_told_to_join_again(a: Machine, machine: Callable[[str], Machine]) -> None:
    b = machine("b")
    invited(a, b)
    a.succeed("put", "notes", "k", "v")
    (b.folder / "replica.db").unlink()
    done = b.run("status", "--json")
    assert (done.code, done.answer["error"]["kind"]) == (1, "no_vault")
    assert "its replica is gone" in done.error
    assert "`sealwire join`" in done.error
    with a.running("invite") as inviting:
        inviting.until("out", "\n")
        b.succeed("join", inviting.out.strip())
    assert b.succeed("get", "notes", "k", "--fresh").out == "v\n"


def test_a_new_vault_takes_the_place_of_a_default_that_is_gone(alone: Machine) -> None:
    (alone.folder / "replica.db").unlink()
    alone.succeed("init", "--relay", NOWHERE, "--wait", "0", "--vault", "other")
    alone.succeed("init", "--relay", NOWHERE, "--wait", "0", "--vault", "third")
    alone.succeed("put", "notes", "k", "v", "--wait", "0")
    assert alone.succeed("get", "notes", "k", "--vault", "other").out == "v\n"


def test_keys_that_others_could_read_are_not_used(alone: Machine) -> None:
    keystore = alone.folder / "keystore.json"
    keystore.chmod(0o644)
    done = alone.run("get", "notes", "k")
    assert done.code == 1
    assert f"chmod 600 {keystore}" in done.error
    keystore.chmod(0o600)
    alone.folder.chmod(0o755)
    assert f"chmod 700 {alone.folder}" in alone.run("get", "notes", "k").error


def test_a_passphrase_protects_the_keys(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    device = machine("a")
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    assert device.run("init", "--relay", NOWHERE, "--passphrase").code == 4
    device.environment["SEALWIRE_PASSPHRASE_FILE"] = str(secret)
    device.succeed("init", "--relay", NOWHERE, "--passphrase", "--wait", "0")
    device.succeed("put", "notes", "k", "v")
    del device.environment["SEALWIRE_PASSPHRASE_FILE"]
    assert device.run("get", "notes", "k").code == 4
    device.environment["SEALWIRE_PASSPHRASE"] = "wrong"
    wrong = device.run("get", "notes", "k", "--json")
    assert wrong.code == 4
    assert wrong.answer["error"]["kind"] == "locked"


def test_values_that_cannot_be_kept_are_refused_and_the_others_stay(alone: Machine) -> None:
    large = "x" * 66_000
    one = alone.run("put", "notes", "k", large, "--json")
    assert one.code == 1
    assert one.answer["error"]["kind"] == "too_large"
    lines = [{"key": "a", "value": 1}, {"key": "b", "value": {"t": "two"}}, {"key": "c", "value": large}]
    text = "\n".join(map(json.dumps, lines))
    many = alone.run("import", "notes", "-", given=text.encode())
    assert many.code == 1
    assert many.error.startswith("Line 3 ")
    broken = alone.run("import", "notes", "-", given=b'{"key": "d", "value": "x"}\n\n{"key": "e"}\n{"ke')
    assert broken.error.startswith("Line 3 ")
    assert alone.succeed("ls", "notes").out == 'a\t{"value":1}\nb\t{"t":"two"}\nd\tx\n'


def test_unknown_names_are_told(a: Machine, machine: Callable[[str], Machine]) -> None:
    assert "sealwire init" in machine("empty").run("ls", "notes").error
    a.succeed("put", "notes", "k", "v")
    assert "which are: home (" in a.run("put", "notes", "k", "v", "--vault", "work").error
    typo = a.run("ls", "nots", "--json")
    assert typo.code == 1
    assert typo.answer["error"]["kind"] == "no_collection"
    assert "notes" in typo.error
    assert a.run("get", "notes", "other", "--json").answer["error"]["kind"] == "no_entry"
    assert "letter" in a.run("put", "no notes", "k", "v").error
    assert a.run("init", "--relay", NOWHERE, "--json").answer["error"]["kind"] == "exists"


@pytest.mark.parametrize(
    "arguments",
    [
        ("put", "notes"),
        ("put", "notes", "k"),
        ("put", "notes", "k", "{'a': 1}"),
        ("import", "notes", "/nowhere"),
        ("export", "notes", "--overwrite"),
        ("get", "notes", "k", "--wait", "nan"),
        ("fly",),
        ("ls",),
    ],
)
def test_what_makes_no_sense_is_refused(machine: Callable[[str], Machine], arguments: tuple[str, ...]) -> None:
    done = machine("a").run(*arguments)
    assert done.code == 2
    assert done.error


def test_control_characters_of_others_are_shown_not_obeyed(alone: Machine) -> None:
    alone.succeed("put", "notes", "k", "red\x1b[31m\nnext\u202e")
    assert alone.succeed("ls", "notes").out == "k\tred\\x1b[31m\\nnext\\u202e\n"
    assert alone.succeed("get", "notes", "k").out == "red\x1b[31m\nnext\u202e\n"


def test_nobody_reading_the_output_is_no_failure(alone: Machine) -> None:
    lines = "\n".join(json.dumps({"key": f"k{n:05}", "value": "x" * 100}) for n in range(3_000))
    alone.succeed("import", "notes", "-", given=lines.encode())
    with alone.running("ls", "notes") as listing:
        listing.until("out", "k00000")
        assert listing.process.stdout is not None
        listing.process.stdout.close()
        listing.process.stdout = None
        done = listing.done()
    assert (done.code, done.err) == (0, "")
    with alone.running("watch", "notes") as watching:
        watching.until("err", "No relay")
        assert watching.process.stdout is not None
        watching.process.stdout.close()
        watching.process.stdout = None
        assert watching.done().code == 0
    with open("/dev/full", "wb") as full:
        done = alone.begin("get", "notes", "k00000", stdout=full).done()
    assert done.code == 1
    assert "No space left" in done.error
    closed = alone.begin("get", "notes", "k00000", stdout=None, preexec_fn=lambda: os.close(1)).done()
    assert (closed.code, closed.err) == (0, "")


def test_a_full_disk_saves_nothing_half(alone: Machine, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        alone.environment["SEALWIRE_HOME"] = str(disk)
        alone.succeed("init", "--relay", NOWHERE, "--wait", "0")
        alone.succeed("put", "notes", "first", "kept")
        lines = "\n".join(json.dumps({"key": f"k{n:05}", "value": "x" * 1_000}) for n in range(2_000))
        done = alone.run("import", "notes", "-", "--json", given=lines.encode())
        assert done.code == 1
        assert done.answer["error"]["kind"] == "disk_full"
        assert "make room" in done.error
        assert alone.succeed("get", "notes", "first").out == "kept\n"


def test_a_disk_without_a_byte_keeps_nobody_from_reading(alone: Machine, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        alone.environment["SEALWIRE_HOME"] = str(disk)
        alone.succeed("init", "--relay", NOWHERE, "--wait", "0")
        alone.succeed("put", "notes", "first", "kept")
        for command, told in (
            (("get", "notes", "first"), "kept"),
            (("ls", "notes"), "first"),
            (("status",), "pending     1"),
        ):
            fill(disk)
            done = alone.run(*command)
            assert told in done.out
            assert done.code == (3 if command[0] == "status" else 0)  # it tells that the relay is not there
        fill(disk)
        lines = "\n".join(json.dumps({"key": f"k{n:05}", "value": "x" * 1_000}) for n in range(300))
        given = lines.encode()
        done = alone.run("import", "notes", "-", "--json", given=given)
        assert (done.code, done.answer["error"]["kind"]) == (1, "disk_full")
        assert "what was to be written now was not saved" in done.error
        fill(disk)
        assert alone.succeed("get", "notes", "first").out == "kept\n"
        make_room(disk)
        alone.succeed("import", "notes", "-", given=given)


def test_a_full_disk_while_sending_is_not_told_of_the_edit_that_was_saved(
    a: Machine, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    b = machine("b")
    with small_disk(tmp_path / "disk", 4) as disk:
        b.environment["SEALWIRE_HOME"] = str(disk)
        invited(a, b)
        b.succeed("put", "notes", "first", "its tables are made")
        fill(disk)
        put = b.succeed("put", "notes", "k", "x" * 20_000, "--json")
        assert (put.answer["saved"], put.answer["sent"]) == (True, False)
        assert "is full: what was to be written now was not saved, everything before it was" in put.answer["why"]
        status = b.run("status", "--json")
        assert (status.code, status.answer["state"], status.answer["pending"]) == (3, "offline", 1)
        assert "is full" in status.answer["last_error"]
        make_room(disk)
        assert b.succeed("status", "--json").answer["state"] == "synced"


def test_a_second_vault_needs_to_be_named(a: Machine, relay: Relay) -> None:
    a.succeed("init", "--relay", relay.address, "--vault", "work")
    a.succeed("put", "notes", "k", "at work", "--vault", "work")
    a.succeed("put", "notes", "k", "at home")
    assert a.succeed("get", "notes", "k", "--vault", "work").out == "at work\n"
    assert a.succeed("get", "notes", "k").out == "at home\n"
