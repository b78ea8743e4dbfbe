"""Where the device lives, and the passphrase of its keystore: found before any work begins, because people are asked.

The folder is `--folder`, else `SEALWIRE_HOME`, else `sealwire` in `$XDG_DATA_HOME` or `~/.local/share`.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click

from sealwire_client.cli.failures import ExitCode, Failure, usage

PASSPHRASE_BYTES_MAX = 4_096
"""A passphrase file of more is some other file."""


@dataclass(frozen=True, slots=True)
class Place:
    """A device's folder, and what opens its keystore."""

    folder: Path
    passphrase: str | None = field(repr=False)


def default_folder() -> Path:
    """The folder when none is named."""
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: relative paths are to be ignored.
    base = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return base / "sealwire"


def existing(folder: Path | None) -> Place:
    """The place of a device that is there. Raises Failure, KeystoreError; asks for the passphrase if it must."""
    from sealwire_client.keystore import KeystoreMissingError

    found = _absolute(folder)
    try:
        locked = _is_locked(found)
    except KeystoreMissingError:
        raise Failure(
            f"There is no device in {found} yet: begin with `sealwire init --relay wss://…`, or with `sealwire join`"
            " and an invite; or name another folder with --folder.",
            "no_device",
        ) from None
    return Place(found, (_given() or _asked("Passphrase")) if locked else None)


def new(folder: Path | None, protect: bool) -> Place:
    """The place of a device that may still have to be made; `protect`: it shall have a passphrase."""
    from sealwire_client.keystore import KeystoreMissingError

    found = _absolute(folder)
    try:
        locked = _is_locked(found)
    except KeystoreMissingError:
        given = _given()
        if given is None and protect:
            given = _asked("New passphrase", twice=True)
        return Place(found, given)
    if protect and not locked:
        raise usage(
            f"The device in {found} was made without a passphrase, and can have one only when it is made; leave out"
            " --passphrase, or use another folder."
        )
    return Place(found, (_given() or _asked("Passphrase")) if locked else None)


def _absolute(folder: Path | None) -> Path:
    return Path(os.path.abspath((folder or default_folder()).expanduser()))


def _is_locked(folder: Path) -> bool:
    from sealwire_client import keystore
    from sealwire_client.device import KEYSTORE_NAME

    try:
        keystore.load(folder / KEYSTORE_NAME)
    except keystore.PassphraseError:
        return True
    return False


def _given() -> str | None:
    """The passphrase that the environment gives."""
    text, path = os.environ.get("SEALWIRE_PASSPHRASE"), os.environ.get("SEALWIRE_PASSPHRASE_FILE")
    if text is not None and path is not None:
        raise usage("SEALWIRE_PASSPHRASE and SEALWIRE_PASSPHRASE_FILE are both set: unset one of them")
    if path is None:
        return text
    try:
        with open(path, "rb") as file:
            return file.read(PASSPHRASE_BYTES_MAX).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Failure(f"The passphrase file {path} cannot be read ({why}): see to SEALWIRE_PASSPHRASE_FILE") from error


def _asked(prompt: str, twice: bool = False) -> str:
    if not sys.stdin.isatty():
        raise Failure(
            "The device's keystore needs a passphrase, and there is no terminal to ask on: set"
            " SEALWIRE_PASSPHRASE_FILE to a file that holds it (or SEALWIRE_PASSPHRASE)",
            "locked",
            ExitCode.LOCKED,
        )
    # An end at once would leave the terminal without echo.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer: str = click.prompt(prompt, hide_input=True, err=True, confirmation_prompt=twice)
    finally:
        signal.signal(signal.SIGINT, before)
    return answer
