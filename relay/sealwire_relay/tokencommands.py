"""The commands `sealwire-relay token …`: what makes keys and registration tokens, apart from any relay."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import click

from sealwire_protocol.errors import LocalMisuse
from sealwire_protocol.registration import HOLDER_BYTES_MAX, QUOTA_MAX, TOKEN_VAULTS_MAX
from sealwire_relay.commandline import end, json_option

DAYS_DEFAULT: Final = 30.0
DAYS_MAX: Final = 36_500.0

Result = TypeVar("Result")


@click.group()
def token() -> None:
    """Make keys and registration tokens, for a relay whose --registration is `token`. No relay is asked."""


@token.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def keygen(file: Path, as_json: bool) -> None:
    """Make a private key in FILE, and print its public part, which goes into the relay's --registration-key.

    FILE must not be there yet. Who has it can mint tokens: keep it where tokens are minted, not on the relay.
    """
    from sealwire_relay.minting import generate_key

    public = _told(lambda: generate_key(file))
    click.echo(json.dumps({"file": str(file), "public_key": public}) if as_json else public)


@token.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--vaults",
    type=click.IntRange(1, TOKEN_VAULTS_MAX),
    default=1,
    show_default=True,
    help="How many vaults can be made with it.",
)
@click.option(
    "--days",
    type=click.FloatRange(0, DAYS_MAX, min_open=True),
    default=DAYS_DEFAULT,
    show_default=True,
    help="How long it can be used; vaults that were made with it stay.",
)
@click.option(
    "--quota",
    type=click.IntRange(0, QUOTA_MAX),
    default=0,
    show_default=True,
    metavar="BYTES",
    help="How many bytes each of them may store; 0: as many as the relay's --quota-bytes says.",
)
@click.option(
    "--for",
    "holder",
    default="",
    metavar="NAME",
    help=f"Whom it is for, in at most {HOLDER_BYTES_MAX} bytes: the relay's log says it.",
)
@json_option
def mint(file: Path, vaults: int, days: float, quota: int, holder: str, as_json: bool) -> None:
    """Print a registration token, signed with the private key in FILE. It is a secret: who has it can use it up."""
    from sealwire_relay import minting

    minted = _told(lambda: minting.mint(file, vaults=vaults, days=days, quota=quota, holder=holder))
    if not as_json:
        click.echo(minted.text)
        return
    made = minted.token
    expires = datetime.fromtimestamp(made.expires, UTC).isoformat()
    told = {"token": minted.text, "serial": made.serial.hex(), "vaults": made.vaults, "quota": made.quota}
    click.echo(json.dumps(told | {"expires": expires, "for": holder}))


def _told(work: Callable[[], Result]) -> Result:
    """What it returns; an error ends the command with its sentence."""
    from sealwire_relay.minting import MintingError

    try:
        return work()
    except MintingError as error:
        end(str(error), 2)
    except LocalMisuse as error:
        end(f"No token was made: {error}.", 2)
