"""The command line `sealwire`. What a command needs of the library is imported when that command is to run."""

import os
import sys
from typing import Any, NoReturn

import click

from sealwire_client.cli.doctor import doctor
from sealwire_client.cli.entries import delete, get, ls, put
from sealwire_client.cli.failures import ExitCode, Failure, OutputClosed, explained, leaves, sentence, usage
from sealwire_client.cli.inout import export, import_
from sealwire_client.cli.members import init, invite, join
from sealwire_client.cli.output import Output, say, visible
from sealwire_client.cli.recovery import recovery
from sealwire_client.cli.status import status
from sealwire_client.cli.stuck import stuck
from sealwire_client.cli.vault import vault
from sealwire_client.cli.watch import watch
from sealwire_protocol import __version__

__all__ = ["main"]


class _CommandLine(click.Group):
    """A group whose every end is an exit code, and whose every error is one sentence."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command that was typed, and end the process."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
            Output().flush()
        except click.exceptions.NoArgsIsHelpError as error:
            say(error.format_message())
            code = ExitCode.USAGE
        except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:
            code = _end(error)
        sys.exit(int(code or 0))


def _end(error: BaseException) -> ExitCode:
    """Tell an error, and give its exit code."""
    if any(isinstance(leaf, OutputClosed) for leaf in leaves(error)):
        return ExitCode.DONE
    failure = _failure(error)
    if os.environ.get("SEALWIRE_DEBUG"):
        import traceback

        traceback.print_exception(error)
    told = sentence(visible(str(failure), lines=True))
    say(f"sealwire: {told}")
    if "--json" in sys.argv[1:] and failure.kind != "interrupted":
        try:
            Output(as_json=True).answer({"error": {"kind": failure.kind, "message": told}}, "")
        except (OutputClosed, Failure):
            pass
    return failure.code


def _failure(error: BaseException) -> Failure:
    match error:
        case click.UsageError():
            command = error.ctx.command_path if error.ctx is not None else "sealwire"
            return usage(f"{_mistyped(error)}; `{command} --help` tells what can be typed")
        case click.ClickException():
            return Failure(error.format_message())
        case click.Abort() | KeyboardInterrupt():
            return Failure("Interrupted: nothing was begun.", "interrupted", ExitCode.INTERRUPTED)
        case _:
            return explained(error)


def _mistyped(error: click.UsageError) -> str:
    """What was typed wrong, in words that can be followed by more."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None and error.ctx.command is main:
        option = error.option_name
        if any(option in parameter.opts for command in main.commands.values() for parameter in command.params):
            return f"{option} does not stand here: options follow the command, as in `sealwire COMMAND {option}`"
    return error.format_message().rstrip(".")


@click.group(cls=_CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sealwire")
def main() -> None:
    """Sealwire on this device: keep entries here, and in step with your other devices through a relay that cannot
    read them.

    Begin with `init` on the first device, `invite` there and `join` on the next one. docs/cli.md explains every
    command, and the exit codes.
    """


for _command in (
    init,
    invite,
    join,
    put,
    delete,
    get,
    ls,
    export,
    import_,
    watch,
    status,
    doctor,
    stuck,
    vault,
    recovery,
):
    main.add_command(_command)
