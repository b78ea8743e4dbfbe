"""Keys and tokens made where no relay runs: by a function for an app's backend, and by commands."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.registration import decode_token, key_id_of, signed_part, token_bytes
from sealwire_relay.cli import main
from sealwire_relay.minting import MintingError, generate_key, mint, public_key
from sealwire_relay.settings import Settings
from sealwire_relay.signatures import verify


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    generate_key(file)
    return file


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["token", *arguments])


def test_a_key_is_kept_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "key"
    public = generate_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert public == public_key(file)
    assert public not in file.read_text()
    with pytest.raises(MintingError, match="there already"):
        generate_key(file)
    assert public == public_key(file)
    with pytest.raises(MintingError, match="cannot be written"):
        generate_key(tmp_path / "none" / "key")


def test_a_relay_that_trusts_the_key_takes_what_is_minted(key: Path) -> None:
    [trusted] = Settings(registration_keys=(public_key(key),)).trusted_keys()
    first, second = (mint(key, vaults=3, days=2, holder="user 17") for _ in range(2))
    assert first.token.serial != second.token.serial
    raw = token_bytes(first.text)
    token, signature = decode_token(raw)
    assert token == first.token
    assert (token.key_id, token.vaults, token.holder) == (key_id_of(trusted), 3, "user 17")
    assert verify(trusted, signed_part(raw), signature)
    assert mint(key, days=3).token.expires - token.expires in range(86_400, 86_410)


def test_a_key_that_others_may_read_is_not_used(key: Path) -> None:
    for mode in (0o640, 0o604, 0o660):
        key.chmod(mode)
        with pytest.raises(MintingError, match="chmod 600"):
            mint(key)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff" * 40, b"QUJD\n"])
def test_a_file_that_is_no_key_is_refused(key: Path, content: bytes) -> None:
    key.write_bytes(content)
    with pytest.raises(MintingError, match="no private key"):
        mint(key)


def test_what_does_not_fit_is_not_minted(key: Path) -> None:
    with pytest.raises(LocalMisuse):
        mint(key, vaults=0)
    with pytest.raises(LocalMisuse):
        mint(key, holder="x" * 65)


def test_the_commands_make_a_key_and_a_token(tmp_path: Path) -> None:
    file = tmp_path / "key"
    made = run("keygen", str(file))
    assert made.exit_code == 0
    assert made.stdout.strip() == public_key(file)
    minted = run("mint", str(file), "--vaults", "2", "--days", "0.5", "--for", "Zoë")
    assert minted.exit_code == 0
    token, _ = decode_token(token_bytes(minted.stdout))
    assert (token.vaults, token.holder) == (2, "Zoë")
    told = json.loads(run("mint", str(file), "--json").stdout)
    assert decode_token(token_bytes(told["token"]))[0].serial.hex() == told["serial"]
    assert (told["vaults"], told["for"]) == (1, "")
    other = json.loads(run("keygen", str(tmp_path / "other"), "--json").stdout)
    assert other["public_key"] == public_key(tmp_path / "other") != public_key(file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keygen", "key"), "there already"),
        (("mint", "none"), "token keygen"),
        (("mint", "key", "--for", "x" * 65), "No token was made"),
        (("mint", "key", "--vaults", "0"), "--vaults"),
        (("mint", "key", "--days", "0"), "--days"),
    ],
)
def test_a_command_that_fails_says_why(
    key: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(key.parent)
    failed = run(*arguments)
    assert failed.exit_code == 2
    assert said in failed.stderr
    assert failed.stdout == ""
