"""Devices are removed from a vault, and its key is changed, with a real relay between them."""

import json
from collections.abc import Callable

from tests.client.cli.commands import Machine, Relay, invited


def members(device: Machine) -> list[tuple[str, str, str]]:
    """(name, role, key) of each device of the vault, as a device knows them."""
    lines = device.succeed("vault", "members", "--json").out.splitlines()
    return [(each["name"], each["role"], each["device"]) for each in map(json.loads, lines)]


def test_a_device_is_removed_and_the_others_go_on(
    machine: Callable[[str], Machine], environment: dict[str, str]
) -> None:
    laptop, phone, tablet = machine("laptop"), machine("phone"), machine("tablet")
    relay = Relay(environment)
    try:
        laptop.succeed("init", "--relay", relay.address, "--name", "laptop")
        for device in (phone, tablet):
            assert [done.code for done in invited(laptop, device)] == [0, 0]
        laptop.succeed("put", "notes", "before", "read by all")
        assert phone.succeed("get", "notes", "before", "--fresh").out == "read by all\n"
        assert [each[:2] for each in members(laptop)] == [
            ("laptop", "admin"),
            ("second", "writer"),
            ("second", "writer"),
        ]
        assert laptop.succeed("vault", "members").out.splitlines()[0].endswith("\tthis device")
        assert "2 devices" in laptop.run("vault", "remove", "second", "--yes").err
        key = members(laptop)[1][2][:8]
        assert laptop.succeed("vault", "rotate", "--json").answer == {"members": 3}
        assert laptop.succeed("vault", "remove", key, "--yes", "--json").answer == {"members": 2}
        laptop.succeed("put", "notes", "after", "not for the phone")
        assert tablet.succeed("get", "notes", "after", "--fresh").out == "not for the phone\n"
        phone.run("put", "notes", "late", "stays there")
        assert phone.run("status", "--json").answer["state"] == "refused"
        assert phone.succeed("get", "notes", "before").out == "read by all\n"
        assert phone.run("get", "notes", "after").code == 1
        assert laptop.run("get", "notes", "late", "--fresh").code == 1
        assert [each[0] for each in members(laptop)] == ["laptop", "second"]
        heads = [each.succeed("vault", "head", "--json").answer for each in (laptop, tablet)]
        assert heads[0] == heads[1] and heads[0]["links"] == 5
        assert laptop.succeed("vault", "head").out == f"5 links: {heads[0]['words']}\n"
        for refused in (key, "laptop"):
            assert laptop.run("vault", "remove", refused, "--yes").code == 1
        assert "ask an admin" in tablet.run("vault", "rotate").err
    finally:
        relay.end()
