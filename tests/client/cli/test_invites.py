"""Invites on the command line: the QR code on the terminal and in a file, and roles."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealwire_client import qr
from sealwire_client.cli.members import ANSWER_BYTES_MAX, first_line
from tests.client.cli.commands import Machine, Relay, Running, invited


def link_of(inviting: Running) -> str:
    inviting.until("out", "\n")
    link: str = json.loads(inviting.out)["link"]
    return link


def test_an_invite_is_shown_as_a_code_on_the_terminal_and_in_a_file_of_ones_own(
    a: Machine, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    b, file = machine("b"), tmp_path / "invite.png"
    with a.running("invite", "--qr", "--png", str(file), "--json") as inviting:
        link = link_of(inviting)
        assert file.read_bytes() == qr.png(link)
        assert file.stat().st_mode & 0o777 == 0o600
        b.succeed("join", link)
        done = inviting.done()
    assert done.code == 0
    assert "\n".join(qr.lines(link)) in done.err
    assert "\x1b" not in done.out
    assert list(tmp_path.glob(".*")) == [], "no draft is left"


def test_a_file_that_is_there_is_left_alone_unless_it_may_be_replaced(a: Machine, tmp_path: Path) -> None:
    file = tmp_path / "invite.png"
    file.write_text("a picture of mine")
    refused = a.run("invite", "--png", str(file), "--json")
    assert (refused.code, refused.answer["error"]["kind"]) == (1, "exists")
    assert "--overwrite" in refused.error
    assert file.read_text() == "a picture of mine"
    with a.running("invite", "--png", str(file), "--overwrite", "--json") as inviting:
        link = link_of(inviting)
        assert file.read_bytes() == qr.png(link)
        assert file.stat().st_mode & 0o777 == 0o600
    assert a.run("invite", "--overwrite").code == 2


def test_a_file_that_cannot_be_written_is_told_and_no_invite_is_left(a: Machine, tmp_path: Path) -> None:
    done = a.run("invite", "--png", str(tmp_path / "no" / "where.png"))
    assert (done.code, done.out) == (1, "")
    assert "No such file" in done.error


def test_a_terminal_that_cannot_draw_a_code_is_told_before_an_invite_is_made(a: Machine) -> None:
    plain = Machine(a.folder, {**a.environment, "PYTHONIOENCODING": "ascii"})
    done = plain.run("invite", "--qr")
    assert (done.code, done.out) == (1, "")
    assert "--png" in done.error


def test_an_invite_gives_the_role_that_is_asked_for(a: Machine, machine: Callable[[str], Machine]) -> None:
    for role, may_invite in (("admin", True), ("writer", False), ("reader", False)):
        b = machine(role)
        with a.running("invite", "--role", role, "--json") as inviting:
            link = link_of(inviting)
            assert json.loads(inviting.out)["role"] == role
            b.succeed("join", link)
            assert inviting.done().code == 0
        with b.running("invite", "--json") as inviting:
            if may_invite:
                assert link_of(inviting)
            else:
                assert "may not add devices" in inviting.done().error


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ([b"y\n"], b"y"),
        ([b"y", b"es", b"\n"], b"yes"),
        ([b"n\ny\n"], b"n"),
        ([b"y\n" * 600], b"y"),
        ([b"y"], b"y"),
        ([], b""),
        ([b"y" * ANSWER_BYTES_MAX, b"y\n"], b"y" * ANSWER_BYTES_MAX),
    ],
    ids=["typed", "in pieces", "the first counts", "yes y", "without an end", "nobody is there", "far too long"],
)
def test_an_answer_is_a_line_in_however_many_pieces_it_comes(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], line: bytes
) -> None:
    coming = iter(pieces)
    monkeypatch.setattr(os, "read", lambda fd, most: next(coming, b"")[:most])
    assert first_line(0) == line


def test_two_people_compare_a_code(a: Machine, machine: Callable[[str], Machine]) -> None:
    for answer, joins in ((b"y\n" * 4_000, True), (b"n\ny\n", False)):
        b = machine(f"{joins}")
        with a.running("invite", "--confirm", "--json", stdin=subprocess.PIPE) as inviting:
            with b.running("join", link_of(inviting), "--name", "theirs", "--json") as joining:
                joining.until("out", "\n")
                code = json.loads(joining.out)["code"]
                inviting.until("out", "asks")
                asked = json.loads(inviting.out.splitlines()[-1])["asks"]
                assert asked == {"name": "theirs", "code": code}
                assert inviting.done(answer).code == (0 if joins else 1)
                done = joining.done()
                assert done.code == (0 if joins else 1)
        if not joins:
            assert "not the same" in done.error


def test_a_device_of_ones_own_comes_into_all_vaults(
    a: Machine, machine: Callable[[str], Machine], relay: Relay
) -> None:
    b, theirs = machine("b"), machine("theirs")
    a.succeed("init", "--relay", relay.address, "--vault", "work")
    theirs.succeed("init", "--relay", relay.address, "--vault", "family")
    invited(theirs, a)
    assert "Either --all-vaults or one --vault" in a.run("invite", "--all-vaults", "--vault", "work").error
    with a.running("invite", "--all-vaults", "--json") as inviting:
        joining = b.succeed("join", link_of(inviting), "--name", "phone", "--json").answer
        done = inviting.done()
    assert json.loads(done.out.splitlines()[0])["role"] == "admin"
    assert sorted(done.answer["joined"]["vaults"]) == sorted(joining["vaults"]) == ["home", "work"]
    assert [each["vault"] for each in done.answer["joined"]["left_out"]] == ["family"]
    assert joining["awaited"] == 0
    assert "not let into family: this device is no admin there" in done.err
    a.succeed("put", "notes", "k", "of work", "--vault", "work")
    assert "of work" in b.succeed("get", "notes", "k", "--vault", "work").out
