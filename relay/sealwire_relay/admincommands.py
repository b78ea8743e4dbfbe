"""The commands `sealwire-relay admin …`: tokens for the control port, and what was asked with them, or without."""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from sealwire_relay.commandline import end, finish, json_option, say, settings_of, settings_options
from sealwire_relay.settings import LOGGING

if TYPE_CHECKING:
    from sealwire_relay.store.interface import Store

ROWS_DEFAULT: Final = 100
DATABASE: Final = ("database_url", "folder", *LOGGING)


@click.group()
def admin() -> None:
    """Make tokens for the control port, and see what was asked there. A relay may run meanwhile."""


@admin.group()
def token() -> None:
    """Make and revoke admin tokens, by which those who run the relay ask its control port."""


@token.command()
@click.argument("name")
@settings_options(DATABASE)
@json_option
def create(name: str, as_json: bool, **options: Any) -> None:
    """Make a token called NAME and print it. It is shown this once: the relay keeps its hash."""
    from sealwire_relay.admintokens import make
    from sealwire_relay.store.administration import NAME_CHARACTERS_MAX

    if not (0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable()):
        end(f"A token's name has 1 to {NAME_CHARACTERS_MAX} characters that can be printed: choose another.", 2)
    made = make()

    async def keep(store: "Store") -> None:
        if not await store.add_admin_token(name, made.hash):
            _fail(
                f"No token was made: there is or was one called {name!r}, or there are too many of them; choose another"
                " name, so that the audit stays clear."
            )
        say(json.dumps({"name": name, "token": made.text}) if as_json else made.text)

    _work(options, keep)


@token.command(name="list")
@settings_options(DATABASE)
@click.option("--json", "as_json", is_flag=True, help="Tell of each token as a JSON object on a line of its own.")
def list_tokens(as_json: bool, **options: Any) -> None:
    """List all tokens by their names, revoked ones too. What they are is known to nobody but those who have them."""

    async def tell(store: "Store") -> None:
        for found in await store.admin_tokens():
            created, revoked = _time(found.created), found.revoked and _time(found.revoked)
            words = f"{found.name}: made {created}" + (f", revoked {revoked}" if revoked else "")
            told = {"name": found.name, "created": created, "revoked": revoked}
            say(json.dumps(told) if as_json else words)

    _work(options, tell)


@token.command()
@click.argument("name")
@settings_options(DATABASE)
def revoke(name: str, **options: Any) -> None:
    """Make the token called NAME worth nothing, at once and for good."""

    async def take_back(store: "Store") -> None:
        if not await store.revoke_admin_token(name):
            _fail(f"There is no token called {name!r} that could be used: `sealwire-relay admin token list` has all.")

    _work(options, take_back)


@admin.command()
@settings_options(DATABASE)
@click.option(
    "--rows", type=click.IntRange(1), default=ROWS_DEFAULT, show_default=True, help="How many, the newest first."
)
@click.option("--json", "as_json", is_flag=True, help="Tell of each request as a JSON object on a line of its own.")
def audit(rows: int, as_json: bool, **options: Any) -> None:
    """Say what was asked of the control port, or of the data port with an admin token.

    For each request: when it was, whose token was shown, from what address, what was asked, and what came of it.
    """

    async def tell(store: "Store") -> None:
        for row in await store.audit(rows):
            at, who = _time(row.at), row.token or "nobody known"
            words = f"{at} {who} from {row.address}: {row.asked}: {row.verdict}"
            say(json.dumps(row._asdict() | {"at": at}) if as_json else words)

    _work(options, tell)


def _work(options: dict[str, Any], work: "Callable[[Store], Awaitable[None]]") -> None:
    """Do it on the database of the settings, and end the process."""
    settings = settings_of(options)
    from sealwire_relay.borrowed import store_of
    from sealwire_relay.ending import ExitCode, asked_to_end, before, ending, told

    async def on_store() -> bool:
        async with store_of(settings) as store:
            await work(store)
        return True

    async def run() -> int:
        with asked_to_end() as asked, told():
            done = await before(asked, on_store())
            return ending(asked.result(), before_ready=True) if done is None else ExitCode.DONE

    finish(run)


def _fail(sentence: str) -> None:
    from sealwire_relay.ending import RelayError

    raise RelayError(sentence)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
