"""The options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

SECONDS_MAX: Final = 86_400
"""A day: whoever waits longer should use `watch`."""


def folder_and_json(command: Command) -> Command:
    """`--folder` and `--json`, as `folder` and `as_json`."""
    command = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, one object on a line.")(command)
    return click.option(
        "--folder",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SEALWIRE_HOME",
        metavar="FOLDER",
        help="The device's folder; else SEALWIRE_HOME, else sealwire in $XDG_DATA_HOME or ~/.local/share.",
    )(command)


def vault(command: Command) -> Command:
    """`--vault`."""
    return click.option(
        "--vault", metavar="NAME", help="The vault, by its name or the beginning of its id; else the folder's first."
    )(command)


def wait(seconds: float, what: str) -> Callable[[Command], Command]:
    """`--wait`: how long this command waits for the relay."""
    return click.option(
        "--wait",
        type=click.FloatRange(0, SECONDS_MAX),
        default=seconds,
        show_default=True,
        metavar="SECONDS",
        help=what,
        callback=_number,
    )


def _number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("it is no number of seconds", context, parameter)
    return value


def passphrase(command: Command) -> Command:
    """`--passphrase`: protect the new device's keystore."""
    return click.option(
        "--passphrase",
        "protect",
        is_flag=True,
        help="Protect the new device's keys by a passphrase; asked twice, or taken from SEALWIRE_PASSPHRASE(_FILE).",
    )(command)


def fresh(command: Command) -> Command:
    """`--fresh`."""
    return click.option("--fresh", is_flag=True, help="Catch up with the relay first; fail if that does not succeed.")(
        command
    )


def policy(command: Command) -> Command:
    """`--policy`, of a collection that is written to."""
    return click.option(
        "--policy",
        type=click.Choice(["latest", "merge", "strict"]),
        help="What becomes of two edits of one entry, for a collection that is new; else the one it has, else latest.",
    )(command)
