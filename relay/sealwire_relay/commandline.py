"""What the commands of `sealwire-relay` share: options from settings, what they print, and how they end."""

import logging
import os
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Final, NoReturn, TypeVar

import click

from sealwire_relay.settings import SEVERAL, Settings, SettingsError, choices, fields, option
from sealwire_relay.sources import load

Command = TypeVar("Command", bound=Callable[..., Any])


def settings_options(names: Collection[str]) -> Callable[[Command], Command]:
    """An option for each of these settings, handed to the command unparsed, or None."""

    def decorate(command: Command) -> Command:
        for field, about in reversed([found for found in fields() if found[0].name in names]):
            several = field.name in SEVERAL
            default = None if several or field.name == "folder" or field.default is None else str(field.default)
            command = click.option(
                option(field.name),
                field.name,
                metavar=_metavar(field.name),
                help=about.text + (" May be given more than once." if several else ""),
                multiple=several,
                show_default=default or False,
            )(command)
        return command

    return decorate


def _metavar(name: str) -> str:
    if allowed := choices(name):
        return f"[{'|'.join(allowed)}]"
    return _METAVARS.get(name, "NUMBER")


_METAVARS: Final = {
    "folder": "FOLDER",
    "database_url": "URL",
    "origins": "URL",
    "host": "ADDRESS",
    "control_host": "ADDRESS",
    "tls_certificate_path": "FILE",
    "tls_key_path": "FILE",
    "trusted_proxies": "NETWORK",
    "registration_keys": "KEY",
}


ALL: Final = frozenset(field.name for field, _ in fields())
json_option = click.option("--json", "as_json", is_flag=True, help="Tell it as one JSON object on one line.")


def say(line: str) -> None:
    """A line on stdout. Whoever has closed it does not want to know."""
    try:
        click.echo(line)
    except OSError:
        pass


def settings_of(options: Mapping[str, Any]) -> Settings:
    """The settings of a command, from its options and the environment; logs go as they say. Wrong ones end it."""
    given = {name: ",".join(v) if isinstance(v, tuple) else v for name, v in options.items() if v not in (None, ())}
    try:
        settings = load(os.environ, given)
    except SettingsError as error:
        refuse(error)
    from sealwire_relay.log import configure

    configure(settings)
    return settings


def finish(work: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run to the end on an event loop of its own, and end the process with the exit code."""
    import asyncio

    import uvloop

    from sealwire_relay.ending import ExitCode, RelayError

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(work())
    except RelayError as error:
        end(str(error), error.code)
    except SettingsError as error:
        refuse(error)
    except Exception:
        logging.getLogger("sealwire.cli").exception("This is a mistake in the program")
        end("The relay failed in a way that was not foreseen; please report it with the lines above.", 1)
    if code == ExitCode.INTERRUPTED:
        end("Interrupted: everything was stopped in order, and nothing that was acknowledged is lost.", code)
    sys.exit(code)


def refuse(error: SettingsError) -> NoReturn:
    """End the process, for it was called wrongly."""
    end(str(error), 2)


def end(sentence: str, code: int) -> NoReturn:
    """End the process with an exit code, and a sentence that says why."""
    click.echo(f"sealwire-relay: {sentence}", err=True)
    sys.exit(code)
