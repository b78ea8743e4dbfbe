"""`recovery show | use`: 24 words on paper, and a vault again on an empty machine by them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealwire_client.cli import options
from sealwire_client.cli.failures import Failure, relay_missing, usage
from sealwire_client.cli.members import default_name, keep_default
from sealwire_client.cli.output import Output, say, visible

if TYPE_CHECKING:
    from sealwire_client.cli.place import Place
    from sealwire_client.recovery import RecoveryWords
    from sealwire_client.vault import Vault

WORDS_CHARACTERS_MAX: Final = 4_096
"""24 words have some 160 characters."""

_COLUMNS: Final = 4


@click.group(short_help="24 words on paper, and a vault again by them.")
def recovery() -> None:
    """A vault's recovery words: a device on paper, by which an empty machine becomes a device of the vault again."""


@recovery.command(short_help="Make recovery words, and show them this once.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@options.vault
@options.wait(20, "Longest wait for the relay, which is told of the new member.")
@options.folder_and_json
def show(yes: bool, vault: str | None, wait: float, folder: Path | None, as_json: bool) -> None:
    """Make 24 words for this vault, and show them this once: they are kept nowhere.

    They are a member of the vault, with the role of an admin, named "recovery words". Whoever has them can read the
    vault and decide who belongs to it: keep the paper as you would keep a key. Words that were made earlier stay good.
    """
    from sealwire_client.cli import place, running

    output, found = Output(as_json), place.existing(folder)
    if not yes and not sys.stdin.isatty():
        raise usage("Recovery words are shown once, and there is nobody to ask whether somebody looks: say --yes")
    if not yes and not click.confirm(
        "Anybody who reads the words can read the vault, and they are shown only now. Pen and paper are ready?",
        err=True,
    ):
        raise Failure("No recovery words were made", "interrupted")
    running.run(lambda: _show(found, vault, wait, output))


async def _show(place: Place, name: str | None, wait: float, output: Output) -> None:
    import trio

    from sealwire_client.cli import session

    async with session.opened(place) as device:
        vault = session.chosen(device, place, name)
        await session.reach_for(device, vault, wait, "the words would be worth nothing, so none were made")
        words: RecoveryWords | None = None
        with trio.move_on_after(wait):
            words = await vault.recovery_words()
        if words is None:
            why = session.why_not(await vault.status(), vault.origin, wait)
            raise relay_missing(f"The relay was not told of new recovery words: {why}; run the same again later")
        text = words.reveal()
        fields = {"words": text, "vault": vault.name, "id": vault.id.hex(), "relay": vault.origin}
        output.answer(fields, _table(text) if output.is_terminal else text)
        output.say(
            f"Write them down with the relay's address, {vault.origin}. On an empty machine:"
            f" sealwire recovery use --relay {vault.origin}"
        )


def _table(text: str) -> str:
    """The words with their numbers, to be read down the columns."""
    words = text.split(" ")
    rows = len(words) // _COLUMNS
    cells = [f"{number:2}. {word:10}" for number, word in enumerate(words, 1)]
    return "\n".join("".join(cells[row::rows]).rstrip() for row in range(rows))


@recovery.command(short_help="Become a device of a vault by its recovery words.")
@click.option("--relay", required=True, envvar="SEALWIRE_RELAY", metavar="URL", help="The relay that the vault is at.")
@click.option("--name", metavar="DEVICE", help="What to call this device; else the name of this machine.")
@options.passphrase
@options.wait(20, "Longest wait for the relay.")
@options.folder_and_json
def use(relay: str, name: str | None, protect: bool, wait: float, folder: Path | None, as_json: bool) -> None:
    """Become a device of a vault by its 24 recovery words, which are read from stdin.

    Makes this device first if the folder has none. It gets keys of its own, and the role of an admin; the words stay
    good, and are kept nowhere. How they are written (case, spaces, lines, numbers) does not matter.
    """
    from sealwire_client import recovery as words
    from sealwire_client.cli import place, running
    from sealwire_client.transport import check_origin
    from sealwire_protocol.login import normal_origin

    origin = normal_origin(relay)
    check_origin(origin)
    text = _typed()
    words.parse(text)
    output, found = Output(as_json), place.new(folder, protect)
    running.run(lambda: _use(found, origin, text, name or default_name(), wait, output))


def _typed() -> str:
    """What is on stdin; of a terminal until there are enough words, or an empty line."""
    from sealwire_client.recovery import WORDS

    if not sys.stdin.isatty():
        return sys.stdin.read(WORDS_CHARACTERS_MAX)
    say(f"The {WORDS} words, on one line or several; an empty line ends them:")
    text = ""
    while len(text) < WORDS_CHARACTERS_MAX and len(text.split()) < WORDS:
        line = sys.stdin.readline()
        if not line.strip():
            break
        text += line
    return text


async def _use(place: Place, relay: str, text: str, device_name: str, wait: float, output: Output) -> None:
    import trio

    from sealwire_client import recovery as words
    from sealwire_client.cli import session

    async with session.opened(place, relay) as device:
        named = words.parse(text).vault
        held = any(vault.id == named for vault in device.vaults)
        if not held:
            await session.reach(device, relay, wait, "recovery needs the relay; run the same again later")
        vault: Vault | None = None
        with trio.move_on_after(wait):
            vault = await device.recover(text, device_name=device_name)
            await vault.known()
        if vault is None:
            raise relay_missing(f"The relay did not answer within {wait:g} s; run the same again later")
        keep_default(place, device, vault)
        fields = {"folder": str(place.folder), "device": device.key.hex(), "vault": vault.name, "id": vault.id.hex()}
        told = f"Device {device_name} belongs to vault {vault.name} now"
        if held:
            told = f"This device holds vault {vault.name} already"
        output.answer(
            {**fields, "relay": vault.origin, "held_before": held},
            visible(f"{told}, in {place.folder}. `sealwire ls COLLECTION` fetches what is in it."),
        )
