"""`sealwire init` at a relay that takes in vaults by registration token."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealwire_relay.minting import generate_key, mint
from tests.client.cli.commands import Machine, Relay
from tests.client.cli.conftest import NOWHERE


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "minting.key"


@pytest.fixture
def doorkeeper(environment: dict[str, str], key: Path) -> Iterator[Relay]:
    """A relay that takes in vaults by tokens of the key."""
    relay = Relay(environment, registration="token", registration_keys=generate_key(key))
    yield relay
    relay.end()


def test_a_vault_is_taken_in_with_its_token(machine: Callable[[str], Machine], doorkeeper: Relay, key: Path) -> None:
    a, place = machine("a"), ("init", "--relay", doorkeeper.address)
    done = a.succeed(*place, "--wait", "3600")  # it is not waited for what was refused
    assert "has not taken it in" in done.out
    assert "registration token" in done.out
    a.succeed("put", "notes", "k", "v", "--wait", "0")
    assert "have been made" in machine("b").succeed(*place, "--token", used_up(machine, place, key)).out
    done = a.succeed(*place, "--token", mint(key).text)
    assert "has this token from now on" in done.out
    assert "The relay has it." in done.out


def used_up(machine: Callable[[str], Machine], place: tuple[str, ...], key: Path) -> str:
    """A token with which a vault was made."""
    token = mint(key).text
    assert "The relay has it." in machine("c").succeed(*place, "--token", token).out
    return token


def test_a_wrong_address_is_corrected_together_with_the_token(
    machine: Callable[[str], Machine], doorkeeper: Relay, key: Path
) -> None:
    a = machine("a")
    a.succeed("init", "--relay", NOWHERE, "--wait", "0")
    done = a.succeed("init", "--relay", doorkeeper.address, "--token", mint(key).text)
    assert f"has the relay {doorkeeper.address} from now on" in done.out
    assert "The relay has it." in done.out


def test_what_is_no_token_changes_nothing(machine: Callable[[str], Machine]) -> None:
    a = machine("a")
    failed = a.run("init", "--relay", NOWHERE, "--token", "sealwire:AeeW", "--wait", "0")
    assert failed.code == 2
    assert "copy the whole text" in failed.error
    assert not a.folder.exists()
