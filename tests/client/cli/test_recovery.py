"""`recovery show` and `recovery use`, on a real relay process."""

import os
import pty
import select
import shutil
import time
from collections.abc import Callable

from sealwire_client.recovery import parse
from tests.client.cli.commands import WAIT_S_MAX, Machine, Relay


def words_of(machine: Machine) -> str:
    words: str = machine.succeed("recovery", "show", "--yes", "--json").answer["words"]
    return words


def test_a_vault_comes_back_on_an_empty_machine(a: Machine, machine: Callable[[str], Machine], relay: Relay) -> None:
    a.succeed("put", "notes", "milk", "two litres")
    shown = a.succeed("recovery", "show", "--yes")
    assert len(shown.out.split()) == 24
    assert relay.address in shown.err
    seed = parse(shown.out).identity.seed.reveal()
    for file in a.folder.iterdir():
        content = file.read_bytes()
        assert not any(trace in content for trace in (shown.out.strip().encode(), seed, seed.hex().encode())), file
    shutil.rmtree(a.folder)
    b = machine("b")
    typed = shown.out.upper().replace(" ", "\n").encode()
    used = b.succeed("recovery", "use", "--relay", relay.address, "--name", "new", "--json", given=typed).answer
    assert (used["vault"], used["relay"], used["held_before"]) == ("home", relay.address, False)
    assert b.succeed("get", "notes", "milk").out == "two litres\n"
    b.succeed("put", "notes", "bread", "one")
    status = b.succeed("status", "--json").answer
    assert (status["state"], status["members"]) == ("synced", 3)
    assert [device["name"] for device in status["devices"]] == ["first", "recovery words", "new"]
    again = b.succeed("recovery", "use", "--relay", relay.address, "--json", given=typed).answer
    assert again["held_before"] is True


def test_a_wrong_word_is_told_and_nothing_is_made(machine: Callable[[str], Machine], a: Machine, relay: Relay) -> None:
    words, b = words_of(a).split(), machine("b")
    wrong = b.run("recovery", "use", "--relay", relay.address, "--json", given=" ".join([*words[:3], "hosue"]).encode())
    assert (wrong.code, wrong.answer["error"]["kind"]) == (1, "recovery")
    assert "word 4 (hosue)" in wrong.error.lower()
    short = b.run("recovery", "use", "--relay", relay.address, given=" ".join(words[1:]).encode())
    assert "24 words" in short.error
    assert not b.folder.exists()


def test_words_of_another_relay_are_told(
    machine: Callable[[str], Machine], a: Machine, environment: dict[str, str]
) -> None:
    other = Relay(environment)
    try:
        done = machine("b").run("recovery", "use", "--relay", other.address, "--json", given=words_of(a).encode())
        assert (done.code, done.answer["error"]["kind"]) == (1, "recovery")
        assert "name the relay" in done.error
    finally:
        other.end()


def test_words_are_made_only_where_somebody_looks_and_the_relay_is_there(a: Machine, alone: Machine) -> None:
    blind = a.run("recovery", "show", "--json")
    assert (blind.code, blind.answer["error"]["kind"]) == (2, "usage")
    assert "--yes" in blind.error
    missing = alone.run("recovery", "show", "--yes", "--wait", "0.5")
    assert (missing.code, missing.out) == (3, "")
    assert "none were made" in missing.error


def test_on_a_terminal_the_words_are_asked_for_line_by_line(
    a: Machine, machine: Callable[[str], Machine], relay: Relay
) -> None:
    words = words_of(a).split()
    ours, theirs = pty.openpty()
    try:
        with machine("b").running("recovery", "use", "--relay", relay.address, stdin=theirs) as using:
            using.until("err", "The 24 words")
            for row in range(0, 24, 6):
                os.write(ours, (" ".join(words[row : row + 6]) + "\n").encode())
            assert using.done().code == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_on_a_terminal_somebody_is_asked_first_and_sees_numbers(a: Machine) -> None:
    ours, theirs = pty.openpty()
    shown = b""
    try:
        with a.running("recovery", "show", stdin=theirs, stdout=theirs) as showing:
            showing.until("err", "Pen and paper")
            os.write(ours, b"y\n")
            assert showing.done().code == 0
        end = time.monotonic() + WAIT_S_MAX
        while b"24. " not in shown and time.monotonic() < end:
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65_536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b" 1. " in shown and b"24. " in shown
