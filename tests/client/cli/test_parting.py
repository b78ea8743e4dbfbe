"""A device leaves a vault, and a vault is deleted, with a real relay between the devices."""

from collections.abc import Callable

from tests.client.cli.commands import Machine, Relay, invited


def test_a_device_leaves_and_another_vault_is_deleted(
    machine: Callable[[str], Machine], environment: dict[str, str]
) -> None:
    laptop, phone = machine("laptop"), machine("phone")
    relay = Relay(environment)
    try:
        laptop.succeed("init", "--relay", relay.address, "--name", "laptop")
        assert [done.code for done in invited(laptop, phone)] == [0, 0]
        laptop.succeed("put", "notes", "kept", "read by all")
        assert phone.succeed("get", "notes", "kept", "--fresh").out == "read by all\n"

        assert "only admin" in laptop.run("vault", "leave", "--yes").err
        assert laptop.run("vault", "leave").code == 2, "nobody is there to ask"
        assert "ask an admin" in phone.run("vault", "delete", "--yes").err
        assert "leave it" in phone.run("vault", "forget", "--yes", "--wait", "0").err

        assert phone.succeed("vault", "leave", "--yes", "--json").answer["held"] is False
        assert "holds no vault" in phone.run("get", "notes", "kept").err
        laptop.succeed("status")
        assert [line.split("\t")[0] for line in laptop.succeed("vault", "members").out.splitlines()] == ["laptop"]

        assert [done.code for done in invited(laptop, phone)] == [0, 0]
        assert phone.succeed("get", "notes", "kept", "--fresh").out == "read by all\n"
        assert laptop.succeed("vault", "delete", "--yes", "--json").answer["held"] is True
        assert laptop.succeed("get", "notes", "kept").out == "read by all\n"
        phone.run("put", "notes", "late", "not sent")
        assert "was deleted" in phone.run("status").out
        assert "vault forget" in phone.run("put", "notes", "later", "not even written").error
        refused = phone.run("vault", "forget", "--yes", "--json")
        assert (refused.code, refused.answer["error"]["kind"]) == (1, "unsent")
        assert phone.succeed("get", "notes", "late").out == "not sent\n"
        phone.succeed("vault", "forget", "--yes", "--discard-unsent")
        laptop.succeed("vault", "forget", "--yes")
        assert "holds no vault" in laptop.run("vault", "members").err
        laptop.succeed("init", "--relay", relay.address, "--vault", "another")
    finally:
        relay.end()


def test_a_vault_is_forgotten_whose_relay_is_gone(
    machine: Callable[[str], Machine], environment: dict[str, str]
) -> None:
    laptop, relay = machine("laptop"), Relay(environment)
    try:
        laptop.succeed("init", "--relay", relay.address, "--name", "laptop")
        failed = laptop.run("vault", "forget", "--yes", "--without-relay")
        assert failed.code == 1 and "leave it" in failed.error
    finally:
        relay.end()
    failed = laptop.run("vault", "forget", "--yes", "--wait", "1")
    assert failed.code == 1 and "gone for good" in failed.error
    answer = laptop.succeed("vault", "forget", "--yes", "--without-relay", "--wait", "1", "--json").answer
    assert answer["held"] is False
    assert "holds no vault" in laptop.run("vault", "members").err
