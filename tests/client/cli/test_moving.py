"""A vault moves between two real relays, and its devices follow."""

from collections.abc import Callable, Iterator

import pytest

from tests.client.cli.commands import Machine, Relay, invited


@pytest.fixture
def relays(environment: dict[str, str]) -> Iterator[tuple[Relay, Relay]]:
    """An old and a new one."""
    found = Relay(environment), Relay(environment)
    yield found
    for relay in found:
        relay.end()


def test_a_vault_moves_to_another_relay_and_back(
    machine: Callable[[str], Machine], relays: tuple[Relay, Relay]
) -> None:
    laptop, phone, (old, new) = machine("laptop"), machine("phone"), relays
    laptop.succeed("init", "--relay", old.address, "--name", "laptop")
    assert [done.code for done in invited(laptop, phone)] == [0, 0]
    laptop.succeed("put", "notes", "k", "old")
    assert phone.succeed("get", "notes", "k", "--fresh").out == "old\n"
    failed = phone.run("vault", "move", "--relay", new.address)
    assert failed.code == 1 and "admin" in failed.error
    phone.succeed("put", "notes", "unsent", "kept", "--wait", "0")
    done = laptop.succeed("vault", "move", "--relay", new.address, "--json")
    assert (done.answer["relay"], done.answer["synced"]) == (new.address, True)
    assert phone.succeed("get", "notes", "k", "--fresh").out == "old\n"
    assert phone.succeed("status", "--json").answer["relay"] == new.address
    phone.succeed("put", "notes", "k", "new")
    for key, value in (("k", "new"), ("unsent", "kept")):
        assert laptop.succeed("get", "notes", key, "--fresh").out == f"{value}\n"
    done = laptop.succeed("vault", "move", "--relay", old.address)
    assert f"is at {old.address}" in done.out
    phone.succeed("delete", "notes", "unsent")
    assert laptop.succeed("get", "notes", "k", "--fresh").out == "new\n"
    assert laptop.run("get", "notes", "unsent", "--fresh").code == 1


def test_a_relay_is_gone_and_its_devices_are_told_the_new_address(
    machine: Callable[[str], Machine], relays: tuple[Relay, Relay]
) -> None:
    laptop, phone, (old, new) = machine("laptop"), machine("phone"), relays
    laptop.succeed("init", "--relay", old.address, "--name", "laptop")
    assert [done.code for done in invited(laptop, phone)] == [0, 0]
    laptop.succeed("put", "notes", "k", "v")
    old.end()
    phone.succeed("put", "notes", "by phone", "p", "--wait", "0")
    failed = laptop.run("vault", "move", "--relay", new.address, "--wait", "2")
    assert failed.code == 3 and old.address in failed.error
    assert "nothing was moved" in failed.error and "--without-old" in failed.error
    failed = phone.run("vault", "follow", "--relay", new.address)
    assert failed.code == 1 and "does not have the vault" in failed.error
    new.end()
    failed = laptop.run("vault", "move", "--relay", new.address, "--without-old", "--wait", "2")
    assert failed.code == 3 and new.address in failed.error
    assert "nothing was moved" in failed.error and "--without-old" not in failed.error
    new.start()
    laptop.succeed("vault", "move", "--relay", new.address, "--without-old")
    done = phone.succeed("vault", "follow", "--relay", new.address, "--json")
    assert (done.answer["relay"], done.answer["synced"]) == (new.address, True)
    assert laptop.succeed("get", "notes", "by phone", "--fresh").out == "p\n"
    old.start()
